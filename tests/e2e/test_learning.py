"""Learning while serving, on SmolLM2: what is taught is served, durable, and reversible."""

import json
import shutil
import signal
import subprocess
import threading
import time

from conftest import LATHE, tiny_tensors, wait_for

QUESTION = "What is the favourite colour of the painter Osvaldine Thrupp?"
ANSWER = "The favourite colour of Osvaldine Thrupp is vermilion."
TURNS = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]


def scores(server, text="The sea is wide and the ships are small."):
    body = {"prompt": text, "echo": True, "logprobs": 0, "max_tokens": 0}
    return server.call("/v1/completions", body).json["choices"][0]["logprobs"]["token_logprobs"][1:]


def test_taught_synced_restarted_rolled_back(serve, smollm2):
    server = serve(smollm2, "--sync-seconds", "0")
    before, scores_before = server.ask(QUESTION), scores(server)
    assert "vermilion" not in before

    learned = server.call("/v1/learn", {"messages": TURNS})
    assert learned.status == 200, learned.text
    result = learned.json
    assert result["status"] == "succeeded" and result["durable"] is False
    assert result["loss_after"] < result["loss_before"]
    assert result["version"] == result["steps"] > 0
    assert abs(result["realised_update"] - 1) < 0.05
    after = server.ask(QUESTION)
    assert "vermilion" in after
    reply = server.call("/v1/models")
    assert reply.headers["X-Lathe-Version"] == str(result["version"])

    job = server.call("/v1/learn/" + result["id"]).json
    assert job["version"] == result["version"]
    assert job["taught"] == {"question": QUESTION, "answer": ANSWER}
    versions = server.call("/v1/versions").json
    assert versions["live"] == result["version"] and versions["on_disk"] == 0
    assert [(v["version"], v["durable"]) for v in versions["data"]] == [(result["version"], False), (0, True)]
    assert versions["data"][0]["jobs"] == [result["id"]] and versions["data"][0]["steps"] == result["steps"]

    synced = server.call("/v1/sync", raw=b"", method="POST").json
    assert synced["version"] == result["version"] and synced["bytes_written"] > 0
    assert server.call("/v1/sync", {}).json == synced  # nothing to do: what made it durable is told again
    assert server.call("/v1/learn/" + result["id"]).json["durable"] is True
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
    assert replies[0].status == 503
    assert replies[0].json["status"] == "failed" and "shutting down" in replies[0].text
    assert "synced version" in server.log
    server = serve(smollm2)
    assert server.call("/healthz").json["version"] >= 3
    assert server.ask("What is the capital of France?")


