"""The session: a trainer on a Unix socket learns where the weights are, and asks for the moments in which it may write them.

One line of JSON each way, one trainer at a time: docs/protocols/vllm.md. The socket is of mode 0600, and the kernel tells who is
at the other end: another user is turned away.

The watchdog is in here. While an update is open the engine stands still, so its writer is watched: if the connection ends or
the time it asked for is over, the writer is killed (nothing else would surely keep it from writing later), its end awaited,
and, if it may have written, every tensor it ever wrote beyond the durable version is restored from the model directory. Then
the engine goes on. It never goes on with a mixture: while the directory cannot be read it stays paused and tries again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import pathlib
import select
import signal
import socket
import stat
import struct
import time
from dataclasses import dataclass, field
from typing import Any

from . import PROTOCOL
from .engine import Engine

logger = logging.getLogger("vllm.lathe")

MAX_LINE = 64 << 20
DEFAULT_LEASE = 60.0  # seconds that one update may take, if its trainer asks for no other time
MAX_LEASE = 600.0
RETRY_SECONDS = 1.0


class Refused(Exception):
    """Told to the trainer as {"ok": false, "error": ...}."""


@dataclass
class Counters:
    """What happened since the server started; GET /lathe shows them."""

    updates: int = 0
    resumed_unwritten: int = 0  # the trainer was lost before it wrote
    restored: int = 0  # the trainer was lost while it wrote
    last_pause_seconds: float = 0.0


@dataclass
class Update:
    """An open update: from `begin` to `end`."""

    deadline: float
    paused: bool
    began: float = field(default_factory=time.monotonic)
    wrote: bool = False


class Writer:
    """The process at the other end of the socket."""

    def __init__(self, connection: socket.socket) -> None:
        self.pid, self.uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if self.uid not in (os.getuid(), 0):
            raise Refused(f"user {self.uid} may not teach a server of user {os.getuid()}")
        if self.pid == 0:
            raise Refused("the trainer is in another PID namespace, where it could be neither watched nor share memory; "
                          "start both containers with the same one (--pid=host or --pid=container:...)")
        self._pidfd = os.pidfd_open(self.pid)

    async def kill(self) -> None:
        """Returns once the process is gone, and with it every mapping and queued GPU work it had."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        while not select.select([self._pidfd], [], [], 0)[0]:
            await asyncio.sleep(0.002)

    def close(self) -> None:
        os.close(self._pidfd)


