"""What is fuzzed: for each loader, sound files to damage and a function that reads them whole."""

from __future__ import annotations

import bz2
import gzip
import io
import pickle
import re
import struct
import sys
import tarfile
import types
from collections import namedtuple
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import hub
import models
import numpy as np
import torch
import uploads
from compressed import MAKE, read_compressed, seal_compressed
from PIL import Image

from vqvae2_fast.compat import rosinality
from vqvae2_fast.data import (
    CodeStore,
    ImageFolder,
    cached_images,
    load_fashion_mnist,
    load_web_dataset,
    verify,
)
from vqvae2_fast.data.code_format import read_manifest
from vqvae2_fast.data.image_cache import open_cache
from vqvae2_fast.data.sample_folder import SampleFolder, read_index, read_sample
from vqvae2_fast.files.pickled_arrays import PickledArray, unpickled
from vqvae2_fast.files.untrusted import read_untrusted
from vqvae2_fast.runs.log import RunLog

if TYPE_CHECKING:
    from collections.abc import Callable

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from helpers.codes import random_codes  # noqa: E402

__all__ = ["TARGETS", "Target"]


class Target(NamedTuple):
    """A loader under test.

    Args:
        make: Makes a sound input in an empty folder, for each of its variants.
        read: Reads an input as far as its loader goes; may write below the second path.
        seal: Corrects the checksums, so that the loader does not stop at them.
    """

    make: tuple[Callable[[Path], object], ...]
    read: Callable[[Path, Path], object]
    seal: Callable[[Path], object] | None = None


def pixels(seed: int, size: tuple[int, ...] = (12, 10, 3)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, size, np.uint8)


def _image(suffix: str, mode: str = "RGB") -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        Image.fromarray(pixels(1)).convert(mode).save(folder / f"a.{suffix}")

    return make


def _turned(suffix: str) -> Callable[[Path], None]:
    """An image with an orientation and other tags, one of each type."""

    def make(folder: Path) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6
        exif[0x010E], exif[0x011A], exif[0x0100] = "a text", 72.5, 12
        exif.get_ifd(0x8769)[0x9286] = b"bytes"
        Image.fromarray(pixels(1)).save(folder / f"a.{suffix}", exif=exif)

    return make


def _make_folder(folder: Path) -> None:
    for name in ("train/x/0.png", "train/y/1.jpg", "held_out/x/2.webp", "held_out/y/3.gif"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(2)).save(folder / name)


def _read_folder(folder: Path, out: Path) -> None:
    for channels in (1, 3):
        images = ImageFolder(folder, 6, image_channels=channels, convert_channels=True)
        images.in_memory()
        images.fingerprint()


def _make_cache(folder: Path) -> None:
    (folder / "i").mkdir()
    Image.fromarray(pixels(3)).save(folder / "i" / "0.png")
    images = ImageFolder(folder / "i", 6)
    images.cache_key = lambda: "key"  # type: ignore[method-assign]  # whatever the time of the file
    cached_images(images, folder)


def _read_cache(folder: Path, out: Path) -> None:
    images = open_cache(folder, "images", "key")
    if images is None:
        raise ValueError(f"{folder}: made again")
    images.fingerprint()


def _tar(compress: Callable[[bytes], bytes], form: int) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
            for number in range(3):
                image = io.BytesIO()
                Image.fromarray(pixels(number)).save(image, "PNG")
                name = f"{'x' * 120 if number == 1 else 'a'}/{number}"
                members = {"png": image.getvalue(), "cls": b"1", "json": b'{"label": 1}'}
                for kind, content in members.items():
                    info = tarfile.TarInfo(f"{name}.{kind}")
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
        (folder / "a.tar").write_bytes(compress(buffer.getvalue()))

    return make


def _seal_tar(folder: Path) -> None:
    path = folder / "a.tar"
    data = bytearray(path.read_bytes())
    if data[:2] == b"\x1f\x8b" or data[:3] == b"BZh":
        return
    for match in re.finditer(b"ustar", bytes(data)):
        start = match.start() - 257
        if start >= 0:
            data[start + 148 : start + 156] = b" " * 8
            data[start + 148 : start + 156] = b"%06o\0 " % sum(data[start : start + 512])
    path.write_bytes(data)


def _read_tar(folder: Path, out: Path) -> None:
    for key in ("cls", "json"):
        load_web_dataset(
            folder / "a.tar", 6, out / key, split="train", label_key=key, convert_channels=True
        )


def _make_idx(compress: bool) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        for part in ("train", "t10k"):
            for kind, values in (
                ("images-idx3", pixels(4, (3, 28, 28))),
                ("labels-idx1", [0, 1, 9]),
            ):
                array = np.asarray(values, np.uint8)
                content = bytes((0, 0, 8, array.ndim)) + struct.pack(
                    f">{array.ndim}I", *array.shape
                )
                content += array.tobytes()
                path = folder / f"{part}-{kind}-ubyte{'.gz' if compress else ''}"
                path.write_bytes(gzip.compress(content) if compress else content)

    return make


def _make_store(folder: Path) -> None:
    random_codes(300, 9).write(folder / "s", shard_bytes=4 * 51)


def _read_store(folder: Path, out: Path) -> None:
    store = CodeStore(folder / "s")
    store.batch(torch.arange(len(store)))
    verify(folder / "s")


