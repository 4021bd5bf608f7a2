"""The units of the configuration: endpoints, sizes, durations, host names, lists, the database's URL.

Each parser takes what TOML or the environment gives (or the finished value) and answers the finished
value; a ``ValueError`` says what to write instead. Nothing is guessed: a duration without a unit is
refused.
"""

import ipaddress
import json
import re
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import AfterValidator, BeforeValidator, Field

from forwarder.mail.address import AddressError, parse_address, parse_domain

KIB = 1024
MIB = 1024 * KIB
LEAST_MESSAGE = 1000  # octets: whoever writes less has forgotten the unit, and would refuse all mail for good
LEAST_BODY = 100  # octets: likewise of requests
MOST = 10**15  # of anything that is counted: databases take no number beyond 64 bits
LEAST_LEASE = timedelta(seconds=1)  # a sign of life takes a commit; whose lease ends before it takes no mail


class HostPort(NamedTuple):
    """Where to listen or whom to call; port 0 asks the system for a free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


_HOST_PORT = re.compile(r"(?:\[([0-9A-Fa-f:.%]+)\]|([^\[\]:/\s]*)):([0-9]{1,5})")
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([KMG]i?B|kB|B)", re.IGNORECASE)
_SIZE_UNITS = {"b": 1, "kb": 1000, "mb": 1000**2, "gb": 1000**3, "kib": KIB, "mib": MIB, "gib": 1024 * MIB}
_DURATION = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?(?:ms|s|m|h|d|w))+")
_DURATION_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d|w)")
_HOST = r"(?:\[[0-9A-Fa-f:.%]+\]|[^\[\]:/?#@,\s]*)(?::[0-9]{1,5})?"
_POSTGRES = re.compile(rf"postgresql://(?:[^/?#@\[\]]*@)?{_HOST}(?:,{_HOST})*(?:/[^@?#]*)?(?:\?.*)?")
_PUBLIC_URL = re.compile(r"https?://(?:\[[0-9A-Fa-f:.]+\]|[^\[\]:/?#@\s]+)(?::[0-9]{1,5})?(?:/[^?#\s]*)?")
_LONGEST = 36_500 * 86_400  # seconds
_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def _whole(value: object) -> object:
    """What pydantic may read as a whole number: a switch or a fraction, which it would read too, is none."""
    if isinstance(value, bool | float) or (isinstance(value, str) and "." in value):
        raise ValueError("write a whole number")
    return value


def _number(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("write a number, for example 0.1")
    return value


def parse_host_port(value: object, *, example: str = '"0.0.0.0:25" or "[::]:25"') -> HostPort:
    """``"host:port"`` or ``"[IPv6]:port"``; an empty host means all addresses."""
    if isinstance(value, HostPort):
        return value
    found = _HOST_PORT.fullmatch(value) if isinstance(value, str) else None
    if found is None or int(found[3]) > 65535:
        raise ValueError(f'write "host:port", for example {example}')
    return HostPort(found[1] or found[2] or "0.0.0.0", int(found[3]))  # noqa: S104 - an empty host asks for it


def parse_size(value: object) -> int:
    """A number of octets: ``"25 MiB"``, ``"500 kB"``, or a plain number."""
    size = -1
    if isinstance(value, int) and not isinstance(value, bool):
        size = value
    elif isinstance(value, str):
        if value.isascii() and value.isdigit() and len(value) < 400:
            size = int(value)
        elif found := _SIZE.fullmatch(value.strip()):
            with suppress(OverflowError):
                size = int(float(found[1]) * _SIZE_UNITS[found[2].lower()])
    if not 0 <= size <= MOST:
        raise ValueError('write a size with its unit, for example "25 MiB" or "500 kB"')
    return size


def parse_duration(value: object) -> timedelta:
    """``"90s"``, ``"5m"``, ``"1h30m"``, ``"5d"``; a bare number is refused, for nobody knows its unit."""
    if isinstance(value, timedelta):
        return value
    if isinstance(value, str) and _DURATION.fullmatch(text := value.replace(" ", "")):
        seconds = sum(float(n) * _SECONDS[unit] for n, unit in _DURATION_PART.findall(text))
        if seconds > _LONGEST:
            raise ValueError(
                'write at most "36500d": times are counted from now on, and a date has four digits'
            )
        return timedelta(seconds=seconds)
    raise ValueError('write a duration with its unit (ms, s, m, h, d, w), for example "5m" or "1h30m"')


def split_list(value: object) -> object:
    """Lists come from the environment as text: a JSON array, or parts separated by commas."""
    if isinstance(value, list | tuple):
        return value
    if not isinstance(value, str):
        raise ValueError("write a list, in brackets and with commas between its parts")
    text = value.strip()
    if text.startswith("["):  # perhaps "[::]:25", which is no JSON
        with suppress(ValueError):
            parsed = json.loads(text)
            return tuple(parsed) if isinstance(parsed, list) else parsed
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _name_server(value: object) -> HostPort:
    """Asked by its address: to look its name up somebody would have to be asked first."""
    with suppress(ValueError):
        server = parse_host_port(value)
        ipaddress.ip_address(server.host)
        if server.port:
            return server
    raise ValueError('write its address and port, for example "1.1.1.1:53" or "[::1]:53"')


def _local_address(version: int) -> Callable[[object], str]:
    def checked(value: object) -> str:
        with suppress(ValueError):
            if value == "" or (isinstance(value, str) and ipaddress.ip_address(value).version == version):
                return str(value)
        raise ValueError(f"write an IPv{version} address of this host, or nothing")

    return checked


def _host_port_or_none(value: object) -> HostPort | None:
    return None if value is None or value == "" else parse_host_port(value, example='"127.0.0.1:8080"')


def _relay_or_none(value: object) -> HostPort | None:
    """Whom to call: nobody has port 0, and without a host it would be this machine."""
    if value is None or value == "":
        return None
    example = '"relay.example.net:25"'
    relay = parse_host_port(value, example=example)
    if relay.port == 0 or str(value).startswith(":"):
        raise ValueError(f'write "host:port", for example {example}')
    return relay


def _hostname(value: object) -> str:
    """A name that may stand after the @: it is the domain of return addresses and of reports."""
    with suppress(AddressError):
        if isinstance(value, str) and value.isascii():
            return parse_domain(value.strip().rstrip("."))
    raise ValueError('write a host name in ASCII, for example "mx1.example.net"')


def _address_or_empty(value: object) -> str:
    with suppress(AddressError):
        if isinstance(value, str):
            return parse_address(value.strip()).wire() if value.strip() else ""
    raise ValueError('write an address, for example "admin@example.net"')


def _longer_than_nothing(value: timedelta) -> timedelta:
    if value <= timedelta(0):
        raise ValueError('write a duration longer than nothing, for example "5m"')
    return value


def _long_enough_to_renew(value: timedelta) -> timedelta:
    if value < LEAST_LEASE:
        raise ValueError('write at least "1s": it is renewed several times before it ends')
    return value


def _each_once(value: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(value)) < len(value):
        raise ValueError("write each once")
    return value


def _at_least_a_message(value: int) -> int:
    if value < LEAST_MESSAGE:
        raise ValueError(
            f'this is {value} octets, less than any message has; write it with its unit, as in "25 MiB"'
        )
    return value


def _at_least_a_request(value: int) -> int:
    if value < LEAST_BODY:
        raise ValueError(
            f'this is {value} octets, less than any request has; write it with its unit, as in "1 MiB"'
        )
    return value


def _folder(value: object) -> object:
    path = str(value) if isinstance(value, str | Path) else ""
    if not path.strip() or path.startswith("~") or "\0" in path:
        raise ValueError('write the path of a folder, for example "/var/lib/forwarder/data"; ~ is none')
    return value


def _hostname_or_empty(value: object) -> str:
    return "" if value == "" else _hostname(value)


def _public_url(value: object) -> str:
    """Paths are put behind it: nothing may come after its own.

    The base URL of clients ends in /v3. Here, links would lead nowhere with it: what is confirmed is not below /v3.
    """
    if isinstance(value, str) and (value == "" or _PUBLIC_URL.fullmatch(value)):
        if value.rstrip("/").endswith("/v3"):
            raise ValueError('leave /v3 out, as in "https://mail.example.net"; paths have it already')
        return value
    raise ValueError('write how people reach the API, for example "https://mail.example.net", or nothing')


def _proxy(value: object) -> str:
    with suppress(ValueError):
        if isinstance(value, str):
            return str(ipaddress.ip_network(value) if "/" in value else ipaddress.ip_address(value))
    raise ValueError('write the address or network of a proxy, for example "127.0.0.1" or "10.0.0.0/8"')


def _database_url(value: object) -> str:
    if isinstance(value, str):
        for found, wanted in (("postgres://", "postgresql://"), ("postgresql+asyncpg://", "postgresql://")):
            if value.startswith(found):
                value = wanted + value.removeprefix(found)
        if value.startswith("postgresql://") and not _POSTGRES.fullmatch(value):
            raise ValueError(
                'write "postgresql://user:password@host:port/database"; in user and password, characters such as '
                "/ ? # @ [ ] are percent-encoded: %2F for /"
            )
        if value.startswith("sqlite:") and "?" in value:
            raise ValueError("SQLite takes no options; leave out the ? and what follows")
        if value == "" or value.startswith("postgresql://") or re.match("sqlite:///(?!:memory:$).", value):
            return value
    raise ValueError('write "sqlite:///data/forwarder.db" or "postgresql://user:password@host/database"')


Size = Annotated[int, BeforeValidator(parse_size)]
MessageSize = Annotated[Size, AfterValidator(_at_least_a_message)]
BodySize = Annotated[Size, AfterValidator(_at_least_a_request)]
Duration = Annotated[timedelta, BeforeValidator(parse_duration)]
SomeTime = Annotated[Duration, AfterValidator(_longer_than_nothing)]
Lease = Annotated[SomeTime, AfterValidator(_long_enough_to_renew)]
EachOnce = AfterValidator(_each_once)
Endpoint = Annotated[HostPort, BeforeValidator(parse_host_port)]
OptionalEndpoint = Annotated[HostPort | None, BeforeValidator(_host_port_or_none)]
OptionalRelay = Annotated[HostPort | None, BeforeValidator(_relay_or_none)]
Endpoints = Annotated[tuple[Endpoint, ...], BeforeValidator(split_list)]
NameServer = Annotated[HostPort, BeforeValidator(_name_server)]
NameServers = Annotated[tuple[NameServer, ...], BeforeValidator(split_list)]
LocalIpv4 = Annotated[str, BeforeValidator(_local_address(4))]
LocalIpv6 = Annotated[str, BeforeValidator(_local_address(6))]
HostName = Annotated[str, BeforeValidator(_hostname)]
OptionalAddress = Annotated[str, BeforeValidator(_address_or_empty)]
OptionalHostName = Annotated[str, BeforeValidator(_hostname_or_empty)]
Whole = Annotated[int, BeforeValidator(_whole)]
Count = Annotated[Whole, Field(ge=0, le=MOST)]
Positive = Annotated[Whole, Field(ge=1, le=MOST)]
Share = Annotated[float, BeforeValidator(_number), Field(ge=0, lt=1)]
Folder = Annotated[Path, BeforeValidator(_folder)]
Proxies = Annotated[tuple[Annotated[str, BeforeValidator(_proxy)], ...], BeforeValidator(split_list)]
PublicUrl = Annotated[str, BeforeValidator(_public_url)]
DatabaseUrl = Annotated[str, BeforeValidator(_database_url)]
