"""Fields against a pydantic model, and what is wrong with them as sentences for people, all at once.

The models also make the OpenAPI document, so what is written there is what is checked here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from forwarder.config import Plan, Settings

Model = TypeVar("Model", bound=BaseModel)

REQUIRED = "This field is required."
_SENTENCES = {
    "missing": REQUIRED,
    "string_type": "This must be text.",
    "string_unicode": "This must be Unicode text without lone surrogates.",
    "string_too_long": "This is longer than {max_length} characters.",
    "string_too_short": "This must have at least {min_length} characters.",
    "bool_parsing": "This must be true or false.",
    "bool_type": "This must be true or false.",
    "int_parsing": "This must be a whole number.",
    "int_type": "This must be a whole number.",
    "int_from_float": "This must be a whole number.",
    "int_parsing_size": "This number is too large.",
    "float_type": "This must be a number.",
    "float_parsing": "This must be a number.",
    "finite_number": "This must be a number.",
    "greater_than_equal": "This must be at least {ge}.",
    "less_than_equal": "This must be at most {le}.",
    "list_type": "This must be a list.",
    "too_long": "This may have at most {max_length} entries.",
    "too_short": "This must have at least {min_length} entries.",
    "literal_error": "This must be one of {expected}.",
    "enum": "This must be one of {expected}.",
    "model_type": "This must be an object.",
    "model_attributes_type": "This must be an object.",
    "dict_type": "This must be an object.",
}
_EMPTY = {"string_too_short": "This cannot be empty.", "too_short": "This cannot be empty."}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What the fields of this request may hold, here and for this account."""

    allow_private: bool  # webhooks may lead to private addresses
    destinations: int  # of one alias

    @classmethod
    def of(cls, settings: Settings, plan: Plan) -> "Bounds":
        """Here, on an account with this plan."""
        return cls(allow_private=settings.outbound.allow_private_destinations, destinations=plan.destinations)


def validate(
    model: type[Model], fields: Mapping[str, Any], *, context: Bounds | None = None
) -> Model | dict[str, list[str]]:
    """The model's instance, or what is wrong by field: ``{"aliases.3.forward": ["…"]}``."""
    try:
        return model.model_validate(dict(fields), context=context)
    except ValidationError as fault:
        errors: dict[str, list[str]] = {}
        for error in fault.errors(include_url=False, include_input=False):
            texts = errors.setdefault(_field(error["loc"]), [])
            sentence = _sentence(error["type"], error["msg"], error.get("ctx", {}))
            if sentence not in texts:
                texts.append(sentence)
        return errors


def _field(location: Sequence[int | str]) -> str:
    return ".".join(str(part) for part in location) or "body"


def _sentence(kind: str, message: str, context: Mapping[str, Any]) -> str:
    if kind == "value_error":
        return as_sentence(str(context["error"]))
    template = _EMPTY.get(kind) if context.get("min_length") == 1 else _SENTENCES.get(kind)
    if template is None:
        return as_sentence(message)
    return template.format(**context)


def as_sentence(text: str) -> str:
    """With a capital letter and a full stop."""
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")
