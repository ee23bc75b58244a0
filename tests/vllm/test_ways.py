"""Other ways to run: the session in a process of its own, what is refused, the architectures."""

import json
import subprocess

import models
import pytest
from conftest import ANSWER, LATHE


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
