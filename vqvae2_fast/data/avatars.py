"""Avatars: images without end, drawn by DiceBear's styles, with the parts that each is made of.

A style is a finite grammar: drawings of each part (hair, eyes, a hat) and palettes, from which a
seed chooses. So a set may have any number of images of any size, and what is in each of them is
known. Images are held out by combinations of two parts, which training then never sees together.

`pip install 'vqvae2_fast[avatars]'` installs the generator (MIT), its styles and a renderer of SVG.
Only styles that are in the public domain (CC0) are drawn.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections import Counter
from dataclasses import dataclass
from importlib import metadata, resources
from itertools import product
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vqvae2_fast.console.words import did_you_mean
from vqvae2_fast.data.image_cache import open_cache, write_cache
from vqvae2_fast.data.images import ImageTensorDataset, Split, check_split, stable_hash
from vqvae2_fast.files.printable import short

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from dicebear import Style

__all__ = ["AVATAR_STYLES", "AvatarImages", "avatar_options", "load_avatars"]

AVATAR_STYLES = (
    "clay",
    "critters",
    "cutouts",
    "gaze",
    "landscape",
    "lorelei",
    "moods",
    "notionists",
    "open-peeps",
    "pixel-art",
    "pixelbot",
    "planets",
    "sprouts",
    "thumbs",
    "voxel-art",
    "voxel-bot",
)
MIN_SIZE, MAX_SIZE = 16, 512  # pixels
NONE = "none"  # the value of a part that an image does not have
_VERSION = 1  # of how images are drawn and held out: part of the cache's key
_PACKAGES = ("dicebear-core", "dicebear-styles", "resvg-py", "pillow")
_STYLES = "dicebear_styles"  # the package with a JSON file for each style
_BATCH = 64  # images that a process draws at a time


class AvatarImages(ImageTensorDataset):
    """Avatars with their styles as classes.

    `attributes` has a table for each image: the names of its style's parts and colours, as DiceBear
    calls them, and which the image has, such as {"eyes": "variant03", "glasses": "none",
    "skinColor": "#d08b5b"}. `held_out_parts` names the two parts by which each style was split.
    """

    def __init__(self, cached: ImageTensorDataset, extra: Mapping[str, Any]) -> None:
        super().__init__(cached.images, cached.labels, cached.class_names, cached.names)
        self._cached = cached
        self.held_out_parts: dict[str, tuple[str, str]] = {
            style: (first, second) for style, (first, second) in extra["held_out_parts"].items()
        }
        self.attributes: tuple[dict[str, str], ...] = tuple(
            dict(zip(extra["parts"][self.class_names[label]], values, strict=True))
            for label, values in zip(self.labels.tolist(), extra["values"], strict=True)
        )

    @property
    def images(self) -> Tensor:
        return self._cached.images  # which is checked before each use, as it is mapped


def load_avatars(
    split: Split = "train",
    size: int = 64,
    *,
    styles: Sequence[str] = AVATAR_STYLES,
    count: int = 600,
    seed: int = 0,
    held_out_fraction: float = 0.1,
    cache: str | os.PathLike[str] | None = None,
    keep: bool = True,
    num_workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> AvatarImages:
    """Avatars as uint8 `[N, 3, size, size]`, on white where a style has no ground of its own.

    Of the two parts of a style that have the most variants, a tenth of the pairs is held out with
    all images that have one of them. Each variant stays in training with other partners.

    Args:
        split: "train", "held_out" or "all".
        size: Height and width, 16 to 512 pixels.
        styles: Names of CC0 styles of DiceBear, which are the classes in this order.
        count: Images of each style, with the held-out ones.
        seed: Of the images and of what is held out. The images of a seed are the same in a set of
            any number of images, styles and processes.
        held_out_fraction: Share of the pairs of parts that are held out.
        cache: Folder for the drawn images, where they are found again; without it they are drawn
            into a file that goes with this process.
        keep: Whether images that are not in the cache yet are put there.
        num_workers: Processes that draw; by default one for each thread of PyTorch.
        progress: Called with the numbers of images that are done and of all.

    Raises:
        ValueError: An unknown split; no such style, or one that is not CC0, has letters, or has
            fewer than two parts; a size, a number or a share out of range; an empty split.
        RuntimeError: The generator is not installed.
    """
    check_split(split, held_out_fraction)
    if not MIN_SIZE <= size <= MAX_SIZE:
        raise ValueError(f"expected size to be {MIN_SIZE} to {MAX_SIZE} pixels, got {size}.")
    if count < 1:
        raise ValueError(f"expected count to be 1 or more images of each style, got {count}.")
    if not styles or len(set(styles)) < len(styles):
        raise ValueError(f"expected styles to be one or more different names, got {short(styles)}.")
    try:
        versions = [metadata.version(package) for package in _PACKAGES]
    except metadata.PackageNotFoundError as error:
        raise RuntimeError(
            f"avatars need the package {error.name}: pip install 'vqvae2_fast[avatars]'"
        ) from error
    definitions = {style: _definition(style) for style in styles}
    settings = (tuple(styles), count, seed, held_out_fraction)
    digest = hashlib.sha256(repr(settings).encode()).hexdigest()[:8]
    name = f"avatars-{digest}-{split}-{size}x{size}"
    key = repr((_VERSION, versions, settings, split, size))
    found = None if cache is None else open_cache(cache, name, key)
    if found is not None:
        return AvatarImages(found, found.extra)

    total = count * len(styles)
    report = progress or (lambda done, total: None)
    report(0, total)
    drawing = _Drawing(definitions, seed, size, split, held_out_fraction)
    workers = torch.get_num_threads() if num_workers is None else num_workers
    names: list[str] = []
    values: list[list[str]] = []

    def content() -> Iterator[tuple[Tensor, Tensor]]:
        done = 0
        for images, labels, numbers, attributes in _drawn(drawing, count, workers):
            yield images, labels
            names.extend(numbers)
            values.extend(attributes)
            done = min(total, done + _BATCH)
            report(done, total)
        if not names:
            raise ValueError(f"split {split} is empty; change held_out_fraction, or draw more.")

    with TemporaryDirectory() as temporary:  # whose file stays mapped when its name is gone
        made = write_cache(
            cache if cache is not None and keep else temporary,
            name,
            key,
            content(),
            (3, size, size),
            lambda: tuple(styles),
            lambda: tuple(names),
            lambda: {
                "held_out_parts": {s.name: s.held_out_parts for s in drawing.styles},
                "parts": {s.name: list(s.parts) for s in drawing.styles},
                "values": values,
            },
        )
    return AvatarImages(made, made.extra)


def avatar_options(text: str) -> dict[str, Any]:
    """Arguments of `load_avatars` in a text: "lorelei+thumbs,count=1000,seed=3" or a part of it.

    Raises:
        ValueError: Another setting than count and seed, or one that is no whole number.
    """
    options: dict[str, Any] = {}
    styles: list[str] = []
    for part in filter(None, re.split("[+,]", text)):
        name, equals, value = part.partition("=")
        if not equals:
            styles.append(name)
        elif name not in ("count", "seed") or not re.fullmatch("[0-9]{1,18}", value):
            raise ValueError(
                "expected avatars, or avatars:STYLE+STYLE,count=N,seed=N or a part of it, with "
                f"whole numbers, got {short(part)}."
            )
        else:
            options[name] = int(value)
    return options | ({"styles": tuple(styles)} if styles else {})


def _definition(style: str) -> dict[str, Any]:
    """A style's definition, if it may be drawn."""
    folder = resources.files(_STYLES)
    known = sorted(path.name[:-5] for path in folder.iterdir() if path.name.endswith(".json"))
    if style not in known:
        raise ValueError(
            f"expected styles of DiceBear, such as {', '.join(AVATAR_STYLES)}, got "
            f"{short(style)}.{did_you_mean(style, known)}"
        )
    text = (folder / f"{style}.json").read_text(encoding="utf-8")
    definition: dict[str, Any] = json.loads(text)
    licence = definition["meta"]["license"]["name"]
    if licence != "CC0 1.0":
        raise ValueError(
            f"style {style} is not in the public domain: its licence is {short(licence)}. Only CC0 "
            f"styles are drawn, such as {', '.join(AVATAR_STYLES)}."
        )
    if "fontFamily" in text:
        raise ValueError(f"style {style} draws letters in a font, which differs between machines.")
    return definition


