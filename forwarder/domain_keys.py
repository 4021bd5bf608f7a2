"""What outbound asks the directory for: the signing keys of a domain and the key that signs its webhook.

A domain's rows are asked again after five seconds; its private keys are opened and loaded only when they are new
(loading an RSA key costs some 30 ms, in a thread). Messages that ask at the same moment share one answer. A domain
without keys has no signers: its mail is signed by the service. A key that does not open is left out and said once; the
store's trouble passes to the caller.

Limits: the keys of 10,000 domains are kept; past that the longest unused goes.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from time import monotonic

import structlog
from sqlalchemy import Connection

from forwarder.errands import Errands
from forwarder.mail.seal import Signer, UnusableKeyError
from forwarder.store import dkim_keys, domains
from forwarder.store.dkim_keys import DkimKey
from forwarder.store.engine import Database
from forwarder.store.vault import Vault, WrongKey, signer

FRESH = 5.0  # seconds
SKEW = timedelta(minutes=5)  # between the clocks of nodes
KEPT = 10_000

log = structlog.get_logger("domain_keys")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Loaded:
    """The keys of one domain as last seen."""

    until: float
    added_at: datetime
    ids: tuple[int, ...]
    signers: tuple[Signer, ...]


class DomainKeys:
    """Looks keys up by domain, with a short memory."""

    def __init__(self, database: Database, vault: Vault) -> None:
        self._database = database
        self._vault = vault
        self._loaded: OrderedDict[str, _Loaded] = OrderedDict()
        self._looks = Errands("keys")

    async def signers(self, domain: str, accepted_at: datetime) -> Sequence[Signer]:
        """The domain's signers, RSA first, for a message of that time; empty when it has no usable key.

        Empty, too, where the domain was added after that time: its owner may be another one, who did not send it.
        """
        known = self._loaded.get(domain)
        if known is None or monotonic() >= known.until:
            known = await self._looks.run(domain, partial(self._look, domain, known))
        return known.signers if known.added_at <= accepted_at + SKEW else ()

    async def _look(self, domain: str, known: _Loaded | None) -> _Loaded:
        added_at, keys = await self._database.read(lambda conn: _keys_of(conn, domain))
        ids = tuple(key.id for key in keys)
        signers = known.signers if known is not None and known.ids == ids else await self._load(domain, keys)
        known = _Loaded(until=monotonic() + FRESH, added_at=added_at, ids=ids, signers=signers)
        self._loaded[domain] = known
        self._loaded.move_to_end(domain)
        while len(self._loaded) > KEPT:
            self._loaded.popitem(last=False)
        return known

    async def webhook_key(self, domain_id: int) -> str | None:
        """The key that signs what is POSTed to the domain's webhook; None when the domain is gone."""
        found = await self._database.read(lambda conn: domains.by_id(conn, domain_id))
        return None if found is None else found.webhook_key

    async def _load(self, domain: str, keys: Sequence[DkimKey]) -> tuple[Signer, ...]:
        loaded: list[Signer] = []
        for key in keys:
            try:
                loaded.append(await asyncio.to_thread(signer, self._vault, domain, key))
            except (WrongKey, UnusableKeyError) as error:
                log.error(
                    "a DKIM key cannot be used", domain=domain, selector=key.selector, reason=str(error)
                )
        return tuple(loaded)


def _keys_of(conn: Connection, name: str) -> tuple[datetime, Sequence[DkimKey]]:
    domain = domains.get(conn, name)
    if domain is None:
        return datetime.max.replace(tzinfo=UTC), ()
    return domain.added_at, dkim_keys.list_keys(conn, domain.id)
