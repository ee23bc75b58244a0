#!/usr/bin/env bash
# Teaches real vLLM: on the CPU in an environment of its own, which is large (1.2 GB to download, 3.5 GB on disk), or one that is
# installed, on a GPU if it finds one.
# usage: run.sh [PYTEST ARGUMENTS...]
#   VLLM_VERSIONS="0.32.0 0.31.0"    versions for CPUs to test, all of tests/vllm with each
#   VLLM_PYTHON=venv/bin/python      instead, the Python of an installed vLLM, which also has pytest and setuptools >= 77
#   VLLM_ARGS="--flag ..."           more arguments for every vLLM
#   LATHE_BUILD=build-cuda           the build to test with it; on a GPU one made with CUDA=1
#   LATHE_MODEL=FOLDER               SmolLM2 as scripts/prepare_model.py makes it, where that cannot download
#   LATHE_KILLS=10                   how often the trainer is killed in a commit
set -euo pipefail
# Paths are the caller's. Python's stays a link: it is one in an environment.
[ -z "${VLLM_PYTHON:-}" ] || VLLM_PYTHON=$(realpath -s "$(command -v "$VLLM_PYTHON")")
[ -z "${LATHE_BUILD:-}" ] || LATHE_BUILD=$(realpath "$LATHE_BUILD")
[ -z "${LATHE_MODEL:-}" ] || LATHE_MODEL=$(realpath "$LATHE_MODEL")
cd "$(dirname "$0")/../.."
LATHE_MODEL=${LATHE_MODEL:-$(python3 scripts/prepare_model.py)}
plugin=$(mktemp -d)
trap 'rm -rf "$plugin"' EXIT
export LATHE_MODEL LATHE_PLUGIN=$plugin PYTHONDONTWRITEBYTECODE=1

# test_with PYTHON VERSION DEVICE PYTHONPATH PYTEST ARGUMENTS...
test_with() {
  local python=$1 version=$2 device=$3 path=$4
  echo "vLLM $version on $device"
  rm -rf "${plugin:?}"/*
  cp -r python/lathe_vllm "$plugin/source" # setuptools builds beside what it reads
  "$python" -m pip install -q --no-deps --no-build-isolation --no-cache-dir --disable-pip-version-check --target "$plugin/site" "$plugin/source"
  VLLM_PATH=$path VLLM_PYTHON=$python VLLM_VERSION=$version VLLM_DEVICE=$device PYTHONPATH="" "$python" -m pytest -p no:cacheprovider -rs -q tests/vllm "${@:5}"
}

if [ -n "${VLLM_PYTHON:-}" ]; then
  read -r version device < <("$VLLM_PYTHON" -c 'import importlib.metadata, torch; print(importlib.metadata.version("vllm"), "cuda" if torch.cuda.is_available() else "cpu")')
  test_with "$VLLM_PYTHON" "$version" "$device" "${PYTHONPATH:-}" "$@"
  exit
fi
interpreter=$(command -v python3.13 python3.12 python3.11 python3 | while read -r p; do "$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$p" && break; done) ||
  { echo "vLLM's wheels for CPUs need Python >= 3.11" >&2; exit 2; }
for version in ${VLLM_VERSIONS:-0.32.0 0.31.0}; do
  eval "$("$interpreter" tests/vllm/environment.py "$version")"
  "$PYTHON" -m mypy --config-file python/lathe_vllm/pyproject.toml --cache-dir "$plugin/mypy" python/lathe_vllm/lathe_vllm
  test_with "$PYTHON" "$version" cpu "$PYTHONPATH" "$@"
done
