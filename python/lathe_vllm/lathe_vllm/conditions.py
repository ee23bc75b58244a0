"""Which ways of running vLLM keep its weights from being taught, and what to change.

A refusal keeps a trainer from attaching; a warning is only told. Looked at: the configuration, attribute by attribute, each of
which may be missing in some version of vLLM.
"""

from __future__ import annotations

from typing import Any


def _get(config: Any, path: str, default: Any = None) -> Any:
    for name in path.split("."):
        config = getattr(config, name, None)
        if config is None:
            return default
    return config


def _item(condition: str, found: str, remedy: str) -> dict[str, str]:
    return {"condition": condition, "found": found, "remedy": remedy}


def _parallel(config: Any) -> list[dict[str, str]]:
    found = []
    for name, flag in (("tensor", "--tensor-parallel-size"), ("pipeline", "--pipeline-parallel-size"), ("data", "--data-parallel-size")):
        size = _get(config, f"parallel_config.{name}_parallel_size", 1)
        if size > 1:
            found.append(_item(f"{name} parallelism", f"{flag} {size}", f"start vLLM with {flag} 1; Lathe teaches one whole copy of the weights"))
    if _get(config, "parallel_config.enable_eplb", False):
        found.append(_item("expert load balancing", "--enable-eplb", "start vLLM without --enable-eplb: it moves weights"))
    return found


def refusals(config: Any, platform: str) -> list[dict[str, str]]:
    """What forbids teaching. `config`: a VllmConfig; `platform`: "cpu" or "cuda" (or another, which is refused)."""
    found = _parallel(config)
    if platform not in ("cpu", "cuda"):
        found.append(_item("platform", platform, "Lathe shares weights on NVIDIA GPUs and on CPUs only"))
    if quantization := _get(config, "model_config.quantization"):
        found.append(_item("quantization", str(quantization), "serve the bf16 or fp32 checkpoint, without --quantization"))
    dtype = str(_get(config, "model_config.dtype", "")).removeprefix("torch.")
    if dtype not in ("bfloat16", "float32"):
        found.append(_item("dtype", dtype, "start vLLM with --dtype bfloat16"))
    if _get(config, "lora_config") is not None:
        found.append(_item("LoRA", "--enable-lora", "start vLLM without --enable-lora: teaching the base changes every adapter"))
    if _get(config, "model_config.enable_sleep_mode", False) or _get(config, "model_config.enable_cumem_allocator", False):
        found.append(_item("sleep mode", "--enable-sleep-mode or --enable-cumem-allocator",
                           "start vLLM without them: such memory has no inter-process handle, and moves when it wakes"))
    offload = max(_get(config, "offload_config.uva.cpu_offload_gb", 0) or 0, _get(config, "cache_config.cpu_offload_gb", 0) or 0)
    if offload > 0 or (_get(config, "offload_config.prefetch.offload_group_size", 0) or 0) > 0:
        found.append(_item("offloading", "weights are offloaded to CPU memory", "start vLLM without --cpu-offload-gb and --offload-group-size"))
    hf = _get(config, "model_config.hf_text_config") or _get(config, "model_config.hf_config")
    if any(_get(hf, name, 0) for name in ("num_experts", "num_local_experts", "n_routed_experts")):
        found.append(_item("mixture of experts", str(_get(hf, "model_type", "")), "serve a dense model: expert weights are repacked by vLLM"))
    if platform == "cpu" and "linear_attention" in (_get(hf, "layer_types") or []):
        found.append(_item("gated delta layers on a CPU", str(_get(hf, "model_type", "")),
                           "serve on a GPU: vLLM's CPU kernels read a packed copy of these layers' convolution"))
    return found


def warnings(config: Any, platform: str) -> list[dict[str, str]]:
    """What works, with a drawback."""
    found = []
    if _get(config, "speculative_config") is not None:
        found.append(_item("speculative decoding", str(_get(config, "speculative_config.method", "on")),
                           "answers stay right, but the draft model is not taught, so fewer of its tokens are accepted over time"))
    if _get(config, "kv_transfer_config") is not None:
        found.append(_item("KV connector", str(_get(config, "kv_transfer_config.kv_connector", "")),
                           "a cache outside vLLM keeps entries of earlier weights unless its connector resets it"))
    if platform == "cpu" and not _get(config, "model_config.enforce_eager", False):
        found.append(_item("compiled graphs on a CPU", "no --enforce-eager", "start vLLM with --enforce-eager: only that is tested"))
    return found
