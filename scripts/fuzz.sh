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
failed=0
for line in "${lines[@]}"; do
  IFS=';' read -r program seeds dictionary <<<"$line"
  name=$(basename "$program")
  [ $# = 0 ] || [[ " $* " == *" $name "* ]] || continue
  corpus=build-fuzz/corpus/$name
  mkdir -p "$corpus"
  echo "fuzz: $name, $seconds s"
  "$program" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=4096 -artifact_prefix="$corpus/" -print_final_stats=1 \
    ${dictionary:+-dict="$dictionary"} "$corpus" ${seeds:+"$seeds"} 2>"$corpus.log" || failed=1
  grep -E "^(stat::number_of_executed_units|stat::new_units_added|stat::peak_rss|SUMMARY|==.*ERROR|Test unit)" "$corpus.log" || true
done
[ "$failed" = 0 ] || { echo "fuzz: a target failed; see build-fuzz/corpus/*.log" >&2; exit 1; }
