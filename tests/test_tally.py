"""What happened, counted by several processes of one machine, and shown by whichever of them is asked."""

import errno
import os
import signal
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from forwarder import tally
from forwarder.node import Place, shared_tally
from forwarder.tally import COMMITS, DNS, REPLIES, REQUESTS, SENT, Tally
from tests.harness import EngineProcess, House, wait_until
from tests.test_supervisor import children

LABELS = ("service", "command", "reply", "kind", "outcome", "answer", "result", "status", "le")
KNOWN = {"smtp", "attempts", "sent", "signings", "api", "reports"}
MAIL = b"From: Ann <ann@out.test>\r\nSubject: hello\r\n\r\nhello\r\n"


def sums(counted: Tally, family: tally.Family | tally.Durations) -> dict[tuple[str, ...], int]:
    return {case: number for case, number in counted.sums(family) if number}


def test_two_engines_of_one_machine_see_what_both_counted(tmp_path: Path) -> None:
    one = Tally.shared(tmp_path, region=0, regions=2)
    other = Tally.shared(tmp_path, region=1, regions=2)
    one.count(REPLIES, "mx", "RCPT", "2xx").add()
    other.count(REPLIES, "mx", "RCPT", "2xx").add()
    other.counts(REPLIES, "submission", "AUTH")["5xx"].add(5)
    one.count(SENT).add(3 << 32)  # more than 32 bits hold
    expected = {("mx", "RCPT", "2xx"): 2, ("submission", "AUTH", "5xx"): 5}
    assert sums(one, REPLIES) == sums(other, REPLIES) == expected
    assert sums(other, SENT) == {(): 3 << 32}
    assert sums(one, DNS) == {}


def test_who_takes_the_place_of_a_dead_process_counts_on_and_a_new_start_begins_at_zero(
    tmp_path: Path,
) -> None:
    Tally.shared(tmp_path, region=1, regions=2).count(DNS, "found").add(7)
    successor = Tally.shared(tmp_path, region=1, regions=2)
    successor.count(DNS, "found").add()
    assert sums(successor, DNS) == {("found",): 8}
    assert [oct(path.stat().st_mode & 0o777) for path in tmp_path.iterdir()] == ["0o600"]
    tally.forget(tmp_path)
    assert sums(Tally.shared(tmp_path, region=0, regions=2), DNS) == {}


def test_durations_are_counted_up_to_their_bound() -> None:
    alone = Tally()
    watch = alone.watch(COMMITS)
    for seconds in (0.0, 0.0025, 0.003, 0.3, 10.0, 11.5):
        watch.add(seconds)
    expected = {"0.0025": 2, "0.005": 1, "0.5": 1, "10.0": 1, "+Inf": 1, "sum": 21_805_500}
    assert sums(alone, COMMITS) == {(case,): number for case, number in expected.items()}


def test_no_family_lies_over_another() -> None:
    alone = Tally()
    for family in tally.FAMILIES:
        if isinstance(family, tally.Family):
            for case in family.cases:
                alone.count(family, *case).add()
    for family in tally.FAMILIES:
        numbers = {number for _, number in alone.sums(family)}
        assert numbers == ({0} if isinstance(family, tally.Durations) else {1}), family.name


def test_on_a_full_disk_a_process_counts_for_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_given: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    alone = shared_tally(tmp_path, Place(region=1, regions=2))
    alone.count(REQUESTS, "200").add()
    assert sums(alone, REQUESTS) == {("200",): 1}


async def metrics(house: House) -> dict[str, float]:
    """What one process answers; which, the kernel says anew for each connection. Without what is zero."""
    async with httpx.AsyncClient(trust_env=False) as client:
        answer = await client.get(f"http://127.0.0.1:{house.api_port}/metrics")
    assert answer.status_code == 200
    found = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            if sample.name.startswith("forwarder_") and sample.value:
                labels = [sample.labels[name] for name in LABELS if name in sample.labels]
                found[" ".join([sample.name.removeprefix("forwarder_"), *labels])] = sample.value
    return found


