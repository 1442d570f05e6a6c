"""Engine `cpu` among other threads: interrupted by signals, not in their way, short of them."""

import os
import re
import resource
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
import torch
from helpers.models import tiny_prior

from vqvae2_fast.sampling import sample_codes


def test_interruption_ends_the_draw_between_rows():
    rows = []

    def progress(done, total):
        rows.append((done, total))
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample_codes(tiny_prior(), 1, engine="cpu", progress=progress)
    assert rows == [(1, 4), (2, 4)]


def test_other_threads_run_during_a_draw():
    prior = tiny_prior(size=(16, 16), channels=64, residual_channels=64)
    sample_codes(prior, 1, engine="cpu")  # the plan is folded and packed
    entered, left, seen = threading.Event(), threading.Event(), []

    def watch():
        entered.wait()
        while not left.is_set():
            seen.append(0)

    watcher = threading.Thread(target=watch)
    watcher.start()
    entered.set()
    sample_codes(prior, 16, engine="cpu")
    count = len(seen)
    left.set()
    watcher.join()
    assert count > 100


def test_a_draw_inside_a_draw():
    prior = tiny_prior()
    expected, inner = sample_codes(prior, 1, engine="cpu"), []

    def progress(done, total):
        inner.append(sample_codes(prior, 1, engine="cpu"))

    assert torch.equal(sample_codes(prior, 1, engine="cpu", progress=progress), expected)
    assert len(inner) == 4 and all(torch.equal(codes, expected) for codes in inner)


def run_alone(program, **options):
    # Run outside the source tree, which would hide the installed package.
    tests = str(Path(__file__).parents[1])
    path = os.pathsep.join(filter(None, (tests, os.environ.get("PYTHONPATH"))))
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": path},
        cwd=tempfile.gettempdir(),
        capture_output=True,
        text=True,
        timeout=120,
        **options,
    )


# PyTorch's threads exist before the draw. Where they do not come at once, because the machine is
# busy, the next draws take new ones, so this forgets that and tries often.
NEW_THREADS_OF_A_DRAW = """
import os, torch
from vqvae2_fast.ops import _native
from vqvae2_fast.sampling import sample_codes
from helpers.models import tiny_prior
torch.set_num_threads(2)
prior = tiny_prior()
threads = lambda: len(os.listdir("/proc/self/task"))
def new_threads():
    torch.zeros(1 << 20).add_(1)
    _native.module.forget_waits()
    before, seen = threads(), []
    sample_codes(prior, 1, engine="cpu", progress=lambda *_: seen.append(threads()))
    return max(seen) - before
new_threads()
print(min(new_threads() for _ in range(200)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts the threads of Linux")
def test_a_draw_takes_the_threads_that_pytorch_has():
    done = run_alone(NEW_THREADS_OF_A_DRAW)
    assert done.stdout.split() == ["0"], done.stderr


SETS_THREADS_INSIDE = """
import torch
from vqvae2_fast.sampling import sample_codes
from helpers.models import tiny_prior
torch.set_num_threads(2)
sample_codes(tiny_prior(), 1, engine="cpu", progress=lambda *_: torch.set_num_threads(1))
print(torch.get_num_threads())
"""


def test_a_number_of_threads_that_a_callback_sets_stays():
    done = run_alone(SETS_THREADS_INSIDE)
    assert done.stdout.split() == ["1"], done.stderr


# The logits are below 2^-126. PyTorch's second thread takes the mode of the one that starts it.
DRAWS_WHILE_DENORMALS_ARE_FLUSHED = """
import torch
from vqvae2_fast.sampling import sample_codes
from helpers.models import tiny_prior
prior = tiny_prior(num_embeddings=269)
with torch.no_grad():
    prior.head.kernel.weight_g.mul_(1e-39)
    prior.head.bias.zero_()
draw = lambda: sample_codes(prior, 1, engine="cpu", temperature=0.0)
torch.set_num_threads(1)
expected = draw()
torch.set_flush_denormal(True)
torch.set_num_threads(2)
torch.zeros(1 << 20).add_(1)
print(torch.equal(draw(), expected), len(expected.unique()) > 3)
"""


def test_a_draw_keeps_denormals_where_pytorch_flushes_them():
    done = run_alone(DRAWS_WHILE_DENORMALS_ARE_FLUSHED)
    assert done.stdout.split() == ["True", "True"], done.stderr


# OpenMP's threads do not exist in the child.
DRAWS_AFTER_A_FORK = """
import os, signal, torch
from vqvae2_fast.sampling import sample_codes
from helpers.models import tiny_prior
torch.set_num_threads(2)
prior = tiny_prior()
expected = sample_codes(prior, 1, engine="cpu")
torch.zeros(1 << 20).add_(1)
child = os.fork()
if not child:
    signal.alarm(60)
    os._exit(0 if torch.equal(sample_codes(prior, 1, engine="cpu"), expected) else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_draws():
    done = run_alone(DRAWS_AFTER_A_FORK)
    assert (done.returncode, done.stdout.strip()) == (0, "0"), done.stderr


# Stacks of 512 threads do not fit into 512 MiB more of address space; all else of the draw does.
DRAWS_WITH_TOO_FEW_THREADS = """
import resource, torch
from vqvae2_fast.sampling import sample_codes
from helpers.models import prior_inputs, tiny_prior
prior = tiny_prior()
inputs = prior_inputs(prior, 1)
draw = lambda: sample_codes(
    prior, 1, condition=inputs["condition"], labels=inputs["labels"], engine="cpu"
)
expected = draw()
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (512 << 20),) * 2)
torch.get_num_threads = lambda: 512
try:
    draw()
except RuntimeError as error:
    print(error)
torch.get_num_threads = lambda: 3
assert torch.equal(draw(), expected)
print("and goes on")
"""


def small_stacks():
    resource.setrlimit(resource.RLIMIT_STACK, (8 << 20,) * 2)


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is that of Linux")
def test_a_thread_that_cannot_be_started_is_an_error():
    done = run_alone(DRAWS_WITH_TOO_FEW_THREADS, preexec_fn=small_stacks)
    assert done.returncode == 0, done.stderr
    message, last = done.stdout.splitlines()
    assert re.search(
        r"the system started \d+ of 511 threads .* torch.set_num_threads\(\d+\)", message
    )
    assert last == "and goes on"
