"""Lets the pip wheel of torch be imported on a machine without CUDA's libraries.

The wheel links to some 2 GB of them and calls none on a CPU. An empty library of the right name satisfies the loader as long as it
binds functions at their first call. Must run before `import torch`.
"""

import ctypes
import os
import pathlib
import re
import subprocess
import sys
import sysconfig
import tempfile


def needed(library):
    output = subprocess.run(["readelf", "-d", library], check=True, capture_output=True, text=True).stdout
    return re.findall(r"\(NEEDED\).*\[(.+)\]", output)


def prepare():
    site = pathlib.Path(sysconfig.get_path("purelib"))
    present = {path.name for folder in ("torch/lib", "nvidia/cu13/lib") for path in (site / folder).iterdir()}
    absent = {name for path in (site / "torch/lib").glob("*.so") for name in needed(path)} - present
    with tempfile.TemporaryDirectory() as folder:
        for name in sorted(absent):
            if not re.match(r"lib(cu|nccl|nvshmem|nvJitLink|nvrtc)", name):
                continue  # the system's own: libc and the like
            stub = pathlib.Path(folder) / name
            subprocess.run(["gcc", "-shared", "-nostdlib", f"-Wl,-soname,{name}", "-x", "c", "/dev/null", "-o", stub], check=True)
            ctypes.CDLL(str(stub), mode=ctypes.RTLD_GLOBAL)  # stays loaded after the file is gone; found again by its soname
    sys.setdlopenflags(os.RTLD_LAZY)
