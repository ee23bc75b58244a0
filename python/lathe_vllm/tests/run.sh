#!/usr/bin/env bash
# What of the plugin needs neither vLLM nor torch. With vLLM: tests/vllm. usage: run.sh [PYTEST ARGUMENTS...]
set -euo pipefail
cd "$(dirname "$0")/../../.."
python=$(python3 scripts/lathe_cache.py e2e)
PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=python/lathe_vllm exec "$python" -m pytest -p no:cacheprovider -q -rs python/lathe_vllm/tests "$@"
