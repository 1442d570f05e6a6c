"""`ema_update_` on tensors that only inference mode may change."""

import pytest
import torch

from vqvae2_fast import ops


def test_tensors_of_inference_mode_change_only_there():
    counts, sums = torch.ones(9), torch.randn(9, 6)
    with torch.inference_mode():
        averages = torch.ones(9), torch.randn(9, 6), torch.randn(9, 6)
        ops.ema_update_(counts, sums, *averages)
    with pytest.raises(RuntimeError, match="cluster_size to be an ordinary tensor"):
        ops.ema_update_(counts, sums, *averages)
