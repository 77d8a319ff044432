#!/usr/bin/env bash
# Installs the Debian packages that Strata builds with. Does nothing where all are there.
set -euo pipefail

usage() {
  cat <<'END'
usage: tools/setup.sh [--help]

Installs the Debian or Ubuntu packages that Strata builds with, and does nothing when all are
installed. Without root it prints the one command to run and exits 1. CUDA and NCCL are optional
and never installed; CMake finds them where they are.
END
}

readonly packages=(
  build-essential cmake ninja-build pkg-config clang-format  # g++ >= 12, cmake >= 3.25
  liburing-dev libxxhash-dev                                 # io
  libhwy-dev libdnnl-dev libhwloc-dev                        # kernels
  libtbb-dev libopenmpi-dev openmpi-bin                      # offload, engine
  nlohmann-json3-dev libcli11-dev libfmt-dev                 # configuration, command, text
  libgtest-dev libgmock-dev                                  # tests
)

missing_packages() {
  local package
  for package in "${packages[@]}"; do
    if [[ "$(dpkg-query -W -f='${db:Status-Abbrev}' "$package" 2>/dev/null)" != ?i* ]]; then
      echo "$package"
    fi
  done
}

# require_version NAME FOUND NEEDED
require_version() {
  if [[ "$(printf '%s\n' "$3" "$2" | sort -V | head -n 1)" != "$3" ]]; then
    echo "setup.sh: $1 is version $2, Strata needs $3 or newer" >&2
    exit 1
  fi
}

case "${1-}" in
  "") ;;
  -h | --help) usage && exit 0 ;;
  *) usage >&2 && exit 2 ;;
esac

if ! command -v dpkg-query >/dev/null; then
  echo "setup.sh: this is not Debian or Ubuntu; install the equivalents of: ${packages[*]}" >&2
  exit 1
fi

mapfile -t missing < <(missing_packages)
if ((${#missing[@]} > 0)); then
  if ((EUID != 0)); then
    echo "setup.sh: packages are missing; run this, then again what you were doing:" >&2
    echo "  sudo apt-get update && sudo apt-get install -y ${missing[*]}"
    exit 1
  fi
  echo "setup.sh: installing ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  apt-get install -y -qq --no-install-recommends "${missing[@]}"
fi

require_version g++ "$(g++ -dumpfullversion)" 12
require_version cmake "$(cmake --version | awk 'NR == 1 {print $3}')" 3.25
