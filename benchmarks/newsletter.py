"""Mail as it mostly comes: a newsletter of 35 KiB, signed twice, passed on once under an ARC seal, from a domain whose
SPF record includes those of three services. ``smtp-source`` makes up mail that nobody signed.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.load import Workload
from forwarder.mail.arc import seal_arc
from forwarder.mail.canonical import Canonical
from forwarder.mail.seal import Signer, generate, load_key, public_record, sign

SENDER = "news@corp.test"
_HEAD = """\
Received: from mail-sor-f41.relay.test (mail-sor-f41.relay.test. [203.0.113.41])
 by mx.relay.test with SMTPS id af79cd13be357-85ff3c6a;
 Sun, 29 Nov 2026 00:11:22 -0800 (PST)
Received: by 2002:a05:6214:1c0f with SMTP id a15csp123456; Sun, 29 Nov 2026 00:11:21 -0800 (PST)
From: =?utf-8?Q?Caf=C3=A9_News?= <news@corp.test>
To: "Somebody" <alias7@fwd.test>
Cc: Other Person <other@elsewhere.test>
Reply-To: Support <support@corp.test>
Subject: =?utf-8?B?WW91ciB3ZWVrbHkgZGlnZXN0IOKAkyBuZXdz?= for November
Date: Sun, 29 Nov 2026 08:11:20 +0000
Message-ID: <CAF7xyz123456789abcdef@mail.corp.test>
In-Reply-To: <20261128.abcdef@mail.elsewhere.test>
References: <20261127.1@mail.elsewhere.test>
 <20261128.abcdef@mail.elsewhere.test>
MIME-Version: 1.0
Content-Type: multipart/alternative; boundary="b1"
List-Id: Weekly <weekly.corp.test>
List-Unsubscribe: <https://corp.test/u/123456>, <mailto:unsubscribe@corp.test>
List-Unsubscribe-Post: List-Unsubscribe=One-Click
Feedback-ID: 1:2:3:corp
X-Mailer: Mailer 3.2
X-Campaign: 2026-11
Precedence: bulk

"""
_LINE = '<p style=3D"margin:0">lorem ipsum dolor sit amet, consectetur elit</p>=\n'
_PART = "--b1\nContent-Type: text/{}; charset=utf-8\nContent-Transfer-Encoding: quoted-printable\n\n{}\n"


@dataclass(frozen=True, slots=True)
class Newsletter:
    """The message, and the TXT records that it is judged by."""

    content: bytes
    records: dict[str, str]

    def workload(self, file: Path, messages: int) -> Workload:
        """So many of it, from ``file``, with a connection a message."""
        file.write_bytes(self.content.replace(b"\r\n", b"\n"))  # as smtp-source reads it
        return Workload(
            name="a newsletter, a connection a message",
            messages=messages,
            size=len(self.content),
            sender=SENDER,
            content=file,
        )


def newsletter() -> Newsletter:
    """One whose signatures, seal, SPF and DMARC all pass from a client on this machine."""
    author, service = _signer("s1", "corp.test"), _signer("pic", "mailer.test")
    relay = _signer("arc", "relay.test")
    body = _PART.format("plain", _LINE * 90) + _PART.format("html", _LINE * 350) + "--b1--\n"
    content = (_HEAD + body).replace("\n", "\r\n").encode()
    now = datetime.now(UTC)
    content = sign(Canonical(content), [author, service], now=now) + content
    results = (
        "dkim=pass header.d=corp.test; spf=pass smtp.mailfrom=corp.test; dmarc=pass header.from=corp.test"
    )
    message = Canonical(content)
    sealed = seal_arc(
        message, signer=relay, authserv_id="mx.relay.test", results=results, chain=None, now=now
    )
    return Newsletter(sealed + content, dict(_records((author, service, relay))))


def _signer(selector: str, domain: str) -> Signer:
    return Signer(domain=domain, selector=selector, key=load_key(generate("rsa").pem))


def _records(signers: Iterable[Signer]) -> Iterable[tuple[str, str]]:
    for signer in signers:
        yield f"{signer.selector}._domainkey.{signer.domain}", public_record(signer.key)
    yield "_dmarc.corp.test", "v=DMARC1; p=quarantine; rua=mailto:dmarc@corp.test"
    services = (
        "office.test",
        "mailer.test",
        "shop.test",
    )  # with what these include, nine: ten may be asked for
    yield "corp.test", _spf(*(f"include:{name}" for name in services), "ip4:127.0.0.0/8")
    for service in services:
        parts = [f"_{part}.{service}" for part in "ab"]
        yield service, _spf(*(f"include:{part}" for part in parts))
        for part in parts:
            yield part, _spf(*(f"ip4:198.51.{third}.0/24" for third in range(100, 108)))


def _spf(*terms: str) -> str:
    return " ".join(("v=spf1", *terms, "~all"))
