"""Engine `cpu`: the two phases in the compiled library, a whole map in one call.

The bits of a sample's codes and logits do not depend on the batch, the number of threads or the
SIMD level: see README.md in this folder. `cpu_pack.py` says how the weights are packed.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vqvae2_fast.modules.summed_labels import no_class_like, summed_rows
from vqvae2_fast.ops import _native
from vqvae2_fast.ops._checks import dtype_name
from vqvae2_fast.sampling.bounds import check_logits
from vqvae2_fast.sampling.engines.cpu_pack import described_plan
from vqvae2_fast.sampling.prior import made_from
from vqvae2_fast.sampling.quantized import calibration_of, checked_ranges, warn_of_clamped
from vqvae2_fast.sampling.request import Drawn, EngineError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import nn

    from vqvae2_fast.sampling.plan import SamplingPlan
    from vqvae2_fast.sampling.prior import PriorInterface
    from vqvae2_fast.sampling.quantized import InputRanges
    from vqvae2_fast.sampling.request import DrawRequest

__all__ = [
    "SCORED_ROWS",
    "CpuPlan",
    "cpu_plan_of",
    "draw_cpu",
    "draw_cpu_timed",
    "draw_w8a8",
    "packed_plan",
    "why_not_cpu",
]

# Network rows of a step that scores known codes: enough for the matrix products to be at full
# speed, and few enough for what the layers hand on to stay in the second-level cache. 1,024 rows
# took 1.2 times as long for the bottom of emoji32 (AMD EPYC, Zen 5).
SCORED_ROWS = 128


@dataclass(frozen=True, eq=False)
class CpuPlan:
    """A plan in the library's own memory.

    Args:
        packed: A `SamplerPlan` of the compiled module.
        num_classes: As of the plan.
        classes: `[n, num_labels, padded 2C]` in the memory of `packed`, or None.
        ranges: Of inputs that are rounded to int8, or None.
    """

    size: tuple[int, int]
    num_embeddings: int
    packed: Any
    num_classes: int = 0
    classes: Tensor | None = None
    ranges: InputRanges | None = None


def why_not_cpu(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why this engine cannot draw from such a prior, None if it can."""
    if _native.module is None:
        return _native.MISSING_REASON
    if device.type != "cpu":
        return f"the prior is on {device}"
    if dtype != torch.float32:
        return f"the prior's weights are {dtype_name(dtype)}, not float32"
    return None


def draw_cpu(plan: CpuPlan, request: DrawRequest) -> Drawn:
    """Draw a map with `torch.get_num_threads()` threads.

    Raises:
        RuntimeError: A system that starts fewer threads than torch is set to.
        KeyboardInterrupt: Between two rows, like anything that `progress` and `on_row` raise.
    """
    return draw_cpu_timed(plan, request)[0]


def draw_w8a8(prior: nn.Module, interface: PriorInterface, request: DrawRequest) -> Drawn:
    """`draw_cpu` with int8 weights and inputs, by the prior's calibration.

    Warns if inputs often exceed its ranges: then the codes are unlike those of the calibration.
    """
    if interface.why_no_plan:  # such a prior cannot be calibrated either
        interface.new_plan()
    calibration = calibration_of(prior)
    plan = made_from(
        prior,
        interface,
        calibration,
        lambda plan, copy: packed_plan(plan, checked_ranges(copy, calibration)),
    )
    drawn = draw_cpu(plan, request)
    warn_of_clamped(drawn)
    return drawn


