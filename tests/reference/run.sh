#!/usr/bin/env bash
# Compares what Lathe prepares and answers with Hugging Face transformers. usage: run.sh [PYTEST ARGUMENTS...]
# Its environment is large (0.7 GB to download, 1.7 GB on disk) and only this uses it.
set -euo pipefail
cd "$(dirname "$0")/../.."
LATHE_MODEL=$(python3 scripts/prepare_model.py)
python=$(python3 scripts/lathe_cache.py reference)
export LATHE_MODEL
exec "$python" -m pytest -p no:cacheprovider -rs -q tests/reference "$@"
