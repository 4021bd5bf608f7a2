"""What the engine writes about itself: one line an event, bounded, without control characters or secrets."""

import io
import json
import logging

import pytest
import structlog

from forwarder.config import Settings
from forwarder.diagnostics import set_up


@pytest.fixture
def output() -> io.StringIO:
    stream = io.StringIO()
    set_up(
        Settings.model_validate({"hostname": "mx.test", "logs": {"level": "debug", "format": "json"}}),
        stream=stream,
    )
    return stream


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    text = stream.getvalue()
    assert text.isascii()
    return [json.loads(line) for line in text.splitlines()]


HOSTILE = "a\r\nFAKE: b\x1b[31mred\x00\u2028next\u2029\x85\x7f{0.__class__}%s%n\udcff"


@pytest.mark.parametrize("format_", ["json", "console"])
def test_hostile_text_stays_on_one_line_without_control_characters(format_: str) -> None:
    stream = io.StringIO()
    set_up(Settings.model_validate({"hostname": "a", "logs": {"format": format_}}), stream=stream)
    structlog.get_logger("test").warning("refused", helo=HOSTILE, subject="x" * 1_000_000)
    logging.getLogger("elsewhere").warning("said %s", HOSTILE)
    written = stream.getvalue()
    assert written.count("\n") == 2
    assert all(character == "\n" or character >= " " for character in written)
    assert not any(character in written for character in "\u2028\u2029\x85\x7f\udcff\x1b")
    assert "{0.__class__}%s%n" in written
    assert len(written) < 6000


def test_every_event_is_one_object_with_bounded_fields(output: io.StringIO) -> None:
    structlog.get_logger("test").info("x", many=list(range(10_000)), raw=b"\x00\xff" * 900, number=3)
    (event,) = lines(output)
    assert all(len(value) <= 1024 for value in event.values() if isinstance(value, str))
    assert event["number"] == 3
    assert event["event"] == "x"


@pytest.mark.parametrize(
    "name", ["password", "new_password", "api_key", "authorization", "srs_secret", "token", "private_key"]
)
def test_what_is_named_as_a_secret_is_not_shown(output: io.StringIO, name: str) -> None:
    structlog.get_logger("test").debug("x", **{name: "hunter2"})
    assert [event[name] for event in lines(output)] == ["(not shown)"]
    assert "hunter2" not in output.getvalue()


def test_an_exception_is_one_line_with_its_places(output: io.StringIO) -> None:
    def fall() -> None:
        raise RuntimeError("line one\nline two")

    try:
        fall()
    except RuntimeError as error:
        structlog.get_logger("test").error("it fell", exc_info=error)
        logging.getLogger("elsewhere").exception("it fell too")
        structlog.get_logger("test").exception("it fell for the third time")
    first, second, third = lines(output)
    for event in (first, second, third):
        assert event["level"] == "error"
        assert event["error"] == "RuntimeError: line one\\nline two"
        assert str(event["where"]).startswith("tests/test_diagnostics.py:")
        assert "fall" in str(event["where"])
    assert second["logger"] == "elsewhere"


def test_the_level_is_that_of_the_configuration() -> None:
    stream = io.StringIO()
    set_up(Settings.model_validate({"hostname": "a", "logs": {"level": "warning"}}), stream=stream)
    structlog.get_logger("test").info("quiet")
    logging.getLogger("elsewhere").info("quiet")
    structlog.get_logger("test").warning("loud")
    assert [event["event"] for event in lines(stream)] == ["loud"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("format_", "stream", "is_json"),
    [
        ("auto", io.StringIO, True),
        ("auto", Terminal, False),
        ("json", Terminal, True),
        ("console", io.StringIO, False),
    ],
)
def test_who_watches_gets_columns(format_: str, stream: type[io.StringIO], is_json: bool) -> None:
    out = stream()
    set_up(Settings.model_validate({"hostname": "a", "logs": {"format": format_}}), stream=out)
    structlog.get_logger("test").info("hello")
    logging.getLogger("elsewhere").info("hello")
    assert [line.startswith("{") for line in out.getvalue().splitlines()] == [is_json, is_json]


def test_colours_are_for_who_wants_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, coloured in (("", True), ("1", False)):  # https://no-color.org: set, and not empty
        monkeypatch.setenv("NO_COLOR", value)
        out = Terminal()
        set_up(Settings.model_validate({"hostname": "a"}), stream=out)
        structlog.get_logger("test").info("hello")
        assert ("\x1b[" in out.getvalue()) is coloured


def test_what_libraries_say_of_each_query_and_command_is_not_written(output: io.StringIO) -> None:
    """At any level: statements have parameters, and these are passwords and people's mail."""
    for name in (
        "sqlalchemy.engine",
        "mail.log",
        "uvicorn.access",
        "alembic.runtime",
        "httpcore.http11",
        "asyncio",
    ):
        logging.getLogger(name).info("a secret")
    logging.getLogger("mail.log").warning("a command")
    logging.getLogger("mail.log").error("a fault")
    logging.getLogger("asyncio").warning("a slow callback")
    logging.getLogger("elsewhere").debug("a detail")
    assert [event["event"] for event in lines(output)] == ["a fault", "a slow callback", "a detail"]
    set_up(Settings.model_validate({"hostname": "a", "logs": {"level": "error"}}), stream=output)
    logging.getLogger("asyncio").warning("another slow callback")
    assert len(lines(output)) == 3


def test_a_line_is_out_before_anything_else_happens() -> None:
    raw = io.BytesIO()
    set_up(Settings.model_validate({"hostname": "a"}), stream=io.TextIOWrapper(raw))
    structlog.get_logger("test").error("it is about to end")
    assert raw.getvalue().endswith(b"}\n")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain ü", "plain ü"),
        ("a\tb", "a\\tb"),
        ("\u202eevil", "\\u202eevil"),
        ("x" * 1024, "x" * 1024),
        ("x" * 1025, "x" * 1021 + "…"),
        ("ü" * 513, "ü" * 510 + "…"),
        ("\t" * 512, "\\t" * 512),
    ],
)
def test_a_field_is_cut_and_escaped_by_the_octets_it_takes(
    output: io.StringIO, text: str, expected: str
) -> None:
    structlog.get_logger("test").info("x", said=text)
    (event,) = lines(output)
    assert event["said"] == expected


def test_a_stream_that_is_gone_costs_the_line_and_nothing_else() -> None:
    stream = io.StringIO()
    set_up(Settings.model_validate({"hostname": "a"}), stream=stream)
    stream.close()
    structlog.get_logger("test").error("nobody reads this")
    again = io.StringIO()
    set_up(Settings.model_validate({"hostname": "a"}), stream=again)
    structlog.get_logger("test").error("somebody reads this")
    assert "somebody reads this" in again.getvalue()
    assert "nobody" not in again.getvalue()
