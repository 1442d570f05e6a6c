"""`vqvae2-fast check`: whether what is installed computes what it should.

Each part is compared with its definition in PyTorch, on inputs that take less than a minute.
"""

from __future__ import annotations

import base64
import hashlib
import importlib
import re
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import Distribution, PackageNotFoundError, distributions, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import vqvae2_fast
from vqvae2_fast import ops
from vqvae2_fast.codec import decode_codes, encode_codes
from vqvae2_fast.commands.common import Command, Result, open_preset
from vqvae2_fast.commands.installation import installation
from vqvae2_fast.console.words import counted, together
from vqvae2_fast.modules.contexts import evaluating
from vqvae2_fast.ops import _native
from vqvae2_fast.ops._native import at_simd_level
from vqvae2_fast.ops.gumbel_noise.op import gumbel_noise_reference
from vqvae2_fast.sampling import calibrate, interface_of, sample_codes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vqvae2_fast.sampling import Pipeline

__all__ = ["Check", "operator_inputs"]

_PRESET = "emoji32"
# Sums of float32 in different orders, in units of the largest number: the tests saw 9e-7 at most.
_ROUNDING = 1e-5

# Of the container of `_some_codes`: what other machines and versions write, this one can read.
_DIGEST = "5270fd2ec2da8800"

_EXTRAS_OF_USERS = (
    "avatars",
    "eval",
    "export",
    "hf",
    "hub",
    "lmdb",
    "serve",
    "tensorboard",
    "webdataset",
)
_MODULES = {"dicebear-core": "dicebear", "pillow-jxl-plugin": "pillow_jxl"}


@dataclass
class _Part:
    """What became of one part: a line, values for machines, and a sentence for each fault."""

    line: str
    values: dict[str, Any] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


@dataclass(kw_only=True)
class Check(Command):
    """Check that what is installed computes what it should, in less than a minute on the CPU.

    Compares the operators, the engines that draw and the codec with their definitions in PyTorch,
    with the lowest and the highest SIMD level of this processor. Ends with exit code 1 if one
    differs, if files of the package are not those that were installed, if a source tree hides an
    installed package with kernels, or if what an extra needs is too old or does not import.
    """

    def run(self) -> Result:
        self.prepare_on_cpu()
        checks = {
            "installation": _installation,
            "operators": _operators,
            "engines": _engines,
            "codec": _codec,
        }
        parts = {}
        with self.progress().task("check", len(checks)) as task:
            for name, check in checks.items():
                parts[name] = _Part("stopped by an error")
                with _noting(parts[name].faults):
                    parts[name] = check()
                task.advance()
        lines = [f"{name}: {part.line}" for name, part in parts.items()]
        faults = [f"{name}: {fault}" for name, part in parts.items() for fault in part.faults]
        lines += [f"fault: {fault}" for fault in faults]
        lines.append(
            "Put all of these lines, and the command that went wrong, into a bug report."
            if faults
            else "Everything is as it should be."
        )
        values = {name: part.values | {"faults": part.faults} for name, part in parts.items()}
        return Result(values, lines, 1 if faults else 0)


@contextmanager
def _noting(faults: list[str], begins: str = "") -> Iterator[None]:
    """An error inside becomes a fault, and does not keep the rest from being checked."""
    try:
        yield
    except Exception as error:  # whatever it is, it is what was to be found
        faults.append(f"{begins}expected no error, got {type(error).__name__}: {error}")


def _installation() -> _Part:
    folder = Path(vqvae2_fast.__file__).parent
    found = installation()
    line = "\n  ".join([f"imported from {folder}", *found.lines])
    part = _Part(line, found.values | {"folder": str(folder)})
    packages = list(distributions(name="vqvae2_fast"))
    if _native.module is None and (hidden := _with_kernels(packages, folder)):
        part.faults.append(
            f"expected the package installed in {hidden}, which has kernels, got the source tree "
            f"{folder.parent}, which has none. Start Python in another folder, with PYTHONPATH "
            "unset."
        )
    missing = _missing_level()
    if missing:
        part.faults.append(
            f"expected kernels for {missing}, which this processor has, got {together(_levels())}. "
            "The compiled module is for other processors: install the package again on this one."
        )
    for package in packages:
        part.faults += _changed_files(package)
    part.faults += _faults_of_extras(packages)
    return part


