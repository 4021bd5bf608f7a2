"""What a message of the DNS costs its reader; the messages are written by hand, octet for octet."""

import struct
import time

import dns.message
import pytest

from forwarder.net.burden import too_great

NAME = b"\x01a" * 100 + b"\x00"
FIRST = b"\xc0\x0c"  # a pointer to the name in the question
A, NS, MX, TXT, SRV, OPT, PRIVATE_USE = 1, 2, 15, 16, 33, 41, 65280


def message(*records: bytes, name: bytes = b"\x04mail\x04test\x00", kind: int = MX) -> bytes:
    head = struct.pack("!6H", 1, 0x8180, 1, len(records), 0, 0)
    return head + name + struct.pack("!2H", kind, 1) + b"".join(records)


def record(kind: int, data: bytes, *, owner: bytes = FIRST, network: int = 1) -> bytes:
    return owner + struct.pack("!2HIH", kind, network, 300, len(data)) + data


def mx(number: int) -> bytes:
    """A host of its own below the name in the question."""
    return record(MX, struct.pack("!H", number) + b"\x02%02d" % (number % 100) + FIRST)


@pytest.mark.parametrize(
    "answer",
    [
        message(),
        message(*map(mx, range(20))),
        message(*(record(A, b"\x08\x08\x08" + bytes([last])) for last in range(250))),
        message(record(TXT, (b"\xff" + b"k" * 255) * 250)),  # 64,000 octets of text
        message(record(OPT, b"", owner=b"\x00", network=1232)),
        b"",
        b"\x00\x01\x02banana",
        message(mx(1))[:-1],
    ],
    ids=["empty", "20 hosts", "250 addresses", "a long text", "EDNS", "nothing", "no message", "cut"],
)
def test_what_honest_servers_say_is_read(answer: bytes) -> None:
    assert not too_great(answer)


@pytest.mark.parametrize(
    "answer",
    [
        message(*map(mx, range(8)), name=NAME),  # 8 records: their owner and their host have 100 labels each
        message(*(record(NS, FIRST, owner=b"\x00") for _ in range(40)), name=NAME),
        message(*(record(A, bytes(4)) for _ in range(2000))),
        message(record(TXT, bytes(5000))),  # so many empty strings
        message(
            *(record(SRV, bytes(6) + FIRST) for _ in range(16)), name=NAME
        ),  # names in what we do not know
        message(
            *(record(A, FIRST + bytes(2), network=3) for _ in range(16)), name=NAME
        ),  # Chaosnet has names there
        message(record(OPT, bytes(4 * 4000), owner=b"\x00", network=1232)),
        message(mx(1), name=b"\xc0\x0c"),  # a name that points to itself
    ],
    ids=["hosts", "names", "addresses", "strings", "unknown", "network", "options", "loop"],
)
def test_what_would_take_long_to_read_is_not_read(answer: bytes) -> None:
    assert too_great(answer)


def test_pointers_to_pointers_are_counted() -> None:
    # 4,000 pointers, each to the one before, in the text of a first record; the owner of the second is the last.
    start = len(message(name=b"\x00")) + 1 + 10
    chain = b"\x00\x00" + b"".join(struct.pack("!H", 0xC000 | start + 2 * number) for number in range(4000))
    text = record(PRIVATE_USE, chain, owner=b"\x00")
    last = struct.pack("!H", 0xC000 | start + 2 * 4000)
    assert too_great(message(text, record(A, bytes(4), owner=last), name=b"\x00"))


def test_nothing_below_the_bound_takes_long() -> None:
    answer = message(*map(mx, range(6)), name=NAME)  # 8 of them are too much
    assert not too_great(answer)
    began = time.process_time()
    dns.message.from_wire(answer)
    assert time.process_time() - began < 0.5  # some 8 ms; the 3,600 that TCP has room for took 5 s


def test_hundreds_of_texts_are_not_read() -> None:
    """A message names sixty keys, and the answers come at once: two seconds, had each eight hundred."""

    def texts(count: int) -> bytes:
        return message(*(record(TXT, b"\x02%02d" % (number % 100)) for number in range(count)), kind=TXT)

    assert not too_great(texts(100))  # as verifications of a large company's domain
    assert too_great(texts(400))


def test_the_walk_ends_with_its_bound() -> None:
    assert too_great(b"\x00" * 4 + b"\xff" * 65_000)
