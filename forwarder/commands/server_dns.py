"""The DNS of this server's own names: the records they need, and what a look at the DNS finds of them.

All mail that is forwarded leaves under these names, whatever is hosted here. Nothing raises for what the DNS answers.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from forwarder.commands.finding import Finding

if TYPE_CHECKING:
    from forwarder.config import Settings
    from forwarder.mail.records import DnsRecord
    from forwarder.mail.seal import Signer
    from forwarder.net.dns import Resolver


def server_records(settings: "Settings", service: "Sequence[Signer]") -> "list[DnsRecord]":
    """What the server's own names need: addresses, SPF of the reverse-path, the DKIM keys of the service. Pure."""
    from forwarder.mail.records import DMARC, DnsRecord, dkim_name
    from forwarder.mail.seal import public_record

    records: list[DnsRecord] = []
    for address in _public_addresses(settings):
        kind = "AAAA" if ":" in address else "A"
        records.append(DnsRecord(purpose="address", kind=kind, name=settings.hostname, value=address))
    if not records:
        records.append(
            DnsRecord(
                purpose="address", kind="A", name=settings.hostname, value="(this server's public address)"
            )
        )
    spf = "v=spf1 a -all"
    records.append(DnsRecord(purpose="spf", kind="TXT", name=settings.hostname, value=spf))
    if settings.srs.domain != settings.hostname:
        value = f"v=spf1 include:{settings.hostname} -all"
        records.append(DnsRecord(purpose="spf", kind="TXT", name=settings.srs.domain, value=value))
        records.append(
            DnsRecord(purpose="mx", kind="MX", name=settings.srs.domain, value=settings.hostname, priority=10)
        )
    for signer in service:
        name, value = dkim_name(signer.domain, signer.selector), public_record(signer.key)
        records.append(DnsRecord(purpose="dkim", kind="TXT", name=name, value=value))
    records.append(DnsRecord(purpose="dmarc", kind="TXT", name=f"_dmarc.{settings.dkim.domain}", value=DMARC))
    return records


def _public_addresses(settings: "Settings") -> list[str]:
    """The addresses that the MX listens on, where the configuration names them."""
    from forwarder.net.addresses import is_private

    named = {at.host for at in settings.mx.listen}
    return sorted(host for host in named if not is_private(host))


async def check_names(settings: "Settings", resolver: "Resolver") -> list[Finding]:
    """The host name leads to addresses, and each address leads back."""
    from forwarder.net.answers import CannotTell, Found, NotFound

    match await resolver.addresses(settings.hostname):
        case CannotTell(reason=reason, server=server):
            what = f"{server}: {reason}" if server else reason
            text = f"the DNS cannot tell its addresses ({what}); check [dns] nameservers and the network"
            return [Finding.wrong(settings.hostname, text)]
        case NotFound():
            text = "has no address in the DNS; add an A record (and AAAA) with this server's public address"
            return [Finding.wrong(settings.hostname, text)]
        case Found(records=addresses):
            pass
    found = [Finding.fine(settings.hostname, f"leads to {', '.join(addresses)}")]
    for address in addresses:
        back = await resolver.ptr(address)
        names = back.records if isinstance(back, Found) else ()
        if settings.hostname in names:
            found.append(Finding.fine(address, f"leads back to {settings.hostname}"))
        else:
            text = f"does not lead back to {settings.hostname}; set its PTR record where you rent the address"
            found.append(Finding.advice(address, text))
    return found


async def check_records(settings: "Settings", resolver: "Resolver") -> list[Finding]:
    """SPF and DKIM of the server's own names.

    The SPF of every hosted domain includes the server's: without it theirs cannot be evaluated (RFC 7208 5.2).
    """
    from forwarder.keyring import KeyringError, open_keyring
    from forwarder.mail.records import key_fault, spf_records
    from forwarder.net.answers import CannotTell, texts_of

    try:
        service = open_keyring(settings).service
    except KeyringError:
        return []  # that they cannot be read is said of the keys
    wanted = [record for record in server_records(settings, service) if record.purpose in ("spf", "dkim")]
    found, senders = [], await _senders(settings, resolver)
    for record in wanted:
        answer = await resolver.txt(record.name)
        texts = texts_of(answer)
        if record.purpose == "spf":
            what, right = "SPF", len(spf_records(texts)) == 1
        else:
            what, right = "DKIM", not key_fault(texts, record.value)
        about = f"{record.name} {what}"
        if right and record.purpose == "spf" and (shut := await _shut_out(resolver, record.name, senders)):
            text = f"does not let {', '.join(shut)} send, so that forwarded mail fails SPF; let it, as"
            found.append(Finding.advice(about, f"{text} {record.value} does"))
        elif right:
            found.append(Finding.fine(about, "is right"))
        elif isinstance(answer, CannotTell):
            found.append(Finding.advice(about, "could not be asked now"))
        else:
            said = f"forwarded mail needs it: add a TXT record, one only, {record.name}: {record.value}"
            found.append(Finding.advice(about, said))
    return found


async def _senders(settings: "Settings", resolver: "Resolver") -> list[str]:
    """The addresses that mail leaves from, as others see them: those of the host name, unless one is configured."""
    from forwarder.net.addresses import is_private
    from forwarder.net.answers import Found

    answer = await resolver.addresses(settings.hostname)
    senders = list(answer.records) if isinstance(answer, Found) else []
    for bound, colon in ((settings.outbound.bind_ipv4, False), (settings.outbound.bind_ipv6, True)):
        if bound and not is_private(bound):  # who sends from a private one is seen under another
            senders = [address for address in senders if (":" in address) is not colon] + [bound]
    return senders


async def _shut_out(resolver: "Resolver", domain: str, senders: Sequence[str]) -> list[str]:
    """Those of the addresses for which the SPF record of ``domain`` says anything but pass."""
    from forwarder.inbound.spf import Sender, SpfCheck
    from forwarder.mail.address import Path
    from forwarder.mail.verification import AuthResult

    path, no_harm = Path(local="postmaster", domain=domain), (AuthResult.PASS, AuthResult.TEMPERROR)
    shut = []
    for address in senders:
        found = await SpfCheck(resolver, Sender(address, domain, path, receiver=domain)).asked()
        if found.result not in no_harm:
            shut.append(address)
    return shut
