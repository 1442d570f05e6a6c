"""What a training would take on cards that are not here: memory, communication, time.

Nothing is measured. The model is made on torch's meta device, where a forward counts the bytes that
autograd keeps and the multiplications, without memory for them and in seconds at any size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vqvae2_fast.models.prior import Prior, PriorConfig, make_prior
from vqvae2_fast.models.vqvae2 import VQVAE2
from vqvae2_fast.runs.ranks import Ranks
from vqvae2_fast.training.cost import SavedBytes
from vqvae2_fast.training.network import prepared
from vqvae2_fast.training.optimizer import moments_of

if TYPE_CHECKING:
    from vqvae2_fast.models.configs import VQVAE2Config
    from vqvae2_fast.training.config import TrainConfig

__all__ = ["CARDS", "Card", "Forecast", "Way", "forecast"]

_USABLE = 0.9  # of a card's memory; the rest is the driver's, NCCL's and lost between tensors
_REACHED = 0.35  # of a card's peak, as large convolutional networks reach it
_RECOMPUTED = 4 / 3  # a second forward; backward takes twice a forward
_OF_ONE_MACHINE = 8  # cards
_NETWORK = 50e9  # bytes a second and card between machines: 400 Gbit/s


@dataclass(frozen=True)
class Card:
    """A graphics card by its maker's data sheet.

    Args:
        memory: Bytes.
        bfloat16, float32: Operations a second, dense; float32 with TF32 off.
        link: Bytes a second to the other cards of a machine, each way.
    """

    memory: int
    bfloat16: float
    float32: float
    link: float


CARDS = {
    "a100": Card(80 * 10**9, 312e12, 19.5e12, 300e9),
    "h100": Card(80 * 10**9, 989e12, 67e12, 450e9),
    "h200": Card(141 * 10**9, 989e12, 67e12, 450e9),
    "b200": Card(180 * 10**9, 2250e12, 75e12, 900e9),
}


@dataclass(frozen=True)
class Way:
    """One way to train: sharded or not, segments recomputed or kept. Bytes are those of a card.

    Args:
        micro_batch: Items of a card at a time: the most that fit, and share the batch evenly; 0 if
            not even one fits.
        activations: Of a micro-batch (of one item if none fits), at their most.
        sent: Bytes that a card sends in a step.
        seconds: Of a step: the longer of computing and sending.
    """

    sharded: bool
    recomputed: bool
    micro_batch: int
    weights: int
    gradients: int
    moments: int
    average: int
    activations: int
    sent: int
    seconds: float

    @property
    def memory(self) -> int:
        """Bytes in all."""
        return self.weights + self.gradients + self.moments + self.average + self.activations


@dataclass(frozen=True)
class Forecast:
    """A training on some cards, in all ways that its model allows.

    Args:
        batch: Items of a step, on all cards together.
        operations: Of the forward of one item; backward takes twice as many.
        ways: Kept before recomputed, whole before sharded.
    """

    parameters: int
    batch: int
    steps: int
    operations: float
    ways: list[Way]

    @property
    def best(self) -> Way | None:
        """The way with the shortest step among those that fit, the simplest of equals."""
        return min((w for w in self.ways if w.micro_batch), key=lambda w: w.seconds, default=None)


@dataclass(frozen=True)
class _Activations:
    fixed: int  # bytes whatever the batch, such as normalised weights
    item: int


def forecast(
    config: VQVAE2Config | PriorConfig, training: TrainConfig, card: Card, count: int
) -> Forecast:
    """What the training of a model takes on `count` cards.

    The batch of a step is that of the settings in one process, so that it is the same on any number
    of cards. Memory for activations is an upper bound: it is counted with the reference's
    operators, which keep attention's matrices.

    Raises:
        ValueError: More cards than items of a batch.
    """
    batch = training.cut().batch_size
    if not 1 <= count <= batch:
        near = max(n for n in range(1, max(min(count, batch), 1) + 1) if batch % n == 0)
        raise ValueError(
            f"plan: expected 1 to {batch} cards, one for each item of the batch, got {count}; "
            f"{near} share it evenly."
        )
    half = training.precision != "float32"
    with torch.device("meta"):
        model = _outline(config, torch.bfloat16 if half else torch.float32)
    parameters = _numbers(model)
    weights = 4 * parameters
    kept, largest, operations = _kept(model, training, recompute=False)
    again, _, _ = _kept(model, training, recompute=True)
    again = _Activations(again.fixed + largest.fixed, again.item + largest.item)
    speed = _REACHED * (card.bfloat16 if half else card.float32)
    link = card.link if count <= _OF_ONE_MACHINE else min(card.link, _NETWORK)
    # Whole weights of the segment that runs, and of the next one.
    gathered = 2 * 4 * max(_numbers(segment) for segment in model.segments())
    casts = weights // 2 if half else 0  # autocast's copies

    def way(sharded: bool, recomputed: bool) -> Way:
        share = count if sharded else 1
        held = again if recomputed else kept
        own, moments = weights // share, moments_of(training) * weights // share
        whole = gathered if sharded else 0
        average = (training.average_decay > 0) * weights // share
        room = int(_USABLE * card.memory) - (own + whole + moments + average + held.fixed + casts)
        # In one micro-batch each gradient is shared out as it comes; while several accumulate, all
        # are whole.
        gradients, micro = min(weights, own + whole), batch // count
        if batch % count or gradients + micro * held.item > room:
            gradients = weights
            most = max(0, min((room - gradients) // held.item, -(-batch // count)))
            micro = max(
                (n for n in range(1, most + 1) if batch % (n * count) == 0), default=min(most, 1)
            )
        times = -(-batch // (max(micro, 1) * count))
        others = (count - 1) / count
        gathers = 2 * times + (training.optimizer == "muon")  # Muon's are of gradients
        sent = others * weights * (gathers + 1 if sharded else 2)
        computing = 3 * operations * batch / count / speed * (_RECOMPUTED if recomputed else 1)
        return Way(
            sharded,
            recomputed,
            micro,
            weights=own + whole,
            gradients=gradients,
            moments=moments,
            average=average,
            activations=held.fixed + casts + max(micro, 1) * held.item,
            sent=int(sent),
            seconds=max(computing, sent / link),
        )

    shardings = (False, True) if count > 1 and isinstance(model, Prior) else (False,)
    ways = [way(sharded, recomputed) for sharded in shardings for recomputed in (False, True)]
    return Forecast(parameters, batch, training.steps, operations, ways)


def _numbers(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def _outline(config: VQVAE2Config | PriorConfig, dtype: torch.dtype) -> Prior | VQVAE2:
    """A model whose activations have a dtype, as under autocast."""
    if isinstance(config, PriorConfig):
        return make_prior(config).to(dtype)
    model = VQVAE2(replace(config, quantize_after=0))  # which reads a value
    model.to(dtype).quantizers.float()
    return model


def _kept(
    model: Prior | VQVAE2, training: TrainConfig, *, recompute: bool
) -> tuple[_Activations, _Activations, float]:
    """Activations of a step, those of the segment with the most, and operations of one item."""
    found = []
    settings = replace(training, recompute=recompute, compile=False, shard=False)
    for items in (1, 2):
        saved, sizes = SavedBytes(model), [0]
        with prepared(model, settings, Ranks()) as network:
            hooks = [
                hook for segment in model.segments() for hook in _watched(segment, saved, sizes)
            ]
            with (
                torch.autograd.graph.saved_tensors_hooks(saved.note, lambda tensor: tensor),
                FlopCounterMode(display=False) as counter,
            ):
                _loss(network, model, items)
            for hook in hooks:
                hook.remove()
        found.append((saved.total, max(sizes), counter.get_total_flops()))
    (one, segment, _), (two, segment_two, operations) = found
    item, segment_item = two - one, segment_two - segment
    return (
        _Activations(max(one - item, 0), item),
        _Activations(max(segment - segment_item, 0), segment_item),
        operations / 2,
    )


def _watched(segment: nn.Module, saved: SavedBytes, sizes: list[int]) -> list[Any]:
    """Hooks that append to `sizes` the bytes that a segment's forward keeps."""
    before: list[int] = []
    return [
        segment.register_forward_pre_hook(lambda *_: before.append(saved.total)),
        segment.register_forward_hook(lambda *_: sizes.append(saved.total - before.pop())),
    ]


def _loss(network: nn.Module, model: Any, items: int) -> Tensor:
    """The loss of some items without content."""
    config, dtype = model.config, next(model.parameters()).dtype
    if isinstance(model, VQVAE2):
        images = torch.zeros(
            items, config.image_channels, *config.image_size, dtype=dtype, device="meta"
        )
        return VQVAE2.loss(images, network(images))

    def zeros(*size: int) -> Tensor:
        return torch.zeros(items, *size, dtype=torch.int64, device="meta")

    condition = [zeros(*size) for size in config.condition_sizes]
    labels = zeros() if config.num_classes else None
    loss: Tensor = network(zeros(*config.size), condition or None, labels, as_loss=True)
    return loss