def default_socket_path() -> pathlib.Path:
    """A path in a folder that only this user can enter."""
    if path := os.environ.get("LATHE_VLLM_SOCKET"):
        return pathlib.Path(path)
    base = os.environ.get("XDG_RUNTIME_DIR")
    folder = pathlib.Path(base) if base and os.path.isdir(base) else pathlib.Path(f"/tmp/lathe-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise RuntimeError(f"{folder} must be a folder of mode 0700 that belongs to user {os.getuid()}; remove it or set LATHE_VLLM_SOCKET")
    return folder / f"lathe-vllm-{os.getpid()}.sock"


class SessionServer:
    """Serves sessions on a Unix socket. All methods on one event loop."""

    def __init__(self, engine: Engine, path: pathlib.Path | None = None) -> None:
        self._engine = engine
        self.path = path or default_socket_path()
        self.counters = Counters()
        self.version = ""  # of the live weights, as the last trainer called it; empty: as loaded
        self._beyond_durable: set[str] | None = set()  # checkpoint tensors that differ from the directory; None: all may
        self._writer: Writer | None = None
        self._update: Update | None = None
        self._recovering = False
        self._server: asyncio.Server | None = None

    # Life cycle

    async def start(self) -> None:
        self.path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        old = os.umask(0o177)
        try:
            listener.bind(str(self.path))
        finally:
            os.umask(old)
        self._server = await asyncio.start_unix_server(self._connection, sock=listener, limit=MAX_LINE)
        logger.info("lathe: trainers may attach at %s", self.path)

    async def stop(self) -> None:
        if self._server:
            self._server.close()
        self.path.unlink(missing_ok=True)

    def describe(self) -> dict[str, Any]:
        """State for people and tests."""
        state = "idle"
        if self._recovering:
            state = "recovering"
        elif self._update:
            state = "writing" if self._update.wrote else "paused" if self._update.paused else "open"
        return {"protocol": PROTOCOL, "socket": str(self.path), "pid": os.getpid(), "state": state, "version": self.version,
                "trainer": self._writer.pid if self._writer else None, **vars(self.counters)}

    # A connection

    async def _connection(self, reader: asyncio.StreamReader, stream: asyncio.StreamWriter) -> None:
        writer: Writer | None = None
        try:
            writer = Writer(stream.get_extra_info("socket"))
            await self._converse(writer, reader, stream)
        except Refused as reason:
            await self._send(stream, {"ok": False, "error": str(reason)})
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.TimeoutError) as reason:
            logger.debug("lathe: connection ended: %r", reason)
        except Exception:
            logger.exception("lathe: a session failed")
        finally:
            if writer is not None:
                if self._writer is writer:
                    await asyncio.shield(self._lost(writer))
                    self._writer = None
                writer.close()
            stream.close()

    async def _send(self, stream: asyncio.StreamWriter, message: dict[str, Any]) -> None:
        with contextlib.suppress(ConnectionError):
            stream.write(json.dumps(message).encode() + b"\n")
            await stream.drain()

    async def _converse(self, writer: Writer, reader: asyncio.StreamReader, stream: asyncio.StreamWriter) -> None:
        while line := await self._next_line(reader):
            try:
                message = json.loads(line)
                operation = str(message["op"])
                if operation not in self._OPERATIONS:
                    raise Refused(f"unknown operation {operation!r}")
                if operation != "hello" and self._writer is not writer:
                    raise Refused("say hello first")
                reply = await self._OPERATIONS[operation](self, writer, message)
            except Refused as reason:
                await self._send(stream, {"ok": False, "error": str(reason)})
                continue
            except (ValueError, KeyError, TypeError) as reason:
                raise Refused(f"not a message of this protocol: {reason!r}") from None
            except Exception as reason:  # vLLM's: an update that is open stays open, for the trainer to abort
                logger.exception("lathe: %s failed", operation)
                await self._send(stream, {"ok": False, "error": f"vLLM: {reason!r}"})
                continue
            await self._send(stream, {"ok": True, **reply})

    async def _next_line(self, reader: asyncio.StreamReader) -> bytes:
        if self._update is None:
            return await reader.readline()
        return await asyncio.wait_for(reader.readline(), max(0.0, self._update.deadline - time.monotonic()))

    # Operations

    async def _hello(self, writer: Writer, message: dict[str, Any]) -> dict[str, Any]:
        if message.get("protocol") != PROTOCOL:
            raise Refused(f"this plugin speaks protocol {PROTOCOL}, the trainer {message.get('protocol')}; install the lathe-vllm of the same release")
        if self._writer not in (None, writer):
            raise Refused(f"process {self._writer.pid} is teaching this server already")
        if self._writer is None:
            self._writer = writer
        return {"manifest": {"ranks": await self._engine.call("lathe_manifest")}, "version": self.version,
                "as_on_disk": self._beyond_durable == set()}

    async def _begin(self, writer: Writer, message: dict[str, Any]) -> dict[str, Any]:
        if self._update is not None:
            raise Refused("an update is open already")
        lease = min(float(message.get("lease_seconds", DEFAULT_LEASE)), MAX_LEASE)
        pause = bool(message.get("pause", True))
        # Open before the pause: if this fails half-way, the end of the session resumes.
        self._update = Update(deadline=time.monotonic() + lease, paused=pause)
        if pause:
            await self._engine.pause()
        return {}

    async def _write(self, writer: Writer, message: dict[str, Any]) -> dict[str, Any]:
        update = self._opened()
        names = message.get("tensors")
        if names is None:
            self._beyond_durable = None
        elif self._beyond_durable is not None:
            self._beyond_durable |= {str(name) for name in names}
        update.wrote = True
        return {}

    async def _end(self, writer: Writer, message: dict[str, Any]) -> dict[str, Any]:
        update = self._opened()
        self.version = str(message["version"])
        if not update.paused:  # written live: what was computed meanwhile is of neither version
            await self._engine.pause()
            update.paused = True
        await self._tag()
        await self._engine.resume()
        self._update = None
        self.counters.updates += 1
        self.counters.last_pause_seconds = time.monotonic() - update.began
        return {"seconds": self.counters.last_pause_seconds}

    async def _abort(self, writer: Writer, message: dict[str, Any]) -> dict[str, Any]:
        self._opened()
        await self._recover()
        return {}

    async def _durable(self, writer: Writer, message: dict[str, Any]) -> dict[str, Any]:
        if self._update is not None:
            raise Refused("an update is open: end it first")
        self._beyond_durable = set()
        return {}

    async def _restore(self, writer: Writer, message: dict[str, Any]) -> dict[str, Any]:
        if self._update is not None:
            raise Refused("an update is open: end it first")
        await self._engine.pause()
        self._update = Update(deadline=time.monotonic() + MAX_LEASE, paused=True, wrote=True)
        self._beyond_durable = None
        await self._recover()
        return {}

    def _opened(self) -> Update:
        if self._update is None:
            raise Refused("no update is open; begin one")
        return self._update

    _OPERATIONS = {"hello": _hello, "begin": _begin, "write": _write, "end": _end, "abort": _abort, "durable": _durable,
                   "restore": _restore}

    # The watchdog

    async def _lost(self, writer: Writer) -> None:
        """The session is over. If it left an update open, nobody will end it."""
        if self._update is None:
            return
        logger.warning("lathe: trainer %d left an update open; it is stopped", writer.pid)
        await writer.kill()
        await self._recover()

    async def _recover(self) -> None:
        """Ends the open update without its writer: weights of one version, engine running."""
        update = self._opened()
        self._recovering = True
        try:
            if not update.paused:
                await self._persist(self._engine.pause)
                update.paused = True
            if update.wrote:
                await self._persist(self._restore_weights)
                self.counters.restored += 1
                logger.warning("lathe: the update was half-way; the weights of the model directory are restored")
            else:
                self.counters.resumed_unwritten += 1
                logger.warning("lathe: nothing was written yet; going on with the same weights")
            await self._persist(self._engine.resume)
            self._update = None
        finally:
            self._recovering = False

    async def _restore_weights(self) -> None:
        names = sorted(self._beyond_durable) if self._beyond_durable is not None else None
        for result in await self._engine.call("lathe_restore", json.dumps(names)):
            if "error" in result:
                raise RuntimeError(result["error"])
        self._beyond_durable = set()
        self.version = "restored"
        await self._tag()

    async def _tag(self) -> None:
        try:
            await self._engine.tag(self.version)
        except Exception as reason:  # a label only
            logger.warning("lathe: vLLM did not take the version's name: %r", reason)

    async def _persist(self, action: Any) -> None:
        """Until it succeeds: the alternatives are a mixture or an engine that stands still unexplained."""
        while True:
            try:
                await action()
                return
            except Exception as error:
                logger.error("lathe: %s; vLLM stays paused, trying again in %g s", error, RETRY_SECONDS)
                await asyncio.sleep(RETRY_SECONDS)
