"""The C library (csrc/include/vqvae2_fast.h), built and installed as by users: the operators' bits.

It compiles the kernels of every SIMD level once, for a minute or two without ccache.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.compare import needs_kernels, simd_levels

from vqvae2_fast import ResidualVQ, ops

ROOT = Path(__file__).parents[2]
CSRC = ROOT / "csrc"
TOOLS = ("cmake", "ninja", "cc", "c++")
pytestmark = [
    needs_kernels,
    pytest.mark.skipif(
        not all(map(shutil.which, TOOLS)), reason=f"needs {', '.join(TOOLS)} on the PATH"
    ),
]

# A program of C99 that finds the installed library as CMake does.
PROJECT = """
cmake_minimum_required(VERSION 3.24)
project(example LANGUAGES C CXX)
find_package(vqvae2_fast CONFIG REQUIRED)
add_executable(example {source})
target_compile_options(example PRIVATE -std=c99 -pedantic -Wall -Wextra -Werror)
target_link_libraries(example vqvae2_fast_c)
"""


def run(*command: object, **environment: str) -> str:
    ended = subprocess.run(
        list(map(str, command)), env=os.environ | environment, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Prefixes of the static and of the shared library, from the same objects."""
    folder = tmp_path_factory.mktemp("c_library")
    options = ["-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release", "-DVQ_C_LIBRARY=ON"]
    if shutil.which("ccache"):  # it has what tools/rebuild has compiled
        options.append("-DCMAKE_CXX_COMPILER_LAUNCHER=ccache")
    for kind, shared in (("static", "OFF"), ("shared", "ON")):
        options += ["-DCMAKE_INSTALL_LIBDIR=lib", f"-DBUILD_SHARED_LIBS={shared}"]
        run("cmake", "-S", ROOT, "-B", folder / "build", *options)
        run("cmake", "--build", folder / "build")
        run("cmake", "--install", folder / "build", "--prefix", folder / kind)
    return folder


