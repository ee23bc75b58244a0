#!/usr/bin/env python3
"""clang-tidy on every source file of src/, apps/ and bench/ but the tests. usage: tidy.py [--limit N] [BUILD_FOLDER]

Reads how each file is compiled from BUILD_FOLDER/compile_commands.json (build/, preset cpu). A clean result is remembered in the cache
under a hash of all that decides it: the file, the project's headers that it includes, the flags, the checks, the version of
clang-tidy. So only what changed is looked at again.

A file that includes LibTorch takes ten seconds and more, nearly all of it spent on LibTorch's headers. Those files are compiled on top of a
precompiled header and get the shorter list of checks in TORCH_CHECKS. In apps/ and bench/ three checks are left out that spend their time in
CLI11.

With --limit N at most N files that are not in the cache are checked: those that the last commit changed first, then a window
that moves on with every commit, so that each file comes up within (files / N) commits even on machines without a cache. What
was left out is said. Exit code 1 if there is a finding.
"""

import argparse
import concurrent.futures
import hashlib
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY / "scripts"))
import lathe_cache  # noqa: E402

# What finds mistakes in code that calls LibTorch; the rest of .clang-tidy takes as long again on LibTorch's own headers. Not
# narrowing conversions: LibTorch counts in int64_t, the standard library in size_t.
TORCH_CHECKS = ("-*,readability-identifier-naming,misc-unused-*,modernize-use-override,google-explicit-constructor,"
                "cppcoreguidelines-slicing,bugprone-dangling-handle,bugprone-implicit-widening-of-multiplication-result,"
                "bugprone-infinite-loop,bugprone-unused-raii,bugprone-use-after-move,"
                "performance-for-range-copy,performance-move-const-arg,performance-unnecessary-copy-initialization")
TORCH_HEADERS = ("ATen/ATen.h", "torch/csrc/autograd/autograd.h", "torch/csrc/autograd/custom_function.h")
CLI11_CHECKS = "-bugprone-reserved-identifier,-bugprone-stringview-nullptr,-performance-unnecessary-value-param"
FOLDERS = ("src/", "apps/", "bench/")
INCLUDE = re.compile(rb'^\s*#\s*include\s*"([^"]+)"', re.M)


class Source:
    """One file to check and the flags that clang-tidy needs of its compile command."""

    def __init__(self, entry):
        self.path = pathlib.Path(entry["file"])
        self.name = str(self.path.relative_to(REPOSITORY))
        self.directory = entry["directory"]
        self.flags = self._flags(shlex.split(entry["command"]))
        self.torch = any("/torch/include" in flag for flag in self.flags)

    @staticmethod
    def _flags(command):
        kept, words = [], iter(command)
        for word in words:
            if word == "-isystem":
                kept += [word, next(words)]
            elif word in ("-o", "-c", "-include"):
                next(words)
            elif word.startswith(("-I", "-D", "-std=", "-m")):
                kept.append(word)
        # Without -fopenmp, whose header clang does not bring along.
        return [*kept, "-Wno-unknown-warning-option", "-Wno-unknown-pragmas"]


def sources(build):
    """Every file to check, each once, in the order of their names."""
    database = build / "compile_commands.json"
    if build == REPOSITORY / "build":
        subprocess.run(["cmake", "--preset", "cpu"], cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL)
    if not database.is_file():
        raise SystemExit(f"tidy: {database} is missing; configure that folder first")
    found: dict[str, Source] = {}
    for entry in json.loads(database.read_text()):
        path = pathlib.Path(entry["file"])
        if path.suffix != ".cpp" or not path.is_relative_to(REPOSITORY):
            continue
        name = str(path.relative_to(REPOSITORY))
        if name.startswith(FOLDERS) and not re.search(r"_test\.cpp$|/fuzz/|_harness\.cpp$", name):
            found.setdefault(name, Source(entry))
    return [found[name] for name in sorted(found)]


class Keys:
    """What decides a file's result, as a hash."""

    def __init__(self, tidy):
        version = subprocess.run([tidy, "--version"], check=True, capture_output=True).stdout
        self.common = version + (REPOSITORY / ".clang-tidy").read_bytes() + (TORCH_CHECKS + CLI11_CHECKS).encode()
        self.texts = {}

    def _text(self, path):
        if path not in self.texts:
            self.texts[path] = path.read_bytes() if path.is_file() else b""
        return self.texts[path]

    def _closure(self, path):
        """The file and every header of the project that it includes, however deep."""
        seen, waiting = set(), [path]
        while waiting:
            here = waiting.pop()
            if here in seen:
                continue
            seen.add(here)
            for include in INCLUDE.findall(self._text(here)):
                for place in (REPOSITORY / "src", here.parent):
                    if (other := place / include.decode()).is_file():
                        waiting.append(other.resolve())
                        break
        return sorted(seen)

    def of(self, source):
        digest = hashlib.sha256(self.common)
        cache = str(lathe_cache.root())  # LibTorch lies there: the same flags in every clone
        for flag in source.flags:
            digest.update(flag.replace(str(REPOSITORY), ".").replace(cache, "~").encode() + b"\0")
        for path in self._closure(source.path):
            digest.update(str(path.relative_to(REPOSITORY)).encode() + b"\0" + self._text(path))
        return digest.hexdigest()


