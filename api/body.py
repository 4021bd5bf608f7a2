"""The body of a request as a mapping of fields, whatever form it was sent in.

JSON, multipart/form-data and application/x-www-form-urlencoded carry the same fields; the last two as text. JSON sent
under the form type, as ``curl -d`` does, is taken for what it is. An absent body is an empty mapping. All text is
UTF-8, whatever ``charset`` says.

Refuses with 408 what does not come within PATIENCE; with 413 what is larger than the limit, before reading more; with
415 a compressed body or another type (we never unpack, so a small body stays small); with 400 what is not well formed:
a syntax error, a key twice, NaN or Infinity, nesting beyond DEPTH, bytes that are not UTF-8. What the values mean is
not judged here.

The time that reading takes grows with the length of the body, whatever stands in it. A body of more than INLINE octets
is read in a thread, since mail is served by the same loop.
"""

import asyncio
import json
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar
from urllib.parse import parse_qsl

from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from api.errors import Refusal
from forwarder.mail.words import printable

DEPTH = 32
INLINE = 1024  # octets: to compile so many of regular expressions takes some 50 ms
PATIENCE = 8.0  # seconds for the whole body: less than a request may take, since it is not our trouble
FIELDS = 200  # of a form
_JSON = re.compile(r"application/(?:[\w.-]+\+)?json")
_FORM = "application/x-www-form-urlencoded"
_BOM = b"\xef\xbb\xbf"

_T = TypeVar("_T")


async def read_fields(
    request: Request, limit: int, admit: Callable[[int], Awaitable[None]] | None = None
) -> Mapping[str, Any]:
    """The fields of the body, at most ``limit`` octets of it; Refusal. ``admit`` may refuse it by its size."""
    if request.headers.get("content-encoding", "identity").strip().lower() not in ("identity", ""):
        raise Refusal(415, "Compressed bodies are not accepted; send the body as it is.")
    content = (await _read(request, limit)).removeprefix(_BOM)  # RFC 8259 8.1 lets it be ignored
    if admit is not None:
        await admit(len(content))
    if not content.strip():
        return {}
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if _JSON.fullmatch(kind) or (kind in ("", _FORM) and content.lstrip()[:1] in (b"{", b"[")):
        return await aside(partial(_json, content), len(content))
    if kind == _FORM:
        return _unique(await aside(partial(_urlencoded, content), len(content)))
    if kind == "multipart/form-data":
        return _unique(await _multipart(request, content))
    raise Refusal(415, "Send the body as application/json, multipart/form-data or " + _FORM + ".")


async def aside(work: Callable[[], _T], octets: int) -> _T:
    """Do some work on a body of that size: in a thread, if it is long, since mail is served by the same loop."""
    return await asyncio.to_thread(work) if octets > INLINE else work()


async def _read(request: Request, limit: int) -> bytes:
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced[:20]) > limit:
        raise _too_large(limit)
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(PATIENCE):
            async for part in request.stream():
                size += len(part)
                if size > limit:
                    raise _too_large(limit)
                parts.append(part)
    except TimeoutError:
        raise Refusal(408, "The body did not come in time.", headers={"Connection": "close"}) from None
    except ClientDisconnect:
        raise Refusal(400, "The connection ended before the body did.") from None
    return b"".join(parts)


def _too_large(limit: int) -> Refusal:
    return Refusal(413, f"The body is larger than {limit} bytes.", headers={"Connection": "close"})


def _json(content: bytes) -> Mapping[str, Any]:
    try:
        value = json.loads(content.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_constant)
    except UnicodeDecodeError:
        raise _not_text() from None
    except json.JSONDecodeError as fault:
        where = f"line {fault.lineno} column {fault.colno}"
        raise Refusal(400, f"The body is not valid JSON: {fault.msg} ({where}).") from None
    except RecursionError:
        raise _too_deep() from None
    except ValueError:  # a number of thousands of digits
        raise Refusal(400, "The body is not JSON that can be read.") from None
    if value is None or value == []:
        return {}  # clients send null for "no fields"; PHP writes an empty array as a list
    if not isinstance(value, dict):
        raise Refusal(400, "The body must be a JSON object.")
    level: list[Any] = [value]
    for _ in range(DEPTH):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
    if level:
        raise _too_deep()
    return value


def _not_text() -> Refusal:
    return Refusal(400, "The body is not UTF-8 text.")


def _too_deep() -> Refusal:
    return Refusal(400, f"The JSON is nested more than {DEPTH} levels deep.")


def _constant(name: str) -> Any:
    raise Refusal(400, f"{name} is not JSON; write a number.")


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        # Which of the two is meant? Two programs that read them differently is how checks are passed by.
        [(twice, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise Refusal(400, f"The key {printable(twice, 60)} occurs twice in the body.")
    return fields


def _urlencoded(content: bytes) -> Sequence[tuple[str, str]]:
    try:
        return parse_qsl(
            content.decode("utf-8"), keep_blank_values=True, errors="strict", max_num_fields=FIELDS
        )
    except ValueError:
        raise Refusal(400, "The body is not a well-formed form.") from None


async def _multipart(request: Request, content: bytes) -> Sequence[tuple[str, str]]:
    end = content.rstrip()
    if not end.endswith(b"--") or end.endswith(b"\n--"):  # cut short: its last field would be taken for whole
        raise Refusal(400, "The multipart form has no end.")
    try:
        content.decode("utf-8")  # the parser would take what is not for Latin-1
    except UnicodeDecodeError:
        raise _not_text() from None

    async def whole() -> Any:
        yield content

    parser = MultiPartParser(
        _without_charset(request), whole(), max_files=0, max_fields=FIELDS, max_part_size=len(content) + 1
    )
    try:
        form = await parser.parse()
    except (MultiPartException, ValueError, LookupError):
        raise Refusal(400, "The body is not a well-formed multipart form of text fields.") from None
    return [(name, value) for name, value in form.multi_items() if isinstance(value, str)]


def _without_charset(request: Request) -> Headers:
    """The type of a form with its boundary alone.

    The parser would decode the fields with any codec of Python that ``charset`` names: that of ``punycode`` takes half
    a minute for a megabyte, and each name that is none is remembered for ever.
    """
    _, given = parse_options_header(request.headers["content-type"])
    boundary = re.sub(rb'([\\"])', rb"\\\1", given.get(b"boundary", b""))
    return Headers(raw=[(b"content-type", b'multipart/form-data; boundary="%b"' % boundary)])
