"""Trains SmolLM2-135M-Instruct in place at three learning rates and keeps its weights after 1, 10 and 60 steps in the cache.

Prints the folder: LEARNING_RATE/STEPS.safetensors. Texts are the documentation strings of Python's standard library: prose, lists and
code. usage: delta_trace.py BUILD_DIR MODEL_DIR
"""

import ast
import hashlib
import json
import os
import pathlib
import random
import subprocess
import sys
import sysconfig

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "scripts"))
import lathe_cache  # noqa: E402

RATES = ["1e-6", "1e-5", "1e-4"]
MINIMUM = 900  # characters: more than 128 tokens


def documentation(path):
    """The documentation strings of one module, its classes and functions."""
    try:
        tree = ast.parse(path.read_text())
    except (SyntaxError, UnicodeDecodeError):
        return
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            yield ast.get_docstring(node) or ""


def texts():
    library = pathlib.Path(sysconfig.get_paths()["stdlib"])
    found = [text for path in sorted(library.glob("*.py")) for text in documentation(path) if len(text) >= MINIMUM]
    random.Random(1).shuffle(found)
    return found


def main(build, model):
    lines = "".join(json.dumps(text) + "\n" for text in texts())
    program = (HERE / "delta_trace.cpp").read_bytes()
    key = hashlib.sha256(program + lines.encode() + pathlib.Path(model).name.encode()).hexdigest()[:16]

    def make(folder):
        lathe_cache.say("  training SmolLM2 for the trace (about ten minutes)")
        folder.mkdir(parents=True)
        (folder / "texts.jsonl").write_text(lines)
        for rate in RATES:
            (folder / rate).mkdir()
            command = [pathlib.Path(build) / "delta_trace", model, folder / "texts.jsonl", folder / rate, rate]
            # docs/decisions/0004-short-spin.md
            subprocess.run(command, check=True, env={"GOMP_SPINCOUNT": "5000", **os.environ})

    print(lathe_cache.ensure(lathe_cache.root() / "traces" / f"delta-{key}", key, make))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    main(*sys.argv[1:])
