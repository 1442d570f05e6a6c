"""`vqvae2-fast compress`, `decompress` and `info` of what they leave."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vqvae2_fast import codec
from vqvae2_fast.checkpoints import save
from vqvae2_fast.cli import main
from vqvae2_fast.commands import compress, decompress
from vqvae2_fast.data import CodeStore, CodeWriter, codes_in_order
from vqvae2_fast.ops import _native
from vqvae2_fast.testing.pipelines import tiny_pipeline

pytestmark = pytest.mark.skipif(_native.module is None, reason="engine cpu needs the module")


def run(line: str) -> int:
    return main(line.split())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a pipeline of 16x16 images, and photos/ with images of three sizes."""
    save(tiny_pipeline(num_classes=3), tmp_path / "pipeline", class_names=("a", "b", "c"))
    (tmp_path / "photos").mkdir()
    for number, size in enumerate([(16, 16), (16, 16), (40, 23), (9, 50)]):
        pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_images_keep_their_sizes_and_order(folder: Path) -> None:
    assert run("compress photos --pipeline pipeline --out x.vq2 --quiet") == 0
    assert run("decompress x.vq2 --pipeline pipeline --out out --quiet") == 0
    for name in ("0", "1", "2", "3"):
        with Image.open(f"photos/{name}.png") as given, Image.open(f"out/0000{name}.png") as found:
            assert found.size == given.size


def test_one_image_decodes_as_the_library_decodes_it(folder: Path) -> None:
    assert run("compress photos/2.png --pipeline pipeline --out x.vq2 --quiet") == 0
    assert run("decompress x.vq2 --pipeline pipeline --out out --quiet") == 0
    (expected,) = codec.decode_images(tiny_pipeline(3), (folder / "x.vq2").read_bytes())
    with Image.open("out/00000.png") as found:
        pixels = torch.from_numpy(np.array(found)).permute(2, 0, 1)
    assert (pixels - (expected + 1) * 127.5).abs().max() <= 0.5


def test_a_store_comes_back_equal(folder: Path) -> None:
    torch.manual_seed(0)
    codes = [torch.randint(13, (300, side, side)) for side in (4, 8)]
    labels = torch.randint(-1, 3, (300,))
    with CodeWriter("store", 13, [(4, 4), (8, 8)], class_names=("a", "b", "c")) as writer:
        writer.add(codes, labels)
    assert run("compress store --pipeline pipeline --out x.vq2 --quiet") == 0
    assert run("decompress x.vq2 --pipeline pipeline --out back --quiet") == 0
    found = list(codes_in_order(CodeStore("back"), 300))
    assert torch.equal(found[0][1], labels)
    assert all(torch.equal(a, b) for a, b in zip(found[0][0], codes, strict=True))


def test_a_store_of_parts_is_kept_with_its_classes(folder: Path) -> None:
    codes = [torch.randint(13, (3, side, side)) for side in (4, 8)]
    names = ("a - 0", "b - 0", "c - 0", "a - 1", "b - 1", "c - 1")
    with CodeWriter("store", 13, [(4, 4), (8, 8)], class_names=names) as writer:
        writer.add(codes, torch.tensor([1, -1, 5]))
    assert run("compress store --pipeline pipeline --out x.vq2 --quiet") == 0
    assert run("decompress x.vq2 --pipeline pipeline --out back --quiet") == 0
    assert CodeStore("back").labels.tolist() == [1, -1, 2]


def test_levels_left_out_are_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = "compress photos --pipeline pipeline --levels top --out x.vq2 --quiet"
    assert run(call) == 0
    assert "left out, to be drawn by decompress: bottom" in capsys.readouterr().out
    assert run("decompress x.vq2 --pipeline pipeline --out out --quiet") == 0
    assert "drawn from the priors: bottom" in capsys.readouterr().out


