"""Where mail for a domain goes: MX hosts in the order to try them."""

import random
from dataclasses import dataclass

from forwarder.config import Settings
from forwarder.mail.reply import Reply
from forwarder.net.dns import Resolver


@dataclass(frozen=True, slots=True, kw_only=True)
class MxHost:
    """One host to try, with its addresses in the order to try them."""

    name: str
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Hosts in order; ``site`` is the key under which connections and concurrency are shared."""

    site: str
    hosts: tuple[MxHost, ...]
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """No way to go; ``reply`` is our wording, temporary or permanent."""

    reply: Reply
    permanent: bool


class Router:
    """Routes by domain."""

    def __init__(self, resolver: Resolver, settings: Settings, *, chance: random.Random | None = None) -> None:
        raise RuntimeError("being written")

    async def route(self, domain: str) -> Route | Failure:
        """Never raises for what the DNS says."""
        raise RuntimeError("being written")
