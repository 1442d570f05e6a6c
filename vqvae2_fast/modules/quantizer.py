"""The vector quantiser whose codebook follows its inputs by exponential moving averages.

Sizes: N vectors (the product of the leading sizes), K codes, D embedding_dim.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqvae2_fast import ops
from vqvae2_fast.modules.autocast import without_autocast
from vqvae2_fast.modules.codebook import all_reduce_, initial_codebook, is_distributed, perplexity
from vqvae2_fast.modules.codebook_steps import (
    move_codebook_,
    packed_statistics,
    start_averages_,
    start_codebook_,
)
from vqvae2_fast.modules.index_range import check_indices
from vqvae2_fast.modules.latest_forward import LatestForward
from vqvae2_fast.modules.outside_graphs import (
    StartFlag,
    has_started,
    has_values,
    inside_backward,
    reading_waits,
    register_flag,
)
from vqvae2_fast.modules.outside_transforms import detached, refuse_vmap
from vqvae2_fast.modules.pending_statistics import PendingStatistics
from vqvae2_fast.modules.quantizer_interface import (
    Quantizer,
    check_commitment_cost,
    check_vectors,
    perplexity_of,
)
from vqvae2_fast.modules.seen_vectors import SeenVectors
from vqvae2_fast.ops._batch_part import present_part
from vqvae2_fast.ops._checks import dtype_name
from vqvae2_fast.ops.vector_quantize.op import rotate_gradient

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vqvae2_fast.ops._batch_part import BatchPart

__all__ = ["VectorQuantizerEMA", "update_codebooks_"]

_CHOICES = {
    "init": ("kmeans", "normal", "uniform"),
    "ema_start": ("one", "zero", "debiased"),
    "gradient": ("straight_through", "rotation"),
    "update": ("forward", "step"),
    "metric": ("euclidean", "cosine"),
}


class VectorQuantizerEMA(Quantizer):
    """Nearest code of each vector, with a codebook that is learnt without gradients.

    In training mode a forward adds the counts and sums of its codes to pending statistics. An
    update sums them over all processes of the default `torch.distributed` group and moves the
    averages: N ← γN + (1−γ)n, m ← γm + (1−γ)Σz, e = m/N with Laplace smoothing (section 3.1 of
    https://arxiv.org/abs/1906.00446 and sonnet's `VectorQuantizerEMA`). Lookups use the codebook
    from before the update. In evaluation mode nothing changes.

    Args:
        num_embeddings: K, the number of codes.
        embedding_dim: D, the dimension of a code.
        commitment_cost: β, eq. 3 of https://arxiv.org/abs/1711.00937.
        decay: γ of the moving averages, in [0, 1).
        epsilon: ε of the Laplace smoothing, in counts: the least count of an unused code.
        init: How the codebook starts. "kmeans": ten Lloyd iterations on the first training batch of
            all processes (until then as "normal"). "normal": N(0, 1). "uniform": as in sonnet.
        ema_start: Counts at the start. "one". "zero": as in the rosinality port, where a code
            without vectors moves far away. "debiased": averages are divided by 1 − γᵗ, as in
            sonnet.
        restart: A code whose average count falls below this fraction of the mean over codes starts
            again from a vector of the latest forward, with that mean as its count. 0 restarts none.
        gradient: How the gradient passes from z_q to z: "straight_through", or "rotation"
            (https://arxiv.org/abs/2410.06424).
        update: When the codebook moves. "forward": at the end of each training forward. "step":
            when `update_codebook_` is called, once per optimiser step after backward; until then
            the statistics of micro-batches add up.
        metric: "euclidean", or "cosine": vectors are divided by their length first (gradients pass
            through that) and codes have length one. The nearest code is then the one of largest
            cosine, the loss compares unit vectors, and the averages are of unit vectors
            (`use_cosine_sim` of vector-quantize-pytorch).
        quantize_after: Number of updates during which nothing is quantised: z_q is z (with
            "cosine", z / ‖z‖), codes are 0 and the loss is 0; then k-means starts the codebook. An
            encoder's first outputs hardly differ between images, and an optimiser moves them faster
            than averages follow: one code takes them all, and the commitment pulls the rest onto
            it. Needs init "kmeans" and update "step".
        seed: Seed of the start and of restarts; the same on every process.
        stream: Noise stream of this quantiser: the number of its level, 0 the coarsest, so that
            levels with the same seed draw different values; below 2¹⁶.

    Attributes:
        perplexity: exp(entropy) of the codes of this process's latest forward, float32 0-d.
        usage: Share of the K codes that had a vector, on any process, in the latest update.

    Raises:
        ValueError: An argument out of its range, or arguments that do not fit one another.

    Note:
        In a process group every process takes part in every update, and with init "kmeans" or
        update "forward" in every training forward; one that has no vectors passes a `z` of N = 0.
        Under autocast all of this is float32. Activation checkpointing does not count twice.
        Checkpoints hold no pending statistics: save between optimiser steps.
        The buffers `initialised` and `steps` decide whether k-means still has to start the
        codebook, however they were set. On a GPU they are read until it has started.
        A vector with NaN or infinity moves no code: the statistics of its code in that update are
        dropped. `torch.compile` makes one graph of a training step. Transforms of `torch.func`,
        except `vmap`, take one if they are given the buffers (`functional_call`), which it changes;
        the pending statistics are no buffers and stay with the module.
        With gradient "straight_through", backward needs z_q unchanged: do not work on it in
        place. While `quantize_after` holds, z_q is z itself (with "cosine", z / ‖z‖).
    """

    codebook: Tensor
    cluster_size: Tensor
    embed_avg: Tensor
    steps: Tensor
    initialised: Tensor

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        commitment_cost: float = 0.25,
        decay: float = 0.99,
        epsilon: float = 1e-5,
        init: Literal["kmeans", "normal", "uniform"] = "kmeans",
        ema_start: Literal["one", "zero", "debiased"] = "one",
        restart: float = 0.03,
        gradient: Literal["straight_through", "rotation"] = "straight_through",
        update: Literal["forward", "step"] = "forward",
        seed: int = 0,
        stream: int = 0,
        metric: Literal["euclidean", "cosine"] = "euclidean",
        quantize_after: int = 0,
    ) -> None:
        super().__init__()
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.commitment_cost = commitment_cost
        self.decay = decay
        self.epsilon = epsilon
        self.ema_start = ema_start
        self.restart = restart
        self.gradient = gradient
        self.update = update
        self.metric = metric
        self.quantize_after = quantize_after
        self.seed = seed
        self.stream = stream
        _check_arguments(self, init)

        codebook = self._on_sphere(
            initial_codebook(num_embeddings, embedding_dim, init=init, seed=seed, stream=stream)
        )
        self.register_buffer("codebook", codebook)
        self.register_buffer("cluster_size", torch.zeros(num_embeddings, dtype=codebook.dtype))
        self.register_buffer("embed_avg", torch.zeros(codebook.shape, dtype=codebook.dtype))
        start_averages_(codebook, self.cluster_size, self.embed_avg, ema_start)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        register_flag(self, "initialised", init != "kmeans")
        self.pending = PendingStatistics(codebook)
        self.usage = torch.zeros((), dtype=torch.float32)
        self._start = StartFlag()
        # A copy of what the buffers say: a compiled graph could not read them.
        self._is_waiting = quantize_after > 0
        self._seen = SeenVectors()
        self._latest = LatestForward()
        self.register_load_state_dict_post_hook(_forget_old_state)  # type: ignore[no-untyped-call]

    def extra_repr(self) -> str:
        names = ("commitment_cost", "decay", "ema_start", "restart", "gradient", "update", "metric")
        shown = [f"{name}={getattr(self, name)!r}" for name in (*names, "quantize_after")]
        return ", ".join([str(self.num_embeddings), str(self.embedding_dim), *shown])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> VectorQuantizerEMA:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.pending.apply_(fn)
        return self

    def _on_sphere(self, vectors: Tensor) -> Tensor:
        """z `[..., D]` as the metric compares it; a vector of zeros stays as it is."""
        return F.normalize(vectors, dim=-1) if self.metric == "cosine" else vectors

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quantise vectors.

        Args:
            z: `[..., D]`, float32, bfloat16, float16 or float64.

        Returns:
            z_q: `[..., D]`, the codebook's rows in z's dtype, with the chosen gradient to z.
            indices: int64, `[...]`.
            loss: float32, 0-d: commitment_cost × mean((z − z_q)²), with "cosine" of z / ‖z‖.

        Raises:
            ValueError: The last size of z is not D.
            TypeError: z is not floating, or in training mode the codebook is not float32.
            RuntimeError: With update="forward": a checkpoint recomputes another forward than the
                latest, or one of several that it holds.
            NotImplementedError: In training mode under `torch.func.vmap`.
        """
        check_vectors(z, self.embedding_dim)
        with without_autocast(z.device):
            z = self._on_sphere(z)
            if self.waits():
                indices = torch.zeros(z.shape[:-1], dtype=torch.int64, device=z.device)
                return z, indices, z.new_zeros((), dtype=torch.float32)
            z_q, indices, commitment = ops.vector_quantize(z, self.codebook_for_(z))
            if self.gradient == "rotation":
                z_q = rotate_gradient(z, z_q)
            self.take_(z, indices)
            return z_q, indices, self.commitment_cost * commitment

    def waits(self) -> bool:
        """Whether a training forward quantises nothing yet: see `quantize_after`."""
        return self.training and self._waits()

    @torch.no_grad()
    def codebook_for_(self, z: Tensor) -> Tensor:
        """The codes `[K, D]` that a forward compares z with; in training k-means may start them.

        With `take_` this is what a forward does besides the search, for modules that search in
        another way.
        """
        if not self.training:
            return self.codebook
        refuse_vmap(z, self.codebook)
        recomputing = inside_backward()
        if not recomputing:
            self._prepare(z)
        # With update "forward" the update comes before backward, but backward and a checkpoint's
        # recomputation need the codes that the forward used.
        if self.update == "step":
            return self.codebook
        remedy = "use update='step' with a call of update_codebook_ after each step"
        latest = self._latest.recall(remedy) if recomputing else ()
        (codebook,) = latest or self._latest.keep(self.codebook)
        return codebook

    @torch.no_grad()
    def take_(self, z: Tensor, indices: Tensor) -> None:
        """Note the codes int64 `[...]` of vectors z `[..., D]`, as they were searched with; in
        training they enter the pending statistics."""
        if not self.training:
            self.perplexity = perplexity_of(indices, self.num_embeddings)
        elif not inside_backward():
            statistics = ops.code_statistics(z, indices, self.num_embeddings)
            self.learn_(self.lasting(z), *statistics)

    def lasting(self, z: Tensor) -> Tensor:
        """z `[..., D]` as it may be kept until the update: the caller may write to z before."""
        # Choosing the rows here instead takes 0.5 ms of Philox words, whatever N is; a copy of
        # 65,536 × 64 takes as long (one AVX-512 core), and a smaller one less.
        return z.clone() if self.restart and self.update == "step" else z

    @torch.no_grad()
    def learn_(self, z: Tensor, counts: Tensor, sums: Tensor) -> None:
        """Add `ops.code_statistics` of a forward's vectors z `[..., D]` to the pending ones.

        z is kept until the update.
        """
        self.perplexity = perplexity(counts)
        self.pending.add_(counts, sums)
        if self.restart:
            # They are kept until the update, where the numbers of rows of all processes are known.
            self._seen.keep(z, present_part())
        if self.update == "forward":
            self.update_codebook_()

    @torch.no_grad()
    def encode(self, z: Tensor) -> Tensor:
        """Only the indices, int64 `[...]`; takes no statistics in either mode."""
        check_vectors(z, self.embedding_dim)
        with without_autocast(z.device):
            return ops.nearest_code(self._on_sphere(z), self.codebook)[0]

    def perplexity_in_training(self) -> Tensor:
        """exp(entropy) of the counts that training has averaged, float32 0-d."""
        return perplexity(self.cluster_size)

    def lookup(self, indices: Tensor) -> Tensor:
        """The codebook's rows: indices int64 `[...]` -> `[..., D]`."""
        check_indices(indices, self.num_embeddings)
        return self.codebook[indices]

    @torch.no_grad()
    def set_codebook_(
        self, codebook: Tensor, cluster_size: Tensor | None = None, embed_avg: Tensor | None = None
    ) -> None:
        """Start from given codes `[K, D]`, with counts `[K]` and averages `[K, D]` if given.

        Without counts, counts and averages are those of `ema_start`; with counts alone, averages
        are the codes times their counts. With the cosine metric codes are divided by their length.
        The statistics of forwards with other codes are forgotten.

        Raises:
            ValueError: A shape that does not fit; nothing is changed then.
        """
        given = {"codebook": codebook, "cluster_size": cluster_size, "embed_avg": embed_avg}
        for name, value in given.items():
            expected = list(getattr(self, name).shape)
            if value is not None and list(value.shape) != expected:
                raise ValueError(f"expected {name} {expected}, got {list(value.shape)}.")
        self.codebook.copy_(self._on_sphere(codebook))
        start_averages_(self.codebook, self.cluster_size, self.embed_avg, self.ema_start)
        if cluster_size is not None:
            self.cluster_size.copy_(cluster_size)
            self.embed_avg.copy_(self.codebook * self.cluster_size[:, None])
        if embed_avg is not None:
            self.embed_avg.copy_(embed_avg)
        self._forget_forwards()
        self.initialised.fill_(True)
        self._is_waiting = False

    @torch.no_grad()
    def update_codebook_(self) -> None:
        """Move the codebook by the pending statistics of all processes, and restart unused codes.

        Vectors for restarts are those of the latest forward, or, inside `batch_part`, of all parts
        of the batch. This only counts the updates while `quantize_after` holds, and does nothing
        before a codebook that starts by k-means has seen its first vectors.
        """
        self.move_(None)

    def has_statistics(self) -> bool:
        """Whether the coming update needs statistics: it is in training mode, it quantises, and its
        codebook has started.

        The same on all processes of a group.
        """
        return (
            self.training
            and not self._waits()
            and has_started(self.initialised, self._start.settled)
        )

    def statistics(self) -> Tensor:
        """What the coming update sums over the processes, flat; only of parts of a known batch."""
        return packed_statistics(
            self._seen.rows,
            self._seen.spans() if self.restart else [],
            self.pending.counts,
            self.pending.sums,
            self.steps + 1,
            restart=self.restart,
            seed=self.seed,
            stream=self.stream,
        )

    @property
    def knows_its_part(self) -> bool:
        """Whether the pending vectors, if needed, are parts of a batch of known size."""
        return self._seen.total >= 0 or not self.restart

    @torch.no_grad()
    def move_(self, statistics: Tensor | None) -> None:
        """`update_codebook_` with `statistics()` already summed over the processes."""
        if not self.training:
            return
        if self._waits():
            self.steps += 1
            # In compiled code too, although that may break its graph: else the wait would not end.
            self._read_wait()
            return
        usage = move_codebook_(
            self._seen.rows or [self.codebook.new_zeros(0, self.embedding_dim)],
            self._seen.firsts,
            self._seen.total,
            statistics,
            self.pending.counts,
            self.pending.sums,
            self.codebook,
            self.cluster_size,
            self.embed_avg,
            self.steps,
            self.initialised,
            self._start.settled,
            decay=self.decay,
            epsilon=self.epsilon,
            restart=self.restart,
            debiased=self.ema_start == "debiased",
            cosine=self.metric == "cosine",
            seed=self.seed,
            stream=self.stream,
        )
        self.usage = detached(usage)
        self._forget_forwards()

    def _waits(self) -> bool:
        """Whether nothing is quantised yet: the buffers decide, and on a GPU are read meanwhile."""
        if self._start.sees_another(self.initialised):
            self._is_waiting = self.quantize_after > 0
        if not self.quantize_after or self.steps.is_meta:  # there nothing can be read
            return False
        may_read = self._is_waiting or not reading_waits(self.steps)
        if may_read and not torch.compiler.is_compiling():
            self._read_wait()
        return self._is_waiting

    def _read_wait(self) -> None:
        if has_values(self.steps):
            self._is_waiting = bool((self.steps < self.quantize_after) & (self.initialised == 0))

    def _forget_forwards(self) -> None:
        self._seen.forget()
        self.pending.forget_(self.codebook.device)

    @torch.no_grad()
    def _prepare(self, z: Tensor) -> None:
        """Checks and the k-means start, before a lookup that will be counted."""
        if self.codebook.dtype != torch.float32:
            remedy = (
                "Codebooks train in float32: convert the module back with `.float()`."
                if self.codebook.dtype == torch.float64
                else "Train under torch.autocast instead of converting the module."
            )
            raise TypeError(
                "expected a float32 codebook in training, got "
                f"{dtype_name(self.codebook.dtype)}. {remedy}"
            )
        self._start_from([z], [None])

    @torch.no_grad()
    def start_(self, vectors: list[Tensor], parts: list[BatchPart]) -> None:
        """Start a codebook by k-means from several parts of a batch; later do nothing.

        Args:
            vectors: z of each part, `[B, ..., D]`.
        """
        self._start_from([self._on_sphere(z) for z in vectors], parts)

    @property
    def settled(self) -> Tensor:
        """Whether the host knows that the codebook has started: bool, 0-d, on the CPU."""
        self._start.sees_another(self.initialised)
        return self._start.settled

    def must_start(self) -> bool:
        """Whether the next training forward starts the codebook by k-means."""
        return not self._waits() and not has_started(self.initialised, self._start.settled)

    def _start_from(self, vectors: list[Tensor], parts: Sequence[BatchPart | None]) -> None:
        seen = SeenVectors()
        for z, part in zip(vectors, parts, strict=True):
            seen.keep(z, part)
        start_codebook_(
            seen.rows,
            seen.firsts,
            seen.total,
            self.codebook,
            self.cluster_size,
            self.embed_avg,
            self.initialised,
            self._start.settled,
            ema_start=self.ema_start,
            cosine=self.metric == "cosine",
            seed=self.seed,
            stream=self.stream,
        )


def _forget_old_state(quantizer: nn.Module, _incompatible_keys: object) -> None:
    assert isinstance(quantizer, VectorQuantizerEMA)
    quantizer._start.forget()
    quantizer._forget_forwards()
    quantizer._waits()


def _check_arguments(quantizer: VectorQuantizerEMA, init: str) -> None:
    """Raise ValueError unless the arguments that a quantiser has kept fit one another."""
    for name in ("num_embeddings", "embedding_dim"):
        if (value := getattr(quantizer, name)) < 1:
            raise ValueError(f"expected {name} >= 1, got {value}.")
    for name, known in _CHOICES.items():
        choice = init if name == "init" else getattr(quantizer, name)
        if choice not in known:
            raise ValueError(f"expected {name} to be one of {', '.join(known)}, got {choice!r}.")
    for name in ("decay", "restart"):
        if not 0 <= (value := getattr(quantizer, name)) < 1:
            raise ValueError(f"expected {name} in [0, 1), got {value}.")
    if not 0 <= quantizer.stream < 1 << 16:  # the bits that `random_words` takes of it
        raise ValueError(
            f"expected stream in [0, 65536), got {quantizer.stream}. Codebook "
            "n of a level's quantiser has the level's stream + 256·n, so there can be 256 of them."
        )
    check_commitment_cost(quantizer.commitment_cost)
    epsilon = quantizer.epsilon
    if not 0 <= epsilon < math.inf:
        raise ValueError(f"expected a finite epsilon >= 0, got {epsilon}.")
    if epsilon == 0 and not quantizer.restart:
        raise ValueError(
            "expected epsilon > 0 with restart=0, got 0: a code that no vector "
            "takes would be divided by a count of 0. Use epsilon=1e-5, or let unused codes restart."
        )
    after, update = quantizer.quantize_after, quantizer.update
    if after < 0:
        raise ValueError(f"expected quantize_after >= 0, got {after}.")
    if after and (init != "kmeans" or update != "step"):
        raise ValueError(
            'expected init="kmeans" and update="step" with quantize_after='
            f"{after}, got init={init!r} and update={update!r}."
        )


@torch.no_grad()
def update_codebooks_(quantizers: list[VectorQuantizerEMA]) -> None:
    """`update_codebook_` of several quantisers, in one all-reduce where that is possible.

    It is where all of them know which part of the batch they saw: see `batch_part`.
    """
    statistics: dict[VectorQuantizerEMA, Tensor] = {}
    # A compiled graph could not read which have statistics, and one process need not know.
    moving = [each for each in quantizers if each.has_statistics()] if is_distributed() else []
    if moving and all(quantizer.knows_its_part for quantizer in moving):
        flat = [quantizer.statistics() for quantizer in moving]
        summed = torch.cat(flat)
        all_reduce_(summed)
        statistics = dict(zip(moving, summed.split([len(part) for part in flat]), strict=True))
    for quantizer in quantizers:
        quantizer.move_(statistics.get(quantizer))
