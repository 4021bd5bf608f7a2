"""DMARC (RFC 7489): the policy record, alignment and the result, over DNS answers fetched beforehand.

The organisational domain comes from the caller, as a function: the public suffix list is data, not a decision.
FAIL is only said when everything that could have passed was looked up: trouble with DNS is TEMPERROR, for which nobody
is refused for good. Of the RFC's successor (RFC 9989) the tag ``t`` is heeded, by which a domain asks that its policy
be not applied in full yet; its search for the organisational domain in the DNS, and ``np``, are not.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from forwarder.mail.author import Author
from forwarder.mail.records import DMARC_VERSION
from forwarder.mail.tags import MAX_OCTETS
from forwarder.mail.verification import Answers, AuthResult, SignatureResult

Organisational = Callable[[str], str]


class DmarcPolicy(StrEnum):
    """What a domain asks receivers to do with mail that fails."""

    NONE = "none"
    QUARANTINE = "quarantine"
    REJECT = "reject"


_MILDER = {
    DmarcPolicy.REJECT: DmarcPolicy.QUARANTINE,
    DmarcPolicy.QUARANTINE: DmarcPolicy.NONE,
    DmarcPolicy.NONE: DmarcPolicy.NONE,
}
# Mildest first. What nobody could tell asks for less than what is known to ask for caution.
_STRICTNESS = (DmarcPolicy.NONE, None, DmarcPolicy.QUARANTINE, DmarcPolicy.REJECT)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpfResult:
    """SPF of one session and message."""

    result: AuthResult
    domain: str = ""  # the domain that was checked
    identity: str = "mailfrom"  # or "helo"
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DmarcResult:
    """DMARC of one message."""

    result: AuthResult
    domain: str = ""  # of the From header
    # What applies to this message when it fails; None: nobody could tell.
    policy: DmarcPolicy | None = DmarcPolicy.NONE
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One published policy."""

    policy: DmarcPolicy
    subdomain_policy: DmarcPolicy
    strict_dkim: bool = False
    strict_spf: bool = False
    percent: int = 100
    testing: bool = False  # t=y, which took the place of pct (RFC 9989 4.7)


def record_names(author: Author, organisational: Organisational) -> tuple[str, ...]:
    """The TXT names to ask for, the one that decides first."""
    names = (name for domain in author.domains for name in _record_names(domain, organisational))
    return tuple(dict.fromkeys(names))


def _record_names(domain: str, organisational: Organisational) -> tuple[str, ...]:
    return tuple(f"_dmarc.{name}" for name in dict.fromkeys((domain, organisational(domain))))


def published(records: Sequence[bytes]) -> list[bytes]:
    """Those of the TXT records of a name that are policies: the version comes first (RFC 7489 6.6.3, step 2)."""
    return [record for record in records if DMARC_VERSION.match(record)]


def parse_record(records: Sequence[bytes]) -> Record | None:
    """The policy among the TXT records of a name; None when there is none or more than one (RFC 7489 6.6.3)."""
    found = published(records)
    if len(found) != 1:
        return None
    tags = _readable_tags(found[0])
    policy = _policy(tags.get("p"))
    subdomain_policy = _policy(tags.get("sp", tags.get("p")))
    if policy is None or subdomain_policy is None:
        # RFC 7489 6.6.3: with somebody to report to, a record with a bad policy counts as p=none.
        if "rua" not in tags:
            return None
        policy = subdomain_policy = DmarcPolicy.NONE
    percent = tags.get("pct", "100")
    return Record(
        policy=policy,
        subdomain_policy=subdomain_policy,
        strict_dkim=tags.get("adkim", "r").lower() == "s",
        strict_spf=tags.get("aspf", "r").lower() == "s",
        percent=int(percent) if percent.isascii() and percent.isdigit() and len(percent) <= 3 else 100,
        testing=tags.get("t", "n").lower() == "y",
    )


def _readable_tags(record: bytes) -> dict[str, str]:
    """RFC 7489 6.3: what cannot be read is ignored, since a slip in ``rua`` must not switch off ``p=reject``.

    Of a tag given twice the first counts.
    """
    tags: dict[str, str] = {}
    for part in record[:MAX_OCTETS].decode("utf-8", "replace").split(";"):
        name, equals, text = part.partition("=")
        if equals:
            tags.setdefault(name.strip().lower(), text.strip())
    return tags


def evaluate(
    author: Author,
    answers: Answers,
    *,
    spf: SpfResult | None,
    dkim: Sequence[SignatureResult],
    organisational: Organisational,
) -> list[DmarcResult]:
    """The result for each author that a reader may take the message to have, the strictest first."""
    if author.fault is not None:
        return [DmarcResult(result=AuthResult.PERMERROR, reason=author.fault.value)]
    found = [_evaluate(domain, answers, spf, dkim, organisational) for domain in author.domains]
    return sorted(found, key=_strictness, reverse=True)


def _strictness(found: DmarcResult) -> tuple[int, bool]:
    """What is refused comes first, then what a policy would have treated with caution, and what passes last."""
    if found.result in (AuthResult.FAIL, AuthResult.TEMPERROR):
        return 2 + _STRICTNESS.index(found.policy), found.result is AuthResult.FAIL
    return int(found.result is not AuthResult.PASS), False


def _evaluate(
    domain: str,
    answers: Answers,
    spf: SpfResult | None,
    dkim: Sequence[SignatureResult],
    organisational: Organisational,
) -> DmarcResult:
    record: Record | None = None
    policy = DmarcPolicy.NONE
    for index, name in enumerate(_record_names(domain, organisational)):
        texts = answers.get(name)
        if texts is None:
            return DmarcResult(
                result=AuthResult.TEMPERROR,
                domain=domain,
                policy=None,
                reason="the policy could not be looked up",
            )
        if published(texts):  # RFC 7489 6.6.3: several, or one that says nothing, end the search too
            record = parse_record(texts)
            if record is not None:
                policy = record.subdomain_policy if index else record.policy
            break
    if record is None:
        return DmarcResult(result=AuthResult.NONE, domain=domain)
    if record.testing:
        policy = _MILDER[policy]
    elif policy is DmarcPolicy.REJECT and record.percent < 100:
        # RFC 7489 6.6.4: a share of the mail gets the next milder policy. No dice here: all of it does.
        policy = DmarcPolicy.QUARANTINE
    same = _aligned(domain, organisational)
    verdicts = [signature.result for signature in dkim if same(signature.domain, record.strict_dkim)]
    if spf is not None and same(spf.domain, record.strict_spf):
        verdicts.append(spf.result)
    if AuthResult.PASS in verdicts:
        result = AuthResult.PASS
    elif AuthResult.TEMPERROR in verdicts:
        result = AuthResult.TEMPERROR
    else:
        result = AuthResult.FAIL
    return DmarcResult(result=result, domain=domain, policy=policy)


def _aligned(author_domain: str, organisational: Organisational) -> Callable[[str, bool], bool]:
    organisation = organisational(author_domain)

    def same(domain: str, strict: bool) -> bool:
        if not domain:
            return False
        return domain == author_domain or (not strict and organisational(domain) == organisation)

    return same


def _policy(value: str | None) -> DmarcPolicy | None:
    try:
        return DmarcPolicy((value or "").lower())
    except ValueError:
        return None
