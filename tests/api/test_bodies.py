"""Bodies and queries of a wrong, odd or hostile form: each gets a 4xx in JSON with a reason, and stores nothing."""

import asyncio
import gzip
import json
import threading
import tracemalloc
from collections.abc import AsyncIterator
from time import process_time
from typing import Any

import pytest

from api import body, operation
from forwarder.mail import pattern
from tests.api.desk import Desk

JSON = {"Content-Type": "application/json"}


async def test_a_body_beyond_the_limit_is_413_whether_announced_or_not(desk: Desk) -> None:
    large = json.dumps({"domain": "x" * 10_000_000}).encode()

    async def pieces() -> Any:
        for start in range(0, len(large), 65536):
            yield large[start : start + 65536]

    for content in (large, pieces()):
        answer = await desk.http.post("/domains", content=content, headers=JSON)
        assert (answer.status_code, answer.json()["code"]) == (413, 413)


async def test_a_body_that_is_announced_as_too_large_is_not_waited_for(desk: Desk) -> None:
    async def never() -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""

    answer = await desk.http.post("/domains", content=never(), headers=JSON | {"Content-Length": "9" * 30})
    assert answer.status_code == 413
    assert answer.headers["connection"] == "close"


@pytest.mark.parametrize(("octets", "status"), [(200, 200), (201, 413)])
async def test_a_body_may_be_as_large_as_the_limit(store_url: str, octets: int, status: int) -> None:
    async with Desk(store_url, api={"body_limit": 200}) as desk:
        for number, announced in enumerate((True, False)):
            content = json.dumps({"domain": f"d{number}.com"}).encode().ljust(octets)

            async def pieces(whole: bytes = content) -> AsyncIterator[bytes]:
                yield whole[:150]
                yield whole[150:]

            sent = content if announced else pieces()
            assert (await desk.http.post("/domains", content=sent, headers=JSON)).status_code == status


@pytest.mark.parametrize("inside", ["[" * 10_000 + "]" * 10_000, '{"a":' * 10_000 + "1" + "}" * 10_000])
async def test_deep_json_is_400(desk: Desk, inside: str) -> None:
    for content in (inside, f'{{"domain": "a.com", "x": {inside}}}'):
        answer = await desk.http.post("/domains", content=content, headers=JSON)
        assert (answer.status_code, answer.json()["code"]) == (400, 400)


async def test_brackets_inside_a_text_are_no_depth(desk: Desk) -> None:
    content = json.dumps({"domain": "a.com", "note": "[" * 500 + '"' + "{" * 500})
    assert (await desk.http.post("/domains", content=content, headers=JSON)).status_code == 200


@pytest.mark.parametrize("inside", ['"\\', '"', "\\", "[", '{"', "%"])
async def test_no_body_takes_longer_than_its_length_asks_for(desk: Desk, inside: str) -> None:
    """A text of quotes without an end kept the whole process busy for minutes: for each, all of the rest was read."""
    content = ('{"domain": ' + inside * (60_000 // len(inside))).encode()
    for kind in ("application/json", "application/x-www-form-urlencoded"):
        began = process_time()
        answer = await desk.http.post("/domains", content=content, headers={"Content-Type": kind})
        assert answer.status_code == 400
        assert process_time() - began < 1


@pytest.mark.parametrize(("depth", "status"), [(body.DEPTH, 200), (body.DEPTH + 1, 400)])
async def test_the_depth_that_may_be(desk: Desk, depth: int, status: int) -> None:
    for number, (opening, closing) in enumerate((("[", "]"), ('{"a":', "}"))):
        inside = opening * (depth - 1) + "1" + closing * (depth - 1)
        content = f'{{"domain": "d{number}.com", "x": {inside}}}'
        answer = await desk.http.post("/domains", content=content, headers=JSON)
        assert answer.status_code == status
        assert status == 200 or "more than 32 levels" in answer.json()["error"]


async def test_a_compressed_body_is_415_and_never_unpacked(desk: Desk) -> None:
    bomb = gzip.compress(b" " * 50_000_000)
    tracemalloc.start()
    try:
        answer = await desk.http.post("/domains", content=bomb, headers=JSON | {"Content-Encoding": "gzip"})
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert answer.status_code == 415
    assert peak < 5_000_000


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/xml", "application/octet-stream", "json", "nonsense/"]
)
async def test_another_content_type_is_415(desk: Desk, kind: str) -> None:
    answer = await desk.http.post("/domains", content=b'{"domain": "a.com"}', headers={"Content-Type": kind})
    assert answer.status_code == 415


@pytest.mark.parametrize(
    "content",
    [
        b'{"domain": NaN}',
        b'{"domain": Infinity}',
        b'{"domain": "a.com", "domain": "b.com"}',
        b'{"domain": "a.com", "x": {"y": 1, "y": 2}}',
        b'["a.com"]',
        b'"a.com"',
        b"4",
        b"{",
        b"\xff\xfe{\x00}\x00",
        b'{"domain": "a\xff.com"}',
        b'{"domain": ' + b"9" * 5000 + b"}",
        b"\xef\xbb\xbf{}",
    ],
)
async def test_what_is_no_json_object_is_400(desk: Desk, content: bytes) -> None:
    answer = await desk.http.post("/domains", content=content, headers=JSON)
    assert (answer.status_code, answer.json()["success"]) == (400, False)
    assert (await desk.get("/domains")).json()["total"] == 0


MANY_PARTS = (
    b"".join(b'--b\r\nContent-Disposition: form-data; name="a%d"\r\n\r\n1\r\n' % n for n in range(201))
    + b"--b--\r\n"
)


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("multipart/form-data", b"x"),
        ("multipart/form-data; boundary=", b"x"),
        ("multipart/form-data; boundary=b", b"--b\r\nnonsense\r\n--b--"),
        ("multipart/form-data; boundary=b", b'--b\r\nContent-Disposition: form-data; name="domain"'),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name="f"; filename="x"\r\n\r\nx\r\n--b--\r\n',
        ),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name="domain"\r\n\r\nm\xfcnchen.com\r\n--b--\r\n',
        ),
        ("multipart/form-data; boundary=b", MANY_PARTS),
        ("application/x-www-form-urlencoded", b"domain=%FF%FE"),
        ("application/x-www-form-urlencoded", b"domain=a.com&domain=b.com"),
        ("application/x-www-form-urlencoded", b"&".join(b"a%d=1" % n for n in range(1000))),
    ],
)
async def test_a_broken_form_is_400(desk: Desk, kind: str, content: bytes) -> None:
    answer = await desk.http.post("/domains", content=content, headers={"Content-Type": kind})
    assert (answer.status_code, list(answer.json())) == (400, ["success", "code", "error"]), answer.text


