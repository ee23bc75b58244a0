"""What the plugin asks of CUDA's allocator while vLLM loads its weights. torch is stood in for: what is said to it is what counts."""

import sys
from types import SimpleNamespace as Module

import pytest
from lathe_vllm import plugin


@pytest.fixture(params=["deprecated name", "newer name"])
def said(request, monkeypatch):
    """The settings in the order in which torch was told them."""
    told = []
    torch = Module(_C=Module(), cuda=Module(memory=Module(_set_allocator_settings=told.append)))
    if request.param == "newer name":
        torch = Module(_C=Module(_accelerator_setAllocatorSettings=told.append), cuda=Module(memory=Module()))
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF", raising=False)
    monkeypatch.delenv("PYTORCH_ALLOC_CONF", raising=False)
    return told


@pytest.mark.parametrize("variable", ["PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"])
def test_expandable_segments_are_off_meanwhile_and_other_settings_stay(said, monkeypatch, variable):
    monkeypatch.setenv(variable, "max_split_size_mb:128,expandable_segments:True")
    with pytest.raises(RuntimeError, match="no such shard"), plugin._without_expandable_segments():
        assert said == ["max_split_size_mb:128,expandable_segments:False"]
        raise RuntimeError("no such shard")
    assert said[1:] == ["max_split_size_mb:128,expandable_segments:True"]


def test_without_them_the_allocator_is_left_alone(said, monkeypatch):
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:128")
    with plugin._without_expandable_segments():
        pass
    assert said == []