@dataclass(frozen=True)
class _Style:
    """A style, and what of it is held out.

    Args:
        parts: For each part and colour that varies, its values in the definition.
        held_out_parts: The two parts with the most variants.
        held_out: Their pairs of values that are held out.
    """

    name: str
    style: Style
    parts: dict[str, tuple[str, ...]]
    held_out_parts: tuple[str, str]
    held_out: frozenset[tuple[str, str]]

    @classmethod
    def of(cls, name: str, definition: dict[str, Any], seed: int, fraction: float) -> _Style:
        from dicebear import Style

        style = Style(definition)
        components = style.components()
        drawings: dict[str, tuple[str, ...]] = {}
        for part, component in components.items():
            variants = [v for v, variant in component.variants().items() if variant.weight() > 0]
            absent = [NONE] if component.probability() < 100 else []
            drawings[part] = (*variants, *absent)
        colours = {f"{colour}Color": tuple(c.values()) for colour, c in style.colors().items()}
        parts = {part: found for part, found in (drawings | colours).items() if len(found) > 1}
        # A part that others repeat is a small one, such as each star of a sky.
        repeated = {component.extends_name() for component in components.values()} - {None}
        once = [p for p, c in components.items() if p in parts and c.source_name() not in repeated]
        if len(once) < 2:
            raise ValueError(
                f"style {name} has fewer than two parts that vary: nothing to combine."
            )
        first, second = sorted(once, key=lambda part: -len(parts[part]))[:2]
        held_out = _held_out(f"{seed}/{name}", parts[first], parts[second], fraction)
        return cls(name, style, parts, (first, second), held_out)

    def avatar(self, seed: str) -> tuple[str, dict[str, str]]:
        """The SVG of an image, and the values of its parts."""
        from dicebear import Avatar

        drawn = Avatar(self.style, {"seed": seed}).to_json()
        chosen = drawn["options"]
        values = {}
        for part in self.parts:
            value = chosen.get(part if part.endswith("Color") else f"{part}Variant") or NONE
            values[part] = value if isinstance(value, str) else "+".join(value)
        return drawn["svg"], values


