"""The DNS records a hosted domain needs, and whether what was found is right.

Pure: what the DNS answered is an argument. The names of ours:

    MX       <hostname>
    SPF      include:<hostname>, merged into what is there (RFC 7208 5.2); the host's SPF record lists its addresses.
             Of several machines: the name that they share for return addresses, whose record lists all of them
    DKIM     <selector>1._domainkey.<domain> and <selector>2._domainkey.<domain>: a CNAME each to
             <selector>N._domainkey.<domain>.<hostname>, or the TXT record itself where the host runs no zone
    DMARC    _dmarc.<domain>, any policy

Each hosted domain has keys of its own, therefore each has names of its own below the host name.

Limits: an SPF record is judged by its text; nested includes are followed by ``api.spf_way``. A name beyond 253 octets
cannot be a CNAME target; such a domain publishes TXT records.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from forwarder.mail.public_key import KeyRecordError, key_tags
from forwarder.mail.tags import without_white

DMARC = "v=DMARC1; p=none;"
_SPF_VERSION = re.compile(r"v=spf1(?: |$)", re.IGNORECASE)
DMARC_VERSION = re.compile(rb"[ \t]*v[ \t]*=[ \t]*DMARC1[ \t]*(?:;|\Z)")  # RFC 7489 6.4
_ALL = re.compile(r"[+?~-]?all", re.IGNORECASE)
_LONGEST_NAME = 253
_PROVIDERS = (  # the ending of a name server's name, and who runs it
    ("cloudflare.com", "cloudflare"),
    ("domaincontrol.com", "godaddy"),
    ("registrar-servers.com", "namecheap"),
    ("namecheaphosting.com", "namecheap"),
    ("googledomains.com", "google"),
    ("google.com", "google"),
    ("gandi.net", "gandi"),
    ("ovh.net", "ovh"),
    ("anycast.me", "ovh"),
    ("digitalocean.com", "digitalocean"),
    ("hetzner.com", "hetzner"),
    ("hetzner.de", "hetzner"),
    ("dnsimple.com", "dnsimple"),
    ("dnsimple-edge.net", "dnsimple"),
    ("linode.com", "linode"),
    ("vultr.com", "vultr"),
    ("nsone.net", "ns1"),
    ("ui-dns.com", "ionos"),
    ("wixdns.net", "wix"),
    ("squarespacedns.com", "squarespace"),
    ("wordpress.com", "wordpress"),
    ("vercel-dns.com", "vercel"),
    ("dreamhost.com", "dreamhost"),
    ("bluehost.com", "bluehost"),
    ("hostgator.com", "hostgator"),
    ("name.com", "name.com"),
    ("porkbun.com", "porkbun"),
    ("hover.com", "hover"),
    ("infomaniak.ch", "infomaniak"),
    ("desec.io", "desec"),
    ("desec.org", "desec"),
    ("he.net", "hurricane electric"),
    ("njal.la", "njalla"),
    ("transip.net", "transip"),
    ("strato.de", "strato"),
)
_AWS = re.compile(r"(?:^|\.)awsdns-\d+\.(?:com|net|org|co\.uk)$")
_AZURE = re.compile(r"(?:^|\.)azure-dns\.(?:com|net|org|info)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class DnsRecord:
    """One record to paste; names and targets without the final dot."""

    purpose: str  # mx, spf, dmarc; of a hosted domain dkim1 and dkim2, of the server itself dkim and address
    kind: str  # MX, TXT, CNAME, A, AAAA
    name: str
    value: str
    priority: int | None = None  # MX only


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRecord:
    """One DKIM key's public side."""

    selector: str
    public_record: str  # v=DKIM1; k=…; p=…


def dkim_name(domain: str, selector: str) -> str:
    """Where verifiers look for the key."""
    return f"{selector}._domainkey.{domain}"


def dkim_target(domain: str, selector: str, hostname: str) -> str | None:
    """The name of ours that the CNAME points at; None when it would be too long for the DNS."""
    name = f"{dkim_name(domain, selector)}.{hostname}"
    return name if len(name) <= _LONGEST_NAME else None


def records_to_publish(
    domain: str, hostname: str, keys: Sequence[KeyRecord], *, as_txt: bool, spf_of: str = ""
) -> tuple[DnsRecord, ...]:
    """What the owner of ``domain`` pastes: DKIM as CNAMEs, or as TXT records with ``as_txt``.

    ``spf_of``: the name whose SPF record lists our addresses, where that is not ``hostname``.
    """
    records = [
        DnsRecord(purpose="mx", kind="MX", name=domain, value=hostname, priority=10),
        DnsRecord(purpose="spf", kind="TXT", name=domain, value=merge_spf(None, spf_of or hostname)),
    ]
    records += keys_to_publish(domain, hostname, keys, as_txt=as_txt)
    records.append(DnsRecord(purpose="dmarc", kind="TXT", name=f"_dmarc.{domain}", value=DMARC))
    return tuple(records)


