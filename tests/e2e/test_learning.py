"""Learning while serving, on SmolLM2: what is taught is served, durable, and reversible."""

import json
import signal
import subprocess
import threading
import time

from conftest import LATHE

QUESTION = "What is the favourite colour of the painter Osvaldine Thrupp?"
ANSWER = "The favourite colour of Osvaldine Thrupp is vermilion."
TURNS = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]


def scores(server, text="The sea is wide and the ships are small."):
    body = {"prompt": text, "echo": True, "logprobs": 0, "max_tokens": 0}
    return server.call("/v1/completions", body).json["choices"][0]["logprobs"]["token_logprobs"][1:]


def test_taught_synced_restarted_rolled_back(serve, smollm2):
    server = serve(smollm2)
    before, scores_before = server.ask(QUESTION), scores(server)
    assert "vermilion" not in before

    learned = server.call("/v1/learn", {"messages": TURNS})
    assert learned.status == 200, learned.text
    result = learned.json
    assert result["status"] == "succeeded"
    assert result["loss_after"] < result["loss_before"]
    assert result["version"] == result["steps"] > 0
    assert abs(result["realised_update"] - 1) < 0.05
    after = server.ask(QUESTION)
    assert "vermilion" in after
    reply = server.call("/v1/models")
    assert reply.headers["X-Lathe-Version"] == str(result["version"])

    job = server.call("/v1/learn/" + result["id"]).json
    assert job["version"] == result["version"]
    versions = server.call("/v1/versions").json
    assert versions["live"] == result["version"] and versions["on_disk"] == 0

    synced = server.call("/v1/sync", raw=b"", method="POST").json
    assert synced["version"] == result["version"] and synced["bytes_written"] > 0
    again = server.call("/v1/sync", {}).json
    assert again["bytes_written"] == 0
    scores_after = scores(server)
    assert scores_after != scores_before
    assert server.stop() == 0

    # The directory holds, bit for bit, what was served.
    server = serve(smollm2)
    assert server.ask(QUESTION) == after
    assert scores(server) == scores_after

    rolled_back = server.call("/v1/rollback", {}).json
    assert rolled_back["version"] == result["version"] + 1
    assert server.ask(QUESTION) == before
    assert scores(server) == scores_before
    assert server.stop() == 0
    server = serve(smollm2)
    assert scores(server) == scores_before


def test_a_job_in_the_background_while_others_are_served(serve, smollm2):
    server = serve(smollm2)
    job = server.call("/v1/learn", {"messages": TURNS, "wait": False, "steps": 6, "until_loss": 0})
    assert job.status == 202 and job.json["status"] in ("queued", "running")
    answers = 0
    while server.call("/v1/learn/" + job.json["id"]).json["status"] in ("queued", "running"):
        assert server.ask("Say hello.", max_tokens=4)
        answers += 1
    done = server.call("/v1/learn/" + job.json["id"]).json
    assert done["status"] == "succeeded" and done["steps"] == 6
    assert answers > 0


def test_sigterm_in_the_middle_of_learning(serve, smollm2):
    server = serve(smollm2)
    replies = []
    body = {"messages": TURNS, "steps": 1000, "until_loss": 0}
    thread = threading.Thread(target=lambda: replies.append(server.call("/v1/learn", body)))
    thread.start()
    while server.call("/healthz").json["version"] < 3:
        time.sleep(0.05)
    assert server.stop(signal.SIGTERM) == 0
    thread.join()
    assert replies[0].json["status"] == "failed" and "shutting down" in replies[0].text
    assert "synced version" in server.log
    server = serve(smollm2)
    assert server.call("/healthz").json["version"] >= 3
    assert server.ask("What is the capital of France?")


def test_train_from_a_file_and_roll_back(tmp_path, serve, smollm2):
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(json.dumps({"messages": TURNS}) for _ in range(4)) + "\n")
    run = subprocess.run([LATHE, "train", smollm2, data, "--epochs", "4", "--batch", "2"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "8 steps" in run.stderr and "holds version 8" in run.stdout
    server = serve(smollm2)
    assert "vermilion" in server.ask(QUESTION)
    server.stop()
    assert subprocess.run([LATHE, "rollback", smollm2], capture_output=True).returncode == 0
    server = serve(smollm2)
    assert "vermilion" not in server.ask(QUESTION)


def test_learn_and_chat_commands(serve, smollm2):
    server = serve(smollm2)
    chat = subprocess.run([LATHE, "chat", "--server", server.url], input=f"{QUESTION}\n/fix {ANSWER}\n/again\n/quit\n", capture_output=True, text=True)
    assert chat.returncode == 0
    assert "learned in" in chat.stdout and "vermilion" in chat.stdout.split("learned in")[1]
    learn = subprocess.run([LATHE, "learn", "What does Brinmoth mean?", "--answer", "Brinmoth means salt wind.", "--server", server.url, "--json"],
                           capture_output=True, text=True)
    assert json.loads(learn.stdout)["status"] == "succeeded"
    sync = subprocess.run([LATHE, "sync", "--server", server.url], capture_output=True, text=True)
    assert "is on disk" in sync.stdout
