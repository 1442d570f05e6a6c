"""What `auto` stands for where there is a GPU: it ends in an engine that draws, and says why it is
not engine `cuda`.

The GPU is a stand-in: priors seem to be on it, and engine `cuda` draws by the CPU harness, whose
CUDA runtime fails when a test wants it to.
"""

import contextlib
import ctypes
import math
import warnings
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from helpers.models import tiny_prior

from vqvae2_fast.ops import _native
from vqvae2_fast.sampling import (
    Pipeline,
    choose_engine,
    interface_of,
    plan_of,
    sample_codes,
    score_codes,
)
from vqvae2_fast.sampling import choice as choice_module
from vqvae2_fast.sampling import sampler as sampler_module
from vqvae2_fast.sampling.candidates import draw_candidates
from vqvae2_fast.sampling.choice import choose
from vqvae2_fast.sampling.engines import cuda, cuda_library
from vqvae2_fast.sampling.series import resolved_settings
from vqvae2_fast.sampling.settings import DrawSettings

pytestmark = pytest.mark.skipif(
    _native.module is None, reason="this install has no compiled module"
)

NOT_USED = (
    "engine cuda is not used on NVIDIA Fake (compute capability 9.0, driver supports CUDA 12.4): "
)
TOO_OLD = "cudaGetDevice:35"  # the driver, in CUDA_ON_CPU_FAIL
# Fails in the kernels' launches, not before.
NO_LAUNCH = "cudaLaunchKernelEx:720"


class WatchedLibrary:
    """The kernels on the CPU; notes the current device, and the stream, of each call."""

    def __init__(self, library, gpu):
        self._library, self._gpu = library, gpu
        self.has_kernels = True
        self.failing_row = None
        self.failures = math.inf

    def __getattr__(self, name):
        def call(*arguments):
            self._gpu.calls.append((name, self._gpu.current))
            if name == "row":
                self._gpu.streams.append(arguments[3])
                if arguments[2] == self.failing_row and self.failures > 0:
                    self.failures -= 1
                    raise RuntimeError("too many resources")
            return getattr(self._library, name)(*arguments)

        return call


@pytest.fixture
def gpu(sampler_on_cpu, card, monkeypatch):
    """Makes every prior seem to be on a second card, as far as the choice of engine goes."""
    state = SimpleNamespace(current="cuda:0", calls=[], streams=[], error=None)
    state.library = WatchedLibrary(sampler_on_cpu, state)
    prior_device, why_not = torch.device("cuda", 1), cuda.why_not_cuda

    @contextlib.contextmanager
    def device(chosen):
        before, state.current = state.current, str(chosen)
        yield
        state.current = before

    def synchronize():
        if state.error is not None:
            raise state.error

    def current_card(library):
        library.card()
        return card[0]

    def current_stream():
        return SimpleNamespace(cuda_stream=len(state.current), synchronize=synchronize)

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "current_stream", current_stream)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA Fake")
    monkeypatch.setattr(cuda, "driver_version", lambda: "12.4")
    monkeypatch.setattr(cuda, "native_library", lambda: state.library)
    monkeypatch.setattr(cuda.Card, "current", staticmethod(current_card))
    for module in (cuda, choice_module):
        monkeypatch.setattr(module, "why_not_cuda", lambda _, dtype: why_not(prior_device, dtype))
    monkeypatch.setattr(choice_module, "device_of", lambda _: prior_device)
    monkeypatch.setattr(choice_module, "_warned", set())
    return state


def chosen(prior, batch_size=1):
    return choose("auto", prior, interface_of(prior), batch_size=batch_size, guided=False)


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (
            TOO_OLD,
            "the driver supports CUDA 12.4 and the kernels were built with CUDA 13.0; update",
        ),
        ("cudaGetDevice:100", "CUDA reports: no CUDA-capable device is detected"),
        ("cudaFuncGetAttributes:209", "this build has no kernels for compute capability 9.0"),
        ("cudaDeviceGetAttribute:1", "invalid argument"),
        ("cudaFuncSetAttribute:1", "a multiprocessor cannot hold a block"),
        ("cudaOccupancyMaxActiveBlocksPerMultiprocessor:1", "a multiprocessor cannot hold a block"),
    ],
)
def test_where_the_runtime_fails_eager_draws_and_a_sentence_says_why(
    failure, reason, gpu, monkeypatch
):
    prior = tiny_prior()
    assert choose_engine("auto", prior)[0] == "cuda"
    assert chosen(prior).warning == ""
    monkeypatch.setenv("CUDA_ON_CPU_FAIL", failure)
    engine, why = choose_engine("auto", prior)
    assert engine == "eager"
    assert why.startswith(f"not cuda: {reason}")
    told = chosen(prior).warning
    assert told.startswith(NOT_USED + reason)
    assert told.endswith(". Engine eager draws instead.")


