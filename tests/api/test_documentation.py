"""Every example of ImprovMX's documentation: the request as it stands there, the answer key by key, type by type.

The answers below are copied from the documentation, with values that a test cannot know replaced by a type.
"""

from datetime import UTC, datetime
from typing import Any

import pytest

from api.improvmx import wire
from forwarder.mail.event import Status
from forwarder.store.journal import Event
from tests.api.desk import Desk

INT, STR, BOOL = 0, "", False  # stand for "any value of this type"


def same_shape(documented: Any, answered: Any, where: str = "answer") -> None:
    """Every documented key is there with the documented type; null is documented, or text we leave empty."""
    if isinstance(documented, dict):
        assert isinstance(answered, dict), where
        missing = documented.keys() - answered.keys()
        assert not missing, f"{where} lacks {missing}"
        for key, value in documented.items():
            same_shape(value, answered[key], f"{where}.{key}")
    elif isinstance(documented, list):
        assert isinstance(answered, list), where
        if documented:
            assert answered, f"{where} is empty"
            for index, value in enumerate(answered):
                same_shape(documented[0], value, f"{where}[{index}]")
    elif documented is None:
        assert answered is None or isinstance(answered, str), where
    else:
        assert type(answered) is type(documented), f"{where} is {answered!r}"


ALIAS = {"created": 1702393755000, "forward": "richard.hendricks@gmail.com", "alias": "richard", "id": 4}
DOMAIN = {
    "active": False,
    "domain": "piedpiper.com",
    "display": "piedpiper.com",
    "dkim_selector": "dkimprovmx",
    "notification_email": None,
    "webhook": None,
    "whitelabel": None,
    "added": 1559652806000,
    "aliases": [ALIAS],
}
CREDENTIAL = {"created": 1588236952000, "usage": 0, "username": "bighead"}


async def test_account(desk: Desk) -> None:
    answer = await desk.get("/account")
    assert answer.status_code == 200
    body = answer.json()
    renewed = body["account"].pop("renew_date")
    assert renewed is None  # documented as a number; null where nothing is billed
    same_shape(
        {
            "account": {
                "billing_email": None,
                "cancels_on": None,
                "card_brand": "Visa",
                "company_details": "1 Decentralized Street\n92024-\n2852 California",
                "company_name": "PiedPiper Inc.",
                "company_vat": None,
                "country": "US",
                "created": 1512139382000,
                "email": "richard.hendricks@gmail.com",
                "last4": "1234",
                "limits": {
                    "aliases": 10000,
                    "daily_quota": 100000,
                    "daily_send": 200,
                    "domains": 10000,
                    "ratelimit": 10,
                    "redirections": 50,
                    "subdomains": 2,
                    "api": 3,
                    "credentials": 50,
                    "destinations": 5,
                },
                "lock_reason": None,
                "locked": None,
                "password": True,
                "plan": {
                    "aliases_limit": 10000,
                    "daily_quota": 100000,
                    "display": "Business - $249",
                    "domains_limit": 10000,
                    "kind": "enterprise",
                    "name": "enterprise249",
                    "price": 249,
                    "yearly": False,
                },
                "premium": True,
                "privacy_level": 1,
            },
            "success": True,
        },
        body,
    )
    assert body["account"]["email"] == desk.email
    assert body["success"] is True


async def test_whitelabels(desk: Desk) -> None:
    await desk.post("/domains", {"domain": "a.example", "whitelabel": "piedpiper.com"})
    await desk.post("/domains", {"domain": "b.example", "whitelabel": "piedpiper.com"})
    answer = await desk.get("/account/whitelabels")
    assert answer.json() == {"whitelabels": [{"name": "piedpiper.com"}], "success": True}


async def test_list_domains(desk: Desk) -> None:
    await desk.domain("google.com", {"sergey": "sergey@gmail.com", "larry": "larry@gmail.com"})
    await desk.domain("piedpiper.com")
    answer = await desk.get("/domains")
    documented = {"domains": [DOMAIN], "total": 3, "limit": 50, "page": 1, "success": True}
    same_shape(documented, answer.json())
    body = answer.json()
    assert (body["total"], body["limit"], body["page"]) == (2, 50, 1)
    assert [domain["domain"] for domain in body["domains"]] == ["google.com", "piedpiper.com"]
    assert [alias["alias"] for alias in body["domains"][0]["aliases"]] == ["sergey", "larry"]


