#!/usr/bin/env python3
"""What it costs to make each lesson a version on disk: two servers, `--history lesson` and `interval`, taught in turns.

Each round teaches both the same new lesson, and times the answer to the client, the answer to a request that waits for
durability, and the delta on disk. Prints medians with their range. usage: history_modes.py [ROUNDS]
"""

import json
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
MODES = ["lesson", "interval"]


class Server:
    def __init__(self, directory, mode):
        self.directory = pathlib.Path(directory)
        self.process = subprocess.Popen([REPOSITORY / "build/lathe", "serve", directory, "--port", "0", "--history", mode],
                                        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for line in self.process.stdout:
            if found := re.search(r"http://\S+?:\d+", line):
                self.url = found.group(0)
                return
        sys.exit("history_modes: the server did not start")

    def ask(self, path, body):
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as reply:
            return json.load(reply)

    def teach(self, number, **fields):
        """Seconds until the answer."""
        begin = time.monotonic()
        messages = [{"role": "user", "content": f"What is the code of door {number}?"}, {"role": "assistant", "content": f"It is {number * 7919 % 10007}."}]
        self.ask("/v1/learn", {"messages": messages, **fields})
        return time.monotonic() - begin

    def deltas(self):
        return sum(path.stat().st_size for path in (self.directory / ".lathe/deltas").glob("*"))

    def close(self):
        self.process.terminate()
        self.process.wait()


def summary(values):
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def main():
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 8
    model = subprocess.run(["python3", REPOSITORY / "scripts/prepare_model.py"], capture_output=True, text=True, check=True).stdout.strip().splitlines()[-1]
    with tempfile.TemporaryDirectory() as scratch:
        servers = {mode: Server(shutil.copytree(model, f"{scratch}/{mode}"), mode) for mode in MODES}
        answer, durable = {mode: [] for mode in MODES}, {mode: [] for mode in MODES}
        for number in range(rounds):
            for mode in MODES if number % 2 == 0 else MODES[::-1]:
                server = servers[mode]
                answer[mode].append(server.teach(2 * number))
                durable[mode].append(server.teach(2 * number + 1, durable=True))
                server.ask("/v1/sync", {})
        for mode, server in servers.items():
            server.close()
            size = server.deltas() / 2**20
            print(f"{mode:8}  answer {summary(answer[mode])} s   durable answer {summary(durable[mode])} s   "
                  f"deltas {size:.0f} MiB for {2 * rounds} lessons")


if __name__ == "__main__":
    main()
