"""What clients of OpenAI's API, vLLM and llama.cpp send, unmodified: it works, or is refused by name."""

import contextlib
import json
import shutil

import pytest
from conftest import TINY, Server

CHAT, PLAIN = "/v1/chat/completions", "/v1/completions"
ASK = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
CONTEXT = TINY["max_position_embeddings"]


@pytest.fixture(scope="module")
def server(tiny_model, tmp_path_factory):
    directory = shutil.copytree(tiny_model, tmp_path_factory.mktemp("clients") / "tiny")
    with contextlib.closing(Server(directory, "--served-model-name", "acme/lathe-7b")) as running:
        yield running


def chunks_of(reply):
    """The events of a stream, which must be whole."""
    assert reply.status == 200, reply.text
    events = [line[6:] for line in reply.text.splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    return [json.loads(event) for event in events[:-1]]


@pytest.mark.parametrize("path", ["acme/lathe-7b", "acme%2Flathe-7b"])
def test_a_model_with_a_slash_in_its_name(server, path):
    assert server.call("/v1/models/" + path).json["id"] == "acme/lathe-7b"
    assert server.call(CHAT, {**ASK, "model": "acme/lathe-7b"}).status == 200
    assert server.call("/v1/models/acme/other").status == 404


def test_base_addresses_as_people_write_them(server):
    for prefix in ("", "/v1", "/v1/v1", "//v1"):
        assert server.call(prefix + "/chat/completions", ASK).status == 200, prefix
    assert server.call("/health").json["status"] == "ok"
    lost = server.call("/api/chat", ASK)
    assert lost.status == 404 and "/v1" in lost.error


@pytest.mark.parametrize("path", [CHAT, PLAIN])
def test_a_seed_of_minus_one_is_none(server, path):
    ask = {**(ASK if path == CHAT else {"prompt": "hello"}), "temperature": 2, "max_tokens": 16, "logprobs": 1 if path == PLAIN else True}

    def texts(seed):
        return {json.dumps(server.call(path, {**ask, "seed": seed}).json["choices"][0]["logprobs"]) for _ in range(4)}
    assert len(texts(-1)) > 1
    assert len(texts(-2)) == len(texts(7)) == 1


@pytest.mark.parametrize("path", [CHAT, PLAIN])
@pytest.mark.parametrize("wanted", [32000, -1])
def test_more_tokens_than_fit(server, path, wanted):
    ask = {**(ASK if path == CHAT else {"prompt": "hello"}), "max_tokens": wanted, "ignore_eos": True}
    answer = server.call(path, ask).json
    if path == PLAIN and wanted == -1:
        assert answer["usage"]["completion_tokens"] == 16, "OpenAI's default"
        return
    assert answer["usage"]["total_tokens"] == CONTEXT
    assert answer["choices"][0]["finish_reason"] == "length"


def test_no_room_for_an_answer(server):
    full = {"prompt": [1] * CONTEXT, "logprobs": 1, "echo": True}
    refused = server.call(PLAIN, {**full, "max_tokens": 1})
    assert refused.status == 400 and str(CONTEXT) in refused.error
    scored = server.call(PLAIN, {**full, "max_tokens": 0}).json
    assert len(scored["choices"][0]["logprobs"]["token_logprobs"]) == CONTEXT
    assert server.call(PLAIN, {"prompt": [1] * (CONTEXT - 2), "min_tokens": 3, "max_tokens": 9}).json["error"]["param"] == "min_tokens"


def test_several_answers_in_a_stream(server):
    ask = {**ASK, "n": 3, "seed": 5, "temperature": 1, "max_tokens": 12, "stream_options": {"include_usage": True}}
    whole = server.call(CHAT, {**ask, "stream_options": None}).json
    *chunks, usage = chunks_of(server.call(CHAT, {**ask, "stream": True}))
    texts, ends = ["", "", ""], {}
    for chunk in chunks:
        (choice,) = chunk["choices"]
        assert choice["index"] not in ends
        texts[choice["index"]] += choice["delta"].get("content", "")
        if choice["finish_reason"]:
            ends[choice["index"]] = choice["finish_reason"]
    assert texts == [choice["message"]["content"] for choice in whole["choices"]]
    assert [ends[i] for i in range(3)] == [choice["finish_reason"] for choice in whole["choices"]]
    assert usage["usage"] == whole["usage"] and usage["choices"] == []


def test_several_prompts_with_echo_in_a_stream(server):
    ask = {"prompt": ["hello", "good day"], "n": 2, "seed": 5, "echo": True, "logprobs": 2, "max_tokens": 5}
    whole = server.call(PLAIN, ask).json["choices"]
    texts, scores = [""] * 4, [[] for _ in range(4)]
    for chunk in chunks_of(server.call(PLAIN, {**ask, "stream": True})):
        (choice,) = chunk["choices"]
        texts[choice["index"]] += choice["text"]
        scores[choice["index"]] += (choice["logprobs"] or {}).get("token_logprobs", [])
    assert texts == [choice["text"] for choice in whole] and texts[0].startswith("hello") and texts[3].startswith("good day")
    assert scores == [choice["logprobs"]["token_logprobs"] for choice in whole]


def test_usage_in_each_chunk(server):
    ask = {**ASK, "stream": True, "ignore_eos": True, "stream_options": {"continuous_usage_stats": True}}
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks_of(server.call(CHAT, ask))]
    assert counts[0] == 0 and counts == sorted(counts) and counts[-1] == 4