async def test_list_domains_that_start_with_something(desk: Desk) -> None:
    await desk.domain("google.com")
    await desk.domain("piedpiper.com")
    answer = await desk.get("/domains?q=pied")
    same_shape(
        {
            "domains": [DOMAIN | {"daily_quota": 500}],
            "total": 1,
            "limit": 50,
            "page": 1,
            "success": True,
        },
        answer.json(),
    )
    assert [domain["domain"] for domain in answer.json()["domains"]] == ["piedpiper.com"]
    assert answer.json()["total"] == 1


async def test_add_domain(desk: Desk) -> None:
    answer = await desk.post("/domains", {"domain": "piedpiper.com"})
    assert answer.status_code == 200
    same_shape({"domain": DOMAIN, "success": True}, answer.json())
    domain = answer.json()["domain"]
    assert (domain["active"], domain["domain"], domain["notification_email"]) == (
        False,
        "piedpiper.com",
        None,
    )
    assert [(alias["alias"], alias["forward"]) for alias in domain["aliases"]] == [("*", desk.email)]


async def test_get_domain(desk: Desk) -> None:
    await desk.domain("piedpiper.com", {"richard": "richard.hendricks@gmail.com", "jared": "j@gmail.com"})
    answer = await desk.get("/domains/piedpiper.com")
    same_shape({"domain": DOMAIN, "success": True}, answer.json())
    assert [alias["alias"] for alias in answer.json()["domain"]["aliases"]] == ["richard", "jared"]


async def test_edit_domain(desk: Desk) -> None:
    await desk.domain()
    fields = {
        "notification_email": "email@example.com",
        "webhook": "https://requestbin.com/r/abc123",
        "whitelabel": "hooli.com",
    }
    answer = await desk.put("/domains/piedpiper.com", fields)
    assert answer.status_code == 200, answer.text
    same_shape({"domain": DOMAIN | fields, "success": True}, answer.json())
    assert answer.json()["domain"].items() >= fields.items()
    assert (await desk.get("/domains/piedpiper.com")).json()["domain"].items() >= fields.items()


async def test_delete_domain(desk: Desk) -> None:
    await desk.domain()
    answer = await desk.delete("/domains/piedpiper.com")
    assert (answer.status_code, answer.json()) == (200, {"success": True})
    assert (await desk.get("/domains/piedpiper.com")).status_code == 404


async def test_check_domain(desk: Desk) -> None:
    await desk.domain()
    desk.dns.set("piedpiper.com", "MX", [(10, "mx.forwarder.test")])
    desk.dns.set("piedpiper.com", "TXT", ["v=spf1 include:someservice.org ~all"])
    desk.dns.set("piedpiper.com", "NS", ["amy.ns.cloudflare.com"])
    answer = await desk.get("/domains/piedpiper.com/check")
    one = {"expected": "dkimprovmx1.improvmx.com.", "valid": True, "values": None}
    same_shape(
        {
            "records": {
                "provider": "cloudflare",
                "advanced": True,
                "dkim1": one,
                "dkim2": one,
                "dmarc": {"expected": "v=DMARC1; p=none;", "valid": False, "values": None},
                "error": None,
                "mx": {
                    "expected": ["mx1.improvmx.com", "mx2.improvmx.com"],
                    "valid": True,
                    "values": ["mx2.improvmx.com", "mx1.improvmx.com"],
                },
                "spf": {
                    "expected": "v=spf1 include:someservice.org include:spf.improvmx.com ~all",
                    "valid": False,
                    "values": "v=spf1 include:someservice.org ~all",
                },
                "valid": False,
            },
            "success": True,
        },
        answer.json(),
    )
    records = answer.json()["records"]
    assert records["provider"] == "cloudflare"
    assert records["spf"] == {
        "expected": "v=spf1 include:someservice.org include:mx.forwarder.test ~all",
        "valid": False,
        "values": "v=spf1 include:someservice.org ~all",
    }


async def test_list_aliases(desk: Desk) -> None:
    await desk.domain("piedpiper.com", {"richard": "richard.hendricks@gmail.com", "jared": "j@gmail.com"})
    answer = await desk.get("/domains/piedpiper.com/aliases")
    same_shape({"aliases": [ALIAS], "limit": 5, "page": 1, "total": 2, "success": True}, answer.json())
    assert [alias["alias"] for alias in answer.json()["aliases"]] == ["richard", "jared"]
    assert answer.json()["total"] == 2


