"""Keys on disk: made once, private, the same for all who come at once, and never by those who only open them."""

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from forwarder.config import Settings
from forwarder.keyring import (
    Keyring,
    KeyringError,
    create_private,
    keys_at_hand,
    lost_keys,
    make_missing_keys,
    missing_keys,
    open_keyring,
)


def settings(folder: Path) -> Settings:
    return Settings.model_validate({"hostname": "mx.test", "data_dir": str(folder / "data")})


def made(folder: Path) -> Keyring:
    make_missing_keys(settings(folder))
    return open_keyring(settings(folder))


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_keys_are_made_once_and_private(tmp_path: Path) -> None:
    first = made(tmp_path)
    folder = tmp_path / "data" / "keys"
    assert mode(folder) == 0o700
    assert sorted(path.name for path in folder.iterdir()) == [
        "dkim-fwd1.pem",
        "dkim-fwd2.pem",
        "srs",
        "store.key",
    ]
    assert {mode(path) for path in folder.iterdir()} == {0o600}
    assert [signer.algorithm for signer in first.service] == ["rsa-sha256", "ed25519-sha256"]
    assert [signer.selector for signer in first.service] == ["fwd1", "fwd2"]
    assert len(first.store_key) == 32
    again = made(tmp_path)
    assert (again.srs_secrets, again.store_key) == (first.srs_secrets, first.store_key)
    assert [s.signature(b"x") for s in again.service] == [s.signature(b"x") for s in first.service]


def test_all_who_come_at_once_end_with_the_same_keys(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: made(tmp_path), range(8)))
    assert len({ring.srs_secrets for ring in found}) == 1
    assert len({ring.store_key for ring in found}) == 1
    assert len({ring.service[0].signature(b"x") for ring in found}) == 1
    assert not [path for path in (tmp_path / "data" / "keys").iterdir() if path.name.startswith(".")]


def test_a_key_that_is_there_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "key"
    assert create_private(path, b"first") is True
    assert create_private(path, b"second") is False
    assert path.read_bytes() == b"first"
    assert [found.name for found in tmp_path.iterdir()] == ["key"]


def test_opening_makes_nothing_and_names_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(KeyringError, match=r"lacks srs, dkim-fwd1\.pem, dkim-fwd2\.pem, store\.key"):
        open_keyring(settings(tmp_path))
    assert keys_at_hand(settings(tmp_path)) is None
    assert not (tmp_path / "data").exists()


def test_what_to_do_about_lost_keys_names_whole_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a service runs in a folder that the person who reads its log is not in
    said = lost_keys(Settings.model_validate({"hostname": "mx.test", "data_dir": "data"}), ["srs"])
    assert said.startswith(f"{tmp_path}/data/keys lacks srs")
    assert f"restore {tmp_path}/data/keys from" in said
    assert f"touch {tmp_path}/data/make-new-keys," in said


def test_a_key_that_is_missing_is_made_and_the_others_stay(tmp_path: Path) -> None:
    first = made(tmp_path)
    (tmp_path / "data" / "keys" / "dkim-fwd2.pem").unlink()
    assert missing_keys(settings(tmp_path)) == ["dkim-fwd2.pem"]
    with pytest.raises(KeyringError, match=r"lacks dkim-fwd2\.pem.*or new because \[dkim\]"):
        open_keyring(settings(tmp_path))
    again = made(tmp_path)
    assert (again.srs_secrets, again.store_key) == (first.srs_secrets, first.store_key)
    assert again.service[0].signature(b"x") == first.service[0].signature(b"x")


def test_keys_that_others_may_read_are_tightened(tmp_path: Path) -> None:
    made(tmp_path)
    folder = tmp_path / "data" / "keys"
    folder.chmod(0o755)
    (folder / "srs").chmod(0o644)
    open_keyring(settings(tmp_path))
    assert (mode(folder), mode(folder / "srs")) == (0o700, 0o600)


@pytest.mark.parametrize(("of_file", "of_folder"), [(0o640, 0o750), (0o604, 0o705)])
def test_a_key_that_one_other_may_read_is_tightened(tmp_path: Path, of_file: int, of_folder: int) -> None:
    made(tmp_path)
    folder = tmp_path / "data" / "keys"
    for path in folder.iterdir():
        path.chmod(of_file)
    folder.chmod(of_folder)
    open_keyring(settings(tmp_path))
    assert {mode(path) for path in folder.iterdir()} == {0o600}
    assert mode(folder) == 0o700


