"""Training of the port's models and of ours, by the recipe of either, for equal processor time.

`against_port.py` says which layers and recipes these are, and measures what comes out.
"""

from __future__ import annotations

import itertools
import math
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from vqvae2_fast import VQVAE2, PixelSNAIL, PixelSNAILConfig, VQVAE2Config, preset
from vqvae2_fast.compat.rosinality import VQVAE as PortVQVAE
from vqvae2_fast.compat.rosinality import PixelSNAIL as PortPixelSNAIL
from vqvae2_fast.data import batches, load_emoji, shuffled_indices, to_float
from vqvae2_fast.training.config import TrainConfig, learning_rate
from vqvae2_fast.training.extraction import Variants
from vqvae2_fast.training.network import autocast_of
from vqvae2_fast.training.optimizer import Muon, PolyakAverage, hidden_matrices, make_optimizer

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

K, D, CHANNELS, RESIDUAL, BLOCKS = 256, 32, 48, 48, 2
PRIOR_CHANNELS = 64
SIZES = ((4, 4), (8, 8))  # 80 codes of 8 bits: 640 bits per image before the priors
BATCH = 32
STEPS = 1000  # which our schedule is stretched over
VALIDATIONS = 10  # of a prior by our recipe, evenly over its time

DEMO = preset("emoji32").training
OUR_VQVAE, *OUR_PRIORS = (
    replace(stage, steps=STEPS, warmup_steps=30) for stage in (DEMO.vqvae, *DEMO.priors)
)
AS_THEY_ARE = Variants()


@dataclass(frozen=True)
class Contender:
    """Whose modules are trained, and by whose recipe."""

    port_modules: bool
    port_recipe: bool


PORT, PORT_BY_US, OURS = Contender(True, True), Contender(True, False), Contender(False, False)
CONTENDERS = {"port": PORT, "port, our recipe": PORT_BY_US, "vqvae2_fast": OURS}


def optimizer_of(model: nn.Module, ours: TrainConfig | None) -> torch.optim.Optimizer:
    if ours is None:
        return torch.optim.Adam(model.parameters(), lr=3e-4)
    if ours.optimizer == "muon" and isinstance(model, PortPixelSNAIL):
        # `make_optimizer` leaves the output layer to AdamW, which has another name in the port.
        hidden = hidden_matrices(model) - set(model.out.parameters())
        weights = list(model.parameters())
        return Muon(
            [weight for weight in weights if weight in hidden],
            [weight for weight in weights if weight not in hidden],
            lr=ours.learning_rate,
        )
    return make_optimizer(model, ours)


def train(
    model: nn.Module,
    loss: Callable[[int], Tensor],
    seconds: float,
    ours: TrainConfig | None,
    *,
    after_step: Callable[[], object] = lambda: None,
    validate: Callable[[], float] | None = None,
) -> int:
    """Train for this many seconds of processor time; returns the number of steps.

    Args:
        ours: Our recipe, whose rate falls as a cosine of the share of the time that has passed,
            with clipped gradients, a Polyak average, and bfloat16 where the processor computes in
            it. None: the port's, Adam at 3e-4 throughout, float32.
        validate: By our recipe, the weights with the lowest of this are kept. It takes part of the
            time. None keeps the last.
    """
    optimizer = optimizer_of(model, ours)
    port = ours is None
    average = None if port else PolyakAverage(model, 0.98)
    validations, lowest = 0, math.inf
    best: dict[str, Tensor] = {}
    whole = TrainConfig(precision="float32") if ours is None else ours
    model.train()
    start = time.process_time()
    for step in itertools.count():
        share = (time.process_time() - start) / seconds
        if share >= 1:
            break
        if not port:
            rate = learning_rate(max(30, int(STEPS * share)), whole) * min(1.0, (step + 1) / 30)
            for group in optimizer.param_groups:
                group["lr"] = rate
        torch.manual_seed(step)
        with autocast_of(model, whole):
            total = loss(step)
        total.backward()
        if not port:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        after_step()
        if average is None:
            continue
        average.update(model, step)
        if validate is not None and share * VALIDATIONS >= validations + 1:
            validations += 1
            with average.applied(model):
                value = validate()
                if value < lowest:
                    lowest = value
                    best = {name: weight.clone() for name, weight in model.state_dict().items()}
    if average is not None:
        model.load_state_dict(average.weights, strict=False)
    if validate is not None and validate() > lowest:
        model.load_state_dict(best)
    model.eval()
    return step


