"""The format page is enough to write a reader from: python/lathe_delta, which was, agrees with the program bit for bit."""

import collections
import shutil
import subprocess
import sys

import delta_cases
import numpy as np
import pytest
from conftest import REPOSITORY
from test_history import lathe

sys.path.insert(0, str(REPOSITORY / "python"))
import lathe_delta  # noqa: E402
from lathe_delta import hashes, payload  # noqa: E402

GOLDEN = REPOSITORY / "tests/golden/delta"
NEWEST = GOLDEN / "version-2.dlt"


def files(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


@pytest.fixture
def part_modes(monkeypatch):
    """Counts the (mode, element type) pairs that are decoded."""
    seen = collections.Counter()
    original = payload._decode_part

    def count(cursor, kind, known, forward, version):
        seen[cursor.data[cursor.at], kind] += 1
        return original(cursor, kind, known, forward, version)

    monkeypatch.setattr(payload, "_decode_part", count)
    return seen


@pytest.mark.parametrize("version", [1, 2])
def test_the_committed_deltas_of_every_mode_and_type(tmp_path, part_modes, version):
    folder = shutil.copytree(GOLDEN / "before", tmp_path / "model")
    delta = lathe_delta.Delta(GOLDEN / f"version-{version}.dlt")
    delta.verify()
    assert delta.format == version
    assert lathe_delta.directory_root(delta.files, folder) == delta.from_root
    lathe_delta.apply_to_directory(delta, folder)
    assert lathe_delta.directory_root(delta.files, folder) == delta.to_root
    after = files(folder)
    assert after != files(GOLDEN / "before")
    lathe_delta.apply_to_directory(delta, folder)
    assert files(folder) == after, "applying again changes nothing"
    lathe_delta.apply_to_directory(delta, folder, forward=False)
    assert files(folder) == files(GOLDEN / "before")

    assert {kind for _, kind in part_modes} == {0, 1, 2, 3, 4, 5}
    assert {mode for mode, _ in part_modes} == {0, 1, 2, 3}
    for mode in (1, 2):
        assert {(mode, 3), (mode, 4), (mode, 5)} <= set(part_modes), part_modes


@pytest.mark.parametrize("elements", [1, 100, 3001, 360_001])
def test_what_the_program_writes(tmp_path, elements):
    """Files of many tiles, whose edges cut elements; both directions; hashes and roots as the program states them."""
    first, second, model = tmp_path / "first", tmp_path / "second", tmp_path / "model"
    delta_cases.write_pair(first, second, np.random.default_rng(elements), elements)
    shutil.copytree(first, model)
    synced = lathe("sync", model, "--from", second, "--allow-not-finite", "--note", "by another trainer")
    assert files(model) == files(second)
    delta = lathe_delta.Delta(model / ".lathe/deltas" / delta_cases.only_delta(model))
    delta.verify()
    assert delta.to_root.hex() == synced["root"] and (delta.from_version, delta.to_version) == (0, synced["version"])
    assert b"by another trainer" in delta.attachment("version.json")
    assert lathe_delta.directory_root(delta.files, first) == delta.from_root
    lathe_delta.apply_to_directory(delta, first)
    assert files(first) == files(second)
    lathe_delta.apply_to_directory(delta, first, forward=False)
    lathe("rollback", model, 0)
    assert files(first) == files(model)


def test_a_chain_of_versions(tmp_path):
    folders = [tmp_path / name for name in "abcd"]
    delta_cases.write_pair(folders[0], folders[1], np.random.default_rng(5), 6001)
    delta_cases.write_pair(folders[2], folders[3], np.random.default_rng(6), 6001)
    model, copy = shutil.copytree(folders[0], tmp_path / "model"), folders[0]
    versions = [files(model)]
    for source in folders[1:]:
        lathe("sync", model, "--from", source, "--allow-not-finite")
        versions.append(files(model))
    chain = [lathe_delta.Delta(path) for path in (model / ".lathe/deltas").iterdir()]
    chain.sort(key=lambda delta: delta.from_version)
    for delta, contents in zip(chain, versions[1:], strict=True):
        lathe_delta.apply_to_directory(delta, copy)
        assert files(copy) == contents
    for delta, contents in zip(reversed(chain), reversed(versions[:-1])):
        lathe_delta.apply_to_directory(delta, copy, forward=False)
        assert files(copy) == contents


def test_every_damage_is_refused_and_named(tmp_path):
    whole = NEWEST.read_bytes()
    delta = lathe_delta.Delta(NEWEST)
    payloads_begin, index_begin = delta.tiles[0].offset, int.from_bytes(whole[-112:-104], "little")
    parts = {"header": (0, payloads_begin), "payloads": (payloads_begin, index_begin), "index": (index_begin, len(whole) - 128), "footer": (len(whole) - 128, len(whole))}
    random, path = np.random.default_rng(3), tmp_path / "damaged.dlt"
    says = collections.defaultdict(set)
    for name, (begin, end) in parts.items():
        for at in random.integers(begin, end, 60):
            damaged = bytearray(whole)
            damaged[at] ^= 1 << random.integers(8)
            path.write_bytes(damaged)
            with pytest.raises(lathe_delta.Corrupt) as refusal:
                lathe_delta.Delta(path).verify()
            says[name].add(str(refusal.value).replace(f"{path}: ", ""))
    assert says["index"] == {"its index is damaged"}
    assert "its header is damaged" in says["header"] and "its footer is damaged" in says["footer"]
    assert any("model-00001-of-00003.safetensors tile" in text for text in says["payloads"])
    assert all("is damaged" in text for text in says["payloads"])
    for size in (0, 100, 128, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(lathe_delta.Corrupt, match="cut off|bytes"):
            lathe_delta.Delta(path)


@pytest.mark.parametrize("version", [1, 2])
def test_payloads_that_lie_behind_good_checksums(version):
    """Decoding them ends, in a refusal or in bytes that the tile's hash refuses; never in an accident or in other bytes."""
    delta = lathe_delta.Delta(GOLDEN / f"version-{version}.dlt")
    random, refused = np.random.default_rng(4), 0
    for tile in (t for t in delta.tiles if t.tile > 0):
        layout = delta.files[tile.file]
        known = (GOLDEN / "before" / layout.name).read_bytes()[slice(*layout.tile_range(tile.tile))]
        good = lathe_delta.decode_payload(layout.tile_parts(tile.tile), known, delta.payload(tile), version=delta.format)
        assert hashes.hash_tile(good) == tile.after
        for _ in range(60):
            lie = bytearray(delta.payload(tile))
            at = random.integers(len(lie))
            lie[at] ^= 1 << random.integers(8)
            try:
                out = lathe_delta.decode_payload(layout.tile_parts(tile.tile), known, lie, version=delta.format)
                assert hashes.hash_tile(out) != tile.after or out == good
            except lathe_delta.Corrupt:
                refused += 1
    assert refused > 20


def test_a_directory_of_another_state_is_left_alone(tmp_path):
    folder = shutil.copytree(GOLDEN / "before", tmp_path / "model")
    shard = folder / "model-00002-of-00003.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    contents = files(folder)
    run = subprocess.run([sys.executable, "-m", "lathe_delta", "apply", NEWEST, folder], capture_output=True, text=True,
                         env={"PYTHONPATH": str(REPOSITORY / "python")})
    assert run.returncode == 1 and "model-00002-of-00003.safetensors tile 1 has different bytes" in run.stderr
    assert files(folder) == contents
    # A tile that the delta does not touch.
    shard.write_bytes((GOLDEN / "before" / shard.name).read_bytes())
    untouched = folder / "model-00003-of-00003.safetensors"
    untouched.write_bytes(untouched.read_bytes()[:-1] + b"\x55")
    with pytest.raises(lathe_delta.Conflict, match="does not change differs"):
        lathe_delta.apply_to_directory(lathe_delta.Delta(NEWEST), folder)
    untouched.unlink()
    run = subprocess.run([sys.executable, "-m", "lathe_delta", "show", NEWEST], capture_output=True, text=True,
                         env={"PYTHONPATH": str(REPOSITORY / "python")})
    assert run.returncode == 0 and "version 0 -> 1" in run.stdout and "dense" in run.stdout
