"""What screening found out about a message: the verdict, and the Authentication-Results header (RFC 8601).

The header is read back when the message is forwarded (``own_results``), so that its ARC set says what was seen when the
mail came in. Whatever the peer said (HELO name, domains) is written only when it is an ordinary name; anything else
becomes ``unknown``, so no text of a peer can pose as a result. ``remove_forged`` takes out the headers of a message
that claim to be ours (RFC 8601 section 5).
"""

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from forwarder.mail.address import Path
from forwarder.mail.arc import Chain, ChainStatus
from forwarder.mail.author import AuthorFault
from forwarder.mail.canonical import Canonical, relaxed_value
from forwarder.mail.dmarc import DmarcPolicy, DmarcResult, SpfResult
from forwarder.mail.reply import BAD_CONTENT, CANNOT_TELL, POLICY_REFUSAL, Reply
from forwarder.mail.verification import AuthResult, SignatureResult
from forwarder.mail.words import dots_closed

_NAME = re.compile(r"[A-Za-z0-9._+/=-]{1,255}\Z")
_PASSED = re.compile(
    r'(?:^|;)\s*(?:dkim|spf)=pass\b[^;]*?\s(?:header\.d|smtp\.mailfrom|smtp\.helo)="?([A-Za-z0-9._-]+)'
)
_ARC = re.compile(r"(?:^|;)\s*arc=(none|pass|fail)\b")
_DMARC_PASSED = re.compile(r";\s*dmarc=pass\b")
_HEADER = b"authentication-results"


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """All that screening found out; None or empty: not looked at, or nothing there."""

    spf: SpfResult | None = None
    dkim: Sequence[SignatureResult] = ()
    dmarc: DmarcResult | None = None
    # Of the other authors that a reader may take it to have; ``dmarc`` is the strictest.
    others: Sequence[DmarcResult] = ()
    arc: Chain | None = None


class OwnResults(NamedTuple):
    """Our own header of a stored message."""

    text: str  # what follows the authserv-id, unfolded
    chain: ChainStatus | None  # None: nobody could judge the chain

    @property
    def authenticated(self) -> frozenset[str]:
        """The domains that a signature or SPF proved to have sent the message; alignment is the caller's to judge."""
        return frozenset(domain.lower() for domain in _PASSED.findall(self.text))


def passed_before(results: Results, names: Collection[str]) -> bool:
    """Whether one of these domains sealed this very message last, and saw it pass DMARC (RFC 8617 5.2)."""
    chain = results.arc
    if chain is None or chain.status is not ChainStatus.PASS or chain.domain not in names:
        return False
    return _DMARC_PASSED.search(chain.results) is not None


def verdict(results: Results, *, reject: bool, passed: bool = False) -> Reply | None:
    """The refusal a message deserves, or None.

    ``reject`` is whether p=reject is honoured. ``passed``: it did when we let it in, and is back as we sent it on; what
    proved its author then was SPF, which no forwarder can keep.
    """
    dmarc = results.dmarc
    if dmarc is None or not reject:
        return None
    if dmarc.result is AuthResult.PERMERROR and dmarc.reason == AuthorFault.SEVERAL:
        # RFC 7489 6.6.1: which author a reader will be shown cannot be known, so none can be vouched for.
        return BAD_CONTENT.saying("the message must name one author in one From header")
    if passed:
        return None
    if dmarc.policy is DmarcPolicy.REJECT and dmarc.result is AuthResult.FAIL:
        return POLICY_REFUSAL.saying(
            f"{dmarc.domain} asks to refuse mail that fails DMARC, as this message does"
        )
    if dmarc.policy is DmarcPolicy.REJECT and dmarc.result is AuthResult.TEMPERROR:
        # Whoever can make a look-up fail, of a key that nobody needs, must not gain by it (RFC 7489 6.6.2).
        return _not_now(dmarc)
    return None


def borrowed_spf(results: Results, reverse_path: Path, *, ours: Callable[[str], bool]) -> Reply | None:
    """The refusal of mail to which our own SPF would lend what it lacks, or None.

    Refused is mail whose author claims to be of our organisation (``ours`` knows its domains), where DMARC failed or
    cannot be judged now, and that domain asks for caution. Such mail is sent on with the reverse-path that it came with
    (``outbound.delivery``). Where that is of our organisation, or null so that our HELO name counts (RFC 7208 2.4), SPF
    passes for what we send, and the next hop would see DMARC pass. A domain with ``p=none`` asks nobody for anything:
    its mail goes on, marked.
    """
    if results.dmarc is None or not (reverse_path.is_null or ours(reverse_path.domain)):
        return None
    for dmarc in (results.dmarc, *results.others):
        if dmarc.policy is DmarcPolicy.NONE or not ours(dmarc.domain):
            continue
        if dmarc.result is AuthResult.TEMPERROR:
            return _not_now(dmarc)
        if dmarc.result is AuthResult.FAIL:
            return POLICY_REFUSAL.saying(
                f"mail of {dmarc.domain} from outside must pass DMARC, and this message does not"
            )
    return None


