#!/usr/bin/env python3
"""The version is defined in CMakeLists.txt; packages of other languages must repeat it. usage: version.py [--check | NEW_VERSION]

Without an argument: prints it. --check: the plugin, the Rust library and the newest entry of CHANGELOG.md agree, or exit code 1.
With NEW_VERSION: writes it everywhere but into CHANGELOG.md, whose entry somebody has to write.
"""

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Where it stands: a file, and a pattern whose first group is the version.
PLACES = {
    "CMakeLists.txt": r"^project\(lathe VERSION ([\d.]+)",
    "python/lathe_vllm/pyproject.toml": r'^version = "([\d.]+)"',
    "rust/text_shim/Cargo.toml": r'^version = "([\d.]+)"',
    "rust/text_shim/Cargo.lock": r'^name = "lathe_text_shim"\nversion = "([\d.]+)"',
    "CHANGELOG.md": r"^## ([\d.]+)",
}


def found(name):
    match = re.search(PLACES[name], (ROOT / name).read_text(), re.M)
    if match is None:
        raise SystemExit(f"version: {name} names none")
    return match


def main():
    argument = sys.argv[1] if len(sys.argv) > 1 else None
    version = found("CMakeLists.txt")[1]
    if argument is None:
        print(version)
    elif argument == "--check":
        other = [f"{name} says {found(name)[1]}" for name in PLACES if found(name)[1] != version]
        if other:
            raise SystemExit(f"version: CMakeLists.txt says {version}, but {', '.join(other)}")
        print(f"version: {version} everywhere")
    elif re.fullmatch(r"\d+\.\d+\.\d+", argument):
        for name in PLACES:
            if name != "CHANGELOG.md":
                match, path = found(name), ROOT / name
                text = path.read_text()
                path.write_text(text[: match.start(1)] + argument + text[match.end(1) :])
    else:
        raise SystemExit(__doc__)


if __name__ == "__main__":
    main()
