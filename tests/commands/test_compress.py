"""`vqvae2-fast compress`, and what `decompress` makes of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.models import tiny_pipeline
from PIL import Image

from vqvae2_fast import codec
from vqvae2_fast.checkpoints import save
from vqvae2_fast.cli import main
from vqvae2_fast.commands import compress
from vqvae2_fast.data import CodeStore, CodeWriter, ImageTensorDataset, codes_in_order
from vqvae2_fast.ops import _native

pytestmark = pytest.mark.skipif(_native.module is None, reason="engine cpu needs the module")


def run(line: str) -> int:
    return main(line.split())


def test_images_keep_their_sizes_and_order(workplace: Path) -> None:
    assert run("compress photos --pipeline pipeline --out x.vq2 --quiet") == 0
    assert run("decompress x.vq2 --pipeline pipeline --out out --quiet") == 0
    for name in ("0", "1", "2", "3"):
        with Image.open(f"photos/{name}.png") as given, Image.open(f"out/0000{name}.png") as found:
            assert found.size == given.size


def test_one_image_decodes_as_the_library_decodes_it(workplace: Path) -> None:
    assert run("compress photos/2.png --pipeline pipeline --out x.vq2 --quiet") == 0
    assert run("decompress x.vq2 --pipeline pipeline --out out --quiet") == 0
    (expected,) = codec.decode_images(tiny_pipeline(3), (workplace / "x.vq2").read_bytes())
    with Image.open("out/00000.png") as found:
        pixels = torch.from_numpy(np.array(found)).permute(2, 0, 1)
    assert (pixels - (expected + 1) * 127.5).abs().max() <= 0.5


def test_a_store_comes_back_equal(workplace: Path) -> None:
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


def test_a_store_of_parts_is_kept_with_its_classes(workplace: Path) -> None:
    codes = [torch.randint(13, (3, side, side)) for side in (4, 8)]
    names = ("a - 0", "b - 0", "c - 0", "a - 1", "b - 1", "c - 1")
    with CodeWriter("store", 13, [(4, 4), (8, 8)], class_names=names) as writer:
        writer.add(codes, torch.tensor([1, -1, 5]))
    assert run("compress store --pipeline pipeline --out x.vq2 --quiet") == 0
    assert run("decompress x.vq2 --pipeline pipeline --out back --quiet") == 0
    assert CodeStore("back").labels.tolist() == [1, -1, 2]


def test_levels_left_out_are_told(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = "compress photos --pipeline pipeline --levels top --out x.vq2 --quiet"
    assert run(call) == 0
    assert "left out, to be drawn by decompress: bottom" in capsys.readouterr().out
    assert run("decompress x.vq2 --pipeline pipeline --out out --quiet") == 0
    assert "drawn from the priors: bottom" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("compress photos --pipeline pipeline --levels middle", "expected one of top, bottom"),
        ("decompress photos/0.png --pipeline pipeline", "error: photos/0.png: expected a .vq2"),
        (
            "compress nosuch.png --pipeline pipeline",
            "error: compress: expected IMAGES to be an image, a folder of images, a code store or "
            "one of `emoji[:subcategories]`, ",
        ),
        ("compress emoji:x --pipeline pipeline", "error: data=emoji:x: expected emoji or"),
        ("decompress x.vq2 --pipeline pipeline --out photos", "--out: photos holds images already"),
        ("compress photos --pipeline pipeline --out photos", "--out: photos is a folder; expected"),
        ("compress photos --pipeline pipeline --seed 3", "--seed: expected --levels with it"),
        ("decompress nothing.vq2 --pipeline pipeline", "nothing.vq2: expected a .vq2 file, which"),
        (
            "compress photos --pipeline pipeline --priors pipeline",
            "--priors: expected --vqvae with",
        ),
    ],
)
def test_a_wrong_request_names_the_file_or_flag(
    workplace: Path, call: str, message: str, capsys: pytest.CaptureFixture[str]
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
    workplace: Path, names, checkpoint, message, capsys: pytest.CaptureFixture[str]
) -> None:
    codes = [torch.randint(13, (3, side, side)) for side in (4, 8)]
    with CodeWriter(
        "store", 13, [(4, 4), (8, 8)], class_names=names, checkpoint_hash=checkpoint
    ) as writer:
        writer.add(codes, torch.tensor([1, 0, 2]))
    assert run("compress store --pipeline pipeline --out x.vq2 --quiet") == 2
    assert message in capsys.readouterr().err


def test_a_full_disk_is_named_and_leaves_no_file(
    workplace: Path, small_disk, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, encode_images = small_disk.folder / "x.vq2", compress.encode_images

    def fill_and_encode(*arguments, **options):
        small_disk.fill(0)
        return encode_images(*arguments, **options)

    monkeypatch.setattr(compress, "encode_images", fill_and_encode)
    code = run(f"compress photos --pipeline pipeline --out {out} --quiet")
    small_disk.clear()
    assert code == 1
    error = capsys.readouterr().err
    assert f"cannot write {out}: " in error
    assert "What was there before, if anything, is unchanged. " in error
    assert not list(out.parent.iterdir())


def encoded_together(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of images that the command will encode together."""
    counts, encode_images = [], compress.encode_images

    def encode(pipeline, images, **options):
        counts.append(len(images))
        return encode_images(pipeline, images, **options)

    monkeypatch.setattr(compress, "encode_images", encode)
    return counts


