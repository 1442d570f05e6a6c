"""Tables in HTML: what a notebook shows of an object, and parts of a report."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["html_summary", "html_table"]


def html_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table.

    Args:
        rows: The cells of each row. Cells "met" and "missed" have a class of their own, and so have
            cells that begin with a digit or a sign.
    """
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(_cell(cell) for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def html_summary(lead: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A paragraph above a table, for a `_repr_html_`."""
    return f"<p>{escape(lead)}</p>{html_table(header, rows)}"


def _cell(cell: str) -> str:
    if cell in ("met", "missed"):
        return f'<td class="{cell}">{cell}</td>'
    number = cell[:1].isdigit() or cell.startswith(("-", "+", "−", "≤", "≥"))
    return f'<td class="number">{escape(cell)}</td>' if number else f"<td>{escape(cell)}</td>"
