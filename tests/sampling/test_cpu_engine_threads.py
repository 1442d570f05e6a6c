"""Engine `cpu` among other threads: interrupted by signals, not in their way, short of them."""

import re
import resource
import subprocess
import sys
import tempfile
import threading

import pytest

from vqvae2_fast.sampling import (
    sample_codes,
)
from vqvae2_fast.testing.priors import tiny_prior


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


# Stacks of 512 threads do not fit into 512 MiB more of address space; all else of the draw does.
DRAWS_WITH_TOO_FEW_THREADS = """
import resource, torch
from vqvae2_fast.sampling import sample_codes
from vqvae2_fast.testing.priors import prior_inputs, tiny_prior
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


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is that of Linux")
def test_a_thread_that_cannot_be_started_is_an_error():
    def small_stacks():
        resource.setrlimit(resource.RLIMIT_STACK, (8 << 20,) * 2)

    done = subprocess.run(
        [sys.executable, "-c", DRAWS_WITH_TOO_FEW_THREADS],
        # Run outside the source tree, which would hide the installed package.
        cwd=tempfile.gettempdir(),
        capture_output=True,
        text=True,
        preexec_fn=small_stacks,
    )
    assert done.returncode == 0, done.stderr
    message, last = done.stdout.splitlines()
    assert re.search(
        r"the system started \d+ of 511 threads .* torch.set_num_threads\(\d+\)", message
    )
    assert last == "and goes on"
