"""The OpenAPI 3.1 document, made from the operations and from the very models that check requests."""

from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from api.improvmx.answers import Error
from api.operation import Operation

_REFERENCE = "#/components/schemas/{model}"
_PATH_VALUES = {
    "domain": "The domain's name.",
    "alias": "The alias's name, percent-encoded, or its id.",
    "rule": "The rule's id.",
    "username": "The part of the address before the @.",
    "key": "The key's id.",
}
_JSON_ONLY = frozenset({"addAliasesInBulk", "addRule", "editRule"})  # nothing in a form can be nested
_REASONS = {
    400: "A field, or the form of the request, is wrong.",
    401: "There is no valid API key in the request.",
    403: "The account may not do this.",
    404: "It does not exist, or not in this account.",
    408: "The body did not come in time.",
    413: "The body is too large.",
    415: "The body is compressed or of a type that is not taken.",
    429: "Too many requests.",
    503: "Temporary trouble; try again.",
}


def document(operations: Sequence[Operation], *, version: str, url: str) -> dict[str, Any]:
    """The whole document."""
    bodies: list[type[BaseModel]] = [operation.body for operation in operations if operation.body is not None]
    answers: list[type[BaseModel]] = [operation.answer for operation in operations]
    wanted: list[tuple[type[BaseModel], JsonSchemaMode]] = [(model, "validation") for model in bodies]
    answers.append(Error)
    wanted += [(model, "serialization") for model in answers]
    references, schemas = models_json_schema(list(dict.fromkeys(wanted)), ref_template=_REFERENCE)
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        body = None if operation.body is None else references[(operation.body, "validation")]
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(
            operation, body, references[(operation.answer, "serialization")]
        )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Forwarder",
            "version": version,
            "description": (
                "Domains, aliases, SMTP credentials, DNS checks and logs of a mail-forwarding engine. "
                "Compatible on the wire with ImprovMX's API, version 3. "
                "Send your API key as the password of HTTP Basic authentication with the user name `api`, "
                "or as a Bearer token."
            ),
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": url}],
        "security": [{"basic": []}, {"bearer": []}],  # one of them
        "tags": [{"name": tag} for tag in dict.fromkeys(operation.tag for operation in operations)],
        "paths": paths,
        "components": {
            "schemas": schemas["$defs"],
            "securitySchemes": {name: {"type": "http", "scheme": name} for name in ("basic", "bearer")},
        },
    }


def _operation(operation: Operation, body: Any, answer: Any) -> dict[str, Any]:
    made: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "tags": [operation.tag],
        "parameters": [*_path_values(operation.path), *_query_values(operation.query)],
        "responses": _responses(operation, answer),
    }
    if operation.note:
        made["description"] = operation.note
    if body is not None:
        forms = ["application/json", "application/x-www-form-urlencoded", "multipart/form-data"]
        taken = forms[:1] if operation.name in _JSON_ONLY else forms
        made["requestBody"] = {"required": True, "content": {form: {"schema": body} for form in taken}}
    return made


def _path_values(path: str) -> list[dict[str, Any]]:
    names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    return [
        {
            "name": name,
            "in": "path",
            "required": True,
            "description": _PATH_VALUES[name],
            "schema": {"type": "string", "minLength": 1},
        }
        for name in names
    ]


def _query_values(model: type[BaseModel] | None) -> list[dict[str, Any]]:
    if model is None:
        return []
    schema = model.model_json_schema()
    return [
        {
            "name": name,
            "in": "query",
            "required": False,
            "description": value.pop("description", ""),
            "schema": {key: part for key, part in value.items() if key not in ("title", "default")},
        }
        for name, value in schema["properties"].items()
    ]


def _responses(operation: Operation, answer: Any) -> dict[str, Any]:
    codes: Iterable[int] = {401, 403, 429, 503, *operation.refusals}
    if operation.body is not None:
        codes = {*codes, 400, 408, 413, 415}
    elif operation.query is not None:
        codes = {*codes, 400}
    if operation.method == "GET":
        codes = set(codes) - {403}
    made = {"200": _response("Success.", answer)}
    reference = {"$ref": _REFERENCE.format(model=Error.__name__)}
    return made | {str(code): _response(_REASONS[code], reference) for code in sorted(codes)}


def _response(description: str, schema: Any) -> dict[str, Any]:
    headers = {
        name: {"schema": {"type": "string"}, "description": text}
        for name, text in (
            ("X-RateLimit-Limit", "Requests a minute."),
            ("X-RateLimit-Remaining", "Requests left in this minute."),
            ("X-RateLimit-Reset", "When the minute ends, in unix seconds."),
        )
    }
    return {
        "description": description,
        "headers": headers,
        "content": {"application/json": {"schema": schema}},
    }
