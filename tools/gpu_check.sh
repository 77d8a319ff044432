#!/usr/bin/env bash
# On a machine with a GPU: builds, runs every test that a GPU takes part in, compute-sanitizer on a
# small training, and the benches; ends in a short table.
set -euo pipefail

usage() {
  cat <<'END'
usage: tools/gpu_check.sh [--packages DIR] [--output DIR] [--data PATH] [--help]

Needs an NVIDIA GPU and driver, the CUDA toolkit, g++ 12, CMake 3.25 and ninja; no root and no package
registry. Takes about 8 minutes on 16 cores. Exits 1 when a step fails; the others run all the same.

  --packages DIR   what `tools/setup.sh --download DIR` made elsewhere, where this machine lacks the
                   libraries
  --output DIR     logs of every step, and the benches' JSON (build/gpu-check)
  --data PATH      text to train on (this repository's own documents)
END
}

complain() {
  echo "gpu_check.sh: $1" >&2
  exit 2
}

checkout="$(cd "$(dirname "$0")/.." && pwd)"
output="$checkout/build/gpu-check"
data="$checkout/docs"
packages=
while (($# > 0)); do
  case "$1" in
    -h | --help) usage && exit 0 ;;
    --packages | --output | --data) (($# > 1)) || complain "$1 needs a value" ;;
    *) usage >&2 && exit 2 ;;
  esac
  case "$1" in
    --packages) packages="$(realpath -m -- "$2")" ;;
    --output) output="$(realpath -m -- "$2")" ;;
    --data) data="$(realpath -m -- "$2")" ;;
  esac
  shift 2
done
command -v nvidia-smi > /dev/null || complain "there is no nvidia-smi: this machine has no NVIDIA driver"

cd "$checkout"
mkdir -p "$output"
export build="$checkout/build/gpu" data
readonly cuda="${CUDA_HOME:-/usr/local/cuda}"
export PATH="$PATH:$cuda/bin"
table=()
failed=0

# step NAME LIMIT_S COMMAND...: runs it with its output in a log, and notes how it went.
step() {
  local name="$1" limit="$2" begin=$SECONDS result=ok
  shift 2
  echo "gpu_check.sh: $name"
  # In a shell of its own, which knows the functions below.
  if ! timeout "$limit" bash -c '"$@"' _ "$@" > "$output/$name.log" 2>&1; then
    result=FAILED
    failed=1
    tail -n 15 "$output/$name.log"
  fi
  table+=("$(printf '%-28s %-8s %5d s' "$name" "$result" $((SECONDS - begin)))")
}

# note TEXT: a line of the table.
note() { table+=("  $1"); }

configure_and_build() {
  cmake -S . -B "$build" -G Ninja -DSTRATA_WERROR=ON -DCMAKE_CUDA_ARCHITECTURES=native &&
    cmake --build "$build" --parallel "$(nproc)" --target strata device_conformance_test \
      optimizer_ops_test layer_ops_test engine_placement_test engine_tiers_test engine_tiles_test \
      engine_golden_test engine_speculation_test
}

# config FILE STRATA_KEYS OFFLOAD: a configuration that computes on the GPU.
config() {
  cat > "$1" <<END
{"train_micro_batch_size_per_gpu": 4, "bf16": {"enabled": true}, "gradient_clipping": 1.0,
 "optimizer": {"type": "AdamW", "params": {"lr": 1e-4}},
 "zero_optimization": {"stage": 3, "offload_optimizer": {"device": "$3"}},
 "strata": {"device": "cuda"$2}}
END
}

# median_seconds FILE: of a metrics file's steps but for the first two; "-" where there are none.
median_seconds() {
  python3 - "$1" 2> /dev/null <<'END' || echo -
import json, statistics, sys
rows = [json.loads(line) for line in open(sys.argv[1])]
print("%.3f" % statistics.median(row["seconds"] for row in rows[2:] if "seconds" in row))
END
}

train() {
  "$build/bin/strata" train --model "$1" --config "$2" --data "$data" --sequence "$3" --steps "$4" \
    --validation-batches 1 --metrics "$5"
}

export -f configure_and_build train
if [[ -n "$packages" ]]; then
  rm -rf "$checkout/build/packages"
  step packages 60 bash tools/setup.sh --from "$packages" --prefix "$checkout/build/packages"
  # shellcheck source=/dev/null
  source "$checkout/build/packages/env.sh"
fi
step build 420 configure_and_build
"$build/bin/strata" --version || true

step devices 60 "$build/bin/device_conformance_test" --gtest_filter='*cuda*'
step state 60 "$build/bin/optimizer_ops_test" --gtest_filter='*cuda*'
export STRATA_TEST_DEVICE=cuda
step layers 120 "$build/bin/layer_ops_test"
for promise in golden placement tiers tiles speculation; do
  step "engine-$promise" 120 "$build/bin/engine_${promise}_test"
done
unset STRATA_TEST_DEVICE

small='{"model_type": "gpt2", "vocab_size": 256, "n_positions": 64, "n_embd": 64, "n_layer": 2, "n_head": 2}'
echo "$small" > "$output/small.json"
config "$output/small-config.json" "" cpu
step sanitizer 120 compute-sanitizer --error-exitcode 1 "$build/bin/strata" train \
  --model "$output/small.json" --config "$output/small-config.json" --data "$data" --sequence 64 \
  --steps 3 --validation-batches 1

step bench-layers 60 "$build/bin/strata" bench layers --device cuda --seconds 10
model=docs/examples/gpt2-1.3b.json
config "$output/on-host.json" "" cpu
config "$output/on-device.json" "" none
for place in host device; do
  step "train-1.3b-on-$place" 150 train "$model" "$output/on-$place.json" 1024 8 \
    "$output/on-$place.jsonl"
  note "state on $place: $(median_seconds "$output/on-$place.jsonl") s a step of 4096 tokens"
done

echo
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
cat "$output/bench-layers.log" || true
printf '%s\n' "${table[@]}"
exit "$failed"