def _read_manifest(folder: Path, out: Path) -> None:
    read_manifest(folder / "s")


def _make_log(folder: Path) -> None:
    (log := RunLog(folder / "log.jsonl", 0)).note(0, data=["train: 300 images"])
    for step in range(1, 30):
        log.write(step, loss=1 / step, bits=2.0**-step)


def _read_log(folder: Path, out: Path) -> None:
    RunLog(folder / "log.jsonl", 20).write(21, loss=0.0)


def _make_samples(folder: Path) -> None:
    samples = SampleFolder.begin(folder / "s", 3, {"seed": 1})
    rows = [{"class": None, "seed": 1}] * 3
    samples.add(range(3), [Image.fromarray(pixels(n)) for n in range(3)], rows)
    samples.finish()
    samples.close()


def _read_samples(folder: Path, out: Path) -> None:
    for row in read_index(folder / "s"):
        read_sample(folder / "s", row["sample"])
    samples = SampleFolder.begin(folder / "s", 3, {"seed": 1}, resume=True)
    samples.close()


def _make_lmdb(folder: Path) -> None:
    import lmdb

    module = types.ModuleType("dataset")
    row = namedtuple("CodeRow", ["top", "bottom", "filename"], module="dataset")  # noqa: PYI024
    module.CodeRow = row  # type: ignore[attr-defined]
    sys.modules["dataset"] = module
    generator = np.random.default_rng(0)
    with lmdb.open(str(folder / "l"), map_size=1 << 16) as env, env.begin(write=True) as put:
        for index in range(3):
            maps = generator.integers(0, 8, (2, 3)), generator.integers(0, 8, (4, 6))
            put.put(str(index).encode(), pickle.dumps(row(*maps, f"a/{index}.png")))
        put.put(b"length", b"3")
    (folder / "l" / "lock.mdb").unlink()


def _make_arrays(protocol: int) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        values = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)
        groups = {"a": {"kernel": values, "bias": values[0]}, "b": {"kernel": values.T}}
        (folder / "p").write_bytes(pickle.dumps(groups, protocol=protocol))

    return make


def _read_arrays(folder: Path, out: Path) -> None:
    """As `load_lpips` does, which needs larger arrays."""
    content = read_untrusted(folder / "p", 2**20)
    try:
        found = [unpickled(content)]
        while found:
            value = found.pop()
            if isinstance(value, dict):
                found += value.values()
            elif isinstance(value, PickledArray):
                value.to_numpy(("f4",))
            else:
                raise ValueError(f"it holds a {type(value).__name__}")
    except ValueError as error:
        raise ValueError(f"{folder / 'p'}: {error}") from error


def _make_saved_set(folder: Path) -> None:
    import datasets

    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["a"]))
    rows = {"image": [Image.fromarray(pixels(n)) for n in range(3)], "label": [0] * 3}
    whole = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict(train=whole).save_to_disk(str(folder / "h"))


def _read_saved_set(folder: Path, out: Path) -> None:
    from vqvae2_fast.data.sources import DataOptions, open_images

    images = open_images(DataOptions(f"hf:{folder / 'h'}", convert_channels=True), "all", 3, (6, 6))
    for index in range(len(images)):
        images[index]


TARGETS: dict[str, Target] = {
    "image": Target(
        tuple(map(_image, ("png", "jpg", "webp", "gif", "bmp", "tif", "ppm")))
        + (_image("gif", "P"), _image("png", "P"), _image("tif", "I;16"), _image("png", "RGBA"))
        + tuple(map(_turned, ("png", "jpg", "webp", "tif"))),
        _read_folder,
    ),
    "folder": Target((_make_folder,), _read_folder),
    "cache": Target((_make_cache,), _read_cache),
    "tar": Target(
        (
            _tar(bytes, tarfile.USTAR_FORMAT),
            _tar(bytes, tarfile.GNU_FORMAT),
            _tar(bytes, tarfile.PAX_FORMAT),
            _tar(gzip.compress, tarfile.PAX_FORMAT),
            _tar(bz2.compress, tarfile.PAX_FORMAT),
        ),
        _read_tar,
        _seal_tar,
    ),
    "idx": Target(
        (_make_idx(False), _make_idx(True)), lambda folder, out: load_fashion_mnist(folder, "all")
    ),
    "store": Target((_make_store,), _read_store),
    "manifest": Target((_make_store,), _read_manifest),
    "samples": Target((_make_samples,), _read_samples),
    "log": Target((_make_log,), _read_log),
    "checkpoint": Target(models.MAKE_MODELS, models.read_model, models.seal_checkpoints),
    "training": Target(models.MAKE_RUNS, models.read_run, models.seal_checkpoints),
    "hub": Target(hub.MAKE_HUB, hub.read_hub, hub.seal_hub),
    "port": Target(models.MAKE_PORT, models.read_port),
    "lmdb": Target(
        (_make_lmdb,),
        lambda folder, out: rosinality.import_lmdb_codes(folder / "l", out / "s", 8),
    ),
    "arrays": Target((_make_arrays(3), _make_arrays(5)), _read_arrays),
    "hf": Target((_make_saved_set,), _read_saved_set),
    "upload": Target(uploads.MAKE, uploads.send_all),
    "vq2": Target(MAKE, read_compressed, seal_compressed),
}
