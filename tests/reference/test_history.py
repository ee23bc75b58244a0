"""transformers loads what each command leaves, and finds the weights that should be there."""

import os
import pathlib
import shutil
import subprocess

import pytest
import torch
import transformers

LATHE = pathlib.Path(os.environ.get("LATHE_BUILD", pathlib.Path(__file__).resolve().parents[2] / "build")) / "lathe"


def lathe(*arguments):
    subprocess.run([LATHE, *map(str, arguments)], check=True, capture_output=True)


def load(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)


def same(folder, expected):
    found = load(folder).state_dict()
    return set(found) == set(expected) and all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.fixture
def fine_tuned(model_dir, tmp_path):
    """The model after a step of noise, as transformers saves it: other shards, other order."""
    model = load(model_dir)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 1e-4)
    model.save_pretrained(tmp_path / "tuned", max_shard_size="100MB")
    return before, model.state_dict(), tmp_path / "tuned"


def test_sync_rollback_export_publish_and_push(model_dir, fine_tuned, tmp_path):
    before, after, tuned = fine_tuned
    model = shutil.copytree(model_dir, tmp_path / "model")
    lathe("sync", model, "--from", tuned)
    assert same(model, after)
    lathe("publish", model, tmp_path / "live")
    assert same(tmp_path / "live", after)
    lathe("push", model, tmp_path / "copy")
    lathe("rollback", model, 0)
    assert same(model, before)
    assert same(tmp_path / "live", after), "published means unchanged"
    lathe("publish", model, tmp_path / "live")
    assert same(tmp_path / "live", before)
    lathe("export", model, 1, tmp_path / "exported")
    assert same(tmp_path / "exported", after)
    lathe("push", model, tmp_path / "copy")
    assert same(tmp_path / "copy", before)
    lathe("verify", model)


def test_a_model_of_many_shards(fine_tuned, tmp_path):
    before, after, tuned = fine_tuned
    single = load(tuned)
    single.load_state_dict(before)
    single.save_pretrained(tmp_path / "single")
    lathe("sync", tuned, "--from", tmp_path / "single")
    assert same(tuned, before)
    lathe("publish", tuned, tmp_path / "live")
    assert same(tmp_path / "live", before)
    lathe("rollback", tuned)
    assert same(tuned, after)
    assert same(tmp_path / "live", before)
