#!/usr/bin/env bash
# Installs the Debian packages that Strata builds with. Does nothing where all are there.
set -euo pipefail

usage() {
  cat <<'END'
usage: tools/setup.sh [--download DIR | --from DIR [--prefix PREFIX]] [--help]

Installs the Debian or Ubuntu packages that Strata builds with, and does nothing when all are
installed. Without root it prints the one command to run and exits 1. CUDA, NCCL and MPI are
optional: CMake finds them where they are, and builds without them where they are not.

For machines without a package registry, or without root:

  --download DIR   put the libraries' packages into DIR (about 12 MiB), with their checksums; on a
                   Debian or Ubuntu machine of the same processor that has a registry. Compiler,
                   CMake 3.25 and ninja are not among them, nor MPI
  --from DIR       check and unpack what --download made, without root, and write PREFIX/env.sh:
                     source PREFIX/env.sh && cmake --preset release && cmake --build --preset release
  --prefix PREFIX  where --from unpacks: an empty or new directory (build/packages)
END
}

readonly tools=(build-essential cmake ninja-build clang-format)  # g++ >= 12, cmake >= 3.25
readonly libraries=(
  pkg-config liburing-dev libxxhash-dev        # io
  libhwy-dev libhwloc-dev                      # kernels
  libdnnl-dev ocl-icd-opencl-dev               # oneDNN, and what its CMake package looks for
  libtbb-dev                                   # offload
  nlohmann-json3-dev libcli11-dev libfmt-dev   # configuration, command, text
  libgtest-dev libgmock-dev                    # tests
)
readonly mpi=(libopenmpi-dev openmpi-bin)

complain() {
  echo "setup.sh: $1" >&2
  exit "${2:-1}"
}

missing_packages() {
  local package
  for package in "${tools[@]}" "${libraries[@]}" "${mpi[@]}"; do
    if [[ "$(dpkg-query -W -f='${db:Status-Abbrev}' "$package" 2>/dev/null)" != ?i* ]]; then
      echo "$package"
    fi
  done
}

# require_version NAME FOUND NEEDED
require_version() {
  if [[ "$(printf '%s\n' "$3" "$2" | sort -V | head -n 1)" != "$3" ]]; then
    complain "$1 is version $2, Strata needs $3 or newer"
  fi
}

install_packages() {
  command -v dpkg-query >/dev/null ||
    complain "this is not Debian or Ubuntu; install the equivalents of: ${tools[*]} ${libraries[*]}"
  local missing
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
}

# What a machine without any package would get for these, by name.
closure() {
  apt-get install --print-uris -qq -y --no-install-recommends \
    -o Dir::State::status=/dev/null -o Dir::Cache::archives="$empty" "$@" |
    awk '{sub(/_.*/, "", $2); print $2}' | sort -u
}

download_packages() {
  command -v apt-get >/dev/null || complain "--download takes a Debian or Ubuntu machine"
  mkdir -p "$1"
  cd "$1"
  [[ -z "$(ls -A)" ]] || complain "'$1' is not empty: name another directory for --download"
  local empty
  empty="$(mktemp -d)"
  # shellcheck disable=SC2064  # of now
  trap "rm -rf '$empty'" EXIT
  mkdir "$empty/partial"
  ((EUID != 0)) || apt-get update -qq
  # A machine that compiles has what the compiler needs. Of the rest, what -dev packages ask for
  # besides libraries (autoconf, say) is not used.
  local needed
  mapfile -t needed < <(comm -23 <(closure "${libraries[@]}") <(closure build-essential) |
    grep -E '^(lib|nlohmann|googletest|ocl-icd|opencl|pkg)' | grep -v '^libltdl-dev$')
  ((${#needed[@]} > 0)) || complain "apt-get knows no packages: run 'apt-get update' first"
  apt-get download -qq -o APT::Sandbox::User=root "${needed[@]}"
  sha256sum -- *.deb > SHA256SUMS
  echo "setup.sh: ${#needed[@]} packages in $1, $(du -sh . | cut -f 1)"
}

# unpack FILE INTO: also where dpkg is not.
unpack() {
  if command -v dpkg-deb >/dev/null; then
    dpkg-deb -x "$1" "$2"
  else
    local data
    data="$(ar t "$1" | grep '^data\.tar')"
    case "$data" in
      *.zst) ar p "$1" "$data" | zstd -dc | tar -x -C "$2" ;;
      *) ar p "$1" "$data" | xz -dc | tar -x -C "$2" ;;
    esac
  fi
}

unpack_packages() {
  [[ -f "$1/SHA256SUMS" ]] || complain "'$1' has no SHA256SUMS: name what --download made"
  (cd "$1" && sha256sum --check --quiet --strict SHA256SUMS) ||
    complain "'$1' is damaged: copy it again"
  mkdir -p "$2"
  [[ -z "$(ls -A "$2")" ]] || complain "'$2' is not empty: remove it, or name another --prefix"
  [[ "$2" =~ ^[A-Za-z0-9/._+-]+$ ]] ||
    complain "'$2' has characters that build files do not take: name another --prefix"
  local prefix deb
  prefix="$(cd "$2" && pwd)"
  for deb in "$1"/*.deb; do unpack "$deb" "$prefix"; done
  local lib
  lib="$(dirname "$(dirname "$(find "$prefix/usr/lib" -name liburing.pc)")")"
  find "$prefix/usr" -name '*.pc' -exec sed -i "s|=/usr|=$prefix/usr|" {} +
  cat > "$prefix/env.sh" <<END
# Packages that tools/setup.sh --from unpacked here.
export PATH="$prefix/usr/bin:\$PATH"
export CMAKE_PREFIX_PATH="$prefix/usr\${CMAKE_PREFIX_PATH:+:\$CMAKE_PREFIX_PATH}"
export PKG_CONFIG_PATH="$lib/pkgconfig\${PKG_CONFIG_PATH:+:\$PKG_CONFIG_PATH}"
export LD_LIBRARY_PATH="$lib\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH}"
END
  echo "setup.sh: unpacked; now: source $prefix/env.sh"
}

download='' from='' prefix="$(dirname "$0")/../build/packages"
while (($# > 0)); do
  case "$1" in
    -h | --help) usage && exit 0 ;;
    --download | --from | --prefix) (($# > 1)) || complain "$1 needs a directory" 2 ;;
    *) usage >&2 && exit 2 ;;
  esac
  case "$1" in
    --download) download="$2" ;;
    --from) from="$2" ;;
    --prefix) prefix="$2" ;;
  esac
  shift 2
done

if [[ -n "$download" && -n "$from" ]]; then complain "give --download or --from, not both" 2; fi
if [[ -n "$download" ]]; then
  download_packages "$(realpath -m -- "$download")"
elif [[ -n "$from" ]]; then
  unpack_packages "$(realpath -m -- "$from")" "$(realpath -m -- "$prefix")"
else
  install_packages
fi
