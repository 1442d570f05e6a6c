"""The entry point of the command line, before torch is loaded."""

import os
import shlex
import subprocess
import sys
import tempfile

import pytest

_READ = "import os, sys; import vqvae2_fast.cli as c\n{then}"
_RUN = "sys.argv[1:] = ['info']; c.main(); print(os.environ.get('GOMP_SPINCOUNT'))"


def _python(then: str, **environment: str) -> str:
    unset = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}
    kept = {name: value for name, value in os.environ.items() if name not in unset}
    return subprocess.run(
        [sys.executable, "-c", _READ.format(then=then)],
        # Run outside the source tree, which would hide the installed package.
        cwd=tempfile.gettempdir(),
        env=kept | environment,
        check=True,
        capture_output=True,
        text=True,
    ).stdout


@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_what_needs_no_torch_does_not_load_it(argument):
    _python(f"c.main([{argument!r}]); assert 'torch' not in sys.modules")


def test_threads_spin_less_than_openmp_lets_them():
    assert _python(_RUN).splitlines()[-1] == "10000"


def test_what_the_user_set_stays():
    assert _python(_RUN, OMP_WAIT_POLICY="active").splitlines()[-1] == "None"


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["info"], ["train-vqvae", "--help"], ["--completion", "bash"]],
)
def test_a_reader_that_has_read_enough_is_no_error(arguments):
    read, write = os.pipe()
    os.close(read)
    code = _READ.format(then=f"sys.argv[1:] = {arguments}; sys.exit(c.main())")
    command = [sys.executable, "-c", code]
    try:
        ended = subprocess.run(
            command, cwd=tempfile.gettempdir(), stdout=write, stderr=subprocess.PIPE, text=True
        )
    finally:
        os.close(write)
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no device that is full")
@pytest.mark.parametrize("arguments", [["--version"], ["info", "--json"]])
def test_a_result_that_cannot_be_printed_is_told_in_one_sentence(arguments):
    code = _READ.format(then=f"sys.argv[1:] = {arguments}; sys.exit(c.main())")
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tempfile.gettempdir(),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    told = "vqvae2-fast: error: cannot print: No space left on device\n"
    assert (ended.returncode, ended.stderr) == (1, told)


@pytest.mark.skipif(os.name == "nt", reason="a shell closes the streams")
@pytest.mark.parametrize("closed", ["1", "2"])
def test_a_closed_stream_leads_nowhere(tmp_path, closed):
    """And no file that a command writes gets its number, under which the system prints errors."""
    then = (
        "sys.argv[1:] = ['info']; code = c.main()\n"
        "file = open('next', 'w'); assert file.fileno() > 2\n"
        f"os.write({closed}, b'x'); sys.exit(code)"
    )
    program = shlex.join([sys.executable, "-c", _READ.format(then=then)])
    ended = subprocess.run(
        ["sh", "-c", f"{program} {closed}>&-"], cwd=tmp_path, capture_output=True, text=True
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ("SIMD level" in ended.stdout) == (closed == "2")
    assert (tmp_path / "next").read_bytes() == b""


def test_runs_as_a_module():
    said = subprocess.run(
        [sys.executable, "-m", "vqvae2_fast", "--version"],
        cwd=tempfile.gettempdir(),
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert said.startswith("vqvae2-fast ")


@pytest.mark.parametrize("debug", [[], ["--debug"]])
def test_a_variable_that_cannot_be_used_is_a_wrong_request(debug):
    code = _READ.format(then=f"sys.argv[1:] = {['info', *debug]}; sys.exit(c.main())")
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tempfile.gettempdir(),
        env=os.environ | {"VQVAE2_FAST_SIMD": "foo"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 2
    assert ("Traceback" in ended.stderr) == bool(debug)
    assert "VQVAE2_FAST_SIMD: expected a SIMD level" in ended.stderr
    assert bool(debug) or ended.stderr.startswith("vqvae2-fast: error: VQVAE2_FAST_SIMD: ")


def test_a_pipeline_is_drawn_without_the_compiler_which_takes_a_second_to_load(tmp_path):
    options = ["--preset", "avatars64", "--n", "1", "--quiet", "--out", str(tmp_path / "drawn")]
    _python(f"c.main(['sample', *{options}]); assert 'torch._dynamo' not in sys.modules")
