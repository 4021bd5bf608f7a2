"""What one SMTP session knows: who the client is, and the transaction it has open."""

from dataclasses import dataclass, field

from forwarder.mail.address import Path
from forwarder.mail.reply import Reply
from forwarder.mail.rules import Step, Target
from forwarder.store.credentials import Login


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipient:
    """A forward-path we accepted, and where it leads."""

    path: Path
    ways: tuple[Target | None, ...]  # None: no alias answers, the mail goes to ``elsewhere``
    elsewhere: Path | None = None
    account_id: int | None = None  # whose domain it is for, when it is hosted here
    discarded: bool = False  # the alias is disabled and its owner wants such mail swallowed
    # Where the alias leads as well, and nobody is, or an alias of another account: the log tells its owner.
    told: tuple[Step, ...] = ()
    reports_only: bool = False  # taken for reports about what this address sent, and nothing else


@dataclass(slots=True, kw_only=True)
class Transaction:
    """From MAIL to the reply after the dot."""

    reverse_path: Path
    smtputf8: bool = False
    recipients: list[Recipient] = field(default_factory=list)
    ways: int = 0  # of all recipients together

    def add(self, recipient: Recipient) -> None:
        """Take a recipient; the deliveries it makes are counted, since an alias may make a thousand of one RCPT."""
        self.recipients.append(recipient)
        self.ways += len(recipient.ways) + len(recipient.told)


class Session:
    """From the greeting to the close. STARTTLS forgets what the client said before it (RFC 3207 4.2)."""

    __slots__ = (
        "client",
        "errors",
        "extended",
        "failed_logins",
        "farewell",
        "helo",
        "junk",
        "login",
        "tls",
        "transaction",
    )

    def __init__(self, client: str) -> None:
        self.client = client  # the client's address; "" where the system did not say
        self.helo = ""  # as the client gave it, bounded by the command line; never printed as it is
        self.extended = False  # it said EHLO
        self.tls = ""  # "TLSv1.3 TLS_AES_256_GCM_SHA384"; empty: in the clear
        self.login: Login | None = None  # submission: as whom it logged in
        self.transaction: Transaction | None = None
        self.errors = 0  # refusals since the last message
        self.junk = 0  # commands since the last message that did nothing for one
        self.failed_logins = 0
        self.farewell: Reply | None = None  # said after the next reply, and then the session is over

    def forget(self) -> None:
        """As after the greeting."""
        self.helo = ""
        self.extended = False
        self.transaction = None
