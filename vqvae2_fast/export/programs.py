"""The parts of a VQ-VAE as exported programs and ONNX files.

Priors are not exported: what makes sampling fast is the state that the engines keep between codes,
and a program without it would run the whole network for every code.
"""

from __future__ import annotations

import io
import logging
import math
import warnings
from contextlib import contextmanager
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export

from vqvae2_fast.files.durable import write_file
from vqvae2_fast.models.vqvae2 import VQVAE2
from vqvae2_fast.modules.contexts import evaluating
from vqvae2_fast.ops._registry import OPERATORS
from vqvae2_fast.sampling import Pipeline

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator

__all__ = ["PARTS", "decompositions", "export_program", "quantizer", "save_onnx", "save_program"]


def decompositions() -> dict[Any, Callable[..., Any]]:
    """This package's operators in terms of PyTorch's, for `ExportedProgram.run_decompositions`."""
    return {operator.overload: operator.exported for operator in OPERATORS.values()}


class _Part(nn.Module):
    """A function of a VQ-VAE as the forward of a module."""

    def __init__(self, vqvae: VQVAE2) -> None:
        super().__init__()
        self.vqvae = vqvae


class _Encoder(_Part):
    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.vqvae.encode(images))


class _Decoder(_Part):
    def forward(self, *codes: Tensor) -> Tensor:
        return self.vqvae.decode(list(codes)).clamp(-1, 1)


class _Autoencoder(_Part):
    def forward(self, images: Tensor) -> Tensor:
        return self.vqvae.decode(self.vqvae.encode(images)).clamp(-1, 1)


_MODULES = {"encoder": _Encoder, "decoder": _Decoder, "autoencoder": _Autoencoder}
PARTS = tuple(_MODULES)


def export_program(
    model: VQVAE2 | Pipeline, part: str, size: tuple[int, int], *, aten: bool = True
) -> ExportedProgram:
    """A part of a VQ-VAE as a program for any number of images of one size.

    Args:
        model: The VQ-VAE, or a pipeline, whose VQ-VAE is meant. It is exported as it evaluates.
        part: `encoder`: images `[B, C, H, W]` in [-1, 1] -> code maps int64 `[B, h, w]`, coarse to
            fine. `decoder`: code maps -> images, clamped to [-1, 1]; the program does not check
            codes. `autoencoder`: images -> their reconstructions.
        size: Height and width of the images.
        aten: Whether the program consists of PyTorch's own operators, so that it runs where this
            package is not installed. Then a code may differ where two distances agree up to
            rounding. Otherwise the search is this package's operator, and codes are those of
            `encode`.

    Raises:
        ValueError: No such part; a size that is not two multiples of the product of the strides.
        TypeError: The model is neither a VQVAE2 nor a pipeline of one.
    """
    vqvae = model.networks()[0] if isinstance(model, Pipeline) else model
    if not isinstance(vqvae, VQVAE2):
        raise TypeError(f"expected a VQVAE2 or a pipeline of one, got {type(vqvae).__name__}.")
    if part not in PARTS:
        raise ValueError(f"expected part {', '.join(PARTS)}, got {part!r}.")
    stride = math.prod(vqvae.config.strides)
    if (
        not isinstance(size, tuple | list)
        or len(size) != 2
        or not all(isinstance(side, Integral) for side in size)
        or any(side < stride or side % stride for side in size)
    ):
        raise ValueError(
            f"expected size (height, width), both multiples of {stride}, got {size!r}."
        )
    parameter = next(vqvae.parameters())
    # A program for a batch of one would hold that number, so that of the example is two.
    images = torch.zeros(
        2, vqvae.config.image_channels, *size, device=parameter.device, dtype=parameter.dtype
    )
    with evaluating(vqvae), torch.no_grad(), _without_its_own_warnings():
        codes = tuple(vqvae.encode(images))
        inputs = codes if part == "decoder" else (images,)
        batch = tuple({0: Dim("batch")} for _ in inputs)
        shapes = (batch,) if part == "decoder" else batch
        program = export(_MODULES[part](vqvae), inputs, dynamic_shapes=shapes)
        return program.run_decompositions(decompositions() if aten else {})