async def by_hand(house: House) -> None:
    """Traffic of which every number is known."""
    for _ in range(3):
        assert (await house.send("ann@out.test", "info@example.com", MAIL)).code == 250
    assert (await house.send("ann@out.test", "nobody@example.com", MAIL)).code == 550
    assert (await house.send("ann@out.test", "info@example.com", b"Subject: a\nb\r\n\r\nx\r\n")).code == 550
    assert (await house.send("ann@out.test", "bad@example.com", MAIL)).code == 250
    await house.credential("ann@example.com", "correct horse")
    async with house.client("submission") as client:
        await client.ehlo()
        await client.starttls()
        await client.ehlo()
        assert (await client.login("ann@example.com", "wrong")).code == 535
        assert (await client.login("ann@example.com", "correct horse")).code == 235
        answers = await client.message(
            b"ann@example.com", [b"friend@dest.test"], MAIL.replace(b"out.", b"out-")
        )
        assert answers[-1].code == 550, answers  # the author is not who logged in
    async with house.api() as api:
        assert (await api.get("/v3/account")).status_code == 200
        assert (await api.get("/v3/domains/none.test")).status_code == 404
        assert (await api.get("/v3/account", auth=("api", "wrong"))).status_code == 401
    await house.sink.wait_for(4)
    await wait_until(house.queue_is_empty)


async def test_every_process_shows_what_all_of_them_counted(house: House, database_url: str) -> None:
    house.dns.mail_host("out.test", house.sink.host)
    async with EngineProcess(house, workers={"processes": 2}, database={"url": database_url}) as process:
        await house.host("example.com", {"info": "inbox@dest.test", "bad": "550-at-rcpt@dest.test"})
        await by_hand(house)
        expected = {
            "smtp_connections_total mx taken": 6,
            "smtp_connections_total submission taken": 1,
            "smtp_replies_total mx MAIL 2xx": 6,
            "smtp_replies_total mx RCPT 2xx": 5,
            "smtp_replies_total mx RCPT 5xx": 1,
            "smtp_replies_total mx DATA 2xx": 4,
            "smtp_replies_total mx DATA 5xx": 1,
            "smtp_received_bytes_total mx": 4 * len(MAIL),
            "smtp_replies_total submission MAIL 2xx": 1,
            "smtp_replies_total submission RCPT 2xx": 1,
            "smtp_replies_total submission DATA 5xx": 1,
            "smtp_replies_total submission AUTH 2xx": 1,
            "smtp_replies_total submission AUTH 5xx": 1,
            "smtp_logins_total wrong": 1,
            "smtp_logins_total granted": 1,
            "attempts_total smtp delivered": 4,  # the report among them
            "attempts_total smtp hard": 1,
            "reports_total": 1,
            "sent_bytes_total": sum(len(each.content) for each in house.sink.messages),
            "signings_total signed": 5,
            "api_requests_total 200": 1,
            "api_requests_total 401": 1,
            "api_requests_total 404": 1,
        }
        answers = [await metrics(house) for _ in range(20)]  # that all are of one worker: once in 500,000
        for answer in answers:
            shown = {name: value for name, value in answer.items() if name.split("_")[0] in KNOWN}
            assert shown == expected
            assert answer["dns_questions_total found"] >= 2  # MX and A of dest.test
            assert answer["changes_total committed"] >= answer["commit_seconds_count"] >= 5
            assert 0 < answer["commit_seconds_sum"] < 60
            assert answer["commit_seconds_bucket +Inf"] == answer["commit_seconds_count"]

        dead = children(process)[0]
        os.kill(dead, signal.SIGKILL)
        await wait_until(lambda: process.log().count("the engine serves") == 3)
        assert (await house.send("ann@out.test", "info@example.com", MAIL)).code == 250
        after = await metrics(house)
        assert after["smtp_replies_total mx DATA 2xx"] == 5
        assert after["api_requests_total 401"] == 1
        await process.end()
        await process.start()
        assert "smtp_replies_total mx DATA 2xx" not in await metrics(house)
