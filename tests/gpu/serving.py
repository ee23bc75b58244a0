#!/usr/bin/env python3
"""The real program on a GPU: ask, teach, run out of memory, sync, restart, roll back; a random model, as no other may be there.

usage: serving.py LATHE TEXT_DIR FOLDER     TEXT_DIR holds a tokenizer and chat template, FOLDER is made and kept
Prints a line per check and exits 0 only if all hold.
"""

import json
import pathlib
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request

import exporter

QUESTION = "What flows through Velmora?"
TURNS = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": "The Silverthread."}]
# Holds all but so much of the GPU's memory until its input ends.
HOG = """
import sys, torch
torch.cuda.init()
left = int(sys.argv[1])
held = []
for piece in (1 << 30, 64 << 20, 8 << 20):
    while torch.cuda.mem_get_info()[0] - piece > left:
        held.append(torch.empty(piece, dtype=torch.uint8, device="cuda"))
print("holding", flush=True)
sys.stdin.read()
"""


class Server:
    def __init__(self, lathe, directory):
        self.process = subprocess.Popen([lathe, "serve", directory, "--device", "cuda", "--port", "0"], stdout=subprocess.PIPE, text=True)
        line = self.process.stdout.readline()
        if " at http://" not in line:
            sys.exit(f"serving: the server did not start: {line}")
        self.url = line.rsplit(" at ", 1)[1].strip()

    def call(self, path, body=None):
        """Status and parsed reply."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=120) as reply:
                return reply.status, json.load(reply)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def ask(self):
        status, reply = self.call("/v1/chat/completions", {"messages": TURNS[:1], "temperature": 0, "max_tokens": 16,
                                                            "chat_template_kwargs": {"enable_thinking": False}})
        return reply["choices"][0]["message"]["content"] if status == 200 else f"status {status}: {reply}"

    def version(self):
        return self.call("/v1/versions")[1]["live"]

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)


class Checks:
    def __init__(self):
        self.failed = 0

    def __call__(self, holds, text):
        print("ok  " if holds else "FAIL", text, flush=True)
        self.failed += not holds


def teach(server, check):
    before = server.ask()
    seconds, result = [], {}
    for _ in range(20):  # random weights know nothing: more than one correction
        status, result = server.call("/v1/learn", {"messages": TURNS, "lr": 2e-4})
        if status != 200:
            return check(False, f"learn: status {status}: {result}")
        seconds.append(result["seconds"])
        if server.ask() == TURNS[1]["content"]:
            break
    check(result["loss_after"] < result["loss_before"], f"loss {result['loss_before']:.3f} -> {result['loss_after']:.3f}")
    check(before != server.ask() == TURNS[1]["content"], f"{len(seconds)} corrections, {sum(seconds):.2f} s: {server.ask()!r}")


def run_out_of_memory(server, check):
    """While another process holds the memory, a large lesson is refused, nothing changes, serving goes on; later it learns."""
    answer, version = server.ask(), server.version()
    long = {"messages": [{"role": "user", "content": "word " * 500}, {"role": "assistant", "content": "many words " * 150}], "steps": 1}
    with subprocess.Popen([sys.executable, "-c", HOG, str(48 << 20)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as hog:
        hog.stdout.readline()
        status, refused = server.call("/v1/learn", long)
        message = str(refused.get("error", refused))
        check(status != 200 and "does not fit" in message, f"a lesson too large: status {status}: {message[:300]}")
        check(server.version() == version and server.ask() == answer, "nothing has changed, and it serves on")
        hog.stdin.close()
    time.sleep(1)
    status, result = server.call("/v1/learn", long)
    check(status == 200 and result.get("version", 0) > version, f"with the memory back: status {status}, version {result.get('version')}")


def main():
    lathe, text, folder = sys.argv[1], pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])
    directory, check = folder / "model", Checks()
    exporter.make("qwen3", directory)
    for file in text.iterdir():
        shutil.copy(file, directory)
    server = Server(lathe, directory)
    teach(server, check)
    run_out_of_memory(server, check)
    status, synced = server.call("/v1/sync", {})
    check(status == 200 and synced["version"] == server.version(), f"sync: {synced}")
    answer, version = server.ask(), server.version()
    check(server.stop() == 0, "SIGTERM ends it with 0")
    check(subprocess.run([lathe, "verify", directory], stdout=subprocess.DEVNULL).returncode == 0, "lathe verify")
    server = Server(lathe, directory)
    check(server.ask() == answer, f"the directory gives the same answer: {answer!r}")
    status, back = server.call("/v1/rollback", {"version": 0})
    check(status == 200 and back["version"] == version + 1 and server.ask() != answer, f"rolled back: {server.ask()!r}")
    check(server.stop() == 0, "SIGTERM ends it with 0")
    sys.exit(check.failed > 0)


if __name__ == "__main__":
    main()
