#!/usr/bin/env bash
# Gathers what a machine with a GPU needs to run this build without building: stripped programs and GPU tests, and the few
# shared libraries of theirs that neither LibTorch nor every Linux has. Run it there with tests/gpu/run.sh.
# usage: pack.sh [BUILD_FOLDER [TARGET_FOLDER]]    (build-cuda, BUILD_FOLDER/pack)
set -euo pipefail
cd "$(dirname "$0")/.."
build=${1:-build-cuda}
pack=${2:-$build/pack}
[ -d "$build" ] || { echo "pack: no folder $build; run 'make build CUDA=1' first" >&2; exit 2; }
rm -rf "$pack"
mkdir -p "$pack/bin" "$pack/lib"

programs=()
for path in "$build"/{lathe,lathe-torch,parity,gpu_bench,live_sync_bench} $(find "$build/src" -name 'gpu_*_test' -type f -perm -u+x | sort); do
  [ -x "$path" ] || { echo "pack: $path is not built, left out" >&2; continue; }
  strip -o "$pack/bin/$(basename "$path")" "$path"
  programs+=("$path")
done
[ ${#programs[@]} -gt 0 ] || { echo "pack: nothing is built" >&2; exit 2; }
# LibTorch's libraries come from the torch over there, the C and C++ run-times from the system.
ldd "${programs[@]}" | awk '$2 == "=>" && $3 ~ /^\// { print $3 }' | sort -u |
  grep -vE '/(torch|nvidia)/|/(libc|libm|libdl|librt|libpthread|libstdc\+\+|libgcc_s|ld-linux[^/]*)\.so' |
  while read -r library; do cp -L "$library" "$pack/lib/"; done
cp tests/gpu/run.sh tests/gpu/exporter.py tests/gpu/serving.py "$pack/"
cp -r tests/golden/text/own "$pack/text"
mkdir -p "$pack/python" && cp -r python/lathe_vllm/lathe_vllm "$pack/python/" # what exporter.py and vLLM over there import
rm -rf "$pack/python/lathe_vllm/__pycache__"
du -sh "$pack" | sed 's/^/pack: /'
