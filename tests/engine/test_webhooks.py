"""URLs that people write cannot make us knock at doors inside."""

import hmac

from tests.engine.town import MAIL, Town
from tests.peers.webhook_server import WebhookServer

INSIDE = (
    "https://127.0.0.1:{port}/x", "https://[::1]:{port}/x", "https://[::ffff:127.0.0.1]:{port}/x",
    "https://2130706433:{port}/x", "https://127.1:{port}/x", "https://0x7f.1:{port}/x", "https://017700000001:{port}/x",
    "https://169.254.169.254/latest/meta-data", "https://10.0.0.1/x", "https://0.0.0.0:{port}/x",
    "https://localhost:{port}/x", "https://192.168.1.1/x", "https://[fe80::1]/x", "https://[fc00::1]/x",
    "file:///etc/passwd", "gopher://dest.test/x", "http://dest.test/x", "ftp://dest.test/x",
    "https://user:secret@dest.test/x", "https://dest.test\\@127.0.0.1/x", "https://127.0.0.1#@dest.test/",
)  # fmt: skip


async def test_urls_inside_are_refused_when_they_are_saved(town: Town) -> None:
    async with (
        town.engine(outbound={"allow_private_destinations": False}),
        WebhookServer() as hooks,
        town.api() as api,
    ):
        for number, url in enumerate(INSIDE):
            body = {"alias": f"hook{number}", "forward": url.format(port=hooks.port)}
            answer = await api.post("/v3/domains/example.com/aliases/", json=body)
            assert answer.status_code in (400, 422), url
        answer = await api.put(
            "/v3/domains/example.com", json={"webhook": f"https://127.0.0.1:{hooks.port}/x"}
        )
        assert answer.status_code in (400, 422)
        assert hooks.connections == 0
        assert town.errors == []


async def test_urls_that_lead_inside_are_not_called(town: Town) -> None:
    """Saved by hand, or by a name that resolves to something inside only now: looked at again before dialling."""
    production = {"allow_private_destinations": False}
    async with town.engine(outbound=production, retry={"delays": ["10m"]}), WebhookServer() as hooks:
        names = {
            "four.test": "127.0.0.1",
            "six.test": "::1",
            "mapped.test": "::ffff:127.0.0.1",
            "ten.test": "10.0.0.1",
        }
        for name, address in names.items():
            town.dns.set(name, "AAAA" if ":" in address else "A", [address])
            await town.alias(name, f"https://{name}:{hooks.port}/x")
            assert (await town.send("", f"{name}@example.com", MAIL)).code == 250
        await town.alias("literal", f"https://127.0.0.1:{hooks.port}/x")
        literal = await town.send("", "literal@example.com", MAIL)
        assert literal.code in (250, 421, 450, 451, 550)
        for name in names:
            _, _, text = await town.wait_for_event(f"{name}@example.com", "HARD-BOUNCE")
            assert "blocked" in text, text
        assert hooks.connections == 0
        assert town.errors == []


async def test_redirects_are_not_followed(town: Town) -> None:
    async with town.engine(retry={"delays": ["10m"]}), WebhookServer() as hooks, WebhookServer() as inside:
        await town.alias("hook", hooks.at(f"/redirect?to={inside.url}"))
        assert (await town.send("ann@out.test", "hook@example.com", MAIL)).code == 250
        await hooks.wait_for(1)
        _, code, _ = await town.wait_for_event("hook@example.com", "SOFT-BOUNCE")
        assert code // 100 == 4
        await town.goes_on()
        assert inside.connections == 0


async def test_a_url_to_which_aliases_of_two_accounts_lead_is_posted_to_under_the_key_of_each(
    engine: Town,
) -> None:
    """Who knows the one key could not tell a post under the other from a forged one."""
    async with WebhookServer() as hooks:
        await engine.host("theirs.test", {"boss": hooks.url}, account="other@example.org")
        await engine.leads_here("theirs.test")
        await engine.alias("mine", hooks.url)
        await engine.alias("both", "boss@theirs.test,mine@example.com")
        assert (await engine.send("ann@out.test", "both@example.com", MAIL)).code == 250
        await engine.settled()
        signed = {}
        for request in hooks.requests:
            time, _, mac = request.headers["x-webhook-signature"].partition(",v1=")
            for name in ("example.com", "theirs.test"):
                key = (await engine.domain(name)).webhook_key
                body = time.removeprefix("t=").encode() + b"." + request.body
                if hmac.new(key.encode(), body, "sha256").hexdigest() == mac:
                    signed[name] = request.json["headers"]["Delivered-To"]
        assert len(hooks.requests) == 2
        assert signed == {"example.com": "both@example.com", "theirs.test": "both@example.com"}
        await engine.goes_on()
