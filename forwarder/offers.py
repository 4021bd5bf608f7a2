"""Which configuration the workers of a supervisor obey, and which of them they were told to read. Pure.

A worker that is told to reload reads the file itself. It may refuse what it finds, or be told of a further change
before it obeys this one. So a configuration is an *offer* first; it is *in force* once a worker says, by the digest of
its text, that it obeys it. A worker that replaces a dead one is given what is in force, whatever the file says by then.

Offers that are older than the one in force do not stand any more: no worker goes back to them.
"""

from forwarder.config import Settings, Source


class Offers:
    """What the workers obey, and what they may obey next."""

    def __init__(self, source: Source, settings: Settings) -> None:
        self.in_force = source
        self.latest = source
        self._settings = settings  # those of the start
        # By digest, oldest first: what a worker may say that it obeys.
        self._standing = {source.digest: (source, settings)}

    @property
    def settings_in_force(self) -> Settings:
        """What the configuration in force says."""
        return self._standing[self.in_force.digest][1]

    def make(self, source: Source, settings: Settings) -> None:
        """The workers are about to be told of a configuration. What every one of them refuses is no offer."""
        own = self._settings
        if (settings.data_dir, settings.database.url) == (own.data_dir, own.database.url):
            self._standing.pop(source.digest, None)
            self.latest, self._standing[source.digest] = source, (source, settings)

    def obeyed(self, digest: str) -> Settings | None:
        """A worker obeys the offer with this digest, which is in force from now on; None: it is none that stands."""
        if digest not in self._standing:
            return None
        self.in_force, settings = self._standing[digest]
        while next(iter(self._standing)) != digest:
            del self._standing[next(iter(self._standing))]
        return settings

    def stands(self, source: Source) -> bool:
        """Whether a worker may still come to obey it, or does."""
        return source.digest in self._standing
