"""Models as programs for other runtimes: `torch.export` and ONNX."""

from vqvae2_fast.export.programs import PARTS, export_program, save_onnx, save_program

__all__ = ["PARTS", "export_program", "save_onnx", "save_program"]
