"""Bad input gets a clear error and changes nothing; the server goes on."""

import json
import shutil
import socket
import struct
import subprocess

import pytest
from conftest import LATHE, Server, make_tiny, wait_for

TURNS = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "good day"}]


@pytest.fixture(scope="module")
def server(tiny_model, tmp_path_factory):
    running = Server(shutil.copytree(tiny_model, tmp_path_factory.mktemp("bad") / "tiny"))
    yield running
    running.close()


def refused_start(directory, *options):
    """What `lathe serve` says when it cannot start. Exit code 1, one line, no directory changed but for .lathe."""
    run = subprocess.run([LATHE, "serve", directory, "--port", "0", *options], capture_output=True, text=True, timeout=60)
    assert run.returncode == 1, run.stdout
    lines = [line for line in run.stderr.splitlines() if line.startswith("lathe serve: ")]
    assert len(lines) == 1, run.stderr
    return lines[0]


def config(directory, **changes):
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


class TestModelDirectories:
    def test_no_directory(self, tmp_path):
        assert "there is no model directory" in refused_start(tmp_path / "nowhere")
        assert not (tmp_path / "nowhere").exists()

    def test_missing_and_truncated_shards(self, tmp_path):
        model = make_tiny(tmp_path / "sharded", shards=3)
        second = model / "model-00002-of-00003.safetensors"
        whole = second.read_bytes()
        second.write_bytes(whole[:-10])
        message = refused_start(model)
        assert second.name in message and "truncated" in message
        second.unlink()
        assert second.name in refused_start(model)
        second.write_bytes(whole)
        index = json.loads((model / "model.safetensors.index.json").read_text())
        index["weight_map"]["model.ghost.weight"] = second.name
        (model / "model.safetensors.index.json").write_text(json.dumps(index))
        assert "model.ghost.weight" in refused_start(model)

    def test_nan_weights(self, tmp_path):
        def poison(name, numbers):
            return [float("nan")] + numbers[1:] if name.endswith("layers.1.mlp.up_proj.weight") else numbers

        message = refused_start(make_tiny(tmp_path / "nan", change=poison))
        assert "layers.1.mlp.up_proj.weight" in message and "NaN" in message

    @pytest.mark.parametrize(
        "changes, named",
        [
            ({"model_type": "mamba"}, "mamba"),
            ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "yarn"),
            ({"quantization_config": {"quant_method": "gptq"}}, "quantised (quantization_config, quant_method 'gptq')"),
            ({"hidden_size": 65, "head_dim": 16}, "shape"),
            ({"num_hidden_layers": 3}, "layers.2"),
            ({"vocab_size": "many"}, "vocab_size"),
        ],
    )
    def test_configurations(self, tiny, changes, named):
        config(tiny, **changes)
        assert named in refused_start(tiny)

    def test_malformed_header(self, tiny):
        file = tiny / "model.safetensors"
        file.write_bytes(struct.pack("<Q", 2**60) + file.read_bytes()[8:])
        assert "safetensors" in refused_start(tiny)

    def test_one_process_per_directory(self, serve, tiny):
        serve(tiny)
        assert "another lathe process" in refused_start(tiny)
        doctor = subprocess.run([LATHE, "doctor", tiny], capture_output=True, text=True)
        assert doctor.returncode == 1 and "another lathe process" in doctor.stdout

    def test_port_in_use(self, tiny):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = str(taken.getsockname()[1])
            run = subprocess.run([LATHE, "serve", tiny, "--port", port], capture_output=True, text=True, timeout=60)
        assert run.returncode == 1 and "is the port free?" in run.stderr and port in run.stderr

    def test_other_addresses_need_a_key(self, tiny):
        assert "API key" in refused_start(tiny, "--host", "0.0.0.0")

    def test_usage_errors(self):
        assert subprocess.run([LATHE, "serve"], capture_output=True).returncode == 2
        assert subprocess.run([LATHE, "frobnicate"], capture_output=True).returncode == 2
        assert subprocess.run([LATHE, "--help"], capture_output=True).returncode == 0

    def test_texts_that_are_not_utf_8_or_empty(self):
        def learn(question, answer):
            command = [LATHE, "learn", question, "--answer", answer, "--server", "http://127.0.0.1:1"]
            return subprocess.run(command, capture_output=True, timeout=60)

        latin = learn(b"caf\xe9", b"coffee")
        assert latin.returncode == 1 and b"UTF-8" in latin.stderr
        assert b"no answer from" in learn("café", "coffee").stderr
        empty = learn("café", "")
        assert empty.returncode == 2 and b"must not be empty" in empty.stderr

    def test_doctor_names_what_is_wrong(self, tiny, tmp_path):
        nowhere = subprocess.run([LATHE, "doctor", tmp_path / "nowhere"], capture_output=True, text=True)
        assert nowhere.returncode == 1 and "FAIL directory" in nowhere.stdout and not (tmp_path / "nowhere").exists()
        good = subprocess.run([LATHE, "doctor", tiny, "--json"], capture_output=True, text=True)
        assert good.returncode == 0, good.stdout
        assert not (tiny / ".lathe").exists(), "doctor touches nothing"
        config(tiny, num_hidden_layers=3)
        bad = subprocess.run([LATHE, "doctor", tiny], capture_output=True, text=True)
        assert bad.returncode == 1 and "layers.2" in bad.stdout


