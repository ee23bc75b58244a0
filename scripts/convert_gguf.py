"""Converts a GGUF of the llama family into an ordinary Hugging Face model directory, weights in bf16.

usage: convert_gguf.py MODEL.gguf DIRECTORY

Knows what such a conversion gets wrong silently: GGUF stores the rows of q_proj and k_proj in another order; the SmolLM
tokenizer isolates digits before anything else; pad is eos; ids are the row numbers of the vocabulary. Refuses what it does not know.
"""

import json
import pathlib
import struct
import sys

import gguf
import numpy as np

INITIALIZER_RANGE = {576: 1 / 24}  # hidden size -> value; GGUF does not carry it and only training from scratch uses it


def fields_of(reader):
    return {name: field.contents() for name, field in reader.fields.items()}


def config_of(fields):
    arch = fields["general.architecture"]
    if arch != "llama":
        raise SystemExit(f"architecture '{arch}' is not supported, only 'llama'")
    if unknown := [name for name in fields if ".rope.scaling" in name]:
        raise SystemExit(f"rope scaling is not supported: {unknown}")
    hidden = fields["llama.embedding_length"]
    heads = fields["llama.attention.head_count"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "head_dim": hidden // heads,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": INITIALIZER_RANGE.get(hidden, 0.02),
        "intermediate_size": fields["llama.feed_forward_length"],
        "max_position_embeddings": fields["llama.context_length"],
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": heads,
        "num_hidden_layers": fields["llama.block_count"],
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "pad_token_id": fields["tokenizer.ggml.padding_token_id"],
        # GGUF holds fp32; the shortest decimal of that fp32 is the number that was meant (1e-05).
        "rms_norm_eps": float(str(np.float32(fields["llama.attention.layer_norm_rms_epsilon"]))),
        "rope_scaling": None,
        "rope_theta": float(fields["llama.rope.freq_base"]),
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": fields["llama.vocab_size"],
    }


LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def hf_name(name):
    if name == "token_embd.weight":
        return "model.embed_tokens.weight"
    if name == "output_norm.weight":
        return "model.norm.weight"
    block, layer, part, kind = (name.split(".") + [""] * 4)[:4]
    if block != "blk" or part not in LAYER_NAMES or kind != "weight":
        raise SystemExit(f"tensor '{name}' is not known")
    return f"model.layers.{layer}.{LAYER_NAMES[part]}.weight"


def hf_row_order(rows, heads):
    """GGUF interleaves the two halves of every head for its rotary embedding; Hugging Face keeps them apart."""
    shape = rows.shape
    return rows.reshape(heads, shape[0] // heads // 2, 2, shape[1]).swapaxes(1, 2).reshape(shape)


def to_bf16(values):
    """fp32 -> bf16 bits, round to nearest even."""
    if not np.isfinite(values).all():
        raise SystemExit("a weight is not finite")
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def weights_of(reader, config):
    """Yields (HF name, fp32 array) of every tensor, one at a time."""
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    for tensor in reader.tensors:
        name = hf_name(tensor.name)
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        values = values.reshape([int(n) for n in reversed(tensor.shape)])
        part = name.split(".")[-2]
        yield name, hf_row_order(values, heads[part]) if part in heads else values


def write_safetensors(path, tensors):
    """`tensors`: {name: bf16 bits}. Names in sorted order, header padded to 8 bytes, as the format's own writer does."""
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name in sorted(tensors):
        size = tensors[name].nbytes
        header[name] = {"dtype": "BF16", "shape": list(tensors[name].shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in sorted(tensors):
            file.write(tensors[name].tobytes())


CONTROL = 3  # GGUF token type of special tokens
NORMAL = 1


def special_tokens(fields):
    """Ids and texts of the special tokens."""
    types = fields["tokenizer.ggml.token_type"]
    if set(types) - {NORMAL, CONTROL}:
        raise SystemExit(f"token types {sorted(set(types))} are not supported")
    return [(i, text) for i, text in enumerate(fields["tokenizer.ggml.tokens"]) if types[i] == CONTROL]


def tokenizer_of(fields):
    if (fields["tokenizer.ggml.model"], fields["tokenizer.ggml.pre"]) != ("gpt2", "smollm"):
        raise SystemExit(f"tokenizer '{fields['tokenizer.ggml.pre']}' is not supported, only 'smollm'")
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": text, **flags} for i, text in special_tokens(fields)],
        "normalizer": None,
        # Digits first: without it "2024" would become other tokens than the model was trained on.
        "pre_tokenizer": {"type": "Sequence",
                          "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level]},
        "post_processor": None,
        "decoder": {**byte_level, "add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {text: i for i, text in enumerate(fields["tokenizer.ggml.tokens"])},
            "merges": fields["tokenizer.ggml.merges"],
        },
    }


def tokenizer_config_of(fields):
    tokens = fields["tokenizer.ggml.tokens"]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    bos, eos = tokens[fields["tokenizer.ggml.bos_token_id"]], tokens[fields["tokenizer.ggml.eos_token_id"]]
    return {
        "add_prefix_space": False,
        "added_tokens_decoder": {str(i): {"content": text, **flags} for i, text in special_tokens(fields)},
        "additional_special_tokens": [bos, eos],
        "bos_token": bos,
        "chat_template": fields["tokenizer.chat_template"],
        "clean_up_tokenization_spaces": False,
        "eos_token": eos,
        "model_max_length": fields["llama.context_length"],
        "pad_token": tokens[fields["tokenizer.ggml.padding_token_id"]],
        # Not GPT2Tokenizer: that class may rebuild its own pre-tokenizer and lose the Digits step.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": tokens[fields["tokenizer.ggml.unknown_token_id"]],
    }


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def convert(source, folder):
    reader = gguf.GGUFReader(source)
    fields = fields_of(reader)
    config = config_of(fields)
    if any(tensor.name == "output.weight" for tensor in reader.tensors):
        raise SystemExit("an output head of its own is not supported: this model family ties it to the embedding")
    folder.mkdir(parents=True)
    write_safetensors(folder / "model.safetensors", {name: to_bf16(x) for name, x in weights_of(reader, config)})
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json",
               {"_from_model_config": True, **{k: config[k] for k in ("bos_token_id", "eos_token_id", "pad_token_id")}})
    write_json(folder / "tokenizer.json", tokenizer_of(fields))
    write_json(folder / "tokenizer_config.json", tokenizer_config_of(fields))
    write_json(folder / "special_tokens_map.json",
               {k: v for k, v in tokenizer_config_of(fields).items() if k.endswith("_token") or k.endswith("_tokens")})


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__.split("\n\n")[1])
    convert(sys.argv[1], pathlib.Path(sys.argv[2]))