def commit_number():
    done = subprocess.run(["git", "-C", REPOSITORY, "rev-list", "--count", "HEAD"], capture_output=True, text=True, check=False)
    return int(done.stdout) if done.returncode == 0 else 0


def changed_files():
    """What the last commit and the working tree changed."""
    done = subprocess.run(["git", "-C", REPOSITORY, "diff", "--name-only", "HEAD~1"], capture_output=True, text=True, check=False)
    return set(done.stdout.splitlines())


def choose(waiting, limit):
    """(chosen, left out) of the files whose result is not known."""
    if limit is None or len(waiting) <= limit:
        return waiting, []
    changed = changed_files()
    first = [source for source in waiting if source.name in changed]
    rest = [source for source in waiting if source.name not in changed]
    begin = commit_number() * limit % max(1, len(rest))
    order = first + rest[begin:] + rest[:begin]
    return order[:limit], order[limit:]


class Checker:
    def __init__(self, tidy, folder):
        self.tidy, self.folder, self.header = tidy, folder, None

    def precompile(self, source):
        """LibTorch's headers once for all. Without it, clang-tidy still works, only longer."""
        compiler = shutil.which("clang++-14") or shutil.which("clang++")
        if compiler is None:
            print("tidy: clang++ is missing, so LibTorch's headers are parsed for every file", flush=True)
            return
        text, header = self.folder / "torch.hxx", self.folder / "torch.pch"
        text.write_text("".join(f"#include <{name}>\n" for name in TORCH_HEADERS))
        flags = [flag for flag in source.flags if not flag.startswith("-DLATHE_")]
        done = subprocess.run([compiler, *flags, "-x", "c++-header", text, "-o", header], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SystemExit(f"tidy: LibTorch's headers do not compile with {compiler}:\n{done.stderr[-2000:]}")
        self.header = header

    def __call__(self, source):
        """(seconds, findings); findings is empty if there are none."""
        begin = time.monotonic()
        command = [self.tidy, "--quiet", "--warnings-as-errors=*"]
        if checks := ",".join([TORCH_CHECKS] * source.torch + [CLI11_CHECKS] * source.name.startswith(("apps/", "bench/"))):
            command.append(f"--checks={checks}")
        flags = source.flags
        if source.torch and self.header:
            flags = [*flags, "-include-pch", str(self.header)]
        done = subprocess.run([*command, str(source.path), "--", *flags], cwd=source.directory, capture_output=True, text=True, check=False)
        findings = "" if done.returncode == 0 else done.stdout + done.stderr
        return time.monotonic() - begin, findings


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", nargs="?", default=REPOSITORY / "build", type=pathlib.Path)
    parser.add_argument("--limit", type=int, help="check at most so many files that are not in the cache")
    options = parser.parse_args()
    tidy = shutil.which("clang-tidy-14") or shutil.which("clang-tidy")
    if tidy is None:
        raise SystemExit("tidy: clang-tidy is missing: apt-get install clang-tidy-14, or scripts/setup.sh --lint")
    known = lathe_cache.root() / "tidy"
    known.mkdir(exist_ok=True)
    keys, everything = Keys(tidy), sources(options.build.absolute())
    marks = {source.name: known / keys.of(source) for source in everything}
    waiting = [source for source in everything if not marks[source.name].exists()]
    chosen, left_out = choose(waiting, options.limit)
    for source in everything:
        if marks[source.name].exists():
            os.utime(marks[source.name])
    failed = 0
    with tempfile.TemporaryDirectory(prefix="lathe-tidy-") as folder:
        check = Checker(tidy, pathlib.Path(folder))
        with_torch = [source for source in chosen if source.torch]
        if len(with_torch) > 2:
            check.precompile(with_torch[0])
        chosen.sort(key=lambda source: not source.torch)  # the longest first
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            running = {pool.submit(check, source): source for source in chosen}
            for done, future in enumerate(concurrent.futures.as_completed(running), 1):
                source, (seconds, findings) = running[future], future.result()
                print(f"[{done}/{len(chosen)}] {source.name} ({seconds:.0f} s)", flush=True)
                if findings:
                    print(findings, flush=True)
                    failed += 1
                else:
                    marks[source.name].touch()
    print(f"tidy: {len(everything)} files, {len(everything) - len(waiting)} known to be clean, {len(chosen)} checked, {failed} with findings")
    if left_out:
        print(f"tidy: {len(left_out)} left to later commits: {' '.join(source.name for source in left_out)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
