"""The first workers of a supervisor: forked from it, with every module loaded already.

Three interpreters that load the same modules at once on two cores need twice the time of one, and hold them three
times in memory. So the supervisor loads what a worker needs, and ``fork`` makes the workers of it.

Only before the supervisor has a thread or an event loop: afterwards a child would inherit locks that nobody releases,
an epoll that is its parent's, handlers and a wake-up descriptor that tell the parent. A worker that replaces a dead one
is therefore a new interpreter (``forwarder.worker``).

Promises: what the child has of its parent is the modules, the environment, the standard streams and the lock of the
node. Of pipes it has its own ends alone: a sibling that held the supervisor's end of one would keep a worker from
learning that the supervisor is gone. It has a session of its own, and it never comes back from ``fork``, whatever
happens in it.
``random`` and OpenSSL seed themselves anew after a fork, and ids come from ``os.urandom``.

Fails with OSError when the machine has no room for another process.
"""

import asyncio
import gc
import os
import signal
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import NoReturn

BLOCKED = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}


class Forked:
    """A forked worker as its supervisor sees it: what is used of ``asyncio.subprocess.Process``."""

    stdin: asyncio.WriteTransport
    stdout: asyncio.StreamReader

    def __init__(self, pid: int, *, words: int, news: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._words, self._news = words, news  # our ends of its pipes
        self._end: asyncio.Task[int] | None = None

    async def adopt(self) -> None:
        """Take its pipes into the running loop; before anything else is asked of it."""
        loop = asyncio.get_running_loop()
        self.stdin, _ = await loop.connect_write_pipe(
            asyncio.Protocol, os.fdopen(self._words, "wb", buffering=0)
        )
        self.stdout = asyncio.StreamReader()
        await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(self.stdout), os.fdopen(self._news, "rb", buffering=0)
        )

    def let_go(self) -> None:
        """In a sibling: these pipes are none of its business."""
        os.close(self._words)
        os.close(self._news)

    def send_signal(self, number: int) -> None:
        """Harmless once it has ended."""
        if self.returncode is None:  # only ``wait`` reaps, so the id is its own until then
            with suppress(ProcessLookupError):  # where SIGCHLD is ignored the kernel reaps
                os.kill(self.pid, number)

    def kill(self) -> None:
        """At once; harmless once it has ended."""
        self.send_signal(signal.SIGKILL)

    async def wait(self) -> int:
        """The exit status, once it has ended; nobody else may be reading ``stdout``."""
        if self._end is None:
            self._end = asyncio.create_task(self._reap())
        return await asyncio.shield(self._end)

    async def _reap(self) -> int:
        while await self.stdout.read(4096):  # until it is about to end: no thread waits for one that lives
            continue
        try:
            # Reaped in the loop, not in the thread: whoever signals it there must know at once.
            await asyncio.to_thread(os.waitid, os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
            _, status = os.waitpid(self.pid, os.WNOHANG)  # noqa: ASYNC222 - it does not wait
        except ChildProcessError:  # who started us ignores SIGCHLD, and so do we: the kernel has reaped it
            self.returncode = 255
        else:
            self.returncode = os.waitstatus_to_exitcode(status)
        self.stdin.close()
        return self.returncode


def fork(work: Callable[[int, int], int], *, let_go: Callable[[], None]) -> Forked:
    """A child that ends with the status of ``work``, which is given the descriptors to listen to and to answer on.

    ``let_go`` closes, in the child, what is the supervisor's alone.
    """
    hears, words = os.pipe()
    news, says = os.pipe()
    _flush()  # what is in the buffers is the parent's to say
    gc.freeze()  # a collection would write to every object, and so copy every page
    before = signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED)  # none of them may come between fork and _live
    try:
        pid = os.fork()
        if pid == 0:
            os.close(words)
            os.close(news)
            _live(lambda: work(hears, says), let_go, before)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(hears)
        os.close(says)
    return Forked(pid, words=words, news=news)


def _live(work: Callable[[], int], let_go: Callable[[], None], mask: Iterable[int]) -> NoReturn:
    """In the child: do ``work`` and end, without a way back into what the parent was doing."""
    status = 1
    try:
        os.setsid()  # Ctrl-C reaches the supervisor, which drains its workers in order
        let_go()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        status = work()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:  # it came before the session was our own
        status = 130
    except BaseException:  # noqa: BLE001 - said as the interpreter would say it
        sys.excepthook(*sys.exc_info())
    finally:
        _flush()
        os._exit(status)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, OSError, ValueError):  # None when we were started without it
            stream.flush()
