"""Deliveries from hand-over or claim to their last event, over real sessions and a real store."""

from pathlib import Path

from tests.outbound.house import CONTENT, house


async def test_a_fresh_message_is_delivered_once_and_leaves_the_queue(tmp_path: Path) -> None:
    async with house(tmp_path) as rooms:
        (delivery,) = await rooms.accept("bob@dest.test")
        events = await rooms.until_statuses(delivery, "QUEUED", "DELIVERED")
        assert events[-1][1] == 250
        assert events[-1][2].startswith("2.0.0 ok")
        (message,) = rooms.sink.messages
        assert message.recipients == ("bob@dest.test",)
        assert message.reverse_path.startswith("SRS0=")
        assert message.reverse_path.endswith("=origin.test=ann@srs.forwarder.test")
        assert message.content.endswith(CONTENT)
        assert await rooms.counts() == (0, 0)
        assert rooms.dispatcher.status().held == 0


async def test_what_is_not_handed_over_is_claimed_from_the_store(tmp_path: Path) -> None:
    async with house(tmp_path) as rooms:
        (delivery,) = await rooms.accept("bob@dest.test", in_memory=False)
        await rooms.until_statuses(delivery, "QUEUED", "DELIVERED")
        assert len(rooms.sink.messages) == 1
