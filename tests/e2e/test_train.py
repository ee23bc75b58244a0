"""`lathe train`: whole runs by the real program, killed and resumed; bad data, bad settings, reports."""

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import time

import pytest
from conftest import LATHE, tiny_tensors

WORDS = ["hello", "good", "day", "how", "are", "you", "the", "river", "flows", "well", "never", "mind"]


def text(generator, count):
    return " ".join(generator.choice(WORDS) for _ in range(count))


@pytest.fixture(scope="module")
def conversations(tmp_path_factory):
    generator = random.Random(3)
    path = tmp_path_factory.mktemp("data") / "conversations.jsonl"
    with path.open("w") as file:
        for _ in range(20):
            turns = [("user", text(generator, 5)), ("assistant", text(generator, generator.randint(2, 9)))]
            file.write(json.dumps({"messages": [{"role": role, "content": content} for role, content in turns]}) + "\n")
    return path


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    generator = random.Random(4)
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    answer = lambda words: [{"role": "assistant", "content": words}]
    with path.open("w") as file:
        for _ in range(12):
            line = {"input": {"messages": [{"role": "user", "content": text(generator, 5)}]},
                    "preferred_output": answer("good " + text(generator, 4)),
                    "non_preferred_output": answer("never " + text(generator, 4))}
            file.write(json.dumps(line) + "\n")
    return path


def train(*arguments):
    return subprocess.run([LATHE, "train", *map(str, arguments)], capture_output=True, text=True, timeout=120)


def outcome(*arguments):
    run = train(*arguments, "--json", "--quiet")
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def weights(model):
    return (model / "model.safetensors").read_bytes()


def losses(run):
    return [float(line.split("loss ")[1].split()[0]) for line in run.stderr.splitlines() if line.startswith("step ")]


