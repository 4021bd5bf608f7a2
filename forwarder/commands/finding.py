"""A finding of ``forwarder check``: one question, its answer and, where it went wrong, what to do."""

from dataclasses import dataclass
from enum import StrEnum


class Grade(StrEnum):
    """How a question came out."""

    FINE = "fine"
    ADVICE = "advice"
    WRONG = "wrong"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One question and its answer."""

    about: str
    grade: Grade
    text: str

    @classmethod
    def fine(cls, about: str, text: str) -> "Finding":
        """It is as it should be."""
        return cls(about=about, grade=Grade.FINE, text=text)

    @classmethod
    def advice(cls, about: str, text: str) -> "Finding":
        """It might be better."""
        return cls(about=about, grade=Grade.ADVICE, text=text)

    @classmethod
    def wrong(cls, about: str, text: str) -> "Finding":
        """It must be mended."""
        return cls(about=about, grade=Grade.WRONG, text=text)
