"""What this process holds of the queue, in deliveries and in bytes.

Every delivery that is leased to us and known here is in the window, from its hand-over or claim until it is settled or
given back. Contents that came with fresh mail stay in memory while there is room for them, at most ``CONTENTS`` bytes
in all, and so do small ones of a claim; the others are read when their turn comes, the big ones of them within a
budget of ``LOADS`` bytes, of which no site can have all.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

from forwarder.outbound.budget import Budget
from forwarder.outbound.parcel import Parcel
from forwarder.store.records import Delivery

CONTENTS = 64 * 1024 * 1024
LOADS = 256 * 1024 * 1024
_SMALL = 256 * 1024


class Window:
    """The deliveries and contents in memory."""

    def __init__(
        self,
        read: Callable[[str], Awaitable[bytes | None]],
        read_many: Callable[[Sequence[str]], Awaitable[Mapping[str, bytes]]],
    ) -> None:
        self._read = read  # the content of a message from the store; None: it is gone
        self._read_many = read_many
        self._loads = Budget(LOADS)
        self._volume = 0
        self._parcels: dict[str, Parcel] = {}  # by the message, those of which a delivery is leased
        self.leases: dict[str, int] = {}  # the attempt of each delivery, by its id

    def parcel(self, message_id: str) -> Parcel | None:
        """The parcel of a message, if there is one: its jobs merge, so a message must not have two."""
        return self._parcels.get(message_id)

    def admit(self, parcel: Parcel, deliveries: Sequence[Delivery], content: bytes | None) -> None:
        """Take these deliveries of a parcel in."""
        for delivery in deliveries:
            self.leases[delivery.id] = delivery.attempts
        parcel.deliveries += len(deliveries)
        self._parcels[parcel.message_id] = parcel
        if content is not None:
            self._keep(parcel, content)

    async def load(self, parcels: Sequence[Parcel]) -> None:
        """Read the small contents of parcels just claimed together, as far as there is room for them."""
        wanted: dict[str, Parcel] = {}
        room = CONTENTS - self._volume
        for parcel in parcels:
            if parcel.content is None and parcel.size <= _SMALL and parcel.size <= room:
                room -= parcel.size
                wanted[parcel.message_id] = parcel
        if wanted:
            for message_id, content in (await self._read_many(list(wanted))).items():
                self._keep(wanted[message_id], content)

    def let_go(self, parcel: Parcel, deliveries: Sequence[Delivery]) -> None:
        """These are settled, given back or somebody else's."""
        for delivery in deliveries:
            if self.leases.get(delivery.id) == delivery.attempts:
                del self.leases[delivery.id]
        parcel.deliveries -= len(deliveries)
        if parcel.deliveries <= 0:
            self._parcels.pop(parcel.message_id, None)
            if parcel.content is not None:
                self._volume -= len(parcel.content)
                parcel.content = parcel.sealed = None

    def forget(self) -> None:
        """All leases are somebody else's: nothing is ours to send any more (``ours``)."""
        self.leases.clear()

    def ours(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        """Those that were not forgotten since they were admitted."""
        return [delivery for delivery in deliveries if self.leases.get(delivery.id) == delivery.attempts]

    @asynccontextmanager
    async def content(self, parcel: Parcel, site: str) -> AsyncIterator[bytes | None]:
        """The content of a parcel that is not in memory, for one attempt; None when the message has left the store."""
        if parcel.size <= _SMALL:
            content = await self.read(parcel)
            if content is not None and parcel.content is None and parcel.deliveries:
                self._keep(parcel, content)
            yield content
        else:
            async with self._loads.hold(parcel.size, site):
                yield await self.read(parcel)

    async def read(self, parcel: Parcel) -> bytes | None:
        """The content, from memory or from the store."""
        return parcel.content if parcel.content is not None else await self._read(parcel.message_id)

    def _keep(self, parcel: Parcel, content: bytes) -> None:
        if parcel.content is None and self._volume + len(content) <= CONTENTS:
            self._volume += len(content)
            parcel.content = content
