"""Model directories as the field has them: what is served, and what serve, train and doctor refuse alike, by name."""

import json
import shutil
import struct
import subprocess

import pytest
from conftest import LATHE, TINY, make_tiny, tiny_tensors

TURNS = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "good day"}]
LEARN = "/v1/learn"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0123456789abcdef" * 4 + "\nsize 269060552\n"
EMBEDDING, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.layers.0.input_layernorm.weight"


def lathe(*words, code=0):
    run = subprocess.run([LATHE, *map(str, words)], capture_output=True, text=True, timeout=120)
    assert run.returncode == code, run.stdout + run.stderr
    return run.stdout + run.stderr


def read(folder):
    """{name: (dtype, shape, bytes)}"""
    data = (folder / "model.safetensors").read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:8 + size])
    header.pop("__metadata__", None)
    return {name: (t["dtype"], t["shape"], data[8 + size + t["data_offsets"][0]:8 + size + t["data_offsets"][1]]) for name, t in header.items()}


def write(folder, tensors):
    header, offset = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + b"".join(data for _, _, data in tensors.values()))


def numbers(tensor):
    """The floats of a BF16 or F32 tensor."""
    dtype, _, data = tensor
    if dtype == "F32":
        return list(struct.unpack(f"<{len(data) // 4}f", data))
    return [struct.unpack("<f", b"\0\0" + data[i:i + 2])[0] for i in range(0, len(data), 2)]


def as_type(tensor, dtype):
    form = {"F16": "e", "F32": "f", "F64": "d"}[dtype]
    values = numbers(tensor)
    return dtype, tensor[1], struct.pack(f"<{len(values)}{form}", *values)


def config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def spoil(file, change):
    path, text = file, file.read_text()
    path.write_text(json.dumps(change(json.loads(text))))


# What is wrong with a directory, and words that all who refuse it say.
def f16(folder):
    write(folder, {name: as_type(tensor, "F16") for name, tensor in read(folder).items()})


def one_matrix_f32(folder):
    tensors = read(folder)
    tensors["model.layers.1.mlp.up_proj.weight"] = as_type(tensors["model.layers.1.mlp.up_proj.weight"], "F32")
    write(folder, tensors)


def nan(folder):
    tensors = read(folder)
    dtype, shape, data = tensors[NORM]
    tensors[NORM] = dtype, shape, data[:-2] + b"\xc0\x7f"
    write(folder, tensors)


def other_head(folder):
    tensors = read(folder)
    dtype, shape, data = tensors[EMBEDDING]
    write(folder, {**tensors, HEAD: (dtype, shape, data[:-2] + b"\x80\x3f")})


def no_head(folder):
    config(folder, tie_word_embeddings=False)


def stray_bias(folder):
    write(folder, {**read(folder), "model.layers.0.self_attn.q_proj.bias": ("BF16", [64], bytes(128))})


def too_few_rows(folder):
    """Special tokens were added to the tokenizer, and the embedding was not resized."""
    tensors = read(folder)
    dtype, _, data = tensors[EMBEDDING]
    tensors[EMBEDDING] = dtype, [601, 64], data[:601 * 128]
    write(folder, tensors)
    config(folder, vocab_size=601)


WRONG = {
    "half precision": (f16, ["F16", "lathe convert"]),
    "matrices of two types": (one_matrix_f32, ["layers.1.mlp.up_proj.weight", "F32", "BF16", "lathe convert"]),
    "NaN": (nan, [NORM, "NaN"]),
    "a head of its own beside a tie": (other_head, [HEAD, "tie_word_embeddings"]),
    "a tie that is not said": (no_head, [HEAD, "set tie_word_embeddings to true"]),
    "a bias that config.json does not know": (stray_bias, ["q_proj.bias", "attention_bias"]),
    "tokens without a row": (too_few_rows, ["'<|im_start|>' (601)", "the model has 601"]),
    "generation_config.json": (lambda d: (d / "generation_config.json").write_text('{"eos_token_id": {"a": 1}}'), ["generation_config.json", "eos_token_id"]),
    "rope of several layers": (lambda d: config(d, rope_parameters={"sliding_attention": {"rope_theta": 1e4}}), ["rope_parameters", "full_attention"]),
    "sliding layers": (lambda d: config(d, layer_types=["full_attention", "sliding_attention"]), ["sliding_attention"]),
    "a classifier": (lambda d: config(d, architectures=["LlamaForSequenceClassification"]), ["LlamaForSequenceClassification"]),
    "weights as a Git LFS pointer": (lambda d: (d / "model.safetensors").write_text(POINTER), ["model.safetensors", "git lfs pull"]),
    "tokenizer as a Git LFS pointer": (lambda d: (d / "tokenizer.json").write_text(POINTER), ["tokenizer.json", "git lfs pull"]),
    "configuration as a Git LFS pointer": (lambda d: (d / "config.json").write_text(POINTER), ["config.json", "git lfs pull"]),
    "an adapter": (lambda d: ((d / "model.safetensors").rename(d / "adapter_model.safetensors"), (d / "config.json").rename(d / "adapter_config.json")), ["LoRA", "merge"]),
    "pickled weights": (lambda d: (d / "model.safetensors").rename(d / "pytorch_model.bin"), ["pytorch_model.bin", "save_pretrained"]),
    "a slow tokenizer": (lambda d: (d / "tokenizer.json").rename(d / "tokenizer.model"), ["tokenizer.model", "save_pretrained"]),
    "no configuration": (lambda d: (d / "config.json").unlink(), ["config.json"]),
}


