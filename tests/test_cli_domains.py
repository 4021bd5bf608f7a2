"""``forwarder domain``: which names may be hosted, and new keys for those that are."""

import json
import re
from datetime import UTC, datetime, timedelta

from tests.commandline import Cli

OWN = '[srs]\ndomain = "bounces.example.net"\n[dkim]\ndomain = "sign.example.org"\n'


def test_the_servers_own_names_are_nobodys_to_host(hosted: Cli) -> None:
    hosted.write(more=OWN)
    for own in ("mx1.example.net", "bounces.example.net", "sign.example.org"):
        for name in (own, own.upper(), f"shop.{own}", f"a.b.{own}"):
            said = hosted.fails("domain", "add", name, "--account", "you@example.org")
            assert name in said
            assert "cannot be hosted" in said
    for name in ("example.net", "example.org", "xmx1.example.net", "mx2.example.net"):
        assert hosted.json("domain", "add", name, "--account", "you@example.org")["domain"] == name


def test_a_domain_has_two_parts(hosted: Cli) -> None:
    assert "two parts" in hosted.fails("domain", "add", "localhost", "--account", "you@example.org")
    assert len(hosted.json("domain", "list")) == 1


def test_a_domain_gets_new_keys_that_wait_until_their_records_are_found(hosted: Cli) -> None:
    old = ["fwd1._domainkey.example.com", "fwd2._domainkey.example.com"]
    begun = hosted.json("domain", "rotate", "example.com")
    first, second = (record["name"] for record in begun["next"])
    assert re.fullmatch(r"fwd-\d{8}a1\._domainkey\.example\.com", first)
    assert second == first.replace("a1.", "a2.")
    assert begun["next"][0]["value"].startswith("v=DKIM1; k=rsa; p=")
    assert begun["next"][1]["value"].startswith("v=DKIM1; k=ed25519; p=")
    assert (begun["domain"], begun["signs_with"]) == ("example.com", ["fwd1", "fwd2"])
    assert (begun["missing"], begun["retired"], begun["next_key_zone"]) == ([], [], [])
    again = hosted.json("domain", "rotate", "example.com")  # nobody answers for the DNS in this test
    assert (again["next"], again["signs_with"], len(again["missing"])) == (
        begun["next"],
        ["fwd1", "fwd2"],
        2,
    )
    shown = hosted.json("domain", "dns", "example.com")
    assert [record["name"] for record in shown["records"] if "dkim" in record["purpose"]] == old
    assert shown["next"] == begun["next"]
    aliased = hosted.json("domain", "dns", "example.com", "--cname")
    assert [record["type"] for record in aliased["next"]] == ["CNAME", "CNAME"]
    assert aliased["next"][0]["value"] == aliased["next_key_zone"][0]["name"]
    assert aliased["next_key_zone"][0]["value"] == begun["next"][0]["value"]
    status, output, _ = hosted("domain", "rotate", "example.com")
    assert status == 0
    assert output.startswith("example.com signs with fwd1, fwd2.\n")
    assert f"{first}.  IN TXT" in output
    assert "Then: forwarder domain rotate example.com, which looks for them" in output
    assert f"{first}.  IN TXT" in hosted("domain", "dns", "example.com")[1]
    found = json.loads(hosted("check", "--json")[1])["findings"]
    grades = {one["about"]: one["grade"] for one in found if "new DKIM" in one["about"]}
    assert grades == {"example.com new DKIM 1": "advice", "example.com new DKIM 2": "advice"}


def test_keys_that_leaked_are_replaced_at_once(hosted: Cli) -> None:
    turned = hosted.json("domain", "rotate", "example.com", "--now")
    assert [re.sub(r"\d{8}", "…", name) for name in turned["signs_with"]] == ["fwd-…a1", "fwd-…a2"]
    assert turned["next"] == []
    published = [record["name"].partition(".")[0] for record in turned["records"]]
    assert published == turned["signs_with"]
    names = [former["name"] for former in turned["retired"]]
    assert names == ["fwd1._domainkey.example.com", "fwd2._domainkey.example.com"]
    kept = datetime.fromisoformat(turned["retired"][0]["keep_until"]) - datetime.now(UTC)
    assert timedelta(days=6, hours=23) < kept <= timedelta(days=7)
    # Who asks what has become of it begins nothing; who says so again does, on the same day too.
    assert hosted.json("domain", "rotate", "example.com") == turned
    listed = hosted.json("domain", "dns", "example.com")["records"]
    assert [r["name"].partition(".")[0] for r in listed if "dkim" in r["purpose"]] == turned["signs_with"]
    assert "to be removed not before" in hosted("domain", "rotate", "example.com")[1]
    assert "IN TXT" not in hosted("domain", "rotate", "example.com")[1]
    once_more = hosted.json("domain", "rotate", "example.com", "--now")
    assert once_more["signs_with"] == [name.replace("a", "b") for name in turned["signs_with"]]
    assert len(once_more["retired"]) == 4


def test_keys_of_a_domain_that_is_not_hosted_are_not_made(hosted: Cli) -> None:
    assert "is not hosted here" in hosted.fails("domain", "rotate", "elsewhere.test")


def test_who_replaces_keys_at_once_is_shown_what_to_publish(hosted: Cli) -> None:
    output = hosted("domain", "rotate", "example.com", "--now", "--cname")[1]
    _, _, pasted = output.partition("until these records are found")
    name, target = (r"fwd-\d{8}a1\._domainkey\.example\.com", r"\.mx1\.example\.net\.")
    assert re.search(rf"^{name}\.  IN CNAME  {name}{target}$", pasted, re.MULTILINE)
    assert re.search(rf'^{name}{target}  IN TXT  "v=DKIM1; k=rsa; p=', pasted, re.MULTILINE)
