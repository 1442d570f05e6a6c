"""Stage 2: the prior of one level. Algorithm 2 of https://arxiv.org/abs/1906.00446."""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, dataclass, fields, replace
from itertools import chain, islice, repeat
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vqvae2_fast.data import CodeStore, check_matches, code_batches, codes_in_order
from vqvae2_fast.data.groups import (
    class_of_part,
    classes_of_prior,
    equal_groups,
    group_names,
    labels_of_prior,
)
from vqvae2_fast.data.images import evenly
from vqvae2_fast.data.words import words_of_codes
from vqvae2_fast.files.kinds import check_field, number
from vqvae2_fast.files.printable import printable, short
from vqvae2_fast.metrics.codes import Likelihood, code_nats
from vqvae2_fast.modules.contexts import device_of
from vqvae2_fast.ops._batch_part import uniform_of_part
from vqvae2_fast.runs.ranks import Ranks
from vqvae2_fast.training.extraction import variants_of
from vqvae2_fast.training.images import check_not_empty
from vqvae2_fast.training.stage import Stage

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vqvae2_fast.data.images import CodeSource
    from vqvae2_fast.models.prior import Prior, PriorConfig
    from vqvae2_fast.training.config import TrainConfig

__all__ = ["hash_of_codes", "prior_config", "prior_stage"]


def prior_config(
    config: PriorConfig,
    codes: CodeStore,
    level: int,
    *,
    conditional: bool = True,
    groups: bool = False,
    parts: bool = False,
    variants: bool = False,
) -> PriorConfig:
    """`config` with what follows from the codes: sizes, K, classes, and words if it can have some.

    Args:
        groups: Groups of the codes' classes are the classes of the prior.
        parts: The codes' classes are parts of classes, those of the prior, which hide them.
        variants: The prior gets how an image was changed as a label, see `variants_of`.

    Raises:
        ValueError: For parts, classes with different numbers of them, or only one class. For
            variants, codes of images as they are. For both, a prior whose configuration has none;
            for all three, one without classes.
    """
    sizes = codes.level_sizes
    names: Sequence[str] = codes.class_names if conditional else ()
    needing_classes = {"groups": groups, "parts": parts, "variants": variants}
    if any(needing_classes.values()) and not names:
        what = next(name for name, asked in needing_classes.items() if asked)
        raise ValueError(
            f"{what}: expected codes with classes, got none; make some "
            "with `vqvae2-fast extract --subclasses N`."
            if conditional
            else f"{what}: expected a class-conditional prior, got an unconditional one; leave "
            "one of the two out."
        )
    known = {field.name for field in fields(config)}
    # Those of a configuration that is given are of other codes.
    told = ("num_subclasses", "num_variants", "num_words")
    hidden = {name: 0 for name in told if name in known}
    if names and "num_words" in known:
        hidden["num_words"] = len(words_of_codes(codes)[0])
    if variants:
        hidden["num_variants"] = int(variants_of(codes).max())
    if parts:
        num_classes, count = equal_groups(names)
        if num_classes == 1:
            (name,) = set(map(class_of_part, names))
            raise ValueError(
                f"parts: expected two classes or more, got only {printable(name)!r}; leave it "
                "out, so that the parts are classes to which samples can be guided."
            )
        hidden["num_subclasses"] = count
        names = tuple(dict.fromkeys(map(class_of_part, names)))
    elif groups:
        names = group_names(names)
    for name in hidden:
        if name not in known:
            raise ValueError(
                f"{name.removeprefix('num_')}: a {type(config).__name__} has no {name}."
            )
    return replace(
        config,
        size=sizes[level],
        condition_sizes=sizes[:level],
        num_embeddings=codes.num_embeddings,
        num_classes=len(names),
        **hidden,
    )


