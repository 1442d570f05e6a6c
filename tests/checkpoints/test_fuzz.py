"""Thousands of damaged and malicious checkpoints: refused with a reason or read, in little memory.

A hundred here; ten thousand by

    pytest tests/checkpoints/test_fuzz.py --hypothesis-profile=thorough -s
"""

from __future__ import annotations

import json
import shutil
import struct
import sys
from collections import Counter
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from helpers.models import TINY_PRIOR, TINY_VQVAE
from hypothesis import given, settings
from hypothesis import strategies as st

from vqvae2_fast.checkpoints.checkpoint import load, load_training, save, save_training
from vqvae2_fast.checkpoints.sums import write_sums
from vqvae2_fast.models.configs import PixelSNAILConfig, VQVAE2Config
from vqvae2_fast.models.pixelsnail import PixelSNAIL
from vqvae2_fast.models.vqvae2 import VQVAE2
from vqvae2_fast.sampling.pipeline import Pipeline

# Memory that reading any of these may take in addition; the checkpoint itself has 40 KB.
MEMORY = 24 * 2**20
TEXTS = ("config.json", "state.json", "files.json")
TENSORS = ("model.safetensors", "average.safetensors", "optimizer.safetensors")

numbers = st.one_of(
    st.integers(-2, 9),
    st.sampled_from([2**16, 2**24, 10**9, 2**31, 2**32, 2**53, 2**62, 2**63, 2**64, 10**400]),
    st.floats(),
    st.booleans(),
)
words = st.one_of(
    st.sampled_from(
        [
            "",
            "vqvae2",
            "pixelsnail",
            "pipeline",
            "top",
            "bottom",
            "../../x",
            "/etc/passwd",
            "a/b",
            "F32",
            "BF16",
            "I64",
            "BOOL",
            "F64",
            "U8",
            "I8",
            "float32",
            "bfloat16",
            "int8",
            "kmeans",
            "rotation",
            "downright",
            "logits",
            "\ud800",
            "x\0y",
            "x" * 3000,
        ]
    ),
    st.text(max_size=6),
)
values = st.recursive(
    st.one_of(numbers, words, st.none()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)
sizes = st.lists(numbers, min_size=1, max_size=4)
anything = st.one_of(values, sizes, st.lists(sizes, max_size=3))
config_fields = st.sampled_from(
    sorted({f.name for made in (VQVAE2Config, PixelSNAILConfig) for f in fields(made)})
)
header_fields = st.sampled_from(
    [
        "kind",
        "version",
        "config",
        "dtype",
        "class_names",
        "step",
        "train",
        "metrics",
        "best",
        *TEXTS,
        *TENSORS,
    ]
)
texts = st.one_of(
    st.tuples(st.just("config"), config_fields, anything),
    st.tuples(st.just("config"), config_fields, numbers),
    st.tuples(st.just("top"), header_fields, anything),
    st.tuples(st.just("drop"), header_fields, st.none()),
)
headers = st.one_of(
    st.tuples(st.just("tensor"), st.sampled_from(["dtype", "shape", "data_offsets"]), anything),
    st.tuples(st.just("add tensor"), words, anything),
    st.tuples(st.just("drop tensor"), st.integers(0, 40), st.none()),
    st.tuples(st.just("header size"), numbers, st.none()),
)
places = st.integers(0, 3000)
damage = st.one_of(
    st.tuples(st.just("cut"), places, st.none()),
    st.tuples(st.just("byte"), places, st.integers(0, 255)),
    st.tuples(st.just("insert"), places, st.binary(min_size=1, max_size=9)),
)
cases = st.one_of(
    st.tuples(
        st.sampled_from(folders),
        st.sampled_from(files),
        st.lists(st.one_of(changes, damage), min_size=1, max_size=3),
        st.booleans(),
    )
    for folders, files, changes in (
        (["vqvae", "prior", "pipeline/prior_top", "pipeline"], ["config.json"], texts),
        (["vqvae", "prior"], ["state.json", "files.json"], texts),
        (["vqvae", "prior", "pipeline/vqvae"], ["model.safetensors"], headers),
        (["vqvae", "prior"], TENSORS, headers),
    )
)


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    vqvae = VQVAE2(TINY_VQVAE)
    prior = PixelSNAIL(TINY_PRIOR)
    folder = tmp_path_factory.mktemp("sound")
    for name, model in (("vqvae", vqvae), ("prior", prior)):
        weights = {key: weight.detach() for key, weight in model.named_parameters()}
        moments = {f"{key}.exp_avg": weight for key, weight in weights.items()}
        state = {"step": 3, "train": {"seed": 0}, "metrics": {"bits": 1.5}, "best": None}
        save_training(folder / name, model, optimizer=moments, state=state, average=weights)
    save(Pipeline(vqvae, [prior]), folder / "pipeline", dtype=torch.int8)
    return folder


def changed_text(content: bytes, kind: str, where: object, value: object) -> bytes:
    try:
        raw = json.loads(content)
    except ValueError:
        return content
    if not isinstance(raw, dict):
        return content
    if kind == "config" and isinstance(raw.get("config"), dict):
        raw["config"][where] = value
    elif kind == "top":
        raw[where] = value
    elif kind == "drop":
        raw.pop(where, None)
    return json.dumps(raw).encode("utf-8", "surrogatepass")


def changed_header(content: bytes, kind: str, where: object, value: object) -> bytes:
    """A safetensors file with its header changed, and the header's length with it."""
    size = int.from_bytes(content[:8], "little")
    try:
        raw = json.loads(content[8 : 8 + size])
    except ValueError:
        return content
    if kind == "header size":
        claimed = where if type(where) is int and 0 <= where < 2**64 else 2**64 - 1
        return struct.pack("<Q", claimed) + content[8:]
    name = sorted(raw)[where % len(raw)] if type(where) is int and raw else next(iter(raw), "")
    if kind == "tensor" and isinstance(raw.get(name), dict):
        raw[name][where] = value
    elif kind == "add tensor":
        raw[where] = value
    elif kind == "drop tensor":
        raw.pop(name, None)
    header = json.dumps(raw).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(header)) + header + content[8 + size :]


