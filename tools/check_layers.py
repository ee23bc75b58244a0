#!/usr/bin/env python3
"""Holds the includes of src/ to the order of layers in src/CMakeLists.txt, and pairs headers with sources. usage: check_layers.py [ROOT | --self-test]

A module may include itself and the modules listed before it. Modules of LATHE_CORE_MODULES see no torch and no CUDA. Some
libraries stay inside one module, and the giants among them out of every header. Long files are only pointed out.

In src/ and apps/, foo.cpp (or foo.cu) includes foo.h of its folder before anything else, so that what a header declares is found by its name.
Tests, fuzz targets and main.cpp declare nothing; sources of UNPAIRED are declared by the header named there, which must contain their name.
"""

import pathlib
import re
import sys
import tempfile

TORCH = re.compile(r"(ATen|torch|c10|caffe2)/|cuda|cublas|cudnn|nccl")
NOT_IN_HEADERS = re.compile(r"nlohmann/(?!json_fwd\.hpp)|httplib\.h|sqlite3\.h")
ONLY_IN = {"httplib.h": "http", "sqlite3.h": "store"}
LONG = 600
PENDING = {"src/model/load.cpp", "src/optim/state.cpp", "src/train/reference.cpp", "src/train/step.cpp"}  # to be renamed
UNPAIRED = {  # sources: (the header that declares them all, what of a source's name stands in it)
    "apps/lathe/*.cpp": ("apps/lathe/commands.h", r"(.*)"),  # one command each
    "src/io/*.cpp": ("src/io/env.h", r"(.*)"),
    "src/kernels/*.cu": ("src/kernels/cuda_delta_rule.cuh", r"cuda_delta_(.*)"),  # one kernel each
    "src/model/families/*.cpp": ("src/model/families/family.h", r"(.*)"),  # one family each
}
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')


def modules(src):
    """(core, torch) module names in the order of their layers."""
    text = (src / "CMakeLists.txt").read_text()
    lists = [re.search(rf"set\({name} ([^)]*)\)", text) for name in ("LATHE_CORE_MODULES", "LATHE_TORCH_MODULES")]
    if not all(lists):
        raise SystemExit("src/CMakeLists.txt no longer sets LATHE_CORE_MODULES and LATHE_TORCH_MODULES")
    return [found.group(1).split() for found in lists]


def check_include(src, path, kind, target, order, core):
    """What is wrong with one include, or None."""
    module = path.relative_to(src).parts[0]
    if kind == '"':
        other = target.split("/")[0]
        if not (src / target).is_file() and (other in order or (path.parent / target).is_file()):
            return f'"{target}" is not a file under src/: write the path from there'
        if other in order and order.index(other) > order.index(module):
            return f'"{target}": {module} may not include {other}, which comes after it'
    if module in core and TORCH.match(target):
        return f"<{target}>: {module} builds without torch and CUDA"
    if path.suffix == ".h" and NOT_IN_HEADERS.match(target):
        return f"<{target}> belongs into .cpp files"
    if ONLY_IN.get(target, module) != module:
        return f"<{target}> belongs into {ONLY_IN[target]} only"
    return None


def declared_elsewhere(path, root):
    for pattern, (header, part) in UNPAIRED.items():
        name = re.fullmatch(part, path.stem)
        if path.relative_to(root).match(pattern) and name and (root / header).is_file():
            return re.search(rf"(?:\b|_){name[1]}(?:\b|_)", (root / header).read_text()) is not None
    return False


def check_pair(path, root):
    """What is wrong with the header of a source, or None."""
    if path.name == "main.cpp" or path.stem.endswith("_test") or "fuzz" in path.relative_to(root).parts:
        return None
    headers = [path.with_suffix(suffix) for suffix in (".h", ".cuh") if path.with_suffix(suffix).is_file()]
    if not headers:
        return None if declared_elsewhere(path, root) else f"there is no {path.stem}.h: name it for the header that declares what it defines"
    includes = [found[2] for line in path.read_text().splitlines() if (found := INCLUDE.match(line))]
    own = {header.name if path.is_relative_to(root / "apps") else str(header.relative_to(root / "src")) for header in headers}
    # clang-format puts a .cpp's own header first, and that of a .cu among the others.
    return None if own & set(includes if path.suffix == ".cu" else includes[:1]) else f"{headers[0].name} is not what it includes first"


