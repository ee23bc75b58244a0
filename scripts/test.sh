#!/usr/bin/env bash
# Runs the tests of one preset and closes with the cases inside the test programs: ctest counts programs, and a case that one of
# them skipped would pass unseen. usage: test.sh PRESET [CTEST ARGUMENTS...]
set -uo pipefail
cd "$(dirname "$0")/.."
preset=$1
shift
folder=build-$preset
[ "$preset" = cpu ] && folder=build
# Tests of real tokenizers skip themselves, loudly, without these.
python3 scripts/fetch_tokenizers.py >/dev/null || echo "note: no real tokenizers; the tests that need them will be skipped" >&2
# Test programs run side by side: long spinning would have them wait for each other (docs/decisions/0004-short-spin.md).
export GOMP_SPINCOUNT=${GOMP_SPINCOUNT:-5000}
ctest --preset "$preset" --parallel "$(nproc)" "$@"
code=$?
# "[  PASSED  ] 12 tests." is gtest's closing line, "3 passed, 1 skipped in 2.10s" pytest's.
awk '
  /^\[  (PASSED|FAILED|SKIPPED)  ?\] [0-9]+ test/ { count[tolower($2)] += $4 }
  /(^|=+ )[0-9]+ (passed|failed|skipped).* in [0-9.]+s/ {
    for (i = 2; i <= NF; i++) if ($i ~ /^(passed|failed|skipped),?$/) { name = $i; sub(/,/, "", name); count[name] += $(i - 1) }
  }
  END { printf "\ncases: %d passed, %d failed, %d skipped\n", count["passed"], count["failed"], count["skipped"] }
' "$folder/Testing/Temporary/LastTest.log"
exit $code