@pytest.mark.parametrize("what", WRONG)
def test_whoever_is_asked_says_the_same(tiny, tmp_path, what):
    change, words = WRONG[what]
    change(tiny)
    (tmp_path / "data.jsonl").write_text(json.dumps({"messages": TURNS}) + "\n")
    before = {path.name: path.read_bytes() for path in tiny.iterdir() if path.is_file()}
    said = {
        "serve": lathe("serve", tiny, "--port", "0", code=1),
        "train": lathe("train", tiny, tmp_path / "data.jsonl", code=1),
        "doctor": lathe("doctor", tiny, code=1),
    }
    for command, text in said.items():
        assert all(word in text for word in words), f"{command} says: {text}"
        assert "FAIL" in text or command != "doctor"
    assert {path.name: path.read_bytes() for path in tiny.iterdir() if path.is_file()} == before, "nothing is touched"
    needs_the_numbers = what in ("NaN", "a head of its own beside a tie")
    assert needs_the_numbers or not (tiny / ".lathe").exists(), "nor is anything made"


def test_a_head_stored_beside_its_tie_is_kept_in_step(serve, tiny, tmp_path):
    tensors = read(tiny)
    plain = shutil.copytree(tiny, tmp_path / "plain")
    write(tiny, {**tensors, HEAD: tensors[EMBEDDING]})
    assert "FAIL weights" not in lathe("doctor", tiny)
    server, other = serve(tiny), serve(plain)
    answer = server.ask("hello", max_tokens=8)
    assert answer == other.ask("hello", max_tokens=8)
    assert server.call(LEARN, {"messages": TURNS, "steps": 3, "lr": 1e-3}).status == 200
    assert server.call("/v1/sync", {}).status == 200
    learned = read(tiny)
    assert learned[HEAD] == learned[EMBEDDING] != tensors[EMBEDDING], "head and embedding learn as one"
    assert server.call("/v1/rollback", {}).status == 200
    assert read(tiny)[HEAD] == read(tiny)[EMBEDDING] == tensors[EMBEDDING]
    assert server.ask("hello", max_tokens=8) == answer
    assert server.call("/v1/redo", {}).status == 200
    assert server.stop() == 0
    assert read(tiny) == learned
    # Every other way that writes a directory.
    versions = json.loads(lathe("log", tiny, "--json"))["versions"]
    lathe("verify", tiny)
    lathe("export", tiny, versions[0]["version"], tmp_path / "exported")
    assert read(tmp_path / "exported") == learned
    (tmp_path / "data.jsonl").write_text(json.dumps({"messages": TURNS}) + "\n")
    lathe("train", tiny, tmp_path / "data.jsonl", "--epochs", "2", "--lr", "1e-3")
    trained = read(tiny)
    assert trained[HEAD] == trained[EMBEDDING] != learned[EMBEDDING]
    lathe("rollback", tiny)
    assert read(tiny) == learned
    serve(tiny)


def test_norms_wider_than_matrices_are_served_and_taught(serve, tiny):
    tensors = read(tiny)
    for name in tensors:
        if name.endswith("norm.weight"):
            tensors[name] = as_type(tensors[name], "F32")
    write(tiny, tensors)
    assert "FAIL weights" not in lathe("doctor", tiny)
    server = serve(tiny)
    server.ask("hello", max_tokens=8)
    first = server.call(LEARN, {"messages": TURNS, "steps": 4, "lr": 1e-3}).json
    assert first["loss_after"] < first["loss_before"]
    assert server.stop() == 0
    learned = read(tiny)
    assert learned[NORM][0] == "F32" and learned[NORM] != tensors[NORM]
    serve(tiny).ask("hello", max_tokens=8)


