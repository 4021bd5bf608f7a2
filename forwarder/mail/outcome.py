"""The one place that judges a peer's reply: delivered, next host, retry later, or give up.

What it does: ``decide`` turns a reply and what it condemns (``Scope``) into an ``Action``; ``scope_at`` says what a
reply at a stage of the dialogue condemns; ``reply_for`` gives the reply that stands for a failure where no server
spoke (no connection, no TLS, no DNS), so that everything that can happen to an attempt is a ``Reply``.

What it promises: what is not understood is temporary. Only a permanent reply that a server said about the message or
the recipient, or that every host of the site said at its door, ends a delivery.

Pure; its test is a table. An ``except`` elsewhere that picks between retry and giving up is a bug.
"""

from dataclasses import replace
from enum import StrEnum

from forwarder.mail.reply import Reply


class Scope(StrEnum):
    """What a reply condemns."""

    SITE = "site"  # this host, now: nothing is known about the message
    MESSAGE = "message"  # all recipients of this transaction
    RECIPIENT = "recipient"  # one recipient


class Stage(StrEnum):
    """Where in the dialogue a reply came."""

    CONNECT = "connect"  # no connection, or the greeting
    HELLO = "hello"  # EHLO, HELO
    STARTTLS = "starttls"
    MAIL = "mail"
    RCPT = "rcpt"
    DATA = "data"
    DOT = "dot"  # the end of the content


class Action(StrEnum):
    """What to do with the delivery now."""

    DELIVERED = "delivered"  # the destination has it
    NEXT_HOST = "next host"  # try another MX host in this attempt
    RETRY_LATER = "retry later"  # soft bounce; mail.schedule says when
    GIVE_UP = "give up"  # hard bounce, and a DSN if there is somebody to tell


class Fault(StrEnum):
    """A failure of an attempt in which no server said a reply of its own."""

    REFUSED = "refused"  # connection refused
    UNREACHABLE = "unreachable"  # no route to the host, or no address of a usable family
    CONNECT_TIMEOUT = "connect timeout"
    TIMEOUT = "timeout"  # connected, then silent for too long
    TIMEOUT_AFTER_DOT = "timeout after dot"  # may have been delivered: RFC 1047
    LOST = "lost"  # the connection broke in the middle
    LOST_AFTER_DOT = "lost after dot"  # may have been delivered: RFC 1047
    PROTOCOL = "protocol"  # what came is not SMTP, or too much of it
    TLS = "tls"  # the handshake failed
    TLS_REQUIRED = "tls required"  # policy wants TLS and the server offers none
    CERTIFICATE = "certificate"  # MTA-STS or DANE wants a certificate that the host does not have
    POLICY = "policy"  # the MTA-STS policy of the domain names none of its MX hosts
    DNS = "dns"  # the resolver cannot tell
    NO_DOMAIN = "no domain"  # NXDOMAIN
    NO_HOST = "no host"  # the domain has neither MX nor address
    NULL_MX = "null mx"  # RFC 7505: the domain says that it takes no mail
    LOOP = "loop"  # the best MX host is this engine, and the domain is not hosted here
    OWN_DOOR = "own door"  # the best MX host is this engine, which hosts the domain and does not listen where we know
    PRIVATE = "private"  # every host has a private address, which we do not dial
    SMTPUTF8 = "smtputf8"  # the address is not ASCII and the host does not know SMTPUTF8
    TOO_BIG = "too big"  # above the SIZE the host announced
    EXPIRED = "expired"  # tried for as long as the policy allows
    INTERNAL = "internal"  # our own trouble


_FAULTS: dict[Fault, Reply] = {
    fault: Reply(code=code, enhanced=enhanced, text=text)
    for fault, code, enhanced, text in (
        (Fault.REFUSED, 451, "4.4.1", "the host refused the connection"),
        (Fault.UNREACHABLE, 451, "4.4.1", "the host cannot be reached"),
        (Fault.CONNECT_TIMEOUT, 451, "4.4.1", "the host did not answer the connection in time"),
        (Fault.TIMEOUT, 451, "4.4.2", "the host did not answer in time"),
        (
            Fault.TIMEOUT_AFTER_DOT,
            451,
            "4.4.2",
            "the host did not answer after the end of the data; the message may have been delivered",
        ),
        (Fault.LOST, 451, "4.4.2", "the host closed the connection"),
        (
            Fault.LOST_AFTER_DOT,
            451,
            "4.4.2",
            "the host closed the connection after the end of the data; the message may have been delivered",
        ),
        (Fault.PROTOCOL, 451, "4.5.0", "the host does not speak SMTP as expected"),
        (Fault.TLS, 451, "4.7.5", "the TLS handshake with the host failed"),
        # RFC 5248: X.7.10 is "encryption needed"
        (Fault.TLS_REQUIRED, 451, "4.7.10", "the host does not offer TLS, which is required"),
        (Fault.CERTIFICATE, 451, "4.7.5", "the certificate of the host is not the one required"),
        (Fault.POLICY, 451, "4.7.5", "the MTA-STS policy of the domain names none of its mail hosts"),
        (Fault.DNS, 451, "4.4.3", "the mail hosts of the domain could not be looked up"),
        (Fault.NO_DOMAIN, 550, "5.1.2", "the domain does not exist"),
        (Fault.NO_HOST, 550, "5.1.2", "the domain has no mail host"),
        (Fault.NULL_MX, 556, "5.1.10", "the domain accepts no mail"),  # RFC 7505 4.2
        (Fault.LOOP, 554, "5.4.6", "mail for the domain loops back to this host"),
        (
            Fault.OWN_DOOR,
            451,
            "4.4.6",
            "mail for the domain comes back to this host, which cannot take it yet",
        ),
        (Fault.PRIVATE, 554, "5.4.4", "the mail hosts of the domain have no public address"),
        # RFC 6531 3.5
        (Fault.SMTPUTF8, 553, "5.6.7", "the host does not accept internationalised addresses"),
        (Fault.TOO_BIG, 552, "5.3.4", "the message is larger than the host accepts"),  # RFC 1870 6.1
        (Fault.EXPIRED, 554, "5.4.7", "could not be delivered for too long, giving up"),  # RFC 3463 3.5
        (Fault.INTERNAL, 451, "4.3.0", "temporary failure here, will be tried again"),
    )
}

