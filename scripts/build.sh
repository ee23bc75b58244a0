#!/usr/bin/env bash
# Configures and builds one preset of CMakePresets.json. usage: build.sh PRESET [TARGET...]
set -euo pipefail
cd "$(dirname "$0")/.."
preset=$1
shift
# The configure step is quiet unless it fails; ninja shows progress.
log=$(mktemp)
trap 'rm -f "$log"' EXIT
cmake --preset "$preset" >"$log" 2>&1 || { cat "$log" >&2; exit 1; }
folder=build-$preset
[ "$preset" = cpu ] && folder=build
# Without ccache a step takes three seconds of one core on average, links included, and the Rust library two minutes.
steps=$(ninja -C "$folder" -n "$@" | grep -c '^\[' || true)
if [ "$steps" -gt 40 ]; then
  cores=$(nproc)
  echo "build: $steps steps, about $(((steps * 3 + 120) / cores / 60 + 1)) minutes on $cores cores; less where ccache remembers" >&2
fi
export NINJA_STATUS=${NINJA_STATUS:-[%f/%t, %es] }
cmake --build --preset "$preset" ${1:+--target "$@"}
