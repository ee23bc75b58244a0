#!/usr/bin/env bash
# Runs every fuzz target under libFuzzer and sanitizers, each for SECONDS, and keeps what it learned in build-fuzz/corpus.
# An input that fails is left there as crash-*; put it among the target's seeds, so that `make test` keeps it.
# usage: fuzz.sh [SECONDS] [TARGET...]
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-60}
shift || true
command -v clang++-14 >/dev/null || { echo "fuzz: clang is missing: apt-get install clang-14" >&2; exit 2; }
scripts/build.sh fuzz
mapfile -t lines <build-fuzz/fuzz_targets.txt # program, seeds, dictionary

fuzz() {  # fuzz PROGRAM SEEDS DICTIONARY
  local program=$1 seeds=$2 dictionary=$3 name corpus code=0
  name=$(basename "$program")
  corpus=build-fuzz/corpus/$name
  mkdir -p "$corpus"
  "$program" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=4096 -artifact_prefix="$corpus/" -print_final_stats=1 \
    ${dictionary:+-dict="$dictionary"} "$corpus" ${seeds:+"$seeds"} 2>"$corpus.log" || code=$?
  # The input that failed is in the log too, in base 64.
  [ $code = 0 ] || tail -n 60 "$corpus.log" >&2
  echo "fuzz: $name, $seconds s: $(grep -E "^stat::(number_of_executed_units|new_units_added|peak_rss_mb)" "$corpus.log" |
    sed 's/stat::\([a-z_]*\): */\1 /' | paste -sd, | sed 's/,/, /g')"
  return $code
}

failed=0
for line in "${lines[@]}"; do
  IFS=';' read -r program seeds dictionary <<<"$line"
  [ $# = 0 ] || [[ " $* " == *" $(basename "$program") "* ]] || continue
  while [ "$(jobs -rp | wc -l)" -ge "$(nproc)" ]; do wait -n || failed=1; done
  fuzz "$program" "$seeds" "$dictionary" &
done
while [ -n "$(jobs -p)" ]; do wait -n || failed=1; done
[ "$failed" = 0 ] || { echo "fuzz: a target failed; see build-fuzz/corpus/*.log" >&2; exit 1; }
