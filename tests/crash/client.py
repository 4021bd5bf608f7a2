"""A client on raw sockets that writes each step down before it takes it."""

import hashlib
import random
import socket
import threading
import uuid
from collections.abc import Callable

from tests.crash.ledger import Ledger

TIMEOUT = 20.0


class Conversation:
    """One SMTP connection; ``say`` returns the code of the answer, 0 when the connection is gone."""

    def __init__(self, port: int) -> None:
        self.text = ""  # of the last answer
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT)
        self._file = self._socket.makefile("rb")

    def read(self) -> int:
        while True:
            line = self._file.readline(4096)
            if len(line) < 4 or not line[:3].isdigit():
                return 0
            if line[3:4] != b"-":
                self.text = line[4:].strip().decode("ascii", "replace")
                return int(line[:3])

    def say(self, line: bytes) -> int:
        self._socket.sendall(line)
        return self.read()

    def close(self) -> None:
        self._file.close()
        self._socket.close()


def compose(
    number: str, sender: str, recipient: str, chance: random.Random, size: int = 0
) -> tuple[bytes, str]:
    """A message's bytes, CRLF throughout, and the SHA-256 of its body, which holds dots and odd octets.

    ``size`` octets are added to it.
    """
    lines = [b"the body of " + number.encode()]
    lines += [
        chance.choice((b".", b"..", b"", b"a line", bytes(chance.randrange(32, 127) for _ in range(60))))
        for _ in range(chance.randrange(2, 60))
    ]
    lines += [b"x" * 62] * (size // 64)
    body = b"\r\n".join(lines) + b"\r\n"
    head = (
        f"From: <{sender}>\r\nTo: <{recipient}>\r\nSubject: {number}\r\nMessage-ID: <{number}@origin.test>\r\n"
        f"Date: Sat, 21 Nov 2026 00:00:00 +0000\r\nX-Ledger: {number}\r\n\r\n"
    ).encode()
    return head + body, hashlib.sha256(body).hexdigest()


def send(
    port: int,
    ledger: Ledger,
    recipients: list[str],
    chance: random.Random,
    *,
    sender: str = "sender@origin.test",
    size: int = 0,
    reaching: list[str] | None = None,
) -> int | None:
    """Send one message to ``recipients`` at the hosted domain; the code that ended it, None for no answer.

    ``reaching`` are those who must get it, when the recipients' aliases lead to others than themselves.
    """
    number = uuid.uuid4().hex
    content, body = compose(number, sender, recipients[0], chance, size)
    ledger.write("sending", id=number, recipients=reaching or recipients, body=body)
    try:
        conversation = Conversation(port)
    except OSError:
        ledger.write("answered", id=number, code=421)  # nothing was ever said: the sender keeps its message
        return 421
    try:
        code = _dialogue(conversation, ledger, number, sender, recipients, content)
    except OSError:
        code = 0
    finally:
        conversation.close()
    if code:
        ledger.write("answered", id=number, code=code, text=conversation.text)
    return code or None


def _dialogue(
    conversation: Conversation,
    ledger: Ledger,
    number: str,
    sender: str,
    recipients: list[str],
    content: bytes,
) -> int:
    """The code of the first refusal or of the final answer; 421 when the connection ended before the dot was sent."""
    if conversation.read() != 220:
        return 421
    steps = [b"EHLO origin.test\r\n", f"MAIL FROM:<{sender}>\r\n".encode()]
    steps += [f"RCPT TO:<{recipient}>\r\n".encode() for recipient in recipients]
    try:
        for step in steps:
            code = conversation.say(step)
            if code != 250:
                return code or 421
        code = conversation.say(b"DATA\r\n")
        if code != 354:
            return code or 421
    except OSError:
        return 421  # the dot was not sent, so nothing can have been accepted
    stuffed = content.replace(b"\r\n.", b"\r\n..")
    ledger.write("dot", id=number)
    return conversation.say(stuffed + b".\r\n")


class Load:
    """``rate`` messages a second from a few threads until stopped; which recipients a message has is chance."""

    def __init__(
        self, ports: Callable[[], list[int]], ledger: Ledger, *, rate: float, seed: int, threads: int = 8
    ) -> None:
        self._ports, self._ledger, self._pause = ports, ledger, threads / rate
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._work, args=(random.Random(seed * 1000 + n),), daemon=True)
            for n in range(threads)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _work(self, chance: random.Random) -> None:
        while not self._stop.wait(chance.expovariate(1 / self._pause)):
            ports = self._ports()
            if ports:
                send(chance.choice(ports), self._ledger, choose_recipients(chance), chance)


def choose_recipients(chance: random.Random) -> list[str]:
    """Mostly one good recipient; sometimes several, ones that fail at first, that fail for good, that lose answers."""
    kinds = chance.choices(
        ("ok", "soft", "hard", "drop"),
        weights=(80, 8, 8, 4),
        k=1 if chance.random() < 0.8 else chance.randrange(2, 9),
    )
    return [f"{kind}-{chance.randrange(10**9)}@crash.test" for kind in kinds]
