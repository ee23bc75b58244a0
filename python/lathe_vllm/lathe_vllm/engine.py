"""What a session needs of vLLM: pause, resume, calls into the worker.

Two ways: an engine client in the API server's own process (endpoint.py), or vLLM's development routes over HTTP, for versions
without endpoint plugins.
"""

from __future__ import annotations

import asyncio
import json
import logging
import urllib.error
import urllib.parse
import urllib.request
from typing import Any, Protocol

logger = logging.getLogger("vllm.lathe")


class Engine(Protocol):
    """Every method may raise; the session then tells the trainer, or tries again if it must not give up."""

    async def pause(self) -> None:
        """Returns once no step runs. Requests in flight stay and continue after resume(); all caches of keys, values and states of
        earlier weights are dropped, so that what was computed so far is computed again."""

    async def resume(self) -> None: ...

    async def call(self, method: str, *arguments: str) -> list[Any]:
        """The result of the worker's method, of each rank."""

    async def tag(self, version: str) -> None:
        """Tells vLLM which version its weights are, where it has a place for that."""


class InProcess:
    """vLLM's EngineClient."""

    def __init__(self, client: Any) -> None:
        self._client = client

    async def pause(self) -> None:
        await self._client.pause_generation(mode="keep", clear_cache=True)
        await self.call("lathe_fence")

    async def resume(self) -> None:
        await self._client.resume_generation()

    async def call(self, method: str, *arguments: str) -> list[Any]:
        return list(await self._client.collective_rpc(method, args=arguments))

    async def tag(self, version: str) -> None:
        if hasattr(self._client, "update_weight_version"):
            await self._client.update_weight_version(version)


class OverHttp:
    """The development routes of a vLLM server started with VLLM_SERVER_DEV_MODE=1."""

    def __init__(self, url: str, timeout: float = 600) -> None:
        self._url = url.rstrip("/")
        self._timeout = timeout

    def _post(self, path: str, body: object = None) -> Any:
        data = json.dumps(body).encode() if body is not None else b""
        request = urllib.request.Request(self._url + path, data, {"Content-Type": "application/json"}, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=self._timeout) as reply:
                text = reply.read()
        except urllib.error.HTTPError as error:
            hint = "; start vLLM with VLLM_SERVER_DEV_MODE=1" if error.code == 404 else ""
            raise RuntimeError(f"{self._url}{path} answered {error.code}{hint}: {error.read()[:500].decode(errors='replace')}") from None
        return json.loads(text) if text else None

    async def _call(self, path: str, body: object = None) -> Any:
        return await asyncio.to_thread(self._post, path, body)

    async def pause(self) -> None:
        await self._call("/pause?mode=keep&clear_cache=true")
        await self.call("lathe_fence")

    async def resume(self) -> None:
        # Some versions ignore clear_cache when requests are kept: make sure, while nothing runs.
        reply = await self._call("/reset_prefix_cache?reset_running_requests=true")
        if isinstance(reply, dict) and reply.get("success") is False:
            raise RuntimeError("vLLM could not reset its prefix cache")
        await self._call("/resume")

    async def call(self, method: str, *arguments: str) -> list[Any]:
        reply = await self._call("/collective_rpc", {"method": method, "args": list(arguments)})
        return list(reply["results"])

    async def tag(self, version: str) -> None:
        try:
            await self._call("/update_weight_version", {"new_version": version})
        except RuntimeError as error:  # only newer versions keep one
            logger.debug("lathe: %s", error)