_OF_ENCRYPTION = ("4.7.5", "4.7.10")  # of TLS, TLS_REQUIRED, CERTIFICATE and POLICY
_SITE_STAGES = frozenset({Stage.CONNECT, Stage.HELLO, Stage.STARTTLS})


def reply_for(fault: Fault, detail: str = "") -> Reply:
    """The reply that stands for a failure without one; ``detail`` (printable) is appended to its text."""
    reply = _FAULTS[fault]
    return reply.saying(f"{reply.text}: {detail}") if detail else reply


def scope_at(stage: Stage, reply: Reply) -> Scope:
    """What a reply at this stage condemns."""
    # RFC 5321 3.8, 4.2.2: 421 may answer any command and says that the service is closing, nothing else.
    if reply.code == 421 or stage in _SITE_STAGES:
        return Scope.SITE
    return Scope.RECIPIENT if stage is Stage.RCPT else Scope.MESSAGE


def decide(scope: Scope, reply: Reply, *, more_hosts: bool, others_may_recover: bool = False) -> Action:
    """What a reply asks of us.

    A permanent reply about the message or the recipient ends the delivery. Trouble with the site does not while
    another host is left; when the last one says 5xx at its door (RFC 7504: 521, RFC 5321 3.1: 554) and no earlier
    host failed in a way that another hour may mend (``others_may_recover``), nobody there wants this mail.
    """
    if reply.positive:
        return Action.DELIVERED
    if is_permanent(scope, reply):
        if scope is not Scope.SITE:
            return Action.GIVE_UP
        if not more_hosts and not others_may_recover:
            return Action.GIVE_UP
    return Action.NEXT_HOST if more_hosts else Action.RETRY_LATER


def is_permanent(scope: Scope, reply: Reply) -> bool:
    """Whether a reply is final for what it condemns."""
    if scope is Scope.RECIPIENT and reply.code == 552:
        # RFC 5321 4.5.3.1.10: old servers say 552 for too many recipients; treat it as 452. A mailbox that is
        # really full and says 552 is retried for some days, which harms nobody.
        return False
    return reply.permanent


def wants_tls(reply: Reply) -> bool:
    """Whether a host refuses for good because nothing is encrypted.

    RFC 3207 4: 530. RFC 5248: X.7.10. Google's word for it is X.7.29 (its SMTP error reference).
    """
    return reply.permanent and (reply.code == 530 or reply.enhanced in ("5.7.10", "5.7.29"))


def goes_apart(reply: Reply, *, beside_its_domain: bool) -> bool:
    """Whether who is refused at RCPT beside others that are taken is to be named in another transaction at once.

    RFC 5321 4.5.3.1.10: too many; 552 there is an old word for 452. RFC 3463 3.6: X.5.3 is for this, whatever the code.
    And hosts of many domains that take one in a transaction say so of the others in a word that any trouble may have
    (Google: 451 4.3.0): any temporary one counts, unless some of its own domain were taken.
    """
    if reply.code in (452, 552) or reply.enhanced[1:] == ".5.3":
        return True
    return reply.temporary and reply.code != 421 and not beside_its_domain


def untried(last: Reply | None) -> Reply:
    """What is said of mail whose host is left alone for a while, after this last word of it; None: it had none.

    A word to other mail is no judgement on this: a permanent one becomes temporary.
    """
    text = f"the host is not being tried for a while; it said: {last or 'no answer'}"
    if last is None or last.permanent:
        return Reply(code=451, enhanced="4.4.1", text=text)
    return last.saying(text)


def expired(last: Reply) -> Reply:
    """What a delivery ends with when its message is too old: our 5.4.7 with the last thing that was said.

    Where that was about encryption the code goes on saying so: time alone will not mend it (RFC 3463 3.8).
    """
    reply = reply_for(Fault.EXPIRED, f"last reply was {last}")
    return replace(reply, enhanced=f"5{last.enhanced[1:]}") if last.enhanced in _OF_ENCRYPTION else reply
