"""Models of what requests carry: the same ones check the fields and describe them in the OpenAPI document.

An empty text in an optional field means unset, as clients send it. Keys we do not know, and those that can only be
read (``id``, ``added``, ``active`` …), are ignored, so that an object may be sent back as it came. Every text is
bounded and holds no control character, separator or lone surrogate; texts that mean something (domains, addresses,
patterns, URLs) are put into the one form in which they are stored. They hold no percent-encoded control character
either, since a program that is given them may decode it.

What depends on the server or the account comes in through ``Bounds``: the validation context.
"""

import re
import unicodedata
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo

from api.validation import Bounds
from forwarder.mail.address import AddressError, parse_address, parse_domain
from forwarder.mail.destination import Url, canonical_forward, parse_forward, parse_url
from forwarder.mail.pattern import parse_pattern
from forwarder.net.http import Blocked, check_url

_UNWANTED = frozenset({"Cc", "Cs", "Zl", "Zp"})
_ENCODED = re.compile(r"%(?:[01][0-9A-Fa-f]|7[Ff])")
# Soft hyphen, what joins words, marks of byte order and of direction: they only make a text look like another.
_HIDDEN = frozenset("\u00ad\u200b\u2060\ufeff\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
PAGE_SIZE = 50
BULK = 500


def _clean(text: str) -> str:
    if not text.isprintable() and any(unicodedata.category(character) in _UNWANTED for character in text):
        raise ValueError("this holds a line break or another control character")
    return text


def plain(text: str) -> str:
    """The text, if it is for everybody what it looks like; else a ValueError."""
    if _ENCODED.search(text):
        raise ValueError("this holds a percent-encoded line break or another control character")
    if not text.isascii() and not _HIDDEN.isdisjoint(text):
        raise ValueError("this holds an invisible character")
    return text


def _unset(value: Any) -> Any:
    return None if value == "" else value


def _only(value: Any) -> Any:
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _domain(text: str) -> str:
    try:
        name = parse_domain(text.strip().rstrip("."))
    except AddressError as fault:
        raise ValueError(f"{fault}; only its name is wanted, such as example.com") from None
    if "." not in name:
        raise ValueError("a domain has at least two parts, such as example.com")
    return name


def _email(text: str) -> str:
    try:
        return parse_address(text.strip()).storage()
    except AddressError as fault:
        raise ValueError(f"{fault}; one address alone is wanted, such as richard@example.com") from None


def _webhook(text: str, info: ValidationInfo) -> str:
    if "://" not in text:
        raise ValueError("this must be a URL such as https://example.com/hook")
    url = parse_url(text.strip(), plain_http=True).url
    _check_url(url, info)
    return url


def _check_url(url: str, info: ValidationInfo) -> None:
    try:
        check_url(url, allow_private=_bounds(info).allow_private)
    except Blocked as fault:
        raise ValueError(str(fault)) from None


def _pattern(text: str) -> str:
    return parse_pattern(text.strip())


def _forward(text: str, info: ValidationInfo) -> str:
    destinations = parse_forward(text, plain_http=_bounds(info).allow_private)
    limit = _bounds(info).destinations
    if len(destinations) > limit:
        raise ValueError(f"your account is limited to {limit} destinations per alias")
    for destination in destinations:
        if isinstance(destination, Url):
            _check_url(destination.url, info)
    return canonical_forward(destinations)


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("this cannot be blank")
    return text


def _username(text: str) -> str:
    if "@" in text:
        raise ValueError("write only the part before the @")
    return parse_address(f"{text.strip()}@example.com").key


def _bounds(info: ValidationInfo) -> Bounds:
    if not isinstance(info.context, Bounds):
        raise TypeError("fields are validated with Bounds as context")
    return info.context


def _within(low: int, high: int) -> AfterValidator:
    def clamp(value: int | None) -> int | None:
        return None if value is None else min(max(value, low), high)

    return AfterValidator(clamp)


Unset = BeforeValidator(_unset)
Clean = AfterValidator(_clean)
Plain = AfterValidator(plain)
Name = Annotated[str, Field(min_length=1, max_length=100), Clean, Plain, AfterValidator(_not_blank)]
DomainName = Annotated[str, Field(max_length=500, examples=["piedpiper.com"]), Clean, AfterValidator(_domain)]
Email = Annotated[
    str, Field(max_length=500, examples=["richard@example.com"]), Clean, Plain, AfterValidator(_email)
]
WebhookUrl = Annotated[
    str, Field(max_length=2000, examples=["https://example.com/hook"]), Clean, Plain, AfterValidator(_webhook)
]
Pattern = Annotated[
    str,
    Field(max_length=1000, examples=["richard", "*", "sales-*", "(contact|support)"]),
    Clean,
    Plain,
    AfterValidator(_pattern),
]
OneText = Annotated[list[Annotated[str, Field(max_length=1000)]], Field(min_length=1, max_length=1)]
Forward = Annotated[
    str,
    Field(max_length=100_000, examples=["richard.hendricks@example.com"]),
    Clean,
    Plain,
    AfterValidator(_forward),
]
Username = Annotated[
    str, Field(min_length=1, max_length=100, examples=["bighead"]), Clean, Plain, AfterValidator(_username)
]
Password = Annotated[
    str,
    Field(min_length=6, max_length=256, examples=["abc123"], json_schema_extra={"format": "password"}),
    Clean,
]
WhenDisabled = Annotated[
    Literal[250, 421, 550],
    BeforeValidator(lambda value: int(value) if value in ("250", "421", "550") else value),
    Field(description="What a disabled alias answers: 250 accepts and discards, 421 defers, 550 refuses."),
]


class Body(BaseModel):
    model_config = ConfigDict(extra="ignore")


class NewDomain(Body):
    domain: DomainName
    notification_email: Annotated[Email | None, Unset] = None
    webhook: Annotated[WebhookUrl | None, Unset] = None
    whitelabel: Annotated[DomainName | None, Unset] = None


class EditDomain(Body):
    notification_email: Annotated[Email | None, Unset] = None
    webhook: Annotated[WebhookUrl | None, Unset] = None
    whitelabel: Annotated[DomainName | None, Unset] = None


class NewAlias(Body):
    # A client in Python sends the one alias as a list of one.
    alias: Annotated[Pattern, BeforeValidator(_only, json_schema_input_type=Pattern | OneText)]
    forward: Forward
    is_active: Annotated[bool | None, Unset] = None
    when_disabled: Annotated[WhenDisabled | None, Unset] = None


class EditAlias(Body):
    alias: Annotated[Pattern | None, Unset] = None
    forward: Annotated[Forward | None, Unset] = None
    is_active: Annotated[bool | None, Unset] = None
    when_disabled: Annotated[WhenDisabled | None, Unset] = None


class BulkEntry(Body):
    alias: Pattern
    forward: Forward


class Bulk(Body):
    aliases: Annotated[list[BulkEntry], Field(min_length=1, max_length=BULK)]
    behavior: Annotated[Literal["add", "update"] | None, Unset] = None


class NewCredential(Body):
    username: Username
    password: Password
    is_limited: Annotated[bool | None, Unset] = None


class EditCredential(Body):
    password: Annotated[Password | None, Unset] = None
    is_limited: Annotated[bool | None, Unset] = None


class NewApiKey(Body):
    name: Name


class Query(BaseModel):
    model_config = ConfigDict(extra="ignore")


Prefix = Annotated[Annotated[str, Field(max_length=1000), Clean] | None, Unset]
Flag = Annotated[bool | None, Unset]
Limit = Annotated[
    int | None, Unset, _within(5, 100), Field(description="From 5 to 100; what lies outside is moved inside.")
]
Page = Annotated[Annotated[int, Field(ge=1, le=1_000_000_000)] | None, Unset]


class DomainsQuery(Query):
    q: Annotated[Prefix, Field(description="Domains that start with this.")] = None
    is_active: Annotated[Flag, Field(description="Only active (1) or inactive (0) ones.")] = None
    limit: Limit = None
    page: Page = None


class AliasesQuery(DomainsQuery):
    q: Annotated[Prefix, Field(description="Aliases whose name or destination starts with this.")] = None
    alias: Annotated[Prefix, Field(description="Aliases whose name starts with this.")] = None


class LogsQuery(Query):
    next_cursor: Annotated[
        Annotated[str, Field(max_length=100), Clean] | None,
        Unset,
        Field(description="Logs older than the one with this id."),
    ] = None
    limit: Annotated[int | None, Unset, _within(1, 100), Field(description="From 1 to 100.")] = None
    filter: Annotated[
        Literal["all", "failure"] | None,
        Unset,
        Field(description="failure: only mail that was refused or bounced."),
    ] = None
    time_format: Annotated[
        Literal["text", "ms"] | None, Unset, Field(description="ms: times as milliseconds since 1970.")
    ] = None
