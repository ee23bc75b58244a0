"""Settings of the real program: from a file, the environment and flags, and the recipe for systemd."""

import json
import os
import re
import shlex
import subprocess

import pytest
from conftest import LATHE, REPOSITORY, Server


def run(*arguments, **environment):
    done = subprocess.run([LATHE, *arguments], capture_output=True, text=True, timeout=60, env={**os.environ, **environment})
    return done.returncode, done.stdout, done.stderr


def test_a_file_is_read(tiny, serve, tmp_path):
    file = tmp_path / "lathe.toml"
    file.write_text('api-key = "from-file"\nserved-model-name = "filed"\nport = 1\nsteps = 3\n')
    file.chmod(0o600)
    server = serve(tiny, "--config", file, env={"LATHE_STEPS": "2"})  # and --port 0
    assert server.call("/v1/models").status == 401
    allowed = {"Authorization": "Bearer from-file"}
    assert server.call("/v1/models", headers=allowed).json["data"][0]["id"] == "filed"
    turns = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "good day"}]
    assert server.call("/v1/learn", {"messages": turns, "until_loss": 0}, headers=allowed).json["steps"] == 2, "the environment's"


@pytest.mark.parametrize("text, words", [('prot = 80\n', ":1: there is no setting 'prot'; did you mean 'port'?"),
                                         ('host = 127.0.0.1\n', ":1: "), ('vllm = "x"\n', "'vllm' of this command")])
def test_a_wrong_file_is_refused_before_anything_is_opened(tiny, tmp_path, text, words):
    file = tmp_path / "lathe.toml"
    file.write_text(text)
    code, _, error = run("serve", tiny, "--config", file)
    assert code == 2 and f"{file}" in error and words in error, error
    assert not (tiny / ".lathe").exists()


def test_a_missing_file_is_refused(tiny):
    for environment, arguments in (({}, ["--config", "/nowhere.toml"]), ({"LATHE_CONFIG": "/nowhere.toml"}, [])):
        code, _, error = run("serve", tiny, *arguments, **environment)
        assert code == 2 and "/nowhere.toml" in error
    assert not (tiny / ".lathe").exists()


def test_print_shows_values_and_sources_but_no_keys(tmp_path):
    file = tmp_path / "lathe.toml"
    file.write_text('api-key = "hush-hush"\nhost = "0.0.0.0"\n')
    file.chmod(0o600)
    code, text, error = run("config", "print", "--config", file, "--steps", "6", LATHE_PORT="9000")
    assert code == 0 and not error
    assert "hush-hush" not in text
    rows = {line.split()[0]: line.split(None, 1)[1] for line in text.splitlines()}
    assert rows["port"].split() == ["9000", "LATHE_PORT"]
    assert rows["steps"].split() == ["6", "--steps"]
    assert rows["host"].split() == ["0.0.0.0", f"{file}:2"]
    assert rows["api-key"].endswith(f"{file}:1")
    assert rows["lr"].split() == ["2e-05", "default"]
    code, text, _ = run("config", "print", "attach", "--json", "--config", file, VLLM_API_KEY="hush")
    assert code == 0 and "hush" not in text
    printed = json.loads(text)
    assert printed["vllm-api-key"] == {"source": "environment", "where": "VLLM_API_KEY", "set": True}
    assert printed["on-difference"]["value"] == "refuse"
    assert "vllm" not in rows and run("config", "print", "--vllm", "http://x")[0] == 2


def test_print_knows_every_option_of_the_commands():
    """A setting that a command takes and that is not printed would be one that is not in the table."""
    for command in ("serve", "attach"):
        options = set(re.findall(r"^  --([a-z-]+)", run(command, "--help")[1], re.M)) - {"help", "config"}
        printed = set(json.loads(run("config", "print", command, "--json")[1]))
        assert options == printed


def test_the_recipe_for_systemd(tiny, tmp_path):
    """ExecStart of the unit, with paths of this test, serves by the file that it names."""
    unit = (REPOSITORY / "packaging/lathe@.service.in").read_text()
    start = re.search(r"^ExecStart=(.*)$", unit, re.M).group(1)
    file = tmp_path / "tiny.toml"
    file.write_text('port = 0\napi-key = "k"\n')
    words = [word.replace("%i", "tiny").replace("/srv/models", str(tiny.parent)).replace("/etc/lathe", str(tmp_path)) for word in shlex.split(start)]
    assert words[0].endswith("/lathe") and words[1] == "serve"
    process = subprocess.Popen([LATHE, *words[1:]], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        assert " at http://127.0.0.1:" in line
        server = Server.__new__(Server)
        server.url = line.rsplit(" at ", 1)[1].strip()
        assert server.call("/v1/models").status == 401
        assert server.call("/v1/models", headers={"Authorization": "Bearer k"}).status == 200
        process.terminate()
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()
