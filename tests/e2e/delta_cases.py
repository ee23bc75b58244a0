"""Pairs of model directories that differ in every way that a delta codes: all element types, every mode, odd places."""

import json
import struct

import numpy as np

SIZES = {"BF16": 2, "F16": 2, "F32": 4, "I16": 2, "I32": 4, "I64": 8, "U8": 1, "BOOL": 1}


def _trained(random, count, kind, step):
    """Weights and what training makes of them: normal numbers moved by normal steps, as bits."""
    before = (0.02 * random.standard_normal(count)).astype(np.float32)
    if kind == "F16":
        return before.astype(np.float16).view(np.uint16), (before + step * random.standard_normal(count)).astype(np.float16).view(np.uint16)
    if kind == "BF16":
        before = (before.view(np.uint32) & 0xFFFF0000).view(np.float32)
    after = (before + step * random.standard_normal(count)).astype(np.float32)
    if kind == "F32":
        return before.view(np.uint32), after.view(np.uint32)
    rounded = after.view(np.uint32) + random.integers(0, 1 << 16, count, dtype=np.uint32)  # stochastically
    return (before.view(np.uint32) >> 16).astype(np.uint16), (rounded >> 16).astype(np.uint16)


def _some(random, before, after, share):
    """Only a share of the changes."""
    return before, np.where(random.random(len(before)) < share, after, before)


def _integers(random, count, kind, span):
    before = random.integers(0, span, count, dtype=kind)
    return before, before + random.integers(0, 3, count, dtype=kind)


def _special(random, count):
    """Zeros, subnormals, powers of two, the largest numbers, infinities and NaNs, each moved by up to two steps of its bits."""
    patterns = np.array([0, 1, 0x7F, 0x80, 0x81, 0x3F7F, 0x3F80, 0x3F81, 0x7F7F, 0x7F80, 0x7F81, 0x7FC0, 0x7FFF], np.uint16)
    before = random.choice(np.concatenate([patterns, patterns | 0x8000]), count)
    return before, (before + random.integers(-2, 3, count)).astype(np.uint16)


def tensors(random, n):
    """Name: (dtype, bits before, bits after), of n elements each. Neighbours differ in type: what is of one type
    is coded as one part."""
    wild = random.integers(0, 1 << 16, (2, n), dtype=np.uint16)
    same = _trained(random, n, "BF16", 0)[0]
    return {
        "flags": ("U8", *_integers(random, n // 3 | 1, np.uint8, 200)),  # of odd size: what follows lies at odd places
        "bf16.dense": ("BF16", *_trained(random, n, "BF16", 1e-4)),
        "f16.sparse": ("F16", *_some(random, *_trained(random, n, "F16", 1e-5), 0.01)),
        "bf16.sparse": ("BF16", *_trained(random, n, "BF16", 1e-6)),
        "f32.dense": ("F32", *_trained(random, n, "F32", 1e-7)),
        "bf16.wild": ("BF16", *wild),
        "f16.dense": ("F16", *_trained(random, n, "F16", 1e-4)),
        "bf16.same": ("BF16", same, same),
        "f32.sparse": ("F32", *_some(random, *_trained(random, n, "F32", 1e-5), 0.01)),
        "bf16.special": ("BF16", *_special(random, n)),
        "i16": ("I16", *_integers(random, n, np.int16, 1000)),
        "bf16.far": ("BF16", *_trained(random, n, "BF16", 1e-2)),  # many cross into another exponent
        "i32": ("I32", *_integers(random, n, np.int32, 1 << 30)),
        "bf16.few": ("BF16", *_some(random, *_trained(random, n, "BF16", 1e-2), 0.02)),  # few, of which many cross
        "bool": ("BOOL", *_some(random, np.zeros(n, np.uint8), np.ones(n, np.uint8), 0.003)),
        "i64": ("I64", *_integers(random, n, np.int64, 1 << 60)),
    }


def write_shard(path, arrays):
    """arrays: name to (dtype, bits). No padding anywhere."""
    header, offset = {}, 0
    for name, (dtype, bits) in arrays.items():
        header[name] = {"dtype": dtype, "shape": [len(bits)], "data_offsets": [offset, offset + bits.nbytes]}
        offset += bits.nbytes
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(bits.tobytes() for _, bits in arrays.values()))


def write_pair(before, after, random, elements):
    """Two directories of three shards, of which the last does not differ."""
    cases = tensors(random, elements)
    names = list(cases)
    shards = {"model-00001-of-00003.safetensors": names[:9], "model-00002-of-00003.safetensors": names[9:], "model-00003-of-00003.safetensors": []}
    for side, folder in ((1, before), (2, after)):
        folder.mkdir()
        for file, members in shards.items():
            same = {"rest": ("BF16", cases["bf16.same"][1])}
            write_shard(folder / file, {name: (cases[name][0], cases[name][side]) for name in members} or same)
        index = {name: file for file, members in shards.items() for name in members or ["rest"]}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
        (folder / "config.json").write_text("{}")


def only_delta(model):
    """The name of the one delta in a directory's history."""
    (path,) = (model / ".lathe/deltas").iterdir()
    return path.name
