"""The page that confirms a destination, with the clock and the store in the test's hands."""

import re
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select

from forwarder.store.tables import messages
from forwarder.store.trouble import StoreUnavailable
from tests.api.desk import Desk

LINK = re.compile(rb"https://fwd\.test(/confirm/\S+)\r\n")


async def links(desk: Desk) -> list[str]:
    """The paths in the mails that wait in the queue, oldest first."""
    query = select(messages.c.content).order_by(messages.c.id)
    contents = await desk.database.read(lambda conn: list(conn.execute(query).scalars()))
    return [found[1].decode() for content in contents if (found := LINK.search(bytes(content)))]


def strict(url: str) -> Desk:
    return Desk(url, require_confirmed_destinations=True, api={"public_url": "https://fwd.test"})


async def page(desk: Desk, method: str, path: str) -> Any:
    return await desk.http.request(method, f"http://api.test{path}", auth=None)


async def test_a_link_is_too_old_after_a_week(store_url: str) -> None:
    async with strict(store_url) as desk:
        await desk.domain(aliases={})
        (path,) = await links(desk)  # the account's own address
        desk.now += timedelta(days=7) - timedelta(seconds=1)
        assert (await page(desk, "GET", path)).status_code == 200
        desk.now += timedelta(seconds=1)
        for method in ("GET", "POST"):
            answer = await page(desk, method, path)
            assert answer.status_code == 404
            assert "older than 7 days" in answer.text


async def test_every_way_to_save_an_alias_asks_once(store_url: str) -> None:
    async with strict(store_url) as desk:
        await desk.domain(aliases={"a": "one@dest.test"})
        assert len(await links(desk)) == 2
        entries = [{"alias": "b", "forward": "two@dest.test"}, {"alias": "c", "forward": "ONE@dest.test"}]
        answer = await desk.post("/domains/piedpiper.com/aliases/bulk", {"aliases": entries})
        assert answer.status_code == 200
        assert len(await links(desk)) == 3
        changed = await desk.put("/domains/piedpiper.com/aliases/b", {"forward": "three@dest.test"})
        assert changed.status_code == 200
        assert len(await links(desk)) == 4
        refused = await desk.post(
            "/domains/piedpiper.com/aliases", {"alias": "a", "forward": "four@dest.test"}
        )
        assert refused.status_code == 400
        assert len(await links(desk)) == 4


async def test_an_address_beyond_ascii_is_asked_by_mail_that_may_be_so(store_url: str) -> None:
    async with strict(store_url) as desk:
        await desk.domain(aliases={"a": "josé@dest.test"})
        query = select(messages.c.smtputf8)
        asked = await desk.database.read(lambda conn: list(conn.execute(query).scalars()))
        assert sorted(asked) == [False, True]  # the account's own address is plain


async def test_an_address_is_a_text_in_the_page_whatever_it_holds(store_url: str) -> None:
    async with strict(store_url) as desk:
        await desk.domain(aliases={"a": '"<b>&x"@dest.test'})
        shown = {path: (await page(desk, "GET", path)).text for path in await links(desk)}
        [path] = [path for path, text in shown.items() if "@dest.test" in text]
        for text in (shown[path], (await page(desk, "POST", path)).text):
            assert "<b>&quot;&lt;b&gt;&amp;x&quot;@dest.test</b>" in text


async def test_trouble_of_the_store_leaves_the_link_good(
    store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with strict(store_url) as desk:
        await desk.domain()
        (path,) = await links(desk)

        async def away(work: Any) -> Any:
            raise StoreUnavailable("away")

        with monkeypatch.context() as broken:
            broken.setattr(desk.database, "change", away)
            answer = await page(desk, "POST", path)
            assert (answer.status_code, "try again later" in answer.text) == (503, True)
        assert (await page(desk, "POST", path)).status_code == 200
