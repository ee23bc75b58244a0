"""Every command as somebody new would use it, with every wrong input: exit code, words, and what is created, which is nothing."""

import contextlib
import http.server
import os
import pathlib
import pty
import re
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time

import pytest
from conftest import LATHE, closing_all, make_tiny

COMMANDS = ["serve", "attach", "chat", "learn", "train", "sync", "log", "inspect", "verify", "rollback", "convert", "export", "publish", "push", "receive", "prune",
            "doctor", "bench", "config"]
ON_A_MODEL = {  # commands that take a model directory: what else they want
    "serve": ["--port", "0"], "train": ["DATA"], "log": [], "verify": [], "rollback": [], "export": ["1", "OUT/export"], "publish": ["OUT/link"], "convert": ["OUT/converted"],
    "push": ["OUT/copy"], "prune": [], "bench": [], "doctor": [],
}
NO_SERVER = "http://127.0.0.1:9"  # the port of discard, where nothing listens


def run(*words, **options):
    done = subprocess.run([LATHE, *map(str, words)], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120, **options)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def world(tiny_model, tmp_path_factory):
    """What a person may name by mistake. Nothing of it may change."""
    root = tmp_path_factory.mktemp("world")
    shutil.copytree(tiny_model, root / "model")
    shutil.copytree(tiny_model, root / "no-config")
    (root / "no-config/config.json").unlink()
    shutil.copytree(tiny_model, root / "no-tokenizer")
    (root / "no-tokenizer/tokenizer.json").unlink()
    (root / "empty").mkdir()
    (root / "folder").mkdir()
    (root / "folder/notes.txt").write_text("no model")
    (root / "file").write_text("no directory")
    (root / "data.jsonl").write_text('{"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "good day"}]}\n')
    return root


def files(root):
    return {str(path.relative_to(root)): path.is_dir() or path.stat().st_size for path in sorted(root.rglob("*"))}


def filled(words, world):
    """DATA, OUT/... and names of the world, as paths."""
    there = {path.name for path in world.iterdir()} | {"nothing", "OUT"}
    out = []
    for word in map(str, words):
        head = word.split("/", 1)[0]
        out.append(str(world / "data.jsonl") if word == "DATA" else str(world / word) if head in there else word)
    return out


WRONG_DIRECTORIES = {"nothing": "there is no model directory", "file": "is a file", "empty": "neither model.safetensors", "folder": "neither model.safetensors"}

