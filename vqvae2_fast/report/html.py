"""A report as one HTML file, with its pictures embedded."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from vqvae2_fast.console.tables import html_table
from vqvae2_fast.files.durable import write_file

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["Section", "write_report"]

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1e1e1e; background: #fff; margin: 2rem auto;
       max-width: 1100px; padding: 0 1rem; }
h1 { font-size: 1.7rem; margin-bottom: .2rem; } h2 { margin-top: 2.2rem; font-size: 1.25rem; }
p { max-width: 75ch; } img { max-width: 100%; height: auto; border: 1px solid #ddd; }
table { border-collapse: collapse; } td, th { padding: .3rem .9rem .3rem 0; text-align: left;
       border-bottom: 1px solid #ddd; vertical-align: top; } td.number { text-align: right;
       font-variant-numeric: tabular-nums; white-space: nowrap; }
.met { color: #176b2c; } .missed { color: #a31515; } footer { color: #666; margin-top: 3rem; }
"""


@dataclass(frozen=True)
class Section:
    """Part of a report: a heading, text, and a table or a picture.

    Args:
        rows: The cells of each row. Cells "met" and "missed" are coloured, and cells that begin
            with a digit or a sign are aligned to the right.
    """

    heading: str
    text: str = ""
    header: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    picture: Path | None = None


def write_report(path: Path, title: str, lead: str, sections: Sequence[Section], foot: str) -> None:
    """Write a report to the HTML file `path`.

    Args:
        lead: A paragraph below the title.
        foot: A line at the end.
    """
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1><p>{escape(lead)}</p>",
    ]
    for section in sections:
        parts.append(f"<h2>{escape(section.heading)}</h2>")
        if section.text:
            parts.append(f"<p>{escape(section.text)}</p>")
        if section.rows:
            parts.append(html_table(section.header, section.rows))
        if section.picture:
            image = base64.b64encode(section.picture.read_bytes()).decode()
            parts.append(
                f'<img alt="{escape(section.heading)}" src="data:image/png;base64,{image}">'
            )
    parts.append(f"<footer>{escape(foot)}</footer></body></html>\n")
    write_file(path, "\n".join(parts).encode())
