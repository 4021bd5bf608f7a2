"""What time it is, for everything that is not given a clock: tests give one that stands still."""

from datetime import UTC, datetime


def utc_now() -> datetime:
    """The system's clock: aware, UTC."""
    return datetime.now(UTC)
