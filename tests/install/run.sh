#!/usr/bin/env bash
# Installs into an empty prefix, moves that elsewhere and runs what is there, without the environment and with nothing of the build's
# on the way to a library. usage: run.sh BUILD_FOLDER
set -euo pipefail
build=$(realpath "$1")
cd "$(dirname "$0")/../.."
scratch=$(mktemp -d "$build/install-test-XXXXXX") # beside the build: LibTorch is too large for some /tmp
trap 'rm -rf "$scratch"' EXIT
fail() { echo "install: $*" >&2; exit 1; }

cmake --install "$build" --prefix "$scratch/first" --strip >/dev/null
mv "$scratch/first" "$scratch/moved"
bin=$scratch/moved/bin
clean() { env -i PATH=/usr/bin:/bin HOME="$scratch" "$@"; }

version=$(sed -n 's/^project(lathe VERSION \([0-9.]*\).*/\1/p' CMakeLists.txt)
[ -n "$version" ] || fail "CMakeLists.txt names no version"
for program in lathe lathe-torch; do
  said=$(clean "$bin/$program" --version)
  [ "$said" = "$version" ] || [ "$said" = "lathe $version" ] || fail "$program --version says '$said', CMakeLists.txt '$version'"
done
# Subcommands of lathe-torch, called as people do: lathe finds it beside itself.
clean "$bin/lathe" inspect tests/golden/llama | grep -q llama || fail "inspect does not say what the golden model is"
clean "$bin/lathe-torch" doctor tests/golden/llama >"$scratch/doctor" || true # that model has no tokenizer: what counts is that it looked
grep -q . "$scratch/doctor" || fail "doctor says nothing"
if grep -q 'LATHE_INSTALL_TORCH:BOOL=ON' "$build/CMakeCache.txt"; then
  strange=$(clean ldd "$bin/lathe-torch" | awk '$1 ~ /torch|c10|cuda|gomp|cupti/ { print $3 }' | grep -v "^$scratch/moved/" || true)
  [ -z "$strange" ] || fail "these libraries come from elsewhere: $strange"
  paths=$(readelf -d "$bin/lathe-torch" | sed -n 's/.*R[UN]*PATH.*\[\(.*\)\]/\1/p' | tr : '\n')
  [ -n "$paths" ] && ! grep -qv '^\$ORIGIN/' <<<"$paths" || fail "paths to libraries are not relative: $paths"
fi
for file in share/doc/lathe/README.md share/doc/lathe/docs/operations.md share/doc/lathe/LICENSE share/lathe/lathe_vllm/pyproject.toml; do
  [ -f "$scratch/moved/$file" ] || fail "$file is missing"
done
grep -q "^ExecStart=$scratch/first/bin/lathe serve" "$scratch/moved/lib/systemd/system/lathe@.service" || fail "the unit does not name the program"
[ -z "$(find "$scratch/moved" -name __pycache__ -o -name '*_test')" ] || fail "litter was installed"
echo "install: ok"
