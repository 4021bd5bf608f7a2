"""What the benchmarks send is what they say it is."""

import dkim
import spf

from benchmarks.newsletter import SENDER, newsletter


def test_the_newsletter_passes_whatever_can_be_checked_of_it() -> None:
    """By other implementations than ours; an SPF record of too many look-ups, say, would cost little to judge."""
    sent = newsletter()
    texts = {f"{name}.": record.encode() for name, record in sent.records.items()}

    def txt(name: bytes, timeout: int = 5) -> bytes | None:
        return texts.get(name.decode())

    message = dkim.DKIM(sent.content)
    assert [message.verify(idx=index, dnsfunc=txt) for index in (0, 1)] == [True, True]
    assert dkim.arc_verify(sent.content, dnsfunc=txt)[0] == dkim.CV_Pass

    class Query(spf.query):  # type: ignore[misc]
        def dns(self, name: str, kind: str, **_: object) -> list[list[bytes]]:
            return [[texts[f"{name}."]]] if kind == "TXT" and f"{name}." in texts else []

    query = Query(i="127.0.0.1", s=SENDER, h="mail.corp.test")
    assert query.check()[0] == "pass"
    assert query.lookups == 9
