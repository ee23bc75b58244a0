#!/usr/bin/env bash
# Runs a packed build (scripts/pack.sh) on a machine with a GPU: doctor, the GPU tests, parity in fp32 and bf16, the benchmarks.
# Needs a torch 2.11.0 with CUDA that `python3` can import; nothing is built. Prints a short table last, full logs go to $OUT.
# usage: run.sh [doctor] [tests] [parity] [serve] [attention] [delta] [bench] [sync]    (all but sync)
#   GOLDEN=folder of reference folders    BENCH="arguments of gpu_bench; those of another run; ..."
#   SYNC_FOLDER=where 40 GB fit (/tmp)    SYNC="arguments of live_sync_bench"
set -uo pipefail
pack=$(cd "$(dirname "$0")" && pwd)
OUT=${OUT:-$(mktemp -d)}
steps=${*:-doctor tests parity serve attention delta bench}
torch=$(python3 -c 'import os, torch; print(os.path.dirname(torch.__file__))') || exit 2
LD_LIBRARY_PATH=$torch/lib:$(ls -d "$torch"/../nvidia/*/lib | paste -sd:):$pack/lib:${LD_LIBRARY_PATH:-}
export LD_LIBRARY_PATH LATHE_PACK=$pack
summary=()

# note NAME EXIT_CODE TEXT...
note() { summary+=("$(printf '%-4s %-34s %s' "$([ "$2" = 0 ] && echo ok || echo FAIL)" "$1" "${*:3}")"); }

run_doctor() {
  "$pack/bin/lathe" doctor 2>&1 | tee "$OUT/doctor.log"
  note doctor "${PIPESTATUS[0]}" "$(grep -m1 gpu "$OUT/doctor.log")"
}

run_tests() {
  local program code
  for program in "$pack"/bin/gpu_*_test; do
    timeout 200 "$program" --gtest_brief=1 >"$OUT/$(basename "$program").log" 2>&1
    code=$?
    [ $code = 0 ] || tail -n 40 "$OUT/$(basename "$program").log"
    note "$(basename "$program")" $code "$(grep -E '^\[  (PASSED|FAILED|SKIPPED)' "$OUT/$(basename "$program").log" | tr '\n' ' ')"
  done
}

run_parity() {
  local folder dtype line code
  for folder in "${GOLDEN:?name the folder of the reference folders}"/*/; do
    [ -f "$folder/reference.safetensors" ] || continue
    dtype=fp32  # a folder with bf16 errors has a reference that can judge bf16 only
    [ -f "$folder/transformers_bf16_error.json" ] && dtype=bf16
    line=$(timeout 100 "$pack/bin/parity" "$folder" --device cuda --dtype $dtype 2>&1)
    code=$?
    echo "$line" | tee -a "$OUT/parity.log" | tail -n 3
    number() { grep -oE "\"$1\":[^,}]*" <<<"$line" | tail -n 1 | cut -d: -f2; }
    note "parity $(basename "$folder") $dtype" $code "logits $(number full_logits) grad $(number full_grad)" \
      "frozen $(number frozen_logits) $(number frozen_grad)" \
      "of transformers' $(number full_over_transformers) $(number frozen_over_transformers)"
  done
}

run_serve() {
  local folder
  folder=$(mktemp -d)
  timeout 250 python3 "$pack/serving.py" "$pack/bin/lathe" "$pack/text" "$folder" 2>&1 | tee "$OUT/serve.log"
  note serve "${PIPESTATUS[0]}"
  timeout 100 "$pack/bin/lathe" bench "$folder/model" --device cuda --json 2>&1 | tee "$OUT/lathe_bench.log"
  note "lathe bench" "${PIPESTATUS[0]}"
  rm -rf "$folder"
}

run_attention() {
  timeout 200 "$pack/bin/gpu_bench" --attention 2>&1 | tee "$OUT/attention.log"
  note attention "${PIPESTATUS[0]}"
}

run_delta() {
  timeout 100 "$pack/bin/gpu_bench" --delta --repeats 20 2>&1 | tee "$OUT/delta.log"
  note delta "${PIPESTATUS[0]}"
}

run_bench() {
  local arguments
  tr ';' '\n' <<<"${BENCH:-}" | while read -r arguments; do
    # A process each: a case that runs out of memory must not trouble the next.
    timeout 300 "$pack/bin/gpu_bench" $arguments 2>&1 || echo "failed: gpu_bench $arguments"
  done | tee "$OUT/bench.log"
  ! grep -q ^failed "$OUT/bench.log"
  note bench $?
}

run_sync() {
  # A machine's disk may be slow beside its GPU: SYNC_FOLDER=/dev/shm shows what the rest takes.
  # shellcheck disable=SC2086
  timeout 550 "$pack/bin/live_sync_bench" "${SYNC_FOLDER:-/tmp}" --device cuda ${SYNC:-} 2>&1 | tee "$OUT/sync.log"
  note sync "${PIPESTATUS[0]}"
}

for step in $steps; do
  begin=$SECONDS
  run_"$step"
  echo "-- $step took $((SECONDS - begin)) s"
done
printf '\n'
printf '%s\n' "${summary[@]}"
! printf '%s\n' "${summary[@]}" | grep -q ^FAIL
