#!/usr/bin/env bash
# From a fresh checkout to tested: packages, configure, build, all tests.
set -euo pipefail

usage() {
  cat <<'END'
usage: tools/test.sh [--preset NAME] [--help]

Installs missing packages (tools/setup.sh), builds into build/NAME and runs every test.
NAME is release (the default), asan or tsan. Exits non-zero when any of that fails.
END
}

preset=release
while (($# > 0)); do
  case "$1" in
    --preset)
      (($# > 1)) || { usage >&2 && exit 2; }
      preset="$2"
      shift 2
      ;;
    -h | --help) usage && exit 0 ;;
    *) usage >&2 && exit 2 ;;
  esac
done

finish() {
  local status=$?
  if ((status == 0)); then
    echo "test.sh: $preset passed in $SECONDS s"
  else
    echo "test.sh: $preset FAILED after $SECONDS s" >&2
  fi
}
trap finish EXIT

cd "$(dirname "$0")/.."
bash tools/setup.sh

launcher=()
if command -v ccache >/dev/null; then
  launcher=(-DCMAKE_CXX_COMPILER_LAUNCHER=ccache)
fi
# ThreadSanitizer's shadow memory collides with the address randomization of newer kernels.
fixed_addresses=()
if [[ "$preset" == tsan ]] && setarch "$(uname -m)" -R true 2>/dev/null; then
  fixed_addresses=(setarch "$(uname -m)" -R)
fi

cmake --preset "$preset" "${launcher[@]}"
"${fixed_addresses[@]}" cmake --build --preset "$preset" --parallel "$(nproc)"
"${fixed_addresses[@]}" ctest --preset "$preset" --parallel "$(nproc)"
