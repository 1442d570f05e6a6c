"""The CUDA sampler built for the CPU (csrc/tests/cuda_on_cpu), and the number of threads."""

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from vqvae2_fast.sampling import plan_of
from vqvae2_fast.sampling import sampler as sampler_module
from vqvae2_fast.sampling.engines import cuda
from vqvae2_fast.sampling.engines.cuda_library import Library

ROOT = Path(__file__).parents[2]
CARD = cuda.Card(blocks=5, shared_bytes=48 << 10, threads=64)


@pytest.fixture(scope="session")
def sampler_on_cpu(tmp_path_factory):
    """The library of engine `cuda`, its kernels executed on the CPU."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        pytest.skip("no C++ compiler on this machine")
    folder = tmp_path_factory.mktemp("sampler_on_cpu")
    harness = ["cluster", "fiber", "scheduler", "synchronize", "report", "runtime"]
    sources = [Path("csrc/tests/cuda_on_cpu") / f"{name}.cpp" for name in harness]
    sampler = Path("csrc/cuda/sampler")
    sources += [path.relative_to(ROOT) for path in sorted((ROOT / sampler).glob("*.cpp"))]
    sources.append(sampler / "sampler.cu")

    def build(*arguments):
        subprocess.run([compiler, *arguments], cwd=ROOT, check=True)

    def compile_one(source):
        target = str(folder / f"{source.parent.name}_{source.name}.o")
        flags = "-std=c++20 -O2 -fPIC -ffp-contract=off -fno-math-errno -Wno-unknown-pragmas"
        build(*f"{flags} -Icsrc/tests/cuda_on_cpu -x c++ -c {source}".split(), "-o", target)
        return target

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, sources))
    library = folder / "libsampler_on_cpu.so"
    build("-shared", *objects, "-pthread", "-o", str(library))
    return Library(str(library))


@pytest.fixture
def card():
    """The card of a test, which the test may replace."""
    return [CARD]


@pytest.fixture
def engines(sampler_on_cpu, card, monkeypatch):
    """`on_cpu`, `on_cpu_tf32`, `on_cpu_bfloat16`: engine names that draw on the CPU."""
    for name, precision in cuda.PRECISIONS.items():

        def draw(prior, interface, request, precision=precision):
            plan = plan_of(prior, interface)
            return cuda.draw_with(sampler_on_cpu, card[0], 0, plan, request, precision)

        monkeypatch.setitem(sampler_module.ENGINES, name.replace("cuda", "on_cpu"), draw)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
