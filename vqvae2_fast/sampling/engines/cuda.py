"""Engine `cuda`: for each row of the map, one set of matrix products and one persistent launch.

This file allocates the tensors of a draw and passes them to `csrc/cuda/sampler`. A sample's codes
and logits are the same bits whatever the batch: see README.md there.

No synchronisation happens between rows, unless `progress` or `on_row` is given.
"""

from __future__ import annotations

import os
import time
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vqvae2_fast.ops import _native
from vqvae2_fast.ops._checks import dtype_name
from vqvae2_fast.sampling.bounds import check_logits
from vqvae2_fast.sampling.condition import condition_features
from vqvae2_fast.sampling.engines.cuda_library import address, driver_version, native_library
from vqvae2_fast.sampling.engines.cuda_pack import pack, sizes_of
from vqvae2_fast.sampling.kept import Kept
from vqvae2_fast.sampling.request import Drawn, EngineError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from vqvae2_fast.sampling.engines.cuda_library import Library
    from vqvae2_fast.sampling.plan import ConditionPlan, SamplingPlan
    from vqvae2_fast.sampling.request import DrawRequest

__all__ = [
    "DESIGNS",
    "DESIGN_VARIABLE",
    "PRECISIONS",
    "THREADS",
    "Card",
    "LaunchError",
    "Precision",
    "card_name",
    "draw_cuda",
    "draw_with",
    "largest_batch",
    "plan_values",
    "why_not_cuda",
    "why_not_plan",
    "why_not_prior",
    "zeroed_workspace",
]

THREADS = 512  # kMaxThreads of pixel_phase.cuh
MAX_ROWS_ABOVE = 8  # kMaxSegments of row_product.h
# The oldest architecture for which the kernels are compiled.
MIN_CAPABILITY = (8, 0)
# How the pixel phase is laid out, by the blocks of the cluster that computes the chain of stages;
# "blocks": all blocks of the launch compute it. What they draw is the same, bit by bit.
DESIGNS = {"clusters16": 16, "clusters8": 8, "blocks": 0}
DESIGN_VARIABLE = "VQVAE2_FAST_CUDA_DESIGN"
# Of the tensors of a draw, by their names in planner.h.
_DTYPES = {
    "labels": torch.int64,
    "known": torch.int64,
    "noise": torch.float32,
    "condition.features": torch.float32,
    "codes": torch.int64,
    "log_prob": torch.float32,
    "logits": torch.float32,
    "steps": torch.int64,
    "stage_times": torch.int64,
    "too_large": torch.int32,
    "clamped": torch.int64,
}


@dataclass(frozen=True)
class Precision:
    """How products are computed.

    Args:
        pixel: dtype of the weights of the pixel phase; its sums are float32.
        row: dtype of the weights of the row phase.
        row_mode: `RowMode` of planner.h: 0 float32, 1 tf32, 2 bfloat16 on tensor cores.
    """

    pixel: torch.dtype
    row: torch.dtype
    row_mode: int


PRECISIONS = {
    "cuda": Precision(torch.float32, torch.float32, 0),
    "cuda_tf32": Precision(torch.float32, torch.float32, 1),
    "cuda_bfloat16": Precision(torch.bfloat16, torch.bfloat16, 2),
}


