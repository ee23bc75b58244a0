"""A trainer that dies, at any moment: vLLM goes on within seconds, with the weights of one version."""

import contextlib
import http.client
import json
import os
import random
import subprocess
import sys
import threading
import time

from conftest import Trainer, wait_for

KILLS = int(os.environ.get("LATHE_KILLS", "10"))


def trainer_that_dies(path, *operations):
    """A process that says hello and these operations, then is killed."""
    code = ("import json, os, socket, sys\ns = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); f = s.makefile('rwb')\n"
            "for m in json.loads(sys.argv[2]):\n    f.write(json.dumps(m).encode() + b'\\n'); f.flush(); r = json.loads(f.readline())\n"
            "    if m['op'] == 'write':\n"
            "        rank = h['manifest']['ranks'][0]; p = rank['memories'][0]['path']; d = os.open(p, os.O_RDWR); os.pwrite(d, b'torn' * 4096, 0)\n"
            "    h = r if m['op'] == 'hello' else h\n"
            "os.kill(os.getpid(), 9)\n")
    subprocess.run([sys.executable, "-c", code, path, json.dumps([{"op": "hello", "protocol": 1}, *operations])], check=False)


def recovered(vllm):
    """Seconds until vLLM answers again."""
    begin = time.monotonic()
    vllm.ask("Hello", max_tokens=1)
    wait_for(lambda: vllm.state()["state"] == "idle" and vllm.state()["trainer"] is None, 30, "the end of the watchdog's work")
    return time.monotonic() - begin


def test_dead_before_the_write(vllm):
    path = vllm.state()["socket"]
    with Trainer(path) as trainer:
        before = trainer.digest()
    counted = vllm.state()
    trainer_that_dies(path, {"op": "begin"})
    assert recovered(vllm) < 15
    assert vllm.state()["resumed_unwritten"] == counted["resumed_unwritten"] + 1
    with Trainer(path) as trainer:
        assert trainer.digest() == before


def test_dead_during_the_write(vllm):
    path = vllm.state()["socket"]
    with Trainer(path) as trainer:
        before = trainer.digest()
    counted = vllm.state()
    trainer_that_dies(path, {"op": "begin"}, {"op": "write"})
    assert recovered(vllm) < 30
    assert vllm.state()["restored"] == counted["restored"] + 1
    assert vllm.state()["version"] == "restored"
    with Trainer(path) as trainer:
        assert trainer.digest() == before


def test_killed_at_random_moments_of_commits(vllm, attach):
    path = vllm.state()["socket"]
    with Trainer(path) as trainer:
        zero = trainer.digest()
    lathe = attach(vllm)
    lathe.teach(steps=1, until_loss=0)
    lathe.kill()
    with Trainer(path) as trainer:
        one = trainer.digest()
    assert one != zero
    generator = random.Random(5)
    seen, slowest, before = {zero: 0, one: 0}, 0.0, vllm.state()
    for _ in range(KILLS):
        lathe = attach(vllm, "--on-difference", "restore")
        learning = threading.Thread(target=teach_in_vain, args=(lathe,))
        learning.start()
        wait_for(lambda thread=learning: vllm.state()["state"] != "idle" or not thread.is_alive(), 120, "a commit")
        time.sleep(generator.uniform(0, 0.3))
        lathe.kill()
        slowest = max(slowest, recovered(vllm))
        learning.join()
        with Trainer(path) as trainer:
            seen[trainer.digest()] += 1  # a KeyError is a mixture
    after = vllm.state()
    print(f"{KILLS} kills: {seen[zero]} left version 0, {seen[one]} version 1; "
          f"{after['restored'] - before['restored']} restores by watchdog and attach, "
          f"{after['resumed_unwritten'] - before['resumed_unwritten']} before a write; slowest recovery {slowest:.1f} s")


def teach_in_vain(lathe):
    with contextlib.suppress(OSError, http.client.HTTPException):
        lathe.teach(steps=1, until_loss=0)