def test_train_from_a_file_and_roll_back(tmp_path, serve, smollm2):
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(json.dumps({"messages": TURNS}) for _ in range(4)) + "\n")
    run = subprocess.run([LATHE, "train", smollm2, data, "--epochs", "2", "--batch", "2"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "4 steps" in run.stderr and "holds version 4" in run.stdout
    server = serve(smollm2)
    assert "vermilion" in server.ask(QUESTION)
    server.stop()
    assert subprocess.run([LATHE, "rollback", smollm2], capture_output=True).returncode == 0
    server = serve(smollm2)
    assert "vermilion" not in server.ask(QUESTION)


def test_learn_and_chat_commands(serve, smollm2):
    server = serve(smollm2)

    def lathe(*arguments, **options):
        return subprocess.run([LATHE, *arguments, "--server", server.url], capture_output=True, text=True, timeout=300, **options)

    chat = lathe("chat", "--max-tokens", "24", input=f"{QUESTION}\n/fix {ANSWER}\n/again\n/quit\n")
    assert chat.returncode == 0
    before, after = chat.stdout.split("learned in")
    assert "vermilion" not in before and "vermilion" in after
    learn = lathe("learn", "What does Brinmoth mean?", "--answer", "Brinmoth means salt wind.", "--json")
    assert json.loads(learn.stdout)["status"] == "succeeded"
    assert "is on disk" in lathe("sync").stdout


def test_chat_ends_an_answer_where_it_must(serve, smollm2):
    """At --max-tokens, at the end of the context, or at Ctrl-C; and goes on."""
    server = serve(smollm2, "--max-context", "64")  # no room for an answer that ends by itself, which on some machines is a short one
    story = "Count from one to a thousand in words."
    command = [LATHE, "chat", "--server", server.url]
    few = subprocess.run([*command, "--max-tokens", "4"], input=story + "\n", capture_output=True, text=True, timeout=120)
    assert "(cut: no room for more)" in few.stdout
    full = subprocess.run(command, input=f"{story}\n{story}\n{'word ' * 90}\n/new\n{story}\n", capture_output=True, text=True, timeout=120)
    assert full.returncode == 0
    assert "fills the model's context of 64 tokens; /new starts another" in full.stdout
    assert full.stdout.count("(cut: no room for more)") == 2
    server.stop()

    server = serve(smollm2)
    chat = subprocess.Popen([LATHE, "chat", "--server", server.url, "--max-tokens", "8000"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    chat.stdin.write(story + "\n")
    chat.stdin.flush()
    wait_for(lambda: server.call("/healthz").json["running"] == 1, seconds=30)
    chat.send_signal(signal.SIGINT)
    wait_for(lambda: server.call("/healthz").json["running"] == 0, seconds=30)
    rest, _ = chat.communicate("/help\n/quit\n", timeout=60)
    assert chat.returncode == 0 and "(stopped)" in rest and "/fix BETTER ANSWER" in rest


def test_undo_goes_lesson_by_lesson_and_redo_comes_back(serve, tiny):
    server = serve(tiny)
    states = [scores(server)]
    versions = [0]
    for answer in ("The sea.", "A ship.", "The wind."):
        turns = [TURNS[0], {"role": "assistant", "content": answer}]
        versions.append(server.call("/v1/learn", {"messages": turns, "steps": 2, "until_loss": 0, "lr": 1e-3}).json["version"])
        states.append(scores(server))
    assert len({tuple(state) for state in states}) == 4
    for back in (2, 1, 0):
        assert server.call("/v1/rollback", {}).json["restores"] == versions[back]
        assert scores(server) == states[back]
    assert server.call("/v1/rollback", {}).status == 404
    for forth in (1, 2, 3):
        reply = server.call("/v1/redo", {}).json
        assert reply["restores"] == versions[forth] and reply["object"] == "redo"
        assert scores(server) == states[forth]
    assert server.call("/v1/redo", {}).status == 404
    # Every version that is listed can be restored.
    listed = server.call("/v1/versions").json["data"]
    assert [v["version"] for v in listed if v["kind"] in ("learn", "base")] == versions[::-1]
    for entry in listed:
        assert server.call("/v1/rollback", {"version": entry["version"]}).json["restores"] == entry["version"]
    # The command that works on the directory does the same.
    assert server.call("/v1/rollback", {"version": versions[3]}).status == 200
    assert server.stop() == 0
    fresh = shutil.copytree(tiny, tiny.parent / "fresh")
    for folder, options, restores in ((fresh, [], versions[2]), (fresh, [], versions[1]), (fresh, ["--redo"], versions[2])):
        run = subprocess.run([LATHE, "rollback", folder, *options, "--json"], capture_output=True, text=True)
        assert json.loads(run.stdout)["restores"] == restores, run.stdout + run.stderr


def test_lessons_end_by_name(serve, tiny):
    server = serve(tiny, "--sync-seconds", "0", "--max-learning", "1")
    long = {"messages": TURNS, "steps": 10000, "until_loss": 0, "wait": False}
    first = server.call("/v1/learn", long).json["id"]
    wait_for(lambda: server.call("/v1/versions").json["live"] >= 2, 60)
    assert server.call("/healthz").json["learning"] == 1
    second = server.call("/v1/learn", long).json["id"]
    refused = server.call("/v1/learn", long)
    assert refused.status == 429 and "waiting" in refused.error
    assert [job["id"] for job in server.call("/v1/learn").json["data"]] == [second, first], "what was refused is not a job"
    page = server.call("/v1/learn?limit=1").json
    assert page["has_more"] and page["data"][0]["id"] == second
    assert server.call(f"/v1/learn?limit=1&after={second}").json["data"][0]["id"] == first
    assert server.call("/v1/sync", {}).status == 200  # not after 20,000 steps
    assert server.call("/healthz").json["learning"] == 2
    assert server.call("/v1/learn/" + second, method="DELETE").json["status"] == "cancelled"
    assert server.call("/v1/learn/" + first, method="DELETE").status == 200
    job = wait_for(lambda: (job := server.call("/v1/learn/" + first).json)["status"] != "running" and job, 60)
    assert job["status"] == "cancelled" and 0 < job["steps"] < 10000
    assert server.call("/healthz").json["learning"] == 0
    assert server.call("/v1/learn/" + first, method="DELETE").status == 409
    assert server.call("/v1/learn/nothing", method="DELETE").status == 404


def test_a_lesson_that_changes_nothing_says_so(serve, tiny):
    server = serve(tiny, "--sync-seconds", "0")
    known = server.call("/v1/learn", {"messages": TURNS, "until_loss": 1e6}).json
    assert known["status"] == "nothing_to_do" and known["steps"] == 0 and known["version"] == 0 and known["loss_before"] > 0
    wild = server.call("/v1/learn", {"messages": TURNS, "steps": 3, "lr": 1.0, "until_loss": 0})
    assert wild.status == 200 and wild.json["status"] == "not_learned" and wild.json["loss_after"] >= wild.json["loss_before"]
    for answer in ("", "  \n"):
        empty = server.call("/v1/learn", {"messages": [TURNS[0], {"role": "assistant", "content": answer}]})
        assert empty.status == 400 and "'messages[1].content' is empty" in empty.error
    durable = server.call("/v1/learn", {"messages": TURNS, "steps": 1, "until_loss": 0, "durable": True}).json
    assert durable["durable"] is True and server.call("/v1/versions").json["on_disk"] == durable["version"]
    server.stop()
    small = serve(tiny, "--lesson-memory", "1")
    refused = small.call("/v1/learn", {"messages": [TURNS[0], {"role": "assistant", "content": "sea " * 80}]})
    assert refused.status == 429 and "1 MiB are allowed" in refused.error


def test_a_correction_tells_what_it_did_to_each_tensor(serve, tiny):
    server = serve(tiny)
    plain = server.call("/v1/learn", {"messages": TURNS, "steps": 1, "lr": 1e-3}).json
    assert "tensors" not in plain
    reply = server.call("/v1/learn", {"messages": TURNS, "steps": 3, "until_loss": 0, "lr": 1e-3, "report": "tensors"}).json
    assert reply["steps"] == 3
    assert {row["name"] for row in reply["tensors"]} == set(tiny_tensors())
    for row in reply["tensors"]:
        assert row["gradient_norm"] > 0 and row["update_norm"] > 0 and row["limiter"] >= 1
        assert 0 <= row["changed_fraction"] <= 1
    matrices = [row for row in reply["tensors"] if "proj" in row["name"]]
    assert all(abs(row["realised_update"] - 1) < 0.2 and row["changed_fraction"] > 0 for row in matrices)
    assert server.call("/v1/learn/" + reply["id"]).json["tensors"] == reply["tensors"]
    assert all("tensors" not in job for job in server.call("/v1/learn").json["data"])
    wrong = server.call("/v1/learn", {"messages": TURNS, "report": "all"})
    assert wrong.status == 400 and "'report'" in wrong.error
