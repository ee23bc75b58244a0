"""python -m lathe_vllm --url http://127.0.0.1:8000: the session in a process of its own.

For versions of vLLM without endpoint plugins (before 0.26). vLLM must run with VLLM_SERVER_DEV_MODE=1, the general plugin or
--worker-extension-cls lathe_vllm.worker.WorkerExtension, on the same machine and as the same user.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import pathlib
import signal

from .engine import OverHttp
from .session import SessionServer


async def _serve(url: str, path: pathlib.Path | None) -> None:
    server = SessionServer(OverHttp(url), path)
    await server.start()
    print(f"lathe_vllm: attach with `lathe attach --vllm {url} --socket {server.path}`", flush=True)
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await stop.wait()
    await server.stop()


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m lathe_vllm", description="The session of Lathe next to a running vLLM")
    parser.add_argument("--url", required=True, help="of the vLLM server, http://host:port")
    parser.add_argument("--socket", type=pathlib.Path, help="where trainers attach (default: a path of this user)")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(options.url, options.socket))


if __name__ == "__main__":
    main()
