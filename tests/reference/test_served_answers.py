"""`lathe serve` answers as transformers does, over the OpenAI API at temperature 0."""

import json
import os
import pathlib
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request

import answers
import pytest
import texts

BUILD = pathlib.Path(os.environ.get("LATHE_BUILD", pathlib.Path(__file__).resolve().parents[2] / "build"))
COUNT = 32
# transformers' own bf16 run falls at most 0.15 logits short of fp32 on these prompts; twice that is still a tie, not a mistake.
TIE = 0.3


def lathe_binary():
    for path in (BUILD / "apps/lathe/lathe", BUILD / "lathe"):
        if path.is_file() and subprocess.run([path, "serve", "--help"], capture_output=True).returncode == 0:
            return path
    pytest.skip(f"no lathe binary with 'serve' under {BUILD}")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def request(url, body=None, timeout=120):
    data = json.dumps(body).encode() if body else None
    call = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(call, timeout=timeout) as reply:
        return json.loads(reply.read() or b"null")


@pytest.fixture(scope="module")
def server(model_dir, tmp_path_factory):
    binary = lathe_binary()
    folder = tmp_path_factory.mktemp("served")
    copy = shutil.copytree(model_dir, folder / model_dir.name)  # a server may write to its directory
    url = f"http://127.0.0.1:{free_port()}"
    with open(folder / "log", "w") as log:
        process = subprocess.Popen([binary, "serve", copy, "--port", url.rsplit(":", 1)[1]], stdout=log, stderr=log)
        try:
            for _ in range(300):
                if process.poll() is not None:
                    pytest.fail(f"lathe serve ended with {process.returncode}:\n{(folder / 'log').read_text()}")
                try:
                    request(url + "/healthz", timeout=5)
                    break
                except (urllib.error.URLError, ConnectionError, ValueError):
                    time.sleep(0.2)
            else:
                pytest.fail(f"lathe serve did not answer in 60 s:\n{(folder / 'log').read_text()}")
            yield url
        finally:
            process.terminate()
            process.wait(timeout=30)


def test_greedy_answers(server, from_directory, tokenizer):
    name = request(server + "/v1/models")["data"][0]["id"]
    equal = 0
    for messages in texts.CONVERSATIONS:
        choice = request(server + "/v1/chat/completions",
                         {"model": name, "messages": messages, "temperature": 0, "max_tokens": COUNT})["choices"][0]
        text = choice["message"]["content"]
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        ids += [tokenizer.eos_token_id] if choice["finish_reason"] == "stop" else []
        assert answers.shortfall(from_directory, prompt, ids) < TIE, (messages, text)
        expected = tokenizer.decode(answers.greedy(from_directory, prompt, COUNT), skip_special_tokens=True)
        equal += text == expected
    assert equal >= len(texts.CONVERSATIONS) - 2, f"only {equal} of {len(texts.CONVERSATIONS)} answers are word for word the same"


def test_same_tokens_over_http(server, tokenizer):
    for text in texts.strings():
        reply = request(server + "/tokenize", {"prompt": text, "add_special_tokens": False})
        assert reply["tokens"] == tokenizer(text, add_special_tokens=False)["input_ids"], repr(text)
