"""`lathe attach --proxy` and `--tokens=server` in front of a server that answers as vLLM does (fake_inference.py), and the
correction of answers that were kept, there and in `lathe serve`. With real vLLM: tests/vllm/test_proxy.py.
"""

import http.client
import json
import subprocess
import time
import urllib.parse
import urllib.request

import pytest
from conftest import LATHE, wait_for
from fake_inference import ANSWER, events, tokenized

QUESTION = {"role": "user", "content": "What flows through Velmora?"}
CHAT = "/v1/chat/completions"
BETTER = "The Silverthread."


@pytest.fixture
def proxied(hold, attach):
    """proxied(options...) -> (holder, lathe); the tokens are the server's, which are not the directory's."""
    def start(*options):
        holder = hold()
        return holder, attach(holder, "--proxy", "--tokens=server", *options, over_http=True)

    return start


def seen(holder):
    """What the inference server was asked, and how many clients left it."""
    with urllib.request.urlopen(holder.url + "/fake/requests") as reply:
        return json.load(reply)


def last_body(holder):
    return json.loads(seen(holder)["requests"][-1]["body"])


def tell(holder, what):
    urllib.request.urlopen(urllib.request.Request(holder.url + "/fake/" + what, b"")).close()


def opened(url, body, path=CHAT):
    """An open connection on which `body` was asked."""
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(url).netloc, timeout=30)
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    return connection


def test_answers_pass_unchanged(proxied):
    holder, lathe = proxied()
    reply = lathe.call(CHAT, {"messages": [QUESTION], "temperature": 0.1, "seed": 18446744073709551615}, headers={"X-Trace": "t"})
    direct = opened(holder.url, {"messages": [QUESTION]}).getresponse()
    assert reply.text.encode() == direct.read()
    assert reply.status == 200 and reply.headers["X-Request-Id"] == "r1"
    assert reply.headers.get_all("X-Lathe-Version") == ["0"]
    asked = seen(holder)["requests"][-2]
    assert asked["headers"]["X-Trace"] == "t" and "REMOTE_ADDR" not in asked["headers"]
    body = json.loads(asked["body"])
    assert body["temperature"] == 0.1 and body["seed"] == 18446744073709551615
    assert lathe.call("/v1/models").json == {"object": "list", "data": [{"id": "fake"}]}
    assert lathe.call("/tokenize", {"messages": [QUESTION]}).json["tokens"] == tokenized([QUESTION])
    assert last_body(holder) == {"messages": [QUESTION]}, "nothing is cached of what is only tokenised"


def test_a_stream_passes_piece_by_piece(proxied):
    holder, lathe = proxied()
    connection = opened(lathe.url, {"messages": [QUESTION], "stream": True, "fake": {"wait": True}})
    reply = connection.getresponse()
    assert reply.status == 200 and reply.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    first, *others = events()
    assert reply.read1() == first, "before the next one exists"
    tell(holder, "go")
    assert reply.read() == b"".join(others)
    connection.close()


@pytest.mark.parametrize("wish", [
    {"status": 422, "body": '{"error": {"message": "no such model"}}'},
    {"status": 429, "body": "busy", "headers": {"Retry-After": "17", "Content-Type": "text/plain"}},
    {"status": 500, "body": ""},
])
def test_errors_pass_as_they_are(proxied, wish):
    _, lathe = proxied()
    for stream in (False, True):
        reply = lathe.call(CHAT, {"messages": [QUESTION], "stream": stream, "fake": wish})
        assert reply.status == wish["status"] and reply.text == wish["body"]
        for name, value in wish.get("headers", {}).items():
            assert reply.headers.get_all(name) == [value]
    assert lathe.call(CHAT).json["data"] == []


def test_the_servers_key_is_not_the_clients(proxied):
    holder, lathe = proxied("--api-key", "mine", "--vllm-api-key", "theirs")
    assert lathe.call(CHAT, {"messages": [QUESTION]}).status == 401
    assert lathe.call(CHAT, {"messages": [QUESTION]}, headers={"Authorization": "Bearer mine"}).status == 200
    assert seen(holder)["requests"][-1]["headers"]["Authorization"] == "Bearer theirs"


