"""Codebooks that follow their vectors by moving averages: the rule, the start and the update.

Steps that read values on the host or choose vectors by Philox words are opaque to a compiled graph:
the words are hundreds of integer operations that Inductor would nest into one kernel (a training
step did not compile in 24 minutes).

Sizes: N vectors of this process, K codes, D embedding_dim.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vqvae2_fast import ops
from vqvae2_fast.files.kinds import check_fields, integer, number, one_of
from vqvae2_fast.modules.batch import (
    Vectors,
    all_reduce_,
    drop_non_finite_,
    finite_rows,
    is_distributed,
    kmeans,
)
from vqvae2_fast.modules.host import has_started, outside_graphs, reading_synchronises
from vqvae2_fast.ops.gumbel_noise.op import PURPOSE_RESTART, random_word

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vqvae2_fast.modules.batch import Span

__all__ = [
    "RULE",
    "Averages",
    "Rule",
    "initial_codebook",
    "move_codebook_",
    "packed_statistics",
    "start_codebook_",
    "start_residual_codebooks_",
    "to_start",
]


@dataclass(frozen=True)
class Rule:
    """How a codebook starts, moves and restarts, as the arguments of `VectorQuantizerEMA` say."""

    decay: float = 0.99
    epsilon: float = 1e-5
    init: str = "kmeans"
    ema_start: str = "one"
    restart: float = 0.03
    update: str = "forward"
    seed: int = 0
    stream: int = 0
    metric: str = "euclidean"
    quantize_after: int = 0

    def __post_init__(self) -> None:
        check_fields(
            self,
            init=one_of(("kmeans", "normal", "uniform")),
            ema_start=one_of(("one", "zero", "debiased")),
            update=one_of(("forward", "step")),
            metric=one_of(("euclidean", "cosine")),
            decay=number(0, below=1),
            restart=number(0, below=1),
            epsilon=number(0),
            quantize_after=integer(0),
            # The bits that `random_words` takes. Codebook n of a level has its stream + 256·n.
            stream=integer(0, (1 << 16) - 1),
        )
        if not (self.epsilon or self.restart):
            raise ValueError(
                "expected epsilon > 0 with restart=0, got 0: a code that no vector takes would be "
                "divided by a count of 0. Use epsilon=1e-5, or let unused codes restart."
            )
        if self.quantize_after and (self.init != "kmeans" or self.update != "step"):
            raise ValueError(
                'expected init="kmeans" and update="step" with quantize_after='
                f"{self.quantize_after}, got init={self.init!r} and update={self.update!r}."
            )

    def on_sphere(self, vectors: Tensor) -> Tensor:
        """z `[..., D]` as the metric compares it; a vector of zeros stays as it is."""
        return F.normalize(vectors, dim=-1) if self.metric == "cosine" else vectors


# The arguments were checked when the module was made; checking them takes 4 µs.
_rule = functools.lru_cache(64)(Rule)
# A `Rule` as opaque calls take it: `**vars(rule)`.
RULE = (
    "float decay, float epsilon, str init, str ema_start, float restart, str update, int seed, "
    "int stream, str metric, int quantize_after"
)


class Averages(NamedTuple):
    """The state of a codebook: buffers, which all of this writes in place.

    Attributes:
        codebook: `[K, D]` float32.
        cluster_size, embed_avg: The averaged counts `[K]` and sums `[K, D]`.
        steps: Updates so far, int64, 0-d.
        initialised: 0-d, 1 once the codebook has started.
    """

    codebook: Tensor
    cluster_size: Tensor
    embed_avg: Tensor
    steps: Tensor
    initialised: Tensor

    def reset_(self, ema_start: str) -> None:
        """Set the averages to what `ema_start` says for a codebook that starts."""
        self.cluster_size.fill_(1.0 if ema_start == "one" else 0.0)
        if ema_start == "debiased":
            # Both start at zero. The weights of debiased averages depend on the number of updates,
            # also of those while quantisation waits; the ratio of two from zero does not.
            self.embed_avg.zero_()
        else:
            self.embed_avg.copy_(self.codebook)

    def move_(self, counts: Tensor, sums: Tensor, rule: Rule) -> None:
        """Average in the statistics `[K]`, `[K, D]` of all processes; codes are the ratios."""
        decay = rule.decay
        if rule.ema_start == "debiased":
            # An average from zero divided by 1 − γᵗ is one of weight (1−γ)/(1−γᵗ), 1 at t = 1: move
            # it here, and let the operator (decay 1) only take the ratio.
            power = self.steps * math.log(decay) if decay else self.steps * -math.inf  # log γᵗ
            weight = (1 - decay) / -torch.expm1(power)
            self.cluster_size.lerp_(counts, weight)
            self.embed_avg.lerp_(sums, weight)
            decay = 1.0
        ops.ema_update_(
            counts, sums, self.cluster_size, self.embed_avg, self.codebook, decay, rule.epsilon
        )
        if rule.metric == "cosine":
            self.codebook.copy_(F.normalize(self.codebook, dim=-1))

    def restart_(self, unused: Tensor, vectors: Tensor, count: Tensor) -> None:
        """Start the codes of a mask `[K]` again from vectors `[K, D]`, as if used `count` times."""
        unused = unused & finite_rows(vectors)
        column = unused[:, None]
        self.cluster_size.copy_(torch.where(unused, count, self.cluster_size))
        self.embed_avg.copy_(torch.where(column, vectors * count, self.embed_avg))
        self.codebook.copy_(torch.where(column, vectors, self.codebook))


def initial_codebook(num_embeddings: int, dim: int, *, init: str, seed: int, stream: int) -> Tensor:
    """The codebook before any data, `[K, D]` float32: a function of only the seed and the
    stream."""
    # A word made from both, because the generator uses only 32 bits of its seed.
    word = random_word(seed=seed, stream=stream, purpose=PURPOSE_RESTART)
    generator = torch.Generator().manual_seed(word)
    shape, dtype = (num_embeddings, dim), torch.float32  # whatever torch's default is
    if init == "uniform":
        # VarianceScaling(distribution="uniform") of sonnet's VectorQuantizerEMA, fan-in D.
        limit = (3.0 / dim) ** 0.5
        codebook = torch.rand(shape, generator=generator, dtype=dtype, device="cpu")
        codebook = codebook * (2 * limit) - limit
    else:
        codebook = torch.randn(shape, generator=generator, dtype=dtype, device="cpu")
    return codebook.to(torch.get_default_device())


def _no_result(*_: Any, **__: Any) -> None:
    return None


@outside_graphs(
    "(Tensor[] rows, Tensor[] masks, int[] firsts, int total, Tensor(a!)[] averages, "
    f"Tensor(b!) settled, *, {RULE}) -> ()",
    fake=_no_result,
)
@torch.no_grad()
def start_codebook_(
    rows: list[Tensor],
    masks: list[Tensor],
    firsts: list[int],
    total: int,
    averages: list[Tensor],
    settled: Tensor,
    **options: Any,
) -> None:
    """Start a codebook by k-means if it has not started and any process has vectors.

    Args:
        rows, masks, firsts, total: `Vectors`.
        averages: `Averages`.
        settled: Of its `Phase`.
        options: `Rule`.
    """
    own, vectors = Averages(*averages), Vectors(rows, masks, firsts, total)
    if has_started(own.initialised, settled):
        return
    rule, spans = _rule(**options), vectors.spans()
    if int(spans[0][1]) == 0:
        return
    means = kmeans(vectors, len(own.codebook), spans, seed=rule.seed, stream=rule.stream)
    own.codebook.copy_(rule.on_sphere(means))
    own.reset_(rule.ema_start)
    own.initialised.fill_(True)
    settled.fill_(True)


def to_start(averages: Sequence[Tensor], settled: Sequence[Tensor]) -> list[Averages]:
    """`Averages` of each codebook, which come one after another; [] if all of them have started."""
    width = len(Averages._fields)
    each = [Averages(*averages[n : n + width]) for n in range(0, len(averages), width)]
    pairs = zip(each, settled, strict=True)
    return [] if all(has_started(own.initialised, flag) for own, flag in pairs) else each


@outside_graphs(
    "(Tensor z, Tensor? mask, Tensor(a!)[] averages, Tensor(b!)[] settled, int[] streams, *, "
    f"{RULE}) -> ()",
    fake=_no_result,
)
@torch.no_grad()
def start_residual_codebooks_(
    z: Tensor,
    mask: Tensor | None,
    averages: list[Tensor],
    settled: list[Tensor],
    streams: list[int],
    **options: Any,
) -> None:
    """`start_codebook_` of several codebooks, each on what the ones before leave over.

    Args:
        z: Vectors of this process, `[N, D]`.
        averages: `Averages` of each codebook, one after another.
        streams: Of each codebook; the rest of its rule is `options`.
    """
    if not (each := to_start(averages, settled)):
        return
    masks = [] if mask is None else [mask]
    residual = z.to(torch.promote_types(z.dtype, torch.float32))
    for own, flag, stream in zip(each, settled, streams, strict=True):
        start_codebook_([residual], masks, [], -1, list(own), flag, **options | {"stream": stream})
        residual = residual - own.codebook[ops.nearest_code(residual, own.codebook)[0]]


def packed_statistics(
    vectors: Vectors, counts: Tensor, sums: Tensor, spans: list[Span], steps: Tensor, rule: Rule
) -> Tensor:
    """What an update sums over the processes: `[K + K·D]`, and K·D more for restarts in a group.

    Args:
        steps: Updates, the coming one among them.
    """
    # Counts travel as float32: exact to 2²⁴ vectors of one code in one step.
    parts = [counts.float(), sums.flatten()]
    if rule.restart and is_distributed():
        drawn = vectors.drawn(len(counts), spans, steps, seed=rule.seed, stream=rule.stream)
        parts.append(drawn.flatten())
    return torch.cat(parts)


@outside_graphs(
    "(Tensor[] rows, Tensor[] masks, int[] firsts, int total, Tensor counts, Tensor sums, "
    f"Tensor? statistics, Tensor(a!)[] averages, Tensor(b!) settled, *, {RULE}) -> Tensor",
    fake=lambda rows, masks, firsts, total, counts, sums, *_, **__: sums.new_empty(()),
)
@torch.no_grad()
def move_codebook_(
    rows: list[Tensor],
    masks: list[Tensor],
    firsts: list[int],
    total: int,
    counts: Tensor,
    sums: Tensor,
    statistics: Tensor | None,
    averages: list[Tensor],
    settled: Tensor,
    **options: Any,
) -> Tensor:
    """Move a codebook that has started by the pending statistics of all processes.

    One all-reduce of [counts | sums | vectors for restarts], after a tiny one of the numbers of
    vectors where these are not known.

    Args:
        rows, masks, firsts, total: `Vectors` that codes may restart from.
        counts, sums: The pending statistics of this process, `[K]` and `[K, D]`.
        statistics: `packed_statistics` if the caller has summed them over the processes.
        averages: `Averages`.
        settled: Of its `Phase`.
        options: `Rule`.

    Returns:
        The share of the codes that had a vector, float32, 0-d.
    """
    own, rule, vectors = Averages(*averages), _rule(**options), Vectors(rows, masks, firsts, total)
    if not has_started(own.initialised, settled):
        return own.codebook.new_zeros(())
    own.steps.add_(1)
    spans = vectors.spans() if rule.restart else []
    if statistics is None:
        statistics = packed_statistics(vectors, counts, sums, spans, own.steps, rule)
        all_reduce_(statistics)
    sizes = [own.cluster_size.numel(), own.codebook.numel()]
    all_counts, flat_sums, drawn = statistics.split([*sizes, len(statistics) - sum(sizes)])
    all_sums = flat_sums.view(own.codebook.shape)
    drop_non_finite_(all_counts, all_sums)
    own.move_(all_counts, all_sums, rule)
    if rule.restart:
        # In the steady state the mean count is N_global / K; in the first steps of ema_start "one"
        # it is nearer to 1, and with N_global / K itself every code would restart at once.
        mean = own.cluster_size.mean()
        unused = own.cluster_size < rule.restart * mean  # [K]
        # At most as many as there are vectors: of several codes in one place only the first would
        # ever be the nearest.
        unused &= unused.cumsum(0) <= spans[0][1]
        if is_distributed():
            own.restart_(unused, drawn.view(own.codebook.shape), mean)
        # Drawing the vectors takes longer than everything else here, and most steps need none.
        elif reading_synchronises(unused) or bool(unused.any()):
            found = vectors.drawn(len(counts), spans, own.steps, seed=rule.seed, stream=rule.stream)
            own.restart_(unused, found, mean)
    return (all_counts > 0).float().mean()