class _Quantizer(nn.Module):
    """What a quantiser gives besides losses."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, z: Tensor) -> Any:
        result = self.module(z)
        return result if isinstance(result, Tensor) else tuple(result[:2])


class _Lookup(nn.Module):
    """A quantiser's own way from codes to vectors."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        names = ("lookup", "get_output_from_indices", "indices_to_codes")
        self.name = next((name for name in names if hasattr(module, name)), "")
        if not self.name:
            raise TypeError(
                f"expected a quantiser whose codes lead back to vectors, got "
                f"{type(module).__name__}. Export part='encoder'."
            )

    def forward(self, indices: Tensor) -> Tensor:
        vectors: Tensor = getattr(self.module, self.name)(indices)
        return vectors


_QUANTIZER_PARTS = {"encoder": _Quantizer, "decoder": _Lookup}


def quantizer(module: nn.Module, z: Tensor, part: str = "encoder") -> ExportedProgram:
    """A quantiser as a program of PyTorch's own operators, for inputs of any batch and length.

    Args:
        module: A quantiser of `vqvae2_fast`, or of its drop-in for vector-quantize-pytorch, as it
            evaluates.
        z: An example of its input. The program takes the same number of dimensions, of any size
            where the quantiser does.
        part: `encoder`: z -> z_q and indices, or only the labels of a module that returns no more.
            `decoder`: indices -> z_q; the program does not check them.

    Raises:
        ValueError: No such part, or codebooks of the drop-in that have not started.
        TypeError: Codes of the module do not lead back to vectors.
    """
    if part not in _QUANTIZER_PARTS:
        raise ValueError(f"expected part {', '.join(_QUANTIZER_PARTS)}, got {part!r}.")
    begun = [flag for name, flag in module.named_buffers() if name.endswith("initted")]
    if not all(bool(flag.all()) for flag in begun):
        raise ValueError(
            "expected a module whose codebooks have started, got one that begins by k-means at its "
            "first call. Call it once on data."
        )
    exported = _QUANTIZER_PARTS[part](module)
    # A program for a batch of one would hold that number.
    x = z.new_zeros(max(2, len(z)), *z.shape[1:])
    with evaluating(module), torch.no_grad(), _without_its_own_warnings():
        if part == "decoder":
            x = module(x)[1]
        sizes = dict.fromkeys(range(x.dim()), Dim.AUTO)
        program = export(exported, (x,), dynamic_shapes=(sizes,))
        return program.run_decompositions(decompositions())


@contextmanager
def _without_its_own_warnings() -> Iterator[None]:
    """PyTorch warns of a name that it uses itself."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
        yield


def save_program(program: ExportedProgram, path: str | os.PathLike[str]) -> None:
    """Write a program as a `.pt2` file, which `torch.export.load` reads.

    Raises:
        OSError: The file cannot be written.
    """
    content = io.BytesIO()
    torch.export.save(program, content)
    write_file(Path(path), content.getvalue())


def save_onnx(program: ExportedProgram, path: str | os.PathLike[str]) -> None:
    """Write a program as an ONNX file. Needs `vqvae2_fast[export]`.

    Inputs and outputs are named `images` and, coarse to fine, `codes_0`, `codes_1` and so on; what
    an autoencoder gives is named `reconstructions`. Those of a quantiser are `z`, `z_q` and
    `indices`.

    Raises:
        ImportError: onnx or onnxscript is not installed.
        ValueError: The program was exported of a model without values, on the meta device.
        TypeError: The weights are bfloat16.
        OSError: The file cannot be written.
    """
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"{error.name} is not installed; run `pip install 'vqvae2_fast[export]'`."
        ) from error
    weights = program.state_dict.values()
    if any(weight.is_meta for weight in weights):
        raise ValueError(
            "expected weights with values, got some on the meta device; load the model "
            "and export it again."
        )
    if any(weight.dtype == torch.bfloat16 for weight in weights):
        # PyTorch would write a file that every runtime refuses.
        raise TypeError(
            "expected weights of float32 or float16, got bfloat16, of which ONNX has no "
            "convolutions; export model.float()."
        )
    # It warns of operators of torchvision, of which no part of a VQ-VAE has any.
    registry = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = registry.level
    registry.setLevel(logging.ERROR)
    try:
        with _without_its_own_warnings():
            model = torch.onnx.export(program, dynamo=True, verbose=False)
    finally:
        registry.setLevel(level)
    assert model is not None
    graph = model.model.graph
    source = graph.inputs[0].name
    image = "reconstructions" if source == "images" else "images"
    for number, output in enumerate(graph.outputs):
        codes = output.dtype is not None and output.dtype.is_integer()
        if source in ("z", "indices"):
            output.name = "indices" if codes else "z_q"
        else:
            output.name = f"codes_{number}" if codes else image
    write_file(Path(path), model.model_proto.SerializeToString())