def test_the_prefix_cache_is_salted_with_the_version(proxied):
    holder, lathe = proxied()
    lathe.call(CHAT, {"messages": [QUESTION]})
    assert last_body(holder)["cache_salt"] == "lathe-v0"
    version = lathe.call("/v1/learn", {"messages": [QUESTION, {"role": "assistant", "content": BETTER}], "steps": 2, "until_loss": 0}).json["version"]
    lathe.call("/v1/completions", {"prompt": "a", "cache_salt": "mine"})
    assert version == 2 and last_body(holder)["cache_salt"] == "lathe-v2:mine"
    malformed = lathe.call("/v1/completions", {"prompt": "a", "cache_salt": 3, "fake": {"status": 400, "body": "not a string"}})
    assert malformed.text == "not a string" and last_body(holder)["cache_salt"] == 3


@pytest.mark.parametrize("stream", [False, True])
def test_a_kept_answer_is_corrected(proxied, stream):
    _, lathe = proxied()
    messages = [{"role": "system", "content": "Be brief."}, QUESTION]
    lathe.call(CHAT, {"messages": messages, "stream": stream})
    (kept,) = lathe.call(CHAT).json["data"]
    assert kept["id"] == ("chatcmpl-streamed" if stream else "chatcmpl-whole") and kept["version"] == 0
    assert kept["messages"] == messages and kept["choices"][0]["message"]["content"] == ANSWER
    assert kept["corrected_by"] is None
    job = lathe.call("/v1/learn", {"completion": kept["id"], "answer": BETTER, "steps": 2, "until_loss": 0}).json
    assert job["status"] == "succeeded" and job["loss_after"] < job["loss_before"]
    assert job["tokens"] == len(tokenized([*messages, {"role": "assistant", "content": BETTER}])) - 1, "nothing is predicted from the last"
    assert lathe.call(f"{CHAT}/{kept['id']}").json["corrected_by"] == job["id"]
    # What is kept outlives the process.
    unknown = lathe.call("/v1/learn", {"completion": "chatcmpl-other", "answer": BETTER})
    assert unknown.status == 404 and "chatcmpl-other" in unknown.error


def test_what_is_not_an_answer_is_not_kept(proxied):
    _, lathe = proxied("--keep-completions", "1")
    for body in ({"messages": [QUESTION], "chat_template": "{{ 1 }}"}, {"messages": [QUESTION], "fake": {"status": 500, "body": "{}"}}):
        lathe.call(CHAT, body)
    with pytest.raises(http.client.IncompleteRead):
        opened(lathe.url, {"messages": [QUESTION], "stream": True, "fake": {"cut": True}}).getresponse().read()
    assert lathe.call(CHAT).json["data"] == []
    for stream in (False, True):
        lathe.call(CHAT, {"messages": [QUESTION], "stream": stream})
    assert [kept["id"] for kept in lathe.call(CHAT).json["data"]] == ["chatcmpl-streamed"], "one is kept, the latest"
    assert lathe.call(CHAT + "?limit=0").status == 400


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_its_request(proxied, stream):
    holder, lathe = proxied()
    connection = opened(lathe.url, {"messages": [QUESTION], "stream": stream, "fake": {"wait": True}})
    wait_for(lambda: seen(holder)["requests"], 10)
    assert seen(holder)["left"] == 0
    connection.close()
    wait_for(lambda: seen(holder)["left"] == 1, 5, "the server noticing")
    assert lathe.call(CHAT).json["data"] == []


def test_an_answer_that_breaks_off_is_told(proxied):
    _, lathe = proxied()
    reply = lathe.call(CHAT, {"messages": [QUESTION], "fake": {"cut": True}})
    assert reply.status == 503 and "broke off" in reply.error


def test_a_server_that_is_gone_is_named(proxied):
    holder, lathe = proxied()
    tell(holder, "close")
    reply = lathe.call(CHAT, {"messages": [QUESTION]})
    assert reply.status == 503 and holder.url in reply.error and "vLLM" in reply.error
    assert lathe.call("/healthz").status == 200, "the weights are still there to be taught"


