"""What a trained encoder gives its codebook: vectors of emoji32's fine level, with their codes.

It uses the pretrained VQ-VAE if the package has its weights, else one that is trained here for some
hundred steps (a minute).
"""

from __future__ import annotations

import torch
from torch import Tensor

from vqvae2_fast.checkpoints.pretrained import from_preset, pretrained_names
from vqvae2_fast.data.emoji import load_emoji
from vqvae2_fast.models.vqvae2 import VQVAE2
from vqvae2_fast.presets import preset

PRESET, STEPS, BATCH = "emoji32", 300, 32


def images() -> Tensor:
    """All training images, `[n, 3, 32, 32]` in [−1, 1]."""
    source = load_emoji("train", 32)
    return torch.stack([source[i][0] for i in range(len(source))]) / 127.5 - 1


def trained(pictures: Tensor) -> VQVAE2:
    if PRESET in pretrained_names():
        return from_preset(PRESET).vqvae
    torch.manual_seed(0)
    model = VQVAE2(preset(PRESET).vqvae)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(STEPS):
        batch = pictures[torch.randint(len(pictures), (BATCH,))]
        loss = model.loss(batch, model(batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.update_codebooks_()
    return model


def trained_vectors(n: int) -> tuple[Tensor, Tensor]:
    """z `[n, D]` of as many images as are needed, and the codebook `[K, D]`."""
    pictures = images()
    model = trained(pictures).eval()
    found: list[Tensor] = []
    fine = model.quantizers[-1]
    fine.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0].flatten(0, -2)))
    with torch.no_grad():
        while sum(map(len, found)) < n:
            start = len(found) * 64 % len(pictures)
            model(pictures[start : start + 64])
    return torch.cat(found)[:n].clone(), fine.codebook.clone()
