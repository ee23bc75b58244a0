"""The weights of a CPU worker in one shared memory file, so that another process can map them.

The file is a memfd: it has no name, needs no room in /dev/shm, and is gone with the last process that has it. Others of the
same user open it as /proc/PID/fd/N. It is sealed against shrinking, so that a mapping of it can never fault.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

ALIGNMENT = 4096  # a page: no two tensors share one, and every vector load is aligned


def sealed_memory(name: str, size: int) -> int:
    """The descriptor of a zero-filled shared memory file that can neither shrink nor grow."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return fd


def place(sizes: Iterable[int]) -> tuple[list[int], int]:
    """Offsets for blocks of these sizes, and the size of all together."""
    offsets, end = [], 0
    for size in sizes:
        offsets.append(end)
        end += -(-size // ALIGNMENT) * ALIGNMENT
    return offsets, max(end, ALIGNMENT)


class Arena:
    """Takes over the memory of a model's parameters. Lives as long as the model: the tensors look into it."""

    def __init__(self, model: torch.nn.Module) -> None:
        import torch

        # One entry per distinct piece of memory: tied parameters stay tied.
        first: dict[int, torch.Tensor] = {}
        for parameter in model.parameters():
            if parameter.numel() > 0:
                first.setdefault(parameter.data_ptr(), parameter.data)
        offsets, self.size = place(tensor.nbytes for tensor in first.values())
        self.fd = sealed_memory("lathe-weights", self.size)
        self._map = mmap.mmap(self.fd, self.size)
        views: dict[int, torch.Tensor] = {}
        for (pointer, tensor), offset in zip(first.items(), offsets, strict=True):
            if not tensor.is_contiguous():
                continue  # stays where it is; the manifest will refuse it by name
            view = torch.frombuffer(self._map, dtype=tensor.dtype, count=tensor.numel(), offset=offset)
            views[pointer] = view.view(tensor.shape)
            views[pointer].copy_(tensor)
        for parameter in model.parameters():
            view_of_it = views.get(parameter.data_ptr())
            if view_of_it is not None and view_of_it.shape == parameter.shape:
                parameter.data = view_of_it
        self.begin = torch.frombuffer(self._map, dtype=torch.uint8).data_ptr()

    def offset(self, tensor: torch.Tensor) -> int | None:
        """Where in the file the tensor begins; None if it is not there."""
        offset = tensor.data_ptr() - self.begin
        return offset if offset >= 0 and offset + tensor.nbytes <= self.size else None

    def describe(self) -> dict[str, object]:
        """The arena as a memory of a manifest."""
        return {"kind": "shared_memory", "path": f"/proc/{os.getpid()}/fd/{self.fd}", "bytes": self.size}
