"""The official OpenAI client as the judge of the API, on SmolLM2."""

import concurrent.futures

import openai
import pytest

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def client(smollm2_model, tmp_path_factory):
    import shutil

    from conftest import Server

    server = Server(shutil.copytree(smollm2_model, tmp_path_factory.mktemp("served") / "SmolLM2"), "--api-key", "secret")
    yield openai.OpenAI(base_url=server.url + "/v1", api_key="secret", max_retries=0)
    server.close()


def chat(client, **options):
    return client.chat.completions.create(model="SmolLM2", messages=QUESTION, temperature=0, max_tokens=24, **options)


def test_models(client):
    assert [model.id for model in client.models.list()] == ["SmolLM2"]
    assert client.models.retrieve("SmolLM2").owned_by == "lathe"


def test_chat(client):
    answer = chat(client)
    assert "Paris" in answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.system_fingerprint == "lathe-v0"


def test_streaming_gives_the_same_text(client):
    chunks = list(chat(client, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == chat(client).choices[0].message.content
    assert chunks[-1].usage.completion_tokens > 0
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"


def test_logprobs(client):
    answer = chat(client, logprobs=True, top_logprobs=3)
    content = answer.choices[0].logprobs.content
    assert len(content) == answer.usage.completion_tokens
    for token in content:
        # Greedy: the chosen token is the most likely one.
        assert len(token.top_logprobs) == 3
        assert token.logprob == pytest.approx(token.top_logprobs[0].logprob)


def test_stop_strings_are_cut_off(client):
    whole = chat(client).choices[0].message.content
    stop = whole[8:12]
    answer = chat(client, stop=[stop])
    assert answer.choices[0].message.content == whole[: whole.index(stop)]
    assert answer.choices[0].finish_reason == "stop"


def test_seed_and_several_choices(client):
    options = dict(model="SmolLM2", messages=QUESTION, temperature=1.0, max_tokens=12, seed=7)
    first, second = (client.chat.completions.create(**options).choices[0].message.content for _ in range(2))
    assert first == second
    assert len(client.chat.completions.create(**options, n=3).choices) == 3


def test_completions_with_echo(client):
    answer = client.completions.create(model="SmolLM2", prompt="The capital of France is", max_tokens=3, temperature=0, echo=True, logprobs=1)
    choice = answer.choices[0]
    assert choice.text.startswith("The capital of France is Paris")
    assert choice.logprobs.token_logprobs[0] is None
    assert all(value <= 0 for value in choice.logprobs.token_logprobs[1:])


def test_errors_are_the_clients_own(client):
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.chat.completions.create(model="SmolLM2", messages=QUESTION, temperature=-1)
    with pytest.raises(openai.NotFoundError, match="not served here"):
        client.chat.completions.create(model="other", messages=QUESTION)
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=client.base_url, api_key="wrong", max_retries=0).models.list()


def test_eight_clients_at_once(client):
    expected = chat(client).choices[0].message.content
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: chat(client).choices[0].message.content, range(8)))
    # Other rows in the batch may change the last bit of a sum, and so a near tie; the answer must stay.
    assert all("Paris" in answer for answer in answers), (expected, answers)
