"""The cache of downloads and prepared things: ${LATHE_CACHE:-~/.cache/lathe}.

An entry is a folder DIR and, beside it, its seal DIR.json: the key it was made for and every file's size, time stamp and
SHA-256. The seal is written last, so an entry that was interrupted has none; a file that changed since is noticed by its
size or time stamp and then judged by its hash. What fails is made again, never repaired. One maker at a time holds DIR.lock.

Standard library only: this runs before anything is installed.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import venv


def root():
    """The cache folder, made if missing."""
    path = pathlib.Path(os.environ.get("LATHE_CACHE") or "~/.cache/lathe").expanduser().absolute()
    path.mkdir(parents=True, exist_ok=True)
    return path


def say(text):
    """Progress goes to stderr; stdout carries only the path that a caller asked for."""
    print(text, file=sys.stderr, flush=True)


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _beside(folder, suffix):
    return folder.with_name(folder.name + suffix)


def _files(folder):
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix != ".pyc":  # Python rewrites its byte code as it likes
            yield path


def seal(folder, key):
    """Records that `folder` is complete. The last act of making an entry."""
    files = {}
    for path in _files(folder):
        stat = path.stat()
        files[str(path.relative_to(folder))] = [stat.st_size, stat.st_mtime_ns, sha256(path)]
    target, draft = _beside(folder, ".json"), _beside(folder, ".json.tmp")
    draft.write_text(json.dumps({"key": key, "files": files}))
    draft.replace(target)


def fault(folder, key, every_byte=False):
    """Why the entry cannot be used, or None. Quick: hashes only what looks touched, unless `every_byte`."""
    try:
        record = json.loads(_beside(folder, ".json").read_text())
        if record["key"] != key:
            return "made for another version"
        for name, (size, mtime_ns, digest) in record["files"].items():
            stat = (folder / name).stat()
            if stat.st_size != size:
                return f"{name} has {stat.st_size} bytes instead of {size}"
            if (every_byte or stat.st_mtime_ns != mtime_ns) and sha256(folder / name) != digest:
                return f"{name} was changed"
    except FileNotFoundError as missing:
        return f"{pathlib.Path(missing.filename).name} is missing"
    except (ValueError, KeyError, TypeError):
        return "its seal cannot be read"
    return None


def discard(folder):
    _beside(folder, ".json").unlink(missing_ok=True)  # first: a half-removed entry must not look sealed
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def lock(folder):
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(_beside(folder, ".lock"), "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"  waiting for another process that prepares {folder.name}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def ensure(folder, key, make, every_byte=False):
    """Returns `folder`, sound and sealed for `key`; calls make(folder) when it is not. `make` starts from nothing."""
    if not every_byte and fault(folder, key) is None:
        return folder
    with lock(folder):
        why = fault(folder, key, every_byte)
        if why is None:
            return folder
        if folder.exists():
            say(f"  {folder.name}: {why}; making it anew")
        discard(folder)
        make(folder)
        seal(folder, key)
    return folder


def pip(python, *arguments, scratch):
    """Runs pip, with its temporary files in `scratch` (/tmp may be small) and no second copy in pip's own cache."""
    scratch.mkdir(parents=True, exist_ok=True)
    quiet = [] if sys.stderr.isatty() else ["-q"]  # a person sees pip's progress bars
    command = [python, "-m", "pip", "--no-cache-dir", "--disable-pip-version-check", *quiet, *map(str, arguments)]
    try:
        subprocess.run(command, check=True, env={**os.environ, "TMPDIR": str(scratch)}, stdout=sys.stderr)
    except subprocess.CalledProcessError as failed:
        raise SystemExit(f"pip failed (exit {failed.returncode}); is the network there? It ran: "
                         f"{' '.join(map(str, command))}") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


REQUIREMENTS = pathlib.Path(__file__).resolve().parent / "requirements"


def requirements_key(name):
    """Names an environment by what decides its content: the pinned list and the interpreter."""
    text = (REQUIREMENTS / f"{name}.txt").read_bytes()
    return f"{hashlib.sha256(text).hexdigest()[:12]}-cp{sys.version_info[0]}{sys.version_info[1]}-{os.uname().machine}"


def python_env(name):
    """The Python of the virtual environment of requirements/NAME.txt, made on first use."""
    key = requirements_key(name)

    def make(folder):
        say(f"  installing the Python packages of requirements/{name}.txt")
        venv.create(folder, with_pip=True)
        # What the list pins by hash, pip insists on.
        pip(folder / "bin/python", "install", "--no-deps", "--only-binary=:all:", "-r", REQUIREMENTS / f"{name}.txt",
            scratch=_beside(folder, ".tmp"))

    return ensure(root() / "python" / f"{name}-{key}", key, make) / "bin" / "python"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: lathe_cache.py ENVIRONMENT    prints the path of its Python")
    print(python_env(sys.argv[1]))
