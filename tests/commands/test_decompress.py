"""What `vqvae2-fast decompress` leaves in its folder: whole images or a store, or nothing."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

import pytest
import torch
from helpers.models import tiny_pipeline

from vqvae2_fast.checkpoints import save
from vqvae2_fast.cli import main
from vqvae2_fast.commands import decompress
from vqvae2_fast.data import CodeWriter
from vqvae2_fast.ops import _native

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(_native.module is None, reason="engine cpu needs the module")


def run(line: str) -> int:
    return main(line.split())


def test_a_failed_decoding_writes_no_image(workplace: Path) -> None:
    run("compress photos --pipeline pipeline --out x.vq2 --quiet")
    data = bytearray((workplace / "x.vq2").read_bytes())
    data[-1] ^= 1
    (workplace / "x.vq2").write_bytes(data)
    assert run("decompress x.vq2 --pipeline pipeline --out out --quiet") == 2
    assert not (workplace / "out").exists()


def test_a_full_disk_is_named_and_leaves_no_image(
    workplace: Path, small_disk, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("compress photos --pipeline pipeline --out x.vq2 --quiet") == 0
    out, pictures = small_disk.folder / "out", decompress.pictures

    def fill_after_the_first(images):
        yield pictures(images)[0]
        small_disk.fill(0)
        yield from pictures(images)[1:]

    monkeypatch.setattr(decompress, "pictures", fill_after_the_first)
    call = f"decompress x.vq2 --pipeline pipeline --out {out} --quiet"
    code = run(call)
    small_disk.clear()
    monkeypatch.undo()
    monkeypatch.chdir(workplace)
    assert code == 1
    assert f"cannot write {out / '00001.png'}: " in capsys.readouterr().err
    assert not out.exists()
    assert run(call) == 0


def test_a_full_disk_is_named_and_leaves_no_store(
    workplace: Path, small_disk, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with CodeWriter("store", 13, [(4, 4), (8, 8)], class_names=("a", "b", "c")) as writer:
        writer.add([torch.randint(13, (300, side, side)) for side in (4, 8)])
    assert run("compress store --pipeline pipeline --out x.vq2 --quiet") == 0
    out, add = small_disk.folder / "out", CodeWriter.add

    def add_and_fill(writer, *batch):
        if writer.position:  # the first batch is in a shard of its own
            small_disk.fill(0)
        add(writer, *batch)
        writer.flush()

    with monkeypatch.context() as patch:
        patch.setattr(CodeWriter, "add", add_and_fill)
        call = f"decompress x.vq2 --pipeline pipeline --out {out} --quiet"
        code = run(call)
    small_disk.clear()
    assert code == 1
    error = capsys.readouterr().err
    assert f"cannot write to {out}: " in error
    assert re.search(r"What was written so far was removed\. [^.]* and start again", error)
    assert not out.exists()
    assert run(call) == 0


def test_a_failed_decompress_leaves_what_others_wrote(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with CodeWriter("store", 13, [(4, 4), (8, 8)], class_names=("a", "b", "c")) as writer:
        writer.add([torch.randint(13, (3, side, side)) for side in (4, 8)])
    assert run("compress store --pipeline pipeline --out x.vq2 --quiet") == 0
    others = workplace / "out" / "shard-000000000512.bin"  # of a store whose manifest was lost
    others.parent.mkdir()
    others.write_bytes(b"codes")

    def fail(*_: object) -> None:
        raise OSError("no")

    monkeypatch.setattr(CodeWriter, "add", fail)
    assert run("decompress x.vq2 --pipeline pipeline --out out --quiet") != 0
    assert list(others.parent.iterdir()) == [others]


def while_decompressing(monkeypatch: pytest.MonkeyPatch, act) -> None:
    """Has something happen when the first images are decoded and the folder is there."""
    pictures, begun = decompress.pictures, []

    def first(images):
        if not begun:
            begun.append(True)
            act()
        return pictures(images)

    monkeypatch.setattr(decompress, "pictures", first)


@pytest.mark.parametrize("made", [False, True], ids=["new", "empty"])
def test_two_decompress_into_one_folder_are_kept_apart(
    workplace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, made
) -> None:
    if made:
        (workplace / "out").mkdir()
    assert run("compress photos --pipeline pipeline --out x.vq2 --quiet") == 0
    assert run("compress photos/0.png --pipeline pipeline --out y.vq2 --quiet") == 0
    told = []
    call = "decompress {}.vq2 --pipeline pipeline --out out --quiet"
    while_decompressing(monkeypatch, lambda: told.append(run(call.format("y"))))
    assert run(call.format("x")) == 0
    assert told == [1]
    assert "--out: another run is writing to out. Wait for it" in capsys.readouterr().err
    assert sorted(os.listdir("out")) == [f"0000{n}.png" for n in range(4)]


def test_what_an_interrupted_decompress_leaves_is_told_of_and_removed(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("compress photos --pipeline pipeline --out x.vq2 --quiet") == 0
    (workplace / "out").mkdir()
    for name in ("00000.png", ".00001.png.0123.part", ".decompress.lock"):
        (workplace / "out" / name).write_bytes(b"")
    call = "decompress x.vq2 --pipeline pipeline --out out --quiet"
    assert run(call) == 2
    assert "If a decompress that was interrupted left them, delete" in capsys.readouterr().err
    (workplace / "out" / "00000.png").unlink()
    assert run(call) == 0
    assert sorted(os.listdir("out")) == [f"0000{n}.png" for n in range(4)]


def test_a_failure_leaves_the_images_of_others(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("compress photos --pipeline pipeline --out x.vq2 --quiet") == 0

    def fail_with_another_image_there(images):
        yield pictures(images)[0]
        (workplace / "out" / "mine.png").write_bytes(b"mine")
        raise OSError("no more")

    pictures = decompress.pictures
    monkeypatch.setattr(decompress, "pictures", fail_with_another_image_there)
    assert run("decompress x.vq2 --pipeline pipeline --out out --quiet") != 0
    assert os.listdir("out") == ["mine.png"]


@pytest.mark.parametrize("kind", ["photos", "store"])
def test_another_pipeline_leaves_nothing_in_the_way_of_the_right_one(
    workplace: Path, capsys: pytest.CaptureFixture[str], kind
) -> None:
    with CodeWriter("store", 13, [(4, 4), (8, 8)], class_names=("a", "b", "c")) as writer:
        writer.add([torch.randint(13, (3, side, side)) for side in (4, 8)])
    assert run(f"compress {kind} --pipeline pipeline --out x.vq2 --quiet") == 0
    save(tiny_pipeline(0), workplace / "other")
    assert run("decompress x.vq2 --pipeline other --out out --quiet") == 2
    assert "the file was encoded with pipeline" in capsys.readouterr().err
    assert not (workplace / "out").exists()
    assert run("decompress x.vq2 --pipeline pipeline --out out --quiet") == 0


def test_a_store_is_not_decompressed_into_another(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with CodeWriter("store", 13, [(4, 4), (8, 8)]) as writer:
        writer.add([torch.randint(13, (3, side, side)) for side in (4, 8)])
    assert run("compress store --pipeline pipeline --out x.vq2 --quiet") == 0
    assert run("decompress x.vq2 --pipeline pipeline --out out --quiet") == 0
    assert run("decompress x.vq2 --pipeline pipeline --out out --quiet") == 2
    assert "--out: out holds a code store already" in capsys.readouterr().err
