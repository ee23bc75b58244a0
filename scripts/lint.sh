#!/usr/bin/env bash
# Everything that can be said about the source without running it. clang-format and clang-tidy of LLVM 14 (Debian 12) decide.
set -uo pipefail
cd "$(dirname "$0")/.."
failed=0
python3 tools/check_layers.py --self-test && python3 tools/check_layers.py || failed=1
scripts/format.sh --check || { echo "lint: run 'make format'" >&2; failed=1; }
if tidy=$(command -v clang-tidy-14 || command -v clang-tidy); then
  cmake --preset tidy -D "CMAKE_CXX_CLANG_TIDY=$tidy;--quiet;--warnings-as-errors=*;--extra-arg=-Wno-unknown-warning-option" >/dev/null && cmake --build --preset tidy -- -k 0 || failed=1
else
  echo "lint: clang-tidy is missing: apt-get install clang-tidy" >&2
  failed=1
fi
[ "$failed" = 0 ] && echo "lint: ok"
exit "$failed"
