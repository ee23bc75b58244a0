#!/usr/bin/env bash
# The main job on a real model (demo/demo.py), with the model that setup prepared. Further arguments go to demo.py.
set -euo pipefail
cd "$(dirname "$0")/.."
model=$(python3 scripts/prepare_model.py)
python3 demo/demo.py --lathe build/lathe --model "$model" --work build/demo "$@"
cat <<NEXT

Your own: cp -r $model my-model
          build/lathe serve my-model    # then, in another terminal:
          build/lathe chat
NEXT
