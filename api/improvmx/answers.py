"""Models of the answers, for the OpenAPI document; ``wire`` makes what they describe."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Milliseconds = Annotated[int, Field(description="Milliseconds since 1970-01-01 UTC.")]
Time = Annotated[
    str | int,
    Field(
        description='"2020-01-25 12:19:09+0000", or milliseconds with time_format=ms.',
        examples=["2020-01-25 12:19:09+0000"],
    ),
]


class Answer(BaseModel):
    """What every answer that is no refusal says."""

    model_config = ConfigDict(extra="forbid")

    success: bool


class Error(BaseModel):
    """A refusal: one reason in ``error``, or reasons by field in ``errors``."""

    success: Literal[False]
    code: Annotated[int, Field(description="The HTTP status.")]
    error: str | None = None
    errors: dict[str, list[str]] | None = None


class Shape(BaseModel):
    """A part of an answer."""

    model_config = ConfigDict(extra="forbid")


class Limits(Shape):
    aliases: Annotated[int, Field(description="Aliases per domain.")]
    daily_quota: Annotated[int, Field(description="Messages forwarded a day.")]
    daily_send: Annotated[int, Field(description="Messages sent a day through credentials.")]
    domains: int
    ratelimit: int
    redirections: int
    subdomains: int
    api: Annotated[int, Field(description="API keys.")]
    credentials: Annotated[int, Field(description="Credentials per domain.")]
    destinations: Annotated[int, Field(description="Destinations per alias.")]
    daily_send_per_credential: Annotated[
        int, Field(description="Messages sent a day through one credential; 0: as many as daily_send.")
    ]


class Plan(Shape):
    aliases_limit: int
    daily_quota: int
    display: str
    domains_limit: int
    kind: str
    name: str
    price: int
    yearly: bool


class Account(Shape):
    billing_email: str | None
    cancels_on: Milliseconds | None
    card_brand: str
    company_details: str
    company_name: str
    company_vat: str | None
    country: str
    created: Milliseconds
    email: str
    last4: str
    limits: Limits
    lock_reason: str | None
    locked: Annotated[bool | None, Field(description="true when the account is locked, else null.")]
    password: bool
    plan: Plan | None
    premium: bool
    privacy_level: int
    renew_date: Milliseconds | None


class AccountAnswer(Answer):
    account: Account


class Whitelabel(Shape):
    name: str


class WhitelabelsAnswer(Answer):
    whitelabels: list[Whitelabel]


class ApiKey(Shape):
    id: int
    name: str
    prefix: Annotated[str, Field(description="The first characters of the key.")]
    created: Milliseconds
    last_used: Milliseconds | None
    revoked: Milliseconds | None


class KeysAnswer(Answer):
    keys: list[ApiKey]


class NewKeyAnswer(Answer):
    key: ApiKey
    api_key: Annotated[str, Field(description="The key itself, shown this once.")]


class Alias(Shape):
    created: Milliseconds
    forward: Annotated[str, Field(description="Destinations, separated by commas.")]
    alias: str
    id: int
    is_active: Annotated[Literal[False], Field(description="Only there when the alias is disabled.")] = False
    when_disabled: Annotated[
        Literal[250, 421, 550] | None,
        Field(
            description=(
                "What a disabled alias answers; only there when it is. "
                "null: it is a rule that is not active, and mail is looked after as if it were not there."
            )
        ),
    ] = 550


class Domain(Shape):
    active: Annotated[bool, Field(description="Its MX was right when the DNS was last asked.")]
    domain: str
    display: Annotated[str, Field(description="The name in its own script.")]
    dkim_selector: str
    notification_email: str | None
    webhook: str | None
    whitelabel: str | None
    added: Milliseconds
    aliases: Annotated[list[Alias], Field(max_length=200)]


class ListedDomain(Domain):
    daily_quota: int


class DomainAnswer(Answer):
    domain: Domain


class DomainsAnswer(Answer):
    domains: list[ListedDomain]
    total: int
    limit: int
    page: int


class WebhookKeyAnswer(Answer):
    webhook: str | None
    key: Annotated[str, Field(description="Signs what is POSTed to the webhook (X-Webhook-Signature).")]


class OneRecord(Shape):
    expected: str
    valid: bool
    values: str | None


class MxRecords(Shape):
    expected: list[str]
    valid: bool
    values: list[str]


class Records(Shape):
    provider: str | None
    advanced: bool
    dkim1: OneRecord
    dkim2: OneRecord
    dmarc: OneRecord
    error: str | None
    mx: MxRecords
    spf: OneRecord
    valid: bool


class CheckAnswer(Answer):
    records: Records
    valid: bool
    mx: MxRecords
    spf: OneRecord


class AliasAnswer(Answer):
    alias: Alias


class AliasesAnswer(Answer):
    aliases: list[Alias]
    limit: int
    page: int
    total: int


class BulkAnswer(Answer):
    added: list[Alias]
    failed: list[Alias]
    updated: list[Alias]


class AliasRuleConfig(Shape):
    alias: str
    forward: str


class RegexRuleConfig(Shape):
    regex: str
    scopes: list[Literal["recipient"]]
    forward: str


class Rule(Shape):
    id: Annotated[str, Field(examples=["12"], description="The id of the alias that the rule is, as text.")]
    type: Literal["alias", "regex"]
    config: AliasRuleConfig | RegexRuleConfig
    rank: Annotated[
        float, Field(description="Rules are asked in this order, lowest first; then the older one.")
    ]
    active: bool
    created: Milliseconds


class RuleAnswer(Answer, Rule):
    """The rule under ``rule``, and its keys once more beside it, where a client reads them."""

    rule: Rule


class RulesAnswer(Answer):
    rules: list[Rule]
    limit: int
    page: int
    total: int


class Mailbox(Shape):
    email: str
    name: str | None


class Event(Shape):
    code: int
    created: Time
    id: str
    local: str
    message: str
    recipient: str | None
    server: str
    status: Literal["QUEUED", "REFUSED", "DELIVERED", "SOFT-BOUNCE", "HARD-BOUNCE"]


class Log(Shape):
    created: Time
    created_raw: str
    events: list[Event]
    forward: Mailbox | None
    hostname: str
    id: Annotated[str, Field(description="Also the cursor: pass it as next_cursor.")]
    messageId: str  # noqa: N815 - the name on the wire
    recipient: Mailbox
    sender: Mailbox
    subject: str
    transport: str
    url: str | None


class LogsAnswer(Answer):
    logs: list[Log]


class Credential(Shape):
    created: Milliseconds
    usage: int
    username: str


class CredentialAnswer(Answer):
    credential: Credential


class NewCredentialAnswer(CredentialAnswer):
    requires_new_mx_check: bool


class CredentialsAnswer(Answer):
    credentials: list[Credential]