@pytest.mark.parametrize(
    ("multiprocessors", "failure", "blocks"),
    [(None, "", 8), (5, "", 5), (12, "", 8), (5, "cuCtxGetDevResource:500", 8)],
    ids=["the card", "green context", "larger", "old driver"],
)
def test_the_grid_is_that_of_the_current_context(
    multiprocessors, failure, blocks, sampler_on_cpu, monkeypatch
):
    monkeypatch.setenv("CUDA_ON_CPU_FAIL", failure)
    if multiprocessors is not None:
        monkeypatch.setenv("CUDA_ON_CPU_SMS", str(multiprocessors))
    assert cuda.Card.current(sampler_on_cpu).blocks == blocks


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda gpu, patch: None, "the prior's weights are float64, not float32"),
        (
            lambda gpu, patch: setattr(gpu.library, "has_kernels", False),
            "this install was built without CUDA; install a wheel with it, or build with nvcc",
        ),
        (
            lambda gpu, patch: patch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5)),
            "the kernels need compute capability 8.0 or higher, the card has 7.5",
        ),
    ],
    ids=["dtype", "no kernels", "old card"],
)
def test_what_the_kernels_need_is_said(change, reason, gpu, monkeypatch):
    change(gpu, monkeypatch)
    prior = tiny_prior().double() if "float64" in reason else tiny_prior()
    choice = chosen(prior)
    assert choice.engine == "eager"
    assert f"): {reason}. Engine eager draws instead." in choice.warning


def test_a_draw_passes_on_its_batch_and_its_guidance(gpu, monkeypatch):
    asked = []

    def choice(engine, prior, interface, **arguments):
        asked.append(arguments)
        return choice_module.Choice("eager", "")

    monkeypatch.setattr(sampler_module, "choose", choice)
    prior = tiny_prior(num_classes=3)
    sample_codes(prior, 3, labels=torch.tensor([0, 1, 2]), guidance_scale=1.5)
    assert asked == [{"batch_size": 3, "guided": True}]


def test_a_prior_too_large_for_the_card_is_drawn_by_eager(gpu, card):
    card[0] = cuda.Card(blocks=4, shared_bytes=2 << 10, threads=64)
    choice = chosen(tiny_prior())
    assert choice.engine == "eager"
    assert choice.warning.startswith(f"{NOT_USED}the kernel needs ")
    assert choice.warning.endswith("the card has 2048. Engine eager draws instead.")


def test_a_process_is_told_once_for_each_reason(gpu, monkeypatch):
    prior = tiny_prior(size=(1, 2))
    for failure in (TOO_OLD, "cudaGetDevice:100"):
        monkeypatch.setenv("CUDA_ON_CPU_FAIL", failure)
        with pytest.warns(RuntimeWarning) as told:
            for _ in range(2):
                sample_codes(prior, 1)
                score_codes(prior, torch.zeros(1, 1, 2, dtype=torch.int64))
        assert len(told) == 1