def rows(report, name="loss"):
    with (report / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


def files(model):
    return {path.relative_to(model): path.read_bytes() for path in model.rglob("*") if path.is_file() and path.suffix != ".lock" and path.name != "lock"}


def test_conversations_are_learned(tiny, conversations):
    run = train(tiny, conversations, "--lr", 1e-3, "--epochs", 4, "--batch", 4, "--schedule", "cosine", "--warmup", 2, "--verbose")
    assert run.returncode == 0, run.stderr
    seen = losses(run)
    assert len(seen) == 20 and seen[-1] < 0.7 * seen[0]
    assert "version 20, the weights of step 20" in run.stdout
    assert not (tiny / ".lathe/train").exists()


def test_preferences_are_learned(tiny, pairs):
    run = train(tiny, pairs, "--method", "dpo", "--lr", 1e-3, "--epochs", 3, "--batch", 4, "--verbose")
    assert run.returncode == 0, run.stderr
    seen = losses(run)
    assert abs(seen[0] - 0.6931) < 1e-3, "policy and reference are the same before the first step"
    assert seen[-1] < 0.3


def test_kl_holds_the_model_near_its_beginning(tmp_path, tiny_model, conversations):
    def step(name, *options):
        model = shutil.copytree(tiny_model, tmp_path / name)
        run = train(model, conversations, "--lr", 1e-3, "--epochs", 3, "--batch", 20, "--verbose", *options)
        assert run.returncode == 0, run.stderr
        return losses(run)

    free, held = step("free"), step("held", "--kl", 5)
    assert abs(free[0] - held[0]) < 1e-3, "the KL is zero at its reference"
    assert held[-1] > free[-1] + 0.05


def test_accumulated_steps_equal_big_ones(tmp_path, tiny_model, conversations):
    def first_losses(name, *options):
        model = shutil.copytree(tiny_model, tmp_path / name)
        run = train(model, conversations, "--lr", 1e-3, "--max-steps", 3, "--verbose", *options)
        assert run.returncode == 0, run.stderr
        return losses(run)

    big = first_losses("big", "--batch", 6)
    small = first_losses("small", "--batch", 2, "--accumulate", 3)
    assert big == pytest.approx(small, abs=0.02)


@pytest.mark.parametrize("seed, options", [(1, ["--kl", 0.2]), (2, ["--optimizer", "adamw", "--patience", 3])])
def test_a_run_killed_again_and_again_ends_in_the_same_bits(tmp_path, tiny_model, conversations, seed, options):
    generator = random.Random(seed)
    straight, killed = (shutil.copytree(tiny_model, tmp_path / name) for name in ("straight", "killed"))
    options = [*options, "--batch", 2, "--accumulate", 2, "--lr", 1e-3, "--epochs", 4, "--max-steps", 12, "--eval-fraction", 0.2, "--eval-every", 2]
    reports = {model: tmp_path / f"{model.name}-report" for model in (straight, killed)}
    outcome(straight, conversations, *options, "--report", reports[straight])
    kills, resume = 0, []
    while True:
        command = [LATHE, "train", killed, conversations, *options, "--verbose", "--save-every", 1, "--report", reports[killed], *resume]
        process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for _ in zip(range(generator.randint(1, 8)), process.stderr):
            pass
        time.sleep(generator.random() * 0.03)
        if kills < 6:
            process.kill()
        remaining = process.stderr.read()
        process.stderr.close()
        if process.wait() == 0:
            break
        assert process.returncode == -signal.SIGKILL, remaining
        kills += 1
        if not list((killed / ".lathe").glob("deltas/*.dlt")):
            assert weights(killed) == weights(tiny_model), "until the end the directory is as it was"
        resume = ["--resume"] if (killed / ".lathe/train/run.json").exists() else []
    assert kills >= 3
    assert weights(killed) == weights(straight)
    timeless = lambda report: [{key: value for key, value in row.items() if "second" not in key} for row in rows(report)]
    assert timeless(reports[killed]) == timeless(reports[straight])
    assert rows(reports[killed], "tensors") == rows(reports[straight], "tensors")


def test_a_signal_saves_the_state(tiny, tiny_model, tmp_path, conversations):
    straight = shutil.copytree(tiny_model, tmp_path / "straight")
    options = ["--batch", 2, "--lr", 1e-3, "--epochs", 3]
    outcome(straight, conversations, *options)
    command = [LATHE, "train", tiny, conversations, *options, "--verbose"]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not process.stderr.readline().startswith("step 3/"):
        pass
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1 and "--resume" in output
    assert weights(tiny) == weights(tiny_model)
    refused = train(tiny, conversations, *options)
    assert refused.returncode == 1 and "--resume continues it" in refused.stderr
    other = train(tiny, conversations, *options, "--resume", "--seed", 7)
    assert other.returncode == 1 and "seed: 1, not 7" in other.stderr
    assert outcome(tiny, conversations, *options, "--resume")["end"] == "done"
    assert weights(tiny) == weights(straight)


def test_a_report_tells_every_step(tiny, conversations, tmp_path):
    report = tmp_path / "not/there/yet"
    run = train(tiny, conversations, "--lr", 1e-3, "--epochs", 3, "--batch", 4, "--warmup", 3, "--eval-fraction", 0.2, "--eval-every", 2, "--verbose", "--report", report)
    assert run.returncode == 0, run.stderr
    assert "% of the limit" in run.stderr
    table = rows(report)
    assert [int(row["step"]) for row in table] == list(range(13))
    before, steps = table[0], table[1:]
    assert before["loss"] == "" and float(before["eval_loss"]) > 0
    assert [float(row["loss"]) for row in steps] == pytest.approx(losses(run), abs=1e-4)
    said = [float(line.split("loss ")[1]) for line in run.stderr.splitlines() if line.startswith("evaluation")]
    assert [float(row["eval_loss"]) for row in table if row["eval_loss"]] == pytest.approx(said, abs=1e-4)
    assert [row["step"] for row in table if row["eval_loss"]] == ["0", "2", "4", "6", "8", "10", "12"]
    assert [float(row["epoch"]) for row in steps][3::4] == [1, 2, 3]
    assert [float(row["lr"]) for row in steps[:4]] == pytest.approx([1e-3 / 3, 2e-3 / 3, 1e-3, 1e-3])
    for row in steps:
        assert 0 < int(row["graded_tokens"]) < int(row["tokens"])
        assert float(row["tokens_per_second"]) == pytest.approx(int(row["tokens"]) / float(row["seconds"]), rel=0.01)
        assert 0 < float(row["changed_fraction"]) <= 1 and float(row["realised_update"]) == pytest.approx(1, abs=0.1)
        assert float(row["gradient_norm"]) > 0 and float(row["update_norm"]) > 0
    assert float(steps[0]["limiter"]) == 1 and int(steps[0]["limited_tensors"]) == 0, "nothing limits a first step"
    assert any(int(row["limited_tensors"]) > 0 for row in steps)

    tensors = rows(report, "tensors")
    assert {(row["step"], row["tensor"]) for row in tensors} == {(row["step"], name) for row in steps for name in tiny_tensors()}
    for row in steps:
        own = [tensor for tensor in tensors if tensor["step"] == row["step"]]
        assert sum(float(tensor["gradient_norm"]) ** 2 for tensor in own) ** 0.5 == pytest.approx(float(row["gradient_norm"]), rel=1e-4)
        assert max(float(tensor["limiter"]) for tensor in own) == pytest.approx(float(row["limiter"]))
        assert sum(float(tensor["limiter"]) > 1 for tensor in own) == int(row["limited_tensors"])
    assert (report / "loss.svg").read_text().startswith("<?xml")
    assert (report / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_a_report_that_cannot_be_written_is_refused_before_the_first_step(tiny, conversations):
    before = files(tiny)
    run = train(tiny, conversations, "--report", conversations)
    assert run.returncode == 1 and "the report cannot be written" in run.stderr, run.stderr
    assert files(tiny) == before


def test_a_dry_run_says_what_would_be_done_and_does_nothing(tiny, conversations, pairs):
    before = files(tiny)
    options = ["--epochs", 2, "--batch", 3, "--accumulate", 2, "--eval-fraction", 0.2]
    said = outcome(tiny, conversations, *options, "--dry-run")
    assert (said["items"], said["evaluation_items"], said["steps"], said["sequences"]) == (16, 4, 6, 32)
    memory = said["memory_bytes"]
    assert memory["weights"] == 2 * sum(shape[0] * (shape[1] if len(shape) > 1 else 1) for shape in tiny_tensors().values())
    assert memory["total"] == sum(value for key, value in memory.items() if key not in ("total", "available"))
    assert said["seconds_at_least"] > 0 and "seconds_left" not in said
    assert outcome(tiny, pairs, "--method", "dpo", "--batch", 4, "--dry-run")["sequences"] == 24
    text = train(tiny, conversations, "--dry-run")
    assert text.returncode == 0 and "Nothing was changed." in text.stdout and "MiB  weights" in text.stdout
    refused = train(tiny, conversations, "--dry-run", "--patience", 2)
    assert refused.returncode == 1 and "patience" in refused.stderr
    assert files(tiny) == before
    run = train(tiny, conversations, *options, "--report", tiny / "report")
    assert run.returncode == 0, run.stderr
    table = [row for row in rows(tiny / "report") if row["step"] != "0"]
    assert len(table) == said["steps"]
    assert sum(int(row["tokens"]) for row in table) == said["tokens"]
    assert sum(int(row["graded_tokens"]) for row in table) == said["graded_tokens"]


# How far the memory that a dry run expects may be from what the run then takes at most.
FACTOR = 1.5


@pytest.mark.parametrize(
    "options",
    [[], ["--context", "exact", "--gradients", "streaming"], ["--optimizer", "adamw", "--batch", 2], ["--gradients", "dense", "--batch", 4, "--accumulate", 2]],
    ids=["factored", "streaming", "adamw", "dense"],
)
def test_a_dry_run_knows_the_memory_of_the_run(smollm2, tmp_path, options):
    generator = random.Random(5)
    data = tmp_path / "data.jsonl"
    turns = lambda: [{"role": "user", "content": text(generator, 60)}, {"role": "assistant", "content": text(generator, 90)}]
    data.write_text("".join(json.dumps({"messages": turns()}) + "\n" for _ in range(5)))
    options = [smollm2, data, "--epochs", 2, "--max-steps", 2, *options]
    expected = outcome(*options, "--dry-run")["memory_bytes"]
    process = subprocess.Popen(list(map(str, [LATHE, "train", *options, "--quiet"])), stdout=subprocess.DEVNULL)
    _, code, usage = os.wait4(process.pid, 0)
    assert code == 0
    measured = usage.ru_maxrss * 1024
    assert measured / FACTOR < expected["total"] < measured * FACTOR, (expected, measured)


def test_an_unfinished_run_tells_the_time_that_is_left(tiny, conversations):
    options = ["--batch", 2, "--epochs", 20]
    command = [LATHE, "train", tiny, conversations, *options, "--verbose"]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not process.stderr.readline().startswith("step 5/"):
        pass
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert outcome(tiny, conversations, *options, "--dry-run")["seconds_left"] > 0


def inspect(path):
    run = subprocess.run([LATHE, "inspect", path, "--json"], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    plain = subprocess.run([LATHE, "inspect", path], capture_output=True, text=True, timeout=60)
    assert plain.returncode == 0, plain.stderr
    return json.loads(run.stdout), plain.stdout


def test_inspect_says_what_is_in_a_directory_a_file_a_state_and_a_delta(tiny, conversations):
    command = [LATHE, "train", tiny, conversations, "--batch", 2, "--verbose", "--save-every", 1]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not process.stderr.readline().startswith("step 4/"):
        pass
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    slot = json.loads((tiny / ".lathe/train/run.json").read_text())["slot"]
    state, table = inspect(tiny / f".lathe/train/{slot}/optimizer.safetensors")
    assert state["kind"] == "optimizer state" and state["settings"]["method"] == "apollo_mini"
    assert {tensor["name"] for tensor in state["tensors"]} == set(tiny_tensors())
    gate = next(tensor for tensor in state["tensors"] if tensor["name"] == "model.layers.0.mlp.gate_proj.weight")
    assert gate["m_shape"] == [128, 1] and gate["updates"] == int(state["settings"]["updates"]) and gate["m_rms"] > 0 and gate["norm"] > 0
    assert "model.layers.0.mlp.gate_proj.weight" in table and "apollo_mini" in table

    elements = sum(shape[0] * (shape[1] if len(shape) > 1 else 1) for shape in tiny_tensors().values())
    for path in (tiny, tiny / "model.safetensors"):
        found, table = inspect(path)
        assert {tensor["name"]: tensor["shape"] for tensor in found["tensors"]} == tiny_tensors()
        assert found["elements"] == elements and found["bytes"] == 2 * elements and found["elements_by_dtype"] == {"BF16": elements}
        assert f"{len(tiny_tensors())} tensors, {elements} elements" in table
    assert outcome(tiny, conversations, "--batch", 2, "--resume")["end"] == "done"
    assert inspect(tiny)[0]["version"] == 10
    delta, table = inspect(next((tiny / ".lathe/deltas").glob("*.dlt")))
    assert (delta["from_version"], delta["to_version"], delta["record"]["kind"]) == (0, 10, "train")
    assert delta["files"][0]["name"] == "model.safetensors" and delta["files"][0]["tiles_changed"] > 0
    assert delta["optimizer"]["settings"]["updates"] == "10"
    assert "version 0 -> 10" in table

    nothing = subprocess.run([LATHE, "inspect", conversations], capture_output=True, text=True, timeout=60)
    assert nothing.returncode == 1 and str(conversations) in nothing.stderr


@pytest.mark.parametrize(
    "line, named",
    [
        ("{", ":21: the line is not valid JSON"),
        ('{"messages": []}', ":21: 'messages' must be a list"),
        ('{"messages": [{"role": "user", "content": "x"}]}', ":21: the conversation has no assistant"),
        ('{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", "weight": 0}]}', ":21: no token"),
        ('{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "%s"}]}' % ("word " * 400), ":21: the conversation has"),
    ],
)
def test_a_bad_line_is_named_and_nothing_changes(tiny, conversations, tmp_path, line, named):
    data = tmp_path / "bad.jsonl"
    data.write_text(conversations.read_text() + line + "\n")
    before = files(tiny)
    run = train(tiny, data)
    assert run.returncode == 1 and f"{data}{named}" in run.stderr, run.stderr
    assert files(tiny) == before


def test_settings_that_cannot_work(tiny, conversations, pairs):
    before = files(tiny)
    for arguments, code, named in [
        ([tiny], 2, "DATA"),
        ([tiny, conversations, "--method", "ppo"], 2, "--method"),
        ([tiny, conversations, "--lr", 0], 2, "--lr"),
        ([tiny, conversations, "--rank", 0], 2, "--rank"),
        ([tiny, conversations, "--resume", "--restart"], 2, "--restart"),
        ([tiny, conversations, "--eval", conversations, "--eval-fraction", 0.1], 2, "--eval"),
        ([tiny, tiny / "nothing.jsonl"], 1, "nothing.jsonl"),
        ([tiny, conversations, "--method", "dpo"], 1, ":1: 'input' is missing"),
        ([tiny, pairs, "--method", "dpo", "--kl", 1], 1, "kl"),
        ([tiny, conversations, "--patience", 2], 1, "patience"),
        ([tiny, conversations, "--rounding", "up"], 2, "--rounding"),
        ([tiny, conversations, "--max-tokens", 10], 1, "example"),
        ([tiny, conversations, "--schedule", "linear", "--warmup", 500], 1, "warm-up"),
        ([tiny, conversations, "--gradients", "streaming", "--accumulate", 2], 1, "accumulate"),
        ([tiny, conversations, "--resume"], 1, "no unfinished run"),
        ([tiny.parent / "nowhere", conversations], 1, "nowhere"),
    ]:
        run = train(*arguments)
        assert run.returncode == code and named in run.stderr, (arguments, run.returncode, run.stderr)
    assert files(tiny) == before
