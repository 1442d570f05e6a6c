"""Drawing a code map: checks the arguments, chooses an engine, and draws."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vqvae2_fast.machine.quota import within_quota
from vqvae2_fast.models.code_checks import (
    check_labels,
    check_map,
    check_maps,
    listed_maps,
)
from vqvae2_fast.modules.contexts import device_of, evaluating
from vqvae2_fast.ops._checks import check_tensor, checked_integer, dtype_name
from vqvae2_fast.sampling import pixelsnail as _registers_the_prior  # noqa: F401
from vqvae2_fast.sampling.choice import (
    ENGINES,
    ROUNDING_ENGINES,
    choose,
    choose_engine,
    cuda_fallback_message,
    warn_once,
)
from vqvae2_fast.sampling.engines.cuda import LaunchError
from vqvae2_fast.sampling.labels import label_tensor
from vqvae2_fast.sampling.prior import PriorInterface, checked_interface
from vqvae2_fast.sampling.request import Drawn, DrawNoise, DrawRequest
from vqvae2_fast.sampling.settings import DrawSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vqvae2_fast.sampling.labels import Labels

    Progress = Callable[[int, int], None]

__all__ = [
    "ENGINES",
    "check_not_capturing",
    "choose_engine",
    "sample_codes",
    "score_codes",
    "teacher_forced_logits",
]


def sample_codes(
    prior: nn.Module,
    batch_size: int,
    *,
    condition: Sequence[Tensor] | Tensor | None = None,
    labels: Labels = None,
    seed: int = 0,
    first_sample: int = 0,
    stream: int = 0,
    noise: Tensor | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    guidance_scale: float = 1.0,
    known: Tensor | None = None,
    engine: str = "auto",
    return_log_prob: bool = False,
    progress: Progress | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Draw code maps: logits, guidance, temperature, top-k, top-p, Gumbel noise, argmax.

    Args:
        prior: Any `Prior`, such as a `PixelSNAIL`, or a model registered with
            `sampling.interface_of`. Dropout is never applied: the prior draws in evaluation mode,
            and then gets its own mode back.
        batch_size: B.
        condition: All coarser maps, int64 `[B, h, w]`, coarse to fine; a tensor stands for one.
        labels: int64 `[B]` or a list of numbers, for a prior with classes; `num_classes` is "no
            class".
        seed, first_sample, stream: The noise is a function of the seed, the sample's number
            (`first_sample + row of the batch`), the noise stream (that of the level, 0 for the
            coarsest), the position and the code. So sample 7 of seed 0 has the same noise in every
            batch.
        noise: Standard Gumbel noise, float32 `[B, H, W, K]`, to use instead.
        temperature: Divides the logits; 0 takes the best code.
        top_k, top_p, guidance_scale: See `DrawSettings`.
        known: int64 `[B, H, W]`: codes to keep, -1 where one is to be drawn.
        engine: `cpu` (compiled, float32), `cpu_w8a8` (int8 weights and inputs, which is faster and
            draws from a slightly different prior; for one that `calibrate` has seen), `cuda`
            (persistent kernels, float32), `cuda_tf32` and `cuda_bfloat16` (the same with products
            on tensor cores), `eager` (any device and dtype), `reference` (the full forward pass for
            each code: the definition), or `auto`, the fastest exact engine that can draw from the
            prior. If on an NVIDIA GPU that is not `cuda`, a warning says why, once per process and
            reason.
        return_log_prob: Also return float32 `[B, H, W]`, the log-probability of each code, known or
            drawn, under the raw model: without guidance, temperature and filters. Nats.
        progress: Called with (rows done, rows of the map) after each row; an exception that it
            raises ends the draw. Within a draw of engine `cpu`, PyTorch's operators may run on one
            thread.

    Returns:
        Codes int64 `[B, H, W]` on the prior's device, and the log-probabilities if asked for.

    Raises:
        ValueError: A value, shape or engine that does not fit; the message names the argument. Or
            the prior's weights, or activations or logits that they make, are NaN, infinite or so
            large that sums could overflow (docs/security.md).
        TypeError: Codes or labels not int64, noise not float32, or a prior of an unknown type.
        RuntimeError: Engine `cpu` or `cuda` asked for by name where it cannot draw from the prior,
            which is a ValueError too; a GPU that fails during the draw; or a CUDA graph is being
            captured, which cannot hold a draw.
        NotImplementedError: Engine `cpu_w8a8` with a matrix of 2¹⁷ inputs or more.

    Note:
        The first call folds the prior's weights into a plan, which is kept with the prior until the
        weights change. Each call reads all weights once to see whether they have. A draw is of the
        weights at its beginning, whatever becomes of them, or is refused (RuntimeError) if they
        change while they are read. A prior with a hook, a parametrization, or a layer of another
        type or setting than its configuration makes is drawn by `reference`, which is slow: fold
        such changes into the weights first.
    """
    settings = DrawSettings(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        guidance_scale=guidance_scale,
        seed=seed,
        engine=engine,
    )
    drawn = draw(
        prior,
        batch_size,
        settings,
        condition=condition,
        labels=labels,
        known=known,
        noise=noise,
        first_sample=first_sample,
        stream=stream,
        return_log_prob=return_log_prob,
        progress=progress,
    )
    if return_log_prob:
        assert drawn.log_prob is not None
        return drawn.codes, drawn.log_prob
    return drawn.codes