def keys_to_publish(
    domain: str, hostname: str, keys: Sequence[KeyRecord], *, as_txt: bool
) -> tuple[DnsRecord, ...]:
    """Of what ``records_to_publish`` says, the keys."""
    records = []
    for number, key in enumerate(keys, start=1):
        name, target = dkim_name(domain, key.selector), dkim_target(domain, key.selector, hostname)
        kind, value = ("TXT", key.public_record) if as_txt or target is None else ("CNAME", target)
        records.append(DnsRecord(purpose=f"dkim{number}", kind=kind, name=name, value=value))
    return tuple(records)


def zone_of_keys(domain: str, hostname: str, keys: Sequence[KeyRecord]) -> tuple[DnsRecord, ...]:
    """What we publish ourselves, in the zone of ``hostname``, for the CNAMEs of ``domain`` to lead to."""
    named = ((key, dkim_target(domain, key.selector, hostname)) for key in keys)
    return tuple(
        DnsRecord(purpose=f"dkim{number}", kind="TXT", name=name, value=key.public_record)
        for number, (key, name) in enumerate(named, start=1)
        if name is not None
    )


def first_mail_hosts(found: Iterable[tuple[int, str]]) -> frozenset[str]:
    """The hosts that mail goes to first: the most preferred of (preference, host)."""
    hosts = [(preference, host.rstrip(".").lower()) for preference, host in found]
    best = min(preference for preference, _ in hosts) if hosts else 0
    return frozenset(host for preference, host in hosts if preference == best)


def spf_records(texts: Iterable[str]) -> list[str]:
    """The SPF records among the TXT records of a domain; more than one is an error (RFC 7208 4.5)."""
    return [text for text in texts if _SPF_VERSION.match(text)]


def merge_spf(found: str | None, hostname: str) -> str:
    """``found`` with our include in it, everything else kept; a fresh record when there is none that can be used.

    One with what does not print is none (RFC 7208 12), and would be obeyed by the terminal on which it is shown.
    """
    ours = f"include:{hostname}"
    if found is None or not found.isprintable():
        return f"v=spf1 {ours} ~all"
    if spf_includes(found, hostname):
        return found
    terms = found.split()
    # RFC 7208 4.6.2: the first mechanism that matches decides, so ours does not stand behind itself without a pass.
    there = next((index for index, term in enumerate(terms) if _unqualified(term) == ours.lower()), None)
    if there is not None and not any(map(_ALL.fullmatch, terms[:there])):
        return " ".join([*terms[:there], ours, *terms[there + 1 :]])
    # RFC 7208 5.1: what follows "all" is never looked at; 6.1: a redirect is, only when there is no "all".
    at = next(
        (
            index
            for index, term in enumerate(terms)
            if _ALL.fullmatch(term) or term.lower().startswith("redirect=")
        ),
        len(terms),
    )
    return " ".join([*terms[:at], ours, *terms[at:]])


def spf_with_ours_first(found: str, hostname: str) -> str:
    """``found`` with our include before all else: the look-ups of what follows are none of ours."""
    ours = f"include:{hostname}"
    version, *terms = found.split()
    return " ".join([version, ours, *(term for term in terms if _unqualified(term) != ours.lower())])


def spf_includes(record: str, hostname: str) -> bool:
    """Whether our include is there, with a pass, before any ``all``."""
    wanted = f"include:{hostname.lower()}"
    for term in record.lower().split()[1:]:
        if _unqualified(term) == wanted:
            return term[0] in "+i"
        if _ALL.fullmatch(term):
            return False
    return False


def _unqualified(term: str) -> str:
    return (term[1:] if term[:1] in "+-~?" else term).rstrip(".").lower()


def dmarc_records(texts: Iterable[str]) -> list[str]:
    """The DMARC records among TXT records (RFC 7489 6.6.3)."""
    return [text for text in texts if DMARC_VERSION.match(text.encode())]


def key_fault(texts: Sequence[str], public_record: str) -> str:
    """Why receivers may not find our public key in the TXT records of a name, as the end of a sentence; "": they do."""
    if not texts:
        return "no key stands"
    if len(texts) > 1:  # RFC 6376 3.6.2.2: which of them a receiver takes is open
        return f"{len(texts)} TXT records stand"
    try:
        published, ours = key_tags(texts[0].encode()), key_tags(public_record.encode())
    except KeyRecordError as error:
        return f"a record that receivers do not take ({error}) stands"
    same = without_white(published["p"]) == ours["p"]
    same = same and published.get("k", "rsa").lower() == ours.get("k", "rsa")
    return "" if same else "another key stands"


def provider(name_servers: Iterable[str]) -> str | None:
    """Who runs the zone, from the names of its servers; None when we do not know them."""
    for server in sorted(name.rstrip(".").lower() for name in name_servers):
        if _AWS.search(server):
            return "aws"
        if _AZURE.search(server):
            return "azure"
        for ending, who in _PROVIDERS:
            if server == ending or server.endswith("." + ending):
                return who
    return None
