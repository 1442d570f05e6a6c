"""Compiles every Triton kernel for every target as its launcher would ask for it. Needs no GPU.

    python build_tools/compile_triton.py --out triton_kernels.csv --summary docs/triton-kernels.csv

Launchers run on small CPU tensors in recording mode (`ops/_triton.py`), once for each target, so
that what is compiled is what users get: kernel, block sizes, dtypes, alignment. The command fails
if a kernel spills registers, asks for more shared memory than a block may have, contracts multiply-
adds although its bits are defined, or has other approximate instructions than `APPROXIMATE` lists.
The result holds for one version of Triton, which `.ci/constraints.txt` names. The summary, one line
for each kernel and target, is committed; `--check` fails where its lines of the targets that are
compiled are not what this command finds.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import io
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from vqvae2_fast.ops import _registry
from vqvae2_fast.ops._triton import Launch, recording

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
OPTIONS = ("num_warps", "num_stages", "maxnreg", "enable_fp_fusion", "launch_pdl")
POINTERS = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float64: "*fp64",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.int16: "*i16",
    torch.uint8: "*u8",
}


DIVISIBLE = [["tt.divisibility", 16]]


@dataclass(frozen=True)
class Target:
    """A processor: shared memory that a block may use and that an SM has, and warps per SM."""

    gpu: GPUTarget
    block_shared: int
    shared: int
    warps: int


# Compute capabilities table of the CUDA programming guide; CDNA 3 ISA reference.
TARGETS = {
    "sm_80": Target(GPUTarget("cuda", 80, 32), 163 << 10, 164 << 10, 64),
    "sm_90": Target(GPUTarget("cuda", 90, 32), 227 << 10, 228 << 10, 64),
    "sm_100": Target(GPUTarget("cuda", 100, 32), 227 << 10, 228 << 10, 64),
    "sm_120": Target(GPUTarget("cuda", 120, 32), 99 << 10, 100 << 10, 48),
    "gfx942": Target(GPUTarget("hip", "gfx942", 64), 64 << 10, 64 << 10, 32),
}


# What AMD GPUs compute by several instructions: one that shows it, and the number of fused
# multiply-adds among them. None of these fuses what the kernel itself multiplies and adds. Counted
# in what Triton 3.7.1 compiles for gfx942.
AMD_EXPANSIONS = {
    r"\bv_div_fixup_f(?:32|64)": 5,  # a division
    r"\bv_rsq_f64": 7,  # a square root in float64
    r"\bv_log_f32": 2,  # a natural logarithm
    r"\bv_fmamk_f32 \w+, \w+, 0x[4c]f800000": 1,  # ±2³², in a division of 64-bit integers
}


# NVIDIA's approximate instructions by kernel. The results of all other kernels have the bits that
# IEEE's operations give them.
APPROXIMATE = {
    # Results are within rounding of their definition, which promises no bits.
    "_causal_attention_bwd_dkdv_kernel": {"ex2.approx"},
    "_causal_attention_bwd_dq_kernel": {"ex2.approx"},
    "_causal_attention_fwd_kernel": {"ex2.approx", "div.full"},
    "_ema_rows_kernel": {"div.full"},
    "_gated_residual_bwd_kernel": {"ex2.approx", "div.full"},
    "_gated_residual_fwd_kernel": {"ex2.approx", "div.full"},
    "_residual_nearest_code_bwd_kernel": {"sqrt.approx", "div.full"},
    "_scalar_quantize_bwd_kernel": {"ex2.approx", "div.full"},
    # In tanh, which decides between two values only within rounding; values are exactly the grid's.
    "_scalar_quantize_fwd_kernel": {"ex2.approx"},
    # In top-p and in log-probabilities; codes without top-p are exact.
    "_draw_codes_kernel": {"ex2.approx"},
    # In bounds alone, which allow for its error (README of nearest_code); results are exact.
    "_nearest_code_open_kernel": {"sqrt.approx"},
    "_nearest_code_screen_kernel": {"sqrt.approx"},
}


def integer_type(value: int) -> str:
    return "i32" if -(1 << 31) <= value < 1 << 31 else "i64"


def source_of(launch: Launch) -> tuple[ASTSource, str, dict[str, object]]:
    """What Triton compiles for a launch, with a readable label and the compiler's options."""
    signature, constants, attributes, label = {}, {}, {}, []
    for position, parameter in enumerate(launch.kernel.params):
        name, value = parameter.name, launch.arguments[parameter.name]
        if isinstance(value, torch.Tensor):
            signature[name] = POINTERS[value.dtype]
            attributes[(position,)] = DIVISIBLE
            label.append(signature[name][1:])
        elif isinstance(value, tuple):  # strides
            signature[name] = tuple("constexpr" if n == 1 else integer_type(n) for n in value)
            for place, number in enumerate(value):
                if number == 1:
                    constants[(position, place)] = 1
                elif number % 16 == 0:
                    attributes[(position, place)] = DIVISIBLE
        elif (
            parameter.is_constexpr
            or value is None
            or (value == 1 and type(value) is int and not parameter.do_not_specialize)
        ):
            signature[name], constants[name] = "constexpr", value
            if parameter.is_constexpr:
                label.append(f"{name}={value}")
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            signature[name] = integer_type(value)
            if value % 16 == 0 and not parameter.do_not_specialize:
                attributes[(position,)] = DIVISIBLE
    options = {key: value for key, value in launch.options.items() if key in OPTIONS}
    return ASTSource(launch.kernel, signature, constants, attributes), " ".join(label), options


