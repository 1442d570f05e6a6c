"""Residual quantisation of a map over scales: coarse cells first, then what they leave over.

Sizes: B maps, S scales, T cells of all scales together, K codes, D embedding_dim, H, W of a map.
"""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqvae2_fast import ops
from vqvae2_fast.files.kinds import check_field, integer, number, one_of
from vqvae2_fast.modules.averages import RULE, start_codebook_, to_start
from vqvae2_fast.modules.contexts import without_autocast
from vqvae2_fast.modules.host import inside_backward, outside_graphs
from vqvae2_fast.modules.index_range import check_indices
from vqvae2_fast.modules.quantizer import VectorQuantizerEMA
from vqvae2_fast.modules.quantizer_interface import (
    Quantizer,
    check_vectors,
    may_keep_tensors,
    perplexity_of,
    wide,
)
from vqvae2_fast.ops.patch_conv2d.op import conv_in_one_order
from vqvae2_fast.ops.vector_quantize.op import rotate_gradient, straight_through

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vqvae2_fast.ops._batch_part import BatchPart

__all__ = ["MultiScaleVQ"]

Upsample = Literal["bicubic", "bilinear"]


class _Pyramid(NamedTuple):
    """How a map is reduced to the cells of a scale, and how their codes become a map again.

    Attributes:
        scales: Height and width of each, the last one the map's.
        upsample: Mode of `F.interpolate`.
        phi: Weight and bias of each convolution, one after another; [] without.
        phi_ratio: Share of the convolution in what it returns.
    """

    scales: list[tuple[int, int]]
    upsample: str
    phi: list[Tensor]
    phi_ratio: float

    def cells(self, left: Tensor, scale: int) -> Tensor:
        """Means of the map `[B, D, H, W]` over the cells of a scale, `[B, h·w, D]`."""
        if scale < len(self.scales) - 1:
            left = F.adaptive_avg_pool2d(left, self.scales[scale])
        return left.permute(0, 2, 3, 1).flatten(1, 2)

    def spread(self, codes: Tensor, scale: int) -> Tensor:
        """The map `[B, D, H, W]` of the codes `[B, h·w, D]` of a scale."""
        rows = wide(codes).unflatten(1, self.scales[scale])
        if scale < len(self.scales) - 1:
            height, width = self.scales[-1]
            rows = _stretched(_stretched(rows, 1, height, self.upsample), 2, width, self.upsample)
        maps = rows.permute(0, 3, 1, 2)
        if self.phi:
            chosen = 2 * _nearest_tick(scale, len(self.scales), len(self.phi) // 2)
            weight, bias = self.phi[chosen : chosen + 2]
            maps = maps.to(weight.dtype)
            convolved = conv_in_one_order(maps, weight, bias)
            maps = maps * (1 - self.phi_ratio) + convolved * self.phi_ratio
        return wide(maps)


def _taps(source: int, size: int, upsample: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Which of `source` values each of `size` mixes, int64, and their shares, both `[size, taps]`:
    those of `F.interpolate`."""
    first, taps = (0, 2) if upsample == "bilinear" else (-1, 4)
    at = (torch.arange(size, dtype=torch.float32, device=device) + 0.5) * (source / size) - 0.5
    at = at.clamp(min=0) if upsample == "bilinear" else at
    places = at.floor()[:, None] + torch.arange(first, first + taps, device=device)
    far = (at[:, None] - places).abs()
    shares = 1 - far
    if upsample == "bicubic":  # Keys' kernel with a = −3/4
        outer = ((-0.75 * far + 3.75) * far - 6) * far + 3
        shares = torch.where(far <= 1, (1.25 * far - 2.25) * far * far + 1, outer)
    return places.long().clamp(0, source - 1), shares


def _stretched(rows: Tensor, dim: int, size: int, upsample: str) -> Tensor:
    """Rows `[B, h, w, D]` with another size in a dimension, as by `F.interpolate` of maps.

    PyTorch's bicubic kernel takes ten times as long on a CPU, and compilers, which take it apart,
    eight minutes for ten scales. The sum of a row does not depend on the batch or on threads.
    """
    places, shares = _taps(rows.shape[dim], size, upsample, rows.device)
    numbers = torch.arange(rows[..., 0].numel(), device=rows.device).view(rows.shape[:-1])
    taken = [numbers.index_select(dim, place) for place in places.unbind(1)]
    each = torch.stack(taken, -1)  # [B, H, w, taps]
    shares = (shares[:, None] if dim == 1 else shares).to(rows.dtype).expand(each.shape)
    sums = F.embedding_bag(
        each.flatten(0, 2),
        rows.flatten(0, 2),
        per_sample_weights=shares.flatten(0, 2),
        mode="sum",
    )
    return sums.view(*each.shape[:-1], rows.shape[-1])


def _nearest_tick(scale: int, scales: int, count: int) -> int:
    """Which of the convolutions a scale uses, as in the code of https://arxiv.org/abs/2404.02905.

    They stand at equal distances in 0..1, where scale s stands at s / (S − 1). Some scales are as
    far from one as from the next, so the arithmetic is that of `numpy.linspace`.
    """
    first = 1 / 3 / count if count == 4 else 1 / 2 / count
    step = (1 - first - first) / max(count - 1, 1)
    ticks = [first + step * number for number in range(count - 1)] + [1 - first]
    position = scale / max(scales - 1, 1)
    return min(range(count), key=lambda number: abs(ticks[number] - position))


class MultiScaleVQ(Quantizer):
    """The tokens of VAR: a map as codes of 1×1 cells, 2×2 cells, ... , the map's own size.

    Algorithm 1 of https://arxiv.org/abs/2404.02905. With r_0 = z, scale s takes the means of r_s
    over its cells, finds their nearest codes exactly, spreads these over the map and subtracts
    them: r_{s+1} = r_s − φ_s(upsample(e_s)). z_q is the sum of what was subtracted. The codebook
    follows the cells by moving averages, as `VectorQuantizerEMA` says, with statistics of all
    scales in one pass. k-means starts a shared codebook from the cells of all scales, each reduced
    by the coarser ones as if they had been coded exactly: a batch has few cells of 1×1.

    Args:
        num_embeddings: K.
        embedding_dim: D.
        scales: Side of the cells' grid of each scale, or its height and width, coarse to fine: none
            smaller than the one before, and the last one the size of the maps. VAR has (1, 2, 3, 4,
            5, 6, 8, 10, 13, 16).
        commitment_cost: β.
        shared_codebook: All scales use one codebook, as in VAR. Otherwise each has its own.
        num_phi: Number of convolutions φ, 3×3, each shared by the scales nearest to it; the
            optimiser learns them. VAR has 4. 0 is none.
        phi_ratio: φ(x) = (1 − ratio)·x + ratio·conv(x).
        upsample: "bicubic" as in VAR, or "bilinear", for which PyTorch takes a twentieth of the
            time.
        gradient, update, seed, stream and others: As of `VectorQuantizerEMA`, of each codebook.

    Raises:
        ValueError: Scales that do not grow; a metric other than "euclidean"; or as
            `VectorQuantizerEMA`.

    Note:
        z_q has one straight-through gradient (or rotation) to z and none to φ, which the loss
        moves. `HierarchicalVQ` of vector-quantize-pytorch gives the same indices and z_q in
        evaluation with "bilinear", equal codebooks and one φ or none. It trains differently: its
        shared codebook moves after each scale and starts by k-means of the first scale's cells,
        its gradient to φ comes through z_q, and its loss compares cells with their codes.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        scales: Sequence[int | tuple[int, int]],
        commitment_cost: float = 0.25,
        shared_codebook: bool = True,
        num_phi: int = 0,
        phi_ratio: float = 0.5,
        upsample: Upsample = "bicubic",
        seed: int = 0,
        stream: int = 0,
        **others: Any,
    ) -> None:
        super().__init__()
        self.scales = _checked_scales(scales)
        if others.get("metric", "euclidean") != "euclidean":
            raise ValueError(
                f"expected metric='euclidean', got {others['metric']!r}: what codes of "
                "length one leave over does not shrink."
            )
        check_field("num_phi", num_phi, integer(0, len(self.scales)))
        check_field("phi_ratio", phi_ratio, number(0, 1))
        check_field("upsample", upsample, one_of(("bicubic", "bilinear")))
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.commitment_cost = commitment_cost
        self.shared_codebook = shared_codebook
        self.phi_ratio = phi_ratio
        self.upsample = upsample
        self.gradient = others.get("gradient", "straight_through")
        self.sizes = (num_embeddings,) * len(self.scales)
        self.quantizers = nn.ModuleList(
            VectorQuantizerEMA(
                num_embeddings,
                embedding_dim,
                commitment_cost=commitment_cost,
                seed=seed,
                stream=stream + (number << 8),
                **others,
            )
            for number in range(1 if shared_codebook else len(self.scales))
        )
        self.phi = nn.ModuleList(
            nn.Conv2d(embedding_dim, embedding_dim, 3, padding=1) for _ in range(num_phi)
        )

    def extra_repr(self) -> str:
        scales = ", ".join(f"{height}x{width}" for height, width in self.scales)
        return (
            f"{self.num_embeddings}, {self.embedding_dim}, scales={scales}, "
            f"shared_codebook={self.shared_codebook}, upsample={self.upsample!r}"
        )

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quantise maps.

        Args:
            z: `[..., H, W, D]`, floating; H, W the last of `scales`.

        Returns:
            z_q: `[..., H, W, D]`, the sum over scales in z's dtype, with the chosen gradient to z.
            indices: int64 `[..., T]`: the codes of all scales, coarse to fine, each in raster
                order. `maps` gives those of each scale.
            loss: float32, 0-d: commitment_cost × mean over s of mean((z − sg[ẑ_s])²), where ẑ_s is
                the sum of the first s scales; with φ also the mean of mean((sg[z] − ẑ_s)²).

        Raises:
            ValueError, TypeError: z is not `[..., H, W, D]` or not floating.
        """
        maps = self._maps(z)
        with without_autocast(z.device):
            left = wide(maps).detach()
            if self._codebook(0).waits():
                length = sum(self._lengths)
                indices = torch.zeros(len(left), length, dtype=torch.int64, device=z.device)
                z_q, loss = z, z.new_zeros((), dtype=torch.float32)
            else:
                codebooks = self._codebooks_for_(left)
                rows, found = [], []
                squares, around = left.new_zeros(()), torch.zeros_like(left)
                total = torch.zeros_like(left)
                count = max(left.numel(), 1) * len(self.scales)
                for cells, index, part, rest in self._scales_of(left, codebooks):
                    rows.append(cells)
                    found.append(index)
                    total = total + part.detach()
                    squares = squares + rest.square().sum()
                    around = around + rest.detach() / len(self.scales)
                indices = torch.cat(found, 1)  # [B, T]
                self._take_(torch.cat(rows, 1), indices)
                # Σ_s (z − ẑ_s)² and S·(z − their mean)² have the same derivatives in z.
                numbers = wide(maps)
                shifted = (numbers - numbers.detach() + around).square().sum()
                shifted = shifted * (len(self.scales) / count)
                squares = squares / count
                commitment = squares.detach() + (shifted - shifted.detach())
                loss = self.commitment_cost * commitment
                if self.phi:
                    loss = loss + squares
                loss = loss.float()
                z_q = total.permute(0, 2, 3, 1).reshape(z.shape)
                if self.gradient == "rotation":
                    z_q = rotate_gradient(z, z_q.to(z.dtype))
                else:
                    z_q = straight_through(z, z_q)
        return z_q, indices.view(*z.shape[:-3], indices.shape[1]), loss

    @torch.no_grad()
    def encode(self, z: Tensor) -> Tensor:
        """Only the indices, int64 `[..., T]`: the first scales' are those of the coarse cells."""
        maps = self._maps(z)
        with without_autocast(z.device):
            codebooks = [book.codebook for book in self._codebooks()]
            found = [index for _, index, *_ in self._scales_of(wide(maps), codebooks)]
            return torch.cat(found, 1).view(*z.shape[:-3], sum(self._lengths))

    def lookup(self, indices: Tensor) -> Tensor:
        """The maps `[..., H, W, D]` of indices int64 `[..., T]`.

        Indices of only the first scales give the sum of these, a coarser reconstruction.
        """
        check_indices(indices, self.num_embeddings)
        pyramid, total = self._pyramid(), None
        each = self.maps(indices)
        with without_autocast(indices.device):
            for scale, (index, book) in enumerate(zip(each, self._codebooks(), strict=False)):
                codes = book.codebook[index.reshape(-1, self._lengths[scale])]
                part = pyramid.spread(codes, scale)
                total = part if total is None else total + part
        assert total is not None
        out = total.permute(0, 2, 3, 1)
        return out.reshape(*indices.shape[:-1], *out.shape[1:])

    def maps(self, indices: Tensor) -> list[Tensor]:
        """Indices `[..., T]`, or those of the first scales, as a map `[..., h, w]` of each scale.

        `torch.cat([each.flatten(-2) for each in maps], -1)` is the sequence again.
        """
        ends = list(accumulate(self._lengths))
        length = indices.shape[-1] if indices.dim() else 0
        if length not in ends:
            raise ValueError(
                f"expected indices [..., T] with T one of {', '.join(map(str, ends))}, which end "
                f"with a scale, got {list(indices.shape)}."
            )
        count = ends.index(length) + 1
        parts = indices.split(self._lengths[:count], -1)
        return [part.unflatten(-1, scale) for part, scale in zip(parts, self.scales, strict=False)]

    def must_start(self) -> bool:
        return any(book.must_start() for book in self._codebooks())

    @torch.no_grad()
    def start_(self, vectors: list[Tensor], parts: list[BatchPart]) -> None:
        lefts = [wide(self._maps(z)) for z in vectors]
        pyramid = self._pyramid()
        if self.shared_codebook:
            self._codebook(0).start_([_cells_coded_exactly(left, pyramid) for left in lefts], parts)
            return
        for scale, book in enumerate(self._codebooks()):
            cells = [pyramid.cells(left, scale) for left in lefts]
            book.start_(cells, parts)
            spread = [pyramid.spread(book.lookup(book.encode(rows)), scale) for rows in cells]
            lefts = [left - part for left, part in zip(lefts, spread, strict=True)]

    @property
    def _lengths(self) -> list[int]:
        return [height * width for height, width in self.scales]

    def _codebook(self, scale: int) -> VectorQuantizerEMA:
        return cast("VectorQuantizerEMA", self.quantizers[0 if self.shared_codebook else scale])

    def _codebooks(self) -> Iterator[VectorQuantizerEMA]:
        """The codebook of each scale."""
        return map(self._codebook, range(len(self.scales)))

    def _pyramid(self) -> _Pyramid:
        phi = [tensor for layer in self.phi for tensor in (layer.weight, layer.bias)]
        return _Pyramid(self.scales, self.upsample, cast("list[Tensor]", phi), self.phi_ratio)

    def _maps(self, z: Tensor) -> Tensor:
        """z as `[B, D, H, W]`."""
        check_vectors(z, self.embedding_dim)
        height, width = self.scales[-1]
        if z.dim() < 3 or z.shape[-3:-1] != (height, width):
            raise ValueError(
                f"expected z [..., H, W, D] with H={height} and W={width}, the last of scales, "
                f"got {list(z.shape)}."
            )
        return z.reshape(-1, *z.shape[-3:]).permute(0, 3, 1, 2)

    def _scales_of(
        self, left: Tensor, codebooks: Sequence[Tensor]
    ) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Of each scale the cells `[B, h·w, D]`, their indices `[B, h·w]`, what these subtract and
        what is left, both `[B, D, H, W]`."""
        pyramid = self._pyramid()
        for scale, codebook in enumerate(codebooks):
            cells = pyramid.cells(left.detach(), scale)
            index = ops.nearest_code(cells, codebook)[0]
            part = pyramid.spread(codebook[index], scale)
            left = left - part
            yield cells, index, part, left

    @torch.no_grad()
    def _codebooks_for_(self, left: Tensor) -> list[Tensor]:
        """What this forward searches, of each scale; in training k-means may start it."""
        own = [cast("VectorQuantizerEMA", book) for book in self.quantizers]
        pyramid = self._pyramid()
        if self.training and not inside_backward():
            for book in own:
                book.phase.look_at(book.initialised)
            start_scales_(
                left,
                [side for scale in self.scales for side in scale],
                *pyramid[1:],
                [tensor for book in own for tensor in book.averages],
                [book.phase.settled for book in own],
                [book.rule.stream for book in own],
                **vars(own[0].rule),
            )
        rows = pyramid.cells(left, len(self.scales) - 1)
        codebooks = [book.codebook_for_(rows) for book in own]
        return codebooks * len(self.scales) if self.shared_codebook else codebooks

    @torch.no_grad()
    def _take_(self, rows: Tensor, indices: Tensor) -> None:
        """Note cells `[B, T, D]` and codes `[B, T]`; in training they enter the statistics."""
        if self.training and not inside_backward():
            books = [cast("VectorQuantizerEMA", book) for book in self.quantizers]
            codes = [book.num_embeddings for book in books]
            numbers = indices
            if not self.shared_codebook:
                # Codes of all scales counted through, so that one pass takes them all.
                numbers = torch.cat(
                    [
                        part + scale * self.num_embeddings
                        for scale, part in enumerate(indices.split(self._lengths, 1))
                    ],
                    1,
                )
            counts, sums = ops.code_statistics(rows, numbers, sum(codes))
            seen = [rows] if self.shared_codebook else rows.split(self._lengths, 1)
            each = zip(books, seen, counts.split(codes), sums.split(codes), strict=True)
            for book, cells, own_counts, own_sums in each:
                book.learn_(cells, own_counts, own_sums)
        if self.shared_codebook:
            self.note_use(indices)
        elif may_keep_tensors():
            parts = indices.split(self._lengths, 1)
            uses = [perplexity_of(part, self.num_embeddings) for part in parts]
            self.perplexity = torch.stack(uses).mean()


def _cells_coded_exactly(left: Tensor, pyramid: _Pyramid) -> Tensor:
    """Cells `[B, T, D]` of all scales, each reduced by the coarser ones without a code's error."""
    rows = []
    for scale in range(len(pyramid.scales)):
        rows.append(pyramid.cells(left, scale))
        left = left - pyramid.spread(rows[-1], scale)
    return torch.cat(rows, 1)


@outside_graphs(
    "(Tensor left, int[] sides, str upsample, Tensor[] phi, float phi_ratio, "
    f"Tensor(a!)[] averages, Tensor(b!)[] settled, int[] streams, *, {RULE}) -> ()",
    fake=lambda *_, **__: None,
)
@torch.no_grad()
def start_scales_(
    left: Tensor,
    sides: list[int],
    upsample: str,
    phi: list[Tensor],
    phi_ratio: float,
    averages: list[Tensor],
    settled: list[Tensor],
    streams: list[int],
    **options: Any,
) -> None:
    """`start_codebook_` of a shared codebook, or of that of each scale on what the coarser leave.

    Args:
        left: `[B, D, H, W]`.
        sides: Height and width of each scale, one after another.
        upsample, phi, phi_ratio: `_Pyramid`.
        averages: `Averages` of each codebook, one after another.
        streams: Of each codebook; the rest of its rule is `options`.
    """
    if not (each := to_start(averages, settled)):
        return
    pyramid = _Pyramid(list(zip(sides[::2], sides[1::2], strict=True)), upsample, phi, phi_ratio)
    if len(each) == 1:
        rows = _cells_coded_exactly(left, pyramid).flatten(0, 1)
        start_codebook_([rows], [], [], -1, averages, settled[0], **options)
        return
    for scale, (own, flag, stream) in enumerate(zip(each, settled, streams, strict=True)):
        cells = pyramid.cells(left, scale)
        rows = cells.flatten(0, 1)
        start_codebook_([rows], [], [], -1, list(own), flag, **options | {"stream": stream})
        codes = own.codebook[ops.nearest_code(cells, own.codebook)[0]]
        left = left - pyramid.spread(codes, scale)


def _checked_scales(scales: Sequence[int | tuple[int, int]]) -> list[tuple[int, int]]:
    """Height and width of each scale."""
    pairs = [(scale, scale) if isinstance(scale, int) else tuple(scale) for scale in scales]
    grows = all(
        one != two and one[0] <= two[0] and one[1] <= two[1] for one, two in pairwise(pairs)
    )
    if not pairs or not grows or min(map(min, pairs)) < 1 or {len(pair) for pair in pairs} != {2}:
        raise ValueError(
            "expected scales that grow, each a side or a height and a width >= 1, got "
            f"{list(scales)}. The last one is the size of the maps."
        )
    return cast("list[tuple[int, int]]", pairs)
