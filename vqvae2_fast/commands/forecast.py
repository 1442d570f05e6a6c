"""`--dry-run --plan CARD:N`: a training on cards that are not here, computed and not measured."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from vqvae2_fast.commands.common import Result
from vqvae2_fast.commands.plan import duration, size
from vqvae2_fast.console.words import number
from vqvae2_fast.training.forecast import CARDS, Way, forecast

if TYPE_CHECKING:
    from vqvae2_fast.models.configs import VQVAE2Config
    from vqvae2_fast.models.prior import PriorConfig
    from vqvae2_fast.training import TrainConfig

__all__ = ["forecast_result"]

_ASSUMED = (
    "assumed: 35 % of a card's peak in the run's precision, which small models do not reach;",
    "  gradients and weights travel while others are computed, at the data sheet's rate within a",
    "  machine of 8 cards and at 50 GB/s a card between machines; nothing waits for data;",
    "  90 % of the memory can be used; activations are at most these, as the reference's operators",
    "  keep them",
)


def forecast_result(
    plan: str, model: VQVAE2Config | PriorConfig, training: TrainConfig, *, dry_run: bool
) -> Result:
    """What --plan prints.

    Raises:
        ValueError: Another form than CARD:N, a card that is not known, or a run that is not dry.
    """
    name, _, digits = plan.partition(":")
    if name not in CARDS or not digits.isdecimal() or not int(digits):
        raise ValueError(
            f"--plan: expected CARD:N with N cards of {', '.join(CARDS)}, such as h100:8, got "
            f"{plan!r}."
        )
    if not dry_run:
        raise ValueError("--plan: computes and trains nothing; add --dry-run.")
    count, card = int(digits), CARDS[name]
    found = forecast(model, training, card, count)
    best = found.best
    half = training.precision != "float32"
    lines = [
        f"computed, not measured: {found.parameters:,} parameters on {count} x {name} of "
        f"{size(card.memory)}, {found.steps:,} steps of {found.batch} in "
        f"{'bfloat16' if half else 'float32'}, {found.operations / 1e9:,.0f} GFLOP a forward and "
        "item",
        f"{'a card has':28} {'micro':>5} {'weights':>9} {'gradients':>9} {'moments':>9} "
        f"{'average':>9} {'activations':>11} {'in all':>9} {'sent/step':>9} {'s/step':>7}  in all",
        *(_row(way, found.steps) for way in found.ways),
    ]
    if best is None:
        lines.append("nothing fits: take more cards, larger ones, or a smaller model")
    else:
        options = f"--train.global-batch {found.batch} --train.accumulate 1 "
        options += f"--train.batch-size {best.micro_batch}"
        options += " --train.shard" if best.sharded else ""
        options += " --train.recompute" if best.recomputed else ""
        lines.append(f"fastest that fits: torchrun ... {options}")
    if not half:
        lines.append("--train.precision bfloat16 computes with the cards' matrix units")
    lines += _ASSUMED
    values: dict[str, Any] = {
        "computed": True,
        "card": name,
        "cards": count,
        **asdict(found),
        "best": best and asdict(best),
    }
    return Result(values, lines)


def _row(way: Way, steps: int) -> str:
    name = (
        f"{'its shard' if way.sharded else 'all'}, segments {'again' if way.recomputed else 'kept'}"
    )
    parts = (way.weights, way.gradients, way.moments, way.average)
    cells = " ".join(f"{size(part):>9}" for part in parts)
    fits = str(way.micro_batch) if way.micro_batch else "none"
    return (
        f"{name:28} {fits:>5} {cells} {size(way.activations):>11} {size(way.memory):>9} "
        f"{size(way.sent):>9} {number(way.seconds, 2):>7}  {duration(way.seconds * steps)}"
    )
