"""Which addresses belong to the public Internet, and which to one client.

Engine-wide rule: unless the operator allows it, nothing a stranger writes (an MX record, a webhook) makes us connect
to loopback, private, link-local (the metadata service of clouds among them), shared, multicast or reserved addresses,
also not when they come wrapped in an IPv6 address.

The list is the IANA special-purpose registries (RFC 6890, as of 2024), written out: what ``ipaddress.is_global`` says
differs between Python versions.
"""

import ipaddress
import socket
from functools import lru_cache

_NOT_PUBLIC_4 = [
    ipaddress.IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this host: 0.0.0.0 connects to loopback on Linux
        "10.0.0.0/8",
        "100.64.0.0/10",  # shared by carriers (RFC 6598)
        "127.0.0.0/8",
        "169.254.0.0/16",  # link-local; 169.254.169.254 is the metadata service of clouds
        "172.16.0.0/12",
        "192.0.0.0/24",  # IETF protocol assignments
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # 6to4 relays, deprecated
        "192.168.0.0/16",
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and broadcast
    )
]
_PUBLIC_6 = ipaddress.IPv6Network("2000::/3")  # the only unicast space given out
_NOT_PUBLIC_6 = [
    ipaddress.IPv6Network(network)
    for network in (
        "2001::/23",  # IETF protocol assignments; Teredo
        "2001:db8::/32",  # documentation
        "3fff::/20",
    )
]
# RFC 6052; 64:ff9b:1::/48 is for local use and falls outside 2000::/3
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")
_SIX_TO_FOUR = ipaddress.IPv6Network("2002::/16")


def is_private(address: str) -> bool:
    """Whether an address is anything but a public unicast address; what is no address at all is private too."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return True
    if isinstance(parsed, ipaddress.IPv6Address):
        inner = _inner(parsed)
        if inner is None:
            return parsed not in _PUBLIC_6 or any(parsed in network for network in _NOT_PUBLIC_6)
        parsed = inner
    return any(parsed in network for network in _NOT_PUBLIC_4)


def client_of(address: str) -> str:
    """Who counts as one client: an IPv4 address, or an IPv6 network of 64 bits, which one customer gets (RFC 6177)."""
    if ":" not in address:
        return address
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.IPv6Network((int(parsed) >> 64 << 64, 64)))
    return address


@lru_cache(maxsize=4096)  # asked at each connection
def network_of(address: str) -> str:
    """In what one owner may have many clients: an IPv4 network of 24 bits, an IPv6 network of 48 (RFC 6177)."""
    client = client_of(address)
    try:
        if ":" in client:
            return str(ipaddress.IPv6Network(client).supernet(new_prefix=48))
        return str(ipaddress.IPv4Network(f"{client}/24", strict=False))
    except ValueError:
        return client


def written_address(host: str) -> str | None:
    """The address a host part denotes in its usual spelling; None when it is a name.

    ValueError for a spelling that the C library would take for an address (``127.1``, ``2130706433``, ``0x7f.1``,
    ``0177.0.0.1``): nobody who means well writes it.
    """
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        return str(ipaddress.ip_address(bare))
    except ValueError:
        name = bare.rstrip(".")
    try:
        socket.inet_aton(name)
    except (OSError, UnicodeError):
        last = name.rpartition(".")[2]
        # WHATWG URL: a host that ends in a number is IPv4.
        if last.isdigit() or last.lower().startswith("0x"):
            raise ValueError(f"{host} is neither a name nor an address") from None
        return None
    raise ValueError(f"{host} is an unusual spelling of an address")


def _inner(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that an IPv6 address leads to."""
    if address in _MAPPED or address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    if address in _SIX_TO_FOUR:
        return ipaddress.IPv4Address((int(address) >> 80) & 0xFFFF_FFFF)
    return None
