"""What the residual forms of vector-quantize-pytorch share: dropout, and codes of indices.

Letters: B batch, Q quantisers, K codes, D codebook_dim.
"""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqvae2_fast.modules.batch import all_reduce_
from vqvae2_fast.modules.host import reading_synchronises
from vqvae2_fast.modules.index_range import may_read

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Grouped", "Residual", "dropout_seed"]


def dropout_seed(device: torch.device) -> int:
    """A seed that all processes have, drawn as the package draws it."""
    seed = torch.randint(0, 10_000, (), device=device)
    all_reduce_(seed)
    return int(seed)


class Residual(nn.Module):
    """Quantisers in a row, `layers`, with quantiser dropout in training.

    Args:
        quantize_dropout: Use a random number of quantisers in each training forward.
        quantize_dropout_cutoff_index: Last quantiser that is always used.
        quantize_dropout_multiple_of: The number used is a multiple of this.
    """

    layers: nn.ModuleList
    project_out: nn.Module

    def __init__(
        self,
        num_quantizers: int,
        quantize_dropout: bool,
        quantize_dropout_cutoff_index: int,
        quantize_dropout_multiple_of: int,
    ) -> None:
        super().__init__()
        cutoff = quantize_dropout_cutoff_index
        self.quantize_dropout = quantize_dropout and num_quantizers > 1
        if cutoff < 0 or (self.quantize_dropout and cutoff >= num_quantizers):
            raise ValueError(
                f"expected quantize_dropout_cutoff_index in 0..{num_quantizers - 1}, got {cutoff}."
            )
        self.num_quantizers = num_quantizers
        self.quantize_dropout_cutoff_index = cutoff
        self.quantize_dropout_multiple_of = quantize_dropout_multiple_of

    @property
    def codebooks(self) -> Any:
        """The codes of all quantisers, `[Q, K, D]`, or a tuple where K differs."""
        raise NotImplementedError

    def _number_in_use(self, drops: bool, seed: int | None, device: torch.device) -> int:
        """How many quantisers this forward uses, the first ones."""
        if not drops:
            return self.num_quantizers
        if torch.compiler.is_compiling():
            # Each number of quantisers is a graph of its own, and only a call knows which.
            torch._dynamo.graph_break(
                msg="quantize_dropout draws how many quantisers a training step uses, outside of "
                "graphs: leave fullgraph=True out, or compile without quantize_dropout."
            )
        chosen = random.Random(dropout_seed(device) if seed is None else seed)
        index = chosen.randrange(self.quantize_dropout_cutoff_index, self.num_quantizers)
        multiple = self.quantize_dropout_multiple_of
        return min(math.ceil((index + 1) / multiple) * multiple, self.num_quantizers)

    def get_codes_from_indices(self, indices: Tensor) -> Tensor:
        """The codes of each quantiser, `[Q, B, ..., D]`; zeros where an index is −1.

        Args:
            indices: `[B, ..., Q]`, or fewer quantisers, if it was trained with quantize_dropout.

        Raises:
            ValueError: Too few or too many quantisers, or, on a CPU, an index below -1.
        """
        missing = self.num_quantizers - indices.shape[-1]
        if missing < 0:
            raise ValueError(
                "expected indices [B, ..., Q] of at most "
                f"{self.num_quantizers} quantisers, got {list(indices.shape)}."
            )
        if missing and not self.quantize_dropout:
            raise ValueError(
                f"expected indices [B, ..., {self.num_quantizers}], got "
                f"{list(indices.shape)}: only a quantiser with quantize_dropout does with fewer."
            )
        # On a GPU the host would have to wait.
        if may_read(indices) and not reading_synchronises(indices) and bool((indices < -1).any()):
            raise ValueError(f"expected indices from 0, or -1 for none, got {int(indices.min())}.")
        indices = F.pad(indices, (0, missing), value=-1)
        codes = []
        for codebook, index in zip(self.codebooks, indices.unbind(-1), strict=True):
            none = index == -1
            # Unlike codebook[...], this takes no index below 0 on a GPU either.
            rows = F.embedding(index.masked_fill(none, 0).long(), codebook)
            codes.append(rows.masked_fill(none[..., None], 0.0))
        return torch.stack(codes)

    def get_output_from_indices(self, indices: Tensor) -> Tensor:
        """The codes of these indices, added up and projected out, channels last.

        With `orthogonal_rotation` or `spherical` this is not what `forward` returns: as in the
        package, the rotations and the scale are left out. Otherwise it is, in evaluation.
        """
        output: Tensor = self.project_out(self.get_codes_from_indices(indices).sum(0))
        return output


class Grouped(nn.Module):
    """A residual quantiser `rvqs` for each of equal groups of channels.

    Args:
        groups: How many; they divide dim.
        accept_image_fmap: Channels are dimension 1 instead of the last.
    """

    def __init__(self, dim: int, groups: int, accept_image_fmap: bool) -> None:
        super().__init__()
        if groups < 1 or dim % groups:
            raise ValueError(f"expected groups to divide dim={dim}, got {groups}.")
        self.dim = dim
        self.groups = groups
        self.accept_image_fmap = accept_image_fmap
        self.rvqs = nn.ModuleList()

    @property
    def codebooks(self) -> Tensor:
        """`[groups, Q, K, D]`."""
        return torch.stack([rvq.codebooks for rvq in self._own()])

    @property
    def split_dim(self) -> int:
        """The dimension of the channels."""
        return 1 if self.accept_image_fmap else -1

    def get_codes_from_indices(self, indices: Sequence[Tensor]) -> Tensor:
        """Indices `[groups, B, ..., Q]` -> `[groups, Q, B, ..., D]`."""
        each = zip(self._own(), indices, strict=True)
        return torch.stack([rvq.get_codes_from_indices(part) for rvq, part in each])

    def get_output_from_indices(self, indices: Sequence[Tensor]) -> Tensor:
        """As of `Residual`, for indices `[groups, B, ..., Q]`; channels come last.

        The package joins the groups of a map along its height.
        """
        each = zip(self._own(), indices, strict=True)
        parts = [rvq.get_output_from_indices(part) for rvq, part in each]
        return torch.cat(parts, dim=-1)

    def _own(self) -> list[Residual]:
        return [cast("Residual", rvq) for rvq in self.rvqs]

    def _split(self, x: Tensor) -> tuple[Tensor, ...]:
        if x.shape[self.split_dim] != self.dim:
            raise ValueError(
                f"expected dim={self.dim} channels in dimension "
                f"{self.split_dim}, got x {list(x.shape)}."
            )
        return x.chunk(self.groups, dim=self.split_dim)

    def _quantised(self, x: Tensor, stacked: int, **call: Any) -> tuple[Any, ...]:
        """`_joined` results of all groups, in which dropout leaves out as many quantisers."""
        parts, seed = self._split(x), self._seed(x.device)
        each = zip(self.rvqs, parts, strict=True)
        results = [rvq(part, rand_quantize_dropout_fixed_seed=seed, **call) for rvq, part in each]
        return self._joined(results, stacked)

    def _joined(self, results: Sequence[tuple[Tensor, ...]], stacked: int) -> tuple[Any, ...]:
        """Quantised channels side by side, the next `stacked` results stacked, the others apart."""
        quantized, *others = zip(*results, strict=True)
        together = [torch.stack(parts) for parts in others[:stacked]]
        return (torch.cat(quantized, dim=self.split_dim), *together, *others[stacked:])

    def _seed(self, device: torch.device) -> int | None:
        # The package draws it even where nothing is dropped.
        return dropout_seed(device) if self.training else None
