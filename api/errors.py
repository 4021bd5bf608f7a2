"""Every way a request is refused, and the one shape of its answer.

``{"success": false, "code": 404, "error": "…"}`` for one reason, ``{"success": false, "code": 400, "errors":
{"field": ["…"]}}`` for bad fields; ``code`` is always the HTTP status. Texts are for people; some clients look for
"not found", "already exists" and the texts of the limits, which therefore stay as they are.

``refusal_of`` says what an exception of the store means to a client. What it does not know is trouble of ours: 503,
with the details in the log and nothing of them in the answer. There is no 500.
"""

from collections.abc import Mapping, Sequence

from api.validation import as_sentence
from forwarder.store.conflict import AlreadyExists, LimitReached, Missing, TooLarge
from forwarder.store.trouble import StoreUnavailable

FieldErrors = Mapping[str, Sequence[str]]

_EXISTS = {
    "domain": "This domain already exists.",
    "alias": (
        "This alias already exists. If you want to add multiple emails for an alias, update the existing one."
    ),
    "username": "This username already exists.",
    "name": "A key of this name already exists.",
}
_LIMITS = {
    "domains": ("domain", "Your account is limited to {limit} domains."),
    "aliases": ("alias", "Your account is limited to {limit} aliases per domain."),
    "API keys": ("name", "Your account is limited to {limit} API keys."),
    "credentials": ("username", "You have reached the limit of account allowed for this domain."),
}
RETRY_AFTER = "5"  # seconds; the store is asked again every second


class Refusal(Exception):
    """The request is answered with ``status`` and a reason, or reasons by field; ``more`` stands beside these."""

    def __init__(
        self,
        status: int,
        error: str = "",
        *,
        errors: FieldErrors | None = None,
        headers: Mapping[str, str] | None = None,
        more: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(error)
        self.status = status
        self.error = error
        self.errors = errors
        self.headers = dict(headers or {})
        self.more = dict(more or {})

    def body(self) -> dict[str, object]:
        """The JSON answer."""
        shared: dict[str, object] = {"success": False, "code": self.status, **self.more}
        if self.errors:
            return shared | {"errors": {field: list(texts) for field, texts in self.errors.items()}}
        return shared | {"error": self.error}


def bad_fields(errors: FieldErrors) -> Refusal:
    """400 with reasons by field."""
    return Refusal(400, errors=errors)


def not_found(what: str) -> Refusal:
    """404 for what is not there or belongs to somebody else: the two cannot be told apart."""
    return Refusal(404, f"This {what} was not found.")


def unavailable() -> Refusal:
    """503: trouble of ours; the request may be sent again."""
    return Refusal(
        503,
        "The service has temporary trouble; nothing is wrong with your request. Please try again in a moment.",
        headers={"Retry-After": RETRY_AFTER},
    )


def refusal_of(fault: Exception) -> Refusal | None:
    """The answer to a known fault; None for one that nobody foresaw."""
    match fault:
        case Refusal():
            return fault
        case AlreadyExists(field=field):
            return bad_fields({field: [_EXISTS.get(field, f"This {field} already exists.")]})
        case LimitReached(what=what, limit=limit):
            field, text = _LIMITS[what]
            return bad_fields({field: [text.format(limit=limit)]})
        case TooLarge():
            return bad_fields({"alias": [as_sentence(str(fault))]})
        case Missing(what=what):
            return not_found(what)
        case StoreUnavailable() | TimeoutError():
            return unavailable()
        case _:
            return None
