"""The sections of the configuration with every default; the value that all rooms are built from."""

from collections.abc import Mapping
from datetime import timedelta
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from forwarder.config.units import (
    MIB,
    BodySize,
    Count,
    DatabaseUrl,
    Duration,
    EachOnce,
    Endpoints,
    Folder,
    HostName,
    HostPort,
    Lease,
    LocalIpv4,
    LocalIpv6,
    MessageSize,
    NameServers,
    OptionalAddress,
    OptionalEndpoint,
    OptionalHostName,
    OptionalRelay,
    Positive,
    Proxies,
    PublicUrl,
    Share,
    Size,
    SomeTime,
    Whole,
    split_list,
)


def run_folder(data_dir: Path) -> Path:
    """Where the processes of a node meet: its lock, its ports, and what they count together."""
    return data_dir / "run"


# With fewer, whoever waits for a lock keeps a sign of life waiting, and the mail in hand is sent by others, too.
POOL_LEAST = 5


class Section(BaseModel):
    """A part of the configuration: frozen, and a key that it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=False)


class DatabaseSection(Section):
    """Where the store is."""

    url: DatabaseUrl = Field(default="", repr=False)  # "": SQLite in data_dir
    pool_size: Positive = 8  # PostgreSQL connections a process

    @model_validator(mode="after")
    def _one_for_each_kind(self) -> Self:
        if self.url.startswith("postgresql") and self.pool_size < POOL_LEAST:
            raise ValueError(
                f"pool_size must be {POOL_LEAST} or more: two connections write mail, one changes aliases and domains, "
                "one is for this process's sign of life, and the others read"
            )
        return self


class MxSection(Section):
    """Mail from the Internet; RFC 5321 4.5.3 has the least a server must allow."""

    listen: Endpoints = (HostPort("0.0.0.0", 25), HostPort("::", 25))  # noqa: S104 - the Internet is the point
    size_limit: MessageSize = 25 * MIB
    recipients: Positive = 1000  # per message
    connections: Count = 2000  # at once, in all, per process; 0: no limit
    connections_per_client: Count = 50  # at once, per address; 0: no limit
    connections_per_minute: Count = 300  # per address; 0: no limit
    bare_newline: Literal["reject", "normalize"] = "reject"
    line_limit: Positive = 998  # octets of a text line without its CRLF
    max_hops: Positive = 50  # Received lines
    command_timeout: SomeTime = timedelta(seconds=300)
    data_timeout: SomeTime = timedelta(seconds=180)  # between two blocks of DATA
    min_rate: Size = 500  # octets a second that DATA must reach on average; 0: any
    errors: Count = 20  # replies 5xx since the last message taken before we hang up
    junk_commands: Count = 100  # NOOP, RSET, VRFY, … between two messages before we hang up


class SubmissionSection(Section):
    """Mail from people who log in (RFC 6409); what is not explained here is as in ``[mx]``."""

    listen: Endpoints = (HostPort("0.0.0.0", 587),)  # noqa: S104
    listen_tls: Endpoints = (HostPort("0.0.0.0", 465),)  # noqa: S104
    require_dns: bool = True
    size_limit: MessageSize = 25 * MIB
    recipients: Positive = 500
    connections: Count = 1000
    connections_per_client: Count = 50
    connections_per_minute: Count = 120
    line_limit: Positive = 998
    max_hops: Positive = 50
    command_timeout: SomeTime = timedelta(seconds=300)
    data_timeout: SomeTime = timedelta(seconds=180)
    min_rate: Size = 500
    errors: Count = 20
    junk_commands: Count = 100
    show_client_address: bool = False  # in Received
    failures_per_connection: Positive = 3  # wrong passwords before we hang up
    failures_per_minute: Positive = 10  # per client address, all processes together
    failures_per_account: Positive = 50  # per log-in name and hour, all processes together
    password_checks: Positive = 2  # argon2 verifications at once in a process
    login_cache: Duration = timedelta(minutes=5)  # a verified log-in is remembered this long; "0s": never


class TlsSection(Section):
    """The certificate of every listener but the API; both empty: no TLS, and no submission."""

    certificate: str = ""
    key: str = ""

    @property
    def configured(self) -> bool:
        """Whether there is a certificate."""
        return bool(self.certificate)

    @model_validator(mode="after")
    def _both(self) -> Self:
        if bool(self.certificate) != bool(self.key):
            raise ValueError("certificate and key go together: name both PEM files, or neither")
        return self


class ApiSection(Section):
    """The REST face."""

    listen: OptionalEndpoint = HostPort("127.0.0.1", 8080)  # "": no API
    public_url: PublicUrl = ""  # how people reach it, without /v3, for links; empty: http://<listen>
    connections: Count = 1000  # at once, in all, per process; 0: no limit
    body_limit: BodySize = 1 * MIB
    rate: Count = 600  # requests a minute per account, all processes together; 0: no limit
    failures_per_minute: Count = 300  # wrong keys per client address; 0: no limit
    trusted_proxies: Proxies = ()  # addresses and networks that may say X-Forwarded-For
    recheck_every: Duration = timedelta(hours=12)  # each domain's DNS is asked again; "0s": never


class DnsSection(Section):
    """How the DNS is asked."""

    nameservers: NameServers = ()  # empty: the system's
    timeout: SomeTime = timedelta(seconds=5)  # of one question, with its repetitions
    cache: Positive = 50_000  # answers held


class OutboundSection(Section):
    """How mail leaves."""

    smarthost: OptionalRelay = None
    port: Annotated[Whole, Field(ge=1, le=65535)] = 25
    allow_private_destinations: bool = False
    tls: Literal["opportunistic", "required", "off"] = "opportunistic"
    mta_sts: bool = True  # domains that enforce a policy (RFC 8461) get mail by it, whatever ``tls`` says
    dane: bool = True  # hosts with TLSA records in signed zones (RFC 7672) get mail by them; likewise
    concurrency: Positive = 200  # sessions at once, per process
    concurrency_per_site: Positive = 20
    window: Positive = 2000  # deliveries held in memory, per process
    reuse_limit: Positive = 100  # messages over one connection
    idle_timeout: Duration = timedelta(seconds=5)  # of a connection kept for reuse
    connect_timeout: SomeTime = timedelta(seconds=30)
    greeting_timeout: SomeTime = timedelta(seconds=300)  # this and the next: RFC 5321 4.5.3.2
    command_timeout: SomeTime = timedelta(seconds=300)
    data_timeout: SomeTime = timedelta(seconds=180)  # between two blocks we send
    dot_timeout: SomeTime = timedelta(seconds=600)  # RFC 5321 4.5.3.2.6: hanging up earlier makes duplicates
    webhook_timeout: SomeTime = timedelta(seconds=30)
    bind_ipv4: LocalIpv4 = ""  # the address to dial from; empty: the system's choice
    bind_ipv6: LocalIpv6 = ""
    disclose_destination: bool = False  # a DSN names the alias only, unless true


class RetrySection(Section):
    """When a delivery that failed for now is tried again; the last delay repeats."""

    # RFC 5321 4.5.4.1: the give-up time should be at least 4-5 days; the first retries may come sooner than the 30
    # minutes it names, since most failures of a first attempt (greylisting) are over within minutes.
    delays: Annotated[tuple[SomeTime, ...], BeforeValidator(split_list), Field(min_length=1)] = tuple(
        timedelta(minutes=minutes) for minutes in (1, 5, 15, 30, 60, 120, 240)
    )
    give_up_after: SomeTime = timedelta(days=5)
    spread: Share = 0.1  # each delay grows by up to this share, by chance


class SrsSection(Section):
    """The reverse-paths under which mail is forwarded."""

    domain: OptionalHostName = ""  # filled with hostname
    max_age_days: Annotated[Whole, Field(ge=1, le=511)] = 21


class DkimSection(Section):
    """The signature of the service; a customer's domain has its own keys, with the same selector."""

    domain: OptionalHostName = ""  # filled with hostname
    # fwd1: RSA, fwd2: Ed25519
    selector: Annotated[str, Field(pattern=r"^[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?$")] = "fwd"
    algorithms: Annotated[
        tuple[Literal["rsa", "ed25519"], ...],
        BeforeValidator(split_list),
        Field(min_length=1, max_length=2),
        EachOnce,
    ] = ("rsa", "ed25519")