def test_decompress_counts_images_whatever_their_tiles(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("compress photos --pipeline pipeline --out x.vq2 --quiet") == 0
    assert run("decompress x.vq2 --pipeline pipeline --out out") == 0
    assert "decompress  4/4  took" in capsys.readouterr().err


def test_info_tells_tiles_from_images_and_height_from_width(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("compress photos/2.png --pipeline pipeline --out x.vq2 --quiet") == 0
    capsys.readouterr()
    assert run("info x.vq2") == 0
    text = capsys.readouterr().out
    # 40 rows and 23 columns of pixels make 3 x 2 tiles of 16x16.
    assert (
        "images or tiles (an image larger than the model's is stored as several tiles): 6" in text
    )
    assert "image sizes (height x width): 40x23" in text


def test_info_describes_a_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("compress photos --pipeline pipeline --out x.vq2 --quiet")
    capsys.readouterr()
    assert main(["info", "x.vq2"]) == 0
    assert "kind: compressed images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("compress photos --pipeline pipeline --levels middle", "expected one of top, bottom"),
        ("decompress photos/0.png --pipeline pipeline", "photos/0.png: describe: expected a .vq2"),
        ("decompress x.vq2 --pipeline pipeline --out photos", "--out: photos holds images already"),
        (
            "compress photos --pipeline pipeline --priors pipeline",
            "--priors: expected --vqvae with",
        ),
    ],
)
def test_a_wrong_request_names_the_file_or_flag(
    folder: Path, call: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(f"{call} --quiet") == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("names", "checkpoint", "message"),
    [
        (("x", "y", "z"), "", "codes of the classes of the pipeline (a, b, c), got store with x"),
        (("a", "b", "c"), "0123456789ab", "store has those of 0123456789ab"),
    ],
)
def test_codes_of_another_model_or_other_classes_are_refused(
    folder: Path, names, checkpoint, message, capsys: pytest.CaptureFixture[str]
) -> None:
    codes = [torch.randint(13, (3, side, side)) for side in (4, 8)]
    with CodeWriter(
        "store", 13, [(4, 4), (8, 8)], class_names=names, checkpoint_hash=checkpoint
    ) as writer:
        writer.add(codes, torch.tensor([1, 0, 2]))
    assert run("compress store --pipeline pipeline --out x.vq2 --quiet") == 2
    assert message in capsys.readouterr().err


def test_a_failed_decoding_writes_no_image(folder: Path) -> None:
    run("compress photos --pipeline pipeline --out x.vq2 --quiet")
    data = bytearray((folder / "x.vq2").read_bytes())
    data[-1] ^= 1
    (folder / "x.vq2").write_bytes(data)
    assert run("decompress x.vq2 --pipeline pipeline --out out --quiet") == 2
    assert not (folder / "out").exists()


