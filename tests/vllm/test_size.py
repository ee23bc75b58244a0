"""How long vLLM stops for a correction of a model of real size.

Only if asked for: LATHE_LARGE names a folder with 17 GB free; the GPU needs 50 GB. The weights have the shapes of Qwen3-8B and are random.
"""

import json
import os
import pathlib
import shutil

import pytest
from conftest import ON_GPU, REPOSITORY, Trainer
from test_teaching import sorted_pauses

pytestmark = pytest.mark.skipif(not ON_GPU or "LATHE_LARGE" not in os.environ, reason="asks for 50 GB on a GPU: LATHE_LARGE=FOLDER")
HIDDEN, INNER, LAYERS, VOCABULARY, HEAD, HEADS, KV_HEADS = 4096, 12288, 36, 151936, 128, 32, 8
CONFIG = {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "dtype": "bfloat16", "vocab_size": VOCABULARY, "hidden_size": HIDDEN,
          "intermediate_size": INNER, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": HEAD,
          "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "hidden_act": "silu", "attention_bias": False,
          "tie_word_embeddings": False, "eos_token_id": 602, "bos_token_id": None}


def shapes():
    yield from (("model.embed_tokens.weight", [VOCABULARY, HIDDEN]), ("lm_head.weight", [VOCABULARY, HIDDEN]), ("model.norm.weight", [HIDDEN]))
    for layer in range(LAYERS):
        block, attention = f"model.layers.{layer}.", f"model.layers.{layer}.self_attn."
        yield from ((attention + "q_proj.weight", [HEADS * HEAD, HIDDEN]), (attention + "o_proj.weight", [HIDDEN, HEADS * HEAD]),
                    (attention + "k_proj.weight", [KV_HEADS * HEAD, HIDDEN]), (attention + "v_proj.weight", [KV_HEADS * HEAD, HIDDEN]),
                    (attention + "q_norm.weight", [HEAD]), (attention + "k_norm.weight", [HEAD]),
                    (block + "mlp.gate_proj.weight", [INNER, HIDDEN]), (block + "mlp.up_proj.weight", [INNER, HIDDEN]),
                    (block + "mlp.down_proj.weight", [HIDDEN, INNER]),
                    (block + "input_layernorm.weight", [HIDDEN]), (block + "post_attention_layernorm.weight", [HIDDEN]))


@pytest.fixture
def large():
    import torch
    from safetensors.torch import save_file

    folder = pathlib.Path(os.environ["LATHE_LARGE"]) / "lathe-qwen3-8b"
    folder.mkdir()
    try:
        tensors = {name: (torch.randn(shape, device="cuda") * 0.02 if len(shape) == 2 else torch.ones(shape)).bfloat16().cpu() for name, shape in shapes()}
        torch.cuda.empty_cache()
        save_file(tensors, folder / "model.safetensors")
        del tensors
        (folder / "config.json").write_text(json.dumps(CONFIG))
        for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copy(REPOSITORY / "tests/golden/text/own" / file, folder)
        yield folder
    finally:
        shutil.rmtree(folder)


def test_the_pause_is_the_write_and_little_more(serve, attach, large):
    vllm = serve(large, "--gpu-memory-utilization", "0.5")
    lathe = attach(vllm)
    result = lathe.teach(steps=6, until_loss=0)
    print(f"{result['steps']} steps, {result['seconds']:.2f} s, longest pause {result['pause_ms']:.0f} ms, the last {vllm.state()['last_pause_seconds'] * 1e3:.0f} ms")
    lathe.kill()  # no sync: it would write 17 GB
    with Trainer(vllm.state()["socket"]) as trainer:
        nothing_written = sorted_pauses(trainer, 20)
    print(f"pause without a write: median {nothing_written[10] * 1e3:.0f} ms ({nothing_written[0] * 1e3:.0f}-{nothing_written[-1] * 1e3:.0f})")
    assert nothing_written[10] < 0.1