# Words of the command, exit code, and what must be said.
TABLE = [
    ([], 2, "name a command"),
    (["srve"], 2, "did you mean 'serve'?"),
    (["frobnicate"], 2, "there is no command 'frobnicate'"),
    (["--hlep"], 2, "did you mean '--help'?"),
    (["help"], 0, "Subcommands:"),
    (["help", "serve"], 0, "Usage: lathe serve"),
    (["help", "srve"], 2, "did you mean 'serve'?"),
    (["version"], 0, "."),
    ([""], 2, "there is no command ''"),
    (["serve", ""], 2, "MODEL_DIR must not be empty"),
    (["serve", "model", "model"], 2, "was not expected"),
    (["serve", "model", "--host", "0.0.0.0"], 1, "set an API key"),
    (["serve", "model", "--host", "nonsense", "--api-key", "k"], 1, "cannot listen on nonsense:8077"),
    (["serve", "model", "--allow-origin", "page.example"], 1, "page.example"),
    (["serve", "model", "--device", "cuda:99"], 1, "CUDA"),
    (["serve", "model", "--port"], 2, "--port"),
    (["serve"], 2, "MODEL_DIR is required"),
    (["serve", "model", "--prot", "80"], 2, "did you mean '--port'?"),
    (["serve", "model", "--port", "lots"], 2, "--port must be an integer from 0 to 65535, not 'lots'"),
    (["serve", "model", "--port", "-1"], 2, "--port must be an integer"),
    (["serve", "model", "--port", "65536"], 2, "--port must be an integer"),
    (["serve", "model", "--lr", "0"], 2, "--lr must be a number"),
    (["serve", "model", "--optimizer", "adam"], 2, "--optimizer must be apollo_mini, apollo, adamw or sgd, not 'adam'"),
    (["serve", "model", "--config", "nothing"], 2, "cannot open"),
    (["serve", "model", "extra"], 2, "was not expected"),
    (["serve", "no-config"], 1, "config.json"),
    (["serve", "no-tokenizer"], 1, "tokenizer.json"),
    (["attach"], 2, "name the server with --vllm"),
    (["attach", "--vllm", "https://127.0.0.1:8000"], 2, "https"),
    (["attach", "--vllm", NO_SERVER], 1, "no answer from " + NO_SERVER),
    (["attach", "--vllm", NO_SERVER, "--on-difference", "maybe"], 2, "must be refuse, restore or adopt"),
    (["attach", "--socket", "nothing"], 1, "nothing"),
    (["attach", "--socket", "file"], 1, "is not a socket"),
    (["attach", "--socket", "nothing", "--proxy"], 2, "add --vllm"),
    (["attach", "--vllm", NO_SERVER, "--host", "0.0.0.0"], 1, "set an API key"),
    (["chat", "--server", NO_SERVER], 1, "is `lathe serve` running there?"),
    (["chat", "--server", "ftp://x"], 1, "another scheme than http"),
    (["chat", "--server", "http://127.0.0.1:9/v2"], 1, "it has a path"),
    (["chat", "--temperature", "-1"], 2, "--temperature: must be a number from 0 to 100, not '-1'"),
    (["chat", "--max-tokens", "1.5"], 2, "--max-tokens: must be an integer from 1 to 1048576, not '1.5'"),
    (["chat", "extra"], 2, "was not expected"),
    (["learn"], 2, "--answer is required"),
    (["learn", "--answer", "x"], 2, "say what was asked"),
    (["learn", "q", "--answer", ""], 2, "must not be empty"),
    (["learn", "", "--answer", "x"], 2, "must not be empty"),
    (["learn", "q", "--answer", "x", "--lr", "much"], 2, "--lr: must be a number from 1e-09 to 1, not 'much'"),
    (["learn", "q", "--answer", "x", "--completion", "c"], 2, "excludes"),
    (["learn", "q", "--answer", "x", "--steps", "-3"], 2, "--steps"),
    (["learn", "q", "--anser", "x"], 2, "did you mean '--answer'?"),
    (["learn", "q", "--answer", "x", "--server", NO_SERVER], 1, "is `lathe serve` running there?"),
    (["learn", "q", "--answer", "x", "--server", NO_SERVER + "/v1/"], 1, "no answer from " + NO_SERVER + " "),
    (["learn", "q", "--answer", "x", "--server", "http://no-such-host.invalid"], 1, "no answer from http://no-such-host.invalid:80"),
    (["learn", "q", "--answer", "x", "--server", "127.0.0.1:x"], 1, "'x' is not a port"),
    (["train", "model"], 2, "DATA is required"),
    (["train", "model", "nothing"], 1, "nothing"),
    (["train", "model", "folder"], 1, "folder"),
    (["train", "model", "file"], 1, "file"),
    (["train", "model", ""], 2, "DATA must not be empty"),
    (["train", "DATA", "model"], 1, "data.jsonl is a file; name the model directory"),
    (["train", "model", "DATA", "--eval", "nothing"], 1, "cannot open"),
    (["train", "model", "DATA", "--eval-split", "0.1"], 2, "there is no option '--eval-split'"),
    (["train", "model", "DATA", "--report", "file", "--restart"], 1, "the report cannot be written"),
    (["train", "model", "DATA", "--device", "tpu"], 1, "tpu"),
    (["train", "model", "DATA", "--seed", "x"], 2, "--seed: must be an integer, 0 or more, not 'x'"),
    (["train", "model", "DATA", "--rank", "0"], 2, "--rank: must be an integer, 1 or more, not '0'"),
    (["train", "model", "DATA", "--epochs", "0"], 2, "--epochs"),
    (["train", "model", "DATA", "--lr", "-1"], 2, "--lr"),
    (["train", "model", "DATA", "--resume"], 1, "no unfinished run"),
    (["train", "model", "DATA", "--dry-run", "--method", "ppo"], 2, "--method: must be sft or dpo, not 'ppo'"),
    (["sync"], 1, "is `lathe serve` running there?"),
    (["sync", "model"], 1, "no server works on"),
    (["sync", "--from", "model"], 2, "MODEL_DIR"),
    (["sync", "model", "--from", "empty"], 1, "neither model.safetensors"),
    (["sync", "model", "--from", "nothing"], 1, "nothing"),
    (["sync", "nothing", "--from", "model"], 1, "there is no model directory"),
    (["log", "model"], 0, "no history yet"),
    (["log", "model", "--json"], 0, '"versions": []'),
    (["verify", "model"], 0, "no history yet"),
    (["verify", "model", "--threads", "-1"], 2, "--threads"),
    (["prune", "model"], 0, "no history yet"),
    (["prune", "model", "--all-hours", "-1"], 2, "--all-hours"),
    (["prune", "model", "--all-hours", "x"], 2, "--all-hours: must be an integer, 0 or more, not 'x'"),
    (["rollback", "model", "latest"], 2, "VERSION: must be an integer, 0 or more, not 'latest'"),
    (["rollback", "model", "-1"], 2, "VERSION"),
    (["export", "model", "-1", "OUT"], 2, "VERSION"),
    (["rollback", "model"], 1, "there is none before it to go back to"),
    (["rollback", "model", "--redo"], 1, "redo"),
    (["rollback", "model", "0", "--redo"], 2, "excludes"),
    (["rollback", "model", "7"], 1, "there is no version 7"),
    (["export", "model", "1.5", "OUT"], 2, "VERSION: must be an integer, 0 or more, not '1.5'"),
    (["export", "model", "99999999999999999999", "OUT"], 2, "VERSION"),
    (["export", "model", "0", "model"], 1, "exists already"),
    (["export", "model", "0", "file"], 1, "exists already"),
    (["export", "model", "0", "file/x"], 1, "Not a directory"),
    (["export", "model", "0", ""], 2, "DIR must not be empty"),
    (["export", "model"], 2, "is required"),
    (["export", "model", "7", "OUT"], 1, "there is no version 7"),
    (["publish", "model"], 2, "LINK is required"),
    (["publish", "model", "OUT", "--keep", "0"], 2, "--keep: must be an integer from 1 to 100000, not '0'"),
    (["publish", "model", ""], 2, "LINK must not be empty"),
    (["publish", "model", "file"], 1, "is not a symbolic link"),
    (["publish", "model", "folder"], 1, "is not a symbolic link"),
    (["push", "model"], 2, "DEST is required"),
    (["push", "model", "model"], 1, "cannot be pushed to itself"),
    (["push", "model", ""], 2, "DEST must not be empty"),
    (["push", "model", ":copy"], 1, "names no host before the colon"),
    (["push", "model", "file"], 1, "is a file"),
    (["push", "model", "folder"], 1, "neither model.safetensors"),
    (["push", "model", "host:copy", "--ssh", "/nothing/ssh"], 1, "cannot"),
    (["push", "nothing", "OUT"], 1, "there is no model directory"),
    (["receive", "nothing"], 1, "there is no model directory"),
    (["inspect"], 2, "PATH is required"),
    (["inspect", "nothing"], 1, "nothing"),
    (["inspect", "file"], 1, "file"),
    (["inspect", "empty"], 1, "neither model.safetensors"),
    (["inspect", "model/config.json"], 1, "config.json"),
    (["inspect", ""], 2, "PATH must not be empty"),
    (["inspect", "/dev/null"], 1, "/dev/null"),
    (["doctor", "model"], 0, "ok   directory"),
    (["doctor", "--vllm", NO_SERVER], 1, "no answer from"),
    (["doctor", ""], 2, "MODEL_DIR must not be empty"),
    (["doctor", "--socket", "nothing"], 1, "FAIL"),
    (["bench", "model", "--repeats", "0"], 2, "--repeats: must be an integer from 1 to 1000, not '0'"),
    (["bench", "model", "--device", "tpu"], 1, "tpu"),
    (["config"], 2, "subcommand is required"),
    (["config", "prnt"], 2, "did you mean 'print'?"),
    (["config", "print", "sync"], 2, "COMMAND: must be serve or attach, not 'sync'"),
    (["config", "print", "--config", "file"], 2, "a line is `name = value`"),
    (["config", "print", "--vllm", "x"], 2, "use `lathe config print attach`"),
    (["config", "print", "--config", "nothing"], 2, "cannot open"),
    *(([command, name, *more], 1, words) for command, more in ON_A_MODEL.items() for name, words in WRONG_DIRECTORIES.items()),
    *(([command, "--help"], 0, "Usage: lathe " + command) for command in COMMANDS),
    *(([command, "--no-such-flag"], 2, "there is no option '--no-such-flag'") for command in COMMANDS),
]