def draw_cpu_timed(
    plan: CpuPlan, request: DrawRequest, profile: Tensor | None = None
) -> tuple[Drawn, dict[str, float]]:
    """`draw_cpu`, with the seconds of `condition`, `rows` and `pixels` and the number of `steps`.

    Args:
        profile: float32 zeros `[H·W, stages, threads, 2]`, to be filled with the microseconds that
            each thread worked in each stage of the pixel phase (`SAMPLER_STAGES` of the compiled
            module) at each position, and waited at its end.
    """
    batch, (height, width) = request.batch_size, plan.size

    def zeros(*sizes: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros(batch, height, width, *sizes, dtype=dtype, device="cpu")

    codes = zeros(dtype=torch.int64)
    log_prob = zeros() if request.want_log_prob else None
    logits = zeros(plan.num_embeddings) if request.want_logits else None
    intervals = zeros(2, dtype=torch.int32) if request.want_intervals else None
    maps = [codes.contiguous() for codes in request.maps]
    labels, classes = request.labels, None
    if labels is not None and labels.dim() == 2:
        labels, classes = _summed(plan, labels)
    inputs = [
        None if tensor is None else tensor.contiguous()
        for tensor in (labels, request.known, request.noise.given, request.noise.rows)
    ]
    settings = request.settings
    with _threads_set_inside() as note_threads:

        def row_done(rows: int, _: int) -> None:
            try:
                request.row_done(codes, rows)
            finally:
                note_threads()

        took, finished, too_large, clamped_inputs = plan.packed.draw(
            batch=batch,
            labels=inputs[0],
            classes=classes,
            num_rows=0 if classes is None else classes.shape[1],
            maps=maps,
            known=inputs[1],
            noise=inputs[2],
            seed=request.noise.seed & (2**64 - 1),
            first_sample=request.noise.first_sample,
            rows=inputs[3],
            stream=request.noise.stream,
            temperature=settings.temperature,
            top_k=settings.top_k or 0,
            top_p=1.0 if settings.top_p is None else settings.top_p,
            guidance=settings.guidance_scale,
            guided=settings.guided,
            largest_logit=settings.largest_logit,
            codes=codes,
            log_prob=log_prob,
            logits=logits,
            profile=profile,
            intervals=intervals,
            streams=list(request.streams),
            columns=_columns(request, width),
            threads=torch.get_num_threads(),
            progress=row_done if request.watched else None,
        )
    check_logits(too_large, settings)
    if logits is not None:
        logits = logits.permute(0, 3, 1, 2)  # [B, K, H, W]
    clamped = (0, 0)
    if plan.ranges is not None:
        clamped = plan.ranges.clamped_of(codes, settings, clamped_inputs)
    return Drawn(codes, log_prob, logits, intervals, finished, clamped=clamped), took


def _summed(plan: CpuPlan, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Labels with words as labels of a table for this draw: which row each is, `[B]`, and the sums
    of the rows of its class and words, `[n, rows, padded 2C]`, with "no class" last."""
    table = plan.classes
    assert table is not None
    bags, rows = labels.unique(dim=0, return_inverse=True)
    bags = torch.cat([bags, no_class_like(bags[:1], plan.num_classes)])
    return rows, summed_rows(lambda each: table[:, each], bags).contiguous()


@contextmanager
def _threads_set_inside() -> Iterator[Callable[[], None]]:
    """Keeps the number of PyTorch's threads as it was at the last call of what this yields.

    A draw is a parallel region, and OpenMP forgets at its end what a callback has set.
    """
    before = latest = torch.get_num_threads()

    def note() -> None:
        nonlocal latest
        latest = torch.get_num_threads()

    try:
        yield note
    finally:
        if latest != before:
            torch.set_num_threads(latest)


def _columns(request: DrawRequest, width: int) -> int:
    """Columns of a step: as many as are fast if all codes are known."""
    known = request.known
    if known is None or bool((known < 0).any()):
        return 1
    return min(width, max(1, SCORED_ROWS // request.batch_size))


def packed_plan(plan: SamplingPlan, ranges: InputRanges | None = None) -> CpuPlan:
    """A plan as the library packs it.

    Args:
        ranges: Of a calibration, for int8 weights and inputs; None for float32.

    Raises:
        EngineError: No compiled module, or a plan on another device or of another dtype.
    """
    if reason := why_not_cpu(plan.device, plan.head.dtype):
        raise EngineError.refusing("cpu", reason, plan.device, "cpu")
    packed = described_plan(plan, ranges).packed(_native.module, torch.get_num_threads())
    classes = None
    if plan.num_labels:
        memory = torch.frombuffer(packed.memory("classes"), dtype=torch.float32)
        classes = memory.view(plan.layers.num_layers, plan.num_labels, -1)
    return CpuPlan(plan.size, plan.num_embeddings, packed, plan.num_classes, classes, ranges)


def cpu_plan_of(prior: nn.Module, interface: PriorInterface) -> CpuPlan:
    """The packed plan of a prior with its weights as they are now. Raises as `made_from`."""
    return made_from(prior, interface, "cpu", lambda plan, _: packed_plan(plan))
