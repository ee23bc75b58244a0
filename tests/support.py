"""What tests of the real program share, whoever serves the weights: tests/e2e and tests/vllm."""

import contextlib
import hashlib
import json
import math
import os
import pathlib
import signal
import socket
import subprocess
import time

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
LATHE = pathlib.Path(os.environ.get("LATHE_BUILD", REPOSITORY / "build")).absolute() / "lathe"
BYTES = {"BF16": 2, "F32": 4}


def wait_for(condition, seconds, what="the condition"):
    """What the condition gives once that is true."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"{what}: not within {seconds} s"
        time.sleep(0.02)
    return found


def closing_all(make):
    """For a fixture: yields a function that makes things as `make` does, and closes them all when the fixture ends."""
    with contextlib.ExitStack() as all_of_them:
        yield lambda *arguments, **keywords: all_of_them.enter_context(contextlib.closing(make(*arguments, **keywords)))


class Program:
    """A running `lathe serve` or `lathe attach`, at self.url."""

    def __init__(self, *arguments, env=None):
        self.process = subprocess.Popen([LATHE, *arguments, "--port", "0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                        env={**os.environ, **(env or {})})
        line = self.process.stdout.readline()
        if " at http://" not in line:
            self.process.wait(timeout=60)
            raise RuntimeError(self.process.stderr.read())
        self.url = line.rsplit(" at ", 1)[1].strip()

    def stop(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        code = self.process.wait(timeout=120)
        self.log = self.process.stderr.read()
        return code

    def kill(self):
        self.process.kill()
        self.process.wait()

    def close(self):
        if self.process.poll() is None:
            self.kill()
        self.process.stdout.close()
        self.process.stderr.close()


class SharedMemory:
    """A memory of a manifest (docs/formats/manifest.md) of kind shared_memory."""

    def __init__(self, memory):
        self.file = open(memory["path"], "rb+", buffering=0)

    def read(self, offset, size):
        return os.pread(self.file.fileno(), size, offset)

    def write(self, offset, data):
        os.pwrite(self.file.fileno(), data, offset)

    def close(self):
        self.file.close()


def opened(memory):
    if memory["kind"] == "shared_memory":
        return SharedMemory(memory)
    from cuda_memory import CudaMemory

    return CudaMemory(memory)


class Trainer:
    """The protocol of docs/protocols/vllm.md by hand, and the weights it gives access to."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(str(path))
        self.file = self.socket.makefile("rwb")
        # The last trainer's end may still be being dealt with.
        hello = wait_for(lambda: (reply := self.call("hello", protocol=1))["ok"] and reply, 60, "a free session")
        self.manifest = hello["manifest"]["ranks"][0]
        self.tensors = {tensor["name"]: tensor for tensor in self.manifest["tensors"]}
        self.memories = [opened(memory) for memory in self.manifest["memories"]]

    def call(self, operation, **fields):
        self.file.write(json.dumps({"op": operation, **fields}).encode() + b"\n")
        self.file.flush()
        return json.loads(self.file.readline())

    def read(self):
        """The bytes of every tensor by its name."""
        return {name: self.memories[tensor["memory"]].read(tensor["offset"], math.prod(tensor["shape"]) * BYTES[tensor["dtype"]])
                for name, tensor in self.tensors.items()}

    def write(self, weights):
        """Bytes by tensor's name, each from the tensor's begin on."""
        for name, data in weights.items():
            self.memories[self.tensors[name]["memory"]].write(self.tensors[name]["offset"], data)

    def digest(self):
        digest = hashlib.blake2b()
        for name, data in sorted(self.read().items()):
            digest.update(name.encode() + data)
        return digest.hexdigest()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for memory in self.memories:
            memory.close()
        self.file.close()
        self.socket.close()
