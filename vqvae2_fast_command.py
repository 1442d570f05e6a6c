"""The command `vqvae2-fast`: what it prints, and has to set, before torch is loaded.

A module of its own because importing anything of `vqvae2_fast` loads torch, which takes seconds.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["COMMANDS", "answer", "main", "refuse", "script", "tell", "to_a_reader"]

# Name of a command -> its class in vqvae2_fast.commands, and what it does.
COMMANDS = {
    "demo": ("demo:Demo", "train on emoji and draw new ones, in two to five minutes"),
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
    "info": ("info:Info", "describe the installation, a run, a pipeline, codes or samples"),
}


def answer(arguments: Sequence[str]) -> str | None:
    """The list of commands, for when no command is named; it does not need torch."""
    if arguments and arguments[0] not in ("-h", "--help"):
        return None
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


def tell(text: str) -> int:
    """Print to a reader that may have read enough, such as `head`; returns the exit code."""
    try:
        with to_a_reader():
            print(text)
    except OSError as error:
        print(f"vqvae2-fast: error: cannot print: {error.strerror or error}", file=sys.stderr)
        return 1
    return 0


@contextmanager
def to_a_reader() -> Iterator[None]:
    """What is printed here may stay unread: a reader such as `head` leaves when it has enough."""
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


def open_closed_streams() -> None:
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


def main() -> int:
    """Run the command line; see `vqvae2_fast.cli.main`."""
    open_closed_streams()
    told = answer(sys.argv[1:])
    if told is not None:
        return tell(told)
    # GNU OpenMP's threads spin after each parallel region before they sleep. Beside other processes
    # this keeps cores from threads with work: a step of emoji32's VQ-VAE took 0.46 s with OpenMP's
    # default and 0.29 s with 10,000 rounds, on two busy cores (medians of 8 runs in turns). On idle
    # ones it took 49 ms with 10,000 rounds and 73 with 1,000.
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = "10000"
    # Nothing of what torch's modules create is garbage. Looking for it would take 0.15 s here, and
    # more in each later collection.
    gc.disable()
    try:
        from vqvae2_fast.cli import main as run
    except RuntimeError as error:
        gc.enable()
        if not str(error).startswith("VQVAE2_FAST_"):
            raise
        return refuse(error)
    gc.freeze()
    gc.enable()
    return run()


def refuse(error: RuntimeError) -> int:
    """Tell of a variable with a value that cannot be used: a wrong request like any other.

    Returns:
        The exit code.
    """
    if "--debug" in sys.argv:
        import traceback

        traceback.print_exception(error)
    else:
        print(f"vqvae2-fast: error: {error}\n(--debug shows where)", file=sys.stderr)
    return 2


def script() -> None:
    """Run the command line as the program `vqvae2-fast`, and end the process with its exit code.

    Python would free each object of torch one by one, which takes a quarter of a second. So what is
    registered to run at the end does, and the operating system frees the memory.
    """
    code = main()
    if any(not t.daemon for t in threading.enumerate() if t is not threading.main_thread()):
        sys.exit(code)  # it waits for them
    try:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:  # Python prints it, and knows the exit code
        sys.exit(code)
    os._exit(code)
