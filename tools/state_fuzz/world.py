"""A tiny pipeline whose state operations change, and the judges of what is computed from it.

What is tested is called by `World.call`, under the settings of PyTorch that operations have chosen.
The judges compute without these settings.
"""

from __future__ import annotations

import copy
import linecache
import sys
import traceback
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from random import Random
from threading import Thread
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import vqvae2_fast
from vqvae2_fast.models.configs import VQVAE2Config
from vqvae2_fast.models.vqvae2 import VQVAE2
from vqvae2_fast.modules.contexts import evaluating
from vqvae2_fast.sampling.pipeline import Pipeline
from vqvae2_fast.sampling.sampler import sample_codes
from vqvae2_fast.training.optimizer import PolyakAverage

if TYPE_CHECKING:
    from collections.abc import Iterator

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from helpers.models import tiny_prior  # noqa: E402
from helpers.near_tie import EXACT_ERROR, ROUNDINGS, near_tie, own_rounding  # noqa: E402

PACKAGE = str(Path(vqvae2_fast.__file__).parent)
K, CLASSES, IMAGE = 16, 3, (3, 8, 16)
SIZES = {1: (2, 4), 2: (4, 8)}  # maps of the models that are priors
_SMALL: dict[str, Any] = {
    "num_embeddings": K,
    "channels": 8,
    "residual_channels": 8,
    "num_blocks": 1,
    "layers_per_block": 1,
    "condition_channels": 4,
}
# Of PyTorch: the function that sets it, what is usual, what else operations choose.
SETTINGS: dict[str, tuple[Callable[[Any], object], Any, tuple[Any, ...]]] = {
    "default dtype": (torch.set_default_dtype, torch.float32, (torch.float64, torch.bfloat16)),
    "default device": (torch.set_default_device, None, ("meta",)),
    "threads": (torch.set_num_threads, 1, (2, 3)),
    "flush denormal": (torch.set_flush_denormal, False, (True,)),
    "deterministic": (torch.use_deterministic_algorithms, False, (True,)),
}

Operation = Callable[["World", Random], None]
OPERATIONS: dict[str, tuple[Operation, float]] = {}


def operation(weight: float) -> Callable[[Operation], Operation]:
    """Adds an operation; its weight says how often it is chosen."""

    def add(function: Operation) -> Operation:
        OPERATIONS[function.__name__] = (function, weight)
        return function

    return add


