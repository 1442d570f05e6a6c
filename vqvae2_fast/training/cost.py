"""Estimates a training's memory from the sizes of tensors, and its time from timed parts of a
step."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vqvae2_fast.modules.contexts import device_of
from vqvae2_fast.runs.ranks import Ranks
from vqvae2_fast.training.network import autocast_of, prepared
from vqvae2_fast.training.optimizer import OPTIMIZERS, make_optimizer

if TYPE_CHECKING:
    from vqvae2_fast.training.config import TrainConfig
    from vqvae2_fast.training.stage import Stage

__all__ = ["SavedBytes", "StepCost", "free_memory", "measure_step", "state_bytes"]

_BUDGET = 2.0  # seconds of timed steps, unless the two smallest take longer
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class StepCost:
    """What one optimiser step takes.

    Args:
        seconds: Time of the step, reading its items included, without validations.
        fixed_bytes: Activations that do not depend on the batch, such as normalised weights.
        item_bytes: Activations of one item of a micro-batch, which backward needs.
    """

    seconds: float
    fixed_bytes: int
    item_bytes: int

    def activation_bytes(self, batch_size: int) -> int:
        """Bytes of a micro-batch's activations."""
        return self.fixed_bytes + batch_size * self.item_bytes


def state_bytes(model: nn.Module, config: TrainConfig) -> int:
    """Weights, gradients, the optimiser's moments, the average and buffers of a model in training.

    Args:
        model: May be on the device `meta`, where it takes no memory itself. Weights that do not
            require gradients have no moments either, but the average includes them.
    """
    weights = sum(weight.nbytes for weight in model.parameters())
    trained = sum(weight.nbytes for weight in model.parameters() if weight.requires_grad)
    buffers = sum(value.nbytes for value in model.buffers())
    kept = 1 + (config.average_decay > 0)
    return kept * weights + (1 + OPTIMIZERS[config.optimizer].moments) * trained + buffers


def free_memory(device: torch.device) -> int | None:
    """Bytes that this process can still allocate on a device; None if that is not known."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type != "cpu":
        return None
    free = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
        # A container's limit. Its cached files count as used, but can be dropped.
        limit = (_CGROUP / "memory.max").read_text().strip()
        if limit != "max":
            stat = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
            used = int((_CGROUP / "memory.current").read_text()) - int(stat["inactive_file"])
            free.append(max(0, int(limit) - used))
    except (OSError, ValueError, KeyError):
        pass  # no Linux, or no limits there
    if not free and "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):
        free.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(free, default=None)


def measure_step(stage: Stage, config: TrainConfig) -> StepCost:
    """Time and memory of a step, from micro-batches of 1, 2, 4, ... items in about two seconds.

    The first items of a real batch go through the loss and its gradient, then the optimiser steps:
    the model is of no use afterwards.
    """
    model, device = stage.model, device_of(stage.model)
    beside = [] if stage.companion is None else [stage.companion.network]
    autocast = autocast_of(model, config)
    alone = replace(config, compile=False, shard=False)
    start = time.monotonic()
    batch = next(stage.batches(0))
    reading = time.monotonic() - start
    model.train()
    parts: dict[int, tuple[float, int]] = {}  # seconds and bytes by number of items
    # One item is timed twice, because the first time includes work that is done only once.
    counts = [1, 1, *(2**power for power in range(1, 32))]
    with (
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        prepared(model, alone, Ranks()) as network,
    ):
        for count in (min(count, config.batch_size) for count in counts):
            began, saved = time.monotonic(), SavedBytes(model, *beside)
            with torch.autograd.graph.saved_tensors_hooks(saved.note, lambda tensor: tensor):
                with autocast:
                    total, _ = stage.loss(network, _first(batch, count))
                total.backward()
            _wait(device)
            parts[count] = time.monotonic() - began, saved.total
            enough = count == config.batch_size or time.monotonic() - start > _BUDGET
            if config.batch_size == 1 or (len(parts) > 1 and enough):
                break
    optimizer, weights = make_optimizer(model, config), list(model.parameters())
    gradients = [weight.grad for weight in weights]
    optimizer.step()  # allocates the moments; Muon uses up the gradients
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.grad = gradient
    began = time.monotonic()
    optimizer.step()
    _wait(device)
    moving = time.monotonic() - began
    seconds, fixed_bytes, item_bytes = _extrapolated(parts, config.batch_size)
    accumulate = config.cut_of_group().accumulate
    return StepCost(accumulate * (reading + seconds) + moving, fixed_bytes, item_bytes)


def _extrapolated(parts: dict[int, tuple[float, int]], batch_size: int) -> tuple[float, int, int]:
    """Seconds of a whole micro-batch, fixed bytes and bytes per item, from the two largest."""
    largest, *others = sorted(parts, reverse=True)
    seconds, held = parts[largest]
    if not others:
        return seconds, 0, held
    item_bytes = max(0, held - parts[others[0]][1]) // (largest - others[0])
    slope = (seconds - parts[others[0]][0]) / (largest - others[0])
    mean = seconds / largest
    # The slope of two short times is noisy: it is kept between the mean and half of it.
    seconds += (batch_size - largest) * min(mean, max(slope, mean / 2))
    return seconds, max(0, held - largest * item_bytes), item_bytes


class SavedBytes:
    """Bytes that autograd holds for backward: each storage once, weights and the buffers of the
    given networks left out.

    Weights of other networks, such as LPIPS, take memory too, but are there before the first step.

    `note` is for `saved_tensors_hooks`.
    """

    def __init__(self, *networks: nn.Module) -> None:
        tensors = [t for network in networks for t in (*network.parameters(), *network.buffers())]
        self._known = {tensor.untyped_storage()._cdata for tensor in tensors}
        self._held: list[Tensor] = []  # keeps storages alive, so that no address is used twice
        self.total = 0

    def note(self, tensor: Tensor) -> Tensor:
        if isinstance(tensor, nn.Parameter):
            return tensor
        storage = tensor.untyped_storage()
        if storage._cdata not in self._known:
            self._known.add(storage._cdata)
            self._held.append(tensor.detach())
            self.total += storage.nbytes()
        return tensor


def _first(batch: Any, count: int) -> Any:
    """The first items of a batch: a tensor, or lists and tuples of them."""
    if isinstance(batch, Tensor):
        return batch[:count]
    return type(batch)(_first(part, count) for part in batch)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