def _not_now(dmarc: DmarcResult) -> Reply:
    return CANNOT_TELL.saying(
        f"whether this is mail of {dmarc.domain} cannot be told at the moment, try again later"
    )


def authentication_results_header(authserv_id: str, results: Results) -> bytes:
    """The header to prepend, one result a line."""
    return f"Authentication-Results: {authserv_id}; {results_text(results)}\r\n".encode(
        "ascii", "replace"
    ).replace(b"; ", b";\r\n\t")


def results_text(results: Results) -> str:
    """The results as RFC 8601 writes them, unfolded; ``none`` when nothing was looked at."""
    parts: list[str] = []
    if results.spf is not None:
        spf = results.spf
        checked = "smtp.helo" if spf.identity == "helo" else "smtp.mailfrom"
        parts.append(f"spf={spf.result}{_reason(spf.reason)} {checked}={_name(spf.domain)}")
    parts += [_dkim(signature) for signature in results.dkim]
    if results.arc is not None and not results.arc.temporary:
        parts.append(f"arc={results.arc.status}{_reason(results.arc.reason)}")
    if results.dmarc is not None:
        dmarc = results.dmarc
        asked = f" (p={dmarc.policy})" if dmarc.result in (AuthResult.PASS, AuthResult.FAIL) else ""
        author = f" header.from={_name(dmarc.domain)}" if dmarc.domain else ""
        parts.append(f"dmarc={dmarc.result}{asked}{_reason(dmarc.reason)}{author}")
    return "; ".join(parts) or "none"


def remove_forged(content: bytes, authserv_id: str, message: Canonical | None = None) -> bytes:
    """Content without the Authentication-Results headers that name us; the same object when there are none.

    ``message``: the content as somebody has split it already.
    """
    head_end = content.find(b"\r\n\r\n")
    if _HEADER not in (content if head_end < 0 else content[:head_end]).lower():
        return content
    message = message or Canonical(content)
    kept = [
        raw
        for name, raw in message.fields
        if name != _HEADER or not _claims(_value(raw), authserv_id.lower())
    ]
    if len(kept) == len(message.fields):
        return content
    return b"".join(kept) + b"\r\n" + content[message.body_start :]


def own_results(message: Canonical, authserv_id: str) -> OwnResults | None:
    """What our topmost Authentication-Results header says; None when there is none."""
    for raw in message.instances(_HEADER):
        value = _value(raw)
        name, _, text = value.partition(";")
        if name.strip().lower() == authserv_id.lower():
            chain = _ARC.search(text)
            return OwnResults(text=text.strip(), chain=ChainStatus(chain.group(1)) if chain else None)
    return None


def _value(raw: bytes) -> str:
    return relaxed_value(raw).decode("utf-8", "replace")


def _claims(value: str, authserv_id: str) -> bool:
    """Whether a reader might take the header for ours: our name stands before its first result.

    Comments, quotes and escapes are left out, and blanks beside a dot; the root's dot may end the name (RFC 1034 3.1).
    A name of which ours is a part is another's.
    """
    kept: list[str] = []
    depth = 0
    characters = iter(value.lstrip("; "))
    for character in characters:
        if character == "\\":
            escaped = next(characters, "")
            kept.append("" if depth else escaped)
        elif character == "(":
            depth += 1
        elif character == ")" and depth:
            depth -= 1
            kept.append(" ")
        elif depth:
            continue
        elif character == ";":
            break
        elif character != '"':
            kept.append(character)
    text = "".join(kept).lower()
    ours = re.compile(rf"(?<![\w.-]){re.escape(authserv_id)}(?!\.?[\w-])")
    if ours.search(text) or ours.search(dots_closed(text)):
        return True
    # A comment that never ends hides everything from us, and perhaps not from the next reader.
    return depth > 0 and authserv_id in value.lower()


def _dkim(signature: SignatureResult) -> str:
    text = f"dkim={signature.result}{_reason(signature.reason)}"
    if signature.domain:
        text += f" header.d={_name(signature.domain)} header.s={_name(signature.selector)}"
        text += f" header.a={_name(signature.algorithm)} header.b={_name(signature.signature)}"
    return text


def _name(value: str) -> str:
    """A value that is an ordinary name, quoted when RFC 2045 asks for it; everything else is not repeated."""
    if not _NAME.match(value):
        return "unknown"
    return f'"{value}"' if "/" in value or "=" in value else value


def _reason(text: str) -> str:
    """RFC 8601 reasonspec; the texts are ours, and kept to characters that need no escape."""
    clean = re.sub(r"[^A-Za-z0-9 .,:=_-]", "", text)[:200]
    return f' reason="{clean}"' if clean else ""
