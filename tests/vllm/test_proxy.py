"""vLLM's inference routes through `lathe attach --proxy`, and its own tokens taught with `--tokens=server`."""

import http.client
import json
import urllib.parse

from conftest import ANSWER, QUESTION, running, wait_for

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": QUESTION}]


def open_stream(server, **options):
    """A connection on which an answer is being streamed."""
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(server.url).netloc, timeout=120)
    body = {"messages": MESSAGES, "temperature": 0, "max_tokens": 16, "stream": True, **options}
    connection.request("POST", CHAT, json.dumps(body), {"Content-Type": "application/json"})
    return connection


def streamed_text(data):
    """The id and the text of a stream."""
    chunks = [json.loads(line[6:]) for line in data.decode().splitlines() if line.startswith("data: {")]
    return chunks[0]["id"], "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])


def test_answers_through_lathe_are_vllms_and_can_be_corrected(vllm, attach):
    lathe = attach(vllm, "--proxy", "--tokens=server")
    body = {"messages": MESSAGES, "temperature": 0, "max_tokens": 16}
    whole = lathe.call(CHAT, body)
    direct = vllm.ask()
    assert whole["choices"][0]["message"]["content"] == direct
    connection = open_stream(lathe)
    name, text = streamed_text(connection.getresponse().read())
    connection.close()
    assert text == direct
    assert lathe.call("/v1/models")["data"][0]["root"] == vllm.call("/v1/models")["data"][0]["root"]
    assert lathe.call("/tokenize", body) == vllm.call("/tokenize", body)
    assert [kept["id"] for kept in lathe.call(CHAT)["data"]] == [name, whole["id"]]

    leaving = open_stream(lathe, max_tokens=450, ignore_eos=True)
    assert leaving.getresponse().read1()
    wait_for(lambda: running(vllm) == 1, 30, "a running request")
    leaving.close()
    wait_for(lambda: running(vllm) == 0, 10, "vLLM ending the request of a client that left")

    learned = lathe.call("/v1/learn", {"completion": name, "answer": ANSWER})
    assert learned["status"] == "succeeded"
    taught = lathe.call(CHAT, body)["choices"][0]["message"]["content"]
    assert taught.startswith(ANSWER) and taught == vllm.ask()
    assert lathe.call(f"{CHAT}/{name}")["corrected_by"] == learned["id"]
    assert lathe.stop() == 0

    # vLLM's tokens and the directory's are the same here, and so is what is graded.
    ours = attach(vllm).call("/v1/learn", {"messages": [*MESSAGES, {"role": "assistant", "content": ANSWER}], "steps": 1})
    assert (ours["tokens"], ours["graded_tokens"]) == (learned["tokens"], learned["graded_tokens"])
