"""What the store raises when it cannot do its work.

All of these are temporary and ours: a peer hears 451, an API client 503, and neither hears the text of the database's
error, which may hold a host, a password or SQL. That text stays in ``__cause__`` for the log of this process. What
the data itself is refused for (``sqlalchemy.exc.IntegrityError``) is no trouble of the store and passes as it is.
"""


class StoreUnavailable(Exception):
    """The store could not be reached or did not answer in time; nothing of the change is, or will be, in force."""

    def __init__(self, text: str = "the store is not available") -> None:
        super().__init__(text)


class StoreFull(StoreUnavailable):
    """The disk of the store is full: 452 4.3.1."""

    def __init__(self) -> None:
        super().__init__("the store is full")


class Misplaced(StoreUnavailable):
    """The file of the store, or its log, was removed or replaced while it was open: what is written would be lost."""

    def __init__(self) -> None:
        super().__init__("the files of the store are not those that were opened")


class CommitUnknown(StoreUnavailable):
    """The store went away after COMMIT was sent: the change may be in force, and nobody can tell yet."""

    def __init__(self) -> None:
        super().__init__("the store did not say whether it kept the change")


class WrongEncoding(StoreUnavailable):
    """The database to be set up keeps text in an encoding without most letters: mail with one would not go in."""

    def __init__(self) -> None:
        super().__init__("the database has an encoding that cannot hold all letters")


class SharedSessions(StoreUnavailable):
    """A pooler gives each transaction another connection to the server: what a session is told does not hold."""

    def __init__(self) -> None:
        super().__init__("the sessions of the database are shared")


class UnusableUrl(StoreUnavailable):
    """The URL of the database names a host or a port that cannot be."""

    def __init__(self) -> None:
        super().__init__("the address of the database cannot be")
