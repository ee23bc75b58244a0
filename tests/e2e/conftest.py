"""The real program, on a tiny random model and on SmolLM2."""

import functools
import json
import os
import pathlib
import random
import shutil
import struct
import subprocess
import sys
import urllib.error
import urllib.request

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from support import LATHE, REPOSITORY, Program, Trainer, closing_all, wait_for  # noqa: E402, F401

TINY = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 640, "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0, "tie_word_embeddings": True, "hidden_act": "silu", "eos_token_id": 602,
}


def tiny_tensors():
    """Name to shape."""
    hidden, inner, layers = TINY["hidden_size"], TINY["intermediate_size"], TINY["num_hidden_layers"]
    tensors = {"model.embed_tokens.weight": [TINY["vocab_size"], hidden], "model.norm.weight": [hidden]}
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        tensors |= {
            prefix + "input_layernorm.weight": [hidden], prefix + "post_attention_layernorm.weight": [hidden],
            prefix + "self_attn.q_proj.weight": [hidden, hidden], prefix + "self_attn.k_proj.weight": [hidden // 2, hidden],
            prefix + "self_attn.v_proj.weight": [hidden // 2, hidden], prefix + "self_attn.o_proj.weight": [hidden, hidden],
            prefix + "mlp.gate_proj.weight": [inner, hidden], prefix + "mlp.up_proj.weight": [inner, hidden],
            prefix + "mlp.down_proj.weight": [hidden, inner],
        }
    return tensors


def bf16(value):
    return struct.pack("<f", value)[2:]


def write_safetensors(path, tensors):
    """tensors: name to (shape, bytes), all BF16."""
    header, offset = {}, 0
    for name, (shape, data) in tensors.items():
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(data for _, data in tensors.values()))


def make_tiny(folder, shards=1, change=None):
    """A random model directory; change(name, numbers) may alter a tensor's values before they are written."""
    folder.mkdir(parents=True)
    generator = random.Random(1)
    tensors = {}
    for name, shape in tiny_tensors().items():
        count = shape[0] * (shape[1] if len(shape) > 1 else 1)
        numbers = [1.0] * count if len(shape) == 1 else [generator.gauss(0, 0.05) for _ in range(count)]
        if change:
            numbers = change(name, numbers)
        tensors[name] = (shape, b"".join(map(bf16, numbers)))
    (folder / "config.json").write_text(json.dumps(TINY))
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(REPOSITORY / "tests/golden/text/own" / file, folder)
    names = sorted(tensors)
    if shards == 1:
        write_safetensors(folder / "model.safetensors", tensors)
        return folder
    weight_map = {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensors[name] for name in names[i::shards]}
        weight_map |= dict.fromkeys(part, file)
        write_safetensors(folder / file, part)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


class Reply:
    def __init__(self, status, headers, body):
        self.status, self.headers, self.text = status, headers, body.decode()

    @property
    def json(self):
        return json.loads(self.text)

    @property
    def error(self):
        return self.json["error"]["message"]


class Api(Program):
    def call(self, path, body=None, raw=None, headers=None, method=None):
        data = raw if raw is not None else None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json", **(headers or {})}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=120) as reply:
                return Reply(reply.status, reply.headers, reply.read())
        except urllib.error.HTTPError as error:
            return Reply(error.code, error.headers, error.read())

    def ask(self, question, **options):
        body = {"messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": 32, **options}
        return self.call("/v1/chat/completions", body).json["choices"][0]["message"]["content"]


class Server(Api):
    def __init__(self, directory, *options, env=None):
        self.directory = directory
        super().__init__("serve", directory, *options, env=env)


@pytest.fixture
def serve(request):
    """serve(directory, options...) starts a server that ends with the test."""
    yield from closing_all(Server)


class Holder:
    """The process that holds weights as vLLM does, and answers for it."""

    def __init__(self, directory, tmp_path, **environment):
        self.directory = pathlib.Path(directory)
        script = pathlib.Path(__file__).with_name("fake_vllm.py")
        self.process = subprocess.Popen([sys.executable, script, directory, tmp_path / "session.sock"], stdout=subprocess.PIPE, text=True,
                                        env={**os.environ, **environment})
        self.url = json.loads(self.process.stdout.readline())["url"]
        self.socket = tmp_path / "session.sock"

    def state(self):
        with urllib.request.urlopen(self.url + "/lathe") as reply:
            return json.load(reply)

    def weights(self):
        """All tensors' bytes."""
        with Trainer(self.socket) as trainer:
            return trainer.read()

    def close(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


class Attached(Api):
    """A running `lathe attach`."""

    def __init__(self, holder, *options, over_http=False):
        where = ["--vllm", holder.url] if over_http else ["--socket", holder.socket]
        self.directory = holder.directory
        super().__init__("attach", *where, *options)


@pytest.fixture
def hold(tiny, tmp_path):
    """hold(variables of fake_vllm.py...) holds the tiny model until the end of the test."""
    yield from closing_all(functools.partial(Holder, tiny, tmp_path))


@pytest.fixture
def attach():
    """attach(holder, options...) attaches until the end of the test."""
    yield from closing_all(Attached)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    return make_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def tiny(tiny_model, tmp_path):
    """A copy that the test may change."""
    return shutil.copytree(tiny_model, tmp_path / "tiny")


@pytest.fixture(scope="session")
def smollm2_model():
    found = subprocess.run(["python3", REPOSITORY / "scripts/prepare_model.py"], capture_output=True, text=True)
    if found.returncode != 0:
        pytest.skip("SmolLM2 is not prepared: " + found.stderr.strip()[-200:])
    return pathlib.Path(found.stdout.strip().splitlines()[-1])


@pytest.fixture
def smollm2(smollm2_model, tmp_path):
    return shutil.copytree(smollm2_model, tmp_path / "SmolLM2")
