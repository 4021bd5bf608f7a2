"""Rows by the hundred thousand, written straight into the SQLite file of an engine that does not run.

The shapes are those that the engine writes itself; ids are its UUIDv7, so that they sort as they would in life.
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path

from forwarder.mail.ids import new_id
from forwarder.store.tables import micros

CHUNK = 20_000
_HEAD = b"From: <sender@origin.test>\r\nTo: <alias1@fwd.test>\r\nSubject: of the backlog\r\n\r\n"


def database_of(root: Path) -> Path:
    return root / "data/forwarder.db"


def backlog(path: Path, *, count: int, size: int, destination_domain: str) -> None:
    """``count`` messages with one delivery each, due for an hour, in the order of their ids."""
    content = _HEAD + b"x" * 70 + b"\r\n"
    content += (b"y" * 70 + b"\r\n") * max(0, (size - len(content)) // 72)
    due = datetime.now(UTC) - timedelta(hours=1)
    with closing(_open(path)) as conn:
        domain_id = conn.execute("SELECT id FROM domains").fetchone()[0]
        for start in range(0, count, CHUNK):
            made = [
                (new_id(due, os.urandom(8)), new_id(due, os.urandom(8)), n)
                for n in range(start, min(count, start + CHUNK))
            ]
            at = micros(due)
            conn.executemany(
                "INSERT INTO messages (id, created_at, transport, reverse_path, smtputf8, size, content) "
                "VALUES (?, ?, 'smtp', 'sender@origin.test', 0, ?, ?)",
                [(message, at, len(content), content) for message, _, _ in made],
            )
            conn.executemany(
                "INSERT INTO deliveries (id, message_id, kind, domain_id, alias, recipient, destination, "
                "destination_domain, state, attempts, created_at, next_attempt_at) "
                "VALUES (?, ?, 'smtp', ?, 'alias1', 'alias1@fwd.test', ?, ?, 'queued', 1, ?, ?)",
                [
                    (
                        delivery,
                        message,
                        domain_id,
                        f"user{n}@{destination_domain}",
                        destination_domain,
                        at,
                        at,
                    )
                    for message, delivery, n in made
                ],
            )
            conn.commit()


def journal(path: Path, domain: str, *, count: int) -> None:
    """``count`` logs of a domain, each with a QUEUED and a DELIVERED event, over the last twenty days."""
    with closing(_open(path)) as conn:
        domain_id = conn.execute("SELECT id FROM domains WHERE name = ?", (domain,)).fetchone()[0]
        rows = _logs(domain_id, count)
        while chunk := list(islice(rows, CHUNK)):
            conn.executemany(
                "INSERT INTO logs (id, domain_id, alias, created_at, transport, hostname, subject, sender_email, "
                "recipient_email, forward_email, failed) "
                "VALUES (?, ?, ?, ?, 'smtp', 'client.test', 'hello', 'a@b.test', 'x@y.test', 'u@v.test', 0)",
                [row[:4] for row in chunk],
            )
            conn.executemany(
                "INSERT INTO events (log_id, id, created_at, status, code, message, local, server, recipient) "
                "VALUES (?, ?, ?, ?, 250, 'ok', 'mx.fwd.test', 'mx.dest.test', 'u@v.test')",
                [
                    (row[0], f"{row[0][:31]}{n}", row[3], status)
                    for row in chunk
                    for n, status in enumerate(("QUEUED", "DELIVERED"))
                ],
            )
            conn.commit()


def aliases(path: Path, *, account_id: int, domains: int, per_domain: int) -> None:
    """``domains`` domains ``d<n>.test`` with ``per_domain`` exact aliases ``a<n>`` each."""
    now = micros(datetime.now(UTC))
    with closing(_open(path)) as conn:
        first = conn.execute("SELECT coalesce(max(id), 0) + 1 FROM domains").fetchone()[0]
        conn.executemany(
            "INSERT INTO domains (id, account_id, name, display, is_active, webhook_key, dkim_selector, added_at) "
            "VALUES (?, ?, ?, ?, 1, 'k', 's', ?)",
            [(first + n, account_id, f"d{n}.test", f"d{n}.test", now) for n in range(domains)],
        )
        for start in range(0, domains, 500):
            conn.executemany(
                "INSERT INTO aliases (domain_id, pattern, forward, is_active, when_disabled, created_at) "
                "VALUES (?, ?, ?, 1, 550, ?)",
                [
                    (first + n, f"a{m}", f"user{m}@dest.test", now)
                    for n in range(start, min(domains, start + 500))
                    for m in range(per_domain)
                ],
            )
            conn.commit()
        conn.commit()


def _logs(domain_id: int, count: int) -> Iterator[tuple[str, int, str, int]]:
    begin = datetime.now(UTC) - timedelta(days=20)
    step = timedelta(days=20) / count
    for n in range(count):
        at = begin + n * step
        yield new_id(at, os.urandom(8)), domain_id, f"alias{n % 100 + 1}", micros(at)


def _open(path: Path) -> sqlite3.Connection:
    conn = sqlite3.connect(path)
    conn.execute("PRAGMA synchronous = OFF")  # of the filling only
    conn.execute("PRAGMA journal_mode = WAL")
    return conn
