"""What happens in the demo, step by step; every step is checked, and what is shown is what happened.

The hosted domain is ``example.com``, its people read their mail at ``inbox.example.net``, and a friend writes from
``friend.example.org``. Those names are for documentation; here the demo's own DNS server answers for them. Mail is sent
by the standard library's SMTP client, what arrives is verified by dkimpy, and the log comes from the API over HTTP.
"""

import asyncio
import contextlib
import smtplib
import ssl
import tempfile
import time
from dataclasses import dataclass, field
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import dkim
import httpx

from forwarder.clock import utc_now
from forwarder.config import Settings
from forwarder.demo.peers import Catcher, Caught, Zone
from forwarder.demo.show import Show
from forwarder.diagnostics import set_up
from forwarder.keyring import open_keyring
from forwarder.mail.canonical import Canonical
from forwarder.mail.records import KeyRecord, dkim_name, records_to_publish
from forwarder.mail.seal import public_record
from forwarder.mail.verification import needed_keys, verify
from forwarder.net.tls import self_signed
from forwarder.serve import Engine, running
from forwarder.store import accounts, dkim_keys, domains

HOSTNAME = "mx1.example.net"
DOMAIN = "example.com"
OWNER = "richard@inbox.example.net"
FRIEND = "alice@friend.example.org"
PASSWORD = "correct-horse-battery"  # noqa: S105 - of a server that lives for two seconds
PATIENCE = 20.0  # seconds, for what takes a fraction of one
ALIASES = {
    "richard": "richard@inbox.example.net",
    "sales-*": "sales@inbox.example.net",
    "(contact|support)": "team+$1@inbox.example.net",
}
KINDS = {"richard": "exact", "sales-*": "wildcard", "(contact|support)": "regular expression"}