class ArcSection(Section):
    """Whether forwarded mail is sealed (RFC 8617)."""

    enabled: bool = True


class ScreeningSection(Section):
    """What is looked up about mail that comes in."""

    spf: bool = True
    dkim: bool = True
    dmarc: bool = True
    dmarc_reject: bool = True  # refuse what fails a policy p=reject


class Plan(Section):
    """The limits of an account; the names are those of ``GET /v3/account``."""

    display: str = ""
    price: Count = 0
    yearly: bool = False
    premium: bool = True
    domains: Count = 10_000
    aliases: Count = 10_000  # of each domain
    credentials: Count = 1000  # per domain
    destinations: Count = 100  # per alias
    redirections: Count = 50
    subdomains: Count = 10
    daily_quota: Count = 10_000_000  # messages forwarded a day; 0: no limit
    daily_send: Count = 10_000  # messages submitted a day
    daily_send_per_credential: Count = 0  # of these, with one credential; 0: all of them
    ratelimit: Count = 600  # messages submitted a minute
    api: Count = 10  # API keys


class LogsSection(Section):
    """What is kept of mail, and what the engine says about itself."""

    retention: SomeTime = timedelta(days=30)
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "json", "console"] = "auto"  # auto: console on a terminal


class WorkersSection(Section):
    """The processes of this machine."""

    processes: Annotated[Whole, Field(ge=0, le=1000)] = 0  # 0: one per core
    # A process that is silent this long loses its deliveries to others.
    lease: Lease = timedelta(seconds=15)


