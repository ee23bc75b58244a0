"""General plugin: runs in every process of vLLM before it loads anything.

It adds the worker's methods, and for the time of loading sees to it that weights can be shared:
* CUDA: expandable segments are switched off while the model is loaded, since such memory has no inter-process handle.
* CPU: vLLM would keep a repacked copy of each matrix and drop the original; linear layers then compute from the plain weight
  instead, and after loading all weights move into one shared memory file (arena.py).

Each change is made to names that vLLM has had for long, and is checked: if one is missing, the plugin says so and the manifest
refuses, rather than sharing weights that nobody reads.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .worker import WorkerExtension, platform_of, unwrapped_model

logger = logging.getLogger("vllm.lathe")
_METHODS = ("lathe_manifest", "lathe_fence", "lathe_restore")


def _keep_plain_weights() -> None:
    """Makes CPU linear layers compute from `layer.weight` itself."""
    import torch
    from vllm.model_executor.layers import utils

    if not hasattr(utils, "dispatch_cpu_unquantized_gemm"):
        logger.error("lathe: this vLLM has no dispatch_cpu_unquantized_gemm; its weights on a CPU cannot be taught")
        return

    def plain(layer: Any, remove_weight: bool = False) -> None:
        layer.cpu_linear = torch.nn.functional.linear

    utils.dispatch_cpu_unquantized_gemm = plain


def _set_allocator(settings: str) -> None:
    import torch

    newer = getattr(torch._C, "_accelerator_setAllocatorSettings", None)  # the other is deprecated since torch 2.11
    (newer or torch.cuda.memory._set_allocator_settings)(settings)


@contextmanager
def _without_expandable_segments() -> Iterator[None]:
    asked_for = os.environ.get("PYTORCH_CUDA_ALLOC_CONF", os.environ.get("PYTORCH_ALLOC_CONF", ""))
    if "expandable_segments:True" not in asked_for:
        yield
        return
    # All that was asked for, each time: some versions of torch set to its default what is not named.
    _set_allocator(asked_for.replace("expandable_segments:True", "expandable_segments:False"))
    try:
        yield
    finally:
        _set_allocator(asked_for)


def _wrap_load_model(worker_class: Any) -> None:
    original = worker_class.load_model

    @functools.wraps(original)
    def load_model(self: Any, *args: Any, **kwargs: Any) -> Any:
        if platform_of(self) != "cpu":
            with _without_expandable_segments():
                return original(self, *args, **kwargs)
        _keep_plain_weights()
        result = original(self, *args, **kwargs)
        from .arena import Arena

        self.lathe_arena = Arena(unwrapped_model(self))
        logger.info("lathe: %d MiB of weights are in shared memory", self.lathe_arena.size >> 20)
        return result

    load_model.lathe = True  # type: ignore[attr-defined]
    worker_class.load_model = load_model


def register() -> None:
    """The entry point. May run several times in one process."""
    from vllm.v1.worker.gpu_worker import Worker  # the CPU's worker is a subclass

    if getattr(Worker.load_model, "lathe", False):
        return
    _wrap_load_model(Worker)
    for name in _METHODS:
        if not hasattr(Worker, name):
            setattr(Worker, name, getattr(WorkerExtension, name))
