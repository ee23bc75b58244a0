"""A trainer that dies, at any moment: vLLM goes on within seconds, with the weights of one version."""

import contextlib
import http.client
import os
import random
import subprocess
import sys
import threading
import time

from conftest import REPOSITORY, Trainer, wait_for

KILLS = int(os.environ.get("LATHE_KILLS", "10"))


def trainer_that_dies(path, *operations):
    """A process that says hello and these operations, tears a tensor where it may write, then is killed."""
    code = ("import os, sys\nfrom support import Trainer\ntrainer = Trainer(sys.argv[1])\n"
            "for operation in sys.argv[2:]:\n    assert trainer.call(operation)['ok']\n"
            "    if operation == 'write': trainer.write({next(iter(trainer.tensors)): b'torn' * 4096})\n"
            "os.kill(os.getpid(), 9)\n")
    died = subprocess.run([sys.executable, "-c", code, path, *operations], env={**os.environ, "PYTHONPATH": REPOSITORY / "tests"}, check=False)
    assert died.returncode == -9


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
    trainer_that_dies(path, "begin")
    assert recovered(vllm) < 15
    assert vllm.state()["resumed_unwritten"] == counted["resumed_unwritten"] + 1
    with Trainer(path) as trainer:
        assert trainer.digest() == before


def test_dead_during_the_write(vllm):
    path = vllm.state()["socket"]
    with Trainer(path) as trainer:
        before = trainer.digest()
    counted = vllm.state()
    trainer_that_dies(path, "begin", "write")
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
    pause = lathe.teach(steps=1, until_loss=0)["pause_ms"] / 1e3
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
        while vllm.state()["state"] == "idle" and learning.is_alive():
            pass  # a commit may take no longer than a few of these questions
        time.sleep(generator.uniform(0, 0.8 * pause))
        lathe.kill()
        slowest = max(slowest, recovered(vllm))
        learning.join()
        with Trainer(path) as trainer:
            seen[trainer.digest()] += 1  # a KeyError is a mixture
    after = vllm.state()
    print(f"{KILLS} kills: {seen[zero]} left version 0, {seen[one]} version 1; "
          f"{after['restored'] - before['restored']} restores by watchdog and attach, "
          f"{after['resumed_unwritten'] - before['resumed_unwritten']} before a write; a commit took {pause * 1e3:.0f} ms; slowest recovery {slowest:.1f} s")


def teach_in_vain(lathe):
    with contextlib.suppress(OSError, http.client.HTTPException):
        lathe.teach(steps=1, until_loss=0)
