"""What an SMTP session brings back: announcements, a transaction's answers, and the fault that ended it.

Values only; ``smtp_opening`` and ``smtp_client`` make them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from forwarder.mail.outcome import Fault, Scope, Stage, reply_for, scope_at
from forwarder.mail.reply import Reply
from forwarder.net.smtp_wire import WireTrouble

_OF_SESSION = (421, 452, 503)  # at RCPT: closing, too many by now, out of order
_OF_MAILBOX = (550, 551, 552, 553)  # RFC 5321 4.2.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """What the peer announced."""

    pipelining: bool = False
    starttls: bool = False
    eightbitmime: bool = False
    smtputf8: bool = False
    size_known: bool = False  # SIZE is understood as a parameter of MAIL
    size: int | None = None  # octets; None: no limit announced


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """What was answered to one message."""

    mail: Reply
    recipients: tuple[Reply, ...] = ()  # in the order asked; empty when MAIL was refused
    data: Reply | None = None  # only when DATA was refused
    final: Reply | None = None  # only when the content was sent
    local: bool = False  # ``mail`` is our own word: the peer announced that it cannot take this message

    @property
    def may_be_of_session(self) -> bool:
        """Refused before the content in a way that a host may mean of the session: it has served enough in this one."""
        if not self.mail.positive or self.data is not None:
            return not self.local
        return self.final is None and all(map(_may_be_of_session, self.recipients))

    def among(self, asked: Sequence[bool]) -> "Answered":
        """The same for all recipients of a message of whom only some were asked for."""
        return replace(self, recipients=among(self.recipients, asked)) if self.recipients else self

    def judge(self, index: int) -> tuple[Scope, Reply]:
        """The reply that decides the fate of one recipient, and what it condemns if it is not a success."""
        if not self.mail.positive:
            return scope_at(Stage.MAIL, self.mail), self.mail
        recipient = meant(self.recipients[index], islice(self.recipients, index))
        if not recipient.positive:
            return scope_at(Stage.RCPT, recipient), recipient
        if self.data is not None:
            data = meant(self.data, self.recipients)
            return scope_at(Stage.DATA, data), data
        assert self.final is not None
        return scope_at(Stage.DOT, self.final), self.final


class SessionFault(Exception):
    """The session is over."""

    def __init__(
        self, stage: Stage, reply: Reply, *, fault: Fault | None = None, unknown: bool = False
    ) -> None:
        super().__init__(f"{stage}: {reply}")
        self.stage = stage
        self.reply = reply
        self.fault = fault  # None: the reply is the peer's
        self.unknown = unknown  # the content went out whole; nobody said what became of it
        self.answers: tuple[Reply, ...] = ()  # to the first of the RCPTs, MAIL having been accepted

    @property
    def local(self) -> bool:
        """The reply is our wording, not the peer's."""
        return self.fault is not None

    def refusal(self, index: int) -> Reply | None:
        """What the peer said to a recipient that it refused before the session was over.

        A 421 is no such word where nothing followed but 503: then it was said of the session. Nor is anything where
        DATA got an answer that is none to it: then each may be the answer to another command.
        """
        if index >= len(self.answers) or (self.stage is Stage.DATA and self.fault is Fault.PROTOCOL):
            return None
        answer = meant(self.answers[index], islice(self.answers, index))
        if answer.positive:
            return None
        went_on = self.stage is Stage.DOT or any(later.code != 503 for later in self.answers[index + 1 :])
        return answer if answer.code != 421 or went_on else None

    @property
    def at_recipient(self) -> bool:
        """Whether the peer, having taken MAIL, broke off at a recipient, who may be all that is the matter."""
        # Behind the last one's 421 it hangs up upon DATA.
        return self.stage is Stage.RCPT or (
            self.stage is Stage.DATA and any(answer.code == 421 for answer in self.answers)
        )

    def had_taken(self, index: int) -> bool:
        """Whether a recipient was taken before the peer broke off at another one."""
        return self.at_recipient and index < len(self.answers) and self.answers[index].positive

    @property
    def may_be_of_session(self) -> bool:
        """Whether all who were refused were so in a way that the host may mean of the session that it ended."""
        return self.stage is not Stage.DOT and all(map(_may_be_of_session, self.answers))

    @property
    def scope(self) -> Scope:
        """What the reply condemns."""
        return Scope.SITE if self.local else scope_at(self.stage, self.reply)


