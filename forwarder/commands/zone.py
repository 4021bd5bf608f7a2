"""How DNS records are shown: to people as a zone file has them, to programs as objects.

``other_keys`` are those of a domain that do not sign: new ones that wait for their records, which are to be pasted, and
retired ones, whose records are to stay until mail under way has arrived.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from sqlalchemy import Connection

    from forwarder.config import Settings
    from forwarder.mail.records import DnsRecord, KeyRecord
    from forwarder.store.dkim_keys import DkimKey
    from forwarder.store.domains import Domain


@dataclass(frozen=True, slots=True, kw_only=True)
class KeysShown:
    """The keys of a domain that do not sign."""

    waiting: "Sequence[DnsRecord]"
    key_zone: "Sequence[DnsRecord]"  # in our zone, where the CNAMEs of ``waiting`` lead
    retired: Sequence[tuple[str, datetime]]  # the names of records, and until when each is needed

    def plain(self) -> dict[str, Any]:
        """For programs."""
        return {
            "next": [plain_record(record) for record in self.waiting],
            "next_key_zone": [plain_record(record) for record in self.key_zone],
            "retired": [{"name": name, "keep_until": until} for name, until in self.retired],
        }

    def print(self, out: "Console") -> None:
        """For people; nothing where there are none."""
        if self.waiting:
            print_records(
                out, "New DKIM keys, beside the others; they sign once these are found", self.waiting
            )
        if self.key_zone:
            print_records(out, "In the zone of this server, where those CNAMEs lead", self.key_zone)
        if self.retired:
            out.print(
                "[bold]DKIM records of former keys, to be removed not before (at once if the keys leaked)[/]\n"
            )
            for name, until in self.retired:
                out.print(f"{name}.  {until:%Y-%m-%d %H:%M}Z", markup=False, soft_wrap=True)
            out.print()


def other_keys(conn: "Connection", domain: "Domain", settings: "Settings", *, cname: bool) -> KeysShown:
    """The keys of ``domain`` that do not sign; those that wait as CNAMEs, or as TXT records."""
    from forwarder.mail.records import dkim_name, keys_to_publish, zone_of_keys
    from forwarder.store import dkim_keys

    waiting = key_records(dkim_keys.waiting_keys(conn, domain.id))
    return KeysShown(
        waiting=keys_to_publish(domain.name, settings.hostname, waiting, as_txt=not cname),
        key_zone=zone_of_keys(domain.name, settings.hostname, waiting) if cname else (),
        retired=[
            (dkim_name(domain.name, key.selector), key.retired_at + dkim_keys.UNDER_WAY)
            for key in dkim_keys.retired_keys(conn, domain.id)
            if key.retired_at is not None
        ],
    )


def key_records(keys: "Sequence[DkimKey]") -> "list[KeyRecord]":
    """The public side of keys."""
    from forwarder.mail.records import KeyRecord

    return [KeyRecord(selector=key.selector, public_record=key.public_record) for key in keys]


def print_records(out: "Console", title: str, records: "Sequence[DnsRecord]") -> None:
    """As a zone file has them."""
    from forwarder.mail.seal import zone_text

    out.print(f"[bold]{title}[/]\n")
    for record in records:
        value = zone_text(record.value) if record.kind == "TXT" else record.value
        if record.kind in ("MX", "CNAME"):
            value += "."
        priority = f"{record.priority} " if record.priority is not None else ""
        # One line a record, as a zone file has it: a table would wrap the keys and spoil the pasting.
        out.print(f"{record.name}.  IN {record.kind}  {priority}{value}", markup=False, soft_wrap=True)
    out.print()


def plain_record(record: "DnsRecord") -> dict[str, Any]:
    """As an object."""
    return {
        "purpose": record.purpose,
        "type": record.kind,
        "name": record.name,
        "value": record.value,
        "priority": record.priority,
    }