CHAT, LEARN = "/v1/chat/completions", "/v1/learn"


@pytest.mark.parametrize(
    "path, body, named",
    [
        (CHAT, {"messages": []}, "messages"),
        (CHAT, {"messages": "hello"}, "messages"),
        (CHAT, {"messages": [{"role": "wizard", "content": "x"}]}, "wizard"),
        (CHAT, {"messages": [{"content": "x"}]}, "role"),
        (CHAT, {"messages": [{"role": "user"}]}, "content"),
        (CHAT, {"messages": [{"role": "user", "content": 5}]}, "content"),
        (CHAT, {"messages": TURNS[:1], "temperature": "hot"}, "temperature"),
        (CHAT, {"messages": TURNS[:1], "top_p": 0}, "top_p"),
        (CHAT, {"messages": TURNS[:1], "n": 99}, "n"),
        (CHAT, {"messages": TURNS[:1], "stop": [1]}, "stop"),
        (CHAT, {"messages": TURNS[:1], "stop_token_ids": [2_000_000_000], "min_tokens": 3}, "2000000000"),
        (CHAT, {"messages": TURNS[:1], "stream": True, "stream_options": {"include_usage": "yes"}}, "include_usage"),
        (CHAT, {"messages": TURNS[:1], "max_tokens": -2}, "max_tokens"),
        (CHAT, {"messages": [{"role": "user", "content": "word " * 600}]}, "context"),
        ("/v1/completions", {"prompt": []}, "prompt"),
        ("/v1/completions", {"prompt": [[99999999]]}, "99999999"),
        ("/tokenize", {}, "prompt"),
        ("/detokenize", {"tokens": "abc"}, "tokens"),
        (LEARN, {"messages": TURNS[:1]}, "no assistant turn"),
        (LEARN, {"messages": TURNS, "turns": [3]}, "turns"),
        (LEARN, {"messages": TURNS, "stepz": 3}, "stepz"),
        (LEARN, {"messages": TURNS, "lr": -1}, "lr"),
        (LEARN, {"messages": TURNS, "lr": "fast"}, "lr"),
        (LEARN, {"messages": TURNS, "steps": 0}, "steps"),
        (LEARN, {"messages": TURNS, "context": "melted"}, "context"),
        (LEARN, {"messages": [TURNS[0], {**TURNS[1], "weight": 0}]}, "weight 0"),
        (LEARN, {"messages": [TURNS[0], {"role": "assistant", "content": "word " * 600}]}, "context holds 256"),
        (LEARN, {"examples": []}, "examples"),
    ],
)
def test_requests(server, path, body, named):
    reply = server.call(path, body)
    assert reply.status == 400, reply.text
    assert named in reply.error
    assert set(reply.json["error"]) == {"message", "type", "param", "code"}
    assert server.call("/healthz").json["version"] == 0


@pytest.mark.parametrize("raw", [b"", b"{", b"[1]", b"\xff\xfe", b"null", b'{"messages":' + b"[" * 5000])
def test_bodies_that_are_not_json_objects(server, raw):
    assert server.call(CHAT, raw=raw, method="POST").status == 400
    assert server.call("/healthz").status == 200


