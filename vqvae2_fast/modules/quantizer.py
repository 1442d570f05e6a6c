"""The vector quantiser whose codebook follows its inputs by exponential moving averages.

Sizes: N vectors (the product of the leading sizes), K codes, D embedding_dim.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from vqvae2_fast import ops
from vqvae2_fast.modules.averages import (
    Averages,
    Rule,
    initial_codebook,
    move_codebook_,
    packed_statistics,
    start_codebook_,
)
from vqvae2_fast.modules.batch import NO_VECTORS, Batch, all_reduce_, is_distributed, statistics_of
from vqvae2_fast.modules.contexts import without_autocast
from vqvae2_fast.modules.host import LatestForward, Phase, inside_backward, register_flag
from vqvae2_fast.modules.index_range import check_indices
from vqvae2_fast.modules.quantizer_interface import (
    Quantizer,
    check_codebook_fields,
    check_mask,
    check_vectors,
    filled,
    masked_mean_square,
    perplexity,
    wide,
    with_masked,
)
from vqvae2_fast.ops._checks import dtype_name
from vqvae2_fast.ops.vector_quantize.op import rotate_gradient

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn

    from vqvae2_fast.ops._batch_part import BatchPart

__all__ = ["VectorQuantizerEMA", "update_codebooks_"]


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
            again from a vector of the latest forward, with that mean as its count; of more such
            codes than vectors, as many as there are vectors. 0 restarts none.
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
        dropped. `torch.compile` makes one graph of a training step. Under transforms of
        `torch.func` use evaluation mode: PyTorch refuses the writes of training.
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
        **unknown: Any,
    ) -> None:
        super().__init__()
        if unknown:
            raise TypeError(
                f"expected no argument {', '.join(unknown)}. The number of codes is "
                "num_embeddings, their dimension embedding_dim; compat.lucidrains.VectorQuantize "
                "takes the names of vector-quantize-pytorch."
            )
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.commitment_cost = commitment_cost
        self.gradient = gradient
        check_codebook_fields(self)
        self.rule = Rule(
            decay=decay,
            epsilon=epsilon,
            init=init,
            ema_start=ema_start,
            restart=restart,
            update=update,
            seed=seed,
            stream=stream,
            metric=metric,
            quantize_after=quantize_after,
        )
        codebook = self.rule.on_sphere(
            initial_codebook(num_embeddings, embedding_dim, init=init, seed=seed, stream=stream)
        )
        self.register_buffer("codebook", codebook)
        self.register_buffer("cluster_size", torch.zeros(num_embeddings, dtype=codebook.dtype))
        self.register_buffer("embed_avg", torch.zeros(codebook.shape, dtype=codebook.dtype))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        register_flag(self, "initialised", init != "kmeans")
        self.averages.reset_(ema_start)
        self.pending = Batch(codebook)
        self.usage = torch.zeros((), dtype=torch.float32)
        self.phase = Phase()
        self._latest = LatestForward()
        self.register_load_state_dict_post_hook(_forget_old_state)  # type: ignore[no-untyped-call]

    def extra_repr(self) -> str:
        names = ("decay", "ema_start", "restart", "update", "metric", "quantize_after")
        shown = {name: getattr(self, name) for name in ("commitment_cost", "gradient")}
        shown |= {name: getattr(self.rule, name) for name in names}
        each = [f"{name}={value!r}" for name, value in shown.items()]
        return ", ".join([str(self.num_embeddings), str(self.embedding_dim), *each])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> VectorQuantizerEMA:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.pending.apply_(fn)
        return self

    @property
    def averages(self) -> Averages:
        """The buffers, which may be replaced at any time."""
        return Averages(
            self.codebook, self.cluster_size, self.embed_avg, self.steps, self.initialised
        )

    def forward(self, z: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Quantise vectors.

        Args:
            z: `[..., D]`, float32, bfloat16, float16 or float64.
            mask: bool `[...]`, True for the vectors that count. The others come back as they are,
                with index −1; nothing is learnt from them, and no loss or perplexity counts them.

        Returns:
            z_q: `[..., D]`, the codebook's rows in z's dtype, with the chosen gradient to z.
            indices: int64, `[...]`.
            loss: float32, 0-d: commitment_cost × mean((z − z_q)²), with "cosine" of z / ‖z‖.

        Raises:
            ValueError: The last size of z is not D, or mask is not `[...]`.
            TypeError: z is not floating, mask is not bool, or in training mode the codebook is not
                float32.
            RuntimeError: With update="forward": a checkpoint recomputes another forward than the
                latest, or one of several that it holds.
        """
        check_vectors(z, self.embedding_dim)
        check_mask(mask, z)
        with without_autocast(z.device):
            given, z = z, self.rule.on_sphere(filled(z, mask))
            if self.waits():
                indices = torch.zeros(z.shape[:-1], dtype=torch.int64, device=z.device)
                z_q, loss = z, z.new_zeros((), dtype=torch.float32)
            else:
                codebook = self.codebook_for_(z, mask)  # prepare
                z_q, indices, commitment = ops.vector_quantize(z, codebook)  # search
                if mask is not None:
                    commitment = masked_mean_square(wide(z) - codebook[indices], mask)
                if self.gradient == "rotation":  # gradient; otherwise straight-through
                    z_q = rotate_gradient(z, z_q)
                self.take_(z, indices, mask)  # statistics, moving averages, restarts
                loss = self.commitment_cost * commitment
        return *with_masked(z_q, indices, given, mask), loss

    def waits(self) -> bool:
        """Whether a training forward quantises nothing yet: see `quantize_after`."""
        return self.training and self._waits()

    def _waits(self) -> bool:
        return self.phase.waits(self.steps, self.initialised, self.rule.quantize_after)

    @torch.no_grad()
    def codebook_for_(self, z: Tensor, mask: Tensor | None = None) -> Tensor:
        """The codes `[K, D]` that a forward compares z with; in training k-means may start them.

        With `take_` this is what a forward does besides the search, for modules that search in
        another way.
        """
        if not self.training:
            return self.codebook
        recomputing = inside_backward()
        if not recomputing:
            self._check_dtype()
            self._start_from([z], [mask], [None])
        # With update "forward" the update comes before backward, but backward and a checkpoint's
        # recomputation need the codes that the forward used.
        if self.rule.update == "step":
            return self.codebook
        remedy = "use update='step' with a call of update_codebook_ after each step"
        latest = self._latest.recall(remedy) if recomputing else ()
        (codebook,) = latest or self._latest.keep(self.codebook)
        return codebook

    def _check_dtype(self) -> None:
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

    @torch.no_grad()
    def take_(self, z: Tensor, indices: Tensor, mask: Tensor | None = None) -> None:
        """Note the codes int64 `[...]` of vectors z `[..., D]`, as they were searched with; in
        training they enter the pending statistics."""
        if not self.training:
            self.note_use(indices if mask is None else indices.masked_fill(~mask, -1))
        elif not inside_backward():
            counts, sums = statistics_of(z, indices, mask, self.num_embeddings)
            self.learn_(self.lasting(z), counts, sums, mask)

    def lasting(self, z: Tensor) -> Tensor:
        """z `[..., D]` as it may be kept until the update: the caller may write to z before."""
        # Choosing the rows here instead takes 0.5 ms of Philox words, whatever N is; a copy of
        # 65,536 × 64 takes as long (one AVX-512 core), and a smaller one less.
        return z.clone() if self.rule.restart and self.rule.update == "step" else z

    @torch.no_grad()
    def learn_(self, z: Tensor, counts: Tensor, sums: Tensor, mask: Tensor | None = None) -> None:
        """Add the statistics of a forward's vectors z `[..., D]` to the pending ones.

        z is kept until the update, where the numbers of rows of all processes are known.
        """
        self.perplexity = perplexity(counts)
        self.pending.add_(counts, sums)
        if self.rule.restart:
            # The mask may be written again before the update, like z.
            kept = mask if mask is None or self.rule.update == "forward" else mask.clone()
            self.pending.keep(z, kept)
        if self.rule.update == "forward":
            self.update_codebook_()

    @torch.no_grad()
    def encode(self, z: Tensor) -> Tensor:
        """Only the indices, int64 `[...]`; takes no statistics in either mode."""
        check_vectors(z, self.embedding_dim)
        with without_autocast(z.device):
            return ops.nearest_code(self.rule.on_sphere(z), self.codebook)[0]

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
        self.codebook.copy_(self.rule.on_sphere(codebook))
        self.averages.reset_(self.rule.ema_start)
        if cluster_size is not None:
            self.cluster_size.copy_(cluster_size)
            self.embed_avg.copy_(self.codebook * self.cluster_size[:, None])
        if embed_avg is not None:
            self.embed_avg.copy_(embed_avg)
        self.pending.forget_(self.codebook.device)
        self.initialised.fill_(True)
        self.phase.end_wait()

    @torch.no_grad()
    def update_codebook_(self, statistics: Tensor | None = None) -> None:
        """Move the codebook by the pending statistics of all processes, and restart unused codes.

        Vectors for restarts are those of the latest forward, or, inside `batch_part`, of all parts
        of the batch. This only counts the updates while `quantize_after` holds, and does nothing
        before a codebook that starts by k-means has seen its first vectors.

        Args:
            statistics: `statistics()`, already summed over the processes.
        """
        if not self.training:
            return
        if self.waits():
            self.steps += 1
            self.phase.read_wait(self.steps, self.initialised, self.rule.quantize_after)
            return
        self.usage = move_codebook_(
            *self.pending.seen(),
            self.pending.counts,
            self.pending.sums,
            statistics,
            list(self.averages),
            self.phase.settled,
            **vars(self.rule),
        )
        self.pending.forget_(self.codebook.device)

    def has_statistics(self) -> bool:
        """Whether the coming update needs statistics: it is in training mode, it quantises, and its
        codebook has started.

        The same on all processes of a group.
        """
        return self.training and not self.waits() and self.phase.has_started(self.initialised)

    def statistics(self) -> Tensor:
        """What the coming update sums over the processes, flat; only of parts of a known batch."""
        vectors, batch = self.pending.seen(), self.pending
        spans = vectors.spans() if self.rule.restart else []
        return packed_statistics(
            vectors, batch.counts, batch.sums, spans, self.steps + 1, self.rule
        )

    @property
    def knows_its_part(self) -> bool:
        """Whether the pending vectors, if needed, are parts of a batch of known size."""
        return self.pending.vectors.total >= 0 or not self.rule.restart

    @torch.no_grad()
    def start_(self, vectors: list[Tensor], parts: list[BatchPart]) -> None:
        """Start a codebook by k-means from several parts of a batch; later do nothing.

        Args:
            vectors: z of each part, `[B, ..., D]`.
        """
        rows = [self.rule.on_sphere(z) for z in vectors]
        self._start_from(rows, [None] * len(rows), parts)

    def must_start(self) -> bool:
        """Whether the next training forward starts the codebook by k-means."""
        return not self._waits() and not self.phase.has_started(self.initialised)

    def _start_from(
        self,
        vectors: list[Tensor],
        masks: Sequence[Tensor | None],
        parts: Sequence[BatchPart | None],
    ) -> None:
        seen = NO_VECTORS
        for z, mask, part in zip(vectors, masks, parts, strict=True):
            seen = seen.and_part(z, mask, part)
        self.phase.look_at(self.initialised)
        start_codebook_(*seen, list(self.averages), self.phase.settled, **vars(self.rule))


def _of_rule(name: str) -> property:
    def get(quantizer: VectorQuantizerEMA) -> Any:
        return getattr(quantizer.rule, name)

    def put(quantizer: VectorQuantizerEMA, value: Any) -> None:
        quantizer.rule = replace(quantizer.rule, **{name: value})

    return property(get, put)


# `quantizer.decay = 0.9` changes the rule, which checks it.
for _field in fields(Rule):
    setattr(VectorQuantizerEMA, _field.name, _of_rule(_field.name))


def _forget_old_state(quantizer: nn.Module, _incompatible_keys: object) -> None:
    assert isinstance(quantizer, VectorQuantizerEMA)
    quantizer.phase.forget()
    quantizer.pending.forget_(quantizer.codebook.device)
    quantizer._waits()


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
        quantizer.update_codebook_(statistics.get(quantizer))