@pytest.mark.parametrize("dtype", ["F16", "F64", "F32"])
def test_a_converted_directory_is_served(serve, tiny, tmp_path, dtype):
    expected = read(tiny)
    write(tiny, {name: as_type(tensor, dtype) for name, tensor in expected.items()})
    config(tiny, torch_dtype={"F16": "float16", "F64": "float64", "F32": "float32"}[dtype])
    before = (tiny / "model.safetensors").read_bytes()
    said = json.loads(lathe("convert", tiny, tmp_path / "new", "--json"))
    assert said["tensors"] == said["converted"] == len(expected)
    for name, tensor in read(tmp_path / "new").items():
        assert tensor[:2] == ("BF16", expected[name][1])
        # Half precision cannot hold the smallest numbers: they were lost before.
        assert dtype == "F16" or tensor == expected[name]
    assert json.loads((tmp_path / "new/config.json").read_text())["torch_dtype"] == "bfloat16"
    assert (tiny / "model.safetensors").read_bytes() == before and not (tiny / ".lathe").exists()
    serve(tmp_path / "new").ask("hello", max_tokens=4)
    assert "exists already" in lathe("convert", tiny, tmp_path / "new", code=1)


class TestSyncFrom:
    """`lathe sync --from`: the output of any trainer, which is not trusted."""

    @pytest.fixture
    def other(self, tmp_path):
        return make_tiny(tmp_path / "other", change=lambda name, values: [value * 1.25 for value in values])

    @pytest.mark.parametrize(
        "changes, named",
        [({"rope_theta": 5e5}, "rope_theta"), ({"rms_norm_eps": 1e-6}, "rms_norm_eps"), ({"num_attention_heads": 8, "head_dim": 16}, "num_attention_heads"),
         ({"tie_word_embeddings": False}, "tie_word_embeddings"), ({"model_type": "qwen3"}, "model_type"),
         ({"rope_scaling": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4}}, "rope_scaling")])
    def test_of_another_configuration(self, tiny, other, changes, named):
        config(other, **changes)
        said = lathe("sync", tiny, "--from", other, code=1)
        assert "another model" in said and named in said
        assert not (tiny / ".lathe").exists()

    def test_of_the_same_configuration_in_other_words(self, tiny, other):
        text = json.loads((other / "config.json").read_text())
        del text["rope_theta"]
        text |= {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, "attention_bias": False, "head_dim": 16, "use_cache": False,
                 "transformers_version": "5.0.0", "dtype": "bfloat16", "eos_token_id": [602, 600], "pad_token_id": 600}
        (other / "config.json").write_text(json.dumps(text))
        lathe("sync", tiny, "--from", other)
        assert read(tiny) == read(other)

    def test_of_a_family_that_is_not_served(self, tiny, other):
        for folder in (tiny, other):
            config(folder, model_type="another", final_logit_softcapping=30.0)
        lathe("sync", tiny, "--from", other)
        config(other, final_logit_softcapping=50.0)
        assert "final_logit_softcapping" in lathe("sync", tiny, "--from", other, code=1)

    def test_without_a_configuration(self, tiny, other):
        (other / "config.json").unlink()
        assert "has no config.json" in lathe("sync", tiny, "--from", other)
        assert read(tiny) == read(other)

    def test_of_wider_numbers(self, serve, tiny, other):
        expected = read(other)
        write(other, {name: as_type(tensor, "F32") for name, tensor in expected.items()})
        before = read(tiny)
        said = lathe("sync", tiny, "--from", other, code=1)
        assert "F32" in said and "BF16" in said and "--round" in said and read(tiny) == before
        lathe("sync", tiny, "--from", other, "--round")
        assert read(tiny) == expected
        serve(tiny)

    def test_of_numbers_that_are_none(self, serve, tiny, other):
        nan(other)
        before = read(tiny)
        said = lathe("sync", tiny, "--from", other, code=1)
        assert NORM in said and "NaN" in said and read(tiny) == before
        serve(tiny)

    def test_of_a_head_beside_its_tie(self, serve, tiny, other):
        tensors = read(other)
        write(other, {**tensors, HEAD: tensors[EMBEDDING]})
        lathe("sync", tiny, "--from", other)
        assert read(tiny) == tensors
        other_head(other)
        assert HEAD in lathe("sync", tiny, "--from", other, code=1)
        serve(tiny)

    @pytest.mark.parametrize("spoilt, words", [("an adapter", ["LoRA"]), ("pickled weights", ["pickled"]), ("weights as a Git LFS pointer", ["git lfs pull"]),
                                               ("a bias that config.json does not know", ["q_proj.bias", "would be lost"])])
    def test_of_something_else(self, tiny, other, spoilt, words):
        WRONG[spoilt][0](other)
        said = lathe("sync", tiny, "--from", other, code=1)
        assert all(word in said for word in words), said
        assert not (tiny / ".lathe/deltas").exists()


def test_the_tiny_model_is_what_these_tests_take_it_for():
    assert TINY["tie_word_embeddings"] and HEAD not in tiny_tensors() and NORM in tiny_tensors()
