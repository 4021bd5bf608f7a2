"""The OpenAPI document as one readable page: HTML and a style sheet in it, no script, nothing from elsewhere."""

import json
import re
from collections.abc import Mapping
from html import escape
from typing import Any

_STYLE = """
:root{color-scheme:light dark;--line:#8884;--soft:#8881}
body{font:16px/1.55 system-ui,sans-serif;max-width:56rem;margin:0 auto;padding:2rem 1rem 6rem}
h1{margin-bottom:.2rem}h2{margin-top:3rem;border-bottom:1px solid var(--line)}
details{border:1px solid var(--line);border-radius:.5rem;margin:.6rem 0;padding:.5rem .9rem}
summary{cursor:pointer}code,pre{font:.86em/1.5 ui-monospace,monospace}
pre{background:var(--soft);padding:.8rem;border-radius:.4rem;overflow:auto}
summary code{margin-right:.6rem;overflow-wrap:anywhere}summary span{opacity:.75}
b.m{display:inline-block;min-width:4.6rem;font:600 .8em/1 ui-monospace,monospace;letter-spacing:.03em}
.GET{color:#2a7d46}.POST{color:#2266bb}.PUT{color:#a15c00}.DELETE{color:#c0392b}
@media(prefers-color-scheme:dark){.GET{color:#6cc48a}.POST{color:#7fb2f0}.PUT{color:#e0a458}.DELETE{color:#f08a7e}}
table{border-collapse:collapse;width:100%;font-size:.92em}td:first-child{overflow-wrap:anywhere}
td,th{text-align:left;vertical-align:top;border-bottom:1px solid var(--line);padding:.3rem .6rem .3rem 0}
nav a{margin-right:1rem}
"""

# What fields of these names hold in the examples, as in ImprovMX's documentation; of others the type tells enough.
_EXAMPLES: Mapping[str, Any] = {
    "active": False,
    "added": 1559652806000,
    "alias": "richard",
    "created": 1559652806000,
    "created_raw": "Sat, 25 Jan 2020 12:19:09 GMT",
    "display": "piedpiper.com",
    "domain": "piedpiper.com",
    "email": "richard@piedpiper.com",
    "forward": "richard.hendricks@example.com",
    "lock_reason": None,
    "locked": None,
    "notification_email": None,
    "username": "bighead",
    "webhook": None,
    "whitelabel": None,
}


def page(document: Mapping[str, Any]) -> str:
    """The page for a document of ours."""
    info = document["info"]
    sections: dict[str, list[str]] = {tag["name"]: [] for tag in document["tags"]}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            shown = _operation(document, method.upper(), path, operation)
            sections[operation["tags"][0]].append(shown)
    body = "".join(
        f'<h2 id="{escape(tag)}">{escape(tag)}</h2>{"".join(parts)}' for tag, parts in sections.items()
    )
    links = "".join(f'<a href="#{escape(tag)}">{escape(tag)}</a>' for tag in sections)
    example = f'curl -u "api:$API_KEY" {document["servers"][0]["url"]}/v3/domains'
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(info['title'])} API</title><style>{_STYLE}</style>"
        f"<h1>{escape(info['title'])} API</h1><p>Version {escape(info['version'])} · "
        f'<a href="/openapi.json">OpenAPI document</a></p><p>{_text(info["description"])}</p>'
        f"<pre>{escape(example)}</pre><nav>{links}</nav>{body}</html>"
    )


def _operation(document: Mapping[str, Any], method: str, path: str, operation: Mapping[str, Any]) -> str:
    """A line that opens: what the operation takes, an example of its answer, and how else it may answer."""
    parts = [f"<p>{_text(operation.get('description', ''))}</p>"] if "description" in operation else []
    rows = [
        (value["name"], value["in"], "yes" if value["required"] else "", value["description"])
        for value in operation["parameters"]
    ]
    if "requestBody" in operation:
        body = _resolve(document, operation["requestBody"]["content"]["application/json"]["schema"])
        required = body.get("required", ())
        rows += [
            (name, "body", "yes" if name in required else "", _about(value))
            for name, value in body["properties"].items()
        ]
    if rows:
        cells = "".join("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
        parts.append(f"<table><tr><th>Name<th>In<th>Required<th>About</tr>{cells}</table>")
    answer = _resolve(document, operation["responses"]["200"]["content"]["application/json"]["schema"])
    parts.append(f"<pre>{escape(json.dumps(_example(document, answer), indent=2, ensure_ascii=False))}</pre>")
    codes = ", ".join(code for code in operation["responses"] if code != "200")
    parts.append(f"<p>May also answer {codes}.</p>")
    return (
        f'<details id="{escape(operation["operationId"])}"><summary><b class="m {method}">{method}</b> '
        f"<code>{escape(path)}</code><span>{escape(operation['summary'])}</span></summary>"
        f"{''.join(parts)}</details>"
    )


def _text(text: str) -> str:
    """Escaped, with what stands in back quotes as code."""
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(text))


def _resolve(document: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema itself, where this one only refers to it."""
    reference = schema.get("$ref")
    if reference is None:
        return schema
    found: Mapping[str, Any] = document["components"]["schemas"][reference.rsplit("/", 1)[1]]
    return found


def _about(value: Mapping[str, Any]) -> str:
    """What a field of a body holds: its types, null left out, and what its model says of it."""
    kinds = value.get("anyOf", [value])
    text = value.get("description") or next(
        (kind["description"] for kind in kinds if "description" in kind), ""
    )
    kind = " or ".join(
        str(one.get("type", one.get("enum", "object"))) for one in kinds if one.get("type") != "null"
    )
    return f"{kind}. {text}" if text else kind


def _example(document: Mapping[str, Any], schema: Mapping[str, Any], name: str = "") -> Any:
    """A value that the schema allows; ``name``: of the field that holds it, "" where none does."""
    if "examples" in schema:
        return schema["examples"][0]
    # Not for what only shares the name: the aliases that a bulk request has "added", say.
    if name in _EXAMPLES and not any(
        "$ref" in one or "items" in one for one in schema.get("anyOf", [schema])
    ):
        return _EXAMPLES[name]
    schema = _resolve(document, schema)
    if "anyOf" in schema:
        return _example(document, schema["anyOf"][0])
    if "enum" in schema:
        return schema["enum"][0]
    if "const" in schema:
        return schema["const"]
    match schema.get("type"):
        case "object":
            shown = schema.get("required", ())  # what is there only sometimes would be taken for the rule
            return {one: _example(document, schema["properties"][one], one) for one in shown}
        case "array":
            return [_example(document, schema["items"])]
        case "integer" | "number":
            return 1
        case "boolean":
            return True
        case _:
            return "…"
