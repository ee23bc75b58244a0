"""Writes tests/golden/delta: a delta with every mode and element type, as format version 1 is. For readers in any language.

  before/            the files that it leads from; those after it are what the delta makes of them, with the root in its footer
  0-1.dlt            made by `lathe sync`

Run by hand when the format changes, which no reader of version 1 may be asked to survive:
  $(python3 scripts/lathe_cache.py e2e) tools/golden_delta.py
"""

import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
OUT = ROOT / "tests/golden/delta"
sys.path.insert(0, str(ROOT / "tests/e2e"))
import delta_cases  # noqa: E402


def main():
    with tempfile.TemporaryDirectory() as work:
        work = pathlib.Path(work)
        delta_cases.write_pair(work / "model", work / "other", np.random.default_rng(1), elements=3001)
        shutil.rmtree(OUT, ignore_errors=True)
        shutil.copytree(work / "model", OUT / "before")
        run = subprocess.run([ROOT / "build/lathe", "sync", work / "model", "--from", work / "other", "--json"], check=True, capture_output=True)
        shutil.copy(work / "model/.lathe/deltas" / delta_cases.only_delta(work / "model"), OUT / "0-1.dlt")
    print(json.dumps(json.loads(run.stdout)["root"]))


if __name__ == "__main__":
    main()
