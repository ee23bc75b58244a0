"""Tiny random models of the architectures, of sizes that vLLM's CPU kernels take."""

import json
import pathlib
import random
import re
import shutil
import struct

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
HIDDEN, INNER, LAYERS, VOCABULARY, HEAD, HEADS, KV_HEADS = 128, 192, 2, 640, 64, 2, 1
DELTA = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 64, "linear_value_head_dim": 64,
         "linear_conv_kernel_dim": 4}
KINDS = {
    "qwen2": {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "tie_word_embeddings": False, "head_dim": HEAD, "attention_bias": False},
    # As released: the text model inside one that also sees, here without its eyes (--language-model-only).
    "qwen3_5_wrapped": {"model_type": "qwen3_5", "architectures": ["Qwen3_5ForConditionalGeneration"], "tie_word_embeddings": False,
                        "vision_config": {"model_type": "qwen3_5", "depth": 1, "hidden_size": 64, "intermediate_size": 64, "num_heads": 1, "out_hidden_size": HIDDEN}},
    "qwen3_5": {"model_type": "qwen3_5_text", "architectures": ["Qwen3_5ForCausalLM"], "tie_word_embeddings": False, "head_dim": HEAD,
                "attention_bias": False, "layer_types": ["linear_attention", "full_attention"], "full_attention_interval": 2,
                "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25}, **DELTA},
}


def attention_tensors(kind, prefix):
    query = HEADS * HEAD * (2 if kind == "qwen3_5" else 1)
    shapes = {"q_proj": query, "k_proj": KV_HEADS * HEAD, "v_proj": KV_HEADS * HEAD}
    tensors = {f"{prefix}{name}.weight": [rows, HIDDEN] for name, rows in shapes.items()}
    if kind == "qwen2":
        tensors |= {f"{prefix}{name}.bias": [rows] for name, rows in shapes.items()}
    else:
        tensors |= {f"{prefix}q_norm.weight": [HEAD], f"{prefix}k_norm.weight": [HEAD]}
    return tensors | {f"{prefix}o_proj.weight": [HIDDEN, HEADS * HEAD]}


def delta_tensors(prefix):
    keys = DELTA["linear_num_key_heads"] * DELTA["linear_key_head_dim"]
    heads, values = DELTA["linear_num_value_heads"], DELTA["linear_num_value_heads"] * DELTA["linear_value_head_dim"]
    return {prefix + "in_proj_qkv.weight": [2 * keys + values, HIDDEN], prefix + "in_proj_z.weight": [values, HIDDEN],
            prefix + "in_proj_b.weight": [heads, HIDDEN], prefix + "in_proj_a.weight": [heads, HIDDEN],
            prefix + "conv1d.weight": [2 * keys + values, 1, DELTA["linear_conv_kernel_dim"]], prefix + "A_log": [heads],
            prefix + "dt_bias": [heads], prefix + "norm.weight": [DELTA["linear_value_head_dim"]], prefix + "out_proj.weight": [HIDDEN, values]}


def tensors_of(kind):
    """name -> shape."""
    if kind == "qwen3_5_wrapped":
        return {re.sub("^model[.]", "model.language_model.", name): shape for name, shape in tensors_of("qwen3_5").items()}
    tensors = {"model.embed_tokens.weight": [VOCABULARY, HIDDEN], "model.norm.weight": [HIDDEN]}
    if not KINDS[kind]["tie_word_embeddings"]:
        tensors["lm_head.weight"] = [VOCABULARY, HIDDEN]
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        delta = KINDS[kind].get("layer_types", [""] * LAYERS)[layer] == "linear_attention"
        tensors |= delta_tensors(prefix + "linear_attn.") if delta else attention_tensors(kind, prefix + "self_attn.")
        tensors |= {prefix + "input_layernorm.weight": [HIDDEN], prefix + "post_attention_layernorm.weight": [HIDDEN],
                    prefix + "mlp.gate_proj.weight": [INNER, HIDDEN], prefix + "mlp.up_proj.weight": [INNER, HIDDEN],
                    prefix + "mlp.down_proj.weight": [HIDDEN, INNER]}
    return tensors


def make(kind, folder):
    """A model directory; bf16, but A_log in fp32 as released."""
    folder.mkdir()
    generator, header, data = random.Random(1), {}, b""
    for name, shape in tensors_of(kind).items():
        count = 1
        for size in shape:
            count *= size
        whole = name.endswith("A_log")
        piece = b"".join(struct.pack("<f", generator.gauss(0, 0.05))[0 if whole else 2 :] for _ in range(count))
        header[name] = {"dtype": "F32" if whole else "BF16", "shape": shape, "data_offsets": [len(data), len(data) + len(piece)]}
        data += piece
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    config = {"vocab_size": VOCABULARY, "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": LAYERS, "dtype": "bfloat16",
              "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "max_position_embeddings": 256, "rms_norm_eps": 1e-6,
              "rope_theta": 10000.0, "hidden_act": "silu", "eos_token_id": 602, "bos_token_id": None}
    if kind == "qwen3_5_wrapped":
        config = {"text_config": {**config, **KINDS["qwen3_5"]}, "dtype": "bfloat16"}
    config |= KINDS[kind]
    (folder / "config.json").write_text(json.dumps(config))
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(REPOSITORY / "tests/golden/text/own" / file, folder)
    return folder
