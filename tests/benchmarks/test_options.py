"""Options that a script of benchmarks/ refuses, because they would have no effect."""

from __future__ import annotations

import sys

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


@pytest.mark.parametrize("name", ["report", "results_page"])
def test_a_script_that_is_asked_for_help_only_helps(run, capsys, name):
    with pytest.raises(SystemExit, match="0"):
        run(name, "--help")
    assert f"python benchmarks/{name}.py" in capsys.readouterr().out
