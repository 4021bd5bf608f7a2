"""Forked workers: how they end, and what becomes of what the parent was doing. Each test has a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PARENT = """
import asyncio, os, signal, sys
from forwarder.forked import fork

def work(hears, says):
    if os.read(hears, 3) != b"go\\n":
        return 3
    os.write(says, b"ready\\n")
    {work}

async def main():
    await child.adopt()
    child.stdin.write(b"go\\n")
    assert await child.stdout.readline() == b"ready\\n"
    {then}
    assert child.returncode is None
    assert await child.wait() == await child.wait() == child.returncode
    child.kill()  # nobody is there
    print("status", child.returncode)

print("once")
try:
    child = fork(work, let_go=lambda: None)
    asyncio.run(main())
finally:
    print("the parent ends")
"""


def run(work: str, then: str = "pass") -> tuple[list[str], str]:
    """What the parent, and the child, say on standard output and on standard error."""
    done = subprocess.run(
        [sys.executable, "-c", PARENT.format(work=work, then=then)],
        cwd=Path(__file__).parent.parent,
        env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines(), done.stderr


@pytest.mark.parametrize(
    ("work", "status"),
    [
        ("return 0", 0),
        ("return 7", 7),
        ("sys.exit(5)", 5),
        ("raise KeyboardInterrupt", 130),
        ("raise ValueError('spam')", 1),
        ("os.kill(os.getpid(), signal.SIGKILL)", -9),
        ("return 0 if os.getsid(0) == os.getpid() else 1", 0),
        ("print('the child'); return 0", 0),
    ],
)
def test_a_child_ends_with_its_status_and_never_as_the_parent(work: str, status: int) -> None:
    said, _ = run(work)
    assert sorted({*said} - {"the child"}) == ["once", f"status {status}", "the parent ends"]
    assert len([line for line in said if line != "the child"]) == 3  # what stood in a buffer is said once
    assert ("the child" in said) == ("the child" in work)


def test_what_no_one_expected_is_said_as_the_interpreter_says_it() -> None:
    _, complaint = run("raise ValueError('spam')")
    assert complaint.startswith("Traceback")
    assert complaint.endswith("ValueError: spam\n")


def test_a_child_that_waits_is_ended_by_a_signal() -> None:
    said, _ = run("os.read(hears, 1); return 1", then="child.send_signal(signal.SIGTERM)")
    assert "status -15" in said


def test_a_child_learns_that_its_parent_is_gone() -> None:
    said, _ = run("return 4 if os.read(hears, 1) == b'' else 1", then="child.stdin.close()")
    assert "status 4" in said


def test_a_child_that_hears_no_signal_is_killed() -> None:
    said, _ = run(
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); os.write(says, b'x'); os.read(hears, 1); return 1",
        then="await child.stdout.readexactly(1); child.send_signal(signal.SIGTERM); child.kill()",
    )
    assert "status -9" in said


def test_a_parent_that_ignores_its_children_is_told_that_they_ended() -> None:
    said, _ = run(
        "os.read(hears, 1); return 0",
        then="signal.signal(signal.SIGCHLD, signal.SIG_IGN); child.stdin.close()",
    )
    assert "status 255" in said  # the kernel has reaped it, and its status with it
