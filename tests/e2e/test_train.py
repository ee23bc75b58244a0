"""`lathe train`: whole runs by the real program, killed and resumed; bad data, bad settings, reports."""

import json
import random
import shutil
import signal
import subprocess
import time

import pytest
from conftest import LATHE

WORDS = "hello good day how are you the river flows well never mind".split()


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
    outcome(straight, conversations, *options)
    kills, resume = 0, []
    while True:
        command = [LATHE, "train", killed, conversations, *options, "--verbose", "--save-every", 1, *resume]
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
        ([tiny, conversations, "--max-tokens", 10], 1, "example"),
        ([tiny, conversations, "--schedule", "linear", "--warmup", 500], 1, "warm-up"),
        ([tiny, conversations, "--gradients", "streaming", "--accumulate", 2], 1, "accumulate"),
        ([tiny, conversations, "--resume"], 1, "no unfinished run"),
        ([tiny.parent / "nowhere", conversations], 1, "nowhere"),
    ]:
        run = train(*arguments)
        assert run.returncode == code and named in run.stderr, (arguments, run.returncode, run.stderr)
    assert files(tiny) == before