def _held_out(
    name: str, first: Sequence[str], second: Sequence[str], fraction: float
) -> frozenset[tuple[str, str]]:
    """The pairs that are held out: those of the lowest hashes, so that each value keeps a pair."""
    pairs = sorted(product(first, second), key=lambda pair: stable_hash("/".join((name, *pair))))
    wanted = max(1, round(fraction * len(pairs))) if fraction > 0 else 0
    left = Counter({("first", a): len(second) for a in first})
    left.update({("second", b): len(first) for b in second})
    held: set[tuple[str, str]] = set()
    for a, b in pairs:
        if len(held) < wanted and min(left["first", a], left["second", b]) > 1:
            held.add((a, b))
            left.subtract([("first", a), ("second", b)])
    return frozenset(held)


_Drawn = tuple[Tensor, Tensor, list[str], list[list[str]]]


class _Drawing(Dataset[_Drawn]):
    """Draws the images of a split by their numbers: styles take turns."""

    def __init__(
        self,
        definitions: Mapping[str, dict[str, Any]],
        seed: int,
        size: int,
        split: Split,
        fraction: float,
    ) -> None:
        self.styles = [_Style.of(name, d, seed, fraction) for name, d in definitions.items()]
        self._seed, self._size, self._split = seed, size, split

    def __getitems__(self, numbers: list[int]) -> _Drawn:
        """Images of those numbers that are in the split, labels, names, and values of the parts."""
        images, labels, names, rows = [], [], [], []
        for number in numbers:
            turn, label = divmod(number, len(self.styles))
            style = self.styles[label]
            svg, values = style.avatar(f"{self._seed}/{style.name}/{turn}")
            first, second = style.held_out_parts
            side = "held_out" if (values[first], values[second]) in style.held_out else "train"
            if self._split in ("all", side):
                images.append(_rendered(svg, self._size))
                labels.append(label)
                names.append(f"{style.name}/{turn}")
                rows.append(list(values.values()))
        shape = (len(images), 3, self._size, self._size)
        return (
            torch.stack(images) if images else torch.empty(shape, dtype=torch.uint8, device="cpu"),
            torch.tensor(labels, dtype=torch.int64, device="cpu"),
            names,
            rows,
        )


def _drawn(drawing: _Drawing, count: int, workers: int) -> Iterator[_Drawn]:
    """All batches in the order of the numbers, whichever processes draw them."""
    order = torch.arange(count * len(drawing.styles), device="cpu").split(_BATCH)
    loader = DataLoader(
        drawing,
        batch_sampler=[numbers.tolist() for numbers in order],
        num_workers=min(workers, len(order)) if workers > 1 else 0,
        collate_fn=_as_it_is,
        generator=torch.Generator(),  # so that it does not advance the global one
    )
    return iter(loader)


def _as_it_is(batch: Any) -> Any:
    return batch


def _rendered(svg: str, size: int) -> Tensor:
    """uint8 `[3, size, size]`: rendered at twice the size on white, and reduced."""
    from resvg_py import svg_to_bytes

    png = svg_to_bytes(
        svg_string=svg, width=2 * size, height=2 * size, background="white", skip_system_fonts=True
    )
    with Image.open(io.BytesIO(png), formats=("PNG",)) as image:
        reduced = image.convert("RGB").resize((size, size), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(reduced)).permute(2, 0, 1).contiguous()