def test_a_full_disk_is_named_and_leaves_no_image(
    folder: Path, small_disk, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
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
    monkeypatch.chdir(folder)
    assert code == 1
    assert f"cannot write {out / '00001.png'}: " in capsys.readouterr().err
    assert not out.exists()
    assert run(call) == 0


def test_a_full_disk_is_named_and_leaves_no_store(
    folder: Path, small_disk, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
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
    assert "What was written so far was removed; make room and start again" in error
    assert not out.exists()
    assert run(call) == 0


def test_a_failed_decompress_leaves_what_others_wrote(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with CodeWriter("store", 13, [(4, 4), (8, 8)], class_names=("a", "b", "c")) as writer:
        writer.add([torch.randint(13, (3, side, side)) for side in (4, 8)])
    assert run("compress store --pipeline pipeline --out x.vq2 --quiet") == 0
    others = folder / "out" / "shard-000000000512.bin"  # of a store whose manifest was lost
    others.parent.mkdir()
    others.write_bytes(b"codes")

    def fail(*_: object) -> None:
        raise OSError("no")

    monkeypatch.setattr(CodeWriter, "add", fail)
    assert run("decompress x.vq2 --pipeline pipeline --out out --quiet") != 0
    assert list(others.parent.iterdir()) == [others]


def test_a_full_disk_is_named_and_leaves_no_file(
    folder: Path, small_disk, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, encode_images = small_disk.folder / "x.vq2", compress.encode_images

    def fill_and_encode(*arguments, **options):
        small_disk.fill(0)
        return encode_images(*arguments, **options)

    monkeypatch.setattr(compress, "encode_images", fill_and_encode)
    code = run(f"compress photos --pipeline pipeline --out {out} --quiet")
    small_disk.clear()
    assert code == 1
    assert f"cannot write {out}: " in capsys.readouterr().err
    assert not list(out.parent.iterdir())


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
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, made
) -> None:
    if made:
        (folder / "out").mkdir()
    assert run("compress photos --pipeline pipeline --out x.vq2 --quiet") == 0
    assert run("compress photos/0.png --pipeline pipeline --out y.vq2 --quiet") == 0
    told = []
    call = "decompress {}.vq2 --pipeline pipeline --out out --quiet"
    while_decompressing(monkeypatch, lambda: told.append(run(call.format("y"))))
    assert run(call.format("x")) == 0
    assert told == [1]
    assert "--out: another run is writing to out. Wait for it" in capsys.readouterr().err
    assert sorted(os.listdir("out")) == [f"0000{n}.png" for n in range(4)]


def test_an_image_gets_its_name_when_it_is_whole(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("compress photos --pipeline pipeline --out x.vq2 --quiet") == 0
    seen, saved = [], Image.Image.save

    def save_and_look(image, target, **options):
        saved(image, target, **options)
        seen.append(len(list(Path("out").glob("*.png"))))

    monkeypatch.setattr(Image.Image, "save", save_and_look)
    assert run("decompress x.vq2 --pipeline pipeline --out out --quiet") == 0
    assert seen == [0, 1, 2, 3]


def test_what_an_interrupted_decompress_leaves_is_told_of_and_removed(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("compress photos --pipeline pipeline --out x.vq2 --quiet") == 0
    (folder / "out").mkdir()
    for name in ("00000.png", ".00001.png.0123.part", ".decompress.lock"):
        (folder / "out" / name).write_bytes(b"")
    call = "decompress x.vq2 --pipeline pipeline --out out --quiet"
    assert run(call) == 2
    assert "If a decompress that was interrupted left them, delete" in capsys.readouterr().err
    (folder / "out" / "00000.png").unlink()
    assert run(call) == 0
    assert sorted(os.listdir("out")) == [f"0000{n}.png" for n in range(4)]


def test_a_failure_leaves_the_images_of_others(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("compress photos --pipeline pipeline --out x.vq2 --quiet") == 0

    def fail_with_another_image_there(images):
        yield pictures(images)[0]
        (folder / "out" / "mine.png").write_bytes(b"mine")
        raise OSError("no more")

    pictures = decompress.pictures
    monkeypatch.setattr(decompress, "pictures", fail_with_another_image_there)
    assert run("decompress x.vq2 --pipeline pipeline --out out --quiet") != 0
    assert os.listdir("out") == ["mine.png"]


def test_a_refused_image_leaves_no_folder(folder: Path) -> None:
    (folder / "photos" / "1.png").write_bytes(b"no image")
    assert run("compress photos --pipeline pipeline --out new/x.vq2 --quiet") == 2
    assert not (folder / "new").exists()


def test_info_knows_a_file_by_its_beginning(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("compress photos/0.png --pipeline pipeline --out cats.bin --quiet") == 0
    capsys.readouterr()
    assert run("info cats.bin") == 0
    assert "kind: compressed images" in capsys.readouterr().out


def test_the_folder_of_an_extraction_is_refused_with_its_stores(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for side in ("train", "held_out"):
        with CodeWriter(f"codes/{side}", 13, [(4, 4), (8, 8)]):
            pass
    told = "codes is the folder of the stores that `extract` left; name one of them, codes/train"
    assert run("compress codes --pipeline pipeline --out x.vq2 --quiet") == 2
    assert f"error: compress: {told} or codes/held_out." in capsys.readouterr().err
    assert run("calibrate --codes codes --pipeline pipeline --out calibrated") == 2
    assert f"error: --codes: {told}" in capsys.readouterr().err


def test_what_is_no_image_is_told_the_formats(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "notes.txt").write_text("no image")
    assert run("compress notes.txt --pipeline pipeline --out x.vq2 --quiet") == 2
    told = "notes.txt cannot be decoded (it begins like none of BMP, GIF, JPEG, PNG"
    assert told in capsys.readouterr().err


def test_a_cut_image_is_named_before_any_is_encoded(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = folder / "photos" / "3.png"
    cut.write_bytes(cut.read_bytes()[:-40])
    assert run("compress photos --pipeline pipeline --out x.vq2") == 2
    error = capsys.readouterr().err
    assert "photos/3.png cannot be decoded" in error
    assert "; remove it, or pass --skip-corrupt to leave out such files." in error
    assert "0/4" not in error
    assert not (folder / "x.vq2").exists()


def test_corrupt_images_are_left_out_on_request(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sound = (folder / "photos" / "2.png").read_bytes()
    (folder / "photos" / "1.png").write_bytes(b"no image")
    (folder / "photos" / "2.png").write_bytes(sound[:-200])
    assert run("compress photos --skip-corrupt --pipeline pipeline --out x.vq2 --quiet") == 0
    assert "left out, since they are corrupt: 1.png, 2.png" in capsys.readouterr().out
    assert run("decompress x.vq2 --pipeline pipeline --out out --quiet") == 0
    with Image.open("out/00001.png") as found:
        assert found.size == (50, 9)  # that of 3.png


def test_a_folder_without_images_is_refused_in_the_name_of_the_command(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "none").mkdir()
    assert run("compress none --pipeline pipeline --out x.vq2 --quiet") == 2
    assert "error: compress: no images in none; accepted" in capsys.readouterr().err


def test_a_folder_of_corrupt_images_alone_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (folder / "photos").iterdir():
        path.write_bytes(b"no image")
    assert run("compress photos --skip-corrupt --pipeline pipeline --out x.vq2 --quiet") == 2
    assert "all 4 images of photos are corrupt" in capsys.readouterr().err
    assert not (folder / "x.vq2").exists()


def test_a_file_that_is_read_is_never_replaced(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("compress photos --pipeline pipeline --out x.vq2 --quiet") == 0
    assert run("compress photos --pipeline pipeline --out x.vq2 --quiet") == 0
    with CodeWriter("store", 13, [(4, 4), (8, 8)]) as writer:
        writer.add([torch.randint(13, (3, side, side)) for side in (4, 8)])
    for images, out in (
        ("photos/0.png", "photos/0.png"),
        ("photos", "photos/../photos/0.png"),
        ("store", "store/manifest.json"),
        ("store", "store/shard-000000000000.bin"),
    ):
        before = Path(out).read_bytes()
        assert run(f"compress {images} --pipeline pipeline --out {out} --quiet") == 2
        assert "is one of the files to compress" in capsys.readouterr().err
        assert Path(out).read_bytes() == before


def test_a_folder_in_the_place_of_the_file_is_refused_before_anything_is_encoded(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compress, "encode_images", None)
    assert run("compress photos --pipeline pipeline --out photos --quiet") == 2
    assert "--out: photos is a folder; expected the name of a file" in capsys.readouterr().err


def test_a_seed_needs_levels_to_draw(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("compress photos --pipeline pipeline --seed 3 --out x.vq2 --quiet") == 2
    assert "--seed: expected --levels with it" in capsys.readouterr().err
    assert not (folder / "x.vq2").exists()


@pytest.mark.parametrize("kind", ["photos", "store"])
def test_another_pipeline_leaves_nothing_in_the_way_of_the_right_one(
    folder: Path, capsys: pytest.CaptureFixture[str], kind
) -> None:
    with CodeWriter("store", 13, [(4, 4), (8, 8)], class_names=("a", "b", "c")) as writer:
        writer.add([torch.randint(13, (3, side, side)) for side in (4, 8)])
    assert run(f"compress {kind} --pipeline pipeline --out x.vq2 --quiet") == 0
    save(tiny_pipeline(0), folder / "other")
    assert run("decompress x.vq2 --pipeline other --out out --quiet") == 2
    assert "the file was encoded with pipeline" in capsys.readouterr().err
    assert not (folder / "out").exists()
    assert run("decompress x.vq2 --pipeline pipeline --out out --quiet") == 0


def test_a_store_is_not_decompressed_into_another(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with CodeWriter("store", 13, [(4, 4), (8, 8)]) as writer:
        writer.add([torch.randint(13, (3, side, side)) for side in (4, 8)])
    assert run("compress store --pipeline pipeline --out x.vq2 --quiet") == 0
    assert run("decompress x.vq2 --pipeline pipeline --out out --quiet") == 0
    assert run("decompress x.vq2 --pipeline pipeline --out out --quiet") == 2
    assert "--out: out holds a code store already" in capsys.readouterr().err
