"""Writes tests/golden/delta: a delta with every mode and element type in the present version of the format. For readers in any language.

  before/            the files that it leads from; those after it are what the delta makes of them, with the root in its footer
  version-2.dlt      made by `lathe sync`; older versions stay, since readers read them for ever

Run by hand when the format has a new version, under its name:
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
VERSION = 2
sys.path.insert(0, str(ROOT / "tests/e2e"))
import delta_cases  # noqa: E402


def main():
    with tempfile.TemporaryDirectory() as work:
        work = pathlib.Path(work)
        delta_cases.write_pair(work / "model", work / "other", np.random.default_rng(1), elements=3001)
        before = {path.name: path.read_bytes() for path in (work / "model").iterdir()}
        if before != {path.name: path.read_bytes() for path in (OUT / "before").iterdir()}:
            raise SystemExit("the cases have changed: all versions lead from the same files")
        run = subprocess.run([ROOT / "build/lathe", "sync", work / "model", "--from", work / "other", "--allow-not-finite", "--json"], check=True, capture_output=True)
        shutil.copy(work / "model/.lathe/deltas" / delta_cases.only_delta(work / "model"), OUT / f"version-{VERSION}.dlt")
    print(json.dumps(json.loads(run.stdout)["root"]))


if __name__ == "__main__":
    main()