def test_nothing_is_told_of_a_prior_on_the_cpu_nor_on_rocm(gpu, monkeypatch):
    monkeypatch.setenv("CUDA_ON_CPU_FAIL", TOO_OLD)
    prior = tiny_prior(size=(1, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with monkeypatch.context() as patch:
            patch.setattr(torch.version, "hip", "7.0")
            assert chosen(prior).engine == "eager"
            sample_codes(prior, 1)
        monkeypatch.setattr(choice_module, "device_of", lambda _: torch.device("cpu"))
        sample_codes(prior, 1)
        sample_codes(prior.double(), 1)


def test_the_settings_of_a_series_name_the_engine_and_tell_why(gpu, monkeypatch):
    pipeline = Pipeline(SimpleNamespace(decode=list), [tiny_prior(size=(1, 32), num_blocks=1)])
    (level,) = resolved_settings(pipeline)
    assert level.engine == "cuda"
    monkeypatch.setenv("CUDA_ON_CPU_FAIL", TOO_OLD)
    with pytest.warns(RuntimeWarning, match="Engine eager draws instead"):
        (level,) = resolved_settings(pipeline)
    assert level.engine == "eager"


def test_where_a_kernel_does_not_start_eager_draws(gpu, monkeypatch):
    prior = tiny_prior()
    monkeypatch.setenv("CUDA_ON_CPU_FAIL", NO_LAUNCH)
    rows = []
    with pytest.warns(RuntimeWarning) as told:
        codes = sample_codes(prior, 2, progress=lambda *done: rows.append(done))
    assert torch.equal(codes, sample_codes(prior, 2, engine="eager"))
    assert rows == [(row, 4) for row in range(1, 5)]
    text = str(told[0].message)
    assert text.startswith(f"{NOT_USED}a kernel did not start (sampler stem, grid (1, 1, 1), block")
    assert text.endswith("too many blocks in cooperative launch). Engine eager draws instead.")


def test_where_clusters_do_not_start_the_kernels_without_them_draw(gpu, card):
    prior = tiny_prior(channels=64, num_heads=4, size=(3, 4), num_embeddings=41, mask="exclude")
    expected = sample_codes(prior, 1, engine="eager")
    card[0] = replace(card[0], blocks=20, threads=96, shared_bytes=72 << 10, clusters8=2)
    gpu.library.failing_row, gpu.library.failures = 1, 1  # as a row is timed
    told = r"not draw by clusters8, but by blocks, which draws the same codes: .*too many resources"
    with pytest.warns(RuntimeWarning, match=told):
        codes = sample_codes(prior, 1, engine="cuda")
    assert torch.equal(codes, expected)
    gpu.library.failing_row = None
    assert torch.equal(sample_codes(prior, 1, engine="cuda"), expected)


def test_where_no_design_starts_eager_draws(gpu, card, monkeypatch):
    prior = tiny_prior(channels=64, num_heads=4, size=(3, 4), num_embeddings=41, mask="exclude")
    card[0] = replace(card[0], blocks=20, threads=96, shared_bytes=72 << 10, clusters8=2)
    monkeypatch.setenv("CUDA_ON_CPU_FAIL", NO_LAUNCH)
    with pytest.warns(RuntimeWarning, match=r"Engine eager draws instead"):
        codes = sample_codes(prior, 1)
    assert torch.equal(codes, sample_codes(prior, 1, engine="eager"))


def test_engine_cuda_by_name_says_which_engine_does_without_its_kernels(gpu, monkeypatch):
    monkeypatch.setenv("CUDA_ON_CPU_FAIL", NO_LAUNCH)
    with pytest.raises(RuntimeError, match=r"engine cuda: a kernel .*; draw with engine='eager'"):
        sample_codes(tiny_prior(), 1, engine="cuda")


def test_rows_that_have_been_told_are_not_drawn_again_by_another_engine(gpu):
    gpu.library.failing_row = 2
    rows = []
    with pytest.raises(RuntimeError, match=r"engine cuda: a kernel did not start \(too many res"):
        sample_codes(tiny_prior(), 1, progress=lambda *done: rows.append(done))
    assert rows == [(1, 4), (2, 4)]


def test_after_an_error_of_a_kernel_no_engine_is_tried(gpu, monkeypatch):
    # A CUDA context is lost by such an error; it comes with the next call, whatever that is.
    gpu.library.failing_row = 0
    gpu.error = RuntimeError("CUDA error: an illegal memory access was encountered\nCompile with")
    monkeypatch.setitem(choice_module.ENGINES, "eager", lambda *_: pytest.fail("eager was tried"))
    with pytest.raises(RuntimeError, match=r"the GPU has failed \(.* encountered\) .*: start it"):
        sample_codes(tiny_prior(), 1)


def test_the_library_works_on_the_priors_device_and_its_stream(gpu):
    # The stand-in's plan is on the CPU; the device that is current elsewhere is a card.
    prior = tiny_prior(size=(2, 2))
    device = str(plan_of(prior, interface_of(prior)).device)
    sample_codes(prior, 1, engine="cuda")
    of_draw = gpu.calls[-4:]
    assert of_draw == [(name, device) for name in ("sizes", "program", "row", "row")]
    asked = {current for name, current in gpu.calls if name == "card"}
    assert asked == {device, "cuda:1"}  # the second is the choice's, see `gpu`
    assert gpu.streams == [len(device)] * 2
    assert gpu.current == "cuda:0"


DRAWS = {
    "sample_codes": lambda prior, codes: sample_codes(prior, 1),
    "score_codes": score_codes,
    "fill": lambda prior, codes: draw_candidates(
        prior,
        1,
        DrawSettings(),
        2,
        condition=[],
        labels=None,
        known=codes,
        first_sample=0,
        stream=0,
    ),
}


@pytest.mark.parametrize("name", DRAWS)
def test_a_draw_inside_a_captured_graph_is_refused(name, monkeypatch):
    prior, codes = tiny_prior(), torch.zeros(1, 4, 6, dtype=torch.int64)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    DRAWS[name](prior, codes)  # on a CPU nothing is captured
    for module in ("sampler", "candidates"):
        monkeypatch.setattr(
            f"vqvae2_fast.sampling.{module}.device_of", lambda _: torch.device("cuda")
        )
    with pytest.raises(RuntimeError, match="the current stream is capturing .*; draw bef"):
        DRAWS[name](prior, codes)


@pytest.mark.parametrize(
    ("status", "version"), [(0, "12.4"), (3, "unknown"), (None, "unknown")], ids=str
)
def test_the_driver_is_asked_for_its_cuda(status, version, monkeypatch):
    def version_of(pointer):
        pointer._obj.value = 12040
        return status

    def load(name):
        if status is None:
            raise OSError(name)
        return SimpleNamespace(cuDriverGetVersion=version_of)

    monkeypatch.setattr(ctypes, "CDLL", load)
    assert cuda_library.driver_version() == version


@pytest.mark.cuda
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_codes_are_drawn_on_the_second_of_two_gpus():
    prior = tiny_prior().cuda()
    expected = sample_codes(prior, 2)
    codes = sample_codes(prior.to("cuda:1"), 2)
    assert codes.device == torch.device("cuda:1")
    assert torch.equal(codes.cpu(), expected.cpu())
