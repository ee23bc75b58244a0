"""Other ways to run: the session in a process of its own, what is refused, the architectures."""

import json
import os
import shutil
import subprocess

import models
import pytest
from conftest import ANSWER, LATHE, ON_GPU, OPTIONS, QUESTION, REPOSITORY, at_least, free_port, vllm_environment


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
                   "VLLM_ARGS": " ".join(OPTIONS)}
    run = subprocess.run([REPOSITORY / "examples/vllm/run.sh", model], cwd=folder, env=environment, capture_output=True, text=True,
                         timeout=900, check=False)
    said = [line.removeprefix("  vLLM: ") for line in run.stdout.splitlines() if line.startswith("  vLLM: ")]
    assert run.returncode == 0, run.stdout + run.stderr
    assert len(said) == 3 and not said[0].startswith(ANSWER) and said[1].startswith(ANSWER) and said[2] == said[1]


def doctor(vllm):
    run = subprocess.run([LATHE, "doctor", "--vllm", vllm.url, "--json"], capture_output=True, text=True, check=False)
    return run.returncode, {finding["name"]: finding for finding in json.loads(run.stdout)}


@pytest.mark.parametrize("name", list(models.KINDS))
def test_each_architecture_maps_byte_for_byte(serve, attach, folder, name):
    """vLLM's own loader put the checkpoint into its fused tensors; Lathe's reading of those is the checkpoint again."""
    if name == "qwen3_5" and not at_least("0.27"):
        pytest.skip("this vLLM knows it as released only, wrapped")
    model = models.make(name, folder / name)
    arguments = ["--max-model-len", "64", *(["--language-model-only"] if name == "qwen3_5_wrapped" else [])]
    vllm = serve(model, *arguments)
    code, findings = doctor(vllm)
    assert findings["weights"]["ok"], findings["weights"]["detail"]
    if name.startswith("qwen3_5") and not ON_GPU:
        assert not findings["gated delta layers on a CPU"]["ok"] and code == 1
    else:
        assert code == 0, findings
    if ON_GPU:  # whose kernels differ between architectures; on a CPU test_teaching.py says as much as this
        computes_from_what_is_taught(vllm, attach, lambda: serve(model, *arguments))
    vllm.close()


@pytest.mark.skipif(not ON_GPU, reason="about CUDA's allocator")
def test_expandable_segments_are_off_while_weights_load(serve, directory):
    """Such memory has no inter-process handle. What vLLM allocates after the weights may be there."""
    vllm = serve(directory, PYTORCH_CUDA_ALLOC_CONF="expandable_segments:True")
    code, findings = doctor(vllm)
    vllm.close()
    assert code == 0 and findings["weights"]["ok"], findings


@pytest.mark.skipif(not ON_GPU, reason="on a CPU it does nothing")
def test_sleep_mode_is_refused(serve, attach, directory):
    vllm = serve(directory, "--enable-sleep-mode")
    code, findings = doctor(vllm)
    with pytest.raises(RuntimeError, match="--enable-sleep-mode"):
        attach(vllm)
    vllm.close()
    assert code == 1 and not findings["sleep mode"]["ok"]


def computes_from_what_is_taught(vllm, attach, serve_again):
    """No kernel reads a copy of a weight made at the start: what it computes is what a fresh vLLM computes."""
    before = vllm.prompt_logprobs(QUESTION)
    lathe = attach(vllm)
    assert lathe.teach(steps=2, until_loss=0)["status"] == "succeeded"
    assert lathe.call("/v1/sync", {})["version"] == 2
    assert lathe.stop() == 0
    taught = vllm.prompt_logprobs(QUESTION)
    assert taught != before
    fresh = serve_again()
    assert fresh.prompt_logprobs(QUESTION) == taught
    fresh.close()