def _may_be_of_session(answer: Reply) -> bool:
    """Whether an answer to RCPT is a refusal that need not be about the recipient.

    An enhanced code tells (RFC 3463 3: the address, the mailbox; 0 says nothing), or else the code.
    """
    if answer.code in _OF_SESSION or not answer.permanent:
        return answer.code in _OF_SESSION
    subject = answer.enhanced.partition(".")[2].partition(".")[0] or "0"
    return answer.code not in _OF_MAILBOX if subject == "0" else subject not in ("1", "2")


def meant(answer: Reply, earlier: Iterable[Reply]) -> Reply:
    """What an answer means behind the earlier ones to recipients.

    RFC 5321 3.8: after a 421 the service is closing. A 503 from then on is about that and about no recipient.
    """
    if answer.code != 503:
        return answer
    return next((reply for reply in earlier if reply.code == 421), answer)


def among(answers: Sequence[Reply], asked: Sequence[bool]) -> tuple[Reply, ...]:
    """Answers to recipients with those put between that were not asked for, since the peer lacks SMTPUTF8.

    As far as there are answers, when the session was over before all had one.
    """
    left = list(reversed(answers))
    found: list[Reply] = []
    for was_asked in asked:
        if was_asked and not left:
            break
        found.append(left.pop() if was_asked else reply_for(Fault.SMTPUTF8))
    return tuple(found)


def announced(ehlo: bytes) -> Features:
    """The answer to EHLO, all its lines (RFC 5321 4.1.1.1; keywords in any case)."""
    offered: dict[bytes, bytes] = {}
    for line in ehlo.split(b"\n")[1:]:
        keyword, _, parameter = line[4:].strip().partition(b" ")
        offered.setdefault(keyword.upper(), parameter.strip())
    size = offered.get(b"SIZE", b"")
    return Features(
        pipelining=b"PIPELINING" in offered,
        starttls=b"STARTTLS" in offered,
        eightbitmime=b"8BITMIME" in offered,
        smtputf8=b"SMTPUTF8" in offered,
        # RFC 1870 4: 0 means no fixed limit
        size=(int(size) or None) if size.isdigit() and len(size) < 16 else None,
        size_known=b"SIZE" in offered,
    )


def fault_at(stage: Stage, fault: Fault, detail: str = "") -> SessionFault:
    """A fault in which the peer said nothing of its own."""
    return SessionFault(stage, reply_for(fault, detail), fault=fault)


def stage_of(answered: int, commands: int) -> Stage:
    """Where a pipelined envelope stopped, after so many answers to MAIL, each RCPT, and DATA."""
    if answered < 1:
        return Stage.MAIL
    return Stage.RCPT if answered < commands else Stage.DATA


_AFTER_DOT = {Fault.TIMEOUT: Fault.TIMEOUT_AFTER_DOT, Fault.LOST: Fault.LOST_AFTER_DOT}


def over(stage: Stage, trouble: WireTrouble) -> SessionFault:
    """What a trouble of the wire means at a stage; a 421 said before the close is the reply."""
    if trouble.said is not None:
        return SessionFault(stage, trouble.said)
    if stage is not Stage.DOT:
        return fault_at(stage, trouble.fault, trouble.detail)
    fault = _AFTER_DOT.get(trouble.fault, trouble.fault)
    detail = trouble.detail
    if fault is trouble.fault:
        detail = f"{detail}; the message may have been delivered"
    return SessionFault(stage, reply_for(fault, detail), fault=fault, unknown=True)