async def tell(show: Show) -> int:
    """The whole story; the exit status."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="forwarder-demo-") as name:
        zone = Zone()
        async with Catcher() as catcher:
            settings = _settings(Path(name), catcher.port, await zone.open())
            set_up(settings)
            try:
                async with running(settings) as engine:
                    story = Story(show=show, engine=engine, catcher=catcher, zone=zone)
                    await story.prepare()
                    await story.send()
                    await story.look()
                    return story.end(time.monotonic() - began)
            finally:
                zone.close()


def _settings(folder: Path, catcher_port: int, nameserver: str) -> Settings:
    certificate, key = self_signed([HOSTNAME, "localhost"], folder)
    return Settings.model_validate(
        {
            "hostname": HOSTNAME,
            "data_dir": folder / "data",
            "mx": {"listen": ["127.0.0.1:0"]},
            "submission": {"listen": ["127.0.0.1:0"], "listen_tls": ["127.0.0.1:0"]},
            "tls": {"certificate": str(certificate), "key": str(key)},
            "api": {"listen": "127.0.0.1:0"},
            "dns": {"nameservers": [nameserver]},
            "outbound": {"port": catcher_port, "allow_private_destinations": True},
            "logs": {"level": "error"},
            "workers": {"processes": 1},
        }
    )


@dataclass(slots=True, kw_only=True)
class Story:
    """The engine of the demo, the world around it, and what was seen."""

    show: Show
    engine: Engine
    catcher: Catcher
    zone: Zone
    api_key: str = ""
    sent: list[dict[str, Any]] = field(default_factory=list)
    logs: list[dict[str, Any]] = field(default_factory=list)
    received: list[dict[str, Any]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def port(self, listener: str) -> int:
        return self.engine.ports[listener][0][1]

    def check(self, fine: bool, text: str) -> None:
        self.show.step(text, fine)
        if not fine:
            self.wrong.append(text)

    async def prepare(self) -> None:
        """An account, a domain, its DNS, aliases and a log-in."""
        self.show.title("A whole engine on this machine")
        ports = ", ".join(f"{name} {self.port(name)}" for name in self.engine.ports)
        self.show.step("SQLite in a temporary folder; listening on 127.0.0.1:")
        self.show.step(ports)
        key = accounts.new_key()

        def create(conn: Any) -> None:
            account = accounts.create(conn, OWNER, "default", utc_now())
            accounts.add_key(conn, account.id, "demo", key.digest, key.prefix, utc_now())

        await self.engine.database.write(create)
        self.api_key = key.secret
        self.show.step(f"Account {OWNER} with an API key")

        self.show.title("Set up through the API")
        await self._call("POST", "/v3/domains", {"domain": DOMAIN})
        await self._call("DELETE", f"/v3/domains/{DOMAIN}/aliases/*")  # so that an unknown address is one
        for pattern, forward in ALIASES.items():
            await self._call("POST", f"/v3/domains/{DOMAIN}/aliases", {"alias": pattern, "forward": forward})
        await self._publish()
        checked = await self._call("GET", f"/v3/domains/{DOMAIN}/check")
        self.check(checked.get("valid") is True, f"{DOMAIN}: its DNS is right, says GET …/check")
        login = {"username": "richard", "password": PASSWORD}
        await self._call("POST", f"/v3/domains/{DOMAIN}/credentials", login)
        rows: list[tuple[object, ...]] = [(KINDS[p], f"{p}@{DOMAIN}", f"→ {f}") for p, f in ALIASES.items()]
        self.show.table(("alias", "address", "leads to"), rows)

    async def _call(self, method: str, path: str, body: dict[str, str] | None = None) -> dict[str, Any]:
        async with httpx.AsyncClient(trust_env=False, timeout=PATIENCE) as client:
            url = f"http://127.0.0.1:{self.port('api')}{path}"
            answer = await client.request(method, url, json=body, auth=("api", self.api_key))
        if answer.status_code != 200:
            self.check(False, f"{method} {path} answered {answer.status_code}: {answer.text[:200]}")
        found: dict[str, Any] = answer.json()
        return found

    async def _publish(self) -> None:
        """The records a person would paste, and those of the world outside."""

        def keys_of(conn: Any) -> list[KeyRecord]:
            domain = domains.get(conn, DOMAIN)
            found = dkim_keys.list_keys(conn, domain.id) if domain is not None else ()
            return [KeyRecord(selector=k.selector, public_record=k.public_record) for k in found]

        zone = self.zone
        keys = await self.engine.database.read(keys_of)
        for record in records_to_publish(DOMAIN, HOSTNAME, keys, as_txt=True):
            value = f"{record.priority} {record.value}." if record.kind == "MX" else record.value
            zone.publish(record.name, record.kind, value)
        zone.publish(HOSTNAME, "A", "127.0.0.1")
        zone.publish(HOSTNAME, "TXT", "v=spf1 ip4:127.0.0.1 -all")
        for signer in open_keyring(self.engine.settings).service:
            zone.publish(dkim_name(HOSTNAME, signer.selector), "TXT", public_record(signer.key))
        zone.publish("inbox.example.net", "MX", "10 inbox.example.net.")
        zone.publish("inbox.example.net", "A", "127.0.0.1")
        zone.publish("friend.example.org", "TXT", "v=spf1 ip4:127.0.0.1 -all")
        self.engine.resolver.forget()

    async def send(self) -> None:
        """Mail from outside through each kind of alias, one to nobody, and one by a person who logs in."""
        self.show.title("Real mail, sent with Python's smtplib")
        for kind, to in (
            ("exact", f"richard@{DOMAIN}"),
            ("wildcard", f"sales-europe@{DOMAIN}"),
            ("regular expression", f"support@{DOMAIN}"),
            ("no alias", f"nobody@{DOMAIN}"),
        ):
            code, text = await asyncio.to_thread(self._send_in, to, f"By {kind}")
            self.sent.append({"kind": kind, "from": FRIEND, "to": to, "code": code, "reply": text})
        to = "bob@inbox.example.net"
        code, text = await asyncio.to_thread(self._send_out, to)
        self.sent.append(
            {"kind": "submission", "from": f"richard@{DOMAIN}", "to": to, "code": code, "reply": text}
        )
        rows: list[tuple[object, ...]] = [(s["kind"], s["from"], s["to"], s["code"]) for s in self.sent]
        self.show.table(("by", "from", "to", "reply"), rows)
        codes = [one["code"] for one in self.sent]
        self.check(
            codes == [250, 250, 250, 550, 250], "each on disk before its 250; nobody is refused at once"
        )

    def _send_in(self, to: str, subject: str) -> tuple[int, str]:
        with smtplib.SMTP(
            "127.0.0.1", self.port("mx"), local_hostname="friend.example.org", timeout=PATIENCE
        ) as out:
            return _transaction(out, FRIEND, to, _message(f"Alice <{FRIEND}>", to, subject))

    def _send_out(self, to: str) -> tuple[int, str]:
        context = ssl.create_default_context(cafile=self.engine.settings.tls.certificate)
        context.check_hostname = False  # the certificate names the host, and we dial its address
        with smtplib.SMTP(
            "127.0.0.1", self.port("submission"), local_hostname="laptop", timeout=PATIENCE
        ) as out:
            out.starttls(context=context)
            out.login(f"richard@{DOMAIN}", PASSWORD)
            message = _message(f"Richard <richard@{DOMAIN}>", to, "Sent as the domain")
            return _transaction(out, f"richard@{DOMAIN}", to, message)

    async def look(self) -> None:
        """What arrived, what it is signed with, and what the log says."""
        expected = sum(one["code"] == 250 for one in self.sent)
        await self.catcher.wait_for(expected, seconds=PATIENCE)
        self.show.title("What arrived at inbox.example.net")
        for caught in sorted(self.catcher.caught, key=lambda c: c.recipients):
            self.received.append(await asyncio.to_thread(self._examine, caught))
        rows: list[tuple[object, ...]] = [
            (*r["to"], r["reverse_path"], *r["rsa"], *r["ed25519"]) for r in self.received
        ]
        self.show.table(("for", "return address", "signed: RSA", "Ed25519"), rows)
        self.check(len(self.received) == expected == 4, f"{len(self.received)} of 4 messages, each once")
        signed = all(len(r["rsa"]) == len(r["ed25519"]) == 1 for r in self.received)
        self.check(signed, "two valid DKIM signatures on each; dkimpy verified the RSA ones")
        forwarded = [r for r in self.received if r["reverse_path"].startswith("SRS0=")]
        self.check(len(forwarded) == 3, "what was forwarded returns to us (SRS), so that SPF stays intact")

        self.show.title(f"GET /v3/domains/{DOMAIN}/logs")
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            self.logs = (await self._call("GET", f"/v3/domains/{DOMAIN}/logs")).get("logs", [])
            last = sorted(entry["events"][-1]["status"] for entry in self.logs if entry["events"])
            if last == ["DELIVERED"] * 4 + ["REFUSED"]:
                break
            await asyncio.sleep(0.05)
        self.show.log(self.logs)
        self.check(last == ["DELIVERED"] * 4 + ["REFUSED"], "four delivered, one refused, every step logged")

    def _examine(self, caught: Caught) -> dict[str, Any]:
        """Who signed it: RSA as another implementation sees it, Ed25519 (dkimpy leaves it to PyNaCl) as ours."""

        def answer(name: bytes, timeout: float = 5) -> bytes | None:
            texts = self.zone.texts(name.decode())
            return texts[0].encode() if texts else None

        canonical = Canonical(caught.content)
        names = needed_keys(canonical)
        answers = {name: [text.encode() for text in self.zone.texts(name)] for name in names}
        ours = verify(canonical, answers, now=utc_now())
        message = dkim.DKIM(caught.content, minkey=1024)
        rsa: list[str] = []
        for index in range(len(ours)):
            with contextlib.suppress(dkim.DKIMException):
                if message.verify(index, dnsfunc=answer):
                    rsa.append(message.domain.decode())
        return {
            "to": list(caught.recipients),
            "reverse_path": caught.reverse_path,
            "spf_domain": caught.reverse_path.rpartition("@")[2],
            "rsa": rsa,
            "ed25519": [
                seen.domain for seen in ours if seen.result == "pass" and seen.algorithm.startswith("ed25519")
            ],
            "bytes": len(caught.content),
        }

    def end(self, seconds: float) -> int:
        """The last word; the exit status."""
        fine = not self.wrong
        said = (
            f"[bold]All of it worked, in {seconds:.1f} seconds.[/] Everything is stopped and removed again."
        )
        lines = [said if fine else "[bold]Not all of it worked:[/] " + "; ".join(self.wrong)]
        lines += [
            "",
            "Your own server, next:",
            "  cp config.example.toml config.toml    and set hostname",
            "  forwarder account create you@example.org",
            "  forwarder domain add example.com --account you@example.org",
            "  forwarder domain dns example.com      the DNS records to paste",
            "  forwarder alias add example.com '*' you@example.org",
            "  forwarder serve",
            "  forwarder logs --follow",
            "",
            "README.md walks through it; forwarder --help lists every command.",
        ]
        self.show.last_word(lines, fine=fine)
        value = {"ok": fine, "seconds": round(seconds, 2), "wrong": self.wrong}
        self.show.value(value | {"sent": self.sent, "received": self.received, "logs": self.logs})
        return 0 if fine else 1


def _message(sender: str, to: str, subject: str) -> EmailMessage:
    message = EmailMessage()
    message["From"] = sender
    message["To"] = to
    message["Subject"] = subject
    message["Date"] = utc_now()
    message["Message-ID"] = f"<{time.time_ns()}@{sender.rstrip('>').rpartition('@')[2]}>"
    message.set_content("Hello,\n\nthis went through the engine.\n")
    return message


def _transaction(out: smtplib.SMTP, sender: str, to: str, message: EmailMessage) -> tuple[int, str]:
    """MAIL, RCPT and DATA; the last reply."""
    out.ehlo_or_helo_if_needed()
    code, text = out.mail(sender)
    if code == 250:
        code, text = out.rcpt(to)
    if code == 250:
        code, text = out.data(message.as_bytes(policy=message.policy.clone(linesep="\r\n")))
    return code, text.decode("ascii", "replace")
