"""The engine's own tasks, watched: none ends silently, and health says what is wrong now.

``Watchdog.keep`` runs a coroutine for as long as the engine lives. When it fails, or returns though nobody stopped
it, that is logged and it is started again after a pause that grows from half a second to ten. Until it runs again,
readiness says so. ``Watchdog.probe`` asks a question again and again whose failing makes the engine not ready: the
store's answer is one. Nothing here decides what to do with mail.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import structlog

FIRST_PAUSE = 0.5
LONGEST_PAUSE = 10.0
STEADY_AFTER = 30.0  # seconds of work after which a failure counts as the first again
_UNASKED = "not asked yet"

log = structlog.get_logger("watchdog")


@dataclass(slots=True, kw_only=True)
class Watchdog:
    """Keeps tasks running and collects what is wrong."""

    _tasks: dict[str, "asyncio.Task[None]"] = field(default_factory=dict)
    _running: dict[str, bool] = field(default_factory=dict)  # False: it is to be started, or started again
    _probes: dict[str, str] = field(default_factory=dict)  # name -> what is wrong; "": fine
    _ending: bool = False

    def keep(self, name: str, make: Callable[[], Coroutine[Any, Any, object]]) -> None:
        """Run ``make()`` until ``stop``; again whenever it ends."""
        self._running[name] = False
        self._tasks[name] = asyncio.create_task(self._run(name, make), name=name)

    def probe(
        self, name: str, ask: Callable[[], Awaitable[object]], *, every: timedelta, patience: timedelta
    ) -> None:
        """Ask every so often; an exception, or no answer within ``patience``, is a reason not to be ready."""
        self._probes[name] = _UNASKED
        self.keep(
            f"probe {name}", lambda: self._ask(name, ask, every.total_seconds(), patience.total_seconds())
        )

    def troubles(self) -> dict[str, str]:
        """What is wrong with each probe that is not well, by its name."""
        return {name: trouble for name, trouble in self._probes.items() if trouble}

    def tasks(self) -> dict[str, bool]:
        """Every kept task and whether it runs."""
        return dict(self._running)

    def expect_ends(self) -> None:
        """From now on a task that returns has done its work and is not started again."""
        self._ending = True

    async def stop(self) -> None:
        """Cancel what still runs, the newest first, and wait for its end."""
        self.expect_ends()
        for task in reversed(self._tasks.values()):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks.values())
        self._tasks.clear()
        self._running.clear()

    async def _run(self, name: str, make: Callable[[], Coroutine[Any, Any, object]]) -> None:
        pause = FIRST_PAUSE
        while True:
            started = time.monotonic()
            self._running[name] = True
            try:
                await make()
                if self._ending:
                    return
                log.error("a task of the engine ended by itself; starting it again", task=name)
            except (Exception, asyncio.CancelledError) as error:
                # It may be what it waited for that was cancelled, and not it: then nobody has stopped it.
                if isinstance(error, asyncio.CancelledError) and (
                    self._ending or self._tasks[name].cancelling()
                ):
                    raise
                log.error("a task of the engine failed; starting it again", task=name, exc_info=error)
            self._running[name] = False
            if time.monotonic() - started > STEADY_AFTER:
                pause = FIRST_PAUSE
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)

    async def _ask(
        self, name: str, ask: Callable[[], Awaitable[object]], every: float, patience: float
    ) -> None:
        while True:
            was_well = self._probes.get(name) in (_UNASKED, "")
            error: Exception | None = None
            try:
                async with asyncio.timeout(patience):
                    await ask()
                found = ""
            except TimeoutError:
                found = "no answer"
            except Exception as failure:  # noqa: BLE001 - it is said below
                found, error = "failing", failure
            self._probes[name] = found
            if found and was_well:
                log.warning("a probe fails", probe=name, reason=found, exc_info=error)
            elif not found and not was_well:
                log.info("a probe is well again", probe=name)
            await asyncio.sleep(every)