def run_step(world: World, name: str, number: int) -> None:
    """One operation with the random numbers of `number`. Raises Refused, or what is a failure."""
    torch.manual_seed(number)
    world.say(f"\n  {name}:{number}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        OPERATIONS[name][0](world, Random(number))


class Refused(Exception):
    """The package refused a call in words."""


def is_refusal(error: BaseException) -> bool:
    """Whether a sentence of the package's own `raise` says what is wrong."""
    if not isinstance(error, ValueError | TypeError | RuntimeError | NotImplementedError):
        return False
    last = traceback.extract_tb(error.__traceback__)[-1]
    line = linecache.getline(last.filename, last.lineno or 0).strip()
    return last.filename.startswith(PACKAGE) and line.startswith("raise") and " " in str(error)


@cache
def _originals() -> tuple[VQVAE2, nn.Module, nn.Module]:
    torch.manual_seed(0)
    config = VQVAE2Config(
        image_size=IMAGE[1:],
        strides=(2, 2),
        hidden_channels=8,
        residual_channels=4,
        num_residual_blocks=1,
        num_embeddings=K,
        embedding_dim=4,
    )
    vqvae = VQVAE2(config)
    vqvae(torch.rand(16, *IMAGE) * 2 - 1)  # starts the codebooks
    top = tiny_prior(0, size=SIZES[1], num_classes=CLASSES, **_SMALL)
    bottom = tiny_prior(1, size=SIZES[2], condition_sizes=(SIZES[1],), attention=False, **_SMALL)
    return vqvae.eval(), top, bottom


class World:
    """The state that a sequence of operations changes.

    Attributes:
        models: The VQ-VAE, the prior of the top level (attention, classes), and that of the bottom
            level (conditional).
        averages: Of each model's weights. They are far from the weights, so that a swap shows.
        alterations: What was done to a prior that its plan may not know of: (which model, how to
            undo it).
        settings: Those of PyTorch under which calls are made.
        twins: A quantiser and its twin (quantizers.py), once there are any.
        said: What the steps so far have done.
    """

    def __init__(self) -> None:
        self.models: list[Any] = [copy.deepcopy(model) for model in _originals()]
        self.averages = [PolyakAverage(model, 0.9) for model in self.models]
        for number, average in enumerate(self.averages):
            generator = torch.Generator().manual_seed(number)
            for weight in average.weights.values():
                weight.add_(0.3 * torch.randn(weight.shape, generator=generator))
        self.alterations: list[tuple[int, Callable[[], object]]] = []
        self.settings: dict[str, Any] = {}
        self.twins: Any = None
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    @property
    def pipeline(self) -> Pipeline:
        return Pipeline(self.models[0], self.models[1:])

    def is_plain(self, *numbers: int) -> bool:
        """Whether named engines must draw from these models."""
        dtypes = {next(self.models[number].parameters()).dtype for number in numbers}
        return dtypes == {torch.float32} and all(n not in numbers for n, _ in self.alterations)

    def swap(self, number: int) -> None:
        """Exchange a model's weights with their averages."""
        weights = dict(self.models[number].named_parameters())
        if weights.keys() == self.averages[number].weights.keys():
            self.averages[number]._swap(self.models[number])

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What a function gives under the settings; raises Refused if it refuses in words."""
        try:
            with self._applied():
                return function(*args, **kwargs)
        except Exception as error:
            # A tensor that is made on the default device by mistake has no values on device "meta".
            # With another default device it would be moved and used.
            if is_refusal(error) or ("meta" in str(error) and "default device" in self.settings):
                raise Refused(str(error)) from error
            raise

    def must(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """`call` of what may not be refused."""
        try:
            return self.call(function, *args, **kwargs)
        except Refused as error:
            if "default device" in self.settings:
                raise
            raise AssertionError(f"refused, though nothing is wrong: {error}") from error

    @contextmanager
    def _applied(self) -> Iterator[None]:
        try:
            for name, value in self.settings.items():
                SETTINGS[name][0](value)
            yield
        finally:
            for name in self.settings:
                SETTINGS[name][0](SETTINGS[name][1])


def context_of(number: int, batch: int) -> dict[str, Any]:
    """Random arguments `condition` and `labels` for model `number`."""
    if number == 1:
        return {"condition": None, "labels": torch.randint(CLASSES + 1, (batch,))}
    return {"condition": [torch.randint(K, (batch, *SIZES[1]))], "labels": None}


def check_close(prior: nn.Module, found: Tensor, codes: Tensor, context: dict[str, Any]) -> None:
    """That logits `[B, K, H, W]` or log-probabilities `[B, H, W]` are those of the forward."""
    with evaluating(prior), torch.no_grad():
        logits = prior(codes, context["condition"] or [], context["labels"]).float()
    expected = logits
    if found.ndim == 3:
        expected = logits.log_softmax(1).gather(1, codes[:, None])[:, 0]
    assert found.dtype == torch.float32 and found.shape == expected.shape, (
        f"expected float32 {list(expected.shape)}, got {found.dtype} {list(found.shape)}"
    )
    error = float((found - expected).abs().max())
    allowed = EXACT_ERROR * max(1.0, float(logits.abs().max()))
    if not error <= allowed:
        allowed += ROUNDINGS * own_rounding(prior, codes, **context)
    assert error <= allowed, f"off by {error:.3g} from the reference, {allowed:.3g} is allowed"


def check_draw(
    prior: nn.Module, engine: str, found: tuple[Tensor, Tensor], arguments: dict[str, Any]
) -> None:
    """That `sample_codes` drew what the reference draws, apart from near ties.

    The reference need not draw for this: one forward of the codes that were drawn shows it.
    Engine `cpu_w8a8` must draw what it draws from a copy of the prior that is new to it.
    """
    codes, log_prob = found
    assert codes.dtype == torch.int64 and codes.device.type == "cpu"
    assert int(codes.min()) >= 0 and int(codes.max()) < K, "codes out of range"
    if engine == "cpu_w8a8":
        drawn = sample_codes(copy.deepcopy(prior), engine=engine, **arguments)
        assert all(map(torch.equal, found, drawn)), "another draw than from a copy of the prior"
        return
    check_close(prior, log_prob, codes, {name: arguments[name] for name in ("condition", "labels")})
    known = arguments.get("known")
    assert known is None or torch.equal(codes[known >= 0], known[known >= 0]), "known codes changed"
    others = ("batch_size", "return_log_prob")
    judged = {name: value for name, value in arguments.items() if name not in others}
    tie = near_tie(prior, codes, engine=engine, **judged)
    assert tie.num_beyond == 0, f"codes are not the reference's: {tie}"


class Interleaved:
    """Runs a function, and within it, at the n-th call of a function of the package, a change.

    The change is made by another thread, as it may be at any moment; if it waits for a lock, the
    function goes on meanwhile. So the moment is the same in every run.

    Args:
        inside: Count the calls in these folders of the package.
    """

    def __init__(self, change: Callable[[], None], at: int, *inside: str) -> None:
        self.left, self.inside = at, tuple(f"{PACKAGE}/{name}" for name in inside)
        self.thread = Thread(target=change)

    def __enter__(self) -> Interleaved:
        sys.setprofile(self._profile)
        return self

    def _profile(self, frame: Any, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(self.inside):
            self.left -= 1
            if self.left == 0:
                sys.setprofile(None)
                self.thread.start()
                self.thread.join(0.5)

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)
        if self.left > 0:
            self.thread.start()
        self.thread.join()
