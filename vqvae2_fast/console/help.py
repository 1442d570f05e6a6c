"""The help of a command as people write it, not as the parser does."""

from __future__ import annotations

import io
import re
import shutil
import textwrap
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, TextIO, get_args, get_origin

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, StructConstructorSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tyro.constructors import PrimitiveTypeInfo, StructFieldSpec, StructTypeInfo

__all__ = ["CapturedHelp", "for_people", "wrapped"]

# Where the options begin: a box, which may begin with codes of colours, or in ASCII a title.
_BOX = re.compile(r"^(.*╭| (positional arguments|options) *$)", re.MULTILINE)


class CapturedHelp(io.StringIO):
    """Keeps what is printed, with the colours and frames that `stream` would get."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream

    def isatty(self) -> bool:
        return self._stream.isatty()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding


@contextmanager
def for_people() -> Iterator[None]:
    """Has the parser join the lines of docstrings, and name neither None nor an empty default.

    It would end lines where the source does, and show `int | None = None` as `{None}|INT` with
    `(default: None)`.
    """
    registry, asking = ConstructorRegistry(), False

    @contextmanager
    def others() -> Iterator[None]:
        """Ours is the last of the parser's rules, and asks those before it."""
        nonlocal asking
        asking = True
        try:
            yield
        finally:
            asking = False

    @registry.struct_rule
    def group(info: StructTypeInfo) -> StructConstructorSpec | None:
        if asking:
            return None
        with others():
            spec = ConstructorRegistry.get_struct_spec(info)
        if not isinstance(spec, StructConstructorSpec):
            return None
        return replace(spec, fields=tuple(map(_explained, spec.fields)))

    @registry.primitive_rule
    def value(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
        if asking:
            return None
        with others():
            spec = ConstructorRegistry.get_primitive_spec(info)
        if not isinstance(spec, PrimitiveConstructorSpec) or "{None}|" not in spec.metavar:
            return None
        metavar = spec.metavar.replace("{None}|", "")
        return replace(spec, metavar=re.sub(r"^\{([A-Z ]+)\}$", r"\1", metavar))

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


def wrapped(text: str) -> str:
    """A help whose first lines, above the box of options, end where the terminal does."""
    box = _BOX.search(text)
    if box is None:
        return text
    width = shutil.get_terminal_size().columns
    usage, *parts = (_joined(text[: box.start()]) or "").strip().split("\n\n")
    lines = [textwrap.fill(part, width, break_on_hyphens=False) for part in parts]
    return "\n\n".join([usage, *lines, text[box.start() :].rstrip("\n")])
