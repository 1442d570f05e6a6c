"""Numbers for people."""

from __future__ import annotations

import math

__all__ = ["number"]


def number(value: float, digits: int = 4) -> str:
    """A number in `digits` significant digits: no exponent, commas between thousands.

    36321.7 is 36,320; 0.0123449 is 0.01234; whole numbers lose the zeros behind the point.
    """
    if not math.isfinite(value):
        return f"{value}"
    places = digits - 1 - math.floor(math.log10(abs(value))) if value else 0
    text = f"{round(value, places):,.{max(0, places)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
