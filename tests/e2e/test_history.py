"""The history of a model directory, by the real program on the real file system: SIGKILL, full disks, flipped bits, readers."""

import json
import multiprocessing
import os
import pathlib
import random
import resource
import shutil
import signal
import stat
import struct
import subprocess
import time

import pytest
import safetensors
from conftest import LATHE, make_tiny

TURNS = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "good day"}]


def lathe(*arguments, code=0):
    """The program's JSON answer; with another exit code, what it says on standard error."""
    run = subprocess.run([LATHE, *map(str, arguments), "--json"], capture_output=True, text=True, timeout=120)
    assert run.returncode == code, run.stdout + run.stderr
    return json.loads(run.stdout) if code == 0 or not run.stderr else run.stderr


def shards(folder):
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return ["model.safetensors"]
    return sorted(set(json.loads(index.read_text())["weight_map"].values()))


def weights(folder):
    """Every tensor's bytes, read by the safetensors library."""
    return {name: bytes(tensor["data"]) for shard in shards(folder) for name, tensor in safetensors.deserialize((folder / shard).read_bytes())}


def write_shards(folder, numbers, size=1 << 20, tensors=3):
    """A directory of one shard per number; all its tensors are filled with it."""
    folder.mkdir(parents=True, exist_ok=True)
    index = {}
    for i, number in enumerate(numbers):
        file = f"model-{i + 1:05}-of-{len(numbers):05}.safetensors"
        header, data = {}, struct.pack("<H", number) * (size // 2)
        for t in range(tensors):
            header[f"t{i}.{t}"] = {"dtype": "BF16", "shape": [size // 2], "data_offsets": [t * size, (t + 1) * size]}
            index[f"t{i}.{t}"] = file
        text = json.dumps(header).encode()
        (folder / file).write_bytes(struct.pack("<Q", len(text)) + text + data * tensors)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    (folder / "config.json").write_text("{}")
    return folder


def scaled(name, numbers):
    """Other weights: nearly every one is different, by little."""
    return [number * 1.01 for number in numbers]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    return make_tiny(folder / "a", shards=3), make_tiny(folder / "b", shards=2, change=scaled)


def test_versions_of_any_trainers_output(tmp_path, pair):
    model, other = shutil.copytree(pair[0], tmp_path / "model"), pair[1]
    first, second = weights(model), weights(other)
    assert lathe("verify", model)["history"] is False, "nothing to compare with is no damage"
    assert not (model / ".lathe").exists()
    synced = lathe("sync", model, "--from", other, "--note", "epoch 1")
    assert synced["version"] == 1 and synced["delta_bytes"] > 0
    assert weights(model) == second
    assert lathe("sync", model, "--from", other)["delta_bytes"] == 0, "nothing differs"

    back = lathe("rollback", model, 0)
    assert back["version"] == 2 and back["restores"] == 0
    assert weights(model) == first
    assert "none before it" in lathe("rollback", model, code=1)
    assert lathe("rollback", model, "--redo")["version"] == 3
    assert weights(model) == second

    log = lathe("log", model)
    assert [v["version"] for v in log["versions"]] == [3, 2, 1] and log["first"] == 0
    assert log["versions"][2]["note"] == "epoch 1" and log["versions"][1]["restores"] == 0
    assert log["root"] == log["versions"][0]["root"] == log["versions"][2]["root"]
    checked = lathe("verify", model)
    assert checked["damages"] == [] and checked["deltas"] == 3 and checked["root"] == log["root"]

    lathe("export", model, 0, tmp_path / "old")
    assert weights(tmp_path / "old") == first
    assert (tmp_path / "old" / "tokenizer.json").read_bytes() == (model / "tokenizer.json").read_bytes()
    assert not (tmp_path / "old" / ".lathe").exists()
    assert "there is no version 9" in lathe("rollback", model, 9, code=1)

    pruned = lathe("prune", model, "--all-hours", 0, "--hourly-hours", 0, "--daily-days", 0)
    assert pruned["removed"] == [1, 2] and pruned["bytes_after"] < pruned["bytes_before"]
    lathe("rollback", model, 0)
    assert weights(model) == first


def test_a_copy_follows_by_deltas(tmp_path, pair):
    model, other, copy = shutil.copytree(pair[0], tmp_path / "model"), pair[1], tmp_path / "copy"
    lathe("push", model, copy)
    assert weights(copy) == weights(model)
    root = lathe("sync", model, "--from", other)["root"]
    assert lathe("push", model, copy)["root"] == root
    assert weights(copy) == weights(other)
    assert lathe("verify", copy)["damages"] == []

    # Over "ssh": what it would run there is run here.
    ssh = tmp_path / "ssh"
    ssh.write_text('#!/bin/sh\n[ "$1" = backup ] || exit 9\nshift\nexec sh -c "$*"\n')
    ssh.chmod(ssh.stat().st_mode | stat.S_IXUSR)
    far = tmp_path / "it's far"
    shutil.copytree(pair[0], far)  # any program may make the first copy
    over = ("--ssh", ssh, "--remote-lathe", LATHE)
    assert lathe("push", model, f"backup:{far}", *over)["root"] == root
    assert weights(far) == weights(other)
    lathe("rollback", model, 0)
    lathe("push", model, f"backup:{far}", *over)
    assert weights(far) == weights(model)
    lathe("rollback", far, 1)
    assert "holds version 3" in lathe("push", model, f"backup:{far}", *over, code=1), "it went its own way"
    assert weights(far) == weights(other)
    assert "went away" in lathe("push", model, f"nowhere:{far}", *over, code=1)


def test_lathe_alone_keeps_histories(tmp_path, pair):
    """Without lathe-torch beside it, as on a machine that keeps copies: whatever teaches or serves says what is missing."""
    model = shutil.copytree(pair[0], tmp_path / "model")
    alone = shutil.copy(LATHE, tmp_path / "lathe")
    run = lambda *arguments: subprocess.run([alone, *map(str, arguments)], capture_output=True, text=True, timeout=60)
    assert run("sync", model, "--from", pair[1]).returncode == 0
    assert run("verify", model).returncode == 0
    libraries = subprocess.run(["ldd", alone], capture_output=True, text=True, check=True).stdout
    assert "libc.so" in libraries and "torch" not in libraries and "libgomp" not in libraries
    for arguments in (["serve", model], ["train", model, "data.jsonl", "--epochs", 2], ["doctor", "--help"]):
        refused = run(*arguments)
        assert refused.returncode == 1 and f"cannot start {tmp_path}/lathe-torch: No such file" in refused.stderr, refused.stderr
        assert f"`lathe {arguments[0]}` needs it in the same folder" in refused.stderr


def test_symbolic_links(tmp_path, pair):
    model, other = shutil.copytree(pair[0], tmp_path / "model"), pair[1]
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for shard in shards(model):
        shutil.move(model / shard, blobs / shard)
        (model / shard).symlink_to(blobs / shard)
    before = {shard: (blobs / shard).read_bytes() for shard in shards(model)}
    refused = lathe("sync", model, "--from", other, code=1)
    assert "symbolic link" in refused and "--materialize" in refused
    lathe("sync", model, "--from", other, "--materialize")
    assert weights(model) == weights(other)
    assert {shard: (blobs / shard).read_bytes() for shard in before} == before


def test_flipped_bits_are_found_and_named(tmp_path, pair):
    model = shutil.copytree(pair[0], tmp_path / "model")
    lathe("sync", model, "--from", pair[1])
    lathe("rollback", model, 0)
    generator = random.Random(7)
    files = [model / shard for shard in shards(model)] + sorted((model / ".lathe/deltas").iterdir())
    for path in files * 4:
        whole = path.read_bytes()
        damaged = bytearray(whole)
        damaged[generator.randrange(len(damaged))] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        run = subprocess.run([LATHE, "verify", model], capture_output=True, text=True)
        assert run.returncode == 1 and path.name in run.stdout and "DAMAGED" in run.stdout, run.stdout + run.stderr
        path.write_bytes(whole)
    assert lathe("verify", model)["damages"] == []


def test_killed_at_random_moments(tmp_path):
    """SIGKILL while syncing, again and again: the directory is the old or the new version, and the history whole."""
    numbers = ([1, 2, 3], [11, 12, 13])
    sources = [write_shards(tmp_path / f"source{i}", numbers[i], size=4 << 20) for i in range(2)]
    contents = [weights(source) for source in sources]
    model = shutil.copytree(sources[0], tmp_path / "model")
    begin = time.monotonic()
    lathe("sync", model, "--from", sources[1])
    usual = time.monotonic() - begin
    generator, finished, current = random.Random(3), 0, 1
    for _ in range(15):
        wanted = 1 - current
        process = subprocess.Popen([LATHE, "sync", model, "--from", sources[wanted]], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(timeout=generator.uniform(0, 1.2 * usual))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
        acknowledged = process.returncode == 0
        lathe("log", model)  # any command puts it in order
        found = weights(model)
        assert found in contents
        assert lathe("verify", model)["damages"] == []
        assert not list(model.rglob("*.lathe-new"))
        assert not acknowledged or found == contents[wanted]
        finished += found == contents[wanted]
        current = contents.index(found)
    assert 0 < finished < 15, "the moments should fall on both sides"


@pytest.mark.parametrize("mebibytes", [14, 34, 36, 38, 46, 70])
def test_full_disks(tmp_path, mebibytes):
    """A file system that is too small somewhere on the way: all or nothing, and said so."""
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "none", small], capture_output=True).returncode != 0:
        pytest.skip("mounting a small file system needs root")
    try:
        model = write_shards(small / "model", [1, 2, 3])
        other = write_shards(tmp_path / "other", [21, 22, 23])
        before = weights(model)
        run = subprocess.run([LATHE, "sync", model, "--from", other], capture_output=True, text=True)
        if run.returncode == 0:
            assert weights(model) == weights(other) and mebibytes > 14
        else:
            assert run.returncode == 1 and ("free" in run.stderr or "No space" in run.stderr) and mebibytes < 70, run.stderr
            assert weights(model) == before
        assert not list(model.rglob("*.lathe-new"))
        assert lathe("verify", model)["damages"] == []
    finally:
        subprocess.run(["umount", "-l", small], check=True)


def test_memory_stays_small(tmp_path):
    """A model larger than the memory that the program is given (file pages are the kernel's). Per thread it holds a few tiles."""
    limit = (200 + 50 * os.cpu_count()) << 20
    size = 2 * limit
    folders = []
    for name, mark in (("model", b"ab"), ("other", b"cd")):
        folders.append(tmp_path / name)
        folders[-1].mkdir()
        header = json.dumps({"t": {"dtype": "BF16", "shape": [size // 2], "data_offsets": [0, size]}}).encode()
        with open(folders[-1] / "model.safetensors", "wb") as file:
            file.write(struct.pack("<Q", len(header)) + header)
            for at in range(0, size, 1 << 20):
                file.seek(8 + len(header) + at)
                file.write(mark)
            file.truncate(8 + len(header) + size)  # the rest is holes
        (folders[-1] / "config.json").write_text("{}")

    def limited(*arguments):
        run = subprocess.run([LATHE, *map(str, arguments)], capture_output=True, text=True,
                             preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)))
        assert run.returncode == 0, run.stderr

    model, other = folders
    limited("sync", model, "--from", other)
    limited("rollback", model, 0)
    limited("verify", model)
    limited("publish", model, tmp_path / "live")


def load_again_and_again(link, pinned, stop, results):
    """A reader that knows nothing of Lathe. Every load must be of one version; a missing file means: begin again."""
    loads = missing = mixed = 0
    while not stop.is_set():
        folder = pathlib.Path(link).resolve() if pinned else pathlib.Path(link)
        try:
            stamps = set()
            for shard in shards(folder):
                for _, tensor in safetensors.deserialize((folder / shard).read_bytes()):
                    stamps.update((bytes(tensor["data"][:2]), bytes(tensor["data"][-2:])))
            loads += 1
            mixed += len(stamps) != 1
        except FileNotFoundError:
            missing += 1
    results.put((loads, missing, mixed))


def test_eight_readers_hammer_a_published_model(tmp_path):
    sources = [write_shards(tmp_path / f"source{i}", [i + 1] * 4, size=64 << 10) for i in range(2)]
    model, link = shutil.copytree(sources[0], tmp_path / "model"), tmp_path / "live"
    lathe("sync", model, "--from", sources[1])
    lathe("publish", model, link)
    stop, results = multiprocessing.Event(), multiprocessing.Queue()
    readers = [multiprocessing.Process(target=load_again_and_again, args=(link, i % 2 == 1, stop, results)) for i in range(8)]
    for reader in readers:
        reader.start()
    for i in range(6):
        lathe("sync", model, "--from", sources[i % 2])
        published = lathe("publish", model, link, "--keep", 4)
        assert published["linked"] == 4 and published["copied"] == 0
    stop.set()
    counts = [results.get(timeout=60) for _ in readers]
    for reader in readers:
        reader.join()
    loads, missing, mixed = (sum(column) for column in zip(*counts))
    print(f"{loads} loads, {missing} began again, {mixed} mixed")
    assert loads > 100 and mixed == 0
    assert len(list((tmp_path / "live.generations").iterdir())) == 4


def test_a_live_server(serve, tiny, tmp_path):
    """Commands beside a server find it; rolling back goes through it and changes what it serves."""
    server = serve(tiny, "--sync-seconds", "0")

    def scores():
        body = {"prompt": "the sea is wide", "echo": True, "logprobs": 0, "max_tokens": 0}
        return server.call("/v1/completions", body).json["choices"][0]["logprobs"]["token_logprobs"][1:]

    before = scores()
    assert server.call("/v1/learn", {"messages": TURNS, "steps": 2, "until_loss": 0}).json["version"] == 2
    synced = lathe("sync", tiny)
    assert synced["version"] == 2 and synced["delta_bytes"] > 0
    middle = scores()
    assert middle != before
    assert lathe("log", tiny)["versions"][0]["note"] == "1 correction, 2 steps"
    lathe("publish", tiny, tmp_path / "live")
    published = weights(tmp_path / "live")
    assert published == weights(tiny)
    server.call("/v1/learn", {"messages": TURNS, "steps": 3, "until_loss": 0})
    back = lathe("rollback", tiny, 0)
    assert back["version"] == 6 and back["restores"] == 0, "what was only live became version 5 first"
    assert scores() == before
    assert server.call("/v1/rollback", {"version": 2}).json["restores"] == 2
    assert scores() == middle
    assert server.call("/v1/rollback", {"version": 99}).status == 404
    assert server.call("/v1/rollback", {"version": "two"}).status == 400
    assert server.call("/healthz").json["version"] == server.call("/healthz").json["synced_version"] == 7
    assert weights(tmp_path / "live") == published == weights(tiny)
    assert lathe("verify", tiny)["damages"] == []
    assert "another lathe process" in lathe("sync", tiny, "--from", tmp_path / "live", code=1)
    assert server.stop() == 0
    assert "no server works on" in lathe("sync", tiny, code=1)


def test_a_server_that_is_killed(serve, tiny):
    """SIGKILL while it learns and syncs every second: what it said was durable is there, and it starts again."""
    generator, durable = random.Random(11), 0
    for _ in range(4):
        server = serve(tiny, "--sync-seconds", "1")
        assert server.call("/healthz").json["version"] >= durable
        server.call("/v1/learn", {"messages": TURNS, "steps": 10000, "until_loss": 0, "wait": False})
        time.sleep(1 + generator.random() * 1.5)
        durable = server.call("/healthz").json["synced_version"]
        server.stop(signal.SIGKILL)
        assert lathe("verify", tiny)["damages"] == []
        assert lathe("log", tiny)["version"] >= durable
    assert durable > 0