def _with_kernels(packages: list[Distribution], imported: Path) -> Path | None:
    """An installed package with kernels that is not the one imported."""
    for package in packages:
        folder = Path(str(package.locate_file("vqvae2_fast")))
        if folder.resolve() != imported.resolve() and any(folder.glob("_C.*")):
            return folder
    return None


def _missing_level() -> str | None:
    """What PyTorch found of this processor and the compiled module has no kernels for."""
    capability = torch.backends.cpu.get_cpu_capability().lower()
    if _native.module is None or capability not in ("avx2", "avx512"):
        return None
    return None if any(level.startswith(capability) for level in _levels()) else capability


def _changed_files(package: Distribution) -> list[str]:
    """A sentence if files of a package are missing or are not those that pip installed.

    An update that was cut off leaves files of two versions. What an editable install imports is
    not among its files.
    """
    changed = []
    for file in package.files or []:
        if file.hash is None:
            continue
        path = Path(str(file.locate()))
        digest = hashlib.new(file.hash.mode, path.read_bytes() if path.is_file() else b"").digest()
        if base64.urlsafe_b64encode(digest).decode().rstrip("=") != file.hash.value:
            changed.append(str(file))
    if not changed:
        return []
    return [
        f"expected the files that were installed, got {counted(len(changed), 'changed file')}, "
        f"such as {changed[0]}. `pip install --force-reinstall --no-deps vqvae2_fast` mends that."
    ]


def _faults_of_extras(packages: list[Distribution]) -> list[str]:
    """A sentence for each package of an extra that is there, but too old or not to be imported."""
    faults: list[str] = []
    needs = {need for package in packages for need in package.requires or []}
    for need in sorted(needs):
        pattern = r"([\w.-]+)(?:>=([\d.]+))?.*extra == \"(\w+)\""
        match = re.match(pattern, need)
        if match is None or match[3] not in _EXTRAS_OF_USERS:
            continue
        name, oldest, extra = match.groups()
        try:
            found = version(name)
        except PackageNotFoundError:
            continue
        remedy = f"`pip install -U 'vqvae2_fast[{extra}]'` installs another."
        if oldest and _numbers(found) < _numbers(oldest):
            faults.append(f"expected {name} {oldest} or later, got {found}. {remedy}")
        try:
            importlib.import_module(_MODULES.get(name, name.replace("-", "_")))
        except Exception as error:  # a broken package may raise anything
            faults.append(
                f"expected {name} {found} to import, got {type(error).__name__}: {error}. {remedy}"
            )
    return faults


def _numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


def _levels() -> list[str]:
    """The lowest and the highest SIMD level of this processor; `none` without kernels."""
    if _native.module is None:
        return ["none"]
    levels = _native.module.simd_levels()
    return list(dict.fromkeys((levels[0], levels[-1])))


def operator_inputs() -> dict[str, tuple[Any, ...]]:
    """For each public operator the arguments of a small call, in the order of its schema.

    The sizes fill no vector of any SIMD level, so that the tails are computed too.
    """
    generator = torch.Generator("cpu").manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")

    def below(stop: int, *shape: int) -> Tensor:
        return torch.randint(stop, shape, generator=generator, dtype=torch.int64, device="cpu")

    n, k, d = 67, 37, 19
    seed = torch.tensor(7, dtype=torch.int64, device="cpu")
    heads = [randn(2, 3, 29, size) for size in (7, 7, 13)]
    used = randn(k).abs() + 1
    return {
        "causal_attention": (*heads, 0.3, "logits", seed),
        "causal_conv2d": (randn(2, 3, 6, 7), randn(5, 3, 3, 3), randn(5), "exclude"),
        "code_conv2d": (below(11, 2, 5, 7), randn(3, 11, d), [-1, -1, -1, 0, 0, -1]),
        "code_statistics": (randn(n, d), below(k, n), k),
        "draw_codes": (randn(n, k), randn(n, k), randn(n, k), None, 0.9, 20, 0.8, 2.0, True),
        "dropout_mask": (seed, 3, 5, d, 0.3),
        "ema_update_": (below(9, k), randn(k, d), used, randn(k, d), randn(k, d), 0.99, 1e-5),
        "gated_residual": (randn(2, 10, 7, 3), randn(2, 5, 7, 3), randn(2, 10, 7, 3)),
        "gumbel_noise": (below(1000, 3), below(64, 5), k, 3, 1),
        "nearest_code": (randn(n, d), randn(k, d)),
        "residual_code_statistics": (randn(n, d), randn(3, k, d), below(k, n, 3)),
        "residual_nearest_code": (randn(n, d), randn(3, k, d), False),
        "scalar_quantize": (randn(n, 4), [8, 5, 5, 5], False, False, False),
        "sign_quantize": (randn(n, d), 1.0),
        "vector_quantize": (randn(n, d), randn(k, d)),
    }