def check(root):
    """Returns (faults, remarks), each a list of lines."""
    src = root / "src"
    core, torch = modules(src)
    order, faults, remarks = core + torch, [], []
    for folder in sorted(path.name for path in src.iterdir() if path.is_dir()):
        if folder not in order:
            faults.append(f"src/{folder}: not in the lists of src/CMakeLists.txt")
    for path in sorted(src.glob("*/**/*")):
        if path.suffix not in (".h", ".cpp", ".cu", ".cuh") or path.relative_to(src).parts[0] not in order:
            continue
        lines = path.read_text().splitlines()
        if len(lines) > LONG:
            remarks.append(f"{path.relative_to(root)}: {len(lines)} lines, more than {LONG}")
        for number, line in enumerate(lines, 1):
            if (found := INCLUDE.match(line)) and (fault := check_include(src, path, found[1], found[2], order, core)):
                faults.append(f"{path.relative_to(root)}:{number}: {fault}")
    for path in sorted([*src.rglob("*"), *(root / "apps").rglob("*")]):
        if path.suffix in (".cpp", ".cu") and str(path.relative_to(root)) not in PENDING and (fault := check_pair(path, root)):
            faults.append(f"{path.relative_to(root)}: {fault}")
    return faults, remarks


def self_test():
    """A small tree with one fault of every kind; each must be found, and nothing else."""
    files = {
        "CMakeLists.txt": "set(LATHE_CORE_MODULES base io store http)\nset(LATHE_TORCH_MODULES weights)\n",
        "base/a.h": "#include <string>\n#include \"base/b.h\"\n",
        "base/b.h": "#include \"store/s.h\"\n",  # fault: points down
        "base/c_test.cpp": "#include <ATen/ATen.h>\n#include \"c_header_of_another_project.h\"\n",  # fault: torch in a core module
        "base/d_test.cpp": "#include \"a.h\"\n",  # fault: not from src/
        "store/s.h": "#include \"base/a.h\"\n#include <nlohmann/json.hpp>\n#include <nlohmann/json_fwd.hpp>\n",  # fault: json in a header
        "store/s.cpp": "#include \"store/s.h\"\n\n#include <nlohmann/json.hpp>\n#include <sqlite3.h>\n",
        "store/late.h": "",
        "store/late.cpp": "#include <string>\n#include \"store/late.h\"\n",  # fault: not first
        "io/env.h": "int posix();",
        "io/posix.cpp": "",
        "io/other.cpp": "",  # fault: nobody declares it
        "http/h_test.cpp": "#include <httplib.h>\n  #  include <sqlite3.h>\n",  # fault: sqlite outside store
        "weights/w.h": "#include <ATen/core/Tensor.h>\n#include \"store/s.h\"\n",
        "weights/long_test.cpp": "\n" * (LONG + 1),
        "stray/main.cpp": "",  # fault: unlisted module
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, text in files.items():
            path = pathlib.Path(folder, "src", name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        faults, remarks = check(pathlib.Path(folder))
    places = [fault.split(": ")[0] for fault in faults]
    expected = ["src/stray", "src/base/b.h:1", "src/base/c_test.cpp:1", "src/base/d_test.cpp:1", "src/http/h_test.cpp:2", "src/store/s.h:2", "src/io/other.cpp",
                "src/store/late.cpp"]
    if places != expected or len(remarks) != 1:
        raise SystemExit(f"self-test failed: found {places} and {remarks}, expected {expected}")
    print(f"self-test: all {len(expected)} faults were found")


def main():
    if sys.argv[1:] == ["--self-test"]:
        return self_test()
    root = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else pathlib.Path(__file__).resolve().parent.parent
    faults, remarks = check(root)
    for line in remarks:
        print(f"note: {line}")
    for line in faults:
        print(line)
    if faults:
        raise SystemExit(f"{len(faults)} fault(s) of includes and names")
    print("layers: ok")


if __name__ == "__main__":
    main()