class Settings(Section):
    """The whole configuration.

    ``srs.domain`` and ``dkim.domain`` are filled with ``hostname``, ``database.url`` with SQLite in
    ``data_dir``, so that readers need no fallback of their own.
    """

    hostname: HostName
    data_dir: Folder = Path("data")
    postmaster: OptionalAddress = ""  # where mail to postmaster goes, alone or at hostname; empty: refused
    require_confirmed_destinations: bool = False
    database: DatabaseSection = DatabaseSection()
    mx: MxSection = MxSection()
    submission: SubmissionSection = SubmissionSection()
    tls: TlsSection = TlsSection()
    api: ApiSection = ApiSection()
    dns: DnsSection = DnsSection()
    outbound: OutboundSection = OutboundSection()
    retry: RetrySection = RetrySection()
    srs: SrsSection = SrsSection()
    dkim: DkimSection = DkimSection()
    arc: ArcSection = ArcSection()
    screening: ScreeningSection = ScreeningSection()
    plans: Mapping[str, Plan] = Field(default_factory=lambda: {"default": Plan()})
    logs: LogsSection = LogsSection()
    workers: WorkersSection = WorkersSection()

    @property
    def listeners(self) -> dict[str, tuple[HostPort, ...]]:
        """What the engine listens on, by service; submission only with a certificate."""
        listeners = {"mx": self.mx.listen, "api": (self.api.listen,) if self.api.listen else ()}
        if self.tls.configured:
            listeners["submission"] = self.submission.listen
            listeners["submission-tls"] = self.submission.listen_tls
        return listeners

    def plan(self, name: str) -> Plan:
        """The limits of that name; the default ones where the configuration has it no more."""
        return self.plans.get(name, self.plans["default"])

    @property
    def own_names(self) -> tuple[str, ...]:
        """What this server itself is called: its host, and the domains of its return addresses and signatures."""
        return (self.hostname, self.srs.domain, self.dkim.domain)

    def own_name(self, domain: str) -> str | None:
        """The name of this server itself that ``domain`` (lower-case A-labels) is or stands below; None: of none.

        Such names are nobody's to host: their mail and their DNS records are the server's own. What stands above
        them is free: a server mx1.example.net hosts example.net as any other domain.
        """
        for own in self.own_names:
            if domain == own or domain.endswith(f".{own}"):
                return own
        return None

    @model_validator(mode="after")
    def _one_listener_a_port(self) -> Self:
        named = [at for at in chain.from_iterable(self.listeners.values()) if at.port]
        twice = sorted({str(at) for at in named if named.count(at) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)} is asked for by two listeners; give each a port of its own")
        return self

    @model_validator(mode="after")
    def _plans_by_one_name(self) -> Self:
        for name in self.plans:
            meant = next((other for other in ("default", *self.plans) if other.lower() == name.lower()), name)
            if meant != name:
                raise ValueError(
                    f"plans.{name} differs from plans.{meant} only in case; write that name, or choose another"
                )
            if not name.strip():
                raise ValueError("a plan needs a name, as in [plans.gold]")
        return self

    @model_validator(mode="after")
    def _fill(self) -> Self:
        filled: dict[str, Any] = {
            "srs": self.srs.model_copy(update={"domain": self.srs.domain or self.hostname}),
            "dkim": self.dkim.model_copy(update={"domain": self.dkim.domain or self.hostname}),
            "plans": {"default": Plan(), **self.plans},
        }
        if not self.database.url:
            file = str(self.data_dir / "forwarder.db")
            for sign in "%?":  # that mean something in a URL, and stand for themselves in a path
                file = file.replace(sign, f"%{ord(sign):02X}")
            filled["database"] = self.database.model_copy(update={"url": f"sqlite:///{file}"})
        self.__dict__.update(filled)  # the model is frozen for readers, and not yet handed to any
        return self
