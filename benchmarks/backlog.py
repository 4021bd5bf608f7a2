"""A backlog drained while fresh mail comes in, and a dead destination beside living ones.

*Backlog*: deliveries that are all due wait in the store when the engine starts. How long until it serves, how fast
they go, how much memory that takes, and how long fresh mail takes meanwhile.
*Slow destination*: thousands of messages for a host that accepts connections and then says nothing, and ten messages
a second for a healthy one, which must not notice.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from benchmarks import fill, latency, load, machine, report
from benchmarks.bench import Bench
from benchmarks.engine import Engine
from benchmarks.load import INBOUND_PORT, Workload
from benchmarks.pulse import felt
from benchmarks.sink import SINK_PORT, SmtpSink, smtp_sink
from tests.peers.dns_server import DnsServer

BACKLOG = 100_000
SLOW = 5000
SECOND_HOST = "127.0.0.2"
_FRESH_RATE = 10
_PATIENCE = 600.0  # seconds


async def drained(bench: Bench) -> list[report.Section]:
    """The backlog."""
    count = bench.times(BACKLOG, least=2000)
    async with _hosts() as dns:
        engine = _engine(bench, "backlog", dns)
        engine.start()
        engine.stop()
        bench.tell(f"filling the queue with {count} due deliveries")
        fill.backlog(fill.database_of(engine.root), count=count, size=4096, destination_domain="bulk.test")
        async with smtp_sink(SECOND_HOST) as sink:
            bench.tell("draining")
            began = time.monotonic()
            ready = await asyncio.to_thread(engine.start, fresh=False)
            try:
                row = await _drain(bench, engine, sink, count=count, ready=ready, began=began)
            finally:
                await asyncio.to_thread(engine.stop)
    return [
        report.Section(
            f"A backlog of {count:,} due deliveries",
            f"4 KiB each, all to one site, and {_FRESH_RATE} fresh messages a second to another meanwhile.",
            ("what", "measured"),
            row,
        )
    ]


async def _drain(
    bench: Bench, engine: Engine, sink: SmtpSink, *, count: int, ready: float, began: float
) -> list[tuple[str, ...]]:
    peaks: list[int] = []
    watcher = asyncio.create_task(load.watch_peak(engine, peaks))
    cpu = machine.cpu_seconds(engine.roots())
    async with felt(engine.port) as pulse:
        timings = await latency.measure_until(
            engine,
            rate=_FRESH_RATE,
            ended=lambda: sink.taken >= count or time.monotonic() > began + _PATIENCE,
        )
    elapsed = time.monotonic() - began
    spent = machine.cpu_seconds(engine.roots()) - cpu
    watcher.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watcher
    return [
        ("start to serving", f"{ready:.2f} s"),
        (
            "drained, from the start of the engine",
            f"{sink.taken / elapsed:.0f} messages/s"
            + ("" if sink.taken == count else " (NOT ALL, OR DOUBLED)"),
        ),
        ("CPU ms/message", f"{spent / count * 1000:.2f}"),
        ("peak memory, all processes", f"{max(peaks, default=0) / 2**20:.0f} MiB"),
        ("fresh mail, end to end: p50 / p95 / p99 ms", latency.three(timings.end_to_end)),
        ("fresh mail lost or refused", str(timings.sent - len(timings.end_to_end))),
        ("loop lag: p50 / p99 / longest ms", pulse.text()),
    ]


async def beside_a_dead_host(bench: Bench) -> list[report.Section]:
    """The slow destination."""
    count = bench.times(SLOW, least=500)
    messages = bench.times(200, least=100)
    async with _hosts() as dns, _silent_host():
        engine = _engine(bench, "slow", dns)
        await asyncio.to_thread(engine.start)
        try:
            engine.add_aliases("fwd.test", [("slow", "nobody@bulk.test")])
            bench.tell("healthy host alone")
            alone = await latency.measure(engine, rate=_FRESH_RATE, messages=messages)
            bench.tell(f"{count} messages to a host that says nothing")
            flood = Workload(name="slow", messages=count, size=4096, recipient="slow@fwd.test")
            source = await asyncio.create_subprocess_exec(
                *flood.sources(engine.port)[0], env=machine.environment()
            )
            meanwhile = await latency.measure(engine, rate=_FRESH_RATE, messages=messages)
            await source.wait()
            bench.tell("and after all of them are queued")
            after = await latency.measure(engine, rate=_FRESH_RATE, messages=messages)
        finally:
            await asyncio.to_thread(engine.stop)
    rows = [
        (name, latency.three(timings.accept), latency.three(timings.end_to_end), str(timings.missing))
        for name, timings in (
            ("the healthy host alone", alone),
            ("while the others arrive", meanwhile),
            ("with all of them queued", after),
        )
    ]
    return [
        report.Section(
            "A dead destination beside a healthy one",
            f"{count:,} messages to a host that accepts and stays silent; {_FRESH_RATE} messages a second to a "
            "healthy host. Milliseconds: p50 / p95 / p99.",
            ("healthy mail", "accepted", "arrived at the sink", "lost or refused"),
            rows,
        )
    ]


@asynccontextmanager
async def _hosts() -> AsyncIterator[DnsServer]:
    """dest.test is served by 127.0.0.1, bulk.test by SECOND_HOST, on the port of the sinks."""
    async with DnsServer(ttl=3600) as dns:
        dns.mail_host("dest.test", "127.0.0.1")
        dns.mail_host("bulk.test", SECOND_HOST)
        yield dns


@asynccontextmanager
async def _silent_host() -> AsyncIterator[None]:
    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.read()
        finally:
            writer.close()

    server = await asyncio.start_server(say_nothing, SECOND_HOST, SINK_PORT)
    try:
        yield
    finally:
        server.close()


def _engine(bench: Bench, name: str, dns: DnsServer) -> Engine:
    return Engine(
        bench.root / name,
        port=INBOUND_PORT + 20,
        settings={
            "OUTBOUND__SMARTHOST": "",
            "OUTBOUND__PORT": str(SINK_PORT),
            "DNS__NAMESERVERS": f'["{dns.address}"]',
        },
    )
