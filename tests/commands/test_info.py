"""`info` on everything that the package writes, and on what it does not."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys

import pytest
import torch
from helpers.models import tiny_pipeline, tiny_prior

from vqvae2_fast.checkpoints import load, save
from vqvae2_fast.checkpoints.hub import model_card
from vqvae2_fast.commands import installation
from vqvae2_fast.ops import _native
from vqvae2_fast.sampling import calibrate
from vqvae2_fast.sampling.engines import cuda
from vqvae2_fast.sampling.pipeline import Pipeline


def test_a_code_store_is_described(codes, run):
    code, text, _ = run("info", codes / "train")
    assert code == 0
    assert "records: 18" in text
    values = json.loads(run("info", codes / "train", "--json")[1])
    assert values["kind"] == "code store"
    assert "level sizes: 2x2, 4x4" in text
    assert "class names: cat, dog" in text
    assert (values["missing"], values["shards"], values["bytes"]) == (0, 1, 18 * 14)
    assert values["level_sizes"] == [[2, 2], [4, 4]]
    assert values["class_names"] == ["cat", "dog"]


def test_verify_reads_sound_stores(codes, run):
    code, text, _ = run("info", codes, "--verify", "--quiet")
    assert code == 0
    assert text.count("verified: 1 of 1 shards are sound") == 2


@pytest.mark.parametrize("damage", ["bit", "cut", "missing"])
def test_verify_exits_with_1_and_names_the_shard_that_is_damaged(codes, tmp_path, run, damage):
    copy = tmp_path / "codes"
    shutil.copytree(codes, copy)
    shard = copy / "train" / "shard-000000000000.bin"
    content = bytearray(shard.read_bytes())
    if damage == "bit":
        content[7] ^= 4
        shard.write_bytes(content)
    elif damage == "cut":
        shard.write_bytes(content[:-1])
    else:
        shard.unlink()
    code, text, _ = run("info", copy, "--verify", "--quiet")
    assert code == 1
    assert "damaged: shard-000000000000.bin: " in text
    assert "1 of 1 shards are damaged" in text
    assert text.rstrip().endswith("damaged stores: train; see above")
    assert "verified: 1 of 1 shards are sound" in text  # the other store
    values = json.loads(run("info", copy / "train", "--verify", "--quiet", "--json")[1])
    assert list(values["damaged"]) == ["shard-000000000000.bin"]


def test_the_remedy_for_damaged_shards_is_a_command_that_works(codes, tmp_path, run):
    copy = tmp_path / "my codes"
    shutil.copytree(codes / "train", copy)
    (copy / "shard-000000000000.bin").write_bytes(b"")
    _, text, _ = run("info", copy, "--verify", "--quiet")
    python, *rest = shlex.split(text.split("Take them out: ")[1].split("; then extract")[0])
    assert python == "python"
    assert rest[0] == "-c"
    exec(rest[1])
    assert run("info", copy, "--verify", "--quiet")[0] == 0


def test_a_model_is_described_for_machines(vqvae, run):
    values = json.loads(run("info", vqvae, "--json")[1])
    assert values["kind"] == "vqvae2"
    assert values["config"]["num_embeddings"] == 16
    assert values["parameters"] == sum(w.numel() for w in load(vqvae).parameters())


def test_a_pipeline_is_described_part_by_part(vqvae, tmp_path, run):
    sizes = {"num_embeddings": 16, "num_classes": 2}
    priors = [
        tiny_prior(size=(2, 2), **sizes),
        tiny_prior(size=(4, 4), condition_sizes=((2, 2),), **sizes),
    ]
    save(Pipeline(load(vqvae), priors), tmp_path / "pipeline", class_names=("cat", "dog"))
    values = json.loads(run("info", tmp_path / "pipeline", "--json")[1])
    assert values["kind"] == "pipeline"
    assert values["class_names"] == ["cat", "dog"]
    counts = [sum(w.numel() for w in prior.parameters()) for prior in priors]
    assert [values["parameters"][name] for name in ("top", "bottom")] == counts


@pytest.mark.skipif(_native.module is None, reason="engine cpu needs the module")
def test_a_pipeline_and_a_file_that_it_wrote_have_the_same_hash(pipelines, images, tmp_path, run):
    pipeline, file = pipelines / "classes", tmp_path / "x.vq2"
    image = images / "train" / "cat" / "7.png"
    assert run("compress --pipeline", pipeline, image, "--quiet --out", file)[0] == 0
    shown = [json.loads(run("info", path, "--json")[1])["pipeline"] for path in (pipeline, file)]
    assert shown[0] == shown[1]
    other = json.loads(run("info", pipelines / "plain", "--json")[1])["pipeline"]
    assert other != shown[0]
    assert "bits of each level, coarse to fine (top first): " in run("info", file)[1]


def test_a_calibration_is_shown_and_whether_it_is_of_the_weights(tmp_path, run):
    pipeline = tiny_pipeline()
    top = pipeline.priors[0]
    maps = torch.zeros(2, *top.config.size, dtype=torch.int64)
    calibrate(top, [(maps, None, torch.zeros(2, dtype=torch.int64))], margin=1.5)
    save(pipeline, tmp_path / "pipeline")
    text = run("info", tmp_path / "pipeline")[1]
    assert "calibration:\n  top:\n    margin: 1.5\n    of these weights: yes\n" in text
    with torch.no_grad():
        next(top.parameters()).add_(1.0)
    save(top, tmp_path / "prior")
    text = run("info", tmp_path / "prior")[1]
    assert "calibration:\n  margin: 1.5\n  of these weights: no\n" in text


def test_the_model_card_of_a_folder_is_shown_without_its_metadata(vqvae, tmp_path, run):
    folder = tmp_path / "model"
    save(load(vqvae), folder)
    card = model_card(
        load(vqvae), "me/it", licence="mit", data="Photographs.", metrics={"MSE": 0.5}
    )
    (folder / "README.md").write_text(card)
    _, text, _ = run("info", folder)
    assert "\n# VQVAE2\n" in text
    assert "\n## Data\nPhotographs.\n" in text
    assert "| MSE | 0.5 |" in text
    assert "license" not in text
    assert json.loads(run("info", folder, "--json")[1])["model_card"] in card


def test_a_model_card_cannot_write_to_the_terminal(vqvae, tmp_path, run):
    save(load(vqvae), tmp_path / "model")
    (tmp_path / "model/README.md").write_bytes(b"---\nx: 1\n---\na\x1b[2Jb\xff")
    _, text, _ = run("info", tmp_path / "model")
    assert "\na\\x1b[2Jb\ufffd\n" in text
    (tmp_path / "model/README.md").write_bytes(bytes(2 << 20))
    code, _, error = run("info", tmp_path / "model")
    assert code == 2
    assert "README.md" in error


_WITHOUT_KERNELS = "import sys; sys.modules['vqvae2_fast._C'] = None\n"


def without_kernels(code: str, *arguments: object) -> str:
    """What Python code prints in an install without the compiled module."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _WITHOUT_KERNELS + code, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_installation_without_compiled_kernels_is_described():
    text = without_kernels("from vqvae2_fast.cli import main; sys.exit(main(['info']))")
    assert "compiled kernels: none; every operator runs on its PyTorch reference" in text
    assert "nearest_code on the CPU is computed by reference: this install has no compiled" in text


