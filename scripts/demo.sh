#!/usr/bin/env bash
# The main job on a real model (demo/demo.py), with the model that setup prepared. Further arguments go to demo.py.
set -euo pipefail
cd "$(dirname "$0")/.."
model=$(python3 scripts/prepare_model.py)
exec python3 demo/demo.py --lathe build/lathe --model "$model" --work build/demo "$@"
