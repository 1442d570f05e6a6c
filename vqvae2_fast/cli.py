"""The command line `vqvae2-fast`: commands are dataclasses, their fields are its options.

Torch, which takes seconds to load, comes with the module of a command: without one, what is printed
appears at once.
"""

from __future__ import annotations

import errno
import gc
import io
import json
import os
import sys
import traceback
import warnings
from contextlib import contextmanager, redirect_stderr
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from vqvae2_fast import __version__
from vqvae2_fast.console.help import for_people, paragraphs
from vqvae2_fast.console.words import did_you_mean
from vqvae2_fast.files.printable import printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vqvae2_fast.commands.common import Command, Result

__all__ = ["COMMANDS", "main"]

_PRESETS = " `vqvae2-fast info --presets` lists the presets."
_MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # the disk is full or broken

# Name of a command -> its class in vqvae2_fast.commands, and what it does.
COMMANDS = {
    "demo": ("demo:Demo", "train on emoji and draw new ones, in two to five minutes"),
    "train": ("train:Train", "train on your images in a given time, and report what is drawn"),
    "train-vqvae": ("train_vqvae:TrainVQVAE", "stage 1: train a VQ-VAE on images"),
    "finetune-decoder": (
        "finetune_decoder:FinetuneDecoder",
        "train the decoder further for sharper images of the same codes",
    ),
    "extract": ("extract:Extract", "encode images with a trained VQ-VAE, for stage 2"),
    "train-prior": ("train_prior:TrainPrior", "stage 2: train the prior of one level"),
    "train-classifier": (
        "train_classifier:TrainClassifier",
        "train a classifier, to judge and choose samples",
    ),
    "calibrate": ("calibrate:Calibrate", "prepare a pipeline for the engine cpu_w8a8"),
    "sample": ("sample:Sample", "draw new images"),
    "serve": ("serve:Serve", "open a playground in the browser, which is also an HTTP service"),
    "reconstruct": ("reconstruct:Reconstruct", "show images above their reconstructions"),
    "evaluate": ("evaluate:Evaluate", "measure a pipeline on held-out images"),
    "tune": ("tune:Tune", "find the settings to draw with, and keep them in the pipeline"),
    "compress": ("compress:Compress", "compress images to the bits of their codes"),
    "decompress": ("decompress:Decompress", "decode what compress wrote"),
    "export": ("export:Export", "write encoder or decoder as ONNX or a torch.export program"),
    "check": ("check:Check", "check that what is installed computes what it should"),
    "info": ("info:Info", "describe the installation, a run, a pipeline, codes or samples"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code.

    0; 1 for a run that failed (it diverged, the disk is full, a package is missing, ...);
    2 for a wrong request (options, files that are not there or not what was asked for); 128 + its
    number after a signal: 130 for ctrl-C, 143 for SIGTERM.
    """
    _open_closed_streams()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments == ["--version"]:
        return _tell(f"vqvae2-fast {__version__}")
    if not arguments or arguments[0] in ("-h", "--help"):
        return _tell(_list_of_commands())
    # GNU OpenMP's threads spin after each parallel region before they sleep. Beside other processes
    # this keeps cores from threads with work: a step of emoji32's VQ-VAE took 0.46 s with OpenMP's
    # default and 0.29 s with 10,000 rounds, on two busy cores (medians of 8 runs in turns). On idle
    # ones it took 49 ms with 10,000 rounds and 73 with 1,000. OpenMP comes with torch.
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = "10000"
    from vqvae2_fast.machine.quota import within_quota
    from vqvae2_fast.runs.interrupt import InterruptedRun

    debug = "--debug" in arguments
    kind: type[Command] | None = None
    try:
        if arguments[0] == "--completion":
            _print_completion(arguments[1:])
        kind = _kind(arguments[0])
        command = _parse(kind, arguments[0], arguments[1:])
        with _plain_warnings(), within_quota():
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
            text = printable(_message(error), keep="\n")
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
        print(f"vqvae2-fast: {stopped}", file=sys.stderr)
        return 128 + stopped.signal_number
    except KeyboardInterrupt:
        resumes = hasattr(kind, "resume")
        text = "stopped; --resume continues a run." if resumes else "stopped."
        print(f"vqvae2-fast: {text}", file=sys.stderr)
        return 130
    return _print_result(result, as_json=command.json)


def _list_of_commands() -> str:
    width = max(map(len, COMMANDS))
    listed = "\n".join(f"  {name:{width}}  {what}" for name, (_, what) in COMMANDS.items())
    return (
        "usage: vqvae2-fast COMMAND [OPTIONS]\n\n"
        "Train VQ-VAE-2 (https://arxiv.org/abs/1906.00446) and draw images from it.\n"
        f"Begin with `vqvae2-fast demo`.\n\ncommands:\n{listed}\n\n"
        "  vqvae2-fast COMMAND --help            explains a command\n"
        "  vqvae2-fast --version                 prints the version\n"
        "  vqvae2-fast --completion bash (zsh)   prints completions for the shell"
    )


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Shows warnings like errors, without the source line that raised them."""

    def plain(message: Warning | str, *_: Any, **__: Any) -> str:
        return f"vqvae2-fast: warning: {printable(str(message))}\n"

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
    return _tell(text) or result.exit_code


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
            + (_PRESETS if name in ("preset", "presets") else did_you_mean(name, COMMANDS))
        )
    module, _, found = COMMANDS[name][0].partition(":")
    # Nothing of what torch's modules create is garbage. Looking for it, here and at the end, made
    # `vqvae2-fast info` take 2.7 s of processor time and not 1.9.
    gc.disable()
    kind: type[Command] = getattr(import_module(f"vqvae2_fast.commands.{module}"), found)
    gc.freeze()
    gc.enable()
    return kind


def _parse(kind: type[Command], name: str, arguments: list[str]) -> Command:
    from vqvae2_fast.commands.options import check_options

    check_options(kind, name, arguments)
    default, said = kind.defaults(arguments), io.StringIO()
    if {"-h", "--help"} & set(arguments):
        _tell(paragraphs(kind.__doc__ or "") + "\n")
    try:
        with redirect_stderr(said), for_people(), _to_a_reader():
            command: Command = tyro.cli(
                kind,
                args=arguments,
                prog=f"vqvae2-fast {name}",
                description=" ",
                default=default,
                config=(tyro.conf.DisallowNone,),
            )
            return command
    except SystemExit as stop:
        # A configuration that refuses its values is reported like other errors, not in tyro's box,
        # which names the option where a value is none of its type.
        refused = stop.__context__ and stop.__context__.__context__
        if isinstance(refused, ValueError) and _is_ours(refused):
            raise refused from None
        sys.stderr.write(said.getvalue())
        raise
    raise SystemExit(0)  # the reader of the help had enough


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
    with _to_a_reader(), for_people():
        tyro.cli(
            union,
            args=["--tyro-print-completion", *shell],
            prog="vqvae2-fast",
            config=(tyro.conf.OmitSubcommandPrefixes, tyro.conf.DisallowNone),
        )
    raise SystemExit(0)  # the reader had enough


def _tell(text: str) -> int:
    """Print to a reader that may have read enough, such as `head`; returns the exit code."""
    try:
        with _to_a_reader():
            print(text)
    except OSError as error:
        print(f"vqvae2-fast: error: cannot print: {error.strerror or error}", file=sys.stderr)
        return 1
    return 0


@contextmanager
def _to_a_reader() -> Iterator[None]:
    """Ignore a broken pipe, as from `| head`."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except OSError as error:
        # Leave nothing to be flushed at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            raise


def _open_closed_streams() -> None:
    """Where standard output or error is closed, as a daemon may leave them, let it lead nowhere.

    Python has None in its place, and the next file that is opened would get its number.
    """
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            if nowhere != number:
                os.dup2(nowhere, number)
                os.close(nowhere)
            setattr(sys, name, open(number, "w"))  # noqa: SIM115  (for as long as the process)
