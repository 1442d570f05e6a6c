"""Horizontal bars on linear axes from zero as SVG, for light and dark pages."""

from __future__ import annotations

from typing import NamedTuple

WIDTH, ROW, BAR, TOP, MARGIN = 680, 26, 16, 58, 12
LABELS, LETTER = 185, 8.8  # the room left of the bars; about the width of a letter
STYLE = """<style>
text { font: 14px system-ui, -apple-system, "Segoe UI", sans-serif; fill: #24292f; }
.title { font-size: 16px; font-weight: 600; } .small { font-size: 12px; fill: #57606a; }
.page { fill: #ffffff; }
.ours { fill: #0969da; } .other { fill: #afb8c1; } text.ours { font-weight: 600; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; } .small { fill: #9198a1; } .ours { fill: #58a6ff; }
  .page { fill: #0d1117; } .other { fill: #57606a; }
}
</style>"""


class Bar(NamedTuple):
    label: str
    value: float
    told: str  # the value in words
    note: str  # next to it
    ours: bool


class Panel(NamedTuple):
    title: str
    bars: list[Bar]


def picture(title: str, panels: list[Panel], under: list[str]) -> str:
    """Panels side by side, each with an axis of its own; each row of the first is labelled. Under
    them are lines of conditions."""
    labels = [bar.label for bar in panels[0].bars]
    bottom = TOP + ROW * len(labels)
    height = bottom + 16 * len(under) + 12
    room = (WIDTH - LABELS) // len(panels)
    parts = [_text(0, 18, title, "title")]
    parts += [_text(0, bottom + 18 + 16 * row, line, "small") for row, line in enumerate(under)]
    for row, bar in enumerate(panels[0].bars):
        kind = "ours" if bar.ours else ""
        parts.append(_text(LABELS - 10, TOP + ROW * row + 13, bar.label, kind, "end"))
    for number, panel in enumerate(panels):
        left = LABELS + room * number
        parts.append(_text(left, TOP - 12, panel.title, "small"))
        longest = max(len(bar.told) + len(bar.note) for bar in panel.bars)
        scale = (room - 20 - LETTER * longest) / max(bar.value for bar in panel.bars)
        for bar in panel.bars:
            top = TOP + ROW * labels.index(bar.label)
            width = max(1.0, scale * bar.value)
            kind = "ours" if bar.ours else "other"
            parts.append(
                f'<rect x="{left}" y="{top}" width="{width:.1f}" height="{BAR}" class="{kind}"/>'
            )
            told = f"{bar.told}, {bar.note}" if bar.note else bar.told
            parts.append(_text(left + width + 6, top + 13, told, "ours" if bar.ours else ""))
    # The page is a part of it: GitHub may be dark where the browser prefers light.
    wide, high = WIDTH + 2 * MARGIN, height + 2 * MARGIN
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-{MARGIN} -{MARGIN} {wide} {high}" '
        f'width="{wide}" height="{high}" role="img"><title>{title}</title>\n{STYLE}\n'
        f'<rect x="-{MARGIN}" y="-{MARGIN}" width="{wide}" height="{high}" class="page"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    of_kind = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}"{of_kind}>{words}</text>'
