#!/usr/bin/env bash
# Bytes and speed of checkpoint deltas on a real training trace of SmolLM2; the tables of docs/performance.md. usage: delta.sh
set -euo pipefail
cd "$(dirname "$0")/.."
model=$(python3 scripts/prepare_model.py)
trace=$(python3 bench/delta_trace.py build "$model")
build/delta_bench "$model/model.safetensors" "$trace"
echo
exec python3 bench/delta_sync.py build "$model" "$trace"
