#!/usr/bin/env bash
# Applies clang-format to every C++ file of the repository; with --check only names those that differ.
set -euo pipefail
cd "$(dirname "$0")/.."
format=$(command -v clang-format-14 || command -v clang-format) || { echo "clang-format is missing: apt-get install clang-format" >&2; exit 2; }
mapfile -t files < <(git ls-files --cached --others --exclude-standard -- '*.h' '*.cpp' '*.cu' '*.cuh')
if [ "${1:-}" != --check ]; then
  exec "$format" -i "${files[@]}"
fi
differ=0
for file in "${files[@]}"; do
  "$format" --dry-run --Werror "$file" 2>/dev/null || { echo "not formatted: $file" >&2; differ=1; }
done
exit "$differ"
