"""Fetches LibTorch into the cache and prints its folder, which holds torch/ and nvidia/. usage: fetch_libtorch.py [--cuda] [--verify]

It comes from the pip wheel, which carries CUDA as well. What a build does not need is removed after the install and listed in
REMOVED.txt. With --cuda the small library that a CUDA build links to stays, and nvcc is fetched unless one is on the PATH.

That is enough to build for CUDA, on any machine. To run on a GPU, LibTorch's own CUDA part is needed with cuBLAS, cuDNN and their
like, 3 GB that pip installs with torch: set LATHE_TORCH_ROOT to the site-packages folder of a complete torch 2.11.0 (docs/cuda.md).
"""

import os
import pathlib
import shutil
import sys
import time

import lathe_cache

VERSION = "2.11.0"
CUDA_VERSION = "13.0"  # of LibTorch's wheel
MACHINE = os.uname().machine
PLATFORMS = [f"manylinux_2_{minor}_{MACHINE}" for minor in (28, 25, 17)] + [f"manylinux2014_{MACHINE}"]

CUDA_LIBRARIES = ("libcudart.so", "libcupti.so")  # all that libtorch_cpu.so and libc10_cuda.so ask for
NOT_FOR_CPU = ("libc10_cuda",)
NOT_WITHOUT_GPU = ("libtorch_cuda", "libcaffe2_nvrtc", "libtorch_nvshmem")  # loaded where there is one (docs/decisions/0005)
NOT_FOR_CPP = ("libtorch_python.so", "libshm", "libtorch_global_deps.so", "libtorch.so")  # the last only names the CUDA library


def is_needed(path, cuda):
    """`path`: relative to the installed folder."""
    top, name = path.parts[0], path.name
    if top.endswith(".dist-info"):
        return True  # licences
    if top == "nvidia":
        return name.startswith(CUDA_LIBRARIES)
    if path.parts[:2] == ("torch", "include"):
        return True
    unwanted = NOT_FOR_CPP + NOT_WITHOUT_GPU + (() if cuda else NOT_FOR_CPU)
    return path.parts[:2] == ("torch", "lib") and ".so" in name and not name.startswith(unwanted)


def prune(folder, cuda):
    removed = []
    for path in sorted(folder.rglob("*"), reverse=True):  # children before their folder
        if path.is_dir() and not path.is_symlink():
            if not any(path.iterdir()):
                path.rmdir()
        elif not is_needed(path.relative_to(folder), cuda):
            removed.append(f"{path.lstat().st_size:>12} {path.relative_to(folder)}")
            path.unlink()
    (folder / "REMOVED.txt").write_text("bytes and path of what the wheels hold beyond a build's needs\n" +
                                        "\n".join(reversed(removed)) + "\n")


def install(folder, requirements):
    """The wheels of requirements/NAME.txt for each NAME, unpacked side by side."""
    platforms = [f"--platform={name}" for name in PLATFORMS]
    lists = [argument for name in requirements for argument in ("-r", lathe_cache.REQUIREMENTS / f"{name}.txt")]
    python = lathe_cache.python_env("convert")  # for its pip: the system's Python may have none
    lathe_cache.pip(python, "install", "--no-deps", "--require-hashes", "--only-binary=:all:", "--no-compile",
                    "--python-version=3.11", "--implementation=cp", "--abi=cp311", "--abi=none", *platforms,
                    "--target", folder, *lists, scratch=folder.with_name(folder.name + ".tmp"))


def fetch_libtorch(cuda, every_byte):
    def make(folder):
        begin = time.monotonic()
        lathe_cache.say(f"  downloading LibTorch {VERSION} (about 540 MB)")
        install(folder, ["libtorch"])
        prune(folder, cuda)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        lathe_cache.say(f"  LibTorch {VERSION}: {size / 1e6:.0f} MB on disk in {time.monotonic() - begin:.0f} s")

    key = lathe_cache.requirements_key("libtorch").split("-")[0]
    name = f"libtorch-{VERSION}-cuda-{MACHINE}" if cuda else f"libtorch-{VERSION}-{MACHINE}"
    return lathe_cache.ensure(lathe_cache.root() / name, key, make, every_byte=every_byte)


def fetch_nvcc(every_byte):
    """The CUDA compiler's folder, laid out as CUDA's own installer does: bin/, include/, lib64/, nvvm/."""
    def make(folder):
        lathe_cache.say(f"  downloading the CUDA {CUDA_VERSION} compiler (about 100 MB)")
        install(folder, ["cuda"])
        toolkit = folder / "nvidia/cu13"
        for program in [*toolkit.glob("bin/*"), *toolkit.glob("nvvm/bin/*")]:
            if program.is_file():
                program.chmod(0o755)
        (toolkit / "lib64").symlink_to("lib")
        (toolkit / "lib/libcudart.so").symlink_to("libcudart.so.13")

    key = lathe_cache.requirements_key("cuda").split("-")[0]
    return lathe_cache.ensure(lathe_cache.root() / f"cuda-{CUDA_VERSION}-{MACHINE}", key, make, every_byte=every_byte)


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
    verify = "--verify" in sys.argv
    for_cuda = "--cuda" in sys.argv
    if for_cuda and not (shutil.which("nvcc") or os.environ.get("CUDACXX")):
        fetch_nvcc(verify)
    print(own_torch() or fetch_libtorch(for_cuda, verify))