@dataclass(frozen=True)
class Card:
    """What a card offers: how many blocks of the persistent launch fit on it, and their size.

    Args:
        clusters16: How many clusters of 16 blocks it holds at once; 0 without such clusters.
        clusters8: Of 8 blocks.
    """

    blocks: int
    shared_bytes: int
    threads: int = THREADS
    clusters16: int = 0
    clusters8: int = 0

    def blocks_of(self, design: str) -> int:
        """Blocks of the launch of a design; 0 if the card cannot hold it."""
        if design == "blocks":
            return self.blocks
        size = DESIGNS[design]
        clusters = self.clusters16 if size == 16 else self.clusters8
        return min(self.blocks // size, clusters) * size

    @staticmethod
    def current(library: Library) -> Card:
        blocks, shared_bytes, clusters16, clusters8 = library.card()
        return Card(blocks, shared_bytes, clusters16=clusters16, clusters8=clusters8)


class LaunchError(RuntimeError):
    """A kernel of a row did not start.

    Args:
        row: If it is row 0, no code was reported yet, and another engine can draw the map.
    """

    def __init__(self, text: str, row: int) -> None:
        super().__init__(text)
        self.row = row


def card_name(device: torch.device) -> str:
    """A GPU, with what decides whether kernels run on it."""
    major, minor = torch.cuda.get_device_capability(device)
    return (
        f"{torch.cuda.get_device_name(device)} (compute capability {major}.{minor}, driver "
        f"supports CUDA {driver_version()})"
    )


def why_not_cuda(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why this engine cannot draw from such priors on the device, None if it can."""
    if device.type != "cuda":
        return f"the prior is on {device}"
    if _native.module is None:
        return _native.MISSING_REASON
    if not native_library().has_kernels:
        return "this install was built without CUDA; install a wheel with it, or build with nvcc"
    if dtype != torch.float32:
        return f"the prior's weights are {dtype_name(dtype)}, not float32"
    capability = torch.cuda.get_device_capability(device)
    if capability < MIN_CAPABILITY:
        found, needed = (".".join(map(str, numbers)) for numbers in (capability, MIN_CAPABILITY))
        return f"the kernels need compute capability {needed} or higher, the card has {found}"
    with torch.cuda.device(device):
        try:
            Card.current(native_library())
        except RuntimeError as error:
            return str(error)
    return None


NO_WORDS = "it draws from labels without words only"


def why_not_plan(
    library: Library,
    card: Card,
    plan: SamplingPlan,
    batch_size: int = 1,
    *,
    guided: bool = False,
    precision: Precision = PRECISIONS["cuda"],
) -> str | None:
    """Why this engine cannot make such a draw from this prior on a card, None if it can."""
    rows_above = plan.layers.conv1.rows_above
    if rows_above > MAX_ROWS_ABOVE:
        return f"its convolutions read {rows_above} rows above, more than {MAX_ROWS_ABOVE}"
    try:
        fitting_designs(library, card, plan, batch_size, guided=guided, precision=precision)
    except RuntimeError as error:
        return str(error).removeprefix("sampler: ").removesuffix(".")
    return None


def fitting_designs(
    library: Library,
    card: Card,
    plan: SamplingPlan,
    batch_size: int,
    *,
    guided: bool,
    precision: Precision,
) -> list[str]:
    """The keys of `DESIGNS` by which a draw fits a card, or the one that the environment names.

    Raises:
        ValueError: The environment names none of `DESIGNS`.
        RuntimeError: None fits; the message says why.
    """
    forced = os.environ.get(DESIGN_VARIABLE)
    if forced is not None and forced not in DESIGNS:
        raise ValueError(
            f"{DESIGN_VARIABLE}: expected one of {', '.join(DESIGNS)}, got {forced!r}."
        )
    fitting = []
    for design in DESIGNS if forced is None else [forced]:
        try:
            if card.blocks_of(design) == 0:
                raise RuntimeError(f"{DESIGN_VARIABLE}={design}: the card has no such clusters")
            library.sizes(plan_values(plan, card, precision, batch_size, design, guided=guided))
        except RuntimeError as error:
            refused = error
        else:
            fitting.append(design)
    if not fitting:
        raise refused
    return fitting


def why_not_prior(
    plan: SamplingPlan,
    batch_size: int = 1,
    *,
    guided: bool = False,
    precision: Precision = PRECISIONS["cuda"],
) -> str | None:
    """`why_not_plan` on the plan's own card."""
    with torch.cuda.device(plan.device):
        library = native_library()
        card = Card.current(library)
        return why_not_plan(library, card, plan, batch_size, guided=guided, precision=precision)


def draw_cuda(
    plan: SamplingPlan,
    request: DrawRequest,
    engine: str = "cuda",
) -> Drawn:
    """Draw a map on the plan's card.

    Args:
        engine: A key of `PRECISIONS`.

    Raises:
        EngineError: A prior on another device, of another dtype, or too large for the card; or
            labels with words.
        RuntimeError: The GPU has failed, after which no engine draws on it in this process.
        LaunchError: A kernel did not start, and the GPU is well.
        torch.OutOfMemoryError: The message names the largest batch that would have fitted.
    """
    settings, precision = request.settings, PRECISIONS[engine]
    reason = why_not_cuda(plan.device, plan.head.dtype)
    if request.labels is not None and request.labels.dim() == 2:
        reason = NO_WORDS
    if reason is not None:
        raise EngineError.refusing(engine, reason, plan.device, "cuda")
    library = native_library()
    with torch.cuda.device(plan.device):
        stream = torch.cuda.current_stream()
        card = Card.current(library)
        reason = why_not_plan(
            library,
            card,
            plan,
            request.batch_size,
            guided=settings.guided,
            precision=precision,
        )
        if reason is not None:
            raise EngineError.refusing(engine, reason, plan.device, "cuda")

        try:
            return draw_with(library, card, stream.cuda_stream, plan, request, precision)
        except LaunchError as error:
            # CUDA reports errors of kernels, after which every call fails, at any later call.
            try:
                stream.synchronize()
            except RuntimeError as lost:
                raise RuntimeError(
                    f"engine {engine}: {error}; the GPU has failed ({_first_line(lost)}) and "
                    "takes no more work of this process: start it again, with engine='eager' "
                    "if that happens again."
                ) from error
            raise


@torch.inference_mode()
def draw_with(
    library: Library,
    card: Card,
    stream: int,
    plan: SamplingPlan,
    request: DrawRequest,
    precision: Precision,
    stage_times: Tensor | None = None,
) -> Drawn:
    """`draw_cuda` with a given build of the kernels, on a given card.

    Where several designs fit, the first draw of a prior with a batch size times a row of each.

    Args:
        stage_times: Zeroed int64 `[W, blocks, stages, moments]` on the card, to which each row
            writes when each block's step was ready, computed and announced, in nanoseconds
            (`stage_times.cuh`).

    Raises:
        RuntimeError: stage_times with a library that was built without VQ_STAGE_TIMES.
    """
    if stage_times is not None and library.moments == 0:
        raise RuntimeError(
            "stage_times need a library built with -DVQ_STAGE_TIMES, and this one was "
            "built without: see benchmarks/shared/stage_times.py."
        )
    batch, (height, width) = request.batch_size, plan.size
    device, settings = plan.device, request.settings
    shape = (batch, height, width)
    codes = torch.zeros(shape, dtype=torch.int64, device=device)
    log_prob = (
        torch.zeros(shape, dtype=torch.float32, device=device) if request.want_log_prob else None
    )
    logits = None
    if request.want_logits:
        logits = torch.zeros(*shape, plan.num_embeddings, dtype=torch.float32, device=device)
    features = None if plan.condition is None else _features(plan.condition, request.maps)
    too_large = torch.zeros(1, dtype=torch.int32, device=device)
    inputs = {
        "labels": request.labels,
        "known": request.known,
        "noise": request.noise.table(height),
        "condition.features": features,
        "codes": codes,
        "log_prob": log_prob,
        "logits": logits,
        "stage_times": stage_times,
        "too_large": too_large,
    }
    inputs = {name: t if t is None else t.contiguous() for name, t in inputs.items()}
    tensors = _packed_plan(plan, precision)
    rule: dict[str, int | float] = {
        "temperature": float(settings.temperature),
        "top_k": min(settings.top_k or plan.num_embeddings, plan.num_embeddings),
        "top_p": 1.0 if settings.top_p is None else float(settings.top_p),
        "guidance": float(settings.guidance_scale),
        "largest_logit": settings.largest_logit,
    }
    drawing: dict[str, int | float] = {
        "seed": request.noise.seed,
        "first_sample": request.noise.first_sample,
        "stream": request.noise.stream,
    }
    drawing |= {name: address(name, tensor, device) for name, tensor in tensors.items()}
    drawing |= {name: address(name, t, device, _DTYPES[name]) for name, t in inputs.items()}

    def program_of(design: str) -> _Program:
        values = plan_values(plan, card, precision, batch, design, guided=settings.guided) | rule
        return _Program(library, values, drawing, device)

    designs = fitting_designs(
        library, card, plan, batch, guided=settings.guided, precision=precision
    )
    design = designs[0]
    if len(designs) > 1:
        design = _designs.get(
            plan,
            (card, precision, batch, settings.guided),
            lambda: _fastest({name: program_of(name) for name in designs}, height, stream),
        )
        too_large.zero_()  # rows that were only timed may have set it
    program = program_of(design)
    for i in range(height):
        program.draw_row(i, stream)
        if request.watched:
            program.synchronize()
            request.row_done(codes, i + 1)
    check_logits(too_large, settings)
    if logits is not None:
        logits = logits.permute(0, 3, 1, 2)  # [B, K, H, W]
    return Drawn(codes, log_prob, logits)


class _Program:
    """A plan with its memory on the card, from which rows are drawn.

    Args:
        values: By which the draw is planned.
        drawing: What else the kernels are given, by name.
    """

    def __init__(
        self,
        library: Library,
        values: dict[str, int | float],
        drawing: dict[str, int | float],
        device: torch.device,
    ) -> None:
        sizes = library.sizes(values)
        self._library, self._device = library, device
        self._workspace = zeroed_workspace(library, values, sizes.workspace_bytes, device)
        workspace = {"workspace": address("workspace", self._workspace, device)}
        self._program = torch.empty(sizes.program_bytes, dtype=torch.uint8, device="cpu")
        library.program(values | drawing | workspace, self._program.data_ptr())
        self._on_card = self._program.to(device)

    def draw_row(self, i: int, stream: int) -> None:
        """Starts the kernels of row i.

        Raises:
            LaunchError: One did not start.
        """
        try:
            self._library.row(self._program.data_ptr(), self._on_card.data_ptr(), i, stream)
        except RuntimeError as error:
            raise LaunchError(f"a kernel did not start ({error})", i) from error

    def synchronize(self) -> None:
        """Waits for what the current stream has been given."""
        if self._device.type == "cuda":
            torch.cuda.current_stream().synchronize()

    def seconds_of_row(self, i: int, stream: int) -> float:
        """Draws row i and waits for it; what lies above need not have been drawn."""
        self.synchronize()
        start = time.perf_counter()
        self.draw_row(i, stream)
        self.synchronize()
        return time.perf_counter() - start


# Of the designs of a draw, the one whose row took the least time.
_designs: Kept[SamplingPlan, str] = Kept(capacity=64)


def _fastest(programs: Mapping[str, _Program], height: int, stream: int) -> str:
    """The design whose row takes the least time, of those that start.

    Rows from the middle of the map are timed, in their order: blocks tell each other by numbers
    that only grow, so drawing a row again would hang. The first also loads the kernels.

    Raises:
        LaunchError: None starts. It names row 0, because no code has been reported.
    """
    rounds = 3
    first = max(0, min(height // 2, height - rounds))
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for row in range(first, min(first + rounds, height)):
        for name in list(seconds):
            try:
                seconds[name].append(programs[name].seconds_of_row(row, stream))
            except LaunchError as error:
                # A card may refuse the clusters that its occupancy promised.
                del seconds[name]
                if not seconds:
                    raise LaunchError(str(error), 0) from error
                warnings.warn(
                    f"engine cuda does not draw by {name}, but by {' or '.join(seconds)}, which "
                    f"draws the same codes: {error}.",
                    RuntimeWarning,
                    stacklevel=2,
                )
    return min(seconds, key=lambda name: min(seconds[name][1:] or seconds[name]))


def zeroed_workspace(
    library: Library, values: dict[str, int | float], size: int, device: torch.device
) -> Tensor:
    """Zeroed memory of a draw, uint8 `[size]`.

    Raises:
        torch.OutOfMemoryError: The message names the largest batch that would have fitted.
    """
    try:
        return torch.zeros(size, dtype=torch.uint8, device=device)
    except torch.OutOfMemoryError as error:
        free = torch.cuda.mem_get_info(device)[0]
        batch = int(values["batch"])
        fits = largest_batch(library, values, free)
        remedy = f"a batch of {fits} would fit" if fits else "not even a batch of 1 would fit"
        raise torch.OutOfMemoryError(
            f"engine cuda: a batch of {batch} needs {size / 2**20:.0f} MiB besides the weights, "
            f"but {free / 2**20:.0f} MiB are free: {remedy}."
        ) from error


def largest_batch(library: Library, values: dict[str, int | float], free: int) -> int:
    """The largest batch whose memory fits into `free` bytes; 0 if none does."""
    fitting, beyond = 0, int(values["batch"]) + 1
    while beyond - fitting > 1:
        middle = (fitting + beyond) // 2
        if library.sizes({**values, "batch": middle}).workspace_bytes <= free:
            fitting = middle
        else:
            beyond = middle
    return fitting


def _first_line(error: RuntimeError) -> str:
    """What PyTorch says of a CUDA error, without its advice on debugging."""
    return str(error).partition("\n")[0]


@contextmanager
def _same_bits_in_any_batch() -> Iterator[None]:
    """cuDNN in float32, by algorithms that depend only on the shape.

    `cudnn.flags` would do, but raises once `fp32_precision` has been set.
    """
    cudnn = torch.backends.cudnn
    conv = cudnn.conv  # type: ignore[attr-defined]
    before = cudnn.enabled, cudnn.benchmark, cudnn.deterministic, conv.fp32_precision
    cudnn.enabled, cudnn.benchmark, cudnn.deterministic = True, False, True
    conv.fp32_precision = "ieee"
    try:
        yield
    finally:
        cudnn.enabled, cudnn.benchmark, cudnn.deterministic, conv.fp32_precision = before


def _features(plan: ConditionPlan, maps: list[Tensor]) -> Tensor:
    """`condition_features`, one sample at a time, with the same bits for a sample in any batch."""
    with _same_bits_in_any_batch():
        samples = [
            condition_features(plan, [codes[n : n + 1] for codes in maps])
            for n in range(len(maps[0]))
        ]
    return torch.cat(samples)


def plan_values(
    plan: SamplingPlan,
    card: Card,
    precision: Precision,
    batch: int,
    design: str = "blocks",
    *,
    guided: bool,
) -> dict[str, int | float]:
    """The input of `planner.h` with null addresses and default settings: enough for sizes."""
    return sizes_of(plan) | {
        "card.blocks": card.blocks_of(design),
        "card.row_blocks": card.blocks,
        "card.threads": card.threads,
        "card.shared_bytes": card.shared_bytes,
        "card.cluster": DESIGNS[design],
        "weight_bytes": precision.pixel.itemsize,
        "row_mode": precision.row_mode,
        "batch": batch,
        "guided": int(guided),
        "workspace": 0,
        "seed": 0,
        "first_sample": 0,
        "stream": 0,
        "temperature": 1.0,
        "top_k": plan.num_embeddings,
        "top_p": 1.0,
        "guidance": 1.0,
        "largest_logit": 1.0,
    }


_packed: Kept[SamplingPlan, dict[str, Tensor]] = Kept(capacity=len(PRECISIONS))


def _packed_plan(plan: SamplingPlan, precision: Precision) -> dict[str, Tensor]:
    """The plan's packed weights, for work on the current stream, kept while the plan lives."""
    on_card = plan.device.type == "cuda"

    def packed() -> dict[str, Tensor]:
        tensors = pack(plan, precision.pixel, precision.row)
        if on_card:
            # The next draw may be on another stream, which does not wait for this one.
            torch.cuda.current_stream().synchronize()
        return tensors

    tensors = _packed.get(plan, precision, packed)
    if on_card:
        # If the plan is dropped, their memory is not used again before this stream is done.
        for tensor in tensors.values():
            tensor.record_stream(torch.cuda.current_stream())
    return tensors
