#!/usr/bin/env bash
# Speed and memory compared with transformers on this machine, in one run. usage: run.sh [ROUNDS]
set -euo pipefail
cd "$(dirname "$0")/.."
model=$(python3 scripts/prepare_model.py)
peer=$(python3 scripts/lathe_cache.py reference)
exec python3 bench/compare.py build/cpu_bench "$model" "$peer" "$@"
