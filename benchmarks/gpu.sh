#!/usr/bin/env bash
# What to run first where a GPU is at hand: builds, tests on the device, checks memory, measures.
# One command, under ten minutes, no network; needs Python >= 3.10, torch >= 2.11 with CUDA and its
# triton, and for the build setuptools, pybind11, ninja, cmake. Leaves benchmarks/results/<device>.csv
# and its plots.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

part() {
  local name=$1 start=$SECONDS
  shift
  echo "=== $name"
  "$@"
  echo "=== $name: $((SECONDS - start)) s"
}

memcheck() {
  if ! command -v compute-sanitizer > /dev/null; then
    echo "no compute-sanitizer on this machine: skipped"
    return
  fi
  # The sanitizer slows each launch a hundredfold: the forward cases alone.
  timeout 150 compute-sanitizer --error-exitcode 9 python "$(command -v pytest)" -q tests/ops/test_cuda.py \
    -k 'test_forward_matches_reference and not rounded' || {
      code=$?
      [ $code -eq 124 ] && echo "compute-sanitizer: no error in 150 s, stopped there" || exit $code
    }
}

# The primitives that CUDA kernels are written in, which CI knows from the CPU alone.
portable_cuda() {
  if ! command -v nvcc > /dev/null; then
    echo "no nvcc on this machine: skipped"
    return
  fi
  for test in portable_test gumbel_noise_test; do
    nvcc -std=c++20 -O3 -arch=native "csrc/tests/cuda_on_cpu/$test.cu" -o "$work/$test"
    "$work/$test"
  done
  # A sample's bits in other batches, grids and places of the weights.
  nvcc -std=c++20 -O3 -arch=native csrc/tests/sampler/sampler_test.cu \
    csrc/cuda/sampler/sampler.cu csrc/cuda/sampler/*.cpp -o "$work/sampler_test"
  "$work/sampler_test"
  if command -v compute-sanitizer > /dev/null; then
    # It tries launches that must fail: these errors are no finding.
    timeout 60 compute-sanitizer --report-api-errors no --error-exitcode 9 "$work/portable_test"
  fi
}

python - << 'EOF'
import importlib.util
import sys

problems = []
if sys.version_info < (3, 10):
    problems.append(f"expected Python 3.10 or later, got {sys.version.split()[0]}")
if importlib.util.find_spec("torch") is None:
    problems.append("torch is not installed: a CUDA build of torch 2.11 or later is needed")
else:
    import torch

    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if version < (2, 11):
        problems.append(f"expected torch 2.11 or later, got {torch.__version__}")
    if not torch.cuda.is_available():
        problems.append(f"torch {torch.__version__} sees no GPU: nothing to test or measure here")
for package in ("triton", "setuptools", "pybind11", "ninja", "pytest", "matplotlib"):
    if importlib.util.find_spec(package) is None:
        problems.append(f"{package} is not installed")
for problem in problems:
    print(f"gpu.sh: {problem}", file=sys.stderr)
sys.exit(bool(problems))
EOF

nvidia-smi --query-gpu=name,driver_version,clocks.sm,memory.total --format=csv ||
  echo "no nvidia-smi on this machine: the device is named in the table"
part build pip install -q --no-build-isolation --no-deps .
part tests timeout 200 pytest -q -m cuda
part memcheck memcheck
part benchmarks timeout 180 python benchmarks/gpu.py --save
part sampler timeout 120 python benchmarks/gpu_sampler.py --save
part windows timeout 60 python benchmarks/sampler_window.py --device cuda --threads 1 --port
part portable-cuda portable_cuda
