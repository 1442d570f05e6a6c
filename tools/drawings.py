"""Draws the pictures of docs/index.md and docs/sampling.md, for light and dark pages.

python tools/drawings.py docs/images

Writes samples.png (the first samples of each class of avatars64 at the recommended settings, seed
0), and model.svg, two-phases.svg and two-phases-order.svg.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from PIL import Image

from vqvae2_fast import from_preset, sample_images
from vqvae2_fast.data import to_uint8

EACH, GAP = 5, 4  # samples of a class; pixels between samples

STYLE = """<style>
text { font: 14px system-ui, sans-serif; fill: #24292f; }
.small { font-size: 12px; } .title { font-weight: 600; }
.line { stroke: #57606a; fill: none; stroke-width: 1.5; }
.cell { fill: #f6f8fa; stroke: #8c959f; } .box { fill: #ddf4ff; stroke: #0969da; }
.known { fill: #b6e3ff; stroke: #0969da; } .left { fill: #ffd8a8; stroke: #bc4c00; }
.now { fill: #8250df; stroke: #8250df; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; } .line { stroke: #9198a1; } .cell { fill: #21262d; stroke: #6e7681; }
  .box { fill: #12314f; stroke: #58a6ff; } .known { fill: #1f4f7f; stroke: #58a6ff; }
  .left { fill: #7a4310; stroke: #f0883e; } .now { fill: #a371f7; stroke: #a371f7; }
}
</style>
<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7"
orient="auto-start-reverse"><path class="line" d="M1 1 L7 4 L1 7"/></marker></defs>
"""


def samples() -> Image.Image:
    """A column of each class."""
    pipeline = from_preset("avatars64")
    labels = torch.arange(len(pipeline.class_names)).repeat_interleave(EACH)
    images = sample_images(pipeline, len(labels), labels=labels, **pipeline.recommended)
    pixels = to_uint8(images).permute(0, 2, 3, 1).numpy()  # [classes * EACH, 64, 64, 3]
    side = pixels.shape[1] + GAP
    size = (len(pipeline.class_names) * side - GAP, EACH * side - GAP)
    picture = Image.new("RGB", size, "#f6f8fa")
    for number, image in enumerate(pixels):
        column, row = divmod(number, EACH)
        picture.paste(Image.fromarray(image), (column * side, row * side))
    return picture.quantize(256, dither=Image.Dither.NONE)


def svg(width: int, height: int, title: str, parts: list[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img"><title>{title}</title>\n{STYLE}'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text x="{x}" y="{y}" class="{kind}" text-anchor="{anchor}">{words}</text>'


def box(x: float, y: float, width: float, height: float, kind: str) -> str:
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="2" class="{kind}"/>'


def arrow(*points: tuple[float, float]) -> str:
    path = " L".join(f"{x} {y}" for x, y in points)
    return f'<path class="line" marker-end="url(#tip)" d="M{path}"/>'


def grid(x: float, y: float, kinds: list[str], side: int) -> list[str]:
    """Cells of a map, a letter each: known, left, now or empty."""
    names = {"k": "known", "l": "left", "n": "now", ".": "cell"}
    return [
        box(x + side * column, y + side * row, side - 2, side - 2, names[letter])
        for row, line in enumerate(kinds)
        for column, letter in enumerate(line)
    ]


def network(x: float, y: float, title: str, what: str) -> list[str]:
    middle = x + 60
    return [
        box(x, y, 120, 56, "box"),
        text(middle, y + 24, title, "title", "middle"),
        text(middle, y + 44, what, "small", "middle"),
    ]


def model() -> str:
    parts = [box(10, 100, 96, 96, "known"), text(58, 153, "image", "", "middle")]
    parts += network(146, 120, "encoder", "of the VQ-VAE")
    parts += grid(330, 60, ["kkkk"] * 4, 16) + [text(361, 48, "top map", "small", "middle")]
    parts += grid(315, 172, ["llllllll"] * 8, 12) + [
        text(362, 288, "bottom map", "small", "middle")
    ]
    parts += network(462, 120, "decoder", "of the VQ-VAE")
    parts += [box(622, 100, 96, 96, "known"), text(670, 153, "image", "", "middle")]
    parts += network(462, 24, "top prior", "p(top)") + network(
        462, 232, "bottom prior", "p(bottom | top)"
    )
    parts += [
        arrow((108, 148), (144, 148)),
        arrow((268, 140), (325, 95)),
        arrow((268, 156), (310, 200)),
        arrow((398, 96), (458, 138)),
        arrow((414, 206), (458, 160)),
        arrow((584, 148), (618, 148)),
        arrow((460, 52), (398, 78)),
        arrow((460, 262), (414, 240)),
    ]
    return svg(730, 304, "The VQ-VAE, its two code maps, and their priors", parts)


def two_phases() -> str:
    kinds = ["kkkkkkkk", "kkkkkkkk", "lllln...", "........"]
    parts = grid(10, 30, kinds, 34)
    parts.append(text(10, 20, "one map while a code is drawn", "small"))
    for row, (kind, words, more) in enumerate(
        (
            (
                "known",
                "rows above: finished when the row begins",
                "taken in by the row phase, all columns at once",
            ),
            (
                "left",
                "codes to the left in this row",
                "taken in by the pixel phase, one column at a time",
            ),
            ("now", "the code that is drawn now", ""),
            ("cell", "not yet drawn", ""),
        )
    ):
        y = 34 + row * 36
        parts += [box(306, y, 16, 16, kind), text(332, y + 13, words)]
        if more:
            parts.append(text(332, y + 28, more, "small"))
    return svg(700, 180, "What the two phases of the sampler read", parts)


def order() -> str:
    parts = []
    for row, y in enumerate((34, 94)):
        x = 74
        parts.append(text(10, y + 21, f"row {row + 1}"))
        parts.append(box(x, y, 200, 32, "known"))
        parts.append(text(x + 100, y + 21, "row phase: all 8 columns", "small", "middle"))
        for column in range(8):
            left = x + 208 + column * 44
            parts.append(box(left, y, 38, 32, "left"))
            parts.append(text(left + 19, y + 21, f"{column + 1}", "small", "middle"))
    parts += [
        text(74, 20, "time", "small"),
        arrow((110, 16), (630, 16)),
        arrow((640, 50), (652, 50), (652, 80), (40, 80), (40, 96)),
    ]
    return svg(664, 140, "Two rows: a row phase, then the codes one by one", parts)


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit("usage: python tools/drawings.py docs/images")
    out = Path(sys.argv[1])
    samples().save(out / "samples.png", optimize=True)
    for name, drawn in (
        ("model", model()),
        ("two-phases", two_phases()),
        ("two-phases-order", order()),
    ):
        (out / f"{name}.svg").write_text(drawn, encoding="utf-8")


if __name__ == "__main__":
    main()
