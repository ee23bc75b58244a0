"""Which configurations are refused, and that each refusal names its flag."""

from types import SimpleNamespace as Config

import pytest
from lathe_vllm import conditions


def config(**changes):
    """A VllmConfig that can be taught, with attributes replaced by dotted path."""
    whole = Config(parallel_config=Config(tensor_parallel_size=1, pipeline_parallel_size=1, data_parallel_size=1, enable_eplb=False),
                   model_config=Config(quantization=None, dtype="torch.bfloat16", enable_sleep_mode=False, enable_cumem_allocator=False,
                                       enforce_eager=True, hf_text_config=Config(model_type="qwen3")),
                   lora_config=None, offload_config=Config(uva=Config(cpu_offload_gb=0), prefetch=Config(offload_group_size=0)),
                   cache_config=Config(), speculative_config=None, kv_transfer_config=None)
    for path, value in changes.items():
        *parents, name = path.split("__")
        place = whole
        for parent in parents:
            place = getattr(place, parent)
        setattr(place, name, value)
    return whole


@pytest.mark.parametrize("platform", ["cpu", "cuda"])
def test_a_plain_server_is_fine(platform):
    assert conditions.refusals(config(), platform) == []
    assert conditions.warnings(config(), platform) == []


@pytest.mark.parametrize("changes, condition, remedy", [
    ({"parallel_config__tensor_parallel_size": 2}, "tensor parallelism", "--tensor-parallel-size 1"),
    ({"parallel_config__pipeline_parallel_size": 2}, "pipeline parallelism", "--pipeline-parallel-size 1"),
    ({"parallel_config__data_parallel_size": 2}, "data parallelism", "--data-parallel-size 1"),
    ({"parallel_config__enable_eplb": True}, "expert load balancing", "--enable-eplb"),
    ({"model_config__quantization": "fp8"}, "quantization", "--quantization"),
    ({"model_config__dtype": "torch.float16"}, "dtype", "--dtype bfloat16"),
    ({"lora_config": Config()}, "LoRA", "--enable-lora"),
    ({"model_config__enable_sleep_mode": True}, "sleep mode", "without them"),
    ({"model_config__enable_cumem_allocator": True}, "sleep mode", "without them"),
    ({"offload_config__uva__cpu_offload_gb": 4}, "offloading", "--cpu-offload-gb"),
    ({"offload_config__prefetch__offload_group_size": 4}, "offloading", "--offload-group-size"),
    ({"model_config__hf_text_config": Config(model_type="qwen3_moe", num_experts=128)}, "mixture of experts", "dense"),
])
def test_what_cannot_be_taught_is_refused(changes, condition, remedy):
    (found,) = conditions.refusals(config(**changes), "cuda")
    assert found["condition"] == condition and remedy in found["remedy"]


def test_delta_layers_are_refused_on_cpus_only():
    hybrid = config(model_config__hf_text_config=Config(model_type="qwen3_5_text", layer_types=["linear_attention", "full_attention"]))
    assert [found["condition"] for found in conditions.refusals(hybrid, "cpu")] == ["gated delta layers on a CPU"]
    assert conditions.refusals(hybrid, "cuda") == []


def test_other_platforms_are_refused():
    assert conditions.refusals(config(), "xpu")[0]["condition"] == "platform"


def test_drawbacks_are_told():
    found = conditions.warnings(config(speculative_config=Config(method="mtp"), kv_transfer_config=Config(kv_connector="X"),
                                       model_config__enforce_eager=False), "cpu")
    assert [item["condition"] for item in found] == ["speculative decoding", "KV connector", "compiled graphs on a CPU"]


def test_a_version_that_lacks_attributes_is_no_failure():
    assert conditions.refusals(Config(model_config=Config(dtype="bfloat16")), "cuda") == []
