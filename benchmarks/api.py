"""The API: what a page and a look-up cost when tables are small and when they are large, and requests a second.

Over real HTTP on kept connections, from this process. The logs are written straight into the store beforehand; with
``--whole`` there are ten million of them instead of one.
"""

import asyncio
import base64
import json
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from benchmarks import fill, report
from benchmarks.bench import Bench
from benchmarks.engine import DOMAIN, Engine
from benchmarks.load import INBOUND_PORT
from benchmarks.pulse import felt

_PLAN = "[plans.default]\naliases = 10000000\ndomains = 100000\n"
_CONNECTIONS = 8
Answer = dict[str, Any]


async def speed(bench: Bench) -> list[report.Section]:
    """Two engines, one with little and one with much in its store, asked in turn; then the second's rates."""
    large = int((10_000_000 if bench.whole else 1_000_000) * min(bench.scale, 1.0))
    small, times = 10_000, 60 * bench.rounds
    engines = {
        "few": Engine(bench.root / "api-few", port=INBOUND_PORT + 20, config=_PLAN),
        "many": Engine(bench.root / "api-many", port=INBOUND_PORT + 30, config=_PLAN),
    }
    try:
        for label, count in (("few", small), ("many", large)):
            _fill(bench, engines[label], label, logs=count)
        for engine in engines.values():
            await asyncio.to_thread(engine.start, fresh=False)
        bench.tell("pages and look-ups, from few and from many")
        clients = {label: await _Client.open(engine) for label, engine in engines.items()}
        costs = await _pages(clients, times)
        for client in clients.values():
            client.close()
        await asyncio.to_thread(engines["few"].stop)
        rates = await _rates(bench, engines["many"])
    finally:
        for engine in engines.values():
            await asyncio.to_thread(engine.stop)
    return [_costs(costs, small, large, times), rates]


def _fill(bench: Bench, engine: Engine, label: str, *, logs: int) -> None:
    """A domain with 10,000 aliases, so many logs, and where there are many a million aliases more; engine at rest."""
    engine.start()
    try:
        engine.call("POST", "/domains", {"domain": "big.test"})
        engine.add_aliases("big.test", [(f"b{n}", "x@dest.test") for n in range(10_000)])
    finally:
        engine.stop()
    path = fill.database_of(engine.root)
    bench.tell(f"writing {logs:,} logs")
    fill.journal(path, DOMAIN, count=logs)
    if label == "many":
        bench.tell("writing a million aliases")
        fill.aliases(path, account_id=1, domains=10_000, per_domain=int(100 * min(bench.scale, 1.0)) or 1)


async def _pages(clients: dict[str, "_Client"], times: int) -> dict[str, dict[str, list[float]]]:
    """Seconds by request and engine; one request to each in turn, since the machine's speed moves."""
    logs = f"/v3/domains/{DOMAIN}/logs?limit=50"
    deep = {label: await _twenty_pages_back(client, logs) for label, client in clients.items()}
    costs: dict[str, dict[str, list[float]]] = {}
    for name, path, continued in (
        ("logs, newest page of 50", logs, False),
        ("logs, twenty pages back", logs, True),
        ("logs of one alias", f"/v3/domains/{DOMAIN}/logs/alias7?limit=50", False),
        ("aliases, a page of a domain with 10,000", "/v3/domains/big.test/aliases?page=50", False),
        ("one alias of that domain", "/v3/domains/big.test/aliases/b7777", False),
    ):
        taken: dict[str, list[float]] = {label: [] for label in clients}
        for turn in range(times):
            for label in sorted(clients, reverse=bool(turn % 2)):
                where = f"{path}&next_cursor={deep[label]}" if continued else path
                taken[label].append(await clients[label].clocked("GET", where))
        costs[name] = taken
    return costs


async def _twenty_pages_back(client: "_Client", logs: str) -> str:
    cursor = str((await client.ask("GET", logs))["logs"][-1]["id"])
    for _ in range(20):
        cursor = str((await client.ask("GET", f"{logs}&next_cursor={cursor}"))["logs"][-1]["id"])
    return cursor