def _operators() -> _Part:
    levels = _levels()
    faults: list[str] = []
    kernels: list[str] = []
    inputs = operator_inputs()
    for name, arguments in inputs.items():
        operator = ops.OPERATORS[name]
        # Small calls go to the reference by choice, and here it is the kernel that counts.
        compiled = _native.module is not None and operator.owners.get("cpu") == "cpu"
        kernels += [name] if compiled else []
        expected = _results(operator.reference, arguments)
        for level in levels if compiled else levels[-1:]:
            where = f"{name} at SIMD level {level}: "
            with _noting(faults, where), at_simd_level(level):
                found = _results(operator.kernel if compiled else operator, arguments)
                for number, (own, reference) in enumerate(zip(found, expected, strict=True)):
                    if difference := _difference(own, reference):
                        faults.append(
                            f"{where}expected result {number} of its reference, got {difference}."
                        )
    line = (
        f"{counted(len(kernels), 'kernel')} compared with the references at SIMD level "
        f"{together(levels)}; {counted(len(inputs) - len(kernels), 'operator')} without one for "
        "the CPU"
    )
    return _Part(line, {"levels": levels, "kernels": kernels}, faults)


def _results(function: Any, arguments: tuple[Any, ...]) -> list[Tensor]:
    """What a function returns, and its tensors afterwards, some of which it may write."""
    copies = [value.clone() if isinstance(value, Tensor) else value for value in arguments]
    with torch.no_grad():
        results = function(*copies)
    returned = results if isinstance(results, tuple) else (results,)
    return [value for value in (*returned, *copies) if isinstance(value, Tensor)]


def _difference(own: Tensor, reference: Tensor) -> str | None:
    """In words, what is not within rounding of the reference; None if all is."""
    if own.shape != reference.shape or own.dtype != reference.dtype:
        return f"{list(own.shape)} {own.dtype}, not {list(reference.shape)} {reference.dtype}"
    if not own.is_floating_point():
        others = int((own != reference).sum())
        return f"{counted(others, 'other number')} of {own.numel()}" if others else None
    error = float((own - reference).abs().max())
    allowed = _ROUNDING * max(1.0, float(reference.abs().max()))
    return None if error <= allowed else f"a difference of {error:.3g} (allowed: {allowed:.3g})"


