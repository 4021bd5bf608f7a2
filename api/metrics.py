"""``/metrics``, for a Prometheus on this machine.

What the queue holds is asked of the store, so that every process answers the same:

    forwarder_deliveries{state="queued|leased|held"}    deliveries in the queue
    forwarder_oldest_due_seconds                        how long the one that is due longest has been waiting

What happened is counted by all engine processes of this machine, together, since it was started (``forwarder.tally``).
What is told of memory, processor and descriptors is that of the process which answers. While the store is away, the
queue is left out.
"""

import ipaddress
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from itertools import accumulate

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import Connection
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from forwarder.mail.event import DeliveryState
from forwarder.store import admin
from forwarder.store.claiming import next_due
from forwarder.store.engine import Database
from forwarder.store.trouble import StoreUnavailable
from forwarder.tally import FAMILIES, OTHER, REQUESTS, Durations, Tally

_OF_PROXIES = frozenset({"forwarded", "via", "x-forwarded-host", "x-forwarded-proto", "x-real-ip"})


async def measured(database: Database, clock: Callable[[], datetime], tally: Tally) -> Response:
    """All of it, as Prometheus reads it."""

    def read(conn: Connection) -> tuple[dict[DeliveryState, int], datetime | None]:
        return admin.counts(conn), next_due(conn)

    try:
        queue = _queue(*await database.read(read), clock())
    except StoreUnavailable:
        queue = b""
    return Response(generate_latest() + queue + _counted(tally), media_type=CONTENT_TYPE_LATEST)


def _queue(counts: dict[DeliveryState, int], oldest_due: datetime | None, now: datetime) -> bytes:
    registry = CollectorRegistry()
    deliveries = Gauge("forwarder_deliveries", "Deliveries in the queue.", ["state"], registry=registry)
    for state, count in counts.items():
        deliveries.labels(state.value).set(count)
    oldest = Gauge(
        "forwarder_oldest_due_seconds", "How long the delivery due longest waits.", registry=registry
    )
    oldest.set(0.0 if oldest_due is None else max(0.0, (now - oldest_due).total_seconds()))
    return generate_latest(registry)


def _counted(tally: Tally) -> bytes:
    registry = CollectorRegistry()
    registry.register(_Counted(tally))
    return generate_latest(registry)


class _Counted(Collector):
    def __init__(self, tally: Tally) -> None:
        self._tally = tally

    def collect(self) -> Iterator[Metric]:
        for family in FAMILIES:
            sums = list(self._tally.sums(family))
            if isinstance(family, Durations):
                *buckets, (_, microseconds) = sums
                passed = accumulate(number for _, number in buckets)
                upto = [(bound, float(number)) for ((bound,), _), number in zip(buckets, passed, strict=True)]
                yield HistogramMetricFamily(
                    family.name, family.what, buckets=upto, sum_value=microseconds / 1_000_000
                )
            else:
                names = [name for name, _ in family.labels]
                counter = CounterMetricFamily(family.name, family.what, labels=names)
                for case, number in sums:
                    counter.add_metric(case, number)
                yield counter


class CountedRequests:
    """What answers requests under /v3, by status; in front of the application."""

    def __init__(self, app: ASGIApp, tally: Tally) -> None:
        self._app = app
        self._counts = tally.counts(REQUESTS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._counts.get(str(message["status"]), self._counts[OTHER]).add()
            await send(message)

        await self._app(scope, receive, counted if scope.get("path", "").startswith("/v3") else send)


def is_local(request: Request, trusted_proxies: Sequence[str]) -> bool:
    """Whether the request was made on this machine, as far as its headers tell.

    A proxy on this machine has a loopback address itself. Where a trusted one sends X-Forwarded-For, the client's
    address has taken the place of the proxy's before this. From any other sender that header, and from everybody the
    other headers of proxies, only show that there is a proxy.
    """
    try:
        client = ipaddress.ip_address(request.client.host if request.client else "")
    except ValueError:
        return False
    if "x-forwarded-for" in request.headers:
        return client.is_loopback and any(client in ipaddress.ip_network(one) for one in trusted_proxies)
    return client.is_loopback and not _OF_PROXIES & set(request.headers)
