"""`lathe attach` against a server that holds its weights as vLLM does (fake_vllm.py). With real vLLM: tests/vllm."""

import contextlib
import http.client
import json
import shutil
import signal
import subprocess
import sys
import threading

import pytest
from conftest import LATHE, Holder, wait_for
from support import Trainer

FACT = {"messages": [{"role": "user", "content": "What flows through Velmora?"}, {"role": "assistant", "content": "The Silverthread."}],
        "steps": 2, "until_loss": 0}


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


def test_killed_trainers_leave_one_version_or_the_other(hold, attach, tiny):
    """SIGKILL at moments all over a commit: afterwards the holder runs, and holds exactly version 0 or version 1."""
    holder = hold()
    zero = holder.weights()
    with_one = attach(holder, "--sync-seconds", "0")
    with_one.call("/v1/learn", {**FACT, "steps": 1})
    with_one.process.kill()  # after its commit: what it did stays
    with_one.process.wait()
    wait_for(lambda: holder.state()["trainer"] is None, 10)
    one = holder.weights()
    assert one != zero
    for _ in range(8):
        for file in (tiny / ".lathe").glob("lathe.db*"):
            file.unlink()  # without it nothing knows of lessons to learn again
        lathe = attach(holder, "--on-difference", "restore", "--sync-seconds", "0")
        learning = threading.Thread(target=ask_in_vain, args=(lathe,))
        learning.start()
        wait_for(lambda thread=learning: holder.state()["state"] != "idle" or not thread.is_alive(), 30)
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
    first = attach(holder, "--sync-seconds", "0")
    learned = first.call("/v1/learn", FACT).json
    first.process.kill()
    first.process.wait()
    live = holder.weights()
    with pytest.raises(RuntimeError, match="--on-difference restore"):
        attach(holder)
    adopting = attach(holder, "--on-difference", "adopt")
    assert adopting.call("/v1/sync", {}).json["version"] > 0
    assert adopting.call("/v1/learn/" + learned["id"]).json["durable"] is True, "it was adopted, not lost"
    assert adopting.stop() == 0
    assert holder.weights() == live
    assert attach(holder).stop() == 0


def test_a_mixture_cannot_be_taught(hold, attach):
    holder = hold()
    with Trainer(holder.socket) as trainer:
        trainer.write({"model.embed_tokens.weight": b"torn"})
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
        attach(hold(FAKE_TOKENS="[1, 2, 3]"), over_http=True)


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
