#!/usr/bin/env bash
# From a fresh checkout to a trained GPT: packages, build, ZeRO-3 on two ranks with state on disk.
set -euo pipefail

usage() {
  cat <<'END'
usage: tools/demo.sh [--data PATH] [--seconds N] [--nvme DIR] [--output DIR] [--help]

Installs missing packages (tools/setup.sh), builds, and trains a GPT of 11 million parameters on
text, byte by byte, in bf16 with ZeRO-3 on two ranks of this machine: master weights and Adam's
moments live in files, read and written through io_uring; the device budget of all ranks together
is less than a quarter of the training state. Ends with what lay where and what moved, and text by
the model.

  --data PATH    text to train on: a file, or a directory of them (/usr/share/common-licenses)
  --seconds N    time to train (220)
  --nvme DIR     an existing directory for the state files, best on an NVMe disk (the output's)
  --output DIR   where trace and metrics go (build/demo)
END
}

complain() {
  echo "demo.sh: $1" >&2
  exit 2
}

# The rest runs in the checkout.
absolute() { realpath -m -- "$1"; }

checkout="$(cd "$(dirname "$0")/.." && pwd)"
data=/usr/share/common-licenses
seconds=220
nvme=
output="$checkout/build/demo"
while (($# > 0)); do
  case "$1" in
    -h | --help) usage && exit 0 ;;
    --data | --seconds | --nvme | --output) (($# > 1)) || complain "$1 needs a value" ;;
    *) usage >&2 && exit 2 ;;
  esac
  case "$1" in
    --data) data="$(absolute "$2")" ;;
    --seconds) seconds="$2" ;;
    --nvme) nvme="$(absolute "$2")" ;;
    --output) output="$(absolute "$2")" ;;
  esac
  shift 2
done
[[ "$seconds" =~ ^[1-9][0-9]*$ ]] || complain "--seconds is '$seconds': give a whole number"
[[ -e "$data" ]] || complain "--data '$data' is not there: name a text file or a directory of them"
[[ -z "$nvme" || -d "$nvme" ]] || complain "--nvme '$nvme' is not a directory: create it"
nvme="${nvme:-$output}"
[[ "$nvme" != *[\"\\]* ]] || complain "'$nvme' has quotes or backslashes: name another directory"

cd "$checkout"
bash tools/setup.sh
cmake --preset release
cmake --build --preset release --parallel "$(nproc)" --target strata

mkdir -p "$output"
config="$(< docs/examples/demo.json)"
printf '%s\n' "${config//@NVME@/"$nvme"}" > "$output/ds_config.json"

# Open MPI wants to be told of root (in containers) and of more ranks than cores; reading a peer's
# memory directly is forbidden in many containers, and then large fragments halve the time that
# compute waits for parameters.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMPI_MCA_btl_vader_single_copy_mechanism=none
export OMPI_MCA_btl_vader_max_send_size=1048576 OMPI_MCA_btl_vader_segment_size=67108864
export OMP_WAIT_POLICY=passive  # ranks share the cores: nobody spins
# After Ctrl-C mpirun kills its ranks in a second, unless told to let them finish their step.
mpirun -n 2 --oversubscribe --bind-to none --mca odls_base_sigkill_timeout 60 \
  build/release/bin/strata train \
  --model docs/examples/demo-model.json --config "$output/ds_config.json" --data "$data" \
  --steps 1000000 --max-seconds "$seconds" --sample 300 \
  --metrics "$output/metrics.jsonl" --trace "$output/trace.json"

cat <<END

In $output:
  trace.json     every queue and disk transfer of rank 0 (the other ranks' are beside it);
                 open it at https://ui.perfetto.dev or in chrome://tracing
  metrics.jsonl  a line of JSON a step
END