def stage_of(contender: Contender, seconds: float) -> tuple[Any, int]:
    """A trained VQ-VAE and its steps."""
    torch.manual_seed(0)
    images = batches(load_emoji("train"), BATCH, seed=0, flip=True)
    if contender.port_modules:
        port = PortVQVAE(3, CHANNELS, BLOCKS, RESIDUAL, D, K)

        def port_loss(step: int) -> Tensor:
            x = next(images)[0]
            out, latent = port(x)
            return F.mse_loss(out, x) + 0.25 * latent.mean()

        return port, train(port, port_loss, seconds, None if contender.port_recipe else OUR_VQVAE)
    config = VQVAE2Config(
        image_size=(32, 32),
        strides=(4, 2),
        hidden_channels=CHANNELS,
        residual_channels=RESIDUAL,
        num_residual_blocks=BLOCKS,
        num_embeddings=K,
        embedding_dim=D,
        restart=0.3,
        quantize_after=50,
    )
    model = VQVAE2(config).to(memory_format=torch.channels_last)

    def loss(step: int) -> Tensor:
        x = next(images)[0].to(memory_format=torch.channels_last)
        return model.loss(x, model(x))

    return model, train(model, loss, seconds, OUR_VQVAE, after_step=model.update_codebooks_)


@torch.no_grad()
def codes_of(
    model: Any, port: bool, images: Tensor, variants: Variants = AS_THEY_ARE
) -> list[Tensor]:
    """All images as they are, then the other variants of all."""
    parts = []
    for variant in range(variants.count):
        for rows in torch.arange(len(images)).split(128):
            x = variants.apply(to_float(images[rows]), rows, variant)
            parts.append(list(model.encode(x)[3:]) if port else model.encode(x))
    return [torch.cat(level) for level in zip(*parts, strict=True)]


def prior_of(level: int, port: bool) -> nn.Module:
    torch.manual_seed(0)
    stack = {} if level == 0 else {"n_cond_res_block": 2, "cond_res_channel": PRIOR_CHANNELS}
    if port:
        return PortPixelSNAIL(
            SIZES[level], K, PRIOR_CHANNELS, 3, 2, 2, PRIOR_CHANNELS, attention=level == 0, **stack
        )
    condition = SIZES[:level]
    return PixelSNAIL(
        PixelSNAILConfig(
            size=SIZES[level],
            num_embeddings=K,
            channels=PRIOR_CHANNELS,
            residual_channels=PRIOR_CHANNELS,
            num_blocks=2,
            layers_per_block=2,
            kernel_size=3,
            attention=level == 0,
            condition_sizes=condition,
            condition_channels=PRIOR_CHANNELS,
            num_condition_layers=2,
        )
    )


def bits_of_prior(
    level: int,
    contender: Contender,
    train_codes: list[Tensor],
    held_out: list[Tensor],
    seconds: float,
) -> tuple[dict[str, Any], nn.Module]:
    """Held-out bits per image of one level, weights of the prior and steps; and the prior.

    Args:
        train_codes: Those of all variants, of which the port's recipe takes the unchanged images.
        held_out: The first of every two images select weights by our recipe; the bits are those of
            the second, by either recipe.
    """
    port = contender.port_modules
    model = prior_of(level, port)
    if contender.port_recipe:
        train_codes = [codes[: len(load_emoji("train"))] for codes in train_codes]
    selecting, judged = ([codes[start::2] for codes in held_out] for start in (0, 1))

    def logits(maps: list[Tensor]) -> Tensor:
        if port:
            condition = maps[0] if level else None
            return model(maps[level], condition=condition)[0]
        return model(maps[level], maps[:level] or None)

    order = shuffled_indices(len(train_codes[0]), BATCH, seed=0)

    def loss(step: int) -> Tensor:
        _, rows = next(order)
        maps = [codes[rows] for codes in train_codes]
        return F.cross_entropy(logits(maps).float(), maps[level])

    @torch.no_grad()
    def bits_of(maps: list[Tensor]) -> float:
        model.eval()
        nats = F.cross_entropy(logits(maps).float(), maps[level], reduction="sum")
        model.train()
        return float(nats) / math.log(2) / len(maps[0])

    if contender.port_recipe:
        steps = train(model, loss, seconds, None)
    else:
        validate = partial(bits_of, selecting)
        steps = train(model, loss, seconds, OUR_PRIORS[level], validate=validate)
    bits = bits_of(judged)
    model.eval()
    weights = sum(w.numel() for w in model.parameters())
    return {"bits": bits, "prior_parameters": weights, "prior_steps": steps}, model