@pytest.mark.parametrize("words, code, said", TABLE, ids=[" ".join(words) or "(nothing)" for words, _, _ in TABLE])
def test_table(world, words, code, said):
    before = files(world)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LATHE_") or name == "LATHE_CACHE"}
    got, text = run(*filled(words, world), env=environment)
    assert got == code and said in text, (got, text)
    assert not re.search(r"not in range|Could not convert|not in \{", text), "the library's words"
    # Histories are begun by commands that need one, in a directory that is a model.
    created = {path for path in files(world) if path not in before and not path.startswith("model/.lathe")}
    assert not created
    if said == "no history yet" or code == 2:
        assert files(world) == before
    if code != 0:
        assert len(text.splitlines()) <= 3 or words in ([],) or words[0] == "doctor", text
        assert not re.search(r"terminate called|Aborted|std::|CLI::", text), text
    shutil.rmtree(world / "model/.lathe", ignore_errors=True)


def test_every_command_is_in_the_table():
    listed = re.findall(r"^  ([a-z]+) ", run("--help")[1].split("Subcommands:")[1], re.M)
    assert sorted(listed) == sorted(COMMANDS)
    assert {words[0] for words, _, _ in TABLE if words} >= set(COMMANDS)


def test_etc_stays_as_it_is():
    for command, more in ON_A_MODEL.items():
        code, text = run(command, "/etc", *more)
        assert code == 1 and "neither model.safetensors" in text, (command, text)
        assert not os.path.exists("/etc/.lathe"), command


