"""Paths to operations, on the path as it was sent.

The raw path is split at its slashes first and each segment is decoded afterwards: an alias that is a regular
expression may hold ``%2F``, and ``%2e%2e`` is a name like any other, never a way up. A trailing slash means nothing,
and neither does one at the end of the base URL (``/v3//domains``). A known path under a method it does not have is 405;
HEAD is answered as GET is.
"""

from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote, unquote

from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Receive, Scope, Send

_SEGMENTS = "forwarder.segments"


def segments(scope: Scope) -> list[str] | None:
    """The decoded segments of the path without slashes that mean nothing; None when they are not UTF-8."""
    raw = scope.get("raw_path")
    text = raw.decode("latin-1") if raw else quote(scope["path"])
    parts = text.partition("?")[0].split("/")[1:]
    if parts and not parts[-1]:
        parts.pop()
    if parts[1:2] == [""]:
        del parts[1]  # no others: a client whose variable is empty would be heard to mean something else
    try:
        return [unquote(part, errors="strict") for part in parts]
    except UnicodeDecodeError:
        return None


class PathRoute(BaseRoute):
    """One path template such as ``/v3/domains/{domain}`` with the applications of its methods."""

    def __init__(self, template: str, by_method: Mapping[str, ASGIApp], otherwise: ASGIApp) -> None:
        self.template = template
        self._parts = template.strip("/").split("/")
        self._methods = dict(by_method)
        if "GET" in self._methods:
            self._methods.setdefault("HEAD", self._methods["GET"])
        self._otherwise = otherwise  # answers methods that the path does not have

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Starlette asks; the path's values go to the application as ``path_params``."""
        if scope["type"] != "http":
            return Match.NONE, {}
        found = scope.get(_SEGMENTS, False)  # every route is asked about the same path
        if found is False:
            found = scope[_SEGMENTS] = segments(scope)
        if found is None or len(found) != len(self._parts):
            return Match.NONE, {}
        values: dict[str, Any] = {}
        for wanted, part in zip(self._parts, found, strict=True):
            if wanted.startswith("{"):
                values[wanted[1:-1]] = part
            elif wanted != part:
                return Match.NONE, {}
        known = scope["method"] in self._methods
        return (Match.FULL if known else Match.PARTIAL), {"path_params": values}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand over to the method's application, or to the one for methods the path does not have."""
        application = self._methods.get(scope["method"], self._otherwise)
        scope["forwarder.allow"] = ", ".join(sorted(self._methods))
        await application(scope, receive, send)

    def url_path_for(self, name: str, /, **path_params: Any) -> Any:
        """Paths are never made from names here."""
        raise LookupError(name)


def by_template(routes: Iterable[tuple[str, str, ASGIApp]], otherwise: ASGIApp) -> list[PathRoute]:
    """Routes from (method, template, application), literal templates before those with values."""
    collected: dict[str, dict[str, ASGIApp]] = {}
    for method, template, application in routes:
        collected.setdefault(template, {})[method] = application
    ordered = sorted(collected, key=lambda template: ["{" in part for part in template.split("/")])
    return [PathRoute(template, collected[template], otherwise) for template in ordered]