def test_a_key_is_private_and_on_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    link = os.link

    def linked(draft: Path, path: Path) -> None:
        steps.append(f"link {mode(draft):o} {draft.read_bytes().decode()}")
        link(draft, path)

    def synced(descriptor: int) -> None:
        steps.append("sync folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "sync file")

    monkeypatch.setattr(os, "link", linked)
    monkeypatch.setattr(os, "fsync", synced)
    before = os.umask(0)
    try:
        assert create_private(tmp_path / "key", b"secret") is True
        assert steps == ["sync file", "link 600 secret", "sync folder"]
        monkeypatch.undo()
        make_missing_keys(settings(tmp_path))
    finally:
        os.umask(before)
    assert mode(tmp_path / "data" / "keys") == 0o700


def test_what_is_in_the_way_of_the_keys_is_told(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file")
    with pytest.raises(KeyringError, match=r"data/keys cannot be made \(.*data_dir must be writable"):
        make_missing_keys(settings(tmp_path))
    (tmp_path / "data").unlink()
    made(tmp_path)
    path = tmp_path / "data" / "keys" / "srs"
    path.unlink()
    path.mkdir()
    with pytest.raises(KeyringError, match=r"keys/srs cannot be read \(.*it must belong to the user"):
        open_keyring(settings(tmp_path))


def test_keys_at_hand_are_those_on_disk(tmp_path: Path) -> None:
    assert keys_at_hand(settings(tmp_path)) is None
    ring = made(tmp_path)
    at_hand = keys_at_hand(settings(tmp_path))
    assert at_hand is not None
    assert at_hand.srs_secrets == ring.srs_secrets


def test_an_srs_secret_has_sixteen_characters_at_least(tmp_path: Path) -> None:
    made(tmp_path)
    path = tmp_path / "data" / "keys" / "srs"
    path.write_bytes(b"n" * 16)
    assert open_keyring(settings(tmp_path)).srs_secrets == (b"n" * 16,)
    path.write_bytes(b"n" * 16 + b"\n" + b"o" * 15)
    with pytest.raises(KeyringError, match="at least 16 characters"):
        open_keyring(settings(tmp_path))


def test_srs_secrets_rotate_by_a_new_first_line(tmp_path: Path) -> None:
    (old,) = made(tmp_path).srs_secrets
    path = tmp_path / "data" / "keys" / "srs"
    path.write_bytes(b"n" * 32 + b"\n" + path.read_bytes())
    assert open_keyring(settings(tmp_path)).srs_secrets == (b"n" * 32, old)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("srs", b""),
        ("srs", b"short\n"),
        ("store.key", b"zz"),
        ("store.key", b"ab" * 16),
        ("store.key", b"ab" * 33),
        ("dkim-fwd1.pem", b"no key"),
        ("store.key", b"\xff"),
    ],
)
def test_a_broken_key_is_told_with_its_file_and_without_its_content(
    tmp_path: Path, name: str, content: bytes
) -> None:
    made(tmp_path)
    path = tmp_path / "data" / "keys" / name
    path.write_bytes(content)
    with pytest.raises(KeyringError) as caught:
        open_keyring(settings(tmp_path))
    assert str(path) in str(caught.value)
    assert path.read_bytes() == content


def test_a_key_of_the_other_algorithm_is_refused(tmp_path: Path) -> None:
    made(tmp_path)
    folder = tmp_path / "data" / "keys"
    (folder / "dkim-fwd1.pem").write_bytes((folder / "dkim-fwd2.pem").read_bytes())
    with pytest.raises(KeyringError, match="ed25519"):
        open_keyring(settings(tmp_path))


@pytest.mark.parametrize("name", ["srs", "dkim-fwd1.pem", "dkim-fwd2.pem", "store.key"])
def test_a_reload_sees_which_of_the_keys_is_another(tmp_path: Path, name: str) -> None:
    ring = made(tmp_path)
    assert open_keyring(settings(tmp_path)).same_as(ring)
    (tmp_path / "data" / "keys" / name).unlink()
    assert not made(tmp_path).same_as(ring)


def test_secrets_are_not_in_the_repr(tmp_path: Path) -> None:
    ring = made(tmp_path)
    assert repr(ring) == "Keyring()"