def changed(content: bytes, name: str, edits: list[tuple]) -> bytes:
    for kind, where, value in edits:
        if kind == "cut":
            content = content[: where % (len(content) + 1)]
        elif kind == "byte" and content:
            where %= len(content)
            content = content[:where] + bytes([value]) + content[where + 1 :]
        elif kind == "insert":
            where %= len(content) + 1
            content = content[:where] + value + content[where:]
        elif name in TENSORS:
            content = changed_header(content, kind, where, value)
        else:
            content = changed_text(content, kind, where, value)
    return content


def memory(field: str) -> int:
    """Bytes from /proc/self/status: VmRSS now, or VmHWM, its peak since the last reset."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"no {field}")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_any_change_is_refused_with_a_reason_or_read_in_little_memory(sound, tmp_path) -> None:
    seen, peak = Counter[str](), 0

    def attempt(read, folder: Path) -> None:
        nonlocal peak
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
        before = memory("VmRSS")
        try:
            read(folder)
            seen["read"] += 1
        except (ValueError, FileNotFoundError) as error:
            assert str(error), error
            assert len(str(error)) < 1500, error
            seen["refused"] += 1
        peak = max(peak, memory("VmHWM") - before)
        assert peak < MEMORY, f"{peak} bytes"

    @settings(deadline=None, database=None, derandomize=True)
    @given(cases)
    def each_case(case) -> None:
        where, name, edits, with_sums = case
        folder, path = target / where, target / where / name
        path.write_bytes(changed((sound / where / name).read_bytes(), name, edits))
        if name != "files.json":
            # Changed with its checksums, because this tests the readers behind them.
            (folder / "files.json").unlink(missing_ok=True)
            if with_sums:
                write_sums(folder)
        if name in ("state.json", "optimizer.safetensors"):
            attempt(load_training, folder)
        else:
            attempt(load, target / where.partition("/")[0])
        for restored in (name, "files.json"):
            shutil.copyfile(sound / where / restored, folder / restored)

    target = tmp_path / "case"
    shutil.copytree(sound, target)
    for read, where in (
        (load, "vqvae"),
        (load, "prior"),
        (load, "pipeline"),
        (load_training, "prior"),
    ):
        read(sound / where)  # loads code
    each_case()
    assert seen["refused"] > 2 * seen["read"] > 0
    print(f"{sum(seen.values())} readings: {dict(seen)}; at most {peak / 2**20:.1f} MiB each")
