"""The command `extract`: records, resuming, and processes that share the work."""

from __future__ import annotations

import json

from helpers.models import tiny_prior

from vqvae2_fast.checkpoints import save
from vqvae2_fast.data import CodeStore
from vqvae2_fast.models.vqvae2 import VQVAE2


def test_flip_and_copies_add_records_to_the_training_store_alone(images, vqvae, tmp_path, run):
    out = tmp_path / "codes"
    options = ["--flip", "--copies", 3, "--shift", 1, "--quiet", "--out", out]
    assert run("extract", "--vqvae", vqvae, "--data", images, *options)[0] == 0
    values = json.loads((out / "result.json").read_text())
    assert values["train"]["records"] == 18 * 5
    assert values["held_out"]["records"] == 6
    assert values["train"]["codes_used"]["bottom"] > 4
    assert values["checkpoint_hash"] == CodeStore(out / "train").checkpoint_hash


def test_a_finished_extraction_is_not_written_over(images, vqvae, codes, run, files):
    before = files(codes)
    code, _, error = run("extract", "--vqvae", vqvae, "--data", images, "--out", codes)
    assert code == 2
    assert "holds codes already. Add --resume" in error
    assert files(codes) == before


def test_resume_finishes_what_was_broken_off(images, vqvae, tmp_path, run, monkeypatch, files):
    out = tmp_path / "codes"
    line = f"extract --vqvae {vqvae} --data {images} --out {out} --quiet --shard-records 5"
    with monkeypatch.context() as patch:
        patch.setattr(VQVAE2, "encode", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        code, _, error = run(line)
    assert code == 130
    assert "--resume continues a run" in error
    assert run(line, "--resume")[0] == 0
    assert CodeStore(out / "train").complete
    assert CodeStore(out / "held_out").complete
    once = files(out)
    assert run(line, "--resume")[0] == 0  # nothing is left to do
    assert files(out) == once


def test_resume_with_other_images_or_variants_is_refused(vqvae, images, codes, run):
    again = ("extract", "--vqvae", vqvae, "--out", codes, "--resume", "--data")
    code, _, error = run(*again, images, "--flip")
    assert code == 2
    assert "was begun with flip False, not True" in error
    code, _, error = run(*again, "emoji")
    assert code == 2
    assert "was begun with other images" in error


def test_a_prior_in_place_of_the_vqvae_is_refused_by_both_names(tmp_path, images, run):
    save(tiny_prior(), tmp_path / "prior")
    code, _, error = run("extract", "--vqvae", tmp_path / "prior", "--data", images)
    assert code == 2
    assert "--vqvae: expected a VQ-VAE" in error
    assert "found a prior" in error


def test_processes_of_torchrun_share_the_work(images, vqvae, codes, tmp_path, run_in_two_processes):
    out = tmp_path / "codes"
    line = f"extract --vqvae {vqvae} --data {images} --out {out} --quiet --threads 1"
    said = run_in_two_processes(line)
    assert f"train: 18 records in {out / 'train'}" in said[0]  # the first prints for all
    assert said[1] == ""
    assert json.loads((out / "result.json").read_text())["train"]["records"] == 18
    for split in ("train", "held_out"):
        store, alone = CodeStore(out / split), CodeStore(codes / split)
        assert store.complete
        assert len(store.manifest.shards) == 2
        assert all(
            (a == b).all() and label == other
            for i in range(len(store))
            for (maps, label), (wanted, other) in [(store[i], alone[i])]
            for a, b in zip(maps, wanted, strict=True)
        )
