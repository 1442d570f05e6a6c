"""Models and quantisers as programs for other runtimes: `torch.export` and ONNX."""

from vqvae2_fast.export.programs import (
    PARTS,
    decompositions,
    export_program,
    quantizer,
    save_onnx,
    save_program,
)

__all__ = [
    "PARTS",
    "decompositions",
    "export_program",
    "quantizer",
    "save_onnx",
    "save_program",
]
