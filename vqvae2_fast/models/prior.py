"""What a prior offers, and the table of the architectures that the package knows.

An architecture is one file in this folder: a configuration derived from `PriorConfig`, a network
derived from `Prior`, and `register_prior` above it. Training, checkpoints, pipelines, measures, the
command line and engine `reference` then take it; docs/extending.md tells more.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqvae2_fast.models.code_checks import (
    as_maps,
    check_labels,
    check_maps,
)
from vqvae2_fast.models.label_layout import LabelLayout
from vqvae2_fast.modules.index_range import check_range
from vqvae2_fast.ops._checks import check_int64

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from dataclasses import Field
    from typing import ClassVar

__all__ = [
    "PRIORS",
    "Prior",
    "PriorConfig",
    "kind_of_prior",
    "make_prior",
    "register_prior",
    "without_variants",
]


class PriorConfig:
    """Base class of the configurations of priors: frozen dataclasses that make a model by default.

    Args:
        size: Height and width of the code map.
        num_embeddings: K, the number of codes of this level and of the maps that condition it.
        condition_sizes: Sizes of all coarser code maps, coarse to fine; empty for the top.
        num_classes: Classes; 0 for an unconditional prior. Label `num_classes` is "no class".
        num_subclasses: Hidden parts of each class, 0 for none. Pipelines draw a part for each
            sample. Parts have labels of their own, see `LabelLayout`.
        num_variants: Kinds of changed images, such as mirrored ones, that the prior is told of in
            training. Each has a label for every class and for "no class".
        num_words: Words, such as "glasses=variant01", any number of which the prior may be told
            beside a class; 0 for none.
    """

    num_subclasses = 0
    num_variants = 0
    num_words = 0

    if TYPE_CHECKING:  # each dataclass has these fields, in an order of its own
        __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

        @property
        def size(self) -> tuple[int, int]: ...
        @property
        def num_embeddings(self) -> int: ...
        @property
        def condition_sizes(self) -> tuple[tuple[int, int], ...]: ...
        @property
        def num_classes(self) -> int: ...

    @property
    def label_layout(self) -> LabelLayout:
        return LabelLayout(self.num_classes, self.num_subclasses, self.num_variants, self.num_words)

    @property
    def num_labels(self) -> int:
        """Labels that the prior takes, 0 without classes."""
        return self.label_layout.count

    def summary(self) -> str:
        """The size of the network in words, such as "20 layers of 512 channels"."""
        raise NotImplementedError

    def at_least(self) -> tuple[int, int]:
        """How many tensors and numbers the model's weights have at least.

        `load` asks before it makes the model, since a damaged file may describe any size.
        """
        raise NotImplementedError


class Prior(nn.Module):
    """Base class of autoregressive priors of one level's code map, in raster order.

    A prior is made from its configuration alone and defines `logits`. Those at position p may
    depend only on the codes before p, the coarser maps and the class.

    `vqvae_hash` is the `weights_hash` of the VQ-VAE whose codes it was trained on, or "" if that is
    not known. `class_names` and `word_names` are the names of its classes and of its words, or none
    if they are not known. Checkpoints keep all three.
    """

    vqvae_hash: str = ""
    class_names: tuple[str, ...] = ()
    word_names: tuple[str, ...] = ()
    # What sampling.calibrate keeps here, a `Calibration`.
    calibration: object = None

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        if not isinstance(config, PriorConfig):
            raise TypeError(
                'expected the configuration of a prior, such as `preset("emoji32").priors[0]`, '
                f"got {type(config).__name__}."
            )
        self.config = config

    def logits(self, codes: Tensor, maps: list[Tensor], labels: Tensor | None) -> Tensor:
        """`[B, K, h, W]` of arguments that `forward` has checked, `condition` as a list."""
        raise NotImplementedError

    def segments(self) -> list[nn.Module]:
        """Modules that run one after another and hold most of the network.

        Training can recompute, compile and shard them one by one: each is called as a module, and
        nothing else uses its parameters.
        """
        return []

    def mean_nats(self, codes: Tensor, maps: list[Tensor], labels: Tensor | None) -> Tensor:
        """`loss` of checked arguments, for architectures that need not form all logits for it."""
        return F.cross_entropy(self.logits(codes, maps, labels).float(), codes)

    def forward(
        self,
        codes: Tensor,
        condition: Sequence[Tensor] | Tensor | None = None,
        labels: Tensor | None = None,
        *,
        as_loss: bool = False,
    ) -> Tensor:
        """Logits of each position's code given the codes before it.

        Args:
            codes: int64 `[B, h, W]`, h <= H: the first rows of a map give the logits of those rows.
            condition: int64 maps `[B, h_i, w_i]` of `config.condition_sizes`, whole, coarse to
                fine; a tensor stands for a list of one.
            labels: int64 `[B]`, below `config.num_labels`; `num_classes` stands for "no class". For
                a prior with words also `[B, 1 + W]`: the class and then words, which count from
                `config.label_layout.first_word`, or -1 for none.
            as_loss: Return `loss` instead of the logits, because wrappers (DistributedDataParallel,
                `torch.compile`) see only this method.

        Returns:
            `[B, K, h, W]`, or 0-d.

        Raises:
            ValueError: A map of the wrong size, a condition or labels that are missing or not
                wanted, codes or labels out of range.
            TypeError: Codes, maps or labels not int64.

        Note:
            Ranges are checked on CPU tensors in eager mode. On other devices a failed check is an
            assertion on the device, without synchronisation; compiled graphs and transforms of
            `torch.func` leave it out.
        """
        maps = as_maps(condition)
        self._check(codes, maps, labels)
        compute = self.mean_nats if as_loss else self.logits
        return compute(codes, maps, labels)

    def loss(
        self,
        codes: Tensor,
        condition: Sequence[Tensor] | Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Tensor:
        """Mean negative log-likelihood of the codes, nats per code; 0-d, float32."""
        nats: Tensor = self(codes, condition, labels, as_loss=True)
        return nats

    def _check(self, codes: Tensor, maps: list[Tensor], labels: Tensor | None) -> None:
        config, batch = self.config, codes.shape[0]
        height, width = config.size
        check_int64("codes", codes)
        if codes.dim() != 3 or codes.shape[2] != width or not 1 <= codes.shape[1] <= height:
            raise ValueError(
                f"expected codes [B, 1..{height}, {width}] (the first rows of a map of "
                f"{height}×{width}), got {list(codes.shape)}."
            )
        check_range("codes", codes, 0, config.num_embeddings)
        check_maps(maps, config.condition_sizes, config.num_embeddings, batch)
        check_labels(labels, config.num_classes, batch, config.num_labels, config.num_words)


_Prior = TypeVar("_Prior", bound=Prior)

# By the name in checkpoints: the network and its configuration.
PRIORS: dict[str, tuple[type[Prior], type[PriorConfig]]] = {}


def register_prior(
    kind: str, config_class: type[PriorConfig]
) -> Callable[[type[_Prior]], type[_Prior]]:
    """Makes a class of priors known under the name that its checkpoints bear.

    Raises:
        ValueError: If the name is taken.
    """

    def register(prior_class: type[_Prior]) -> type[_Prior]:
        if kind in (*PRIORS, "vqvae2", "classifier", "pipeline"):
            raise ValueError(f"the name {kind!r} is taken.")
        PRIORS[kind] = (prior_class, config_class)
        return prior_class

    return register


def kind_of_prior(config: PriorConfig) -> str:
    """The name in checkpoints of the priors that have such a configuration.

    Raises:
        TypeError: If its type is not registered.
    """
    for kind, (_, config_class) in PRIORS.items():
        if type(config) is config_class:
            return kind
    raise TypeError(
        f"expected the configuration of a registered prior, got a {type(config).__name__}."
    )


def make_prior(config: PriorConfig) -> Prior:
    """A prior with weights from torch's random numbers. Raises as `kind_of_prior` or its class."""
    prior_class, _ = PRIORS[kind_of_prior(config)]
    return prior_class(config)


def without_variants(prior: Prior) -> Prior:
    """A copy that no longer knows changed images: it draws the same with fewer weights."""
    made = make_prior(replace(prior.config, num_variants=0))
    made.to(next(prior.parameters()))  # its device and type
    weights = prior.state_dict()
    kept, first = made.config.label_layout, prior.config.label_layout.first_word
    for name, own in made.state_dict().items():
        if weights[name].shape != own.shape:  # a table that is read by label
            rows = weights[name][: kept.first_word], weights[name][first:]
            weights[name] = torch.cat(rows)
    made.load_state_dict(weights)
    made.vqvae_hash, made.class_names = prior.vqvae_hash, prior.class_names
    made.word_names = prior.word_names
    return made.train(prior.training)
