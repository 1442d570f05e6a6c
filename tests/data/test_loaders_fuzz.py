"""A few damaged files of every kind: they are read, or refused with their name, and nothing else
happens.

tools/fuzz runs any number of them, in processes of limited memory. Its earlier findings are in
found/, in folders named after the loader.
"""

from __future__ import annotations

import os
import shutil
import sys
from importlib import util
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

FOLDER = Path(__file__).parents[2] / "tools" / "fuzz"
# More where a case takes little time and may end in many ways.
CASES = {"vq2": 200, "manifest": 200, "store": 100, "checkpoint": 150, "training": 100}
FOUND = sorted((Path(__file__).parent / "found").iterdir())

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="tools/fuzz needs /proc")


@pytest.fixture(scope="module")
def fuzz():
    sys.path.insert(0, str(FOLDER))
    try:
        spec = util.spec_from_file_location("fuzz_main", FOLDER / "__main__.py")
        module = util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(FOLDER))
    module.watch = module.Watch()
    with pytest.MonkeyPatch.context() as patch:
        if "datasets" in sys.modules:  # an earlier test has imported it: too late for HF_HOME
            cache = Path(os.environ["HF_HOME"], "datasets")
            patch.setattr(sys.modules["datasets"].config, "HF_DATASETS_CACHE", cache)
        yield module


@pytest.mark.parametrize(
    ("name", "packages"),
    [
        ("image", []),
        ("folder", []),
        ("cache", []),
        ("tar", []),
        ("idx", []),
        ("store", []),
        ("manifest", []),
        ("samples", []),
        ("hf", ["datasets"]),
        ("checkpoint", []),
        ("training", []),
        ("hub", []),
        ("port", []),
        ("lmdb", ["lmdb"]),
        ("vq2", ["vqvae2_fast._C"]),
    ],
)
def test_damaged_files_are_read_or_refused_by_name(fuzz, tmp_path, name, packages) -> None:
    for package in packages:
        pytest.importorskip(package)
    files = fuzz.sound_files(fuzz.TARGETS[name], tmp_path / "sound")
    ends = set()

    @settings(
        max_examples=CASES.get(name, 40),
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(number=st.integers(0, 2**32))
    @example(824221)  # a set of "hf" whose description is lost, which `datasets` prepares anew
    @example(2744)  # a training, with a control character in the name of a moment
    def run(number: int) -> None:
        how, said = fuzz.run_case(name, files, 0, number, tmp_path / "case", fuzz.watch)
        ends.add(how)
        assert how in ("read", "refused"), f"{how}: {said}"

    run()
    assert "refused" in ends


def test_sound_files_are_read(fuzz, tmp_path) -> None:
    needing_packages = {"hf", "lmdb", "upload", "vq2"}
    # Some of the hub's files begin with weights of another type, which are refused.
    for name in fuzz.TARGETS.keys() - needing_packages - {"hub"}:
        for number, files in enumerate(fuzz.sound_files(fuzz.TARGETS[name], tmp_path / name)):
            fuzz.read_sound(fuzz.TARGETS[name], files, tmp_path / f"{name}-{number}")


def test_models_of_the_hub_are_read_unless_their_weights_are_of_another_type(fuzz, tmp_path):
    target, refused = fuzz.TARGETS["hub"], 0
    for number, files in enumerate(fuzz.sound_files(target, tmp_path / "hub")):
        try:
            fuzz.read_sound(target, files, tmp_path / f"hub-{number}")
        except ValueError as error:
            assert "to be torch.float32" in str(error)
            refused += 1
    assert refused == 6


@pytest.mark.parametrize("found", FOUND, ids=lambda path: path.name)
def test_what_was_found_before_is_refused_by_name(fuzz, tmp_path, found) -> None:
    name = found.name.partition("-")[0]
    if name == "hf":
        pytest.importorskip("datasets")
    shutil.copytree(found, tmp_path / "input", symlinks=True)
    (tmp_path / "out").mkdir()
    with pytest.raises((ValueError, OSError), match=str(tmp_path / "input")):
        fuzz.TARGETS[name].read(tmp_path / "input", tmp_path / "out")


@pytest.mark.parametrize(
    ("line", "message"),
    [("taar", "expected targets of"), ("tar hf --case 3", "--case: expected one target")],
)
def test_the_tool_refuses_targets_that_it_would_not_run(fuzz, monkeypatch, capsys, line, message):
    monkeypatch.setattr(sys, "argv", ["fuzz", *line.split()])
    with pytest.raises(SystemExit, match="2"):
        fuzz.main()
    assert message in capsys.readouterr().err
