"""A server that holds weights as vLLM does with lathe-vllm, without vLLM: the real session and its watchdog over the fused
tensors of a model directory in sealed shared memory, an engine that only keeps count, and the HTTP routes that Lathe asks.

usage: fake_vllm.py MODEL_DIR SOCKET    prints one line of JSON: url, socket
FAKE_MANIFEST: members of the manifest to replace; FAKE_TOKENS: the answer to /tokenize, if it is to be always the same.
"""

import asyncio
import http.server
import json
import mmap
import os
import pathlib
import struct
import sys
import threading

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "python" / "lathe_vllm"))
from fake_inference import Inference  # noqa: E402
from lathe_vllm import arena, session  # noqa: E402

FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
BF16 = 2


def read_checkpoint(directory):
    """name -> (shape, bytes) of a directory with one file."""
    raw = (directory / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    header.pop("__metadata__", None)
    data = raw[8 + length :]
    return {name: (entry["shape"], data[slice(*entry["data_offsets"])]) for name, entry in header.items()}


def fused(name):
    """(name of the fused tensor, position therein) of a checkpoint's tensor."""
    for fusion, parts in FUSED.items():
        for position, part in enumerate(parts):
            if f".{part}." in name:
                return name.replace(part, fusion), position
    return name, 0


class Weights:
    """The fused tensors of a directory in one arena."""

    def __init__(self, directory):
        self.directory = directory
        groups = {}
        for name, (shape, data) in read_checkpoint(directory).items():
            target, position = fused(name)
            groups.setdefault(target, {})[position] = (name, shape, data)
        self.tensors, sizes = [], []
        for target, parts in groups.items():
            parts = [parts[i] for i in sorted(parts)]
            shape = [sum(part[1][0] for part in parts), *parts[0][1][1:]]
            self.tensors.append({"name": target, "dtype": "BF16", "shape": shape, "memory": 0, "parts": [part[0] for part in parts]})
            sizes.append(sum(len(part[2]) for part in parts))
        offsets, self.size = arena.place(sizes)
        for tensor, offset in zip(self.tensors, offsets):
            tensor["offset"] = offset
        self.fd = arena.sealed_memory("lathe-weights", self.size)
        self.memory = mmap.mmap(self.fd, self.size)
        self.restore()

    def restore(self):
        checkpoint = read_checkpoint(self.directory)
        for tensor in self.tensors:
            data = b"".join(checkpoint[part][1] for part in tensor["parts"])
            self.memory[tensor["offset"] : tensor["offset"] + len(data)] = data

    def manifest(self, **changes):
        tensors = [{key: value for key, value in tensor.items() if key != "parts"} for tensor in self.tensors]
        return {"format": "lathe manifest 1", "engine": {"name": "vllm", "version": "0.0-fake"},
                "model": {"directory": str(self.directory), "architecture": "LlamaForCausalLM"},
                "tensor_parallel": {"size": 1, "rank": 0}, "pid": os.getpid(), "refusals": [], "warnings": [],
                "memories": [{"kind": "shared_memory", "path": f"/proc/{os.getpid()}/fd/{self.fd}", "bytes": self.size}],
                "tensors": tensors, **changes}


class Engine:
    """What a session asks of vLLM."""

    def __init__(self, weights, changes):
        self.weights, self.changes = weights, changes

    async def pause(self):
        pass

    async def resume(self):
        pass

    async def tag(self, version):
        pass

    async def call(self, method, *arguments):
        if method == "lathe_manifest":
            return [self.weights.manifest(**self.changes)]
        if method == "lathe_restore":
            self.weights.restore()
            return [{"restored": len(self.weights.tensors)}]
        return [True]


def answer_http(server_session):
    tokens = os.environ.get("FAKE_TOKENS")
    inference = Inference()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def reply(self, body, status=200, headers=None, cut=False):
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", **(headers or {}), "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data[: len(data) // 2] if cut else data)
            self.close_connection = self.close_connection or cut

        def do_GET(self):
            if self.path == "/fake/requests":
                self.reply({"requests": inference.requests, "left": inference.left})
            elif self.path == "/v1/models":
                self.reply({"object": "list", "data": [{"id": "fake"}]})
            else:
                self.reply(server_session.describe())

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/fake/go":
                inference.go.set()
                self.reply({})
            elif self.path == "/fake/close":
                self.reply({})
                server.shutdown()
                server.server_close()
            elif self.path == "/tokenize" and tokens:
                self.reply({"tokens": json.loads(tokens)})
            else:
                inference.post(self, body)

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.block_on_close = False
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_address[1]}"


async def main():
    directory = pathlib.Path(sys.argv[1]).absolute()
    changes = json.loads(os.environ.get("FAKE_MANIFEST", "{}"))
    server = session.SessionServer(Engine(Weights(directory), changes), pathlib.Path(sys.argv[2]))
    await server.start()
    print(json.dumps({"url": answer_http(server), "socket": str(server.path)}), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
