#!/usr/bin/env bash
# Run this first on a machine with a GPU: it builds, measures, tests on the device and checks
# memory, in ten minutes at most and without a network. It needs Python >= 3.10, torch >= 2.11 with
# CUDA and its triton, and for the build setuptools, pybind11, ninja, cmake. Numbers come first, and
# the script continues after a part that fails. Leaves benchmarks/results/<device>.csv with its
# plots, and everything that was printed or found in one archive, gpu-results-<date>.tar.gz, to be
# read elsewhere.
set -uo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
results=$work/gpu-results-$(date +%Y%m%d-%H%M%S)
mkdir -p "$results"
failed=()

# Runs a command and writes its output to the terminal and to a file of the results.
part() {
  local name=$1 start=$SECONDS code=0
  shift
  echo "=== $name"
  "$@" 2>&1 | tee "$results/$name.log"
  code=${PIPESTATUS[0]}
  if [ "$code" -ne 0 ]; then failed+=("$name"); fi
  echo "=== $name: exit code $code, $((SECONDS - start)) s" | tee -a "$results/summary.txt"
}

device() {
  nvidia-smi --query-gpu=name,driver_version,clocks.sm,memory.total,mig.mode.current --format=csv ||
    echo "no nvidia-smi on this machine: the device is named in the table"
  python -m torch.utils.collect_env
}

# Whether the compiled kernels run here; if not, why, and what is used instead.
engine() (
  cd "$work"  # Run elsewhere, so that no source folder shadows the installed package.
  python - << 'EOF'
import sys

import torch

from vqvae2_fast import ops
from vqvae2_fast.ops import _native
from vqvae2_fast.sampling import choose_engine
from vqvae2_fast.testing.priors import tiny_prior

print("build:", ops.build_info())
reason = _native.why_not_cuda(torch.device("cuda", 0))
print("compiled CUDA kernels:", reason or "run on this device")
engine, why = choose_engine("auto", tiny_prior().cuda())
print(f"engine auto takes {engine}: {why}")
sys.exit(engine != "cuda")
EOF
)

memcheck() {
  if ! command -v compute-sanitizer > /dev/null; then
    echo "no compute-sanitizer on this machine: skipped"
    return
  fi
  # The sanitizer slows each launch a hundredfold, so only the forward cases run.
  timeout 120 compute-sanitizer --error-exitcode 9 python "$(command -v pytest)" -q tests/ops/test_cuda.py \
    -k 'test_forward_matches_reference and not rounded'
  local code=$?
  if [ $code -eq 124 ]; then echo "compute-sanitizer: no error in 120 s, stopped there"; else return $code; fi
}

# Test the primitives of the CUDA kernels, which CI can only run on the CPU.
portable_cuda() {
  if ! command -v nvcc > /dev/null; then
    echo "no nvcc on this machine: skipped"
    return
  fi
  local code=0
  for test in portable_test gumbel_noise_test; do
    nvcc -std=c++20 -O3 -arch=native "csrc/tests/cuda_on_cpu/$test.cu" -o "$work/$test" && "$work/$test" || code=1
  done
  # Compare a sample's bits for other batches, grids and places of the weights; a hang is reported.
  nvcc -std=c++20 -O3 -lineinfo -arch=native -DVQ_SPIN_LIMIT=16777216 csrc/tests/sampler/sampler_test.cu \
    csrc/cuda/sampler/sampler.cu csrc/cuda/sampler/*.cpp -o "$work/sampler_test" &&
    timeout 60 "$work/sampler_test" || code=1
  if command -v compute-sanitizer > /dev/null && [ -x "$work/portable_test" ]; then
    # It tries launches that must fail, so these errors are expected.
    timeout 60 compute-sanitizer --report-api-errors no --error-exitcode 9 "$work/portable_test" || code=1
  fi
  return $code
}

# Write registers, shared memory and SASS of the compiled kernels, and a trace of a draw if nsys is
# installed.
kernels() {
  local module
  module=$(cd "$work" && python -c 'from vqvae2_fast.ops import _native; print(_native.module.__file__)') || return 1
  if command -v cuobjdump > /dev/null; then
    cuobjdump --dump-resource-usage "$module" | c++filt > "$results/resources.txt"
    cuobjdump --dump-sass "$module" | gzip > "$results/sass.gz"
  else
    echo "no cuobjdump on this machine: no SASS"
  fi
  if command -v nsys > /dev/null; then
    timeout 60 nsys profile -o "$results/draw" --force-overwrite true \
      python benchmarks/gpu_sampler.py --rounds 1 --batches 1
  else
    echo "no nsys on this machine: no trace"
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
[ $? -eq 0 ] || exit 1

part device device
part build pip install -q --no-build-isolation --no-deps .
part engine engine
part expected python benchmarks/gpu_sampler.py --plan h100 --batches 1 64
part sampler timeout 120 python benchmarks/gpu_sampler.py --save
part benchmarks timeout 150 python benchmarks/gpu.py --save
part windows timeout 60 python benchmarks/sampler_window.py --device cuda --threads 1 --port
part kernels kernels
part portable-cuda portable_cuda
part tests timeout 150 pytest -q -m cuda
part memcheck memcheck

cp -r benchmarks/results "$results/tables"
archive=$(basename "$results").tar.gz
tar -czf "$archive" -C "$work" "$(basename "$results")"
echo "everything above and the tables are in $archive"
if [ ${#failed[@]} -gt 0 ]; then
  echo "failed: ${failed[*]}" >&2
  exit 1
fi
