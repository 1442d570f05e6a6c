"""Training steps of both stages, by contenders that `training_step.py` describes."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import vqvae2_fast as vq2
from shared import plain_port
from vqvae2_fast.compat import rosinality
from vqvae2_fast.ops._registry import BY_DESIGN, OPERATORS
from vqvae2_fast.ops._training import rounded_convolutions
from vqvae2_fast.presets import preset

# Arguments of the port's PixelSNAIL, and of ours if it is not converted from the port's.
PRIORS = {
    # `train_pixelsnail.py --hier top` with its defaults.
    "port_top": (4, ([32, 32], 512, 256, 5, 4, 4, 256), {}, None),
    "port_top_small": (2, ([16, 16], 512, 64, 5, 2, 2, 64), {}, None),
    "emoji64_top": (32, ([8, 8], 512, 64, 3, 2, 2, 64), {}, 0),
    "emoji64_bottom": (
        32,
        ([16, 16], 512, 64, 3, 2, 2, 64),
        {"attention": False, "n_cond_res_block": 2, "cond_res_channel": 64},
        1,
    ),
}
VQVAES = {"imagenet256_vqvae": (4, "imagenet256"), "emoji64_vqvae": (32, "emoji64")}


@contextmanager
def references():
    """Runs every operator on its PyTorch reference, whatever the install has."""
    with ExitStack() as patches:
        for operator in OPERATORS.values():
            patches.enter_context(mock.patch.object(operator, "choose", lambda *args: BY_DESIGN))
        yield


class Step:
    """One contender: `run` is a whole training step."""

    def __init__(self, model: nn.Module, loss, after=lambda: None, *, fused: bool = False) -> None:
        self.model, self.loss, self.after = model.train(), loss, after
        self.optimizer = torch.optim.Adam(model.parameters(), lr=3e-4, fused=fused)

    def run(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.loss(self.model).backward()
        self.optimizer.step()
        self.after()


class ReferenceStep(Step):
    def run(self) -> None:
        with references():
            super().run()


class RoundedStep(Step):
    """In the precision that `auto` gives a prior on a processor."""

    def run(self) -> None:
        with rounded_convolutions():
            super().run()


def prior_step(name: str, contender: str) -> Step:
    batch, arguments, keywords, level = PRIORS[name]
    torch.manual_seed(0)
    (height, width), num_codes = arguments[:2]
    codes = torch.randint(num_codes, (batch, height, width))
    condition = None
    if "n_cond_res_block" in keywords:
        condition = torch.randint(num_codes, (batch, height // 2, width // 2))
    if contender in ("port", "drop_in"):
        kind = plain_port.PixelSNAIL if contender == "port" else rosinality.PixelSNAIL
        model = kind(*arguments, **keywords)
        return Step(model, lambda model: F.cross_entropy(model(codes, condition)[0], codes))
    labels = None
    if level is None:
        model = rosinality.to_native(rosinality.PixelSNAIL(*arguments, **keywords))
    else:
        config = preset("emoji64").priors[level]
        model = vq2.PixelSNAIL(config)
        labels = torch.randint(config.num_classes, (batch,))

    def loss(model: nn.Module) -> Tensor:
        if contender in ("ours", "rounded"):
            return model.loss(codes, condition, labels)
        return F.cross_entropy(model(codes, condition, labels), codes)

    return our_step(contender, model, loss)


def our_step(contender: str, model: nn.Module, loss, after=lambda: None) -> Step:
    if contender in ("ours", "rounded"):
        kind = RoundedStep if contender == "rounded" else Step
        return kind(model, loss, after, fused=True)
    step = ReferenceStep(model, loss, after, fused=True)
    if contender == "compiled":
        step.loss = torch.compile(loss)
    return step


def vqvae_step(name: str, contender: str) -> Step:
    batch, preset_name = VQVAES[name]
    config = preset(preset_name).vqvae
    torch.manual_seed(0)
    images = torch.rand(batch, config.image_channels, *config.image_size) * 2 - 1
    if contender in ("port", "drop_in"):
        kind = plain_port.VQVAE if contender == "port" else rosinality.VQVAE
        model = kind(
            config.image_channels,
            config.hidden_channels,
            config.num_residual_blocks,
            config.residual_channels,
            config.embedding_dim,
            config.num_embeddings,
        )

        def port_loss(model: nn.Module) -> Tensor:
            out, diff = model(images)
            return F.mse_loss(out, images) + 0.25 * diff.mean()

        return Step(model, port_loss)
    # As `training/stage1.py` prepares both.
    model = vq2.VQVAE2(config).to(memory_format=torch.channels_last)
    images = images.contiguous(memory_format=torch.channels_last)

    def loss(run: nn.Module) -> Tensor:
        return model.loss(images, run(images))

    return our_step(contender, model, loss, model.update_codebooks_)


def make_step(name: str, contender: str) -> Step:
    return (prior_step if name in PRIORS else vqvae_step)(name, contender)


def flops_of(name: str) -> int:
    """Flops of the reference's step: products of its convolutions and matrices, dead taps
    included."""
    step = make_step(name, "reference")
    step.model.eval()  # the same products; the reference takes minutes to draw dropout
    with FlopCounterMode(display=False) as counter:
        step.run()
    return counter.get_total_flops()
