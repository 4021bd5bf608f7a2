"""Which addresses were confirmed by their owners: the question that loading a rule set and showing aliases ask.

A function of a connection, apart from ``confirmations``, which announces changes to the directory that asks here.
Only addresses that a forward names whole are looked for; what a capture makes is confirmed only if another alias of
the same domain names it.
"""

from collections.abc import Iterable, Iterator

from sqlalchemy import Connection, select

from forwarder.mail.address import Path
from forwarder.mail.destination import Mailbox, mailbox_key, parse_forward
from forwarder.mail.pattern import RuleError
from forwarder.store.tables import confirmations

_AT_ONCE = 500  # addresses a statement: parameters have a bound on both databases


def addresses_of(forwards: Iterable[str]) -> Iterator[Path]:
    """The addresses that stored forwards name whole; a forward that cannot be read names none."""
    for forward in forwards:
        try:
            destinations = parse_forward(forward, plain_http=True)
        except RuleError:
            continue
        for destination in destinations:
            if isinstance(destination, Mailbox) and destination.path is not None:
                yield destination.path


def confirmed_of(conn: Connection, forwards: Iterable[str]) -> frozenset[str]:
    """The ``mailbox_key`` of each address named in these forwards that its owner confirmed."""
    keys = list(dict.fromkeys(mailbox_key(path) for path in addresses_of(forwards)))
    found: set[str] = set()
    for start in range(0, len(keys), _AT_ONCE):
        query = select(confirmations.c.address).where(
            confirmations.c.address.in_(keys[start : start + _AT_ONCE]),
            confirmations.c.confirmed_at.is_not(None),
        )
        found.update(conn.execute(query).scalars())
    return frozenset(found)