async def test_a_key_that_occurs_twice_is_named(desk: Desk) -> None:
    answer = await desk.http.post(
        "/domains", content=b'{"a": 1, "dom\\nain": 1, "dom\\nain": 2}', headers=JSON
    )
    assert answer.json()["error"] == "The key dom\\nain occurs twice in the body."


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("limit=1e9", 400),
        ("limit=1000000000", 200),
        ("limit=-5", 200),
        ("limit=99999999999999999999999999", 200),
        ("limit=x", 400),
        ("page=-1", 400),
        ("page=0", 400),
        ("page=99999999999999999999", 400),
        ("page=1000000000", 200),
        ("is_active=maybe", 400),
        ("q=%00", 400),
        ("q=%FF", 200),
        ("q=100%25_", 200),
        ("q=" + "x" * 1001, 400),
    ],
)
async def test_odd_queries_are_moved_inside_the_bounds_or_400(desk: Desk, query: str, status: int) -> None:
    await desk.domain()
    for path in ("/domains", "/domains/piedpiper.com/aliases"):
        answer = await desk.get(f"{path}?{query}")
        assert answer.status_code == status, answer.text
        if status == 200:
            assert 5 <= answer.json()["limit"] <= 100


@pytest.mark.parametrize(
    "cursor",
    [
        "x",
        "20201302014128.5ea8ee59fa894aa7a9141e9665985b46",  # no such month
        "00000102014128.5ea8ee59fa894aa7a9141e9665985b46",
        "20201002014128.5EA8ee59fa894aa7a9141e9665985b46",
        "20201002014128.5ea8ee59fa894aa7a9141e9665985b460",
        "%D9%A2%D9%A0201002014128.5ea8ee59fa894aa7a9141e9665985b46",
        "%00",
        "../..",
        "'--",
    ],
)
async def test_a_cursor_that_is_none_is_400(desk: Desk, cursor: str) -> None:
    await desk.domain()
    answer = await desk.get(f"/domains/piedpiper.com/logs?next_cursor={cursor}")
    assert answer.status_code == 400
    assert list(answer.json()["errors"]) == ["next_cursor"]


async def test_a_cursor_of_another_server_goes_on_from_its_time(desk: Desk) -> None:
    await desk.domain()
    older, newer = await desk.mail("piedpiper.com", count=2)  # at 05:06:08 and 05:06:09
    foreign = ".5ea8ee59fa894aa7a9141e9665985b46"
    for time, wanted in (
        ("20201002014128", []),  # the documentation's own example
        ("00010101000000", []),
        ("20260304050608", []),
        ("20260304050609", [older]),
        ("99991231235959", [newer, older]),
    ):
        answer = await desk.get(f"/domains/piedpiper.com/logs?next_cursor={time}{foreign}")
        assert answer.status_code == 200, time
        assert [log["id"].partition(".")[2] for log in answer.json()["logs"]] == wanted