@pytest.fixture
def others(tiny_model):
    """A directory that another user can reach, with a model in it that has a history; and how to be that user."""
    if os.geteuid() != 0:
        pytest.skip("becoming another user needs root")
    root = pathlib.Path(tempfile.mkdtemp(prefix="lathe-others-"))
    root.chmod(0o755)
    try:
        (root / "bin").mkdir(mode=0o755)
        shutil.copy(LATHE, root / "bin/lathe")
        model = shutil.copytree(tiny_model, root / "model")
        changed = make_tiny(root / "changed", change=lambda name, numbers: [number * 1.01 for number in numbers])
        assert run("sync", model, "--from", changed)[0] == 0
        for path in [model, *model.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)

        def as_nobody(*words):
            done = subprocess.run([root / "bin/lathe", *map(str, words)], capture_output=True, text=True, timeout=60, user=65534, group=65534,
                                  extra_groups=[], env={"PATH": "/usr/bin:/bin"})
            return done.returncode, done.stdout + done.stderr

        yield root, as_nobody
    finally:
        shutil.rmtree(root)


def test_a_published_generation_does_not_change(tiny, tmp_path):
    link = tmp_path / "live"
    assert run("publish", tiny, link)[0] == 0
    before = files(link)
    for name in (link, f"{link}/", link.resolve()):
        for command in (["serve", name, "--port", "0"], ["sync", name, "--from", tiny], ["rollback", name]):
            code, text = run(*command)
            assert code == 1 and "is a published generation" in text, (command, text)
    assert files(link) == before
    assert run("verify", link)[0] == 0


