"""build/parity on cases that are in no repository: other sizes, other seeds, and the head sizes of real models."""

import json
import os
import pathlib
import shutil
import subprocess

import pytest
import safetensors.torch
import torch
import transformers
from make_case import make_reference, random_ids_and_labels, write_case

ROOT = pathlib.Path(__file__).resolve().parents[2]
PARITY = pathlib.Path(os.environ.get("LATHE_BUILD", ROOT / "build")) / "parity"
WIDE = ROOT.parent / "shared" / "golden"


def parity(folder, *arguments):
    done = subprocess.run([PARITY, folder, *arguments], capture_output=True, text=True)
    assert done.returncode in (0, 1) and done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


SIZES = dict(hidden_size=48, intermediate_size=80, num_hidden_layers=3, vocab_size=131, max_position_embeddings=400,
             eos_token_id=None, bos_token_id=None, pad_token_id=None)
HYBRID = SIZES | dict(num_hidden_layers=4, num_attention_heads=2, num_key_value_heads=1, head_dim=64,
                      linear_key_head_dim=24, linear_value_head_dim=16)
CASES = {
    "llama": lambda: transformers.LlamaConfig(**SIZES, num_attention_heads=6, num_key_value_heads=3, attention_bias=True, mlp_bias=True),
    "llama_tied": lambda: transformers.LlamaConfig(**SIZES, num_attention_heads=4, num_key_value_heads=4, tie_word_embeddings=True,
                                                   rms_norm_eps=1e-5),
    "qwen2": lambda: transformers.Qwen2Config(**SIZES, num_attention_heads=4, num_key_value_heads=1),
    "qwen3": lambda: transformers.Qwen3Config(**SIZES, num_attention_heads=5, num_key_value_heads=5, head_dim=20),
    "qwen3_5_ratio_1": lambda: transformers.Qwen3_5TextConfig(**HYBRID, linear_num_key_heads=3, linear_num_value_heads=3),
    "qwen3_5_ratio_3": lambda: transformers.Qwen3_5TextConfig(**HYBRID, linear_num_key_heads=2, linear_num_value_heads=6,
                                                              tie_word_embeddings=True),
}


def move_off_initial_values(model, generator):
    """So that a norm, bias or gate that was forgotten shows."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("name", CASES)
def test_other_sizes_and_seeds(name, tmp_path):
    seed = sum(name.encode())
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(CASES[name]()).eval()
    move_off_initial_values(model, generator)
    ids, labels = random_ids_and_labels(model.config.vocab_size, 141, 77, generator)
    write_case(tmp_path, model, make_reference(model, ids, labels, 77, ids[:1, :19]))
    for arguments in ([], ["--rows-per-chunk", "13"]):
        code, errors = parity(tmp_path, *arguments)
        assert code == 0, errors


@pytest.mark.parametrize("name", ["qwen3_wide", "qwen3_5_wide"])
def test_head_sizes_of_real_models(name, tmp_path):
    """Their stored fp32 references were made before the weights were rounded to bf16; here is one of the stored weights."""
    if not (WIDE / name).exists():
        pytest.skip(f"no folder {WIDE / name}")
    shutil.copytree(WIDE / name, tmp_path, dirs_exist_ok=True)
    stored = safetensors.torch.load_file(tmp_path / "reference.safetensors")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    reference = make_reference(model, stored["input_ids"], stored["labels"], int(stored["frozen.context"]), stored["greedy.prompt"])
    (tmp_path / "reference.safetensors").unlink()
    write_case(tmp_path, model, reference, save_model=False)
    code, errors = parity(tmp_path)
    assert code == 0, errors
