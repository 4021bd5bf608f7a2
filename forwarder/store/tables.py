"""The tables and their invariants; nothing else in the project knows a column's type.

Four families. *Directory* (accounts, api_keys, domains, aliases, confirmations, credentials, dkim_keys, changes,
sequences): small, cached in every process, each change of a domain's mail behaviour adds a row to ``changes`` so that
caches follow within a second. *Queue* (messages, deliveries, workers): hot; a delivery's row leaves when it is
delivered or failed, a message's row with its content leaves with its last delivery. *Journal* (logs, events):
append-only, read by cursor, purged by age; a log's id is its delivery's id. *Agreement* of processes (counters,
chores): what is counted, or done, once for all of them.

Ids of messages, deliveries, logs, events and workers are UUIDv7 as 32 lower-case hex digits, so that they sort by
time; the database compares them byte by byte. Times are UTC with microseconds.
"""

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ColumnElement,
    DateTime,
    Dialect,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    literal_column,
    text,
)
from sqlalchemy.types import TypeEngine

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


@lru_cache(256)
def micros(at: datetime) -> int:
    """How SQLite stores a time; remembered, since a message's own stands in five of its rows."""
    return (at - _EPOCH) // _MICROSECOND


def at_micros(value: int) -> datetime:
    """The time that SQLite stored."""
    return _EPOCH + timedelta(microseconds=value)