@pytest.fixture(scope="module")
def example():
    path = CSRC / "examples/nearest_code.py"
    spec = importlib.util.spec_from_file_location("nearest_code_example", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def library(installed, example):
    (path,) = (installed / "shared/lib").glob("libvqvae2_fast_c.*")
    return example.load(str(path))


@pytest.fixture(scope="module")
def program(installed):
    """The example in C, linked with the static library."""
    folder = installed / "example"
    folder.mkdir()
    source = (CSRC / "examples/nearest_code.c").as_posix()
    (folder / "CMakeLists.txt").write_text(PROJECT.format(source=source))
    prefix = f"-DCMAKE_PREFIX_PATH={installed / 'static'}"
    run("cmake", "-S", folder, "-B", folder / "build", "-G", "Ninja", prefix)
    run("cmake", "--build", folder / "build")
    return folder / "build/example"


def pointer(tensor: torch.Tensor | None) -> ctypes.c_void_p:
    assert tensor is None or tensor.is_contiguous()
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def call(library: ctypes.CDLL, name: str, *arguments: torch.Tensor | int | None) -> int:
    """Without the types of the example: tensors and NULL are pointers, numbers are int64."""
    function = library[name]  # not the attribute, which has those types
    return function(
        *(ctypes.c_int64(one) if isinstance(one, int) else pointer(one) for one in arguments)
    )


def bits(floats: torch.Tensor) -> torch.Tensor:
    """Equal for equal floats; any two NaN are equal too."""
    return torch.where(floats.isnan(), torch.nan, floats).view(torch.int32)


def at_odd_addresses(floats: torch.Tensor) -> torch.Tensor:
    memory = torch.empty(floats.numel() + 1)
    return memory[1:].view(floats.shape).copy_(floats)


def some_vectors(num_vectors: int, num_codes: int, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """z and a codebook with ties, NaN and infinity."""
    g = torch.Generator().manual_seed(num_vectors + num_codes + dim)
    codebook = torch.randn(num_codes, dim, generator=g)
    z = torch.randn(num_vectors, dim, generator=g)
    codebook[num_codes // 2] = codebook[0]
    z[::5] = codebook[0]
    z[1::7] = (codebook[0] + codebook[-1]) / 2
    z[3::11, dim // 2] = torch.nan
    z[4::13, 0] = torch.inf
    if num_codes > 8:
        codebook[3, 0], codebook[5, 0] = torch.nan, torch.inf
    return z, codebook


SIZES = [(0, 4, 3), (1, 1, 1), (8, 40, 7), (9, 40, 7), (700, 512, 64), (300, 2100, 33)]


@pytest.mark.parametrize(("num_vectors", "num_codes", "dim"), SIZES)
def test_nearest_codes_are_those_of_the_operator(library, example, num_vectors, num_codes, dim):
    z, codebook = some_vectors(num_vectors, num_codes, dim)
    expected, expected_sqdist = ops.nearest_code(z, codebook)
    indices, sqdist = example.nearest_code(
        library, at_odd_addresses(z).numpy(), at_odd_addresses(codebook).numpy()
    )
    assert torch.equal(torch.from_numpy(indices), expected)
    assert torch.equal(bits(torch.from_numpy(sqdist)), bits(expected_sqdist))


@pytest.mark.parametrize("level", simd_levels())
def test_a_c_program_finds_the_nearest_codes_at_each_level(program, tmp_path, level):
    z, codebook = some_vectors(700, 512, 64)
    z.numpy().tofile(tmp_path / "z")
    codebook.numpy().tofile(tmp_path / "codebook")
    files = [tmp_path / name for name in ("codebook", "z", "indices")]
    said = run(program, 64, *files, VQVAE2_FAST_SIMD=level)
    assert said == f"700 vectors, 512 codes, SIMD level {level}\n"
    indices = torch.from_numpy(np.fromfile(tmp_path / "indices", np.int64))
    assert torch.equal(indices, ops.nearest_code(z, codebook)[0])


@pytest.mark.parametrize(("num_vectors", "num_codes", "dim"), SIZES)
@pytest.mark.parametrize("num_quantizers", [1, 3])
def test_residual_codes_are_those_of_the_operator(
    library, num_vectors, num_codes, dim, num_quantizers
):
    z, codebook = some_vectors(num_vectors, num_codes, dim)
    codebooks = torch.stack([codebook * 0.5**q for q in range(num_quantizers)])
    expected_z_q, expected, _ = ops.residual_nearest_code(z, codebooks)
    indices, z_q = torch.empty_like(expected), at_odd_addresses(torch.empty_like(z))
    sizes = (num_quantizers, num_codes, dim)
    name = "vq2_residual_nearest_code"
    assert call(library, name, z, num_vectors, codebooks, *sizes, indices, z_q) == 0
    assert torch.equal(indices, expected)
    assert torch.equal(bits(z_q), bits(expected_z_q))


@pytest.mark.parametrize("num_quantizers", [1, 3])
def test_lookup_gives_the_sums_of_codes(library, num_quantizers):
    torch.manual_seed(0)
    quantizer = ResidualVQ(40, 7, num_quantizers=num_quantizers)
    codebooks = torch.stack([each.codebook for each in quantizer.quantizers])
    codebooks[0, 0] = -0.0
    quantizer.quantizers[0].codebook.copy_(codebooks[0])
    indices = torch.randint(40, (100, num_quantizers))
    indices[0] = 0
    z_q = torch.empty(100, 7)
    assert call(library, "vq2_lookup", indices, 100, codebooks, *codebooks.shape, z_q) == 0
    assert torch.equal(bits(z_q), bits(quantizer.lookup(indices)))


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("levels", [[2], [8, 5, 5, 5], [4096] * 6])
@pytest.mark.parametrize("num_vectors", [0, 1, 1000])
def test_scalars_are_those_of_the_operator(library, symmetric, hard, levels, num_vectors):
    z = torch.randn(num_vectors, len(levels), generator=torch.Generator().manual_seed(0)) * 2
    z[::5] = 0
    z[1::7, 0] = torch.nan
    z[2::7, -1] = -torch.inf
    expected_values, expected = ops.scalar_quantize(z, levels, symmetric, hard)
    indices, values = torch.empty_like(expected), at_odd_addresses(torch.empty_like(z))
    grid = torch.tensor(levels)
    arguments = (z, num_vectors, grid, len(levels), int(symmetric), int(hard), indices, values)
    assert call(library, "vq2_scalar_quantize", *arguments) == 0
    assert torch.equal(indices, expected)
    assert torch.equal(bits(values), bits(expected_values))


Z, CODES, INDICES, LEVELS = torch.zeros(2, 3), torch.zeros(4, 3), torch.zeros(2), torch.tensor([2])


@pytest.mark.parametrize(
    ("function", "arguments", "named", "got"),
    [
        ("nearest_code", (Z, -1, CODES, 4, 3, INDICES, None), "num_vectors", "-1"),
        ("nearest_code", (Z, 2, CODES, 0, 3, INDICES, None), "num_codes", "0"),
        ("nearest_code", (Z, 2, CODES, 4, 0, INDICES, None), "dim", "0"),
        ("nearest_code", (None, 2, CODES, 4, 3, INDICES, None), "z", "NULL"),
        ("nearest_code", (Z, 2, None, 4, 3, INDICES, None), "codebook", "NULL"),
        ("nearest_code", (Z, 2, CODES, 4, 3, None, None), "indices", "NULL"),
        ("residual_nearest_code", (Z, 2, CODES, 0, 4, 3, INDICES, Z), "num_quantizers", "0"),
        ("residual_nearest_code", (None, 2, CODES, 1, 4, 3, INDICES, Z), "z", "NULL"),
        ("lookup", (torch.tensor([0, 4]), 2, CODES, 1, 4, 3, Z), "indices", "4 of vector 1"),
        ("lookup", (torch.tensor([-1, 0]), 2, CODES, 1, 4, 3, Z), "indices", "-1 of vector 0"),
        ("lookup", (torch.tensor([0, 0]), 2, CODES, 1, 4, 3, None), "z_q", "NULL"),
        ("scalar_quantize", (Z, 2, torch.tensor([1]), 1, 0, 0, INDICES, Z), "levels", "1"),
        ("scalar_quantize", (Z, 2, 2**22 * LEVELS, 1, 0, 0, INDICES, Z), "levels", "8388608"),
        ("scalar_quantize", (Z, 2, LEVELS, 1, 0, 0, INDICES, None), "values", "NULL"),
    ],
)  # fmt: off
def test_a_bad_argument_is_named(library, function, arguments, named, got):
    assert call(library, f"vq2_{function}", *arguments) == 1
    said = library.vq2_last_error().decode()
    assert said.startswith("expected ")
    assert f" {named} " in said.replace(",", " ")
    assert said.endswith(f"got {got}.")


def test_a_level_that_is_not_there_is_an_error(program, tmp_path):
    np.zeros(8, np.float32).tofile(tmp_path / "numbers")
    command = [program, "2", tmp_path / "numbers", tmp_path / "numbers", tmp_path / "indices"]
    environment = os.environ | {"VQVAE2_FAST_SIMD": "abacus"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ended.returncode == 1
    assert "got 'abacus'" in ended.stderr


def test_no_memory_is_a_status_of_its_own(library):
    arguments = (Z, 2, CODES, 2**55, 4, 3, INDICES, Z)  # an error is summed for each quantiser
    assert call(library, "vq2_residual_nearest_code", *arguments) == 2
    assert "memory" in library.vq2_last_error().decode()
