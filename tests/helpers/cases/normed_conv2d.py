"""Cases of `normed_conv2d`: all kernel sizes and placements, tiles cut by the map's edges."""

from __future__ import annotations

from typing import Any

import torch

from helpers.cases import Case, like, randn, values
from vqvae2_fast import ops
from vqvae2_fast.ops.causal_conv2d.op import placement
from vqvae2_fast.ops.normed_conv2d.op import factor, normed_conv2d

__all__ = ["CASES", "ERRORS", "PRIVATE_CASES", "WINOGRAD_LOSS"]

# Winograd's tiles lose more in their sums than direct convolution: see the operator's README.
WINOGRAD_LOSS = 12


def arguments(
    g: torch.Generator,
    mask: str,
    kernel: int,
    size: tuple[int, int],
    *,
    batch: int = 2,
    inputs: int = 16,
    outputs: int = 32,
    normed: bool = True,
    bias: bool = True,
    dtype: torch.dtype = torch.float32,
    elu: bool = False,
    dropout_p: float = 0.0,
    rounded: bool = False,
) -> tuple[Any, ...]:
    # Rounding leaves these as they are: others, rounded after the last bit of ELU or of the norm
    # differed, would differ by much more than the sums.
    x = factor(randn(g, batch, inputs, *size, dtype=dtype), rounded)
    v = factor(randn(g, outputs, inputs, kernel, kernel, dtype=dtype), rounded)
    scale = 0.5 + randn(g, outputs, 1, 1, 1, dtype=dtype).abs() if normed else None
    added = randn(g, outputs, dtype=dtype) if bias else None
    seed = torch.tensor(-7) if dropout_p else None
    return (x, v, scale, added, *placement(mask, kernel, kernel), elu, dropout_p, seed, rounded)


def _rounded_case(name: str, *sizes: Any, **options: Any) -> Case:
    """Without gradients: those of the reference's forward are of factors that are not rounded."""
    return Case(
        name,
        lambda g: arguments(g, *sizes, normed=False, rounded=True, **options),
        batched=(0,),
    )


def _case(name: str, *sizes: Any, **options: Any) -> Case:
    gradients = tuple(i for i in range(4) if i < 2 or options.get(("normed", "bias")[i - 2], True))
    return Case(
        name,
        lambda g: arguments(g, *sizes, **options),
        gradients=gradients,
        batched=(0,),
        loosening=1 if sizes[1] == 1 else WINOGRAD_LOSS,
    )


CASES = [
    *(_case(f"{mask}_3x3", mask, 3, (6, 7)) for mask in ("exclude", "include", "down", "same")),
    *(_case(f"{mask}_5x5", mask, 5, (9, 5)) for mask in ("exclude", "downright", "same")),
    _case("smaller_than_a_tile", "include", 5, (2, 3)),
    _case("whole_tiles", "include", 3, (8, 8), inputs=32, outputs=16),
    # More tiles than a block holds, in one image and in total; channels that do not fill a panel.
    _case("many_tiles_3x3", "include", 3, (30, 32), batch=3, inputs=16, outputs=48),
    _case("many_tiles_5x5", "exclude", 5, (32, 29), inputs=48, outputs=16, elu=True),
    _case("half_vectors", "include", 3, (30, 31), inputs=24, outputs=40),
    _case("half_vectors_5x5", "same", 5, (9, 6), inputs=40, outputs=8, elu=True, dropout_p=0.1),
    _case("not_normed", "exclude", 5, (6, 6), normed=False),
    _case("after_elu", "include", 3, (6, 7), elu=True),
    _case("after_dropout", "include", 3, (6, 7), inputs=80, dropout_p=0.3),
    _case("after_elu_and_dropout", "exclude", 5, (5, 6), elu=True, dropout_p=0.1),
    _case("no_bias", "same", 3, (5, 4), bias=False),
    _case("no_images", "include", 3, (4, 4), batch=0),
    _case("pointwise", "same", 1, (5, 7), inputs=13, outputs=35),
    _case("pointwise_not_normed", "same", 1, (6, 9), normed=False, bias=False),
    _case("pointwise_wide", "same", 1, (3, 5), inputs=130, outputs=66),
    _case("pointwise_dropout", "same", 1, (9, 6), inputs=66, outputs=19, elu=True, dropout_p=0.2),
    _case("pointwise_no_images", "same", 1, (4, 4), batch=0),
    _case("odd_channels", "include", 3, (4, 4), inputs=3, outputs=5),
    _case("float64", "exclude", 3, (4, 4), dtype=torch.float64),
    *(
        _rounded_case(f"rounded_{mask}", mask, 3, (6, 7), inputs=35, outputs=21)
        for mask in ("exclude", "include", "down", "downright", "same")
    ),
    _rounded_case("rounded_row_tiles", "include", 3, (3, 32), inputs=64, outputs=48),
    _rounded_case("rounded_row_and_rest", "include", 3, (5, 20), inputs=16, outputs=40),
    _rounded_case("rounded_5x5", "exclude", 5, (9, 5), inputs=80, bias=False),
    _rounded_case("rounded_dropout", "include", 3, (6, 7), inputs=80, dropout_p=0.5),
    _rounded_case("rounded_pointwise", "same", 1, (5, 7), inputs=130, outputs=19),
    _rounded_case("rounded_one_position", "same", 3, (1, 1), batch=1),
    _rounded_case("rounded_no_images", "include", 3, (4, 4), batch=0),
]


