"""Files and folders that are written whole, and what their killed writers leave."""

from __future__ import annotations

import errno
import os
import re
from typing import TYPE_CHECKING

import pytest

from vqvae2_fast.files import durable
from vqvae2_fast.files.durable import (
    aside,
    locked,
    new_folder,
    remove_dead_folders,
    renamed_into_place,
    replace_file,
    replaced_folder,
)

if TYPE_CHECKING:
    from pathlib import Path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_takes_the_place_of_the_old_one_and_leaves_nothing_else(tmp_path):
    for text in ("old", "new"):
        with replaced_folder(tmp_path / "x") as part:
            (part / "a.txt").write_text(text)
    assert (tmp_path / "x" / "a.txt").read_text() == "new"
    assert names(tmp_path) == ["x"]


def test_an_error_leaves_the_old_folder(tmp_path):
    with replaced_folder(tmp_path / "x") as part:
        (part / "a.txt").write_text("old")
    with pytest.raises(OSError, match="disk"), replaced_folder(tmp_path / "x") as part:
        (part / "a.txt").write_text("new")
        raise OSError("disk")
    assert (tmp_path / "x" / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["x"]


def test_the_old_folder_comes_back_if_the_new_one_cannot_be_renamed(tmp_path, monkeypatch):
    with replaced_folder(tmp_path / "x") as part:
        (part / "a.txt").write_text("old")
    real = os.rename

    def failing(source, target):
        if source.name.endswith(".part"):
            raise OSError("disk")
        real(source, target)

    monkeypatch.setattr(durable.os, "rename", failing)
    with pytest.raises(OSError, match="disk"), replaced_folder(tmp_path / "x") as part:
        (part / "a.txt").write_text("new")
    assert (tmp_path / "x" / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["x"]


@pytest.mark.parametrize("rename", [0, 1])
def test_a_kill_at_either_renaming_leaves_the_old_or_the_new_folder(tmp_path, monkeypatch, rename):
    with replaced_folder(tmp_path / "x") as part:
        (part / "a.txt").write_text("old")
    real, calls = os.rename, []

    def killed(source, target):
        calls.append(source)
        if len(calls) > rename:
            raise SystemExit
        real(source, target)

    monkeypatch.setattr(durable.os, "rename", killed)
    with pytest.raises(SystemExit), replaced_folder(tmp_path / "x") as part:
        (part / "a.txt").write_text("new")
    found = aside(tmp_path / "x") if rename else tmp_path / "x"
    assert (found / "a.txt").read_text() == "old"


@pytest.mark.parametrize("name", ["x", "x[1]"])
def test_an_unfinished_folder_is_removed_when_its_writer_is_dead_and_not_before(tmp_path, name):
    dead = tmp_path / f".{name}.0123.part"
    dead.mkdir()
    with new_folder(tmp_path / name) as living:
        assert not dead.exists()
        remove_dead_folders(tmp_path, ".*.part")
        assert living.is_dir()


def test_a_folder_that_was_taken_for_a_dead_ones_before_its_lock_is_made_again(
    tmp_path, monkeypatch
):
    real, calls = durable._lock_folder, []

    def late(folder: Path, *, block: bool) -> int | None:
        calls.append(folder)
        if len(calls) == 1:
            remove_dead_folders(tmp_path, ".*.part")
        return real(folder, block=block)

    monkeypatch.setattr(durable, "_lock_folder", late)
    with new_folder(tmp_path / "x") as part:
        (part / "a.txt").write_text("new")
    assert not calls[0].exists()


@pytest.mark.parametrize("kind", ["link", "FIFO"])
def test_a_lock_is_taken_on_a_regular_file_alone(tmp_path, kind):
    (tmp_path / "x").mkdir()
    lock = tmp_path / "x" / ".lock"
    if kind == "link":
        lock.symlink_to(tmp_path / "outside")
    else:
        os.mkfifo(lock)
    with pytest.raises(ValueError, match=f"lock is a {kind}"), locked(tmp_path / "x"):
        pass
    assert names(tmp_path) == ["x"]


def test_a_lock_that_is_deleted_while_it_is_waited_for_is_taken_again(tmp_path, monkeypatch):
    real, calls = durable.lock_file, []

    def removed_meanwhile(file, *, block):
        calls.append(os.fstat(file.fileno()).st_ino)
        if len(calls) == 1:
            (tmp_path / ".lock").unlink()
        return real(file, block=block)

    monkeypatch.setattr(durable, "lock_file", removed_meanwhile)
    with locked(tmp_path):
        assert calls[-1] == (tmp_path / ".lock").stat().st_ino
    assert len(calls) == 2


def test_errors_of_the_system_are_explained_with_a_remedy(tmp_path):
    with (
        pytest.raises(FileNotFoundError, match="cannot read: No such file or directory. Make it"),
        durable.explained("cannot read", "Make it"),
    ):
        (tmp_path / "x").read_bytes()


@pytest.mark.parametrize(
    ("number", "cure"),
    [(errno.ENOSPC, "Make room"), (errno.EDQUOT, "Make room"), (errno.EROFS, "Resolve this")],
)
def test_only_a_full_disk_is_to_be_made_room_on(number, cure):
    message = f"cannot write x: {os.strerror(number)}. The rest is whole. {cure} and start again"
    with (
        pytest.raises(OSError, match=f"{re.escape(message)}$"),
        durable.explained("cannot write x", "The rest is whole", then="start again"),
    ):
        raise OSError(number, os.strerror(number))


@pytest.mark.parametrize("name", ["result.json", "images[1].vq2"])
def test_an_unfinished_file_is_removed_when_its_writer_is_dead_and_not_before(tmp_path, name):
    path = tmp_path / name
    with renamed_into_place(path) as part:
        part.write_bytes(b"first")
        killed = part.with_name(part.name.replace(name, f"{name}.0"))
        killed.write_bytes(b"half")
        replace_file(path, b"second")
        assert names(tmp_path) == sorted([part.name, name])
    assert path.read_bytes() == b"first"
    assert names(tmp_path) == [name]


def test_a_file_that_was_taken_for_a_dead_ones_before_its_lock_is_made_again(tmp_path, monkeypatch):
    lock, taken = durable.lock_file, []

    def lock_late(file, *, block):
        if not taken:
            taken.append(next(tmp_path.glob(".*.part")))
            taken[0].unlink()
        return lock(file, block=block)

    monkeypatch.setattr(durable, "lock_file", lock_late)
    replace_file(tmp_path / "x", b"content")
    assert taken
    assert names(tmp_path) == ["x"]
    assert (tmp_path / "x").read_bytes() == b"content"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs on this system")
def test_no_file_takes_the_place_of_a_device_or_fifo(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileExistsError, match="it is a device, FIFO or socket"):
        replace_file(tmp_path / "pipe", b"content")
    assert (tmp_path / "pipe").is_fifo()
