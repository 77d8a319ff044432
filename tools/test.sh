#!/usr/bin/env bash
# From a fresh checkout to tested: packages, configure, build, tests.
set -euo pipefail

usage() {
  cat <<'END'
usage: tools/test.sh [--preset NAME]... [--help]

Installs missing packages (tools/setup.sh), builds and runs tests; each NAME in turn:
  release      every test, optimized, in build/release
  asan, tsan   every test with AddressSanitizer and UndefinedBehaviorSanitizer, or
               ThreadSanitizer, in build/NAME; hours
  asan-chosen, tsan-chosen
               some of them with these, in the same folders (tests/CMakeLists.txt); minutes
Without a preset: release, asan-chosen, tsan-chosen. Exits non-zero when any of that fails.
END
}

presets=()
while (($# > 0)); do
  case "$1" in
    --preset)
      (($# > 1)) || { usage >&2 && exit 2; }
      presets+=("$2")
      shift 2
      ;;
    -h | --help) usage && exit 0 ;;
    *) usage >&2 && exit 2 ;;
  esac
done
((${#presets[@]} > 0)) || presets=(release asan-chosen tsan-chosen)
for preset in "${presets[@]}"; do
  case "$preset" in
    release | asan | tsan | asan-chosen | tsan-chosen) ;;
    *) usage >&2 && exit 2 ;;
  esac
done

stage=setup
finish() {
  local status=$?
  if ((status == 0)); then
    echo "test.sh: ${presets[*]} passed in $SECONDS s"
  else
    echo "test.sh: $stage FAILED after $SECONDS s" >&2
  fi
}
trap finish EXIT

cd "$(dirname "$0")/.."
bash tools/setup.sh

launcher=()
if command -v ccache >/dev/null; then
  launcher=(-DCMAKE_CXX_COMPILER_LAUNCHER=ccache)
fi

for preset in "${presets[@]}"; do
  stage=$preset
  # ThreadSanitizer's shadow memory collides with the address randomization of newer kernels.
  as=()
  if [[ "$preset" == tsan* ]] && setarch "$(uname -m)" -R true 2>/dev/null; then
    as=(setarch "$(uname -m)" -R)
  fi
  cmake --preset "${preset%-chosen}" "${launcher[@]}"
  "${as[@]}" cmake --build --preset "$preset" --parallel "$(nproc)"
  "${as[@]}" ctest --preset "$preset" --parallel "$(nproc)"
  echo "test.sh: $preset passed, $SECONDS s so far"
done
