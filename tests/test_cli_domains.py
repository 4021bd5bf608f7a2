"""``forwarder domain``: which names may be hosted."""

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
