"""A VQ-VAE with the priors of its levels, and images drawn from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from vqvae2_fast.console.tables import html_summary
from vqvae2_fast.files.printable import short
from vqvae2_fast.machine.quota import within_quota
from vqvae2_fast.models.code_checks import check_known, check_prior_fits
from vqvae2_fast.models.prior import Prior
from vqvae2_fast.models.vqvae2 import VQVAE2
from vqvae2_fast.modules.contexts import device_of, evaluating, without_compiler
from vqvae2_fast.ops._checks import checked_integer, type_in_words
from vqvae2_fast.sampling.candidates import draw_candidates
from vqvae2_fast.sampling.labels import check_words, label_tensor, labels_of_level
from vqvae2_fast.sampling.prior import checked_interface, interface_of
from vqvae2_fast.sampling.sampler import draw
from vqvae2_fast.sampling.settings import level_settings
from vqvae2_fast.sampling.subclasses import subclass_labels

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vqvae2_fast.sampling.labels import Labels
    from vqvae2_fast.sampling.request import Drawn
    from vqvae2_fast.sampling.settings import DrawSettings

__all__ = [
    "Pipeline",
    "check_is_pipeline",
    "decoded",
    "decoded_singly",
    "draw_levels",
    "num_levels_of",
    "sample_images",
    "sample_levels",
]


# The settings that a pipeline may recommend: those that change its codes, not how they are
# computed.
_RECOMMENDED = ("temperature", "top_k", "top_p", "guidance_scale")


class Decoder(Protocol):
    def decode(self, codes: list[Tensor]) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Pipeline:
    """Everything that is needed to draw images.

    Args:
        vqvae: Anything with `decode(codes)`, codes a list of maps, coarse to fine. Of a module that
            `torch.compile` has wrapped, here and among the priors, the pipeline takes the original.
        priors: One per level, coarse to fine; each is conditioned on all levels before it.
        class_names: One per class of the priors, or none. By default those of the first prior that
            was loaded with a name for each class.
        recommended: `temperature`, `top_k`, `top_p`, `guidance_scale` that suit the priors, each
            one value or one per level. `vqvae2-fast sample` uses them; `sample_images` uses what it
            is given.

    Raises:
        ValueError: Another number of priors than levels of the VQ-VAE, a prior of another K than
            the VQ-VAE's, or whose condition sizes are not the sizes of the levels before it,
            another number of names than classes, different numbers of parts of a class, or an
            unknown recommended setting.
        TypeError: A model in another's place, or a string as `class_names`.
    """

    vqvae: Decoder
    priors: Sequence[nn.Module]
    class_names: tuple[str, ...] = ()
    recommended: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._check_kinds()
        object.__setattr__(self, "vqvae", without_compiler(self.vqvae))
        object.__setattr__(self, "priors", tuple(map(without_compiler, self.priors)))
        object.__setattr__(self, "class_names", tuple(self.class_names))
        object.__setattr__(self, "recommended", dict(self.recommended))
        if not self.priors:
            raise ValueError("expected at least one prior, got none.")
        if isinstance(self.vqvae, VQVAE2) and len(self.priors) != self.vqvae.config.num_levels:
            names = self.vqvae.level_names
            raise ValueError(
                f"expected priors to be {len(names)}, one for each level of the VQ-VAE "
                f"({', '.join(names)}), coarse to fine, got {len(self.priors)}."
            )
        sizes: list[tuple[int, int]] = []
        for level, prior in enumerate(self.priors):
            if prior is None:
                raise TypeError(f"expected priors[{level}] to be a prior, got None.")
            interface = checked_interface(prior)
            sizes.append(interface.size)
            config = getattr(self.vqvae, "config", interface)
            check_prior_fits(f"priors[{level}]", interface, config.num_embeddings, sizes)
        counts = {interface_of(prior).num_classes for prior in self.priors} - {0}
        known = {tuple(getattr(prior, "class_names", ())) for prior in self.priors} - {()}
        if len(counts) > 1 or len(known) > 1:
            raise ValueError(
                "expected priors of the same classes or of none, got "
                + " and ".join(
                    f"{interface_of(prior).num_classes} "
                    f"({short(', '.join(getattr(prior, 'class_names', ()))) or 'no names'})"
                    for prior in self.priors
                )
                + ": a label would be another class at another level."
            )
        if not self.class_names and self.num_classes:
            names = next((found for found in known if len(found) == self.num_classes), ())
            object.__setattr__(self, "class_names", names)
        if self.num_classes and len(self.class_names) not in (0, self.num_classes):
            raise ValueError(
                f"expected class_names of {self.num_classes} names, one per class, got "
                f"{len(self.class_names)}."
            )
        counts_of_words = {interface_of(prior).num_words for prior in self.priors} - {0}
        words = {tuple(getattr(prior, "word_names", ())) for prior in self.priors} - {()}
        if len(counts_of_words) > 1 or len(words) > 1:
            raise ValueError(
                "expected priors with the same words or none, got "
                f"{' and '.join(map(str, sorted(counts_of_words)))} words"
                f"{' of different names' if len(words) > 1 else ''}."
            )
        parts = {interface_of(prior).num_subclasses for prior in self.priors} - {0}
        if len(parts) > 1:
            raise ValueError(
                "expected priors with as many parts of a class (num_subclasses) or none, "
                f"got {' and '.join(map(str, sorted(parts)))}: a sample is of one part at all "
                "levels."
            )
        unknown = self.recommended.keys() - _RECOMMENDED
        if unknown:
            raise ValueError(
                f"expected recommended to name some of {', '.join(_RECOMMENDED)}, got "
                f"{short(', '.join(sorted(unknown)))}."
            )
        level_settings(len(self.priors), **self.recommended)

    def _check_kinds(self) -> None:
        """Raise TypeError for arguments that are in the wrong place."""
        if not callable(getattr(self.vqvae, "decode", None)):
            raise TypeError(
                "expected vqvae to be a model with decode(codes), such as a VQVAE2, got "
                f"{type_in_words(self.vqvae)}; the order is Pipeline(vqvae, priors)."
            )
        if not isinstance(self.priors, Iterable) or isinstance(self.priors, str | Mapping):
            raise TypeError(
                "expected priors to be a list, one per level coarse to fine, got "
                f"{type_in_words(self.priors)}; pass a single prior as [prior]."
            )
        if isinstance(self.class_names, str):
            raise TypeError(
                "expected class_names to be a list of names, one per class, got "
                f"{self.class_names!r}."
            )

    @property
    def num_classes(self) -> int:
        """Classes of the priors; 0 if none of them has classes."""
        return max(interface_of(prior).num_classes for prior in self.priors)

    @property
    def num_words(self) -> int:
        """Words that the priors may be told beside a class; 0 if none of them has words."""
        return max(interface_of(prior).num_words for prior in self.priors)

    @property
    def word_names(self) -> tuple[str, ...]:
        """The words of the priors, such as "glasses=any", if they are known."""
        names = (tuple(getattr(prior, "word_names", ())) for prior in self.priors)
        return next((found for found in names if found), ())

    def _repr_html_(self) -> str:
        """What a notebook shows: the VQ-VAE, the priors, the classes and the settings."""
        rows = []
        for prior in self.priors:
            interface, config = interface_of(prior), getattr(prior, "config", None)
            rows.append(
                [
                    "×".join(map(str, interface.size)),
                    f"{interface.num_embeddings:,}",
                    f"{type(prior).__name__}" + (f", {config.summary()}" if config else ""),
                    f"{sum(weight.numel() for weight in prior.parameters()):,}",
                ]
            )
        names = ", ".join(self.class_names) or f"{self.num_classes or 'none'}"
        settings = ", ".join(f"{name} {value}" for name, value in self.recommended.items())
        lead = f"Priors. Classes: {short(names, 400)}. Recommended: {settings or 'the defaults'}."
        header = ("map", "codes", "prior", "parameters")
        of_vqvae = getattr(self.vqvae, "_repr_html_", lambda: "")()
        return f"{of_vqvae}{html_summary(lead, header, rows)}"

    def networks(self) -> tuple[VQVAE2, list[Prior]]:
        """The models with their types, for callers that need more than `decode` and an interface.

        Raises:
            TypeError: Models of other types.
        """
        priors = [prior for prior in self.priors if isinstance(prior, Prior)]
        if not isinstance(self.vqvae, VQVAE2) or len(priors) < len(self.priors):
            found = ", ".join(type(model).__name__ for model in (self.vqvae, *self.priors))
            raise TypeError(f"expected a VQVAE2 and priors of class Prior, got {found}.")
        return self.vqvae, priors

    def to(self, device: torch.device | str) -> Pipeline:
        """Moves all models to a device, in place as `nn.Module.to` does."""
        for module in self._modules():
            module.to(device)
        return self

    def eval(self) -> Pipeline:
        """Sets all models to evaluation mode, in place. Drawing and decoding need no such call."""
        return self.train(False)

    def train(self, mode: bool = True) -> Pipeline:
        """Sets all models to training mode, or to evaluation mode, in place."""
        for module in self._modules():
            module.train(mode)
        return self

    def _modules(self) -> list[nn.Module]:
        decoder = [self.vqvae] if isinstance(self.vqvae, nn.Module) else []
        return [*decoder, *self.priors]


def draw_levels(
    pipeline: Pipeline,
    batch_size: int,
    settings: Sequence[DrawSettings],
    *,
    labels: Labels = None,
    first_sample: int = 0,
    known: Sequence[Tensor | None] | None = None,
    candidates: int | None = None,
    return_log_prob: bool = False,
    progress: Callable[[int, int, int], None] | None = None,
) -> list[Drawn]:
    """Draw like `sample_levels`, with the settings of each level as one object.

    Args:
        candidates: Draw the free codes of each map this many times, and take one of these fillings
            by what follows, see `draw_candidates`.
    """
    batch_size = checked_integer("batch_size", batch_size, 1, 2**32)
    first_sample = checked_integer("first_sample", first_sample, 0, 2**32 - batch_size)
    check_known(known, len(pipeline.priors))
    numbers = None
    if pipeline.num_classes == 0:
        if labels is not None:
            raise ValueError("expected no labels: no prior has classes.")
        scales = [level.guidance_scale for level in settings if level.guided]
        if scales:
            raise ValueError(f"expected guidance_scale=1: no prior has classes, got {scales[0]}.")
    else:
        numbers = label_tensor(labels, pipeline.num_classes, pipeline.class_names)
        if numbers is not None:
            check_words(numbers, pipeline.num_classes, pipeline.num_words)
    drawn: list[Drawn] = []
    for level, (prior, own) in enumerate(zip(pipeline.priors, settings, strict=True)):
        # A level without classes is drawn without label and guidance; the others use them.
        interface, level_labels = interface_of(prior), None
        has_classes = interface.num_classes > 0
        if has_classes and numbers is not None:
            samples = torch.arange(first_sample, first_sample + len(numbers), device="cpu")
            classes = numbers if numbers.dim() < 2 else numbers[:, 0]
            classes = subclass_labels(interface, classes, samples, seed=own.seed, known=known or ())
            level_labels = labels_of_level(interface, classes, numbers)
        common: dict[str, Any] = {
            "settings": own if has_classes else replace(own, guidance_scale=1.0),
            "condition": [coarser.codes for coarser in drawn],
            "labels": level_labels,
            "known": None if known is None else known[level],
            "first_sample": first_sample,
            "stream": level,
            "progress": None if progress is None else partial(progress, level),
        }
        if candidates is None:
            drawn.append(draw(prior, batch_size, return_log_prob=return_log_prob, **common))
        else:
            drawn.append(draw_candidates(prior, batch_size, candidates=candidates, **common))
    return drawn


def sample_levels(
    pipeline: Pipeline,
    batch_size: int,
    *,
    labels: Labels = None,
    first_sample: int = 0,
    known: Sequence[Tensor | None] | None = None,
    return_log_prob: bool = False,
    progress: Callable[[int, int, int], None] | None = None,
    **settings: Any,
) -> list[Tensor] | tuple[list[Tensor], list[Tensor]]:
    """Draw the code maps of all levels, coarse to fine; arguments as in `sample_images`.

    Args:
        return_log_prob: Also return float32 `[B, h, w]` per level, as `sample_codes` does.
        settings: Fields of `DrawSettings`, each one value or one per level, coarse to fine; the
            seed is one for all.
    """
    drawn = draw_levels(
        pipeline,
        batch_size,
        level_settings(num_levels_of(pipeline), **settings),
        labels=labels,
        first_sample=first_sample,
        known=known,
        return_log_prob=return_log_prob,
        progress=progress,
    )
    maps = [level.codes for level in drawn]
    if not return_log_prob:
        return maps
    return maps, [level.log_prob for level in drawn if level.log_prob is not None]


def check_is_pipeline(pipeline: object) -> None:
    """Raise TypeError for anything but a pipeline, such as one of its models."""
    if not isinstance(pipeline, Pipeline):
        raise TypeError(
            f"expected a Pipeline, got {type_in_words(pipeline)}: make one by "
            "Pipeline(vqvae, priors)."
        )


def num_levels_of(pipeline: Pipeline) -> int:
    """The levels of a pipeline; TypeError for anything else."""
    check_is_pipeline(pipeline)
    return len(pipeline.priors)


def sample_images(
    pipeline: Pipeline,
    batch_size: int,
    *,
    labels: Labels = None,
    seed: int = 0,
    first_sample: int = 0,
    temperature: float | Sequence[float] = 1.0,
    top_k: int | None | Sequence[int | None] = None,
    top_p: float | None | Sequence[float | None] = None,
    guidance_scale: float | Sequence[float] = 1.0,
    known: Sequence[Tensor | None] | None = None,
    engine: str = "auto",
    progress: Callable[[int, int, int], None] | None = None,
) -> Tensor:
    """Draw images: the code maps level by level, coarse to fine, then decoded.

    Level l draws with noise stream l, conditioned on the maps drawn before. Image n of a seed is
    row `n - first_sample`, whatever the batch.

    Args:
        pipeline: What to draw from.
        batch_size: B.
        labels: Given to every prior with classes: int64 `[B]`, or a list of numbers and names, such
            as ["cat", "dog", 3]; None in it stands for no class. `with_words` adds words, such as
            "glasses=any", for priors that have some. For priors with hidden parts of
            classes (`num_subclasses`) a part of its class is drawn for each image.
        temperature, top_k, top_p, guidance_scale: One value, or one per level, coarse to
            fine; see `sample_codes`.
        known: Per level int64 `[B, h, w]` with -1 where a code is to be drawn, or None.
        seed, first_sample: Row b is sample `first_sample + b` of the seed.
        engine: Of every level; see `sample_codes`.
        progress: Called with (level, rows done, rows of its map).

    Returns:
        float `[B, C, H, W]` in [-1, 1].

    Raises:
        ValueError, TypeError, RuntimeError, NotImplementedError: As `sample_codes`, or a list
            without one entry per level, or a model in place of a pipeline.
    """
    settings = level_settings(
        num_levels_of(pipeline),
        seed=seed,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        guidance_scale=guidance_scale,
        engine=engine,
    )
    drawn = draw_levels(
        pipeline,
        batch_size,
        settings,
        labels=labels,
        first_sample=first_sample,
        known=known,
        progress=progress,
    )
    return decoded_singly(pipeline, [level.codes for level in drawn])


def decoded_singly(pipeline: Pipeline, maps: list[Tensor]) -> Tensor:
    """`decoded`, one image at a time: an image's pixels do not depend on the others."""
    images = [decoded(pipeline, [level[i : i + 1] for level in maps]) for i in range(len(maps[0]))]
    return torch.cat(images)


@within_quota()
def decoded(pipeline: Pipeline, maps: list[Tensor]) -> Tensor:
    """Images `[B, C, H, W]` in [-1, 1] of code maps, coarse to fine."""
    with torch.no_grad():
        if not isinstance(pipeline.vqvae, nn.Module):
            return pipeline.vqvae.decode(maps).clamp(-1, 1)
        device = device_of(pipeline.vqvae)
        with evaluating(pipeline.vqvae):
            return pipeline.vqvae.decode([codes.to(device) for codes in maps]).clamp(-1, 1)
