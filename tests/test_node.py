"""A data_dir belongs to one engine at a time, and keeps its id."""

import errno
import os
import shutil
from pathlib import Path

import pytest

from forwarder import node
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


def test_who_does_not_get_the_lock_leaves_nothing_open(tmp_path: Path) -> None:
    first = NodeLock.take(tmp_path, patience=0)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(NodeError):
        NodeLock.take(tmp_path, patience=0)
    assert len(os.listdir("/proc/self/fd")) == len(before)
    first.release()


def test_a_node_keeps_its_id(tmp_path: Path) -> None:
    made = node_id(tmp_path / "one")
    assert len(made) == 32
    assert node_id(tmp_path / "one") == made
    assert node_id(tmp_path / "two") != made
    assert (tmp_path / "one" / "run" / "node").stat().st_mode & 0o777 == 0o600


def test_a_copy_of_a_folder_is_another_node(tmp_path: Path) -> None:
    made = node_id(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "copy")
    assert node_id(tmp_path / "copy") != made


def test_the_number_of_a_folder_tells_nodes_apart_where_all_else_is_the_same(tmp_path: Path) -> None:
    """As in containers: they share the boot of their machine, and their file systems may number alike."""
    made = node_id(tmp_path)
    (tmp_path / "run" / "node").write_text("0" * 32, encoding="ascii")
    assert node_id(tmp_path) != made


def test_a_folder_in_the_image_of_a_machine_is_another_node_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = node_id(tmp_path)
    boot = tmp_path / "boot_id"
    boot.write_text("8d2f1d3a-5a0c-4d43-9a31-7b1f6f3c8f10\n", encoding="ascii")
    monkeypatch.setattr(node, "BOOT_ID", boot)
    there = node_id(tmp_path)
    assert there != made
    monkeypatch.setattr(node, "BOOT_ID", tmp_path / "absent")  # a system without one
    assert node_id(tmp_path) not in (made, there)


def test_another_user_s_files_end_the_start_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node_id(tmp_path)
    (tmp_path / "run" / "ports.json").touch()  # is replaced, whoever owns it
    monkeypatch.setattr(os, "access", lambda path, _mode: Path(path).name not in ("node", "ports.json"))
    with pytest.raises(NodeError, match=r"/run/node cannot be used \(Permission denied\); .*\(chown -R\)"):
        NodeLock.take(tmp_path, patience=0)
    monkeypatch.undo()
    NodeLock.take(tmp_path, patience=0).release()


@pytest.mark.parametrize("there", [True, False])
def test_a_folder_that_the_unit_shuts_off_is_told_from_one_of_another_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    """Under ProtectSystem=strict all is read-only to the engine but what ReadWritePaths= names."""
    if there:
        node_id(tmp_path)
        was = os.statvfs(tmp_path)
        shut = os.statvfs_result([*was[:8], was.f_flag | os.ST_RDONLY, was.f_namemax])
        monkeypatch.setattr(os, "statvfs", lambda _path: shut)
        monkeypatch.setattr(os, "access", lambda _path, _mode: False)
    else:
        monkeypatch.setattr(Path, "mkdir", read_only)
    with pytest.raises(NodeError, match=r"\(Read-only file system\); .* ReadWritePaths="):
        NodeLock.take(tmp_path, patience=0)


def read_only(*_: object, **__: object) -> None:
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))
