"""A quantiser and its twin, which sees the same vectors in the plainest way there is.

The twin is given fresh tensors and computes each gradient at once. Whatever happens to the other
(checkpoints, buffers that are used again, autocast, copies), both must give the same and learn the
same. The twin's own results are compared with their definition in float64.
"""

from __future__ import annotations

import copy
import pickle
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.checkpoint import checkpoint
from world import operation

from vqvae2_fast.modules.quantizer import VectorQuantizerEMA, update_codebooks_
from vqvae2_fast.modules.residual_vq import ResidualVQ

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from world import World

K, D = 8, 4
MODES: dict[str, Callable[[], Any]] = {
    "under autocast": partial(torch.autocast, "cpu", torch.bfloat16),
    "without gradient": torch.no_grad,
    "in inference mode": torch.inference_mode,
}
# The commonest mistakes come up more often.
CHECKPOINTED = ("checkpointed", "checkpointed, reentrant")
MANNERS = ("directly", *CHECKPOINTED * 2, *["from a reused buffer"] * 3, *MODES)


def vectors(rng: Random) -> Tensor:
    """Vectors `[4, h, h, D]`, which may have what encoders give: dead channels, constant borders,
    many equal vectors."""
    side = rng.choice((2, 4, 8))
    z = torch.randn(4, side, side, D) * rng.choice((0.1, 1.0, 3.0))
    kind = rng.choice(("plain", "plain", "a dead channel", "a constant border", "few vectors"))
    if kind == "a dead channel":
        z[..., rng.choice((0, 0, D - 1))] = 0
    elif kind == "a constant border":
        z[:, 0] = z[:, -1] = z[:, :, 0] = z[:, :, -1] = 0.5
    elif kind == "few vectors":
        z = z[:1, :1, :1].expand(4, side, side, D).clone()
    return z


def variant(z: Tensor, rng: Random) -> Tensor:
    """Other vectors of the same sizes, which may have some values in common with the first."""
    mask = torch.rand(z.shape) >= rng.choice((0.0, 0.5, 1.0))
    if rng.random() < 0.5:
        mask &= z != z[0, 0, 0, :1]  # what is constant stays as it is
    return torch.where(mask, torch.randn(z.shape), z)