def test_logit_bias(server):
    ask = {"prompt": "hello", "temperature": 0, "max_tokens": 3, "logprobs": 1}
    texts = {token: server.call("/detokenize", {"tokens": [token]}).json["prompt"] for token in (65, 66)}

    def tokens(bias):
        return server.call(PLAIN, {**ask, "logit_bias": bias}).json["choices"][0]["logprobs"]["tokens"]

    assert tokens({"65": 100, "66": 90}) == [texts[65]] * 3
    assert tokens({"65": -100, "66": 90}) == [texts[66]] * 3
    assert "640" in server.call(PLAIN, {**ask, "logit_bias": {"640": 1}}).error


IGNORED = {"user": "u", "metadata": {"a": "b"}, "store": False, "service_tier": "auto", "prompt_cache_key": "k", "safety_identifier": "s",
           "cache_prompt": True, "best_of": 1, "use_beam_search": False, "echo": False, "tfs_z": 1.0, "suffix": None, "anything": None,
           "max_tokens": 4.0, "top_k": 0.0, "stop": None, "stop_token_ids": [], "stream_options": None, "functions": [],
           "response_format": {"type": "text"}, "tool_choice": "auto", "parallel_tool_calls": True}


@pytest.mark.parametrize("path", [CHAT, PLAIN])
def test_what_says_nothing_about_the_answer_is_taken(server, path):
    ask = ASK if path == CHAT else {"prompt": "hello"}
    fields = {name: value for name, value in IGNORED.items() if path == CHAT or name != "echo"}
    assert server.call(path, {**ask, **fields}).status == 200


REFUSED = {"use_beam_search": True, "length_penalty": 1.5, "suffix": "x", "bad_words": ["x"], "modalities": ["text", "audio"], "typical_p": 0.5,
           "mirostat": 2, "functions": [{"name": "f"}], "best_of": 2, "add_special_tokens": True, "temprature": 0.5, "logit_bias": {"x": 1},
           "guided_json": {"type": "object"}, "skip_special_tokens": False, "include_stop_str_in_output": True, "enable_thinking": False, "n_predict": 5,
           "seed": 1.5, "min_tokens": 9, "tool_choice": "required",
           "response_format": {"type": "json_object"}, "parallel_tool_calls": False, "reasoning_effort": "low", "stream_options": {"usage": True}}


@pytest.mark.parametrize("path", [CHAT, PLAIN])
@pytest.mark.parametrize("field", REFUSED)
def test_what_would_change_the_answer_is_refused_by_name(server, path, field):
    reply = server.call(path, {**(ASK if path == CHAT else {"prompt": "hello", "max_tokens": 4}), field: REFUSED[field]})
    assert reply.status == 400, reply.text
    assert reply.json["error"]["param"].split(".")[0] == field, reply.error


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "video_url", "file"])
def test_what_is_not_text_is_refused_by_name(server, kind):
    parts = [{"type": "text", "text": "What is this?"}, {"type": kind, kind: {"url": "data:,"}}]
    reply = server.call(CHAT, {"messages": [{"role": "user", "content": parts}]})
    assert reply.status == 400 and "messages[0].content[1]" in reply.error and kind in reply.error


def test_top_logprobs_need_logprobs(server):
    assert server.call(CHAT, {**ASK, "top_logprobs": 2}).json["error"]["param"] == "top_logprobs"
    assert server.call(CHAT, {**ASK, "top_logprobs": 0}).status == 200