def _costs(costs: dict[str, dict[str, list[float]]], small: int, large: int, times: int) -> report.Section:
    rows = []
    for name, taken in costs.items():
        few, many = (median(taken[label]) * 1000 for label in ("few", "many"))
        rows.append((name, f"{few:.2f}", f"{many:.2f}", f"{many / few:.2f}"))
    return report.Section(
        "The API with little and with much in the store",
        f"{small:,} and {large:,} logs (two events each); 10,000 aliases, and a million more. Milliseconds a request, "
        f"median of {times}, a request to each engine in turn, on one connection each.",
        ("request", "few", "many", "ratio"),
        rows,
    )


async def _rates(bench: Bench, engine: Engine) -> report.Section:
    rows = []
    number = iter(range(10**9))

    def alias() -> tuple[str, str, Any]:
        body = {"alias": f"new{next(number)}", "forward": "someone@dest.test"}
        return "POST", f"/v3/domains/{DOMAIN}/aliases", body

    def bulk() -> tuple[str, str, Any]:
        fresh = [{"alias": f"bulk{next(number)}", "forward": "someone@dest.test"} for _ in range(500)]
        return "POST", f"/v3/domains/{DOMAIN}/aliases/bulk", {"aliases": fresh, "behavior": "add"}

    logs: tuple[str, str, Any] = ("GET", f"/v3/domains/{DOMAIN}/logs?limit=50", None)
    for name, request, count in (
        ("GET …/logs, a page of 50", lambda: logs, bench.times(600)),
        ("POST …/aliases", alias, bench.times(600)),
        ("POST …/aliases/bulk of 500, one transaction", bulk, bench.times(20, least=5)),
    ):
        bench.tell(name)
        async with felt(engine.port) as pulse:
            seconds, per_second = await _hammer(engine, request, count)
        rows.append((name, f"{per_second:.0f}", f"{median(seconds) * 1000:.1f}", pulse.text()))
    return report.Section(
        "Requests a second",
        f"{_CONNECTIONS} connections, two worker processes; the lag is what NOOP on the MX took meanwhile.",
        ("request", "a second", "median ms", "loop lag: p50 / p99 / longest ms"),
        rows,
    )


async def _hammer(
    engine: Engine, request: Callable[[], tuple[str, str, Any]], count: int
) -> tuple[Sequence[float], float]:
    seconds: list[float] = []
    left = iter(range(count))

    async def worker() -> None:
        client = await _Client.open(engine)
        seconds.extend([await client.clocked(*request()) for _ in left])
        client.close()

    began = time.monotonic()
    await asyncio.gather(*(worker() for _ in range(_CONNECTIONS)))
    return seconds, count / (time.monotonic() - began)


class _Client:
    """One kept HTTP connection."""

    def __init__(self, engine: Engine, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._authorization = base64.b64encode(f"api:{engine.key}".encode())
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, engine: Engine) -> "_Client":
        return cls(engine, *await asyncio.open_connection("127.0.0.1", engine.api_port, limit=2**24))

    async def clocked(self, method: str, path: str, body: object | None = None) -> float:
        began = time.perf_counter()
        await self.ask(method, path, body)
        return time.perf_counter() - began

    async def ask(self, method: str, path: str, body: object | None = None) -> Answer:
        """The answer; RuntimeError unless it is a success."""
        content = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nHost: api.test\r\nContent-Type: application/json\r\n".encode()
        head += (
            b"Authorization: Basic " + self._authorization + b"\r\nContent-Length: %d\r\n\r\n" % len(content)
        )
        self._writer.write(head + content)
        answered = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        length = int(answered.partition(b"content-length:")[2].split(b"\r\n", 1)[0])
        answer: Answer = json.loads(await self._reader.readexactly(length))
        if not answer.get("success"):
            raise RuntimeError(f"{method} {path}: {answer}")
        return answer

    def close(self) -> None:
        self._writer.close()
