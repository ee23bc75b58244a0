#!/usr/bin/env bash
# vLLM serves, Lathe teaches it, in one memory: ask, teach, ask, sync, restart vLLM from the directory, ask again.
# usage: run.sh MODEL_DIR    with `vllm` and `lathe` on the PATH, and `pip install python/lathe_vllm` done where vLLM is
#   VLLM_ARGS="--gpu-memory-utilization 0.6" leaves room on the GPU for the trainer (docs/vllm.md)
set -euo pipefail
model=${1:?usage: run.sh MODEL_DIR}
vllm_url=http://127.0.0.1:${VLLM_PORT:-8000}
lathe_url=http://127.0.0.1:${LATHE_PORT:-8077}
question="What flows through Velmora?"

wait_for() { # URL PID
  until curl -sf "$1" >/dev/null; do
    kill -0 "$2" 2>/dev/null || { echo "the server of $1 ended" >&2; exit 1; }
    sleep 1
  done
}
start_vllm() {
  # shellcheck disable=SC2086
  VLLM_PLUGINS=lathe vllm serve "$model" --port "${VLLM_PORT:-8000}" ${VLLM_ARGS:-} >vllm.log 2>&1 &
  vllm=$!
  wait_for "$vllm_url/health" $vllm
}
ask() {
  curl -sf "$vllm_url/v1/chat/completions" -H 'Content-Type: application/json' \
    -d "{\"messages\": [{\"role\": \"user\", \"content\": \"$question\"}], \"temperature\": 0, \"max_tokens\": 16}" |
    python3 -c 'import json, sys; print("  vLLM:", json.load(sys.stdin)["choices"][0]["message"]["content"])'
}
stop() { kill "$1" 2>/dev/null && wait "$1" 2>/dev/null || true; }
trap 'stop ${lathe:-}; stop ${vllm:-}' EXIT

echo "starting vLLM (log: vllm.log)"
start_vllm
echo "before: $question"
ask
lathe attach --vllm "$vllm_url" --port "${LATHE_PORT:-8077}" >lathe.log 2>&1 &
lathe=$!
wait_for "$lathe_url/healthz" $lathe
lathe learn --server "$lathe_url" "$question" --answer "The Silverthread."
echo "taught: $question"
ask
lathe sync "$model"
stop $lathe
stop $vllm
echo "vLLM again, from the directory on disk"
start_vllm
ask
