"""The destination, and the mailbox that reports come back to; it misbehaves by the recipient's local part.

    ok-…     taken
    soft-…   450 at RCPT the first time it is asked for a message, then taken
    hard-…   550 at RCPT, always
    slow-…   taken, the 250 comes two seconds late
    drop-…   the content is taken and recorded, the answer is never sent: the connection closes (once a message)

A copy is in the ledger, fsynced, before its 250 leaves, with the node that sent it, as EHLO named it, and the time
since when its session had been open; a second line tells when the 250 left. Threads and plain sockets; nothing here
shares code with what is tested.
"""

import hashlib
import itertools
import re
import socketserver
import threading
import time
from typing import Any

from tests.crash import bounces
from tests.crash.ledger import Ledger

SLOW = 2.0  # seconds

_LEDGER = re.compile(rb"(?im)^X-Ledger: ([0-9a-f]{32})\r$")
_ADDRESS = re.compile(rb"<([^>]*)>")


class Sink:
    """Listens on a port of 127.0.0.1 that stays the same for the whole campaign."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.tempted: set[tuple[str, str]] = set()
        self.lock = threading.Lock()
        self.numbers = itertools.count(1)  # of what was taken: copies and reports
        self.refusing = False
        sink = self

        class Handler(_Handler):
            owner = sink

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler, bind_and_activate=False)
        self._server.allow_reuse_address = True
        self._server.daemon_threads = True
        self._server.request_queue_size = 256
        self._server.server_bind()
        self._server.server_activate()
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True
        )

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def refuse(self, yes: bool) -> None:
        """Until told otherwise, greet everybody with 421: whatever is queued stays queued."""
        self.refusing = yes

    def first_time(self, kind: str, key: str) -> bool:
        with self.lock:
            known = (kind, key) in self.tempted
            self.tempted.add((kind, key))
            return not known


class _Handler(socketserver.StreamRequestHandler):
    owner: Sink
    timeout = 60

    def handle(self) -> None:
        try:
            self._converse()
        except OSError:
            return  # the engine was killed; that is what this is for

    def _say(self, line: bytes) -> None:
        self.wfile.write(line + b"\r\n")

    def _converse(self) -> None:
        if self.owner.refusing:
            self._say(b"421 4.3.2 not now")
            return
        # Before the greeting: whoever sends anything after it was alive at this moment.
        self.since, self.node = time.time(), ""
        self._say(b"220 sink.test ESMTP")
        sender = b""
        recipients: list[str] = []
        while line := self.rfile.readline(4096):
            verb = line[:4].upper()
            if verb == b"EHLO":
                self.node = line[4:].strip().decode("ascii", "replace")
                self._say(b"250-sink.test\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 SMTPUTF8")
            elif verb == b"MAIL":
                sender, recipients = self._address(line).encode(), []
                self._say(b"250 2.1.0 ok")
            elif verb == b"RCPT":
                recipient = self._address(line)
                answer = self._judge(recipient)
                if answer.startswith(b"250"):
                    recipients.append(recipient)
                self._say(answer)
            elif verb == b"DATA":
                if not recipients:
                    self._say(b"554 5.5.1 no recipients")
                    continue
                self._say(b"354 go on")
                content = self._content()
                if content is None:
                    return
                copy = next(self.owner.numbers)
                answered = self._record(copy, sender, recipients, content)
                if not answered:
                    return
                if any(recipient.startswith("slow-") for recipient in recipients):
                    time.sleep(SLOW)
                self.owner.ledger.note("told", copy=copy)
                self._say(b"250 2.0.0 written down")
            elif verb == b"QUIT":
                self._say(b"221 2.0.0 bye")
                return
            else:
                self._say(b"250 2.0.0 ok")

    def _address(self, line: bytes) -> str:
        found = _ADDRESS.search(line)
        return found.group(1).decode("ascii", "replace").lower() if found else ""

    def _judge(self, recipient: str) -> bytes:
        if recipient.startswith("hard-"):
            return b"550 5.1.1 nobody here by that name"
        if recipient.startswith("soft-") and self.owner.first_time("soft", recipient):
            return b"450 4.2.1 come back later"
        return b"250 2.1.5 ok"

    def _content(self) -> bytes | None:
        lines: list[bytes] = []
        while line := self.rfile.readline():
            if line == b".\r\n":
                return b"".join(lines)
            lines.append(line[1:] if line.startswith(b".") else line)
        return None  # it died before the dot: nothing was taken

    def _record(self, copy: int, sender: bytes, recipients: list[str], content: bytes) -> bool:
        ledger = self.owner.ledger
        origin: dict[str, Any] = {"copy": copy, "node": self.node, "since": self.since}
        if sender == b"":
            self._record_report(recipients, content, origin)
            return True
        head, _, body = content.partition(b"\r\n\r\n")
        number = _LEDGER.search(head + b"\r\n")
        if number is None:
            ledger.write("stray", why="a message without its number")
            return True
        key = number.group(1).decode()
        silent = any(r.startswith("drop-") for r in recipients) and self.owner.first_time("drop", key)
        fact: dict[str, Any] = {"id": key, "body": hashlib.sha256(body).hexdigest(), "answered": not silent}
        # the aliases are *@crash.test -> the same local part at sink.test
        there = [r.replace("@sink.test", "@crash.test") for r in recipients]
        ledger.write("copy", recipients=there, **fact, **origin)
        return not silent

    def _record_report(self, recipients: list[str], content: bytes, origin: dict[str, Any]) -> None:
        ledger = self.owner.ledger
        try:
            report = bounces.read(content)
        except bounces.NotAReport as wrong:
            ledger.write("stray", why=f"a report to {recipients} that cannot be read: {wrong}")
            return
        for failed in report.failed:
            there = failed.replace("@sink.test", "@crash.test")
            ledger.write(
                "report", id=report.about, recipient=there, report=report.name, answered=True, **origin
            )
