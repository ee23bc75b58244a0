#!/usr/bin/env bash
# Everything quick that can be said about the source without running it: layers, pages, format, Python, Rust. clang-format of LLVM 14
# (Debian 12) decides. The slow part, clang-tidy, is tools/tidy.py.
set -uo pipefail
cd "$(dirname "$0")/.."
failed=0
check() {  # check NAME COMMAND...
  local name=$1
  shift
  "$@" || { echo "lint: $name failed" >&2; failed=1; }
}

check layers python3 tools/check_layers.py
check docs python3 tools/check_docs.py
check version python3 tools/version.py --check
check mutants python3 tools/mutants.py --fit
check format scripts/format.sh --check
python=$(python3 scripts/lathe_cache.py lint) || exit 1
check ruff "$python" -m ruff check --no-cache .
mypy() { "$python" -m mypy --cache-dir "${TMPDIR:-/tmp}/lathe-mypy" "$@"; }
check "mypy (scripts)" mypy --config-file scripts/mypy.ini
check "mypy (plugin)" mypy --config-file python/lathe_vllm/pyproject.toml python/lathe_vllm/lathe_vllm
if cargo clippy --version >/dev/null 2>&1; then
  # Other people's crates are checked once for all clones, where cmake/Cargo.cmake has them built.
  check clippy env CARGO_TARGET_DIR=build/clippy CARGO_BUILD_BUILD_DIR="${LATHE_CACHE:-$HOME/.cache/lathe}/cargo" cargo clippy --manifest-path rust/text_shim/Cargo.toml --locked --quiet --release --all-targets -- -D warnings
else
  echo "lint: cargo clippy is missing: scripts/setup.sh --lint, or rustup component add clippy" >&2
  failed=1
fi
[ "$failed" = 0 ] && echo "lint: ok"
exit "$failed"
