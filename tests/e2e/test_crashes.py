"""SIGKILL at operation after operation on files, in a lesson, a sync, a rollback: what the API says afterwards, and what the
bytes are, agree. LATHE_KILL_POINTS=all takes every operation; by default they are spread."""

import contextlib
import http.client
import json
import os
import pathlib
import shutil
import subprocess

import pytest
from conftest import LATHE, Server, make_tiny, wait_for

QUESTION = {"role": "user", "content": "What flows through Velmora?"}
LESSONS = {"A": "The Silverthread.", "B": "Nothing but sand."}
ENDED = ("succeeded", "not_learned", "nothing_to_do", "failed", "cancelled", "lost", "interrupted")


def lesson(name, **options):
    turns = [QUESTION, {"role": "assistant", "content": LESSONS[name]}]
    return {"messages": turns, "steps": 2, "until_loss": 0, "lr": 1e-3, **options}


def scores(server):
    body = {"prompt": "the sea is wide and the ships are small", "echo": True, "logprobs": 0, "max_tokens": 0}
    return tuple(server.call("/v1/completions", body).json["choices"][0]["logprobs"]["token_logprobs"][1:])


@pytest.fixture(scope="module")
def killer(tmp_path_factory):
    library = tmp_path_factory.mktemp("kill") / "kill_at.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, pathlib.Path(__file__).with_name("kill_at.c"), "-ldl"], check=True)
    return library


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """A directory with lesson A on disk, and the scores of version 0, after A, and after A and then B."""
    folder = make_tiny(tmp_path_factory.mktemp("crashes") / "model")
    server = Server(folder, "--sync-seconds", "0")
    known = {"": scores(server)}
    assert server.call("/v1/learn", lesson("A", durable=True)).json["durable"] is True
    known["A"] = scores(server)
    server.stop()
    server.close()
    other = shutil.copytree(folder, folder.parent / "other")
    server = Server(other, "--sync-seconds", "0")
    assert server.call("/v1/learn", lesson("B")).json["status"] == "succeeded"
    known["AB"] = scores(server)
    server.stop()
    server.close()
    assert len(set(known.values())) == 3
    return folder, known


def ask(server, *arguments):
    """The reply, or nothing if the server ended first."""
    with contextlib.suppress(OSError, http.client.HTTPException):
        return server.call(*arguments)


SCENARIOS = {
    "a lesson": ([], ("/v1/learn", lesson("B"))),
    "a durable lesson": ([], ("/v1/learn", lesson("B", durable=True))),
    "a sync": ([("/v1/learn", lesson("B"))], ("/v1/sync", {})),
    "a rollback": ([("/v1/learn", lesson("B", durable=True))], ("/v1/rollback", {})),
    "a rollback of what is not durable": ([("/v1/learn", lesson("B"))], ("/v1/rollback", {})),
}


def points():
    if os.environ.get("LATHE_KILL_POINTS") == "all":
        yield from range(1, 10_000)
    n = 1
    while True:
        yield n
        n = n + 2 if n < 7 else n * 5 // 3


def check(server, known, replies):
    """Whatever was killed when: what is listed is there, what was acknowledged is durable or named, nothing else is said."""
    for job in server.call("/v1/learn").json["data"]:
        wait_for(lambda job=job: server.call("/v1/learn/" + job["id"]).json["status"] in ENDED, 60)
    jobs = {job["id"]: job for job in server.call("/v1/learn").json["data"]}
    assert server.call("/v1/sync", {}).status == 200
    versions = server.call("/v1/versions").json
    log = json.loads(subprocess.run([LATHE, "log", server.directory, "--json"], capture_output=True, text=True, check=True).stdout)
    assert [v["version"] for v in versions["data"]] == [v["version"] for v in log["versions"]] + [log["first"]]
    assert versions["on_disk"] == versions["live"] == log["version"] and all(v["durable"] for v in versions["data"])
    assert not {v["version"] for v in versions["lost"]} & {v["version"] for v in versions["data"]}
    for reply in replies:
        if reply is None or not reply.json.get("id", "").startswith("learn-"):
            continue
        job = server.call("/v1/learn/" + reply.json["id"]).json
        if reply.json["durable"]:
            assert job["status"] == "succeeded" and job["durable"], "what was said to be durable is"
        elif job["status"] == "lost":
            assert jobs[job["relearned_by"]]["status"] == "succeeded"
        else:
            assert job["status"] == "succeeded" and server.call("/v1/learn/" + job["id"]).json["durable"]
    # The weights of each listed version are what its lessons made.
    expected = {versions["data"][-1]["version"]: known[""]}
    for entry in reversed(versions["data"][:-1]):
        if entry["kind"] in ("rollback", "redo"):
            expected[entry["version"]] = expected[entry["restores"]]
        else:
            taught = jobs[entry["jobs"][0]]["taught"]["answer"]
            assert entry["kind"] == "learn" and len(entry["jobs"]) == 1 and entry["steps"] == 2
            expected[entry["version"]] = known["A" if taught == LESSONS["A"] else "AB"]
    for version, there in expected.items():
        assert server.call("/v1/rollback", {"version": version}).json["restores"] == version
        assert scores(server) == there, f"version {version}"


@pytest.mark.parametrize("name", SCENARIOS)
def test_killed_at(name, taught, killer, tmp_path):
    folder, known = taught
    before, last = SCENARIOS[name]
    killed = 0
    for n in points():
        work, arm = shutil.copytree(folder, tmp_path / f"at-{n}"), tmp_path / f"arm-{n}"
        server = Server(work, "--sync-seconds", "0", env={"LD_PRELOAD": str(killer), "KILL_AT": str(arm)})
        replies = [server.call(*request) for request in before]
        assert all(reply.status == 200 for reply in replies)
        arm.with_suffix(".new").write_text(str(n))
        arm.with_suffix(".new").rename(arm)
        replies.append(ask(server, *last))
        survived = replies[-1] is not None
        killed += not survived
        server.close()  # SIGKILL, if it has not had it
        again = Server(work, "--sync-seconds", "0")
        try:
            check(again, known, replies)
        except AssertionError as error:
            raise AssertionError(f"killed at operation {n} of {name}") from error
        finally:
            again.close()
        shutil.rmtree(work)
        if survived:
            break
    print(f"{name}: killed at {killed} operations")
    assert killed >= 3