class UtcDateTime(TypeDecorator[datetime]):
    """An aware UTC datetime: microseconds since the epoch on SQLite, ``timestamptz`` on PostgreSQL.

    SQLite hands back naive values even for ``DateTime(timezone=True)``; integers cannot be misread and sort fast.
    A naive value is refused: whoever made it forgot which clock it was.
    """

    impl = BigInteger
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name == "postgresql":
            return dialect.type_descriptor(DateTime(timezone=True))
        return dialect.type_descriptor(BigInteger())

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a datetime without a zone cannot be stored; use datetime.now(UTC)")
        if dialect.name == "postgresql":
            return value.astimezone(UTC)
        return micros(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if dialect.name == "postgresql":
            stored: datetime = value
            return stored.astimezone(UTC)
        return at_micros(value)


Id = String(32).with_variant(String(32, collation="C"), "postgresql")
Serial = BigInteger().with_variant(Integer(), "sqlite")  # SQLite counts up by itself only on INTEGER

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

accounts = Table(
    "accounts",
    metadata,
    Column("id", Serial, primary_key=True),
    Column("email", Text, nullable=False, unique=True),  # lower case
    # A named set of limits in the configuration.
    Column("plan", Text, nullable=False, server_default="default"),
    Column("created_at", UtcDateTime, nullable=False),
    Column("locked_at", UtcDateTime),
    Column("lock_reason", Text),
    sqlite_autoincrement=True,
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", Serial, primary_key=True),
    Column("account_id", ForeignKey("accounts.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("name", Text, nullable=False),
    Column("digest", String(64), nullable=False, unique=True),  # SHA-256 of the key, which is 256 random bits
    Column("prefix", Text, nullable=False),  # the first characters, for people to recognise it
    Column("created_at", UtcDateTime, nullable=False),
    Column("last_used_at", UtcDateTime),
    Column("revoked_at", UtcDateTime),
    sqlite_autoincrement=True,
)

domains = Table(
    "domains",
    metadata,
    Column("id", Serial, primary_key=True),
    Column("account_id", ForeignKey("accounts.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("name", Text, nullable=False, unique=True),  # A-labels, lower case
    Column("display", Text, nullable=False),  # U-labels
    # Its MX was right when last asked.
    Column("is_active", Boolean, nullable=False, server_default=text("false")),
    Column("notification_email", Text),
    Column("webhook", Text),
    Column("webhook_key", Text, nullable=False),  # signs what is POSTed to the webhook
    Column("whitelabel", Text),
    Column("dkim_selector", Text, nullable=False),
    Column("added_at", UtcDateTime, nullable=False),
    Column("checked_at", UtcDateTime),  # DNS last asked
    Column("sending_checked_at", UtcDateTime),  # DKIM and SPF records were in place; null: refuse submission
    Column("broken_since", UtcDateTime),  # the DNS was right and is not any more
    Column("notified_at", UtcDateTime),  # notification_email was told so
    sqlite_autoincrement=True,
)
Index(
    "ix_domains_webhook",
    domains.c.id,
    postgresql_where=domains.c.webhook.is_not(None),
    sqlite_where=domains.c.webhook.is_not(None),
)

aliases = Table(
    "aliases",
    metadata,
    Column("id", Serial, primary_key=True),
    Column("domain_id", ForeignKey("domains.id", ondelete="CASCADE"), nullable=False),
    Column("pattern", Text, nullable=False),  # lower case unless it is a regular expression
    Column("forward", Text, nullable=False),  # comma-separated, canonical
    Column("is_active", Boolean, nullable=False, server_default=text("true")),
    Column("when_disabled", Integer, nullable=False, server_default="550"),
    Column("created_at", UtcDateTime, nullable=False),
    Column("rank", Double),  # among the domain's regular expressions; null: in order of creation
    # Disabled as if it were not there.
    Column("is_skipped", Boolean, nullable=False, server_default=text("false")),
    UniqueConstraint("domain_id", "pattern"),
    CheckConstraint("when_disabled IN (250, 421, 550)", name="when_disabled"),
    Index("ix_aliases_domain_id_id", "domain_id", "id"),
    sqlite_autoincrement=True,
)

# Whether a pattern is more than a name (``mail.pattern.classify``): those few of a domain are found among any number.
IS_PATTERN = {
    "sqlite": r"pattern GLOB '*[][(){}\|^$*]*'",
    "postgresql": r"translate(pattern, '()[]{}\|^$*', '') <> pattern",
}
Index(
    "ix_aliases_patterns",
    aliases.c.domain_id,
    postgresql_where=text(IS_PATTERN["postgresql"]),
    sqlite_where=text(IS_PATTERN["sqlite"]),
)

confirmations = Table(  # who agreed to get forwarded mail; only used where the configuration wants it
    "confirmations",
    metadata,
    Column("address", Text, primary_key=True),  # mailbox_key: storage form, lower case
    Column("token_digest", String(64), unique=True),  # SHA-256 of 256 random bits; null: the link was used
    Column("requested_at", UtcDateTime, nullable=False),
    Column("confirmed_at", UtcDateTime),
)

credentials = Table(
    "credentials",
    metadata,
    Column("id", Serial, primary_key=True),
    Column("domain_id", ForeignKey("domains.id", ondelete="CASCADE"), nullable=False),
    Column("username", Text, nullable=False),  # the left part, lower case
    Column("password_hash", Text, nullable=False),  # argon2id
    Column("is_limited", Boolean, nullable=False, server_default=text("false")),  # true: only its own address
    Column("usage", BigInteger, nullable=False, server_default="0"),
    Column("created_at", UtcDateTime, nullable=False),
    Column("changed_at", UtcDateTime, nullable=False),  # cached log-ins older than this are void
    Column("last_used_at", UtcDateTime),
    UniqueConstraint("domain_id", "username"),
    sqlite_autoincrement=True,
)

dkim_keys = Table(
    "dkim_keys",
    metadata,
    Column("id", Serial, primary_key=True),
    Column("domain_id", ForeignKey("domains.id", ondelete="CASCADE"), nullable=False),
    Column("selector", Text, nullable=False),
    Column("algorithm", Text, nullable=False),
    # PKCS#8, sealed with a key that is not in the database.
    Column("private_key", LargeBinary, nullable=False),
    Column("public_record", Text, nullable=False),  # the TXT value: v=DKIM1; k=…; p=…
    Column("created_at", UtcDateTime, nullable=False),
    # Signs nothing until its record is found in the DNS.
    Column("is_waiting", Boolean, nullable=False, server_default=text("false")),
    Column("retired_at", UtcDateTime),  # signs nothing any more; its record stays for mail under way
    UniqueConstraint("domain_id", "selector"),
    CheckConstraint("algorithm IN ('rsa', 'ed25519')", name="algorithm"),
    sqlite_autoincrement=True,
)

changes = Table(  # one row a change of what a domain does with mail; caches follow it
    "changes",
    metadata,
    Column("version", BigInteger, primary_key=True, autoincrement=False),
    Column("domain", Text, nullable=False),
    Column("changed_at", UtcDateTime, nullable=False),
)

sequences = Table(  # the row is locked until commit, so versions become visible in their order
    "sequences",
    metadata,
    Column("name", Text, primary_key=True),
    Column("value", BigInteger, nullable=False),
)

messages = Table(
    "messages",
    metadata,
    Column("id", Id, primary_key=True),
    Column("created_at", UtcDateTime, nullable=False),
    Column("transport", Text, nullable=False),
    Column("reverse_path", Text, nullable=False),  # Path.storage(); the null reverse-path is ''
    Column("smtputf8", Boolean, nullable=False),
    Column("signing_domain", Text),  # submission: the customer's domain, authenticated as the author
    Column("size", Integer, nullable=False),
    Column("content", LargeBinary, nullable=False),
)

deliveries = Table(
    "deliveries",
    metadata,
    Column("id", Id, primary_key=True),
    Column("message_id", ForeignKey("messages.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("kind", Text, nullable=False),
    # The hosted domain it is for, if any; no key: the queue outlives the domain.
    Column("domain_id", BigInteger),
    Column("alias", Text),  # the pattern that answered
    Column("recipient", Text, nullable=False),  # the forward-path we accepted, Path.storage()
    Column("destination", Text, nullable=False),  # an address or a URL
    Column("destination_domain", Text, nullable=False),  # of the address, or the URL's host
    Column("state", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("next_attempt_at", UtcDateTime, nullable=False),
    Column("lease_owner", Id),
    Column("last_reply", Text),
    CheckConstraint("state IN ('queued', 'leased', 'held')", name="state"),
    CheckConstraint("kind IN ('smtp', 'webhook', 'notify')", name="kind"),
    CheckConstraint("attempts >= 0", name="attempts"),
    CheckConstraint("(state = 'leased') = (lease_owner IS NOT NULL)", name="lease"),
)
# Literal, not bound: a parameter would keep both databases from using the partial indexes.
IS_QUEUED = deliveries.c.state == literal_column("'queued'")
IS_LEASED = deliveries.c.state == literal_column("'leased'")
Index(
    "ix_deliveries_due",
    deliveries.c.next_attempt_at,
    deliveries.c.destination_domain,  # a claim passes over domains that are at their limit without reading rows
    postgresql_where=IS_QUEUED,
    sqlite_where=IS_QUEUED,
)
Index(
    "ix_deliveries_leased",
    deliveries.c.lease_owner,
    postgresql_where=IS_LEASED,
    sqlite_where=IS_LEASED,
)

workers = Table(
    "workers",
    metadata,
    Column("id", Id, primary_key=True),
    Column("node", Text, nullable=False, index=True),  # one data_dir; its lock file says whether it lives
    Column("hostname", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("started_at", UtcDateTime, nullable=False),
    Column("alive_until", UtcDateTime, nullable=False),
)

logs = Table(
    "logs",
    metadata,
    Column("id", Id, primary_key=True),
    Column("domain_id", BigInteger),
    Column("alias", Text),
    Column("created_at", UtcDateTime, nullable=False),
    Column("transport", Text, nullable=False),
    Column("hostname", Text),  # the client that brought it
    Column("message_id", Text),  # the Message-ID header
    Column("subject", Text),
    Column("sender_email", Text),
    Column("sender_name", Text),
    Column("recipient_email", Text),
    Column("recipient_name", Text),
    Column("forward_email", Text),
    Column("forward_name", Text),  # always NULL: a destination is an address without a name
    # It has a REFUSED, SOFT or HARD event.
    Column("failed", Boolean, nullable=False, server_default=text("false")),
    Index("ix_logs_domain_id_id", "domain_id", "id"),
    Index("ix_logs_domain_id_alias_id", "domain_id", "alias", "id"),
)
# Of a domain, of one of its aliases, of all: whoever looks for failures reads nothing else, however few there are.
_WHERE_FAILED: dict[str, Any] = {"postgresql_where": logs.c.failed, "sqlite_where": logs.c.failed}
Index("ix_logs_failed", logs.c.domain_id, logs.c.id, **_WHERE_FAILED)
Index("ix_logs_failed_alias", logs.c.domain_id, logs.c.alias, logs.c.id, **_WHERE_FAILED)
Index("ix_logs_failed_id", logs.c.id, **_WHERE_FAILED)
# As the indexes say it: SQLite would not see that "failed = 1", as SQLAlchemy writes the column, is the same.
IS_FAILED: ColumnElement[bool] = literal_column("logs.failed")

events = Table(
    "events",
    metadata,
    Column("log_id", Id, primary_key=True),  # no key: the journal is purged by age, logs first or last
    Column("id", Id, primary_key=True),
    Column("created_at", UtcDateTime, nullable=False),
    Column("status", Text, nullable=False),
    Column("code", Integer, nullable=False),
    Column("message", Text, nullable=False),
    Column("local", Text),
    Column("server", Text),
    Column("recipient", Text),
)

counters = Table(  # exact limits across processes: quotas, API rate, failed log-ins
    "counters",
    metadata,
    Column("key", Text, primary_key=True),  # what is counted and the start of its window
    Column("value", BigInteger, nullable=False),
    Column("expires_at", UtcDateTime, nullable=False, index=True),
)

chores = Table(  # background work that one process at a time does
    "chores",
    metadata,
    Column("name", Text, primary_key=True),
    Column("owner", Id, nullable=False),
    Column("owned_until", UtcDateTime, nullable=False),
    Column("done_at", UtcDateTime),
)