async def test_a_byte_order_mark_before_json_is_ignored(desk: Desk) -> None:
    await desk.domain()
    marked = b'\xef\xbb\xbf{"alias": "a", "forward": "a@gmail.com"}'
    headers = {"Content-Type": "application/json"}
    answer = await desk.post("/domains/piedpiper.com/aliases", content=marked, headers=headers)
    assert answer.status_code == 200, answer.text


async def test_a_multipart_form_that_is_cut_short_is_400(desk: Desk) -> None:
    await desk.domain()
    parts = [
        f'--B\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in (("alias", "a"), ("forward", "a@gmail.com"))
    ]
    whole = "".join(parts) + "--B--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=B"}
    for cut in range(whole.index("a@gmail.com") + 8, len(whole) - 3):
        answer = await desk.post("/domains/piedpiper.com/aliases", content=whole[:cut], headers=headers)
        assert answer.status_code == 400, whole[:cut]
    assert (await desk.get("/domains/piedpiper.com/aliases/a")).status_code == 404
    assert (
        await desk.post("/domains/piedpiper.com/aliases", content=whole, headers=headers)
    ).status_code == 200


@pytest.mark.parametrize("charset", ["punycode", "latin-1", "utf-7", "no-such", "utf-8"])
async def test_a_multipart_form_is_utf_8_whatever_it_says(desk: Desk, charset: str) -> None:
    """Python has codecs that take half a minute for a megabyte, and the loop that reads this serves mail too."""
    headers = {"Content-Type": f'multipart/form-data; charset={charset}; boundary="B:\\"1"'}
    form = '--B:"1\r\nContent-Disposition: form-data; name="domain"\r\n\r\nmünchen.com\r\n--B:"1--\r\n'
    answer = await desk.http.post("/domains", content=form.encode(), headers=headers)
    assert answer.json()["domain"]["domain"] == "xn--mnchen-3ya.com"


async def test_a_multipart_form_that_is_cut_within_a_boundary_loses_no_field(desk: Desk) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=B"}
    parts = [
        f'--B\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in (("domain", "piedpiper.com"), ("notification_email", "a@gmail.com"))
    ]
    answer = await desk.post("/domains", content="".join(parts) + "--", headers=headers)
    assert answer.status_code == 400, answer.text


async def test_wildcards_in_a_prefix_are_letters(desk: Desk) -> None:
    await desk.domain("piedpiper.com", {"a_b": "x@gmail.com", "axb": "y@gmail.com"})
    listed = (await desk.get("/domains/piedpiper.com/aliases?alias=a_")).json()["aliases"]
    assert [alias["alias"] for alias in listed] == ["a_b"]


WRONG = [
    {"x": 1},
    ["a"],
    [],
    7,
    -1.5,
    True,
    10**400,
    "a\r\nb",
    "a\0b",
    "a\u2028b",
    "\ud800",
    "x" * 200_000,
    {"a": {"b": [[{}]]}},
]


@pytest.mark.parametrize("value", WRONG, ids=range(len(WRONG)))
async def test_a_put_of_something_else_is_400_and_changes_nothing(desk: Desk, value: object) -> None:
    await desk.domain("piedpiper.com", {"richard": "richard@gmail.com"})
    await desk.put(
        "/domains/piedpiper.com", {"webhook": "https://93.184.215.14/h", "whitelabel": "hooli.com"}
    )
    await desk.post("/domains/piedpiper.com/credentials", {"username": "a", "password": "abc123"})
    requests = [
        ("", "notification_email"),
        ("", "webhook"),
        ("", "whitelabel"),
        ("/aliases/richard", "alias"),
        ("/aliases/richard", "forward"),
        ("/aliases/richard", "is_active"),
        ("/aliases/richard", "when_disabled"),
        ("/credentials/a", "password"),
        ("/credentials/a", "is_limited"),
    ]
    before = (await desk.get("/domains/piedpiper.com")).json()
    for path, field in requests:
        if value is True and field.startswith("is_"):
            continue
        body = json.dumps({field: value})
        answer = await desk.http.put(f"/domains/piedpiper.com{path}", content=body, headers=JSON)
        assert answer.status_code == 400, (path, field, answer.text)
        assert field in answer.text or "error" in answer.json()
    assert (await desk.get("/domains/piedpiper.com")).json() == before


