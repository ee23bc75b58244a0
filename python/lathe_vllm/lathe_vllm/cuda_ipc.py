"""Inter-process handles of the CUDA allocations that tensors lie in, straight from the driver.

Not torch's own sharing: its handles are prefixed and versioned, and it counts references in a file that an importer in
another language would have to keep. A handle here is the driver's 64 bytes, of an allocation's base.

Needs no vLLM; torch only for the tensors that are passed in.
"""

from __future__ import annotations

import ctypes
import functools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

HANDLE_BYTES = 64
_LEGACY_IPC_CAPABLE = 10  # CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE


class NotShareable(RuntimeError):
    """The allocation has no inter-process handle. The message says how it was made and what to change."""


@functools.cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")


def _check(code: int, what: str) -> None:
    if code != 0:
        text = ctypes.c_char_p()
        _driver().cuGetErrorString(code, ctypes.byref(text))
        raise RuntimeError(f"{what}: {(text.value or b'unknown error').decode()} ({code})")


class _Handle(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_ubyte * HANDLE_BYTES)]


def allocation(pointer: int) -> tuple[int, int]:
    """Base and size of the allocation that `pointer` lies in."""
    base, size = ctypes.c_uint64(), ctypes.c_size_t()
    _check(_driver().cuMemGetAddressRange_v2(ctypes.byref(base), ctypes.byref(size), ctypes.c_uint64(pointer)),
           "cuMemGetAddressRange")
    return base.value, size.value


def handle(base: int) -> bytes:
    """The inter-process handle of the allocation at `base`."""
    capable = ctypes.c_int()
    _check(_driver().cuPointerGetAttribute(ctypes.byref(capable), _LEGACY_IPC_CAPABLE, ctypes.c_uint64(base)),
           "cuPointerGetAttribute")
    if not capable.value:
        raise NotShareable(
            "the weights lie in virtual memory that CUDA's inter-process handles do not cover: expandable segments, sleep mode or "
            "the cumem allocator; start without expandable_segments:True in PYTORCH_CUDA_ALLOC_CONF, without --enable-sleep-mode "
            "and without --enable-cumem-allocator")
    out = _Handle()
    _check(_driver().cuIpcGetMemHandle(ctypes.byref(out), ctypes.c_uint64(base)), "cuIpcGetMemHandle")
    return bytes(out.bytes)


def uuid_of(device: torch.device) -> str:
    """The GPU's UUID as nvidia-smi prints it: device numbers differ between processes, this does not."""
    import torch

    text = str(torch.cuda.get_device_properties(device).uuid)
    return text if text.startswith("GPU-") else "GPU-" + text


class Allocations:
    """Collects allocations as the memories of a manifest: one entry each, however many tensors lie in it."""

    def __init__(self) -> None:
        self.memories: list[dict[str, object]] = []
        self._index: dict[int, int] = {}

    def locate(self, tensor: torch.Tensor) -> tuple[int, int]:
        """Index of the tensor's memory, and its offset therein."""
        base, size = allocation(tensor.data_ptr())
        if base not in self._index:
            self.memories.append(
                {"kind": "cuda_ipc", "uuid": uuid_of(tensor.device), "handle": handle(base).hex(), "bytes": size})
            self._index[base] = len(self.memories) - 1
        return self._index[base], tensor.data_ptr() - base
