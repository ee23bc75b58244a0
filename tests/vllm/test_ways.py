"""Other ways to run: the session in a process of its own, what is refused, the architectures."""

import json
import os
import shutil
import subprocess

import models
import pytest
from conftest import ANSWER, LATHE, REPOSITORY, free_port, vllm_environment


def test_the_session_beside_vllm(serve, attach, directory, folder):
    """As with versions without endpoint plugins: no plugin is named, so only the general one loads."""
    vllm = serve(directory, plugins=None)
    beside = subprocess.Popen([vllm.environment["VLLM_PYTHON"], "-m", "lathe_vllm", "--url", vllm.url, "--socket", folder / "beside.sock"],
                              env=vllm.environment, stdout=subprocess.PIPE, text=True)
    try:
        assert "lathe attach" in beside.stdout.readline()
        lathe = attach(vllm, where=["--vllm", vllm.url, "--socket", folder / "beside.sock"])
        assert lathe.teach()["status"] == "succeeded"
        assert vllm.ask().startswith(ANSWER)
        assert lathe.stop() == 0
    finally:
        beside.terminate()
        beside.wait(timeout=30)
        vllm.close()


def test_the_example(smollm2_model, folder):
    """examples/vllm/run.sh: ask, teach, ask, sync, restart vLLM from the directory, ask."""
    model, commands = shutil.copytree(smollm2_model, folder / "example"), folder / "bin"
    commands.mkdir()
    vllm = commands / "vllm"
    vllm.write_text(f'#!/bin/sh\nexec {os.environ["VLLM_PYTHON"]} -m vllm.entrypoints.cli.main "$@"\n')
    vllm.chmod(0o755)
    (commands / "lathe").symlink_to(LATHE)
    environment = {**vllm_environment(), "PATH": f"{commands}:{os.environ['PATH']}", "VLLM_PORT": str(free_port()), "LATHE_PORT": str(free_port()),
                   "VLLM_ARGS": "--enforce-eager --dtype bfloat16 --max-model-len 512 --max-num-seqs 4"}
    run = subprocess.run([REPOSITORY / "examples/vllm/run.sh", model], cwd=folder, env=environment, capture_output=True, text=True,
                         timeout=900, check=False)
    said = [line.removeprefix("  vLLM: ") for line in run.stdout.splitlines() if line.startswith("  vLLM: ")]
    assert run.returncode == 0, run.stdout + run.stderr
    assert len(said) == 3 and not said[0].startswith(ANSWER) and said[1].startswith(ANSWER) and said[2] == said[1]


def doctor(vllm):
    run = subprocess.run([LATHE, "doctor", "--vllm", vllm.url, "--json"], capture_output=True, text=True, check=False)
    return run.returncode, {finding["name"]: finding for finding in json.loads(run.stdout)}


@pytest.mark.parametrize("name", ["qwen2", "qwen3", "qwen3_5"])
def test_each_architecture_maps_byte_for_byte(serve, folder, name):
    """vLLM's own loader put the checkpoint into its fused tensors; Lathe's reading of those is the checkpoint again."""
    model = models.make(name, folder / name)
    vllm = serve(model, "--max-model-len", "64")
    code, findings = doctor(vllm)
    vllm.close()
    assert findings["weights"]["ok"], findings["weights"]["detail"]
    if name == "qwen3_5":
        assert not findings["gated delta layers on a CPU"]["ok"] and code == 1
    else:
        assert code == 0, findings
