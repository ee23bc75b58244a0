#!/usr/bin/env bash
# The real program over HTTP. usage: run.sh [PYTEST ARGUMENTS...]    (without: every file)
set -euo pipefail
cd "$(dirname "$0")/../.."
python=$(python3 scripts/lathe_cache.py e2e)
[ $# -gt 0 ] || set -- tests/e2e
exec "$python" -m pytest -p no:cacheprovider -q -rs "$@"
