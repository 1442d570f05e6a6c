"""Options that a script of benchmarks/ refuses, because they would have no effect."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch


@pytest.fixture
def run(measuring, monkeypatch):
    """Runs a script's `main` with these options."""
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)

    def main(name, line):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *line.split()])
        measuring(name).main()

    return main


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("before_after", "lucidrain", "expected pages of lucidrains"),
        ("codec", "--pipeline folder", "--pipeline and --codes: expected both"),
        ("codec", "--port --only bits", "--port: random priors have only a speed"),
        ("compare", "ema --levels avx9", "--levels: expected some of "),
        ("compare", "ema --rounds 0", "argument --rounds: expected 1 or more, got 0"),
        ("exactness", "--rows 0", "argument --rows: expected 1 or more, got 0"),
        ("exactness", "--levels", "argument --levels: expected at least one argument"),
        ("fill", "--candidates 8 64", "--candidates: expected 1 first"),
        ("fill", "--images 1", "--images: expected 2 or more"),
        ("peak_memory", "ema lean", "expected a contender of ours, reference, got lean"),
        ("report", "nothing.csv", "expected a file of results, got nothing.csv"),
        ("sampler_weights", "--codes folder", "--priors and --codes: expected both"),
        ("training_processes", "--steps 4", "--steps: expected 5 or more, of which 3 are not"),
        ("training_step", "--against prot", "invalid choice: 'prot'"),
    ],
)
def test_what_would_have_no_effect_is_refused(run, capsys, name, line, message):
    with pytest.raises(SystemExit, match="2"):
        run(name, line)
    assert message in capsys.readouterr().err


def test_a_contender_that_no_workload_has_is_named(measuring, run, monkeypatch):
    compare = measuring("compare")
    monkeypatch.setattr(compare, "compare", lambda *arguments: [])
    monkeypatch.setattr(compare, "conformance", SimpleNamespace(red=lambda operators: []))
    with pytest.raises(SystemExit, match="--against: none of these workloads has fais"):
        run("compare", "ema --against reference fais")


def test_a_process_that_fails_ends_the_others(measuring, monkeypatch, tmp_path):
    processes, fake = measuring("training_processes"), tmp_path / "fake.py"
    fake.write_text(
        "import signal, sys\n"
        "if sys.argv[2] == '1': sys.exit('no such batch')\n"
        "signal.alarm(60)\n"
        "signal.pause()\n"
    )
    monkeypatch.setattr(processes, "__file__", str(fake))
    with pytest.raises(SystemExit, match="process 1 of 2 failed with exit code 1; its message is"):
        processes.measured(2, 32, 5)


def test_rows_that_are_rounded_up_to_blocks_are_told(run, measuring, monkeypatch, capsys):
    exactness = measuring("exactness")
    monkeypatch.setattr(exactness, "CHUNK", 8)
    with pytest.raises(SystemExit, match="False"):  # no pick is wrong
        run("exactness", "--rows 100 --levels scalar")
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("scalar: 0 wrong picks in 160 rows (--rows 100 in whole blocks), ")


def test_a_quantiser_is_trained_again_for_other_steps(measuring, run, monkeypatch, tmp_path):
    quantizers, out = measuring("quantizers"), tmp_path / "rows.csv"
    monkeypatch.setattr(quantizers, "open_images", lambda *arguments: None)
    monkeypatch.setattr(quantizers, "measured", lambda model, images: {"psnr": 1.0})
    steps = []

    def trained(model, images, config):
        steps.append(config.steps)
        return 2.0

    monkeypatch.setattr(quantizers, "trained", trained)
    for count in (5, 7, 5):
        run("quantizers", f"--data emoji --quantizers lfq --steps {count} --out {out}")
    assert steps == [5, 7]


def test_steps_of_quantisers_say_what_they_were_measured_on(measuring, run, monkeypatch, capsys):
    pytest.importorskip("vector_quantize_pytorch")
    script = measuring("quantizer_steps")
    case = ("FSQ", {"levels": [8, 5, 5, 5]}, (1, 4, 4))
    monkeypatch.setattr(script, "CASES", {"FSQ": case})
    monkeypatch.setattr(script.measure, "SHORTEST", 0)
    monkeypatch.setattr(script.measure, "SETTLE", 0)
    run("quantizer_steps", "--rounds 2")
    machine, *lines = capsys.readouterr().out.splitlines()
    for part in ("cores", "commit", "vector-quantize-pytorch", "torch", "2 rounds"):
        assert part in machine
    assert len(lines) == 2
    assert all(line.endswith(")") for line in lines)  # the spread of the ratio


@pytest.mark.parametrize("name", ["report", "results_page"])
def test_a_script_that_is_asked_for_help_only_helps(run, capsys, name):
    with pytest.raises(SystemExit, match="0"):
        run(name, "--help")
    assert f"python benchmarks/{name}.py" in capsys.readouterr().out


def test_a_package_that_is_missing_says_how_to_install_it(measuring):
    with pytest.raises(SystemExit, match=r"no_such is not installed: `pip install '\.\[bench\]'`"):
        measuring("shared.measure").needed("no_such")


def test_the_stores_are_made_in_a_new_folder(run, tmp_path):
    pytest.importorskip("lmdb")
    run("code_store", f"--records 100 --rounds 1 --folder {tmp_path / 'new'}")
    assert list((tmp_path / "new").iterdir()) == []


def test_one_round_has_a_spread_of_nothing(measuring):
    pytest.importorskip("httpx")
    assert measuring("serve_latency").described([0.002]).split() == [
        "2.0",
        "ms",
        "(2.0",
        "to",
        "2.0)",
    ]
