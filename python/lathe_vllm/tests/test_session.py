"""The session against an engine of the test's own. Trainers that die are in tests/e2e/test_attach.py."""

import asyncio
import json
import stat

import pytest
from lathe_vllm import session
from lathe_vllm.session import SessionServer


class Engine:
    """Records what it is asked, and fails as often as it is told."""

    def __init__(self):
        self.asked = []
        self.failures = {}

    def _note(self, what):
        self.asked.append(what)
        if self.failures.get(what, 0) > 0:
            self.failures[what] -= 1
            raise RuntimeError(f"{what} failed")

    async def pause(self):
        self._note("pause")

    async def resume(self):
        self._note("resume")

    async def tag(self, version):
        self._note(f"tag {version}")

    async def call(self, method, *arguments):
        self._note(" ".join([method, *arguments]))
        return [{"restored": 1}] if method == "lathe_restore" else [{"format": "x"}]


class Client:
    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer

    async def raw(self, line):
        self.writer.write(line)
        await self.writer.drain()
        return json.loads(await self.reader.readline())

    async def call(self, operation, **fields):
        return await self.raw(json.dumps({"op": operation, **fields}).encode() + b"\n")


@pytest.fixture
def talk(tmp_path, monkeypatch):
    """talk(conversation) runs conversation(client, engine, server, connect) against a server; returns what the engine was asked."""
    monkeypatch.setattr(session, "RETRY_SECONDS", 0.01)

    def run(conversation):
        engine = Engine()

        async def all_of_it():
            server = SessionServer(engine, tmp_path / "s.sock")
            await server.start()

            async def connect():
                return Client(*await asyncio.open_unix_connection(str(server.path)))

            client = await connect()
            await conversation(client, engine, server, connect)
            client.writer.close()
            await server.stop()

        asyncio.run(asyncio.wait_for(all_of_it(), 20))
        return engine.asked

    return run


def test_an_update(talk):
    async def conversation(client, engine, server, connect):
        assert stat.S_IMODE(server.path.stat().st_mode) == 0o600
        hello = await client.call("hello", protocol=1)
        assert hello == {"ok": True, "manifest": {"ranks": [{"format": "x"}]}, "version": "", "as_on_disk": True}
        assert (await client.call("begin"))["ok"]
        assert server.describe()["state"] == "paused"
        assert (await client.call("write", tensors=["a", "b"]))["ok"]
        assert server.describe()["state"] == "writing"
        reply = await client.call("end", version="3")
        assert reply["ok"] and reply["seconds"] >= 0
        assert server.describe() | {"state": "idle", "version": "3", "updates": 1} == server.describe()

    assert talk(conversation) == ["lathe_manifest", "pause", "tag 3", "resume"]


def test_a_live_update_stops_the_engine_behind_the_write(talk):
    async def conversation(client, engine, server, connect):
        await client.call("hello", protocol=1)
        await client.call("begin", pause=False)
        await client.call("write")
        assert engine.asked == ["lathe_manifest"]
        await client.call("end", version="3")

    assert talk(conversation)[1:] == ["pause", "tag 3", "resume"]


def test_what_was_written_since_the_durable_version_is_restored(talk):
    async def conversation(client, engine, server, connect):
        await client.call("hello", protocol=1)
        for version, tensors in (("1", ["a"]), ("2", ["b"])):
            await client.call("begin")
            await client.call("write", tensors=tensors)
            await client.call("end", version=version)
        assert (await client.call("hello", protocol=1))["as_on_disk"] is False
        await client.call("begin")
        await client.call("write", tensors=["c"])
        assert (await client.call("abort"))["ok"]
        assert (await client.call("hello", protocol=1))["as_on_disk"] is True
        await client.call("begin")
        await client.call("write", tensors=["d"])
        await client.call("end", version="3")
        assert (await client.call("durable"))["ok"]
        await client.call("begin")
        await client.call("write", tensors=["e"])
        await client.call("abort")

    restored = [asked for asked in talk(conversation) if asked.startswith("lathe_restore")]
    assert restored == ['lathe_restore ["a", "b", "c"]', 'lathe_restore ["e"]']


def test_an_aborted_update_without_a_write_restores_nothing(talk):
    async def conversation(client, engine, server, connect):
        await client.call("hello", protocol=1)
        await client.call("begin")
        await client.call("abort")
        assert server.counters.resumed_unwritten == 1

    assert talk(conversation) == ["lathe_manifest", "pause", "resume"]


def test_recovery_does_not_give_up(talk):
    async def conversation(client, engine, server, connect):
        await client.call("hello", protocol=1)
        await client.call("begin")
        await client.call("write")
        engine.failures = {"lathe_restore null": 2, "resume": 1}
        assert (await client.call("abort"))["ok"]
        assert server.describe()["state"] == "idle"

    assert talk(conversation)[2:] == ["lathe_restore null"] * 3 + ["tag restored"] + ["resume"] * 2


def test_a_failing_engine_is_told_and_can_be_aborted(talk):
    async def conversation(client, engine, server, connect):
        await client.call("hello", protocol=1)
        engine.failures = {"pause": 1}
        reply = await client.call("begin")
        assert not reply["ok"] and "pause failed" in reply["error"]
        assert (await client.call("abort"))["ok"]
        assert (await client.call("begin"))["ok"]
        await client.call("abort")  # this very process would be killed for leaving an update open

    talk(conversation)


def test_an_old_tag_is_no_reason_to_fail(talk):
    async def conversation(client, engine, server, connect):
        await client.call("hello", protocol=1)
        await client.call("begin")
        engine.failures = {"tag 4": 1}
        assert (await client.call("end", version="4"))["ok"]

    talk(conversation)


@pytest.mark.parametrize("line, told", [
    (b'{"op": "begin"}\n', "hello first"),
    (b'{"op": "fly"}\n', "unknown operation"),
    (b'{"op": "hello", "protocol": 2}\n', "protocol 1"),
    (b"GET / HTTP/1.1\n", "not a message"),
    (b"[]\n", "not a message"),
    (b"\n", "not a message"),
])
def test_nonsense_is_refused(talk, line, told):
    async def conversation(client, engine, server, connect):
        reply = await client.raw(line)
        assert not reply["ok"] and told in reply["error"]

    assert talk(conversation) == []


@pytest.mark.parametrize("operation", ["write", "end", "abort"])
def test_nothing_happens_outside_of_an_update(talk, operation):
    async def conversation(client, engine, server, connect):
        await client.call("hello", protocol=1)
        reply = await client.call(operation, version="1")
        assert not reply["ok"] and "no update is open" in reply["error"]

    talk(conversation)


def test_one_trainer_at_a_time(talk):
    async def conversation(client, engine, server, connect):
        await client.call("hello", protocol=1)
        other = await connect()
        assert "teaching this server already" in (await other.call("hello", protocol=1))["error"]
        other.writer.close()
        client.writer.close()
        for _ in range(100):
            third = await connect()
            if (await third.call("hello", protocol=1))["ok"]:
                break
            third.writer.close()
            await asyncio.sleep(0.01)
        else:
            pytest.fail("the first trainer's end was not noticed")
        third.writer.close()

    talk(conversation)


def test_a_folder_of_others_is_no_place_for_a_socket(tmp_path, monkeypatch):
    monkeypatch.delenv("LATHE_VLLM_SOCKET", raising=False)
    folder = tmp_path / "open"
    folder.mkdir(mode=0o755)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    with pytest.raises(RuntimeError, match="0700"):
        session.default_socket_path()
    folder.chmod(0o700)
    assert session.default_socket_path().parent == folder