def test_an_answer_of_another_server_is_said_to_be_one():
    class NotLathe(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(404)
            self.end_headers()
            self.wfile.write(b"<html>")

        do_POST = do_GET

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), NotLathe) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        for words in (["chat"], ["learn", "q", "--answer", "x"], ["sync"]):
            code, text = run(*words, "--server", url)
            assert code == 1 and f"{url} answered 404, and not as `lathe serve` does" in text, text
        server.shutdown()


def test_reading_needs_no_write_access(others):
    root, as_nobody = others
    before = files(root)
    code, text = as_nobody("log", root / "model")
    assert code == 0 and "import" in text, text
    code, text = as_nobody("verify", root / "model")
    assert code == 0 and text.startswith("ok  version 1"), text
    code, text = as_nobody("rollback", root / "model")
    assert code == 1 and "Permission denied" in text, text
    code, text = as_nobody("log", root / "changed")  # never locked by anybody
    assert code == 0 and "no history yet" in text
    assert files(root) == before


def test_an_unreadable_directory(others):
    root, as_nobody = others
    (root / "model").chmod(0o700)
    for command in ("log", "verify", "prune", "rollback"):
        code, text = as_nobody(command, root / "model")
        assert code == 1 and "Permission denied" in text, (command, text)


def test_what_was_interrupted_is_said_to_one_who_may_not_write(others):
    root, as_nobody = others
    (root / "model/.lathe/state.json").unlink()
    code, text = as_nobody("verify", root / "model")
    assert code == 1 and "needs recovery first" in text, text
    assert run("verify", root / "model")[0] == 0, "who may write puts it in order"
    assert as_nobody("verify", root / "model")[0] == 0