class Twins:
    """The quantiser under test, and its twin."""

    def __init__(self, rng: Random) -> None:
        arguments: dict[str, Any] = {
            "update": rng.choice(("forward", "step")),
            "restart": rng.choice((0.0, 0.5, 0.5)),
            "init": rng.choice(("kmeans", "normal")),
            "gradient": rng.choice(("straight_through", "rotation")),
            "decay": 0.5,
        }
        if rng.random() < 0.3:
            self.tested: Any = ResidualVQ((K, K), D, **arguments)
        else:
            arguments["metric"] = rng.choice(("euclidean", "euclidean", "cosine"))
            self.tested = VectorQuantizerEMA(K, D, **arguments)
        self.by_step = arguments["update"] == "step"
        self.twin = copy.deepcopy(self.tested)
        self.pending = False
        self.buffer = torch.empty(0)  # a loader's, which it writes into again
        self.text = f"{type(self.tested).__name__}({arguments})"

    @staticmethod
    def of(world: World, rng: Random) -> Twins:
        """The world's; at first, and now and then, new ones."""
        if world.twins is None or rng.random() < 0.05:
            world.twins = Twins(rng)
        world.say(world.twins.text)
        return world.twins

    def check_state(self) -> None:
        """That both have learnt the same."""
        own, expected = self.tested.state_dict(), self.twin.state_dict()
        for name, value in expected.items():
            assert torch.allclose(own[name].double(), value.double(), rtol=1e-5, atol=1e-6), (
                f"{name} is not that of a quantiser that saw the same vectors plainly"
            )

    def plain(self, z: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Codes and gradient by the twin, which learns."""
        z, before = z.clone().requires_grad_(), copy.deepcopy(self.twin)
        z_q, codes, loss = self.twin(z)
        ((z_q * weight).sum() + loss).backward()
        if isinstance(before, VectorQuantizerEMA) and bool(before.initialised):
            codebook, own = before.codebook.double(), z.detach().double()
            if before.metric == "cosine":
                own = normalize(own, dim=-1)
            distances = torch.cdist(own.reshape(-1, D), codebook)
            chosen = distances.gather(1, codes.reshape(-1, 1))[:, 0]
            assert (chosen <= distances.amin(1) + 1e-4).all(), "a code is not the nearest"
            assert torch.allclose(z_q.double(), codebook[codes], atol=1e-5), "z_q is not the code"
        assert z.grad is not None
        return codes, z.grad

    def forward(self, world: World, manner: str, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`z_q`, codes and loss of the tested one; vectors from the buffer share its memory."""
        if manner in CHECKPOINTED:
            reentrant = manner.endswith("reentrant")
            return world.must(checkpoint, self.tested, z, use_reentrant=reentrant)
        with MODES.get(manner, nullcontext)():
            return world.must(self.tested, z)


@operation(12)
def quantizer_forward(world: World, rng: Random) -> None:
    """Training forwards of some vectors, and then one backward of all of them."""
    twins, manner, inputs = Twins.of(world, rng), rng.choice(MANNERS), [vectors(rng)]
    if manner != "from a reused buffer" and rng.random() < 0.4:
        inputs.append(variant(inputs[0], rng))
    world.say(f"{len(inputs)} forwards {manner}")
    weights = [torch.randn(z.shape) for z in inputs]
    expected = [twins.plain(z, weight) for z, weight in zip(inputs, weights, strict=True)]
    twins.pending = twins.by_step
    given = [z.clone() for z in inputs]
    if manner == "from a reused buffer":
        if twins.buffer.shape != inputs[0].shape:
            twins.buffer = torch.empty(inputs[0].shape)
        given = [twins.buffer.copy_(inputs[0]).detach()]
    found = [twins.forward(world, manner, z.requires_grad_()) for z in given]
    try:
        if found[0][0].requires_grad:
            losses = zip(found, weights, strict=True)
            loss = sum((z_q * weight).sum() + loss for (z_q, _, loss), weight in losses)
            world.call(loss.backward)
    finally:
        twins.buffer.normal_()
        if not twins.by_step:
            twins.check_state()
    for z, (_, codes, _), (twin_codes, gradient) in zip(given, found, expected, strict=True):
        assert torch.equal(codes, twin_codes), "codes differ from the twin's"
        assert z.grad is None or torch.allclose(z.grad, gradient, rtol=1e-4, atol=1e-5), (
            "the gradient differs from the twin's"
        )
    twins.check_state()


@operation(6)
def quantizer_update(world: World, rng: Random) -> None:
    """The codebook moves, if it moves by the step."""
    twins = Twins.of(world, rng)
    if twins.by_step:
        for quantizer in (twins.tested, twins.twin):
            books = [part for part in quantizer.modules() if isinstance(part, VectorQuantizerEMA)]
            world.must(update_codebooks_, books)
    twins.pending = False
    twins.check_state()


@operation(1)
def quantizer_renew(world: World, rng: Random) -> None:
    """The quantiser in another form, which must be the same quantiser."""
    twins = Twins.of(world, rng)
    how = rng.choice(("deepcopy", "pickle", "load_state_dict", "eval and train"))
    world.say(how)
    if how == "deepcopy":
        twins.tested = copy.deepcopy(twins.tested)
    elif how == "pickle":
        twins.tested = pickle.loads(pickle.dumps(twins.tested))
    elif how == "eval and train":
        z = vectors(rng)
        codes = world.must(twins.tested.eval(), z)[1]
        assert torch.equal(codes, twins.twin.encode(z)), "codes differ from the twin's"
        twins.tested.train()
    elif not twins.pending:  # a checkpoint has no pending statistics
        twins.tested.load_state_dict(copy.deepcopy(twins.tested.state_dict()))
    twins.check_state()