def test_the_holders_death_ends_its_streams(proxied):
    holder, lathe = proxied()
    reply = opened(lathe.url, {"messages": [QUESTION], "stream": True, "fake": {"wait": True}}).getresponse()
    assert reply.read1() == events()[0]
    holder.close()
    with pytest.raises(http.client.IncompleteRead):
        reply.read()
    assert lathe.process.wait(timeout=60) == 1


def test_sigterm_does_not_wait_for_streams(proxied):
    _, lathe = proxied()
    reply = opened(lathe.url, {"messages": [QUESTION], "stream": True, "fake": {"wait": True}}).getresponse()
    assert reply.read1() == events()[0]
    begin = time.monotonic()
    assert lathe.stop() == 0
    assert time.monotonic() - begin < 10


def test_the_servers_tokens_are_taught(proxied):
    """A template that is not the directory's: graded are the answer and the token that ends it."""
    _, lathe = proxied()
    messages = [QUESTION, {"role": "assistant", "content": BETTER}, {"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "Yes."}]
    job = lathe.call("/v1/learn", {"messages": messages, "steps": 1}).json
    assert job["tokens"] == len(tokenized(messages)) - 1 and job["graded_tokens"] == len("Yes.") + 1
    both = lathe.call("/v1/learn", {"messages": messages, "turns": "all", "steps": 1}).json
    assert both["graded_tokens"] == len("Yes.") + len(BETTER) + 2


def test_tokens_that_show_no_turn_are_refused(hold, attach):
    lathe = attach(hold(FAKE_TOKENS="[601, 7, 602]"), "--tokens=server", over_http=True)
    reply = lathe.call("/v1/learn", {"messages": [QUESTION, {"role": "assistant", "content": BETTER}]})
    assert reply.status == 400 and "message 1" in reply.error and "--tokens=ours" in reply.error


def test_without_the_proxy_there_is_none(hold, attach):
    lathe = attach(hold(), "--tokens=server", over_http=True)
    assert lathe.call(CHAT, {"messages": [QUESTION]}).status == 405
    assert lathe.call(CHAT).json["data"] == []
    with pytest.raises(RuntimeError, match="--vllm"):
        attach(hold(), "--proxy")


@pytest.mark.parametrize("stream", [False, True])
def test_serve_keeps_its_answers_too(serve, tiny, stream):
    server = serve(tiny)
    server.call(CHAT, {"messages": [QUESTION], "max_tokens": 4, "stream": stream})
    (kept,) = server.call(CHAT).json["data"]
    assert kept["messages"] == [QUESTION] and kept["choices"][0]["message"]["role"] == "assistant"
    job = server.call("/v1/learn", {"completion": kept["id"], "answer": BETTER, "steps": 1}).json
    same = server.call("/v1/learn", {"messages": [QUESTION, {"role": "assistant", "content": BETTER}], "steps": 1}).json
    assert job["graded_tokens"] == same["graded_tokens"] and job["tokens"] == same["tokens"]
    assert server.stop() == 0
    again = serve(tiny, "--keep-completions", "0")
    assert again.call(f"{CHAT}/{kept['id']}").json["corrected_by"] == job["id"], "it outlives the process"
    again.call(CHAT, {"messages": [QUESTION], "max_tokens": 1})
    assert len(again.call(CHAT).json["data"]) == 1


def test_a_kept_answer_is_corrected_on_the_command_line(serve, tiny):
    server = serve(tiny)
    name = server.call(CHAT, {"messages": [QUESTION], "max_tokens": 4}).json["id"]
    run = subprocess.run([LATHE, "learn", "--server", server.url, "--completion", name, "--answer", BETTER, "--json"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert server.call(f"{CHAT}/{name}").json["corrected_by"] == json.loads(run.stdout)["id"]
    for wrong in (["--answer", BETTER], ["What?", "--completion", name, "--answer", BETTER]):
        assert subprocess.run([LATHE, "learn", "--server", server.url, *wrong], capture_output=True).returncode == 2


def test_serve_keeps_what_it_said(serve, tiny):
    server = serve(tiny)
    reply = server.call(CHAT, {"messages": [QUESTION], "max_tokens": 8, "temperature": 0})
    assert server.call(CHAT).json["data"][0]["choices"][0]["message"] == reply.json["choices"][0]["message"]
    assert server.call(CHAT).json["data"][0]["id"] == reply.json["id"]