def draw(
    prior: nn.Module,
    batch_size: int,
    settings: DrawSettings,
    *,
    condition: Sequence[Tensor] | Tensor | None = None,
    labels: Labels = None,
    known: Tensor | None = None,
    noise: Tensor | None = None,
    rows: Tensor | None = None,
    first_sample: int = 0,
    stream: int = 0,
    return_log_prob: bool = False,
    progress: Progress | None = None,
    on_row: Callable[[int, Tensor], None] | None = None,
) -> Drawn:
    """`sample_codes` with its settings as one object, `rows` of `DrawNoise`, and `on_row` of
    `DrawRequest`."""
    interface, device = checked_interface(prior), device_of(prior)
    check_not_capturing(device)
    batch_size = checked_integer("batch_size", batch_size, 1, 2**32)
    if settings.guided and interface.num_classes == 0:
        raise ValueError(
            f"expected guidance_scale=1 for a prior without classes, got {settings.guidance_scale}."
        )
    if known is not None:
        known = _copied(known)
        shape = (batch_size, *interface.size)
        check_map("known", known, shape, interface.num_embeddings, lowest=-1)
    if noise is not None:
        _check_noise(noise, interface, batch_size)
    drawn_noise = DrawNoise(
        batch_size,
        interface.size[1],
        interface.num_embeddings,
        device,
        settings.seed,
        first_sample,
        stream,
        given=None if noise is None else noise.to(device),
        rows=rows,
    )
    request = DrawRequest(
        batch_size,
        *checked_context(interface, batch_size, condition, labels, device),
        known=None if known is None else known.to(device),
        noise=drawn_noise,
        settings=settings,
        want_log_prob=return_log_prob,
        progress=progress,
        on_row=on_row,
    )
    return _draw(prior, interface, request)


def teacher_forced_logits(
    prior: nn.Module,
    codes: Tensor,
    *,
    condition: Sequence[Tensor] | Tensor | None = None,
    labels: Labels = None,
    engine: str = "auto",
) -> Tensor:
    """The logits, float32 `[B, K, H, W]`, from which an engine would draw, for given codes.

    With them engines can be compared position by position, whatever they would draw.

    Args:
        codes: int64 `[B, H, W]`, in 0..K-1.
        condition, labels, engine: As in `sample_codes`.

    Raises:
        ValueError, TypeError, RuntimeError: As `sample_codes`.
    """
    logits = _teacher_forced(prior, codes, condition, labels, engine, logits=True).logits
    assert logits is not None
    return logits


def score_codes(
    prior: nn.Module,
    codes: Tensor,
    condition: Sequence[Tensor] | Tensor | None = None,
    labels: Labels = None,
    *,
    engine: str = "auto",
) -> Tensor:
    """Log-likelihood of each code given those before it, float32 `[B, H, W]`, nats.

    Teacher forcing through the engine that draws: what `sample_codes(..., known=codes,
    return_log_prob=True)` returns, bit for bit, and under engine `cpu` the same in any batch. The
    sum over a map is its log-likelihood. If you only need the mean over a held-out set,
    `metrics.prior_likelihood` runs the full network once per batch and is faster.

    Args:
        codes: int64 `[B, H, W]`, in 0..K-1.
        condition, labels, engine: As in `sample_codes`.

    Raises:
        ValueError, TypeError, RuntimeError: As `sample_codes`.
    """
    log_prob = _teacher_forced(prior, codes, condition, labels, engine).log_prob
    assert log_prob is not None
    return log_prob


