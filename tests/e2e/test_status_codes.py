"""Every status that docs/protocols/http.md names, from the running program; and no status here that the page does not name."""

import contextlib
import pathlib
import re
import shutil
import subprocess
import threading

import pytest
from conftest import REPOSITORY, Server, make_tiny, wait_for

CHAT, LEARN = "/v1/chat/completions", "/v1/learn"
ASK = {"messages": [{"role": "user", "content": "hello"}]}
LESSON = {"messages": [*ASK["messages"], {"role": "assistant", "content": "good day"}], "steps": 1}
LONG = {**LESSON, "steps": 10000, "until_loss": 0}


def documented():
    page = (REPOSITORY / "docs/protocols/http.md").read_text()
    table = page.split("| status | when |")[1].split("\n\n")[0]
    return {int(status) for status in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)}


@pytest.fixture(scope="module")
def server(tiny_model, tmp_path_factory):
    directory = shutil.copytree(tiny_model, tmp_path_factory.mktemp("codes") / "tiny")
    with contextlib.closing(Server(directory, "--api-key", "k", "--max-body-bytes", "2000", "--max-learning", "1")) as running:
        yield running


KEY = {"Authorization": "Bearer k"}


def ended_job(server):
    return server.call(LEARN, LESSON, headers=KEY).json["id"]


def a_second_lesson(server):
    """One lesson runs, one waits, and there is room for no other."""
    jobs = [server.call(LEARN, {**LONG, "wait": False}, headers=KEY).json["id"]]
    wait_for(lambda: server.call(LEARN + "/" + jobs[0], headers=KEY).json["status"] == "running", 60, "the lesson's begin")
    jobs.append(server.call(LEARN, {**LONG, "wait": False}, headers=KEY).json["id"])
    reply = server.call(LEARN, LESSON, headers=KEY)
    for job in reversed(jobs):
        assert server.call(f"{LEARN}/{job}", method="DELETE", headers=KEY).status == 200
    assert reply.headers["Retry-After"]
    return reply


BY_REQUEST = {
    400: lambda server: server.call(CHAT, {"messages": []}, headers=KEY),
    401: lambda server: server.call("/v1/models"),
    403: lambda server: server.call("/healthz", headers={"Host": "evil.example"}),
    404: lambda server: server.call("/v1/nothing", headers=KEY),
    405: lambda server: server.call(CHAT + "/x", {}, headers=KEY),
    409: lambda server: server.call(f"{LEARN}/{ended_job(server)}", method="DELETE", headers=KEY),
    413: lambda server: server.call(CHAT, raw=b" " * 3000, headers=KEY),
    415: lambda server: server.call(CHAT, ASK, headers={**KEY, "Content-Type": "text/plain"}),
    429: a_second_lesson,
}
BY_MACHINE = {500, 503, 507}


def test_the_page_names_what_is_tested():
    assert documented() == set(BY_REQUEST) | BY_MACHINE


def check(reply, status):
    assert reply.status == status, reply.text
    error = reply.json["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"], error


@pytest.mark.parametrize("status", BY_REQUEST)
def test_by_request(server, status):
    check(BY_REQUEST[status](server), status)


@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/tokenize", "/detokenize", LEARN, "/v1/rollback"])
def test_what_is_no_json_is_400(server, path):
    check(server.call(path, raw=b"{", headers=KEY), 400)


def test_500_of_a_model_whose_numbers_overflow(serve, tmp_path):
    huge = make_tiny(tmp_path / "huge", change=lambda name, numbers: [3e38] * len(numbers) if name == "model.norm.weight" else numbers)
    server = serve(huge)
    check(server.call(CHAT, ASK), 500)
    check(server.call("/v1/completions", {"prompt": "hello"}), 500)
    assert server.call("/healthz").status == 200


def test_503_of_a_server_that_stops(serve, tiny):
    server = serve(tiny)
    replies = []
    asking = threading.Thread(target=lambda: replies.append(server.call(LEARN, LONG)))
    asking.start()
    wait_for(lambda: server.call("/healthz").json["learning"] == 1, 60, "the lesson")
    assert server.stop() == 0
    asking.join(60)
    assert replies[0].status == 503 and replies[0].json["error"]["code"] == "unavailable"


@pytest.fixture(scope="session")
def full_disk(tmp_path_factory):
    library = tmp_path_factory.mktemp("full") / "full_disk.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, pathlib.Path(__file__).with_name("full_disk.c"), "-ldl"], check=True)
    return library


@pytest.mark.parametrize("history", ["lesson", "interval"])
def test_507_of_a_full_disk(serve, tiny, tmp_path, full_disk, history):
    full = tmp_path / "full"
    options = ["--history", history, "--sync-seconds", "3600"]
    server = serve(tiny, *options, env={"LD_PRELOAD": str(full_disk), "FULL_DISK": str(full)})
    assert server.call(LEARN, LESSON).status == 200
    if history == "lesson":  # what was learned is durable soon; only a lesson has something to write
        wait_for(lambda: server.call("/healthz").json["synced_version"] == 1, 60, "the sync")
    full.touch()
    check(server.call(LEARN, LESSON), 507)
    if history == "interval":
        check(server.call("/v1/sync", {}), 507)
        check(server.call("/v1/rollback", {}), 507)
    assert server.call(CHAT, {**ASK, "max_tokens": 2}).status == 200, "it is answered, if not kept"
    assert server.call("/healthz").json["version"] == 1
    full.unlink()
    assert server.call(LEARN, LESSON).json["version"] == 2
    assert server.call("/v1/sync", {}).json["version"] == 2
