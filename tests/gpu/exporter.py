"""Holds a model's weights on a GPU as vLLM does, without vLLM: fused tensors in the caching allocator's memory, many segments,
offsets inside them, lathe-vllm's own handles, session and watchdog. For gpu_attach_test and whoever wants to look.

usage: exporter.py make KIND DIR       writes a random model directory: qwen3 or qwen3_5, of a size that spans many segments
       exporter.py serve DIR SOCKET    prints "ready", then obeys lines: "save PATH" writes all tensors' bytes by name; "quit"

Needs torch with CUDA and, on PYTHONPATH, lathe_vllm. PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True makes memory that must
be refused.
"""

import asyncio
import ctypes
import json
import os
import pathlib
import struct
import sys

import torch

HIDDEN, INNER, LAYERS, VOCABULARY, HEAD, HEADS, KV_HEADS = 1024, 4096, 4, 16384, 128, 8, 4
DELTA = {"linear_num_key_heads": 4, "linear_num_value_heads": 8, "linear_key_head_dim": 128, "linear_value_head_dim": 128,
         "linear_conv_kernel_dim": 4}
COMMON = {"vocab_size": VOCABULARY, "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": LAYERS, "dtype": "bfloat16",
          "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": HEAD, "max_position_embeddings": 4096,
          "rms_norm_eps": 1e-6, "hidden_act": "silu", "attention_bias": False, "eos_token_id": 2}
CONFIGS = {
    "qwen3": {**COMMON, "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "rope_theta": 10000.0, "tie_word_embeddings": True},
    "qwen3_5": {**COMMON, "model_type": "qwen3_5_text", "architectures": ["Qwen3_5ForCausalLM"], "tie_word_embeddings": False,
                "layer_types": ["linear_attention"] * 3 + ["full_attention"], "full_attention_interval": 4,
                "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25}, **DELTA},
}
FUSED = {"q_proj": ("qkv_proj", 0), "k_proj": ("qkv_proj", 1), "v_proj": ("qkv_proj", 2), "gate_proj": ("gate_up_proj", 0),
         "up_proj": ("gate_up_proj", 1), "in_proj_qkv": ("in_proj_qkvz", 0), "in_proj_z": ("in_proj_qkvz", 1),
         "in_proj_b": ("in_proj_ba", 0), "in_proj_a": ("in_proj_ba", 1)}
DTYPES = {"BF16": torch.bfloat16, "F32": torch.float32}


def shapes(kind):
    """Checkpoint name -> shape."""
    tensors = {"model.embed_tokens.weight": [VOCABULARY, HIDDEN], "model.norm.weight": [HIDDEN]}
    if kind == "qwen3_5":
        tensors["lm_head.weight"] = [VOCABULARY, HIDDEN]
    keys, values = 4 * 128, 8 * 128
    for layer in range(LAYERS):
        p = f"model.layers.{layer}."
        tensors |= {p + "input_layernorm.weight": [HIDDEN], p + "post_attention_layernorm.weight": [HIDDEN],
                    p + "mlp.gate_proj.weight": [INNER, HIDDEN], p + "mlp.up_proj.weight": [INNER, HIDDEN], p + "mlp.down_proj.weight": [HIDDEN, INNER]}
        if kind == "qwen3_5" and layer != 3:
            p += "linear_attn."
            tensors |= {p + "in_proj_qkv.weight": [2 * keys + values, HIDDEN], p + "in_proj_z.weight": [values, HIDDEN],
                        p + "in_proj_b.weight": [8, HIDDEN], p + "in_proj_a.weight": [8, HIDDEN], p + "conv1d.weight": [2 * keys + values, 1, 4],
                        p + "A_log": [8], p + "dt_bias": [8], p + "norm.weight": [128], p + "out_proj.weight": [HIDDEN, values]}
        else:
            p += "self_attn."
            q = HEADS * HEAD * (2 if kind == "qwen3_5" else 1)
            tensors |= {p + "q_proj.weight": [q, HIDDEN], p + "k_proj.weight": [KV_HEADS * HEAD, HIDDEN], p + "v_proj.weight": [KV_HEADS * HEAD, HIDDEN],
                        p + "q_norm.weight": [HEAD], p + "k_norm.weight": [HEAD], p + "o_proj.weight": [HIDDEN, HEADS * HEAD]}
    return tensors


def raw(tensor):
    """A tensor's bytes. Not bytes(storage), which calls Python once per byte: minutes for this model."""
    here = tensor.detach().cpu().contiguous()
    return ctypes.string_at(here.data_ptr(), here.numel() * here.element_size())


def make(kind, folder):
    """A random model directory of one shard."""
    torch.manual_seed(1)
    folder.mkdir(parents=True)
    header, pieces, end = {}, [], 0
    for name, shape in shapes(kind).items():
        dtype = "F32" if name.endswith("A_log") else "BF16"
        values = torch.ones(shape) if "norm" in name else 0.02 * torch.randn(shape)
        pieces.append(raw(values.to(DTYPES[dtype])))
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + len(pieces[-1])]}
        end += len(pieces[-1])
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + b"".join(pieces))
    (folder / "config.json").write_text(json.dumps(CONFIGS[kind]))