@pytest.mark.parametrize("body", [b"", b"null", b"[]", b"{}", b'{"other": 1}', b" \n"])
async def test_a_put_without_fields_changes_nothing(desk: Desk, body: bytes) -> None:
    await desk.domain("piedpiper.com", {"richard": "richard@gmail.com"})
    await desk.post("/domains/piedpiper.com/credentials", {"username": "a", "password": "abc123"})
    await desk.put("/domains/piedpiper.com", {"whitelabel": "hooli.com"})
    before = (await desk.get("/domains/piedpiper.com")).json()
    answer = await desk.http.put("/domains/piedpiper.com", content=body, headers=JSON)
    assert (answer.status_code, answer.json()) == (200, before)
    for path, field in (("aliases/richard", "forward"), ("credentials/a", "password")):
        answer = await desk.http.put(f"/domains/piedpiper.com/{path}", content=body, headers=JSON)
        assert answer.json()["errors"] == {field: ["This field is required."]}
    assert (await desk.get("/domains/piedpiper.com")).json() == before


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
@pytest.mark.parametrize(
    "name",
    [
        "%00",
        "a%0d%0ab",
        "%ff",
        "%2e%2e",
        "..%2f..%2fetc",
        "%E2%80%A8",
        "a" * 4000,
        "%20",
        "99999999999999999999",
    ],
)
async def test_odd_names_in_a_path_are_not_found(desk: Desk, method: str, name: str) -> None:
    await desk.domain()
    for path in (
        f"/domains/{name}",
        f"/domains/piedpiper.com/aliases/{name}",
        f"/domains/piedpiper.com/credentials/{name}",
        f"/domains/piedpiper.com/logs/{name}",
    ):
        fields = {"forward": "a@gmail.com", "password": "abc123"} if method == "PUT" else None
        answer = await desk.http.request(method, path, json=fields)
        assert answer.status_code in (404, 405), (path, answer.text)
        assert answer.json()["code"] == answer.status_code


async def test_a_name_that_postgresql_cannot_compare_with_is_not_found(either_store_url: str) -> None:
    async with Desk(either_store_url) as desk:
        await desk.domain()
        for path in ("domains/%00", "domains/piedpiper.com/aliases/a%00", "domains/piedpiper.com/logs/%00a"):
            assert (await desk.get(path)).status_code == 404
        credential = "/domains/piedpiper.com/credentials/%00"
        assert (await desk.put(credential, {"password": "abc123"})).status_code == 404


async def test_a_body_that_does_not_come_is_the_client_s_trouble(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    await desk.domain()
    monkeypatch.setattr(body, "PATIENCE", 0.1)
    never = asyncio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        yield b'{"alias": '
        await never.wait()

    answer = await desk.post(
        "/domains/piedpiper.com/aliases", content=slowly(), headers={"Content-Type": "application/json"}
    )
    assert (answer.status_code, answer.json()["code"]) == (408, 408)
    assert answer.headers["connection"] == "close"


@pytest.mark.parametrize(("count", "aside"), [(1, False), (30, True)])
async def test_many_fields_are_looked_at_in_a_thread(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, count: int, aside: bool
) -> None:
    await desk.http.post("/domains", json={"domain": "many.com"})
    judged: list[bool] = []

    def watch(module: Any, name: str) -> None:
        work = getattr(module, name)

        def watched(*given: Any, **more: Any) -> Any:
            judged.append(threading.current_thread() is not threading.main_thread())
            return work(*given, **more)

        monkeypatch.setattr(module, name, watched)

    watch(body, "_json")
    watch(operation, "validate")
    entries = [{"alias": f"name{number}", "forward": "person@dest.test"} for number in range(count)]
    answer = await desk.http.post("/domains/many.com/aliases/bulk", json={"aliases": entries})
    assert (answer.status_code, len(answer.json()["added"])) == (200, count)
    assert judged == [aside, aside]  # read, and its fields looked at


async def test_the_expressions_of_a_bulk_request_are_compiled_in_a_thread(
    either_store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that the transaction counts too: on PostgreSQL its work is done in the event loop."""
    aside: list[bool] = []
    really = pattern.re2.compile
    pattern.compile_regex.cache_clear()
    pattern.program_size.cache_clear()

    def watched(*given: Any, **more: Any) -> Any:
        aside.append(threading.current_thread() is not threading.main_thread())
        return really(*given, **more)

    async with Desk(either_store_url) as desk:
        await desk.domain("many.com")
        monkeypatch.setattr(pattern.re2, "compile", watched)
        entries = [{"alias": f"(compiled{number})", "forward": "$1@dest.test"} for number in range(120)]
        answer = await desk.post("/domains/many.com/aliases/bulk", {"aliases": entries})
    assert (answer.status_code, len(answer.json()["added"])) == (200, 120)
    assert len(aside) >= 120
    assert all(aside)
