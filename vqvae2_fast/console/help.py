"""The help of a command: whole paragraphs, and no default where there is none."""

from __future__ import annotations

import re
import shutil
import textwrap
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin

import tyro
from tyro.constructors import ConstructorRegistry, StructConstructorSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tyro.constructors import StructFieldSpec, StructTypeInfo

__all__ = ["for_people", "paragraphs"]


@contextmanager
def for_people() -> Iterator[None]:
    """Has the parser join the lines of docstrings, and name neither None nor an empty default.

    It would end lines where the source does, and explain an option without a default by
    `(default: None)`.
    """
    registry, asking = ConstructorRegistry(), False

    @registry.struct_rule
    def group(info: StructTypeInfo) -> StructConstructorSpec | None:
        nonlocal asking
        if asking:  # this rule is the parser's last, and asks those before it
            return None
        asking = True
        try:
            spec = ConstructorRegistry.get_struct_spec(info)
        finally:
            asking = False
        if not isinstance(spec, StructConstructorSpec):
            return None
        return replace(spec, fields=tuple(map(_explained, spec.fields)))

    with registry:
        yield


def _explained(field: StructFieldSpec) -> StructFieldSpec:
    """A field whose help is joined to paragraphs, with its default if there is one."""
    text = field.helptext
    joined = (lambda: _joined(text())) if callable(text) else _joined(text)
    kind, *details = get_args(field.type) if get_origin(field.type) is Annotated else (field.type,)
    hint = tyro.conf.arg(help_behavior_hint=_default)
    annotated: Any = Annotated[(kind, hint, *details)]  # the field's own hint has precedence
    return replace(field, helptext=joined, type=annotated)


def _default(value: str) -> str:
    return "" if value in ("", "''", "None") else f"(default: {value})"


def _joined(text: str | None) -> str | None:
    if text is None:
        return None
    return "\n\n".join(" ".join(part.split()) for part in re.split(r"\n\s*\n", text))


def paragraphs(docstring: str) -> str:
    """The paragraphs of a docstring, whose lines end where the terminal does."""
    width = shutil.get_terminal_size().columns
    parts = (_joined(docstring) or "").split("\n\n")
    return "\n\n".join(textwrap.fill(part, width, break_on_hyphens=False) for part in parts)
