"""A folder of samples: its index never names a missing image, and an interrupted run continues."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from vqvae2_fast.data import sample_folder
from vqvae2_fast.data.sample_folder import SampleFolder, image_name, read_index, read_sample

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

SETTINGS = {"seed": 0, "temperature": [1.0]}


def picture(number: int) -> Image.Image:
    return Image.new("RGB", (8, 8), (number, 2 * number, 3 * number))


def add(folder: SampleFolder, samples: Iterable[int]) -> None:
    for n in samples:
        folder.add(range(n, n + 1), [picture(n)], [{"label": n % 3}])


def begin(path: Path, count: int = 5, **options: object) -> SampleFolder:
    return SampleFolder.begin(path, count, SETTINGS, **options)


def numbers(path: Path) -> list[int]:
    return [row["sample"] for row in read_index(path)]


def test_samples_get_an_image_and_a_line(tmp_path):
    folder = begin(tmp_path / "out")
    folder.add(range(1, 3), [picture(1), picture(2)], [{"label": 7}, {"label": 8}])
    assert list(read_index(tmp_path / "out")) == [
        {"sample": 1, "file": "images/00001.png", "label": 7},
        {"sample": 2, "file": "images/00002.png", "label": 8},
    ]
    with Image.open(tmp_path / "out" / image_name(2)) as image:
        assert image.getpixel((0, 0)) == (2, 4, 6)


def test_a_resumed_run_is_told_what_is_missing(tmp_path):
    folder = begin(tmp_path)
    add(folder, [0, 3])
    folder.close()
    assert begin(tmp_path, resume=True).missing() == [range(1, 3), range(4, 5)]


def test_lines_without_an_image_are_drawn_again(tmp_path):
    folder = begin(tmp_path)
    add(folder, [0, 1])
    folder.close()
    (tmp_path / image_name(0)).unlink()
    assert begin(tmp_path, resume=True).missing() == [range(1), range(2, 5)]
    assert numbers(tmp_path) == [1]


def test_a_line_cut_off_by_a_kill_is_cleared(tmp_path):
    folder = begin(tmp_path)
    add(folder, [0])
    with (tmp_path / "samples.jsonl").open("ab") as index:
        index.write(b'{"sample": 1, "fi')
    assert numbers(tmp_path) == [0]
    add(folder, [2])
    assert numbers(tmp_path) == [0, 2]


def test_the_finished_index_is_sorted(tmp_path):
    folder = begin(tmp_path, 3)
    add(folder, [2, 0])
    assert not folder.finish()
    add(folder, [1])
    assert folder.finish()
    assert numbers(tmp_path) == [0, 1, 2]


def test_a_folder_that_holds_samples_is_not_written_over(tmp_path):
    begin(tmp_path).close()
    with pytest.raises(ValueError, match=r"^out: .* holds samples already. .* resume,"):
        begin(tmp_path)


def test_other_settings_are_refused_by_name(tmp_path):
    begin(tmp_path).close()
    with pytest.raises(ValueError, match=r"temperature: \[1.0\] there, \[0.5\] now\)"):
        SampleFolder.begin(tmp_path, 5, {"seed": 0, "temperature": [0.5]}, resume=True)


def test_more_samples_can_be_asked_for_but_not_fewer(tmp_path):
    folder = begin(tmp_path, 2)
    add(folder, [0, 1])
    folder.close()
    with pytest.raises(ValueError, match="begun for 2 samples, got 1"):
        begin(tmp_path, 1, resume=True)
    assert begin(tmp_path, 3, resume=True).missing() == [range(2, 3)]
    assert json.loads((tmp_path / "settings.json").read_text())["count"] == 3


@pytest.mark.parametrize("name", [image_name(0), "photo.png", "cats/photo.png"])
def test_files_of_something_else_are_not_mixed_in(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"a photo")
    with pytest.raises(ValueError, match=r"holds files of something else \(\w+"):
        begin(tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / name]


def test_a_folder_takes_one_run_at_a_time(tmp_path):
    folder = begin(tmp_path)
    with pytest.raises(RuntimeError, match="another run is writing"):
        begin(tmp_path, resume=True)
    folder.close()
    begin(tmp_path, resume=True)


def test_processes_of_a_run_share_the_folder(tmp_path):
    first = begin(tmp_path, 4, alone=False)
    second = SampleFolder.join(tmp_path, 4)
    add(first, [0, 2])
    add(second, [1, 3])
    first.close()
    with pytest.raises(RuntimeError, match="another run is writing"):
        begin(tmp_path, 4, resume=True)
    assert second.finish()
    assert numbers(tmp_path) == [0, 1, 2, 3]


def test_of_processes_that_end_at_once_the_last_finds_all(tmp_path):
    first = begin(tmp_path, 2, alone=False)
    second = SampleFolder.join(tmp_path, 2)
    add(first, [0])
    add(second, [1])
    assert not first.finish()
    assert second.finish()


def test_unfinished_files_are_cleared(tmp_path):
    begin(tmp_path).close()
    part = tmp_path / "images" / ".00001.png.0.part"
    part.write_bytes(b"half")
    begin(tmp_path, resume=True)
    assert not part.exists()


def test_a_batch_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    folder = begin(tmp_path)
    add(folder, [0])

    def full(file, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sample_folder, "write_all", full)
    with pytest.raises(OSError, match="No space"):
        folder.add(range(1, 3), [picture(1), picture(2)], [{}, {}])
    assert [path.name for path in (tmp_path / "images").glob("*.png")] == ["00000.png"]
    assert not list((tmp_path / "images").glob(".*.part"))
    assert numbers(tmp_path) == [0]


def test_an_index_that_cannot_grow_leaves_no_image_without_a_line(tmp_path, monkeypatch):
    folder = begin(tmp_path)
    add(folder, [0])
    before = (tmp_path / "samples.jsonl").read_bytes()
    write = sample_folder.write_all

    def short(file, content):
        if content.startswith(b"{"):
            write(file, content[:9])
            raise OSError(28, "No space left on device")
        write(file, content)

    monkeypatch.setattr(sample_folder, "write_all", short)
    with pytest.raises(OSError, match="No space"):
        add(folder, [1])
    assert (tmp_path / "samples.jsonl").read_bytes() == before
    assert [path.name for path in (tmp_path / "images").glob("*.png")] == ["00000.png"]


def test_missing_samples_take_no_memory(tmp_path):
    folder = begin(tmp_path, 10**12)
    add(folder, [3])
    assert folder.missing() == [range(3), range(4, 10**12)]


@pytest.mark.parametrize(
    "content",
    [b"", b"\x89PNG\r\n\x1a\n", b"no image at all, but longer than a PNG's first and last bytes"],
    ids=["empty", "cut off", "of another kind"],
)
def test_a_damaged_image_is_drawn_again(tmp_path, content):
    folder = begin(tmp_path, 2)
    add(folder, [0, 1])
    folder.close()
    (tmp_path / image_name(0)).write_bytes(content)
    assert begin(tmp_path, 2, resume=True).missing() == [range(1)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"sample": 0, "file": "../secret.png"}, "expected file images/00000.png or null, got ../"),
        ({"sample": 0, "file": 3}, "expected file images/00000.png or null, got 3"),
        ({"sample": -1}, "no sample number"),
        ({"sample": 0, "class": 7}, "expected class a name or null, got 7"),
    ],
)
def test_a_line_that_names_something_else_is_refused(tmp_path, line, message):
    begin(tmp_path).close()
    (tmp_path / "samples.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(ValueError, match=rf"samples.jsonl: line 1 is damaged: .*{message}"):
        list(read_index(tmp_path))


def test_a_line_without_end_is_refused_before_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(sample_folder, "_MAX_LINE", 64)
    (tmp_path / "samples.jsonl").write_text(" " * 65)
    with pytest.raises(ValueError, match="line 1 is longer than 64"):
        list(read_index(tmp_path))


@pytest.mark.parametrize("name", ["samples.jsonl", "settings.json", "images/.lock", ".lock"])
def test_a_fifo_in_the_folder_is_refused(tmp_path, name):
    folder = begin(tmp_path)
    add(folder, [0])
    folder.close()
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    with pytest.raises(ValueError, match=rf"{name} is a FIFO, not a regular file"):
        begin(tmp_path, resume=True).missing()


@pytest.mark.parametrize("name", ["samples.jsonl", "images/.lock", ".lock"])
def test_nothing_is_written_through_a_link(tmp_path, name):
    outside, path = tmp_path / "outside", tmp_path / "samples"
    begin(path).close()
    (path / name).unlink(missing_ok=True)
    (path / name).symlink_to(outside)
    with pytest.raises((ValueError, OSError), match=f"{name}"):
        add(begin(path, resume=True), [0])
    assert not outside.exists()


def test_images_are_not_written_into_a_linked_folder(tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "images").symlink_to(tmp_path / "outside")
    with pytest.raises(ValueError, match="images is a link"):
        begin(tmp_path / "samples")
    assert not list((tmp_path / "outside").iterdir())


def test_an_image_that_is_a_link_out_of_the_folder_is_not_read(tmp_path):
    folder = begin(tmp_path / "samples", 1)
    add(folder, [0])
    folder.close()
    image = tmp_path / "samples" / image_name(0)
    image.rename(tmp_path / "secret.png")
    image.symlink_to(tmp_path / "secret.png")
    with pytest.raises(ValueError, match="leads out of"):
        read_sample(tmp_path / "samples", 0)
    with pytest.raises(ValueError, match="leads out of"):
        begin(tmp_path / "samples", 1, resume=True).missing()


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("P", "PNG"), ("1", "PNG"), ("I;16", "PNG"), ("RGBA", "PNG"), ("RGB", "JPEG")],
)
def test_an_image_of_another_kind_than_samples_is_refused_by_name(tmp_path, mode, kind):
    begin(tmp_path, 1).close()
    Image.new(mode, (8, 8)).save(tmp_path / image_name(0), format=kind)
    with pytest.raises(ValueError, match=rf"00000\.png: expected a PNG .* {kind} of mode {mode}\."):
        read_sample(tmp_path, 0)


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3)])
def test_grey_and_coloured_samples_are_read(tmp_path, mode, channels):
    begin(tmp_path, 1).close()
    Image.new(mode, (8, 4)).save(tmp_path / image_name(0))
    assert read_sample(tmp_path, 0).shape == (channels, 4, 8)


def test_only_a_folder_without_images_is_discarded(tmp_path):
    for name in ("unused", "cut off"):
        SampleFolder.begin(tmp_path / name, 2, {"seed": 0}).close()
    image = tmp_path / "cut off" / image_name(0)
    image.write_bytes(b"")
    for name in ("unused", "cut off"):
        SampleFolder.discard_unused(tmp_path / name)
    assert not (tmp_path / "unused").exists()
    assert image.exists()
    assert SampleFolder.begun_for(tmp_path / "cut off") == 2