def resources(compiled: object, target: Target) -> tuple[int, int, int, int]:
    """Registers and spilled bytes per thread, shared memory per block, warps that fit an SM."""
    warps = compiled.metadata.num_warps
    shared = compiled.metadata.shared
    if target.gpu.backend == "hip":
        text = compiled.asm["amdgcn"]

        def field(name: str) -> int:
            return int(re.search(rf"\.{name}:\s+(\d+)", text).group(1))

        registers = field("vgpr_count")
        # Scratch memory; scalar registers that overflow into lanes of vectors stay on chip.
        spills = field("private_segment_fixed_size")
        # Each of the four SIMDs of a compute unit has 512 registers per lane, in steps of 8.
        by_registers = 4 * min(8, 512 // max(8, -(-registers // 8) * 8)) // warps
    else:
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(compiled.asm["cubin"])
            file.flush()
            dump = subprocess.run(
                [CUOBJDUMP, "--dump-resource-usage", file.name],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        registers = int(re.search(r"REG:(\d+)", dump).group(1))
        spills = int(re.search(r"STACK:(\d+)", dump).group(1))
        # 65,536 registers per SM, given to warps in steps of 256.
        by_registers = 65536 // (-(-registers * 32 // 256) * 256) // warps
    blocks = min(by_registers, target.warps // warps, 32)
    if shared:
        blocks = min(blocks, target.shared // (shared + 1024 * (target.gpu.backend == "cuda")))
    return registers, spills, shared, blocks * warps


def contracted(compiled: object) -> int:
    """Fused multiply-adds in the assembly that neither the kernel nor a library function asks for:
    multiplications and additions that the compiler has contracted, against `enable_fp_fusion`."""
    asked = sum(
        int(width or 1)
        for width in re.findall(r"call .*@llvm\.fma\.(?:v(\d+))?f\d+\(", compiled.asm["llir"])
    )
    if "ptx" in compiled.asm:
        # Those of a logarithm flush denormals, as nothing else does: fma.rn.ftz.f32.
        return len(re.findall(r"\bfma\.rn\.f(?:32|64)", compiled.asm["ptx"])) - asked
    text = compiled.asm["amdgcn"]
    found = len(re.findall(r"\bv_(?:pk_)?(?:fma|mad|mac)\w*_f(?:16|32|64)", text))
    return found - asked - sum(n * len(re.findall(at, text)) for at, n in AMD_EXPANSIONS.items())


def approximate(compiled: object) -> set[str]:
    """The approximate instructions in the assembly for an NVIDIA GPU, without types."""
    return set(re.findall(r"\b(div\.full|\w+\.approx)\b", compiled.asm.get("ptx", "")))


def launches(target: str) -> list[Launch]:
    """One launch for each variant that the examples of all kernel files compile for `target`."""
    folders = sorted(
        {path.parent.name for path in Path(_registry.__file__).parent.glob("*/triton.py")}
    )
    with recording(target) as recorded:
        for folder in folders:
            module = importlib.import_module(f"vqvae2_fast.ops.{folder}.triton")
            for function, arguments in module.examples():
                function(*arguments)
    return recorded


def compiled_row(launch: Launch, name: str) -> tuple[dict[str, object], bool]:
    """What a launch takes on a target, and whether that is allowed."""
    target = TARGETS[name]
    source, label, options = source_of(launch)
    compiled = triton.compile(source, target=target.gpu, options=options)
    registers, spills, shared, warps = resources(compiled, target)
    ok = spills == 0 and shared <= target.block_shared
    if not options.get("enable_fp_fusion", True):
        # The bits of these kernels are defined: no multiply-add may be contracted.
        ok = ok and contracted(compiled) == 0
    if options.get("launch_pdl"):
        # Before it waits, a dependent kernel must not touch what the one before it writes.
        before = compiled.asm["ptx"].partition("griddepcontrol.wait")[0]
        ok = ok and not re.search(r"\b(ld\.global|st\.global|atom|red\.|cp\.async)", before)
    kernel = launch.kernel.__name__
    found = approximate(compiled)
    ok = ok and found <= APPROXIMATE.get(kernel, set())
    row = {
        "kernel": kernel,
        "target": name,
        "variant": label,
        "warps": compiled.metadata.num_warps,
        "registers": registers,
        "spill_bytes": spills,
        "shared_bytes": shared,
        "occupancy": f"{warps / target.warps:.2f}",
        "approximate": " ".join(sorted(found)),
        "triton": triton.__version__,
    }
    return row, ok


def summary(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    """One row for each kernel and target: the most that its variants take."""
    groups: dict[tuple[object, object], list[dict[str, object]]] = {}
    for row in rows:
        groups.setdefault((row["kernel"], row["target"]), []).append(row)
    lines = []
    for (kernel, target), members in sorted(groups.items()):
        line = {"kernel": kernel, "target": target, "variants": len(members)}
        for column in ("registers", "spill_bytes", "shared_bytes"):
            line[f"most_{column}"] = max(row[column] for row in members)
        line["least_occupancy"] = min(row["occupancy"] for row in members)
        found = {name for row in members for name in row["approximate"].split()}
        line["approximate"] = " ".join(sorted(found))
        lines.append({**line, "triton": triton.__version__})
    return lines


def csv_text(rows: list[dict[str, object]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def lines_of(path: Path, targets: list[str]) -> str:
    """The lines of a summary that are about these targets."""
    with path.open(newline="") as file:
        return csv_text([row for row in csv.DictReader(file) if row["target"] in targets])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="write a row for every variant as CSV")
    parser.add_argument("--summary", type=Path, help="write a row for every kernel as CSV")
    parser.add_argument("--check", type=Path, help="compare this summary with what is found")
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--only", default="", help="part of the kernels' names")
    options = parser.parse_args()
    rows, failures, start = [], 0, time.time()
    for name in options.targets:
        seen = set()
        for launch in launches(name):
            key = (launch.kernel.__name__, source_of(launch)[1])
            if key in seen or options.only not in key[0]:
                continue
            seen.add(key)
            row, ok = compiled_row(launch, name)
            rows.append(row)
            failures += not ok
            print(
                f"{'ok  ' if ok else 'FAIL'} {name:7} {key[0]:32} {row['registers']:4} registers "
                f"{row['spill_bytes']:4} spilled {row['shared_bytes']:7} shared  "
                f"{row['occupancy']} occupied  {key[1]}",
                flush=True,
            )
    lines = summary(rows)
    for line in lines:
        kernel, target = line["kernel"], line["target"]
        listed = " ".join(sorted(APPROXIMATE.get(kernel, set())))
        if target.startswith("sm_") and line["approximate"] != listed:
            failures += 1
            print(f"{kernel} {target}: APPROXIMATE lists '{listed}', not '{line['approximate']}'")
    found = csv_text(lines)
    print(found)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        order = sorted(rows, key=lambda row: (row["kernel"], row["target"], row["variant"]))
        options.out.write_text(csv_text(order))
    if options.summary:
        options.summary.write_text(found)
    if options.check and lines_of(options.check, options.targets) != found:
        failures += 1
        print(f"{options.check} is not what was found: write it again with --summary")
    print(f"{len(rows)} compiled, {failures} failed, {time.time() - start:.0f} s")
    return failures > 0


if __name__ == "__main__":
    sys.exit(main())
