"""Engine `reference`: runs the whole network on rows 0..i for each code. It is the definition.

It calls the prior's own forward and nothing else, so it is also the baseline of the benchmarks.
When all codes are known, once more, to see that all activations were within `SAMPLING_BOUND`. It
reads the prior's own weights at every code, so it is refused if they change meanwhile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from vqvae2_fast.modules.summed_labels import no_class_like
from vqvae2_fast.sampling.bounds import check_logits, watched_activations
from vqvae2_fast.sampling.fingerprint import fingerprint
from vqvae2_fast.sampling.kept import WeightsChangedError
from vqvae2_fast.sampling.prior import check_prior
from vqvae2_fast.sampling.request import Drawn, beyond, log_prob_of

if TYPE_CHECKING:
    from torch import nn

    from vqvae2_fast.sampling.prior import PriorInterface
    from vqvae2_fast.sampling.request import DrawRequest

__all__ = ["draw_reference"]


@torch.inference_mode()
def draw_reference(module: nn.Module, prior: PriorInterface, request: DrawRequest) -> Drawn:
    check_prior(module, prior)
    weights: object = None
    height, width = prior.size
    settings, noise, labels = request.settings, request.noise, request.labels
    shape = (request.batch_size, height, width)
    codes = torch.zeros(shape, dtype=torch.int64, device=noise.device)
    log_prob = (
        torch.zeros(shape, dtype=torch.float32, device=noise.device)
        if request.want_log_prob
        else None
    )
    logits_map = None
    if request.want_logits:
        sizes = (shape[0], prior.num_embeddings, *shape[1:])
        logits_map = torch.zeros(sizes, dtype=torch.float32, device=noise.device)
    too_large = torch.zeros((), dtype=torch.bool, device=noise.device)
    no_class = None if labels is None else no_class_like(labels, prior.num_classes)
    for i in range(height):
        noise_row = noise.row(i)  # [B, W, K]
        for j in range(width):
            rows = codes[:, : i + 1]
            logits = prior.logits(rows, request.maps, labels)[:, :, i, j].float()  # [B, K]
            too_large |= beyond(logits, settings)
            if weights is None:  # the first forward of a port's prior clears its masked weights
                weights = fingerprint(module.parameters())
            without = known = None
            if settings.guided:
                without = prior.logits(rows, request.maps, no_class)[:, :, i, j].float()
                too_large |= beyond(without, settings)
            if request.known is not None:
                known = request.known[:, i, j]
            code = settings.draw(logits, noise_row[:, j], without, known=known)
            codes[:, i, j] = code
            if log_prob is not None:
                log_prob[:, i, j] = log_prob_of(logits, code)
            if logits_map is not None:
                logits_map[:, :, i, j] = logits
        request.row_done(codes, i + 1)
    check_logits(too_large, settings)
    with watched_activations(module) as watch:
        prior.logits(codes, request.maps, labels)
        if settings.guided:
            prior.logits(codes, request.maps, no_class)
    check_logits(watch.beyond, settings)
    if fingerprint(module.parameters()) != weights:
        raise WeightsChangedError
    return Drawn(codes, log_prob, logits_map)
