"""Words that others read."""

from forwarder.mail.event import Status


def test_the_words_of_the_logs_api() -> None:
    assert [status.value for status in Status] == [
        "QUEUED",
        "REFUSED",
        "DELIVERED",
        "SOFT-BOUNCE",
        "HARD-BOUNCE",
    ]
