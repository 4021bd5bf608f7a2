"""Models of what requests about rules carry.

A rule has a type and, in ``config``, what it looks at and where it leads. Two types act here: ``alias``, and ``regex``
with the scope ``recipient``. Everything else a rule can be with ImprovMX (another scope, ``cel``, discarding) is
refused with a sentence, since a rule that is saved acts on mail as it says. What of ``config`` must be there depends on
the type, so the type chooses the model.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo

from api.improvmx.requests import Body, Clean, Forward, Limit, Page, Pattern, Prefix, Query, Unset
from forwarder.mail.aliases import LAST_RANK
from forwarder.mail.pattern import MAX_PATTERN, compile_regex, pattern_of

MAX_EXPRESSION = MAX_PATTERN - len(pattern_of(""))


def _type(value: Any) -> Any:
    if value == "cel":
        raise ValueError(
            'rules of type cel are not available here; use "alias", or "regex" with the scope "recipient"'
        )
    return value


def _scopes(value: Any) -> Any:
    if isinstance(value, list) and any(one != "recipient" for one in value):
        raise ValueError(
            'rules look at the recipient only here, not at the sender, the subject or the body; write ["recipient"]'
        )
    return value[:1] if isinstance(value, list) else value


def _leads(value: Any) -> Any:
    if value is None:
        raise ValueError(
            "a rule cannot discard mail here; an alias that is disabled with when_disabled 250 does"
        )
    return value


def _leads_now(value: Any) -> Any:
    return None if value == "" else _leads(value)


def _expression(text: str) -> str:
    if "@" in text:
        raise ValueError(
            "the expression is compared with what stands before the @ of the recipient; leave the @ and the domain out"
        )
    compile_regex(text)  # alone first: "a)|(b" would close the parentheses that go around it
    compile_regex(pattern_of(text))
    return text


def _number(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("this must be a number")
    return value


Kind = Annotated[
    Literal["alias", "regex"], BeforeValidator(_type, json_schema_input_type=Literal["alias", "regex"])
]
Expression = Annotated[
    str,
    Field(
        min_length=1,
        max_length=MAX_EXPRESSION,
        examples=["(contact|support).*"],
        description="It must match the whole of what stands before the @ of the recipient.",
    ),
    Clean,
    AfterValidator(_expression),
]
Scopes = Annotated[
    list[Literal["recipient"]],
    Field(min_length=1, max_length=1),
    BeforeValidator(_scopes, json_schema_input_type=list[Literal["recipient"]]),
]
Leads = Annotated[Forward, BeforeValidator(_leads, json_schema_input_type=Forward)]
Rank = Annotated[
    float | None,
    Field(ge=0, allow_inf_nan=False),
    BeforeValidator(_number, json_schema_input_type=float | None),
    Unset,
    Field(
        description=(
            "Of a regular expression: its place among them, lowest first, above 0 and below "
            f"{LAST_RANK:.0e}; by default the order of creation. Other rules have their place by what they are."
        )
    ),
]
Active = Annotated[
    bool | None, Unset, Field(description="false: mail is looked after as if the rule were not there.")
]


class AliasConfig(Body):
    alias: Pattern
    forward: Leads


class RegexConfig(Body):
    regex: Expression
    scopes: Scopes
    forward: Leads


_MODELS: dict[str, type[AliasConfig] | type[RegexConfig]] = {"alias": AliasConfig, "regex": RegexConfig}


def _config(value: Any, info: ValidationInfo) -> Any:
    model = _MODELS.get(info.data.get("type", ""))
    if model is None:
        return AliasConfig.model_construct()  # the type is refused already; nothing can be said of the rest
    return model.model_validate(value, context=info.context)


class NewRule(Body):
    type: Kind
    config: Annotated[
        AliasConfig | RegexConfig, BeforeValidator(_config, json_schema_input_type=AliasConfig | RegexConfig)
    ]
    rank: Rank = None
    active: Active = None


class ChangedConfig(Body):
    alias: Annotated[Pattern | None, Unset] = None
    regex: Annotated[Expression | None, Unset] = None
    scopes: Annotated[Scopes | None, Unset] = None
    forward: Annotated[
        Forward | None, BeforeValidator(_leads_now, json_schema_input_type=Forward | Literal[""])
    ] = None


class EditRule(Body):
    type: Annotated[Kind | None, Unset] = None
    config: Annotated[ChangedConfig | None, Unset] = None
    rank: Rank = None
    active: Active = None


class RulesQuery(Query):
    search: Annotated[Prefix, Field(description="Rules whose pattern or destination holds this.")] = None
    limit: Limit = None
    page: Page = None
