#!/usr/bin/env bash
# Run this first on a machine with a GPU: it measures, tests on the device and checks memory, in ten
# minutes at most and without a network.
#
#   bash benchmarks/gpu.sh [--wheel FILE | --build] [--seconds 600] [--memcheck-seconds 80]
#
# It needs Python >= 3.10 and torch >= 2.11 with CUDA and its triton, and for the tests pytest >= 9,
# pytest-benchmark and hypothesis. It takes the installed vqvae2_fast if that has CUDA kernels.
# Otherwise, or with --build, it builds this tree, for which it needs nvcc, setuptools, pybind11,
# ninja, cmake; --wheel takes a wheel. Either goes to a folder of this run, not into the environment.
#
# Claimed figures come first, then tables, then times of the sampler's stages, then tests. A part that
# fails or hangs does not end the script, and neither does Ctrl-C: it only cuts what is left. Everything goes into one archive,
# gpu-results-<date>.tar.gz, to be read elsewhere. Its first page, summary.md, says for each claim
# what was expected and measured. Tables are also left in benchmarks/results/<device>*.csv.
set -uo pipefail
scripts=$(cd "$(dirname "$0")" && pwd)
tree=$(dirname "$scripts")

seconds=600 memcheck_seconds=80 wheel='' build=''
while [ $# -gt 0 ]; do
  case $1 in
    --wheel) wheel=${2:-nothing} && shift ;;
    --build) build=1 ;;
    --seconds) seconds=${2-} && shift ;;
    --memcheck-seconds) memcheck_seconds=${2-} && shift ;;
    *)
      echo "gpu.sh: expected --wheel FILE, --build, --seconds N or --memcheck-seconds N, got $1" >&2
      exit 2
      ;;
  esac
  shift
  if ! [[ $memcheck_seconds =~ ^[0-9]+$ ]]; then
    echo "gpu.sh: expected a number for --memcheck-seconds, got '$memcheck_seconds'" >&2
    exit 2
  fi
  if ! [[ $seconds =~ ^[0-9]+$ ]] || { [ -n "$wheel" ] && ! [ -f "$wheel" ]; }; then
    echo "gpu.sh: expected a file for --wheel and a number for --seconds, got '$wheel' and '$seconds'" >&2
    exit 2
  fi
done
if [ -n "$wheel" ]; then wheel=$(realpath "$wheel"); fi

here=$PWD
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
results=$work/gpu-results-$(date +%Y%m%d-%H%M%S)
mkdir -p "$results" "$work/site"
touch "$work/start"
# The pytest of this Python, without the current folder in its path: the tree's package must not
# stand in for the one that is tested.
pytest='import sys; del sys.path[0]; import pytest; sys.exit(pytest.main(sys.argv[1:]))'
export scripts tree work results pytest memcheck_seconds
# Seconds that are kept for the first page and the archive.
deadline=$((seconds - (seconds > 60 ? 15 : 0)))
failed=() running=''
# What is running is cut, all that follows is left out, and the archive is still written.
trap 'deadline=0; [ -z "$running" ] || kill "$running"' INT TERM

# Runs a command for at most so many seconds, and no longer than the whole may take. Its output goes
# to the terminal and to a file of the results.
part() {
  local name=$1 limit=$2 start=$SECONDS code=0 result=passed
  shift 2
  local left=$((deadline - SECONDS))
  if [ "$left" -le 0 ]; then
    echo "=== $name: left out, the time is over"
    record "$name" "left out, the time is over" 0
    return 1
  fi
  if [ "$limit" -gt "$left" ]; then limit=$left; fi
  echo "=== $name"
  # A file and not a pipe: a process that outlives the part would keep a pipe open.
  : > "$results/$name.log"  # before tail looks for it
  timeout --kill-after=3 "$limit" "$@" >> "$results/$name.log" 2>&1 &
  running=$!
  tail -n +1 -s 0.1 -f --pid="$running" "$results/$name.log" &
  wait "$running"
  code=$?
  if [ "$deadline" -eq 0 ]; then wait "$running"; fi  # a signal ended the first wait
  running=''
  wait
  if [ "$code" -ne 0 ]; then
    result="failed, exit code $code"
    if [ "$deadline" -eq 0 ] || [ $((SECONDS - start)) -ge "$limit" ]; then
      result="cut after $((SECONDS - start)) s"
    fi
  fi
  echo "=== $name: $result, $((SECONDS - start)) s"
  record "$name" "$result" $((SECONDS - start))
  return "$code"
}

record() {
  printf '%s\t%s\t%s\n' "$1" "$2" "$3" >> "$results/parts.tsv"
  if [ "$2" != passed ]; then failed+=("$1"); fi
}

# The same for a function of this script.
function_part() {
  part "$1" "$2" bash -uo pipefail -c "$3"
}

