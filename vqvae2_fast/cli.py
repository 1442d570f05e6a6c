"""The command line `vqvae2-fast`: commands are dataclasses, their fields are its options."""

from __future__ import annotations

import errno
import io
import json
import sys
import traceback
import warnings
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from vqvae2_fast import __version__
from vqvae2_fast.commands.flags import as_flags
from vqvae2_fast.console.help import CapturedHelp, for_people, wrapped
from vqvae2_fast.console.option_errors import number_error
from vqvae2_fast.console.words import perhaps
from vqvae2_fast.files.printable import printable
from vqvae2_fast.machine.quota import within_quota
from vqvae2_fast.runs.interrupt import InterruptedRun
from vqvae2_fast_command import COMMANDS, answer, tell, to_a_reader

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vqvae2_fast.commands.common import Command, Result

__all__ = ["main"]

_PRESETS = " `vqvae2-fast info --presets` lists the presets."
_MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # the disk is full or broken


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code.

    0; 1 for a run that failed (it diverged, the disk is full, a package is missing, ...);
    2 for a wrong request (options, files that are not there or not what was asked for); 128 + its
    number after a signal: 130 for ctrl-C, 143 for SIGTERM.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    told = f"vqvae2-fast {__version__}" if arguments == ["--version"] else answer(arguments)
    if told is not None:
        return tell(told)
    debug = "--debug" in arguments
    kind: type[Command] | None = None
    try:
        if arguments[0] == "--completion":
            _print_completion(arguments[1:])
        kind = _kind(arguments[0])
        command = _parse(kind, arguments[0], arguments[1:])
        with _plain_warnings(kind), within_quota():
            result = command.run()
    except (
        ValueError,
        TypeError,
        OSError,
        RuntimeError,
        MemoryError,
        ImportError,
        OverflowError,  # a number that is too large for what computes with it
    ) as error:
        if debug:
            print(printable(traceback.format_exc(), keep="\n"), file=sys.stderr)
        else:
            text = _message(error)
            text = printable(text if kind is None else as_flags(text, kind), keep="\n")
            print(f"vqvae2-fast: error: {text}\n(--debug shows where)", file=sys.stderr)
        # The request was right if a run diverged or the machine failed, so this is not 2. Some
        # RuntimeErrors are about the request all the same.
        asked = isinstance(error, (ValueError, NotImplementedError))
        failed = (
            not asked
            and isinstance(error, (RuntimeError, MemoryError, ImportError))
            or getattr(error, "errno", None) in _MACHINE
        )
        return 1 if failed else 2
    except InterruptedRun as stopped:
        text = str(stopped) if kind is None else as_flags(str(stopped), kind)
        print(f"vqvae2-fast: {text}", file=sys.stderr)
        return 128 + stopped.signal_number
    except KeyboardInterrupt:
        resumes = hasattr(kind, "resume")
        text = "stopped; --resume continues a run." if resumes else "stopped."
        print(f"vqvae2-fast: {text}", file=sys.stderr)
        return 130
    return _print_result(result, as_json=command.json)


@contextmanager
def _plain_warnings(kind: type[Command]) -> Iterator[None]:
    """Shows warnings like errors, without the source line that raised them."""

    def plain(message: Warning | str, *_: Any, **__: Any) -> str:
        return f"vqvae2-fast: warning: {printable(as_flags(str(message), kind))}\n"

    before, warnings.formatwarning = warnings.formatwarning, plain
    try:
        yield
    finally:
        warnings.formatwarning = before


def _print_result(result: Result, *, as_json: bool) -> int:
    if not result.lines:  # under torchrun the first process prints for all
        return result.exit_code
    if as_json:
        text = json.dumps(result.values, indent=2, default=str)
    else:
        text = "\n".join(printable(line, keep="\n\t") for line in result.lines)
    return tell(text) or result.exit_code


def _message(error: Exception) -> str:
    """What an error says, without the system's error number."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


def _kind(name: str) -> type[Command]:
    """The class of a command. Only its module is loaded, so that help and errors appear quickly."""
    if name not in COMMANDS:
        raise ValueError(
            f"expected a command, one of {', '.join(COMMANDS)}; got {name!r}."
            + (_PRESETS if name in ("preset", "presets") else perhaps(name, COMMANDS))
        )
    module, _, found = COMMANDS[name][0].partition(":")
    kind: type[Command] = getattr(import_module(f"vqvae2_fast.commands.{module}"), found)
    return kind


def _parse(kind: type[Command], name: str, arguments: list[str]) -> Command:
    said, helped = io.StringIO(), CapturedHelp(sys.stdout)
    try:
        with redirect_stderr(said), redirect_stdout(helped), for_people():
            command: Command = tyro.cli(
                kind,
                args=arguments,
                prog=f"vqvae2-fast {name}",
                default=kind.defaults(arguments),
            )
            return command
    except SystemExit as stop:
        if not stop.code:
            tell(wrapped(helped.getvalue()))
            raise
        # A configuration that refuses its values is reported like other errors, not in tyro's box,
        # which names the option where a value is none of its type.
        refused = stop.__context__ and stop.__context__.__context__
        if isinstance(refused, ValueError) and _is_ours(refused):
            raise refused from None
        no_number = number_error(said.getvalue(), arguments)
        if no_number is not None:
            raise ValueError(no_number) from None
        # The parser knows no singular. The box that it has drawn keeps its width.
        sys.stderr.write(said.getvalue().replace("Expected 1 values.", "Expected 1 value. "))
        raise


def _is_ours(error: Exception) -> bool:
    """Whether code of this package raised an error, and not the parser's own conversions."""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(frame.f_globals.get("__name__", "").startswith("vqvae2_fast.") for frame in frames)


def _print_completion(shell: list[str]) -> None:
    """Prints the shell completion of all commands, and exits."""
    if shell not in (["bash"], ["zsh"]):
        raise ValueError("--completion: expected bash or zsh.")
    union: Any = None
    for name in COMMANDS:
        part = Annotated[_kind(name), tyro.conf.subcommand(name)]  # type: ignore[valid-type]
        union = part if union is None else union | part
    with to_a_reader(), for_people():
        tyro.cli(
            union,
            args=["--tyro-print-completion", *shell],
            prog="vqvae2-fast",
            config=(tyro.conf.OmitSubcommandPrefixes,),
        )
    raise SystemExit(0)  # the reader had enough
