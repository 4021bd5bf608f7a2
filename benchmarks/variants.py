"""What each feature costs, and what PostgreSQL makes of it: the engine against itself, in alternating runs.

*Everything on* is the default configuration: both signatures, an ARC seal, and SPF, DKIM and DMARC of the arriving
mail checked against a DNS server on this machine, whose answers the engine caches as it would in life.
"""

from contextlib import ExitStack
from pathlib import Path

from benchmarks import load, report
from benchmarks.bench import Bench
from benchmarks.engine import Engine
from benchmarks.load import INBOUND_PORT, Workload
from benchmarks.newsletter import newsletter
from tests.peers.dns_server import DnsServer
from tests.postgres import Server

_SMALL = Workload(name="4 KiB, a connection a message", messages=3000, size=4096)
_REUSED = Workload(name="4 KiB, reused connections", messages=4000, size=4096, reuse=True)
_MEDIUM = Workload(name="64 KiB, a connection a message", messages=1500, size=65536)
_EVERYTHING = {
    "DKIM__ALGORITHMS": '["rsa", "ed25519"]',
    "ARC__ENABLED": "true",
    "SCREENING__SPF": "true",
    "SCREENING__DKIM": "true",
    "SCREENING__DMARC": "true",
}


async def features(bench: Bench) -> list[report.Section]:
    """RSA only, RSA and Ed25519, everything on; one process instead of two."""
    async with DnsServer(ttl=3600) as dns:
        dns.set("origin.test", "TXT", ["v=spf1 ip4:127.0.0.0/8 -all"])
        dns.set("_dmarc.origin.test", "TXT", ["v=DMARC1; p=none"])
        real = newsletter()
        for name, record in real.records.items():
            dns.set(name, "TXT", [record])
        subjects = [
            _engine(bench, 0, "RSA signature only", {}),
            _engine(bench, 1, "RSA and Ed25519", {"DKIM__ALGORITHMS": '["rsa", "ed25519"]'}),
            _engine(bench, 2, "everything on", {**_EVERYTHING, "DNS__NAMESERVERS": f'["{dns.address}"]'}),
            _engine(bench, 3, "RSA only, one process", {"WORKERS__PROCESSES": "1"}),
        ]
        with ExitStack() as running:
            for subject in subjects:
                running.enter_context(bench.serving(subject))
            runs = []
            for workload in (_SMALL, _MEDIUM, real.workload(bench.root / "newsletter", 1000)):
                runs += await load.alternate(
                    subjects, bench.scaled(workload), rounds=bench.rounds, tell=bench.tell
                )
    return [
        report.throughput(
            "What the features cost",
            "The engine on SQLite against itself; ratios are to one RSA signature. The newsletter has 35 KiB, two DKIM "
            "signatures, an ARC set, and an SPF record that leads to nine others.",
            runs,
            against=subjects[0].name,
        )
    ]


async def postgres(bench: Bench) -> list[report.Section]:
    """SQLite against PostgreSQL, whose processes count as part of the engine."""
    server = Server.start(
        fsync="on", full_page_writes="on", synchronous_commit="on", shared_buffers="256MB", max_wal_size="2GB"
    )
    try:
        on_sqlite = _engine(bench, 0, "Forwarder (SQLite)", {})
        on_postgres = OnPostgres(bench.root / "on-postgres", server=server, port=INBOUND_PORT + 40)
        with bench.serving(on_sqlite), bench.serving(on_postgres):
            runs = []
            for workload in (_SMALL, _REUSED, _MEDIUM):
                runs += await load.alternate(
                    (on_sqlite, on_postgres), bench.scaled(workload), rounds=bench.rounds, tell=bench.tell
                )
    finally:
        server.remove()
    return [
        report.throughput(
            "SQLite and PostgreSQL",
            "The same engine; PostgreSQL 18 with fsync on this machine, its processes included.",
            runs,
            against=on_sqlite.name,
        )
    ]


class OnPostgres(Engine):
    """An engine and the server its store lives on."""

    def __init__(self, root: Path, *, server: Server, port: int) -> None:
        super().__init__(root, port=port, name="Forwarder (PostgreSQL)", database_url=server.database())
        self._server = server

    def roots(self) -> list[int]:
        return [*super().roots(), self._server.pid]


def _engine(bench: Bench, number: int, name: str, settings: dict[str, str]) -> Engine:
    return Engine(
        bench.root / f"variant-{number}", port=INBOUND_PORT + 20 + 2 * number, name=name, settings=settings
    )