def _teacher_forced(
    prior: nn.Module,
    codes: Tensor,
    condition: Sequence[Tensor] | Tensor | None,
    labels: Labels,
    engine: str,
    *,
    logits: bool = False,
) -> Drawn:
    """Logits, or log-probabilities, of given codes."""
    interface, device = checked_interface(prior), device_of(prior)
    check_not_capturing(device)
    check_tensor("codes", codes)
    batch_size = codes.shape[0] if codes.ndim == 3 else 1
    check_map("codes", codes, (batch_size, *interface.size), interface.num_embeddings)
    context = checked_context(interface, batch_size, condition, labels, device)
    if not batch_size:
        empty = torch.zeros(
            0, interface.num_embeddings, *interface.size, device=device, dtype=torch.float32
        )
        return Drawn(codes, log_prob=empty[:, 0], logits=empty)
    request = DrawRequest(
        batch_size,
        *context,
        known=codes.to(device),
        noise=DrawNoise(batch_size, interface.size[1], interface.num_embeddings, device),
        settings=DrawSettings(temperature=0.0, engine=engine),
        want_log_prob=not logits,
        want_logits=logits,
    )
    return _draw(prior, interface, request)


@within_quota()
def _draw(prior: nn.Module, interface: PriorInterface, request: DrawRequest) -> Drawn:
    settings, engines = request.settings, {**ENGINES, **ROUNDING_ENGINES}
    choice = choose(
        settings.engine,
        prior,
        interface,
        batch_size=request.batch_size,
        guided=settings.guided,
    )
    warn_once(choice.warning)
    with evaluating(prior):
        try:
            drawn = engines[choice.engine](prior, interface, request)
        except LaunchError as error:
            if settings.engine != "auto" or error.row > 0:
                raise RuntimeError(
                    f"engine {choice.engine}: {error}; draw with engine='eager', which does "
                    "without these kernels."
                ) from error
            warn_once(cuda_fallback_message(device_of(prior), str(error)))
            drawn = engines["eager"](prior, interface, request)
    # Clones are ordinary tensors. The engine's tensors are inference tensors, which cannot be used
    # where a gradient is wanted.
    return Drawn(
        drawn.codes.clone(),
        None if drawn.log_prob is None else drawn.log_prob.clone(),
        None if drawn.logits is None else drawn.logits.clone(),
        clamped=drawn.clamped,
    )


def check_not_capturing(device: torch.device) -> None:
    """Raises RuntimeError if the draw would become part of a CUDA graph."""
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "the current stream is capturing a CUDA graph, which cannot hold a draw, "
            "because a draw waits for the GPU; draw before the capture, and let the graph read the "
            "codes."
        )


def checked_context(
    interface: PriorInterface,
    batch_size: int,
    condition: Sequence[Tensor] | Tensor | None,
    labels: Labels,
    device: torch.device,
) -> tuple[list[Tensor], Tensor | None]:
    maps = [_copied(codes) for codes in listed_maps(condition)]
    check_maps(maps, interface.condition_sizes, interface.num_embeddings, batch_size)
    numbers = label_tensor(labels, interface.num_classes)
    if numbers is not None:
        numbers = _copied(numbers)
    check_labels(
        numbers, interface.num_classes, batch_size, interface.num_labels, interface.num_words
    )
    return [codes.to(device) for codes in maps], None if numbers is None else numbers.to(device)


def _copied(codes: Tensor) -> Tensor:
    """What is checked is a copy, which no callback of a draw can change: a code out of range would
    have a compiled engine read outside its tables."""
    return codes.clone() if isinstance(codes, Tensor) else codes


def _check_noise(noise: Tensor, interface: PriorInterface, batch_size: int) -> None:
    shape = (batch_size, *interface.size, interface.num_embeddings)
    check_tensor("noise", noise)
    if noise.dtype != torch.float32:
        raise TypeError(f"expected noise float32, got {dtype_name(noise.dtype)}.")
    if noise.shape != shape:
        raise ValueError(f"expected noise {list(shape)} (B, H, W, K), got {list(noise.shape)}.")
    if not noise.isfinite().all():
        raise ValueError("expected finite noise, got infinite or NaN values in it.")
