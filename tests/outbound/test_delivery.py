"""One attempt over several hosts: who is asked, and what the last word means for what the first one said."""

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import pytest

from forwarder.mail.address import Path
from forwarder.mail.outcome import Action, Fault, Stage
from forwarder.mail.reply import Reply
from forwarder.net.smtp_answers import Answered, SessionFault
from forwarder.outbound.delivery import _Attempt
from forwarder.outbound.parcel import Carried
from forwarder.outbound.route import MxHost, Route
from forwarder.store.records import Delivery


def said(code: int, enhanced: str = "") -> Reply:
    return Reply(code=code, enhanced=enhanced, text="x")


class _Session:
    host = "mx1"
    fell_back = False

    def __init__(self, rcpt: Reply | Answered | BaseException) -> None:
        self._rcpt = rcpt

    async def send(self, *_: Any, **__: Any) -> Answered:
        if isinstance(self._rcpt, BaseException):
            raise self._rcpt
        if isinstance(self._rcpt, Answered):
            return self._rcpt
        return Answered(mail=said(250), recipients=(self._rcpt,))


class Hosts:
    """A pool of two hosts: ``mx1`` answers RCPT, or all, ``mx2`` says something at its door."""

    def __init__(self, rcpt: Reply | Answered | BaseException, door: Reply, *, kept: bool = False) -> None:
        self._rcpt, self._door, self._kept = rcpt, door, kept
        self.released = 0
        self.opened: list[tuple[str, str]] = []

    def ordered(self, route: Route) -> list[MxHost]:
        return list(route.hosts)

    def reuse(self, route: Route) -> _Session | None:
        return _Session(self._rcpt) if self._kept else None

    def release(self, route: Route, session: object) -> None:
        self.released += 1

    async def open(self, route: Route, host: MxHost, address: str) -> _Session:
        self.opened.append((host.name, address))
        if host.name == "mx1":
            return _Session(self._rcpt)
        raise SessionFault(Stage.CONNECT, self._door)


class _Delivery:
    id = "d"
    destination = "a@x.test"
    destination_domain = "x.test"
    attempts = 1


TWO = (MxHost(name="mx1", addresses=("1", "1b")), MxHost(name="mx2", addresses=("2",), rank=1))


async def attempt(hosts: Hosts, known: Sequence[MxHost] = TWO, *, complete: bool = True) -> Carried:
    made = _Attempt(
        pool=cast(Any, hosts),
        route=Route(site="x", hosts=tuple(known), port=25, complete=complete),
        reverse_path=Path.null(),
        deliveries=[cast(Delivery, _Delivery())],
        buffers=[b""],
        smtputf8=False,
    )
    await made.run()
    return made.carried()


@pytest.mark.parametrize("rcpt", [said(450, "4.2.1"), said(452, "4.2.2"), said(552, "5.2.2")])
async def test_a_closed_door_behind_a_host_that_may_take_it_later_is_not_the_end(rcpt: Reply) -> None:
    """A 552 to a recipient counts as 452 (RFC 5321 4.5.3.1.10)."""
    (verdict,) = (await attempt(Hosts(rcpt, said(554, "5.7.1")))).verdicts
    assert verdict.action is Action.RETRY_LATER


@pytest.mark.parametrize(
    "answered",
    [
        Answered(mail=said(552, "5.3.4")),
        Answered(mail=said(250), recipients=(said(250),), data=said(552, "5.3.4")),
        Answered(mail=said(250), recipients=(said(250),), final=said(552, "5.3.4")),
    ],
)
async def test_552_to_the_message_is_final(answered: Answered) -> None:
    """Only where it answers RCPT it may mean that there are too many recipients."""
    (verdict,) = (await attempt(Hosts(answered, said(450)))).verdicts
    assert (verdict.action, verdict.reply.code) == (Action.GIVE_UP, 552)


async def test_a_host_that_falls_silent_after_the_dot_was_reached() -> None:
    silent = SessionFault(Stage.DOT, said(451, "4.4.2"), fault=Fault.TIMEOUT_AFTER_DOT, unknown=True)
    hosts = Hosts(silent, said(421))
    carried = await attempt(hosts)
    assert [verdict.action for verdict in carried.verdicts] == [Action.RETRY_LATER]
    assert (carried.reached, carried.trouble) == (True, None)
    assert hosts.opened == [("mx1", "1")]


@pytest.mark.parametrize(("complete", "action"), [(True, Action.GIVE_UP), (False, Action.RETRY_LATER)])
async def test_a_closed_door_is_not_the_end_while_a_host_could_not_be_looked_up(
    complete: bool, action: Action
) -> None:
    carried = await attempt(Hosts(said(250), said(554, "5.7.1")), TWO[1:], complete=complete)
    (verdict,) = carried.verdicts
    assert verdict.action is action


async def test_a_host_that_has_judged_is_not_asked_at_its_other_address() -> None:
    hosts = Hosts(said(450, "4.2.1"), said(421, "4.7.1"))
    await attempt(hosts)
    assert hosts.opened == [("mx1", "1"), ("mx2", "2")]


async def test_a_host_that_has_judged_in_a_kept_session_is_not_asked_in_another() -> None:
    hosts = Hosts(said(450, "4.2.1"), said(421, "4.7.1"), kept=True)
    await attempt(hosts)
    assert hosts.opened == [("mx2", "2")]
    assert hosts.released == 1


async def test_a_host_whose_kept_session_breaks_is_dialled() -> None:
    broken = SessionFault(Stage.MAIL, said(421, "4.4.2"))
    hosts = Hosts(broken, said(421, "4.7.1"), kept=True)
    await attempt(hosts)
    assert hosts.opened == [("mx1", "1"), ("mx2", "2")]


@pytest.mark.parametrize(
    ("addresses", "dialled"),
    [
        ((4, 4, 4, 4), (3, 3, 2, 2)),
        ((6, 6, 1), (4, 3, 1)),  # the backup of two dead hosts is dialled
        ((6, 6, 6, 6, 6), (2, 2, 2, 2, 2)),
        ((1, 6, 6), (1, 5, 4)),  # what one host does not need the others get
        ((6,), (6,)),
    ],
)
async def test_ten_addresses_are_tried_in_one_attempt_some_of_each_host(
    addresses: Sequence[int], dialled: Sequence[int]
) -> None:
    hosts = Hosts(said(450), said(450, "4.3.2"))
    known = [
        MxHost(name=f"h{n}", addresses=tuple(f"{n}.{a}" for a in range(count)))
        for n, count in enumerate(addresses)
    ]
    (verdict,) = (await attempt(hosts, known)).verdicts
    assert verdict.action is Action.RETRY_LATER
    assert [address for _, address in hosts.opened] == [
        f"{n}.{a}" for n, count in enumerate(dialled) for a in range(count)
    ]


async def test_a_session_goes_back_when_the_attempt_is_cut() -> None:
    hosts = Hosts(asyncio.CancelledError(), said(421))
    with pytest.raises(asyncio.CancelledError):
        await attempt(hosts)
    assert hosts.released == 1