def _backward_case(
    name: str, mask: str, kernel: int, size: tuple[int, int], **options: Any
) -> Case:
    def make(g: torch.Generator) -> tuple[Any, ...]:
        x, v, scale, _, *place = arguments(g, mask, kernel, size, **options)
        dy = randn(g, len(x), len(v), *size, dtype=options.get("dtype", torch.float32))
        return factor(dy, rounded), x, v, scale, *place

    rounded = options.get("rounded", False)
    return Case(name, make, loosening=1 if kernel == 1 or rounded else WINOGRAD_LOSS)


PRIVATE_CASES = {
    "normed_conv2d_backward": [
        _backward_case("exclude_3x3", "exclude", 3, (6, 7)),
        _backward_case("down_5x5", "down", 5, (9, 5)),
        _backward_case("many_channels", "same", 3, (4, 9), inputs=80, outputs=16),
        _backward_case("half_vectors", "same", 3, (30, 31), inputs=24, outputs=40),
        _backward_case("not_normed", "include", 5, (6, 6), normed=False),
        _backward_case("after_elu", "include", 3, (6, 7), elu=True),
        _backward_case(
            "after_elu_and_dropout", "exclude", 5, (5, 6), inputs=80, elu=True, dropout_p=0.1
        ),
        _backward_case("pointwise", "same", 1, (5, 7), inputs=13, outputs=35),
        _backward_case(
            "pointwise_dropout", "same", 1, (14, 16), inputs=66, outputs=40, elu=True, dropout_p=0.2
        ),
        _backward_case("no_images", "include", 3, (4, 4), batch=0),
        _backward_case("float64", "exclude", 3, (4, 4), dtype=torch.float64),
        *(
            _backward_case(
                f"rounded_{mask}",
                mask,
                3,
                (6, 7),
                inputs=35,
                outputs=21,
                normed=False,
                rounded=True,
            )
            for mask in ("exclude", "include", "down", "downright", "same")
        ),
        _backward_case(
            "rounded_row_tiles", "include", 3, (3, 32), inputs=64, normed=False, rounded=True
        ),
        _backward_case(
            "rounded_5x5", "exclude", 5, (9, 5), inputs=80, outputs=16, normed=False, rounded=True
        ),
        _backward_case(
            "rounded_dropout", "down", 3, (6, 7), normed=False, dropout_p=0.5, rounded=True
        ),
        _backward_case(
            "rounded_pointwise", "same", 1, (5, 7), inputs=13, normed=False, rounded=True
        ),
        _backward_case("rounded_no_images", "include", 3, (4, 4), batch=0, rounded=True),
    ]
}

# Not public: the layers check their arguments when they are made.
ERRORS: list[Any] = []


def normed(x):
    g = like(x, 2, 32, 1, 1, 1)
    live = ops.tap_mask("include", 3, 3)
    return normed_conv2d(x, like(x, 1, 32, 16, 3, 3), g, None, "include", live, elu=True)


DERIVATIVES = {
    "normed_conv2d": (normed, values(0, 2, 16, 4, 4)),
    "normed_conv2d_weight": (
        lambda v: normed_conv2d(like(v, 1, 2, 16, 4, 4), v, None, None, "same"),
        values(0, 16, 16, 3, 3),
    ),
}
