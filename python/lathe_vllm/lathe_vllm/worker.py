"""What runs in vLLM's worker: the manifest of its weights, a fence, and restoring them from the model directory.

The methods reach the worker class by the general plugin or by --worker-extension-cls lathe_vllm.worker.WorkerExtension, and are
called by name through vLLM's collective_rpc, between two steps of the engine. Arguments are strings, since over HTTP vLLM
passes no others.
"""

from __future__ import annotations

import fcntl
import json
import os
import pathlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from . import MANIFEST_FORMAT, conditions, cuda_ipc

DTYPES = {"torch.bfloat16": "BF16", "torch.float32": "F32", "torch.float16": "F16"}


def unwrapped_model(worker: Any) -> Any:
    """The torch module with the weights, without what vLLM wraps around it."""
    return worker.model_runner.get_model()


def platform_of(worker: Any) -> str:
    return str(worker.device.type)


class _Exporter:
    """Puts a model's parameters down as memories and tensors of a manifest."""

    def __init__(self, worker: Any) -> None:
        self.arena = getattr(worker, "lathe_arena", None)
        self.allocations = cuda_ipc.Allocations()
        self.tensors: list[dict[str, object]] = []
        self.refusals: list[dict[str, str]] = []

    def refuse(self, name: str, found: str, remedy: str) -> None:
        self.refusals.append({"condition": f"tensor {name}", "found": found, "remedy": remedy})

    def locate(self, name: str, tensor: Any) -> tuple[int, int] | None:
        if tensor.is_cuda:
            try:
                return self.allocations.locate(tensor)
            except cuda_ipc.NotShareable as reason:
                if not self.refusals:  # the first says it for all
                    self.refuse(name, "no inter-process handle", str(reason))
                return None
        if self.arena is None:
            self.refuse(name, "private memory", "install lathe-vllm so that its general plugin loads (VLLM_PLUGINS must include lathe)")
            return None
        offset = self.arena.offset(tensor)
        if offset is None:
            self.refuse(name, "memory outside the arena", "report this, with the model and vLLM's version")
            return None
        return 0, offset

    def add(self, name: str, parameter: Any) -> None:
        tensor = parameter.data
        if tensor.numel() == 0:
            self.refuse(name, "empty: vLLM keeps a repacked copy instead", "report this, with the model and vLLM's version")
            return
        if not tensor.is_contiguous():
            self.refuse(name, "not contiguous", "report this, with the model and vLLM's version")
            return
        place = self.locate(name, tensor)
        if place is None:
            return
        entry: dict[str, object] = {"name": name, "dtype": DTYPES.get(str(tensor.dtype), str(tensor.dtype)),
                                    "shape": list(tensor.shape), "memory": place[0], "offset": place[1]}
        # Which dimension tensor parallelism cuts, where vLLM says so.
        shard = {key: int(dim) for key in ("output_dim", "input_dim") if (dim := getattr(parameter, key, None)) is not None}
        if shard:
            entry["shard"] = shard
        self.tensors.append(entry)

    def memories(self) -> list[dict[str, object]]:
        return [self.arena.describe()] if self.arena is not None else self.allocations.memories


@contextmanager
def _history_lock(directory: pathlib.Path) -> Iterator[None]:
    """Keeps other Lathe programs from changing the directory meanwhile (docs/formats/directory.md)."""
    path = directory / ".lathe" / "history.lock"
    if not path.exists():  # no version was ever made here
        yield
        return
    with open(path, "rb+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def unapplied_version(directory: pathlib.Path) -> int | None:
    """A version that is durable but not yet in the shards, which are then a mixture; None if there is none."""
    try:
        applied = int(json.loads((directory / ".lathe" / "state.json").read_text())["version"])
    except FileNotFoundError:
        return None
    newest = max((int(path.stem.split("-")[1]) for path in (directory / ".lathe" / "deltas").glob("*-*.dlt")), default=applied)
    return newest if newest > applied else None


def checkpoint_tensors(directory: pathlib.Path, wanted: set[str] | None) -> Iterator[tuple[str, Any]]:
    """(name, tensor) of the directory's shards; of all of them, or of those wanted."""
    from safetensors import safe_open

    index = directory / "model.safetensors.index.json"
    files = sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.exists() else ["model.safetensors"]
    for file in files:
        with safe_open(directory / file, framework="pt") as shard:
            for name in shard.keys():  # noqa: SIM118  (not a dict)
                if wanted is None or name in wanted:
                    yield name, shard.get_tensor(name)


class WorkerExtension:
    """Methods for vLLM's worker. Mixed into it, never made by itself."""

    def lathe_manifest(self) -> dict[str, object]:
        """This rank's part of the manifest."""
        worker: Any = self
        config = worker.vllm_config
        platform = platform_of(worker)
        exporter = _Exporter(worker)
        for name, parameter in unwrapped_model(worker).named_parameters(remove_duplicate=False):
            exporter.add(name, parameter)
        import vllm

        model = config.model_config
        parallel = config.parallel_config
        return {
            "format": MANIFEST_FORMAT,
            "engine": {"name": "vllm", "version": vllm.__version__},
            "model": {"directory": os.path.abspath(model.model) if os.path.isdir(model.model) else model.model,
                      "architecture": next(iter(model.hf_config.architectures or []), "")},
            "tensor_parallel": {"size": parallel.tensor_parallel_size, "rank": worker.rank % parallel.tensor_parallel_size},
            "pid": os.getpid(),
            "refusals": conditions.refusals(config, platform) + exporter.refusals,
            "warnings": conditions.warnings(config, platform),
            "memories": exporter.memories(),
            "tensors": exporter.tensors,
        }

    def lathe_fence(self) -> bool:
        """Waits until nothing that was queued still reads the weights."""
        worker: Any = self
        if platform_of(worker) == "cuda":
            import torch

            torch.cuda.synchronize(worker.device)
        return True

    def lathe_restore(self, names: str) -> dict[str, object]:
        """Copies tensors from vLLM's model directory into the live weights, by vLLM's own loader and in place.

        `names`: a JSON list of the checkpoint's names, or null for all. Returns {"restored": number} or {"error": text}; after an
        error some may be restored. Call it while the engine is paused.
        """
        import torch

        worker: Any = self
        directory = pathlib.Path(worker.vllm_config.model_config.model)
        wanted = json.loads(names)
        begin = time.monotonic()
        try:
            if not directory.is_dir():
                raise FileNotFoundError(f"{directory} is not a directory, so there is nothing to restore from")
            with _history_lock(directory), torch.no_grad():
                if (version := unapplied_version(directory)) is not None:
                    raise RuntimeError(f"{directory} is between two versions; run `lathe log {directory}`, which completes version {version}")
                count = 0

                def counted() -> Iterator[tuple[str, Any]]:
                    nonlocal count
                    for item in checkpoint_tensors(directory, None if wanted is None else set(wanted)):
                        count += 1
                        yield item

                unwrapped_model(worker).load_weights(counted())
                if wanted is not None and count != len(set(wanted)):
                    raise RuntimeError(f"{directory} has only {count} of the {len(set(wanted))} tensors to restore")
            self.lathe_fence()
        except Exception as error:  # goes to the session, which tries again: it must not end the worker
            return {"error": f"{type(error).__name__}: {error}"}
        return {"restored": count, "seconds": time.monotonic() - begin}