def test_a_full_disk(tiny_model, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=700k", "none", small], capture_output=True).returncode != 0:
        pytest.skip("mounting a small file system needs root")
    try:
        model = shutil.copytree(tiny_model, small / "m")
        before = files(small)
        other = make_tiny(tmp_path / "other", change=lambda name, numbers: [number * 1.01 for number in numbers])
        code, text = run("sync", model, "--from", other)
        assert code == 1 and "free" in text, text
        assert {name: size for name, size in files(small).items() if ".lathe" not in name} == before
        assert run("verify", model)[0] == 0
        code, text = run("export", model, 0, small / "out")
        assert code == 1 and "free" in text, text
        assert not (small / "out").exists()
    finally:
        subprocess.run(["umount", "-l", small], check=True)


@pytest.fixture
def serve(request):
    from conftest import Server

    yield from closing_all(Server)


@pytest.mark.parametrize("end", ["", "/", "/v1", "/v1/"])
def test_addresses_as_people_write_them(tiny, serve, end):
    server = serve(tiny)
    code, text = run("learn", "q", "--answer", "x", "--steps", "1", "--server", server.url + end)
    assert code == 0 and "version 1" in text, text
    code, text = run("learn", "q", "--answer", "x", "--steps", "1", "--server", server.url.removeprefix("http://") + end)
    assert code == 0, text


def test_ipv6(tiny, serve):
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("no IPv6 here")
    server = serve(tiny, "--host", "::1")
    assert server.url.startswith("http://[::1]:")
    assert server.call("/healthz").status == 200
    code, text = run("learn", "q", "--answer", "x", "--steps", "1", "--server", server.url)
    assert code == 0, text
    code, text = run("sync", tiny)  # finds the server by itself
    assert code == 0 and "on disk" in text, text


# ---- a terminal


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, *words, **environment):
        self.process, self.screen = None, ""
        pid, self.file = pty.fork()
        if pid == 0:
            os.execve(LATHE, ["lathe", *map(str, words)], {**os.environ, "TERM": "xterm", "LC_ALL": "C.UTF-8", **environment})
        self.pid = pid

    def type(self, text):
        os.write(self.file, text.encode())

    def wait(self, text, seconds=60):
        """Everything up to `text`, which is taken off the screen."""
        end = time.monotonic() + seconds
        while text not in self.screen:
            assert time.monotonic() < end, f"no {text!r} in {self.screen!r}"
            if select.select([self.file], [], [], 0.2)[0]:
                try:
                    self.screen += os.read(self.file, 65536).decode(errors="replace")
                except OSError:
                    assert text in self.screen, f"it ended without {text!r}: {self.screen!r}"
        before, self.screen = self.screen.split(text, 1)
        time.sleep(0.3)  # the prompt stands there before the terminal is ready to edit
        return before

    def end(self, seconds=30):
        """The exit code."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.pid = 0
                return os.waitstatus_to_exitcode(status)
            if select.select([self.file], [], [], 0.1)[0]:
                with contextlib.suppress(OSError):  # it has ended
                    self.screen += os.read(self.file, 65536).decode(errors="replace")
        raise AssertionError("it does not end")

    def close(self):
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.file)


@pytest.fixture
def terminal():
    yield from closing_all(Terminal)


def test_chat_edits_lines_and_keeps_them(tiny, serve, terminal, tmp_path):
    server = serve(tiny)
    chat = terminal("chat", "--server", server.url, "--max-tokens", "2", HOME=str(tmp_path), XDG_STATE_HOME="")
    chat.wait("> ")
    chat.type("/hepl\x1b[D\x1b[D\x7fX\r")  # left, left, erase, X
    shown = chat.wait("unknown command")
    assert "^[[" not in shown, "arrow keys are no text"
    chat.wait("> ")
    chat.type("hello\r")
    chat.wait("> ")
    chat.type("/fix good day\r")
    chat.wait("learned in")
    chat.type("/undo\r")
    chat.wait("undone: version ")
    chat.wait("has the weights of version 0")
    chat.wait("> ")
    chat.type("\x1b[A\r")  # up: /undo again
    chat.wait("there is none before it to go back to")
    chat.wait("> ")
    chat.type("/redo\r")
    chat.wait("redone: version ")
    chat.wait("has the weights of version 1")
    chat.wait("> ")
    chat.type("/redo\r")
    chat.wait("! ")
    chat.wait("> ")
    chat.type("something\x03")  # Ctrl-C drops the line
    chat.wait("> ")
    chat.type("/help\r")
    chat.wait("Commands:")
    chat.wait("> ")
    chat.type("\x03")  # twice, it leaves
    chat.wait("> ")
    chat.type("\x03")
    assert chat.end() == 0
    file = tmp_path / ".local/state/lathe/chat_history"
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700
    again = terminal("chat", "--server", server.url, HOME=str(tmp_path), XDG_STATE_HOME="")
    again.wait("> ")
    again.type("\x1b[A")
    again.wait("/help")
    again.type("\x15\x04")  # clear, Ctrl-D
    assert again.end() == 0


def test_chat_without_a_terminal(tiny, serve, tmp_path):
    server = serve(tiny)
    done = subprocess.run([LATHE, "chat", "--server", server.url, "--max-tokens", "2"], input="hello\n/fix good day\n/undo\n/redo\n/nothing\n", text=True,
                          capture_output=True, timeout=120, env={**os.environ, "HOME": str(tmp_path)})
    assert done.returncode == 0
    assert "learned in" in done.stdout and "undone: version " in done.stdout and "redone: version " in done.stdout and "unknown command" in done.stdout
    assert not (tmp_path / ".local").exists(), "what a program writes is no history of a person"


def test_conversations_are_for_their_owner_alone(tiny, serve):
    old = os.umask(0o022)
    try:
        serve(tiny)
    finally:
        os.umask(old)
    for path in (tiny / ".lathe").glob("lathe.db*"):
        assert path.stat().st_mode & 0o077 == 0, path
