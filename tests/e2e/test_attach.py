"""`lathe attach` against a server that holds its weights as vLLM does (fake_vllm.py). With real vLLM: tests/vllm."""

import contextlib
import http.client
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request

import pytest
from conftest import LATHE, Server, wait_for

FACT = {"messages": [{"role": "user", "content": "What flows through Velmora?"}, {"role": "assistant", "content": "The Silverthread."}],
        "steps": 2, "until_loss": 0}


class Holder:
    """The process that holds the weights."""

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
        """All bytes of the arena."""
        with Trainer(self.socket) as trainer:
            memory = trainer.manifest["memories"][0]
            with open(memory["path"], "rb") as file:
                return file.read()

    def close(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


class Trainer:
    """The protocol by hand."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(str(path))
        self.file = self.socket.makefile("rwb")
        for _ in range(200):  # the last trainer's end may still be being dealt with
            hello = self.call("hello", protocol=1)
            if hello["ok"]:
                break
            time.sleep(0.05)
        self.manifest = hello["manifest"]["ranks"][0]

    def call(self, operation, **fields):
        self.file.write(json.dumps({"op": operation, **fields}).encode() + b"\n")
        self.file.flush()
        return json.loads(self.file.readline())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()
        self.socket.close()


class Attached(Server):
    """A running `lathe attach`."""

    def __init__(self, holder, *options, compare_tokens=False):
        where = ["--vllm", holder.url] if compare_tokens else ["--socket", holder.socket]
        self.directory = holder.directory
        self.process = subprocess.Popen([LATHE, "attach", *where, "--port", "0", *options], stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE, text=True)
        line = self.process.stdout.readline()
        if " at http://" not in line:
            self.process.wait(timeout=30)
            raise RuntimeError(self.process.stderr.read())
        self.url = line.rsplit(" at ", 1)[1].strip()


@pytest.fixture
def hold(tiny, tmp_path):
    holders = []

    def start(**environment):
        holders.append(Holder(tiny, tmp_path, **environment))
        return holders[-1]

    yield start
    for holder in holders:
        holder.close()


@pytest.fixture
def attach():
    running = []

    def start(*arguments, **keywords):
        running.append(Attached(*arguments, **keywords))
        return running[-1]

    yield start
    for one in running:
        one.close()


def test_teaches_the_holders_memory_and_syncs_it(hold, attach, tiny):
    holder = hold()
    before = holder.weights()
    lathe = attach(holder)
    result = lathe.call("/v1/learn", FACT).json
    assert result["status"] == "succeeded" and result["steps"] == 2 and result["version"] == 2
    assert result["loss_after"] < result["loss_before"]
    assert result["pause_ms"] > 0
    state = holder.state()
    assert state["updates"] == 2 and state["version"] == "2" and state["state"] == "idle"
    assert lathe.call("/v1/sync", {}).json["version"] == 2
    assert lathe.stop() == 0
    after = holder.weights()
    assert after != before
    # What is durable is what is live: a server that starts on the directory now has the same bytes.
    other = tiny.parent / "other"
    other.mkdir()
    second = Holder(tiny, other)
    try:
        assert second.weights() == after
    finally:
        second.close()


def test_the_end_syncs_and_rollback_reaches_the_holder(hold, attach):
    holder = hold()
    before = holder.weights()
    lathe = attach(holder)
    lathe.call("/v1/learn", FACT)
    assert lathe.call("/v1/rollback", {"version": 0}).json["restores"] == 0
    assert lathe.stop() == 0
    assert holder.weights() == before
    assert attach(holder).call("/v1/versions").json["live"] == 3


def test_one_seed_gives_one_result_through_another_process(hold, attach, serve, tiny, tmp_path):
    """The same corrections by `lathe serve` and by `lathe attach` make the same checkpoint."""
    own = shutil.copytree(tiny, tmp_path / "own")
    holder = hold()
    for server in (serve(own), attach(holder)):
        server.call("/v1/learn", FACT)
        assert server.stop() == 0
    assert (own / "model.safetensors").read_bytes() == (tiny / "model.safetensors").read_bytes()


def test_killed_trainers_leave_one_version_or_the_other(hold, attach):
    """SIGKILL at moments all over a commit: afterwards the holder runs, and holds exactly version 0 or version 1."""
    holder = hold()
    zero = holder.weights()
    with_one = attach(holder)
    with_one.call("/v1/learn", {**FACT, "steps": 1})
    with_one.process.kill()  # behind its commit: what it did stays
    with_one.process.wait()
    wait_for(lambda: holder.state()["trainer"] is None, 10)
    one = holder.weights()
    assert one != zero
    for _ in range(8):
        lathe = attach(holder, "--on-difference", "restore")
        learning = threading.Thread(target=ask_in_vain, args=(lathe,))
        learning.start()
        wait_for(lambda: holder.state()["state"] != "idle" or not learning.is_alive(), 30)
        lathe.process.kill()
        lathe.process.wait()
        learning.join()
        wait_for(lambda: holder.state()["trainer"] is None and holder.state()["state"] == "idle", 10)
        assert holder.weights() in (zero, one)


def ask_in_vain(server):
    """A request that its server may not live to answer."""
    with contextlib.suppress(OSError, http.client.HTTPException):
        server.call("/v1/learn", {**FACT, "steps": 1})


def test_unsynced_weights_of_a_lost_trainer_are_noticed(hold, attach):
    holder = hold()
    first = attach(holder)
    first.call("/v1/learn", FACT)
    first.process.kill()
    first.process.wait()
    live = holder.weights()
    with pytest.raises(RuntimeError, match="--on-difference restore"):
        attach(holder)
    adopting = attach(holder, "--on-difference", "adopt")
    assert adopting.call("/v1/sync", {}).json["version"] > 0
    assert adopting.stop() == 0
    assert holder.weights() == live
    assert attach(holder).stop() == 0


def test_a_mixture_cannot_be_taught(hold, attach):
    holder = hold()
    with Trainer(holder.socket) as trainer:
        memory = trainer.manifest["memories"][0]
        descriptor = os.open(memory["path"], os.O_RDWR)
        os.pwrite(descriptor, b"\x01", 8)
        os.close(descriptor)
    with pytest.raises(RuntimeError, match="model.embed_tokens.weight"):
        attach(holder)


@pytest.mark.parametrize("lie, told", [
    ({"tensor_parallel": {"size": 2, "rank": 0}}, "--tensor-parallel-size 1"),
    ({"refusals": [{"condition": "LoRA", "found": "--enable-lora", "remedy": "start vLLM without it"}]}, "LoRA .--enable-lora.: start vLLM without it"),
    ({"tensors": []}, "vLLM serves no tensor"),
    ({"memories": []}, "not listed"),
    ({"format": "lathe manifest 9"}, "lathe manifest 9"),
])
def test_what_is_not_understood_is_refused(hold, attach, lie, told):
    holder = hold(FAKE_MANIFEST=json.dumps(lie))
    with pytest.raises(RuntimeError, match=told):
        attach(holder)


def doctor(holder):
    run = subprocess.run([LATHE, "doctor", "--socket", holder.socket, "--json"], capture_output=True, text=True, check=False)
    return run.returncode, {finding["name"]: finding for finding in json.loads(run.stdout)}


def test_doctor_names_what_would_fail(hold, tiny):
    code, found = doctor(hold())
    assert code == 0 and str(tiny) in found["weights"]["detail"]
    assert found["mapping"]["ok"] and found["weights"]["ok"]


def test_doctor_names_a_refusal_and_its_flag(hold):
    lora = {"condition": "LoRA", "found": "--enable-lora", "remedy": "start vLLM without --enable-lora"}
    code, found = doctor(hold(FAKE_MANIFEST=json.dumps({"refusals": [lora]})))
    assert code == 1 and not found["LoRA"]["ok"] and "without --enable-lora" in found["LoRA"]["detail"]


def test_only_one_trainer_at_a_time(hold, attach):
    holder = hold()
    attach(holder)
    with pytest.raises(RuntimeError, match="teaching this server already"):
        attach(holder)


def test_other_tokens_are_noticed(hold, attach):
    with pytest.raises(RuntimeError, match="--chat-template"):
        attach(hold(FAKE_TOKENS="[1, 2, 3]"), compare_tokens=True)


def test_the_holders_end_is_survived(hold, attach, tiny):
    holder = hold()
    lathe = attach(holder)
    lathe.call("/v1/learn", FACT)
    holder.close()
    assert lathe.process.wait(timeout=60) == 1
    assert "vLLM is gone" in lathe.process.stderr.read()
    log = subprocess.run([LATHE, "log", tiny, "--json"], capture_output=True, text=True, check=True).stdout
    assert json.loads(log)  # what was learned is durable


def test_a_frozen_trainer_is_ended_by_its_lease(hold):
    holder = hold()
    code = ("import socket, json, sys, time\ns = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); f = s.makefile('rwb')\n"
            "for m in ({'op': 'hello', 'protocol': 1}, {'op': 'begin', 'lease_seconds': 1}, {'op': 'write'}):\n"
            "    f.write(json.dumps(m).encode() + b'\\n'); f.flush(); f.readline()\n"
            "time.sleep(60)\n")
    before = holder.weights()
    trainer = subprocess.Popen([sys.executable, "-c", code, holder.socket])
    assert trainer.wait(timeout=20) == -signal.SIGKILL
    wait_for(lambda: holder.state()["state"] == "idle", 10)
    assert holder.state()["restored"] == 1
    assert holder.weights() == before