async def test_add_alias(desk: Desk) -> None:
    await desk.domain()
    fields = {"alias": "richard", "forward": "richard.hendricks@gmail.com"}
    answer = await desk.post("/domains/piedpiper.com/aliases", fields)
    assert answer.status_code == 200
    same_shape({"alias": ALIAS, "success": True}, answer.json())
    assert answer.json()["alias"].items() >= fields.items()


async def test_get_alias(desk: Desk) -> None:
    await desk.domain("piedpiper.com", {"richard": "richard.hendricks@protonmail.com"})
    answer = await desk.get("/domains/piedpiper.com/aliases/richard")
    same_shape({"alias": ALIAS, "success": True}, answer.json())
    assert answer.json()["alias"]["forward"] == "richard.hendricks@protonmail.com"


async def test_update_alias_by_name(desk: Desk) -> None:
    await desk.domain("piedpiper.com", {"richard": "richard.hendricks@gmail.com"})
    answer = await desk.put(
        "/domains/piedpiper.com/aliases/richard", {"forward": "richard.hendricks@protonmail.com"}
    )
    same_shape({"alias": ALIAS, "success": True}, answer.json())
    assert answer.json()["alias"]["forward"] == "richard.hendricks@protonmail.com"
    assert answer.json()["alias"]["alias"] == "richard"


async def test_update_alias_by_id(desk: Desk) -> None:
    await desk.domain("piedpiper.com", {"richard": "richard.hendricks@gmail.com"})
    number = (await desk.get("/domains/piedpiper.com/aliases/richard")).json()["alias"]["id"]
    answer = await desk.put(
        f"/domains/piedpiper.com/aliases/{number}",
        {"alias": "richard2", "forward": "richard.hendricks@protonmail.com"},
    )
    same_shape({"alias": ALIAS, "success": True}, answer.json())
    alias = answer.json()["alias"]
    assert (alias["id"], alias["alias"], alias["forward"]) == (
        number,
        "richard2",
        "richard.hendricks@protonmail.com",
    )
    assert (await desk.get("/domains/piedpiper.com/aliases/richard")).status_code == 404


async def test_delete_alias(desk: Desk) -> None:
    await desk.domain("piedpiper.com", {"nelson": "nelson@gmail.com"})
    answer = await desk.delete("/domains/piedpiper.com/aliases/nelson")
    assert (answer.status_code, answer.json()) == (200, {"success": True})
    assert (await desk.get("/domains/piedpiper.com/aliases/nelson")).status_code == 404


async def test_bulk(desk: Desk) -> None:
    await desk.domain("piedpiper.com", {"dinesh": "old@gmail.com"})
    entries = [
        {"alias": "richard", "forward": "richard.hendricks@gmail.com"},
        {"alias": "jared", "forward": "jared.dunn@gmail.com"},
        {"alias": "dinesh", "forward": "dinesh.chugtai@gmail.com"},
    ]
    answer = await desk.post(
        "/domains/piedpiper.com/aliases/bulk", {"aliases": entries, "behavior": "update"}
    )
    assert answer.status_code == 200, answer.text
    same_shape({"added": [ALIAS], "failed": [], "updated": [ALIAS], "success": True}, answer.json())
    body = answer.json()
    assert [alias["alias"] for alias in body["added"]] == ["richard", "jared"]
    assert [(alias["alias"], alias["forward"]) for alias in body["updated"]] == [
        ("dinesh", "dinesh.chugtai@gmail.com")
    ]


EVENT = {
    "code": 250,
    "created": "2020-01-25 12:19:11+0000",
    "id": "some_random_id",
    "local": "mxb.infra.improvmx.com",
    "message": "Queued",
    "server": "mail-io1-f54.google.com",
    "status": "QUEUED",
}
LOG = {
    "created": "2020-01-25 12:19:09+0000",
    "created_raw": "Sat, 25 Jan 2020 12:19:09 GMT",
    "events": [EVENT],
    "forward": {"email": "richard.hendricks@gmail.com", "name": None},
    "hostname": "mail-io1-f54.google.com",
    "id": "20201002014128.5ea8ee59fa894aa7a9141e9665985b46",
    "messageId": "some_random_id",
    "recipient": {"email": "richard@piedpiper.com", "name": None},
    "sender": {"email": "gavin@hooli.com", "name": "Gavin Belsonx"},
    "subject": "You are screwed, Piedpiper team!",
    "transport": "smtp",
}


