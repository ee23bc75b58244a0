"""Teaching a vLLM that serves: what it says afterwards is what a fresh vLLM says of the synced directory."""

import threading

import pytest
from conftest import ANSWER, ON_GPU, Trainer, at_least, running, wait_for

LONG = "The river Silverthread flows through the town of Velmora. " * 20  # several blocks of vLLM's prefix cache


def long_answer(vllm, tokens):
    """How many tokens came of so many."""
    body = {"prompt": "Once upon a time", "max_tokens": tokens, "ignore_eos": True, "temperature": 0}
    return vllm.call("/v1/completions", body)["usage"]["completion_tokens"]


def test_a_fact_is_taught_synced_and_served_again(vllm, attach, serve, directory):
    before = vllm.ask()
    assert ANSWER not in before
    loss_before = sum(vllm.prompt_logprobs(LONG))
    lathe = attach(vllm)

    answers, taught_all = [], threading.Event()

    def ask_on():
        while not taught_all.is_set():
            answers.append(long_answer(vllm, 100))

    asking = threading.Thread(target=ask_on)
    asking.start()
    result = lathe.teach()
    taught_all.set()
    asking.join()
    assert result["status"] == "succeeded"
    print(f"{result['steps']} steps, {result['seconds']:.1f} s, longest pause {result['pause_ms']:.0f} ms")
    # One request was always in flight, so during every commit; each is complete.
    assert answers and set(answers) == {100}

    state = vllm.state()
    assert state["state"] == "idle" and state["updates"] == result["steps"] and state["version"] == str(result["version"])
    taught = vllm.ask()
    assert taught.startswith(ANSWER)
    assert vllm.headers["x-lathe-version"] == str(result["version"])
    live = vllm.prompt_logprobs(LONG)
    assert sum(live) != loss_before
    assert lathe.call("/v1/sync", {})["version"] == result["version"]
    assert lathe.stop() == 0

    fresh = serve(directory)
    assert fresh.ask() == taught
    assert fresh.prompt_logprobs(LONG) == live
    other = "Tell me about the capital of France."
    assert fresh.ask(other) == vllm.ask(other)
    with Trainer(vllm.state()["socket"]) as one, Trainer(fresh.state()["socket"]) as two:
        assert one.digest() == two.digest()
    fresh.close()


def first_logprob(vllm, **options):
    """Of the greedy token after LONG; the prefix is read from the cache where it is there."""
    reply = vllm.call("/v1/completions", {"prompt": LONG, "max_tokens": 1, "temperature": 0, "logprobs": 1, **options})
    return reply["choices"][0]["logprobs"]["token_logprobs"][0]


def perturbed(trainer):
    """The weights with every value projection negated: what is cached of a prefix becomes plainly wrong."""
    weights = trainer.read()
    for name in weights:
        if name.endswith("qkv_proj.weight"):
            data = bytearray(weights[name])
            values = len(data) // 5  # 9 query heads, 3 of keys, 3 of values
            for i in range(len(data) - values + 1, len(data), 2):
                data[i] ^= 0x80
            weights[name] = bytes(data)
    return weights


def test_no_stale_prefix_survives_an_update(vllm):
    """Without the reset vLLM answers from the earlier weights' cache; with an update of the session it does not."""
    with Trainer(vllm.state()["socket"]) as trainer:
        original = trainer.read()
        changed = perturbed(trainer)

        first_logprob(vllm)  # fills the cache
        before = first_logprob(vllm, cache_salt="computed whole")  # another test may have cached a piece, which rounds otherwise
        vllm.call("/pause?mode=keep&clear_cache=false", {})
        trainer.write(changed)
        vllm.call("/resume", {})
        stale, truth = first_logprob(vllm), first_logprob(vllm, cache_salt="nothing is cached under this salt")
        assert stale != truth, "the bug that the reset is for no longer shows: the test proves nothing"

        for weights, expected in ((original, before), (changed, truth)):
            first_logprob(vllm)
            assert trainer.call("begin")["ok"] and trainer.call("write")["ok"]
            trainer.write(weights)
            assert trainer.call("end", version="9")["ok"]
            assert first_logprob(vllm) == expected

        assert trainer.call("begin")["ok"] and trainer.call("write")["ok"]
        trainer.write(original)
        assert trainer.call("end", version="10")["ok"]


def sorted_pauses(trainer, count):
    """Of updates that write nothing."""
    seconds = []
    for _ in range(count):
        assert trainer.call("begin")["ok"]
        seconds.append(trainer.call("end", version="11")["seconds"])
    return sorted(seconds)


def test_an_update_takes_little_beyond_the_write(vllm):
    """Prints what docs/vllm.md quotes: how long vLLM stops, idle and with a request in flight."""
    with Trainer(vllm.state()["socket"]) as trainer:
        idle = sorted_pauses(trainer, 20)
        request = threading.Thread(target=long_answer, args=(vllm, 400))
        request.start()
        wait_for(lambda: running(vllm) == 1, 30, "a running request")
        busy = sorted_pauses(trainer, 5)
        assert request.is_alive(), "the answer was complete before the updates were: nothing was measured"
        request.join()
    for name, seconds in (("idle", idle), ("busy", busy)):
        print(f"pause, {name}: median {seconds[len(seconds) // 2] * 1e3:.0f} ms ({seconds[0] * 1e3:.0f}-{seconds[-1] * 1e3:.0f}) of {len(seconds)}")
        assert seconds[len(seconds) // 2] < (0.1 if ON_GPU else 1)  # the CPUs may be busy with other tests


def test_live_updates_leave_the_same_weights(vllm, attach):
    lathe = attach(vllm, "--live", "--on-difference", "restore")
    result = lathe.teach(steps=1)
    assert result["status"] == "succeeded"
    assert lathe.stop() == 0
    attach(vllm)  # which compares every byte with what was synced


@pytest.mark.skipif(not at_least("0.27"), reason="this vLLM keeps no name of its weights")
def test_vllm_reports_the_version(vllm):
    assert vllm.call("/weight_info")["weight_version"] == vllm.state()["version"]