def test_each_gpu_is_named_and_whether_engine_cuda_runs_on_it(run, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=0: f"NVIDIA Fake {device}")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(cuda, "driver_version", lambda: "12.4")
    reasons = [None, "a multiprocessor cannot hold a block"]
    monkeypatch.setattr(installation, "why_not_cuda", lambda device, _: reasons[device.index])
    sentences = [
        "engine cuda runs on NVIDIA Fake cuda:0 (compute capability 9.0, driver supports CUDA "
        "12.4)",
        "engine cuda is not used on NVIDIA Fake cuda:1 (compute capability 9.0, driver supports "
        "CUDA 12.4): a multiprocessor cannot hold a block. Engine eager draws instead.",
    ]
    assert json.loads(run("info", "--json")[1])["engine_cuda"] == sentences
    assert set(sentences) <= set(run("info")[1].splitlines())


def test_the_demo_ends_without_compiled_kernels(tmp_path):
    code = """
from vqvae2_fast.cli import main
from vqvae2_fast.commands import demo
from vqvae2_fast.data import ImageTensorDataset, load_emoji

def few(split, **options):
    whole = load_emoji(split, **options)
    return ImageTensorDataset(whole.images[::40], whole.labels[::40], whole.class_names)

demo.load_emoji = few
sys.exit(main(["demo", "--scale", "0.0001", "--quiet", "--out", sys.argv[1]]))
"""
    without_kernels(code, tmp_path / "demo")
    assert json.loads((tmp_path / "demo" / "metrics.json").read_text())["machine"]["simd"] is None


def test_a_folder_of_samples_is_described(sample, tmp_path, run):
    assert sample(tmp_path / "out", "--n 4 --temperature 0.9 --seed 3") == 0
    code, text, _ = run("info", tmp_path / "out")
    assert code == 0
    assert "kind: samples\n" in text
    assert "images: 4\nmissing: 0\n" in text
    assert "  seed: 3\n  temperature: 0.9, 0.9\n" in text
    values = json.loads(run("info", tmp_path / "out", "--json")[1])
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())["settings"]
    assert values["settings"] == settings
    index = tmp_path / "out" / "samples.jsonl"
    index.write_text("".join(index.read_text().splitlines(keepends=True)[:3]))
    values = json.loads(run("info", tmp_path / "out", "--json")[1])
    assert (values["images"], values["missing"]) == (3, 1)


@pytest.mark.parametrize("what", ["folder", "file", "nothing"])
def test_what_is_none_of_these_is_told(tmp_path, run, what):
    path = tmp_path / "thing"
    if what == "folder":
        (path / "photos").mkdir(parents=True)
    elif what == "file":
        path.write_text("x")
    code, _, error = run("info", path)
    assert code == 2
    assert (
        "expected PATH to be a run, checkpoint, pipeline, code store, .vq2 file or folder" in error
    )
    assert str(path) in error
    assert "Traceback" not in error


def test_presets_say_whether_they_come_with_weights(run):
    _, output, _ = run("info", "--presets")
    with_weights = {line.split(":")[0] for line in output.splitlines() if "weights come" in line}
    assert with_weights == {"avatars64", "emoji32", "fashion28"}


@pytest.mark.skipif(_native.module is None, reason="engine cpu needs the module")
def test_a_compressed_file_tells_tiles_from_images_and_height_from_width(workplace, run):
    line = "compress photos/2.png --pipeline pipeline --levels top --out x.bin --quiet"
    assert run(line)[0] == 0
    text = run("info x.bin")[1]
    assert "kind: compressed images" in text
    # 40 rows and 23 columns of pixels make 3 x 2 tiles of 16x16.
    assert "is stored as several tiles): 6\n" in text
    assert "image sizes (height x width): 40x23" in text
    assert "that the pipeline has): 1\n" in text
