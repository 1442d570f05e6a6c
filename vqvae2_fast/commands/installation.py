"""What is installed, for `info` and `check`."""

from __future__ import annotations

import platform
from typing import Any

import torch

import vqvae2_fast
from vqvae2_fast import ops
from vqvae2_fast.commands.common import Result
from vqvae2_fast.sampling.choice import cuda_fallback_message
from vqvae2_fast.sampling.engines.cuda import card_name, why_not_cuda

__all__ = ["installation"]


def installation() -> Result:
    """The versions, the threads, the GPU and the kernels."""
    z, codebook = (
        torch.zeros(1, 8, dtype=torch.float32, device="cpu"),
        torch.zeros(2, 8, dtype=torch.float32, device="cpu"),
    )
    values: dict[str, Any] = {
        "vqvae2_fast": vqvae2_fast.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "engine_cuda": _engine_cuda(),
        "simd": ops.simd_level(),
        "build": ops.build_info(),
        "nearest_code": ops.owner("nearest_code", z, codebook),
    }
    build = values["build"]
    compiled = ["compiled kernels: none; every operator runs on its PyTorch reference"]
    if build["native"]:
        cards = f"for {build['cuda_architectures']}" if build["cuda"] else "none"
        compiled = [
            f"compiled kernels: by {build['compiler']} for {', '.join(build['simd_levels'])}, for "
            f"PyTorch {build['torch_abi']} and later",
            f"compiled CUDA kernels: {cards}",
            f"SIMD level in use: {values['simd']}",
        ]
    lines = [
        f"vqvae2_fast {values['vqvae2_fast']}, Python {values['python']}, PyTorch "
        f"{values['torch']}",
        f"threads: {values['threads']}",
        f"GPU: {values['cuda'] or 'PyTorch sees none'}",
        *compiled,
        *values["engine_cuda"],
        f"nearest_code on the CPU is computed by {values['nearest_code']}",
    ]
    return Result(values, lines)


def _engine_cuda() -> list[str]:
    """A sentence for each GPU: that the sampler's kernels run on it, or why not."""
    if torch.version.hip is not None:
        return []
    sentences = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        device = torch.device("cuda", index)
        reason = why_not_cuda(device, torch.float32)
        runs = f"engine cuda runs on {card_name(device)}"
        sentences.append(runs if reason is None else cuda_fallback_message(device, reason))
    return sentences
