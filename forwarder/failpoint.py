"""Named points at which a test may make this process die, fail or stall.

The one global of the house, and a deliberate one: a point must be reachable from any room without a constructor
argument that only tests would pass. Nothing is armed unless ``arm`` is called with FORWARDER_TEST=1 in the
environment; then FORWARDER_FAILPOINT holds ``name[:nth]:kill|raise|sleep``, several joined by commas. ``reach`` costs
one comparison when nothing is armed.

    kill    SIGKILL to this process: no handler runs, no buffer is flushed
    raise   FailpointError, which no room expects
    sleep   the thread stops for SLEEP seconds: a disk or a lock that hangs

POINTS lists every point with what is durable or visible before it; a name that is not in it cannot be armed.
"""

import os
import signal
import time
from collections.abc import Mapping

SLEEP = 3.0

# Between the kinds of rows of a message nothing is inserted yet on PostgreSQL, which is given all of them at once.
POINTS: dict[str, str] = {
    "receive.after-dot": "the content is read; nothing is stored",
    "receive.before-enqueue": "the message is built; nothing is stored",
    "writer.before-begin": "a group is collected; no transaction is open",
    "enqueue.before-messages": "the transaction is open and empty",
    "enqueue.before-deliveries": "messages are inserted, not committed",
    "enqueue.before-logs": "deliveries are inserted, not committed",
    "enqueue.before-events": "logs are inserted, not committed",
    "insert.next-rows": "the first rows of a kind that takes several statements are inserted, not committed",
    "writer.before-commit": "everything of the group is written, nothing is committed",
    "writer.after-commit": "the group is durable; nobody has been told",
    "receive.before-reply": "the message is durable; the client has not read 250",
    "receive.after-reply": "the client may have read 250; the dispatcher does not know the message",
    "dispatch.claimed": "leases are taken and attempts counted; nothing is dialled",
    "deliver.before-connect": "the attempt is counted; no socket is open",
    "deliver.before-mail": "a session is open; nothing is sent",
    "deliver.before-content": "the remote took the envelope; the content is not sent",
    "deliver.before-dot-reply": "the content and the dot are sent; the remote may have taken it",
    "deliver.after-dot-reply": "the remote said 250; nothing is settled",
    "settle.before-deliveries": "the settling transaction is open and empty",
    "settle.before-events": "deliveries are settled, not committed",
    "settle.before-reports": "events are inserted, the DSN is not, nothing is committed",
    "settle.before-content": "the DSN is inserted; the finished messages are not deleted, nothing is committed",
    "settle.after-commit": "the outcome is durable; the dispatcher does not know",
    "takeover.before-release": "dead workers are found; their leases stand",
    "release.before-commit": "a drain gives leases back, not committed",
    "purge.before-commit": "old journal rows are deleted, not committed",
    "migrate.before-commit": "the schema is changed, not committed",
    "migrate.after-commit": "the schema is changed and committed; the migration has not reported",
    "start.after-keys": "keys are made; no store is open",
}


class FailpointError(RuntimeError):
    """Raised at an armed point; stands for any error nobody thought of."""


_armed: dict[str, tuple[int, str]] = {}
_reached: dict[str, int] = {}


def arm(environ: Mapping[str, str]) -> None:
    """Arm what FORWARDER_FAILPOINT names, if FORWARDER_TEST is 1; ValueError for a name or an action unknown."""
    _armed.clear()
    _reached.clear()
    if environ.get("FORWARDER_TEST") != "1":
        return
    for item in filter(None, environ.get("FORWARDER_FAILPOINT", "").split(",")):
        name, *rest = item.split(":")
        nth = int(rest[0]) if len(rest) == 2 else 1
        action = rest[-1] if rest else ""
        if name not in POINTS or action not in ("kill", "raise", "sleep") or nth < 1:
            raise ValueError(
                f"FORWARDER_FAILPOINT: {item!r} is not name[:nth]:kill|raise|sleep with a name of {__name__}.POINTS"
            )
        _armed[name] = (nth, action)


def reach(name: str) -> None:
    """Say that the code has come to ``name``; does nothing unless that point is armed and this is its n-th time."""
    if not _armed or name not in _armed:
        return
    nth, action = _armed[name]
    _reached[name] = _reached.get(name, 0) + 1
    if _reached[name] != nth:
        return
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "sleep":
        time.sleep(SLEEP)
    else:
        raise FailpointError(name)