finish() {
  echo "=== first page"
  timeout 10 python "$scripts/gpu_claims.py" "$results" || echo "gpu.sh: no first page" >&2
  mkdir -p "$results/tables"
  # Only tables that this run wrote: the folder also has those of other machines.
  mkdir -p "$scripts/results"
  find "$scripts/results" -type f -newer "$work/start" -exec cp {} "$results/tables/" \;
  local archive
  archive=$here/$(basename "$results").tar.gz
  tar -czf "$archive" -C "$work" "$(basename "$results")" || exit 1
  echo "everything above and the tables are in $archive"
  if [ ${#failed[@]} -gt 0 ]; then
    echo "failed: ${failed[*]}" >&2
    exit 1
  fi
  exit 0
}

memcheck() {
  if ! command -v compute-sanitizer > /dev/null; then
    echo "no compute-sanitizer on this machine: skipped"
    return
  fi
  # The sanitizer slows each launch a hundredfold, so only the forward cases run.
  timeout --kill-after=3 "$memcheck_seconds" compute-sanitizer --error-exitcode 9 \
    python -c "$pytest" -q tests/ops/test_cuda.py -k 'test_forward_matches_reference and not rounded'
  local code=$? errors
  # 124: its time was over; 137: and it had to be killed.
  if [ $code -ne 124 ] && [ $code -ne 137 ]; then return $code; fi
  # No exit code says what it found until then, but its output does, which is the log of this part:
  # a line that is not indented begins an error, unless it is about the run itself.
  errors=$(grep -E '^={9} [^ ]' "$results/memcheck.log" | grep -vE \
    "COMPUTE-SANITIZER|ERROR SUMMARY: 0|API Warning|process didn't terminate|Target application")
  if [ -n "$errors" ]; then
    printf 'compute-sanitizer: errors in %s s, stopped there:\n%s\n' "$memcheck_seconds" "$errors"
    return 9
  fi
  echo "compute-sanitizer: no error in $memcheck_seconds s, stopped there"
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

# Write registers, shared memory, occupancy and SASS of the compiled kernels.
kernels() {
  local module cuobjdump
  module=$(python -c 'from vqvae2_fast.ops import _native; print(_native.module.__file__)') || return 1
  # Triton brings one for machines without a CUDA toolkit.
  cuobjdump=$(command -v cuobjdump ||
    python -c 'import pathlib, triton; print(pathlib.Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump")')
  if [ ! -x "$cuobjdump" ]; then
    echo "no cuobjdump on this machine: no SASS"
    return
  fi
  "$cuobjdump" --dump-resource-usage "$module" | c++filt > "$results/resources.txt" &&
    python "$scripts/gpu_occupancy.py" < "$results/resources.txt" | tee "$results/occupancy.csv" &&
    "$cuobjdump" --dump-sass "$module" | gzip > "$results/sass.gz"
}

# Write a trace of a draw of each precision.
trace() {
  if ! command -v nsys > /dev/null; then
    echo "no nsys on this machine: no trace"
    return
  fi
  nsys profile -o "$results/draw" --force-overwrite true \
    python "$scripts/gpu_sampler.py" --engines cuda cuda_tf32 cuda_bfloat16 --rounds 1 --batches 1
}

# Build the persistent kernel so that it notes when its blocks do what.
stage_times_library() {
  if ! command -v nvcc > /dev/null || ! [ -d "$tree/csrc/cuda/sampler" ]; then
    echo "no nvcc on this machine or no CUDA sources next to $scripts: skipped"
    return
  fi
  nvcc -std=c++20 -O3 -arch=native -DVQ_STAGE_TIMES -Xcompiler -fPIC -shared \
    "$tree/csrc/cuda/sampler/sampler.cu" "$tree"/csrc/cuda/sampler/*.cpp -o "$work/libstage_times.so"
}

environment() {
  nvidia-smi --query-gpu=name,driver_version,clocks.sm,memory.total,mig.mode.current --format=csv
  python -m torch.utils.collect_env
}
export -f memcheck portable_cuda kernels trace stage_times_library environment

part driver 60 python "$scripts/gpu_machine.py" driver || finish

# Into a folder of this run, which the parts that follow prefer to the environment.
install=(python -m pip install -q --no-deps --no-index --target "$work/site")
if [ -n "$wheel" ]; then
  origin="from $wheel"
  part install 60 "${install[@]}" "$wheel"
elif [ -z "$build" ] && timeout 60 python "$scripts/gpu_machine.py" package > /dev/null 2>&1; then
  origin="installed before"
elif [ -e "$tree/pyproject.toml" ]; then
  origin="built from $tree"
  part build 300 "${install[@]}" --no-build-isolation "$tree"
else
  origin="installed before, because $tree is no source tree"
fi
echo "$origin" > "$results/origin.txt"
export PYTHONPATH=$work/site${PYTHONPATH:+:$PYTHONPATH}
part package 60 python "$scripts/gpu_machine.py" package
part engine 60 python "$scripts/gpu_machine.py" engine

part claims-sampler 90 python "$scripts/gpu_sampler.py" --engines cuda cuda_tf32 cuda_bfloat16 \
  --batches 1 64 --rounds 3 --json "$results/claims-sampler.json"
part claims-operators 60 python "$scripts/gpu.py" --contenders ours --json "$results/claims-operators.json" \
  --only 'search 524288' 'quantiser_step 524288' 'statistics_of 524288'

part sampler 90 python "$scripts/gpu_sampler.py" --save --json "$results/sampler.json"
part operators 150 python "$scripts/gpu.py" --save --json "$results/operators.json"
function_part kernels 30 kernels
function_part trace 40 trace
function_part stage-times-library 120 stage_times_library
if [ -e "$work/libstage_times.so" ]; then
  part stage-times 60 python "$scripts/gpu_sampler.py" --stage-times "$work/libstage_times.so" \
    --batches 1 8 64 --rounds 2 --out "$results/stage_times.json"
fi

cd "$tree" || finish
if [ -d tests ] && [ -d csrc ]; then
  # The sampler's tests come first, on their own: the others compile for minutes.
  part tests-sampling 90 python -c "$pytest" -q -m cuda tests/sampling
  part tests 120 python -c "$pytest" -q -m cuda --ignore tests/sampling
  function_part portable-cuda 90 portable_cuda
  function_part memcheck $((memcheck_seconds + 10)) memcheck
else
  echo "no tests next to $scripts: left out"
fi
function_part environment 30 environment
finish
