#!/usr/bin/env bash
# Makes this machine ready to build and test: Debian packages, LibTorch, the model. Does nothing, quickly, when all is there.
# As root it installs what is missing; otherwise it prints the one command that does and exits with 2.
set -euo pipefail
cd "$(dirname "$0")/.."

# The one list of Debian/Ubuntu packages. Versions that matter are checked below. Rust is added only if no cargo is on the PATH.
packages=(
  g++ cmake ninja-build ccache pkg-config make git ca-certificates
  python3 python3-venv
  nlohmann-json3-dev libcpp-httplib-dev libcli11-dev libsqlite3-dev libxxhash-dev libzstd-dev libgtest-dev libcairo2-dev libedit-dev libtomlplusplus-dev
)
rust_min=1.80
lint=
rest=()
for argument in "$@"; do
  case $argument in
    --fuzz) packages+=(clang-14 libclang-rt-14-dev) ;; # preset fuzz names this compiler
    --lint) packages+=(clang-14 clang-format-14 clang-tidy-14) lint=1 ;;
    *) rest+=("$argument") ;;
  esac
done
set -- ${rest[@]+"${rest[@]}"}

say() { echo "$*" >&2; }
stop() { say "setup: $*"; exit 2; }
at_least() { [ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n1)" = "$1" ]; }  # at_least MINIMUM ACTUAL
cargo_version() { cargo --version 2>/dev/null | cut -d' ' -f2; }
candidate() { apt-cache policy "$1" 2>/dev/null | sed -n 's/ *Candidate: //p'; }

missing_packages() {  # missing_packages RUST_PACKAGES...
  local wanted=("${packages[@]}") installed
  at_least "$rust_min" "$(cargo_version)" || wanted+=("$@")
  # dpkg-query fails when it does not know one of them; what it prints of the others still counts.
  installed=$({ dpkg-query -W -f '${db:Status-Status} ${Package}\n' "${wanted[@]}" 2>/dev/null || true; } | sed -n 's/^installed //p')
  comm -23 <(printf '%s\n' "${wanted[@]}" | sort -u) <(sort -u <<<"$installed")
}

# Debian 12 ships a current toolchain as cargo-web; newer releases as cargo. Prints nothing where neither is new enough.
rust_packages() {
  local kind
  for kind in "" -web; do
    if at_least "$rust_min" "$(candidate "cargo$kind")"; then echo "cargo$kind rustc$kind"; return; fi
  done
}

install_packages() {
  local missing rust=()
  missing=$(missing_packages)
  at_least "$rust_min" "$(cargo_version)" && [ -z "$missing" ] && return
  [ "$(id -u)" = 0 ] && { say "setup: apt-get update"; apt-get update -qq; }
  read -ra rust <<<"$(rust_packages)"
  if ! at_least "$rust_min" "$(cargo_version)" && [ ${#rust[@]} = 0 ]; then
    stop "no cargo >= $rust_min here and none among the packages; install one with rustup (apt-get install rustup && rustup default stable)"
  fi
  mapfile -t missing < <(missing_packages ${rust[@]+"${rust[@]}"})
  if [ "$(id -u)" != 0 ]; then
    stop "packages are missing. Install them with
  sudo apt-get update && sudo apt-get install -y --no-install-recommends ${missing[*]}
and run this again."
  fi
  say "setup: installing ${missing[*]}"
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2
}

need() {  # need NAME MINIMUM ACTUAL
  at_least "$2" "${3:-0}" || stop "$1 >= $2 is needed, found '${3:-none}' (Debian 12 or newer and Ubuntu 24.04 or newer have it)"
}

check_versions() {
  need g++ 12 "$(${CXX:-g++} -dumpfullversion 2>/dev/null || ${CXX:-g++} -dumpversion)"
  need cmake 3.25 "$(cmake --version | sed -n '1s/[^0-9]*//p')"
  need python3 3.10 "$(python3 -c 'import platform; print(platform.python_version())')"
  need cargo "$rust_min" "$(cargo_version)"
}

# clippy comes from where cargo comes from; ruff and mypy live in the cache.
add_lint_tools() {
  if ! cargo clippy --version >/dev/null 2>&1; then
    if command -v rustup >/dev/null; then
      rustup component add clippy >&2
    elif [ "$(id -u)" = 0 ] && [ -n "$(candidate rust-web-clippy)" ]; then
      DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends rust-web-clippy >&2
    else
      stop "cargo clippy is missing: apt-get install rust-web-clippy (Debian 12) or rust-clippy, or rustup component add clippy"
    fi
  fi
  python3 scripts/lathe_cache.py lint >/dev/null
}

if command -v dpkg-query >/dev/null; then
  install_packages
else
  say "setup: not a Debian or Ubuntu system; trusting that these, or what they are called here, are installed: ${packages[*]}"
fi
check_versions
[ -z "$lint" ] || add_lint_tools
python3 scripts/fetch_libtorch.py "$@" >/dev/null
python3 scripts/prepare_model.py "$@" >/dev/null
