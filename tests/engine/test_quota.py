"""The daily quota of an account: refused in the session for the time being, nothing lost, others served."""

from tests.engine.town import MAIL, Town


async def test_mail_beyond_the_daily_quota_is_refused_for_now(town: Town) -> None:
    async with town.engine(plans={"default": {"daily_quota": 3}}):
        for _ in range(3):
            assert (await town.send("ann@out.test", "info@example.com", MAIL)).code == 250
        for _ in ("after the dot", "and from then on at RCPT"):
            refused = await town.send("ann@out.test", "info@example.com", MAIL)
            assert (refused.code, refused.text[:5]) == (452, "4.2.2")
        await town.sink.wait_for(3)
        async with town.api() as api:
            logs = (await api.get("/v3/domains/example.com/logs")).json()["logs"]
        assert [log["events"][-1]["code"] for log in logs] == [452, 452, 250, 250, 250]
    assert len([m for m in town.sink.messages if m.content.endswith(MAIL)]) == 3


async def test_a_quota_of_zero_is_none(town: Town) -> None:
    async with town.engine(plans={"default": {"daily_quota": 0}}):
        for _ in range(5):
            assert (await town.send("ann@out.test", "info@example.com", MAIL)).code == 250
        await town.sink.wait_for(5)
    assert len(town.sink.messages) == 5