def _engines() -> _Part:
    pipeline = open_preset(_PRESET, torch.device("cpu"))
    levels = _levels()
    faults: list[str] = []
    labels = torch.zeros(1, dtype=torch.int64, device="cpu")
    draws = [("reference", levels[-1]), ("eager", levels[-1])]
    if _native.module is not None:
        draws += [("cpu", level) for level in levels]
    for engine, level in draws:
        where = f"engine {engine} at SIMD level {level}: "
        with _noting(faults, where), at_simd_level(level):
            maps: list[Tensor] = []
            # One forward pass judges a map; to draw by `reference` takes one for each code.
            for stream, prior in enumerate(pipeline.priors[: 1 if engine == "reference" else None]):
                codes = _drawn(prior, engine, labels, maps, stream)
                if difference := _difference_of_codes(prior, codes, maps, labels, stream):
                    faults.append(
                        f"{where}expected in map {stream} the best codes of the full network, got "
                        f"{difference}."
                    )
                maps.append(codes)
    if _native.module is not None:
        prior = pipeline.networks()[1][0]
        draws.append(("cpu_w8a8", levels[-1]))
        with _noting(faults, "engine cpu_w8a8: "):
            calibrate(prior, [(_some_codes(pipeline)[0], [], labels)], margin=4.0)
            found = []
            for level in levels:
                with at_simd_level(level):
                    found.append(_drawn(prior, "cpu_w8a8", labels, [], 0))
            if others := int((found[0] != found[-1]).sum()):
                faults.append(
                    f"engine cpu_w8a8: expected the same codes at {together(levels)}, got "
                    f"{counted(others, 'other code')} of {found[0].numel()}."
                )
    names = list(dict.fromkeys(engine for engine, _ in draws))
    line = (
        f"an image of {_PRESET} drawn by engines {together(names)} at SIMD level {together(levels)}"
    )
    return _Part(line, {"levels": levels, "engines": names}, faults)


def _drawn(prior: Any, engine: str, labels: Tensor, condition: list[Tensor], stream: int) -> Tensor:
    codes = sample_codes(
        prior, 1, condition=condition or None, labels=labels, stream=stream, engine=engine
    )
    assert isinstance(codes, Tensor)  # no log-probabilities were asked for
    return codes


def _some_codes(pipeline: Pipeline) -> list[Tensor]:
    """Code maps of one image without any order."""
    maps = []
    for one in map(interface_of, pipeline.priors):
        positions = torch.arange(one.size[0] * one.size[1], dtype=torch.int64, device="cpu")
        maps.append((positions * 7919 % one.num_embeddings).view(1, *one.size))
    return maps


@torch.no_grad()
def _difference_of_codes(
    prior: Any, codes: Tensor, condition: list[Tensor], labels: Tensor, stream: int
) -> str | None:
    """In words, which codes are not the best of the full network, apart from near ties."""
    interface = interface_of(prior)
    with evaluating(prior):
        logits = interface.logits(codes, condition, labels)[0].flatten(1).T  # [HW, K]
    samples = torch.zeros(1, dtype=torch.int64, device="cpu")
    positions = torch.arange(codes.numel(), device="cpu")
    noise = gumbel_noise_reference(samples, positions, interface.num_embeddings, 0, stream)[0]
    scores = logits + noise
    gaps = scores.amax(dim=1) - scores.gather(1, codes.view(-1, 1))[:, 0]
    # Both scores carry the error of a logit; twice that allows for what was not measured.
    allowed = 4 * _ROUNDING * max(1.0, float(logits.abs().max()))
    if not (others := int((~(gaps <= allowed)).sum())):
        return None
    told = f"{counted(others, 'other code')} of {codes.numel()}"
    return f"{told}, the worst by a score of {float(gaps.max()):.3g}"


def _codec() -> _Part:
    if _native.module is None:
        return _Part("left out, since it needs compiled kernels")
    pipeline = open_preset(_PRESET, torch.device("cpu"))
    levels, codes = _levels(), _some_codes(pipeline)
    with at_simd_level(levels[0]):
        data = encode_codes(pipeline, codes)
    with at_simd_level(levels[-1]):
        found = decode_codes(pipeline, data)
    pairs = zip(found, codes, strict=True)
    others = sum(int((own != expected).sum()) for own, expected in pairs)
    line = (
        f"code maps written in {len(data)} bytes at SIMD level {levels[0]} and read at {levels[-1]}"
    )
    part = _Part(line, {"bytes": len(data), "levels": levels})
    if others:
        part.faults.append(
            f"expected the codes that were written, got {counted(others, 'other one')}."
        )
    if (digest := hashlib.sha256(data).hexdigest()[:16]) != _DIGEST:
        part.faults.append(
            f"expected a file with the SHA-256 {_DIGEST}..., got {digest}...: files of other "
            "machines may not be readable here, nor this one's files there."
        )
    return part