def prior_stage(
    prior: Prior,
    train_set: CodeStore,
    held_out: CodeStore,
    config: TrainConfig,
    *,
    level: int,
    label_dropout: float = 0.1,
    subclass_dropout: float = 0.1,
    class_balance: float = 0.0,
    name: str = "train prior",
) -> Stage:
    """Cross-entropy of one level's codes, given all coarser levels, the class and the words.

    Of each record's words a random number is left out, from none to all, so that a sample may be
    given any of them. Where the class is dropped, all of them are.

    Validation gives `nats_per_code`, `bits_per_code` and `bits_per_image` on the held-out codes.

    Args:
        level: Which of the maps to model, 0 the coarsest.
        label_dropout: Share of labels replaced by "no class", so that the prior can be guided.
        subclass_dropout: Share of labels of parts replaced by that of the class, so that the prior
            knows what to expect if only the class is known.
        class_balance: See `balanced`; 0 trains on each record equally often.

    Raises:
        ValueError: A store that has no records, whose codes are not what the prior models, or that
            is of another VQ-VAE or of other classes than the other store; dropouts that are not
            shares; another level than the prior's.
    """
    for option, share in (
        ("label_dropout", label_dropout),
        ("subclass_dropout", subclass_dropout),
    ):
        check_field(option, share, number(0, below=1))
    if level != len(prior.config.condition_sizes):
        raise ValueError(
            f"expected level={len(prior.config.condition_sizes)} of a prior with that "
            f"many maps as its condition, got {level}."
        )
    for argument, store in (("train_set", train_set), ("held_out", held_out)):
        check_not_empty(argument, store)
        check_matches(store, prior.config)
    _check_one_source(train_set, held_out)
    prior.vqvae_hash = train_set.checkpoint_hash
    _keep_word_names(prior, train_set)
    classes, parts = prior.config.num_classes, prior.config.num_subclasses
    _check_same_classes(train_set, held_out, classes, parts)
    if parts and len(train_set.class_names) == classes:
        raise ValueError(
            f"{train_set.folder} has no parts of classes, and the prior has {parts} "
            "for each; make the codes with `vqvae2-fast extract --subclasses`, or set "
            "num_subclasses=0."
        )
    labels_of = labels_of_prior(train_set.class_names, classes, parts)
    held_out_labels_of = labels_of_prior(held_out.class_names, classes, parts)
    seen = balanced(train_set, class_balance)
    records: CodeSource = _labelled(seen, prior, labels_of, variants=True)

    def loss(
        model: nn.Module, batch: tuple[list[Tensor], Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        device = device_of(model)
        maps, labels = batch[0], None
        if prior.config.num_classes:
            labels = _dropped(batch[1].to(device), prior.config, label_dropout, subclass_dropout)
        condition = [codes.to(device) for codes in maps[:level]]
        nats = model(maps[level].to(device), condition or None, labels, as_loss=True)
        return nats, {}

    shown = held_out
    if config.validate_items:
        shown = held_out.select(evenly(len(held_out), config.validate_items))
    told = _labelled(shown, prior, held_out_labels_of)

    def validate(prior: Prior) -> dict[str, float]:
        ranks = Ranks.of_group()
        own = codes_in_order(told, config.batch_size, rank=ranks.rank, world_size=ranks.count)
        # All processes call a sharded prior equally often, some with an empty batch at the end.
        empty = repeat(told.batch(torch.arange(0, device="cpu")))
        rounds = -(-len(shown) // (config.batch_size * ranks.count))
        nats = torch.zeros((), dtype=torch.float64, device=device_of(prior))
        for maps, labels in islice(chain(own, empty), rounds):
            nats += code_nats(prior, maps, labels, level)
        total = float(ranks.sum_(nats))
        return asdict(Likelihood.of_sum(total, len(shown), math.prod(prior.config.size)))

    def own_batches(first: int) -> Iterator[tuple[list[Tensor], Tensor]]:
        cut = config.cut_of_group()
        return code_batches(records, cut.batch_size, seed=config.seed, start_step=first, cut=cut)

    return Stage(
        name=name,
        model=prior,
        batches=own_batches,
        loss=loss,
        validate=validate,
        headline="bits_per_image",
        lower_is_better=True,
        identity=lambda: {
            "codes": hash_of_codes(train_set),
            "held_out_codes": hash_of_codes(held_out),
            "label_dropout": label_dropout,
            **({"subclass_dropout": subclass_dropout} if prior.config.num_subclasses else {}),
            "class_balance": class_balance,
        },
    )


def _check_same_classes(
    train_set: CodeStore, held_out: CodeStore, num_classes: int, num_subclasses: int
) -> None:
    """Raises ValueError if a label of the prior would be another class in the other store."""
    if not num_classes:
        return
    found, others = (
        classes_of_prior(store.class_names, num_classes, num_subclasses)
        for store in (train_set, held_out)
    )
    if found != others:
        raise ValueError(
            "expected the same classes in both stores, got "
            f"{short(', '.join(found))} in {train_set.folder} and {short(', '.join(others))} in "
            f"{held_out.folder}; extract both from one set."
        )


def _dropped(
    labels: Tensor, config: PriorConfig, label_dropout: float, subclass_dropout: float
) -> Tensor:
    """Labels of a prior, a share of them replaced by "no class", and of parts by their class; of
    the words a share that is drawn for each record, and all of those without a class."""
    if labels.dim() == 2:
        shares = uniform_of_part(len(labels), labels.device)
        each = [uniform_of_part(len(labels), labels.device) for _ in labels[0, 1:]]
        bare = _dropped(labels[:, 0], config, label_dropout, subclass_dropout)
        words = [
            torch.where((drawn < shares) | config.label_layout.lacks_class(bare), -1, word)
            for drawn, word in zip(each, labels[:, 1:].unbind(1), strict=True)
        ]
        return torch.stack([bare, *words], dim=1)
    if not label_dropout and not (config.num_subclasses and subclass_dropout):
        return labels
    layout = config.label_layout
    drawn = uniform_of_part(len(labels), labels.device)
    only_class = layout.is_part(labels) & (drawn < label_dropout + subclass_dropout)
    labels = torch.where(only_class, layout.class_of_part(labels), labels)
    return torch.where(drawn < label_dropout, layout.without_class(labels), labels)


@dataclass(frozen=True)
class _LabelledCodes:
    """Records of a store with the labels that a prior is told.

    Args:
        labels_of: The prior's label for each class of the codes.
        own: Other labels of all records, int64 `[N]`, or `[N, 1 + W]` with words.
    """

    codes: CodeStore
    labels_of: Tensor
    own: Tensor | None = None

    def __len__(self) -> int:
        return len(self.codes)

    def batch(self, indices: Tensor) -> tuple[list[Tensor], Tensor]:
        maps, classes = self.codes.batch(indices)
        return maps, self.labels_of[classes] if self.own is None else self.own[indices]


def _labelled(
    codes: CodeStore, prior: Prior, labels_of: Tensor, *, variants: bool = False
) -> _LabelledCodes:
    """Records with the labels, and the words, that a prior is told.

    Args:
        labels_of: As of `_LabelledCodes`.
        variants: Whether it is told of changed images the kind and the class.

    Raises:
        ValueError: The store has another number of kinds than the prior.
    """
    config = prior.config
    if not config.num_words and not (variants and config.num_variants):
        return _LabelledCodes(codes, labels_of)
    labels = labels_of[codes.labels]
    if variants and config.num_variants:
        kinds = variants_of(codes)
        if int(kinds.max()) != config.num_variants:
            raise ValueError(
                f"expected codes of images changed in {config.num_variants} ways, got "
                f"{int(kinds.max())} in {codes.folder}."
            )
        of_variants = config.label_layout.of_variant(labels, kinds)
        labels = torch.where(kinds > 0, of_variants, labels)
    if config.num_words:
        _, words = words_of_codes(codes, prior.word_names)
        words = torch.where(words < 0, -1, words + config.label_layout.first_word)
        labels = torch.cat([labels[:, None], words], dim=1)
    return _LabelledCodes(codes, labels_of, labels)


def _keep_word_names(prior: Prior, codes: CodeStore) -> None:
    """Names the prior's words. Raises ValueError if the codes have others or another number."""
    expected = prior.config.num_words
    if not expected:
        return
    names, _ = words_of_codes(codes)
    if len(names) != expected or prior.word_names not in ((), names):
        raise ValueError(
            f"expected codes with the prior's {expected} words, got {len(names)} words in "
            f"{codes.folder}; make them with `vqvae2-fast extract --words`, or set num_words=0."
        )
    prior.word_names = names


def balanced(codes: CodeStore, power: float) -> CodeStore:
    """The store's records, with those of rarer classes repeated.

    Each record of a class of n occurs (n_max / n)^power times, rounded: 0 leaves the store as it
    is, 1 gives all classes about the size of the largest. Records without a label occur once.

    Raises:
        ValueError: If power is outside [0, 1].
    """
    check_field("class_balance", power, number(0, 1))
    if power == 0 or not codes.class_names:
        return codes
    sizes = torch.bincount(codes.labels + 1, minlength=len(codes.class_names) + 1).double()
    times = (sizes[1:].max() / sizes).pow(power).round().clamp(min=1)  # [1 + classes]
    times[0] = 1  # no label
    return codes.select(
        torch.arange(len(codes), device="cpu").repeat_interleave(times[codes.labels + 1].long())
    )


def _check_one_source(train_set: CodeStore, held_out: CodeStore) -> None:
    first, second = train_set.checkpoint_hash, held_out.checkpoint_hash
    if first and second and first != second:  # codes from elsewhere may name none
        raise ValueError(
            f"{train_set.folder} has codes of VQ-VAE {printable(first[:12])}, "
            f"{held_out.folder} of {printable(second[:12])}; extract both with one."
        )


def hash_of_codes(store: CodeStore) -> str:
    """A hash of a store's manifest, which has the checksums of its shards, and of a selection.

    Equal codes that were cut into other shards, as by another number of processes, have another.
    """
    manifest = store.manifest
    shards = [(shard.first, shard.records, shard.crc32) for shard in manifest.shards]
    what = (manifest.layout, manifest.class_names, manifest.checkpoint_hash, shards)
    digest = hashlib.sha256(repr(what).encode())
    if store.is_selection:
        digest.update(store.positions.numpy().tobytes())
    names, words = words_of_codes(store)
    if names:
        digest.update(repr(names).encode() + words.numpy().tobytes())
    return digest.hexdigest()
