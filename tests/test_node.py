"""A data_dir belongs to one engine at a time, and keeps its id."""

from pathlib import Path

import pytest

from forwarder.node import NodeError, NodeLock, node_id


def test_who_waits_for_the_lock_says_so_once_and_gets_it_when_it_is_free(tmp_path: Path) -> None:
    first = NodeLock.take(tmp_path, patience=0)
    told: list[str] = []
    with pytest.raises(NodeError, match="another engine is running"):
        NodeLock.take(tmp_path, patience=0.15, waiting=lambda: told.append("waits"))  # looks a few times
    assert told == ["waits"]

    def leave() -> None:
        told.append("again")
        first.release()

    second = NodeLock.take(tmp_path, patience=10, waiting=leave)
    assert told == ["waits", "again"]
    with pytest.raises(NodeError):
        NodeLock.take(tmp_path, patience=0)
    second.release()


def test_a_node_keeps_its_id(tmp_path: Path) -> None:
    made = node_id(tmp_path / "one")
    assert len(made) == 32
    assert node_id(tmp_path / "one") == made
    assert node_id(tmp_path / "two") != made
    assert (tmp_path / "one" / "run" / "node").stat().st_mode & 0o777 == 0o600
