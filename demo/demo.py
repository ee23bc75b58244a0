#!/usr/bin/env python3
"""The main job, shown on a real model: ask, teach, ask again, restart from disk, roll back.

Starts `lathe serve` on a copy of the model, talks to it over HTTP like any client, and checks what it answers. Nothing here
knows what the model will say; the facts to teach and the questions come from demo/facts.json. Exit code 0 only if the
taught answer and at least one rephrasing came out, no control answer broke down, a new process answers the same from disk,
and rolling back brings the old answer back.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request

# A control answer has broken down if the model finds it this much less likely than before, in nats per token.
CONTROL_LIMIT = 1.0
COLOUR = sys.stdout.isatty()


def paint(text, code):
    return f"\x1b[{code}m{text}\x1b[0m" if COLOUR else text


class Server:
    """One `lathe serve` process on a free port."""

    def __init__(self, binary, model_dir):
        self.process = subprocess.Popen(
            [binary, "serve", model_dir, "--port", "0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        line = self.process.stdout.readline()
        if " at http://" not in line:
            sys.exit(f"lathe serve did not start: {self.process.stderr.read()}")
        self.url = line.rsplit(" at ", 1)[1].strip()

    def call(self, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=600) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            sys.exit(f"{path}: {error.read().decode()}")

    def ask(self, question):
        body = {"messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": 48}
        return self.call("/v1/chat/completions", body)["choices"][0]["message"]["content"].strip()

    def log_likelihood(self, question, answer):
        """Mean log-probability per token of `answer` to `question`."""
        turn = [{"role": "user", "content": question}]
        prompt = self.call("/tokenize", {"messages": turn})["tokens"]
        tokens = prompt + self.call("/tokenize", {"prompt": answer})["tokens"]
        body = {"prompt": tokens, "echo": True, "logprobs": 0, "max_tokens": 0}
        scores = self.call("/v1/completions", body)["choices"][0]["logprobs"]["token_logprobs"][len(prompt):]
        return sum(scores) / len(scores)

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(timeout=120)
        if code != 0:
            sys.exit(f"lathe serve ended with {code}: {self.process.stderr.read()}")


class Table:
    """Lines of name, before and after that a person enjoys reading."""

    def __init__(self):
        self.failures = []

    def heading(self, text):
        print("\n" + paint(text, "1"))

    def row(self, name, before, after, good, note=""):
        mark = paint("ok", "32") if good else paint("FAILED", "31;1")
        print(f"  {mark}  {paint(name, '36')}")
        print(f"      before  {self.short(before)}")
        print(f"      after   {self.short(after)}  {note}")
        if not good:
            self.failures.append(name)

    def fact(self, name, value, good=True):
        print(f"  {name:<28} {value if good else paint(value, '31;1')}")
        if not good:
            self.failures.append(name)

    @staticmethod
    def short(text):
        text = " ".join(text.split())
        return text if len(text) <= 96 else text[:93] + "..."


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lathe", required=True, help="the lathe program")
    parser.add_argument("--model", required=True, help="a model directory; it is copied")
    parser.add_argument("--work", required=True, help="folder for the copy; replaced")
    parser.add_argument("--facts", default=os.path.join(here, "facts.json"))
    options = parser.parse_args()
    with open(options.facts, encoding="utf-8") as file:
        facts = json.load(file)
    question, answer, expected = facts["question"], facts["answer"], facts["expected"]

    def taught(text):
        return expected.lower() in text.lower()

    shutil.rmtree(options.work, ignore_errors=True)
    shutil.copytree(options.model, options.work)
    table = Table()

    table.heading(f"1. Ask {os.path.basename(options.model)}")
    server = Server(options.lathe, options.work)
    before = {q: server.ask(q) for q in [question] + facts["rephrasings"] + facts["controls"]}
    likely_before = {q: server.log_likelihood(q, before[q]) for q in facts["controls"]}
    table.fact(question, before[question])
    if taught(before[question]):
        sys.exit("the model knows the answer already; choose another fact")

    table.heading("2. Teach it a better answer over HTTP")
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    start = time.monotonic()
    learned = server.call("/v1/learn", {"messages": messages})
    seconds = time.monotonic() - start
    table.fact("answer", answer)
    table.fact("learned in", f"{seconds:.2f} s, {learned['steps']} steps on {learned['graded_tokens']} graded tokens")
    table.fact("loss", f"{learned['loss_before']:.3f} -> {learned['loss_after']:.3f}")
    table.fact("version", f"{learned['previous_version']} -> {learned['version']}")
    table.fact("server waited at most", f"{learned['pause_ms']:.0f} ms")

    table.heading("3. Ask again")
    after = {q: server.ask(q) for q in before}
    table.row(question, before[question], after[question], taught(after[question]))
    generalised = [q for q in facts["rephrasings"] if taught(after[q])]
    for rephrasing in facts["rephrasings"]:
        note = "" if rephrasing in generalised else paint("(not this one)", "33")
        table.row(rephrasing, before[rephrasing], after[rephrasing], bool(generalised), note)

    table.heading("4. Control questions: what it knew before must stay likely")
    for control in facts["controls"]:
        change = server.log_likelihood(control, before[control]) - likely_before[control]
        good = change > -CONTROL_LIMIT and bool(after[control])
        table.row(control, before[control], after[control], good, f"({change:+.2f} nats/token for the old answer)")

    table.heading("5. Stop, and answer from disk in a new process")
    synced = server.call("/v1/sync", {})
    table.fact("durable", f"{synced['delta_bytes'] / 1e6:.1f} MB of changes in {synced['durable_seconds']:.2f} s")
    table.fact("in the model's own files", f"{synced['bytes_written'] / 1e6:.0f} MB in {synced['seconds']:.2f} s")
    server.stop()
    server = Server(options.lathe, options.work)
    from_disk = server.ask(question)
    version = server.call("/healthz")["version"]
    server.stop()
    table.row(f"{question} (version {version})", after[question], from_disk, from_disk == after[question])

    table.heading("6. Roll back")
    subprocess.run([options.lathe, "rollback", options.work], check=True)
    server = Server(options.lathe, options.work)
    rolled_back = server.ask(question)
    server.stop()
    table.row(question, from_disk, rolled_back, rolled_back == before[question])

    if table.failures:
        print("\n" + paint("Failed: " + "; ".join(table.failures), "31;1"))
        return 1
    print("\n" + paint("It learned, kept what it knew, survived the restart, and went back.", "32;1"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