def test_a_body_of_20_megabytes(server):
    with socket.create_connection(server.url.removeprefix("http://").split(":")) as connection:
        size = 20 << 20
        connection.sendall(b"POST /v1/learn HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % size)
        try:
            for _ in range(size >> 16):
                connection.sendall(b"x" * (1 << 16))
        except OSError:
            pass  # the server need not read it all
        try:
            answer = connection.recv(4096)
        except OSError:
            answer = b""
    assert answer == b"" or b" 413 " in answer.split(b"\r\n")[0], answer[:200]
    assert server.call("/healthz").status == 200


def test_unknown_paths_and_methods(server):
    assert server.call("/v2/nothing").status == 404
    assert server.call("/v1/learn/learn-unknown").status == 404
    assert server.call("/v1/models/other").status == 404


def test_a_template_that_raises(tiny, serve):
    (tiny / "chat_template.jinja").write_text("{{ raise_exception('only poems are welcome') }}")
    server = serve(tiny)
    reply = server.call(CHAT, {"messages": TURNS[:1]})
    assert reply.status == 400 and "only poems are welcome" in reply.error


def test_a_loss_that_is_not_finite_is_dropped(tmp_path, serve):
    # Finite weights so large that the logits overflow.
    model = make_tiny(tmp_path / "huge", change=lambda name, numbers: [3e38] * len(numbers) if name == "model.norm.weight" else numbers)
    server = serve(model)
    weights = (model / "model.safetensors").read_bytes()
    reply = server.call(LEARN, {"messages": TURNS})
    assert reply.status == 500 and reply.json["status"] == "failed"
    assert "not finite" in reply.text and "dropped" in reply.text
    assert server.call("/healthz").json["version"] == 0
    assert server.stop() == 0
    assert (model / "model.safetensors").read_bytes() == weights


@pytest.mark.parametrize("stream", [True, False])
def test_clients_that_leave_are_noticed(serve, smollm2, stream):
    """Two answers of some minutes each are made at once, and dropped within seconds of their clients' leaving."""
    server = serve(smollm2)
    body = json.dumps({"messages": TURNS[:1], "max_tokens": 8000, "stream": stream, "ignore_eos": True}).encode()
    address = server.url.removeprefix("http://").split(":")
    connections = [socket.create_connection(address, timeout=30) for _ in range(2)]
    for connection in connections:
        connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        assert connection.recv(64).startswith(b"HTTP/1.1 200")
    wait_for(lambda: server.call("/healthz").json["running"] == 2, seconds=30)
    for connection in connections:
        connection.close()
    wait_for(lambda: server.call("/healthz").json["running"] == 0, seconds=30)
    assert server.ask("hello", max_tokens=2) is not None


def test_a_directory_that_cannot_take_the_sync(serve, tmp_path, tiny_model):
    """A file system of 1 MiB: the sync fails by name, the old files stay, the server goes on."""
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", small], capture_output=True).returncode != 0:
        pytest.skip("mounting a small file system needs root")
    try:
        model = shutil.copytree(tiny_model, small / "tiny")
        server = serve(model, "--sync-seconds", "0")
        weights = (model / "model.safetensors").read_bytes()
        assert server.call(LEARN, {"messages": TURNS, "steps": 1}).status == 200
        reply = server.call("/v1/sync", {})
        assert reply.status == 507 and "free" in reply.error
        assert (model / "model.safetensors").read_bytes() == weights
        assert not list(model.glob("*.lathe-new"))
        # Until there is no room for the smallest write: the lesson's own record cannot be kept, so it is refused.
        subprocess.run("head -c 4M /dev/zero > fill", shell=True, cwd=small, stderr=subprocess.DEVNULL)
        version = server.call("/healthz").json["version"]
        reply = server.call(LEARN, {"messages": TURNS, "steps": 1})
        assert reply.status == 507 and "full" in reply.error
        assert server.call("/healthz").json["version"] == version, "nothing was learned"
        (small / "fill").unlink()
        assert server.call(LEARN, {"messages": TURNS, "steps": 1}).status == 200
        assert server.ask("hello", max_tokens=2) is not None
        assert server.stop() == 1, "a last version that could not be made durable is a failure, and is said"
        assert "free" in server.log
    finally:
        server.close()
        subprocess.run(["umount", "-l", small], check=True)