@pytest.mark.parametrize("path", ["/domains/piedpiper.com/logs", "/domains/piedpiper.com/logs/richard"])
async def test_logs(desk: Desk, path: str) -> None:
    await desk.domain("piedpiper.com", {"richard": "richard.hendricks@gmail.com"})
    (made,) = await desk.mail("piedpiper.com")
    answer = await desk.get(path)
    same_shape({"logs": [LOG], "success": True}, answer.json())
    (log,) = answer.json()["logs"]
    assert log["created"] == "2026-03-04 05:06:08+0000"
    assert log["created_raw"] == "Wed, 04 Mar 2026 05:06:08 GMT"
    assert log["id"] == f"20260304050608.{made}"
    # The documentation's example names the person at both addresses.
    assert log["forward"] == {"email": "richard.hendricks@gmail.com", "name": "Richard Hendricks"}
    assert log["recipient"] == {"email": "richard@piedpiper.com", "name": "Richard Hendricks"}
    assert [event["status"] for event in log["events"]] == ["QUEUED"]


def test_who_sent_is_the_server_and_who_received_is_local() -> None:
    """The documentation's events: QUEUED from Google's host to ours, DELIVERED from ours to Google's."""
    ours, theirs = "mx.forwarder.test", "mail-io1-f54.google.com"
    for status, received, sent in (
        (Status.QUEUED, ours, theirs),
        (Status.REFUSED, ours, theirs),
        (Status.DELIVERED, theirs, ours),
        (Status.SOFT_BOUNCE, theirs, ours),
        (Status.HARD_BOUNCE, theirs, ours),
    ):
        stored = Event(
            id="1",
            created_at=datetime(2026, 3, 4, tzinfo=UTC),
            status=status,
            code=250,
            message="",
            local=ours,
            server=theirs,
            recipient=None,
        )
        shown = wire.event(stored)
        assert (shown["local"], shown["server"]) == (received, sent), status


async def test_logs_after_a_cursor(desk: Desk) -> None:
    await desk.domain()
    made = await desk.mail("piedpiper.com", count=3)
    newest = (await desk.get("/domains/piedpiper.com/logs")).json()["logs"]
    assert [log["id"].partition(".")[2] for log in newest] == made[::-1]
    after = (await desk.get(f"/domains/piedpiper.com/logs?next_cursor={newest[0]['id']}")).json()["logs"]
    assert after == newest[1:]


async def test_list_credentials(desk: Desk) -> None:
    await desk.domain()
    for username in ("richard", "monica"):
        await desk.post("/domains/piedpiper.com/credentials", {"username": username, "password": "abc123"})
    answer = await desk.get("/domains/piedpiper.com/credentials")
    same_shape({"credentials": [CREDENTIAL], "success": True}, answer.json())
    assert [one["username"] for one in answer.json()["credentials"]] == ["richard", "monica"]


async def test_add_credential(desk: Desk) -> None:
    await desk.domain()
    fields = {"username": "bighead", "password": "abc123"}
    answer = await desk.post("/domains/piedpiper.com/credentials", fields)
    assert answer.status_code == 200
    same_shape({"credential": CREDENTIAL, "requires_new_mx_check": False, "success": True}, answer.json())
    assert answer.json()["requires_new_mx_check"] is True  # the first of the domain
    second = await desk.post("/domains/piedpiper.com/credentials", fields | {"username": "russ"})
    assert second.json()["requires_new_mx_check"] is False


async def test_update_credential(desk: Desk) -> None:
    await desk.domain()
    await desk.post("/domains/piedpiper.com/credentials", {"username": "bighead", "password": "abc123"})
    answer = await desk.put("/domains/piedpiper.com/credentials/bighead", {"password": "abcd1234"})
    assert answer.status_code == 200
    same_shape({"credential": CREDENTIAL, "success": True}, answer.json())


async def test_delete_credential(desk: Desk) -> None:
    await desk.domain()
    await desk.post("/domains/piedpiper.com/credentials", {"username": "russ", "password": "abc123"})
    answer = await desk.delete("/domains/piedpiper.com/credentials/russ")
    assert (answer.status_code, answer.json()) == (200, {"success": True})
    assert (await desk.get("/domains/piedpiper.com/credentials")).json()["credentials"] == []


async def test_a_bad_request_has_errors_by_field(desk: Desk) -> None:
    answer = await desk.post("/domains", {"domain": "piedpiper.com", "notification_email": "nobody"})
    assert answer.status_code == 400
    same_shape({"errors": {"notification_email": ["…"]}, "success": False}, answer.json())
    assert answer.json()["code"] == 400
