"""Endpoint plugin: the session in vLLM's API server, with its state at GET /lathe and the weights' version in every response.

vLLM loads it only if VLLM_PLUGINS names it: VLLM_PLUGINS=lathe vllm serve MODEL_DIR
"""

from __future__ import annotations

from typing import Any

from .engine import InProcess
from .session import SessionServer

VERSION_HEADER = b"x-lathe-version"


class VersionHeader:
    """ASGI middleware: the version that the weights had when the response began."""

    def __init__(self, app: Any, plugin: LatheEndpoints) -> None:
        self._app = app
        self._plugin = plugin

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_with_version(message: Any) -> None:
            session = self._plugin.session
            if message["type"] == "http.response.start" and session is not None and session.version:
                message = {**message, "headers": [*message.get("headers", []), (VERSION_HEADER, session.version.encode())]}
            await send(message)

        await self._app(scope, receive, send_with_version)


class LatheEndpoints:
    """What vLLM calls an EndpointPlugin."""

    name = "lathe"
    required_tasks = ("generate",)

    def __init__(self) -> None:
        self.session: SessionServer | None = None

    def attach_router(self, app: Any) -> None:
        async def state() -> dict[str, Any]:
            return self.session.describe() if self.session else {"error": "the engine is not ready"}

        app.add_api_route("/lathe", state, methods=["GET"])
        app.add_middleware(VersionHeader, plugin=self)

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        if engine_client is None:
            return
        self.session = SessionServer(InProcess(engine_client))
        await self.session.start()
