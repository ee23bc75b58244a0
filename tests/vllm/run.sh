#!/usr/bin/env bash
# Teaches real vLLM on the CPU. Its environment is large (1.2 GB to download, 3.5 GB on disk) and only this uses it.
# usage: run.sh [PYTEST ARGUMENTS...]
#   VLLM_VERSIONS="0.32.0 0.31.0"    versions to test, all of tests/vllm with each
#   LATHE_KILLS=10                   how often the trainer is killed in a commit
set -euo pipefail
cd "$(dirname "$0")/../.."
LATHE_MODEL=$(python3 scripts/prepare_model.py)
interpreter=$(command -v python3.13 python3.12 python3.11 python3 | while read -r p; do "$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$p" && break; done) ||
  { echo "vLLM's wheels for CPUs need Python >= 3.11" >&2; exit 2; }
plugin=$(mktemp -d)
trap 'rm -rf "$plugin"' EXIT
export LATHE_MODEL LATHE_PLUGIN=$plugin PYTHONDONTWRITEBYTECODE=1
for version in ${VLLM_VERSIONS:-0.32.0 0.31.0}; do
  eval "$("$interpreter" tests/vllm/environment.py "$version")"
  rm -rf "${plugin:?}"/*
  cp -r python/lathe_vllm "$plugin/source" # setuptools builds beside what it reads
  "$PYTHON" -m pip install -q --no-deps --no-build-isolation --no-cache-dir --disable-pip-version-check --target "$plugin/site" "$plugin/source"
  echo "vLLM $version"
  "$PYTHON" -m mypy --config-file python/lathe_vllm/pyproject.toml --cache-dir "$plugin/mypy" python/lathe_vllm/lathe_vllm
  VLLM_PATH=$PYTHONPATH VLLM_PYTHON=$PYTHON VLLM_VERSION=$version PYTHONPATH="" "$PYTHON" -m pytest -p no:cacheprovider -rs -q tests/vllm "$@"
done