def checkpoint(folder):
    """(name, tensor) of a directory of one shard."""
    data = bytearray((folder / "model.safetensors").read_bytes())
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    for name, entry in header.items():
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        yield name, torch.frombuffer(data, dtype=torch.uint8, offset=begin, count=end - begin).clone().view(DTYPES[entry["dtype"]]).view(entry["shape"])


class Weights:
    """Fused tensors, allocated one by one as a model's layers are."""

    def __init__(self, folder):
        self.folder = folder
        groups = {}
        for name, tensor in checkpoint(folder):
            head, _, tail = name.rpartition(".")
            path, _, component = head.rpartition(".")
            fused, position = FUSED.get(component, (component, 0))
            groups.setdefault(f"{path}.{fused}.{tail}" if path else name, {})[position] = tensor
        self.tensors = {name: torch.cat([parts[i] for i in sorted(parts)]).cuda() for name, parts in groups.items()}
        torch.cuda.synchronize()

    def restore(self):
        for name, tensor in Weights(self.folder).tensors.items():
            self.tensors[name].copy_(tensor)
        torch.cuda.synchronize()

    def manifest(self):
        from lathe_vllm import worker

        class Here:
            lathe_arena = None

        exporter = worker._Exporter(Here())
        for name, tensor in self.tensors.items():
            exporter.add(name, torch.nn.Parameter(tensor, requires_grad=False))
        return {"format": "lathe manifest 1", "engine": {"name": "exporter", "version": torch.__version__},
                "model": {"directory": str(self.folder), "architecture": ""}, "tensor_parallel": {"size": 1, "rank": 0}, "pid": os.getpid(),
                "refusals": exporter.refusals, "warnings": [], "memories": exporter.memories(), "tensors": exporter.tensors}

    def save(self, path):
        torch.cuda.synchronize()
        with open(path, "wb") as file:
            for name in sorted(self.tensors):
                file.write(raw(self.tensors[name]))


class Engine:
    """What a session asks of an engine; there is nothing to pause here."""

    def __init__(self, weights):
        self.weights = weights

    async def pause(self):
        torch.cuda.synchronize()

    async def resume(self):
        pass

    async def tag(self, version):
        pass

    async def call(self, method, *arguments):
        if method == "lathe_manifest":
            return [self.weights.manifest()]
        if method == "lathe_restore":
            self.weights.restore()
            return [{"restored": len(self.weights.tensors)}]
        return [True]


async def serve(folder, path):
    from lathe_vllm import session

    weights = Weights(folder)
    server = session.SessionServer(Engine(weights), path)
    await server.start()
    print("ready", flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        command, _, argument = line.strip().partition(" ")
        if command == "save":
            weights.save(argument)
            print("saved", flush=True)
        elif command == "quit":
            break
    await server.stop()


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(sys.argv[2], pathlib.Path(sys.argv[3]))
    else:
        asyncio.run(serve(pathlib.Path(sys.argv[2]).absolute(), pathlib.Path(sys.argv[3])))
