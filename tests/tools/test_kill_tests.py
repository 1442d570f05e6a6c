"""The tool that kills commands, on the two subjects that finish first."""

import subprocess
import sys
from pathlib import Path


def test_killed_writers_end_as_undisturbed_ones():
    tool = Path(__file__).parents[2] / "tools" / "kill_tests"
    run = subprocess.run(
        [sys.executable, str(tool), "store", "extract", "--kills", "2"],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    for subject in ("store", "extract"):
        assert f"{subject}: 2 kills among " in run.stdout
