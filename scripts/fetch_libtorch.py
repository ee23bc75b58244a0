"""Fetches LibTorch for CPU builds into the cache and prints its folder, which holds torch/ and nvidia/.

It comes from the pip wheel, which carries CUDA as well. What a CPU build does not need is removed after the install and listed in
REMOVED.txt. A machine with a GPU uses a complete torch 2.11.0 instead: set LATHE_TORCH_ROOT to the site-packages folder it is in.
"""

import os
import pathlib
import sys
import time

import lathe_cache

VERSION = "2.11.0"
MACHINE = os.uname().machine
PLATFORMS = [f"manylinux_2_{minor}_{MACHINE}" for minor in (28, 25, 17)] + [f"manylinux2014_{MACHINE}"]

CUDA_LIBRARIES = ("libcudart.so", "libcupti.so")  # all that libtorch_cpu.so asks for
NOT_FOR_CPU = ("libtorch_cuda", "libc10_cuda", "libcaffe2_nvrtc", "libtorch_nvshmem")
NOT_FOR_CPP = ("libtorch_python.so", "libshm", "libtorch_global_deps.so", "libtorch.so")  # the last only names the CUDA library


def is_needed(path):
    """`path`: relative to the installed folder."""
    top, name = path.parts[0], path.name
    if top.endswith(".dist-info"):
        return True  # licences
    if top == "nvidia":
        return name.startswith(CUDA_LIBRARIES)
    if path.parts[:2] == ("torch", "include"):
        return True
    return path.parts[:2] == ("torch", "lib") and ".so" in name and not name.startswith(NOT_FOR_CPU + NOT_FOR_CPP)


def prune(folder):
    removed = []
    for path in sorted(folder.rglob("*"), reverse=True):  # children before their folder
        if path.is_dir() and not path.is_symlink():
            if not any(path.iterdir()):
                path.rmdir()
        elif not is_needed(path.relative_to(folder)):
            removed.append(f"{path.lstat().st_size:>12} {path.relative_to(folder)}")
            path.unlink()
    (folder / "REMOVED.txt").write_text("bytes and path of what the wheels hold beyond a CPU build's needs\n" +
                                        "\n".join(reversed(removed)) + "\n")


def make(folder):
    begin = time.monotonic()
    lathe_cache.say(f"  downloading LibTorch {VERSION} (about 540 MB)")
    platforms = [f"--platform={name}" for name in PLATFORMS]
    python = lathe_cache.python_env("convert")  # for its pip: the system's Python may have none
    lathe_cache.pip(python, "install", "--no-deps", "--require-hashes", "--only-binary=:all:", "--no-compile",
                    "--python-version=3.11", "--implementation=cp", "--abi=cp311", "--abi=none", *platforms,
                    "--target", folder, "-r", lathe_cache.REQUIREMENTS / "libtorch.txt",
                    scratch=folder.with_name(folder.name + ".tmp"))
    prune(folder)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    lathe_cache.say(f"  LibTorch {VERSION}: {size / 1e6:.0f} MB on disk in {time.monotonic() - begin:.0f} s")


def own_torch():
    """The folder that LATHE_TORCH_ROOT names, or None."""
    own = os.environ.get("LATHE_TORCH_ROOT")
    if own and not (pathlib.Path(own) / "torch/lib/libtorch_cpu.so").exists():
        raise SystemExit(f"LATHE_TORCH_ROOT='{own}' holds no torch/lib/libtorch_cpu.so. Unset it, or name a site-packages folder "
                         f"with torch {VERSION}")
    return own


if __name__ == "__main__":
    if sys.platform != "linux" or MACHINE not in ("x86_64", "aarch64"):
        raise SystemExit(f"LibTorch is pinned for Linux on x86_64 and aarch64, this is {sys.platform} on {MACHINE}")
    key = lathe_cache.requirements_key("libtorch").split("-")[0]
    print(own_torch() or lathe_cache.ensure(lathe_cache.root() / f"libtorch-{VERSION}-{MACHINE}", key, make,
                                            every_byte="--verify" in sys.argv))
