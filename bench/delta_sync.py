"""What `lathe sync` and `lathe verify` of a training trace take, end to end: the second table of docs/performance.md, "Deltas of a training trace".

usage: delta_sync.py BUILD_DIR MODEL_DIR TRACE_DIR [FOLDER]     FOLDER: where to make a copy of the model, twice its size; a temporary one
"""

import json
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

ROWS = [("1e-6", 10), ("1e-6", 60), ("1e-5", 60), ("1e-4", 60)]
ROUNDS = 3


def spread(values, form):
    return f"{statistics.median(values):{form}} ({min(values):{form}}-{max(values):{form}})"


def main(build, model, trace, folder=None):
    lathe = pathlib.Path(build) / "lathe"

    def run(*command):
        return subprocess.run([lathe, *command], check=True, capture_output=True, text=True).stdout

    print("| what a sync takes | durable, s | shards hold it, s |\n|---|---|---|")
    verify_seconds, verified = [], 0
    for rate, steps in ROWS:
        durable, applied = [], []
        for _ in range(ROUNDS):
            with tempfile.TemporaryDirectory(dir=folder) as work:
                before, after = pathlib.Path(work) / "model", pathlib.Path(work) / "other"
                for copy in (before, after):
                    copy.mkdir()
                    shutil.copy(pathlib.Path(model) / "config.json", copy)
                shutil.copy(pathlib.Path(model) / "model.safetensors", before)
                (after / "model.safetensors").symlink_to(pathlib.Path(trace).resolve() / rate / f"{steps}.safetensors")
                report = json.loads(run("sync", before, "--from", after, "--json"))
                durable.append(report["durable_seconds"])
                applied.append(report["seconds"])
                begin = time.monotonic()
                run("verify", before)
                verify_seconds.append(time.monotonic() - begin)
                verified = sum(path.stat().st_size for path in before.rglob("*") if path.is_file())
        print(f"| lr {rate}, {steps} steps | {spread(durable, '.2f')} | {spread(applied, '.2f')} |", flush=True)
    print(f"\nlathe verify of {verified / 1e6:.0f} MB: {spread(verify_seconds, '.2f')} s, {verified / 1e9 / statistics.median(verify_seconds):.2f} GB/s")


if __name__ == "__main__":
    if len(sys.argv) not in (4, 5):
        raise SystemExit(__doc__)
    main(*sys.argv[1:])
