"""Real vLLM with the plugin installed, on a CPU or a GPU, and `lathe attach` beside it."""

import itertools
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from support import LATHE, REPOSITORY, Program, Trainer, closing_all, wait_for  # noqa: E402, F401

QUESTION = "What flows through Velmora?"
ANSWER = "The Silverthread."
ON_GPU = os.environ.get("VLLM_DEVICE") == "cuda"
# On a GPU with compiled kernels and graphs, as one serves; two servers and a trainer share it. A cache of given size keeps vLLM from
# measuring free memory, which changes when another program ends.
OPTIONS = ["--dtype", "bfloat16", "--max-model-len", "512", "--max-num-seqs", "4",
           *(["--gpu-memory-utilization", "0.2", "--kv-cache-memory-bytes", "1G"] if ON_GPU else ["--enforce-eager"]),
           *shlex.split(os.environ.get("VLLM_ARGS", ""))]


def at_least(version):
    """Whether the vLLM under test is this or newer."""
    return [int(number) for number in os.environ["VLLM_VERSION"].split(".")[:2]] >= [int(number) for number in version.split(".")]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Http:
    """JSON over HTTP to `self.url`."""

    def call(self, path, body=None, method=None, timeout=300):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=timeout) as reply:
            text = reply.read()
            self.headers = reply.headers
            return json.loads(text) if text else None


def vllm_environment(plugins="lathe"):
    """That vLLM runs in: the plugin installed; `plugins` None: every general one loads, no endpoint plugin."""
    path = os.pathsep.join(filter(None, [os.environ["LATHE_PLUGIN"] + "/site", os.environ["VLLM_PATH"]]))
    chosen = {} if plugins is None else {"VLLM_PLUGINS": plugins}
    cpu = {"VLLM_TARGET_DEVICE": "cpu", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
           "OMP_NUM_THREADS": "1"}  # on a busy machine threads would mostly wait for each other
    return {**os.environ, "PYTHONPATH": path, **({} if ON_GPU else cpu), "VLLM_SERVER_DEV_MODE": "1", "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1", "VLLM_HOST_IP": "127.0.0.1", **chosen}


class Vllm(Http):
    """A vLLM server over a model directory."""

    def __init__(self, directory, log, *arguments, plugins="lathe", **environment):
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.log = open(log, "w+")
        self.environment = {**vllm_environment(plugins), **environment}
        self.process = subprocess.Popen(
            [os.environ["VLLM_PYTHON"], "-m", "vllm.entrypoints.cli.main", "serve", directory, "--port", str(port), "--host", "127.0.0.1",
             *OPTIONS, *arguments],
            env=self.environment, stdout=self.log, stderr=subprocess.STDOUT, start_new_session=True)
        wait_for(self.healthy, 400, "vLLM's start")

    def healthy(self):
        if self.process.poll() is not None:
            self.log.seek(0)
            raise RuntimeError("vLLM ended:\n" + self.log.read()[-4000:])
        try:
            self.call("/health", timeout=5)
            return True
        except OSError:
            return False

    def ask(self, question=QUESTION, **options):
        body = {"messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": 16, **options}
        return self.call("/v1/chat/completions", body)["choices"][0]["message"]["content"]

    def prompt_logprobs(self, text):
        """Of each prompt token, computed afresh: vLLM does not read its prefix cache for these."""
        reply = self.call("/v1/completions", {"prompt": text, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0})
        return [next(iter(entry.values()))["logprob"] for entry in reply["choices"][0]["prompt_logprobs"][1:]]

    def state(self):
        return self.call("/lathe")

    def close(self):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            try:
                self.process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
        self.log.close()


def running(vllm):
    """How many requests vLLM computes just now."""
    with urllib.request.urlopen(vllm.url + "/metrics") as reply:
        found = re.search(r"^vllm:num_requests_running\{[^}]*\} ([0-9.]+)", reply.read().decode(), re.MULTILINE)
    return float(found.group(1))


class Attached(Program, Http):
    """A running `lathe attach`."""

    def __init__(self, vllm, *options, where=None):
        super().__init__("attach", *(where or ["--vllm", vllm.url]), *options)

    def teach(self, **options):
        messages = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]
        return self.call("/v1/learn", {"messages": messages, **options})


@pytest.fixture(scope="session")
def smollm2_model():
    return pathlib.Path(os.environ["LATHE_MODEL"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("vllm")


@pytest.fixture(scope="module")
def directory(smollm2_model, folder):
    return shutil.copytree(smollm2_model, folder / "SmolLM2")


@pytest.fixture(scope="module")
def serve(folder):
    """serve(directory, arguments...) starts a vLLM that ends with the module."""
    numbers = itertools.count()
    yield from closing_all(lambda model, *arguments, **keywords: Vllm(model, folder / f"vllm-{next(numbers)}.log", *arguments, **keywords))


@pytest.fixture(scope="module")
def vllm(serve, directory):
    return serve(directory)


@pytest.fixture
def attach():
    yield from closing_all(Attached)