def test_small_images_are_counted_by_the_tiles_that_they_fill(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (workplace / "dots").mkdir()
    for number in range(5):
        Image.new("RGB", (1, 1)).save(workplace / "dots" / f"{number}.png")
    monkeypatch.setattr(compress, "_PIXELS", 2 * 16 * 16)
    counts = encoded_together(monkeypatch)
    assert run("compress dots --pipeline pipeline --out x.vq2 --quiet") == 0
    assert counts == [2, 2, 1]


@pytest.fixture
def named_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five images by the name emoji."""
    images = torch.zeros(5, 3, 16, 16, dtype=torch.uint8)
    source = ImageTensorDataset(images, torch.zeros(5, dtype=torch.int64), ("a",))
    monkeypatch.setattr(compress, "open_images", lambda *_, **__: source)


def test_images_of_a_named_source_are_encoded_within_the_same_bound(
    workplace: Path, named_source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compress, "_PIXELS", 2 * 16 * 16)
    counts = encoded_together(monkeypatch)
    assert run("compress emoji --pipeline pipeline --out x.vq2 --quiet") == 0
    assert counts == [2, 2, 1]


def test_a_grey_model_warns_once_of_colour(workplace: Path) -> None:
    save(tiny_pipeline(0, image_channels=1), workplace / "grey")
    Image.new("L", (16, 16)).save(workplace / "photos" / "0.png")
    with pytest.warns(UserWarning) as told:
        assert run("compress photos --pipeline grey --out x.vq2 --quiet") == 0
    (text,) = {str(warning.message) for warning in told}
    assert text.startswith("photos/1.png has colour, and the model's images are grey")
    assert len(told) == 1


def test_the_folder_of_an_extraction_is_refused_with_its_stores(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for side in ("train", "held_out"):
        with CodeWriter(f"codes/{side}", 13, [(4, 4), (8, 8)]):
            pass
    told = "codes is the folder of the stores that `extract` left; name one of them, codes/train"
    assert run("compress codes --pipeline pipeline --out x.vq2 --quiet") == 2
    assert f"error: {told} or codes/held_out." in capsys.readouterr().err
    assert run("calibrate --codes codes --pipeline pipeline --out calibrated") == 2
    assert told in capsys.readouterr().err


def test_a_cut_image_is_named_before_any_is_encoded(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = workplace / "photos" / "3.png"
    cut.write_bytes(cut.read_bytes()[:-40])
    assert run("compress photos --pipeline pipeline --out x.vq2") == 2
    error = capsys.readouterr().err
    assert "photos/3.png cannot be decoded" in error
    assert "; remove it, or set skip_corrupt to leave out such files." in error
    assert "0/4" not in error
    assert not (workplace / "x.vq2").exists()


def test_corrupt_images_are_left_out_on_request(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sound = (workplace / "photos" / "2.png").read_bytes()
    (workplace / "photos" / "1.png").write_bytes(b"no image")
    (workplace / "photos" / "2.png").write_bytes(sound[:-200])
    assert run("compress photos --skip-corrupt --pipeline pipeline --out x.vq2 --quiet") == 0
    assert "left out, since they are corrupt: 1.png, 2.png" in capsys.readouterr().out
    assert run("decompress x.vq2 --pipeline pipeline --out out --quiet") == 0
    with Image.open("out/00001.png") as found:
        assert found.size == (50, 9)  # that of 3.png


def test_a_file_that_is_read_is_never_replaced(
    workplace: Path, capsys: pytest.CaptureFixture[str]
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


def test_a_file_that_compress_has_not_written_is_never_replaced(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = Path("photos/1.png").read_bytes()
    call = "compress photos/0.png --pipeline pipeline --quiet --out"
    assert run(f"{call} photos/1.png") == 2
    assert "--out: photos/1.png exists and is no .vq2 file" in capsys.readouterr().err
    assert Path("photos/1.png").read_bytes() == before
    Path("empty").touch()  # as mktemp leaves one
    assert run(f"{call} empty") == 0
