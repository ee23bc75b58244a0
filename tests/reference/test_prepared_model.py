"""The directory that scripts/prepare_model.py makes says what the GGUF says, as transformers reads both."""

import copy

import answers
import regex
import texts
import tokenizers
import torch
import transformers


def test_weights_are_the_ggufs_rounded_to_bf16(from_gguf, model_dir):
    ours = transformers.AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.bfloat16).state_dict()
    theirs = from_gguf.state_dict()
    assert set(ours) == set(theirs)
    different = [name for name in ours if not torch.equal(ours[name], theirs[name].to(torch.bfloat16))]
    assert different == []


def test_config(from_gguf, from_directory):
    ours, theirs = from_directory.config, from_gguf.config
    for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
                 "vocab_size", "max_position_embeddings", "hidden_act", "tie_word_embeddings", "eos_token_id", "bos_token_id"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.rope_parameters["rope_theta"] == theirs.rope_parameters["rope_theta"] == 100000.0
    assert ours.rms_norm_eps == 1e-5 and abs(theirs.rms_norm_eps - 1e-5) < 1e-11
    assert ours.pad_token_id == ours.eos_token_id == 2


class PlainBpe:
    """Byte-level BPE written from its definition, with nothing from the `tokenizers` library. Reads only the GGUF."""

    WORDS = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")

    def __init__(self, fields):
        tokens = fields["tokenizer.ggml.tokens"].contents()
        kinds = fields["tokenizer.ggml.token_type"].contents()
        self.ids = {text: i for i, text in enumerate(tokens)}
        self.ranks = {tuple(merge.split(" ")): i for i, merge in enumerate(fields["tokenizer.ggml.merges"].contents())}
        special = [regex.escape(text) for text, kind in zip(tokens, kinds) if kind == 3]
        self.special = regex.compile("(" + "|".join(special) + ")")
        printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
        others = [byte for byte in range(256) if byte not in printable]
        self.symbols = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}

    def word(self, text):
        parts = [self.symbols[byte] for byte in text.encode()]
        while len(parts) > 1:
            rank, at = min((self.ranks.get(pair, 1 << 30), i) for i, pair in enumerate(zip(parts, parts[1:])))
            if rank == 1 << 30:
                break
            parts[at:at + 2] = [parts[at] + parts[at + 1]]
        return [self.ids[part] for part in parts if part in self.ids]  # bytes without a token vanish

    def encode(self, text):
        ids = []
        for piece in self.special.split(text):
            if self.special.fullmatch(piece):
                ids.append(self.ids[piece])
                continue
            for run in regex.split(r"(\p{N})", piece):  # digits first, each alone
                ids += [i for word in self.WORDS.findall(run) for i in self.word(word)]
        return ids


def test_same_tokens(model_dir, gguf, tokenizer):
    import gguf as gguf_package
    plain = PlainBpe(gguf_package.GGUFReader(gguf).fields)
    library = tokenizers.Tokenizer.from_file(str(model_dir / "tokenizer.json"))
    strings = texts.strings()
    assert len(strings) > 200
    for text in strings:
        expected = plain.encode(text)
        assert library.encode(text, add_special_tokens=False).ids == expected, repr(text)
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == expected, repr(text)
        assert tokenizer(text)["input_ids"] == expected, f"special tokens were added to {text!r}"


def test_transformers_gguf_tokenizer_differs_only_in_known_ways(gguf, tokenizer):
    """transformers' GGUF reader forgets the digit step and gives <|endoftext|> for the 21 bytes that the vocabulary lacks, where the
    plain tokenizer gives nothing. Everywhere else it must agree; for the rest there is the independent reference above."""
    theirs = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    known = regex.compile(r"\p{N}|[\x04\x06\x13\x14\x16\x1d]|[\U00040000-\U000bffff]")  # the last begin with bytes F1, F2
    plain = [text for text in texts.strings() if not known.search(text)]
    assert len(plain) > 150
    for text in plain:
        assert theirs(text, add_special_tokens=False)["input_ids"] == tokenizer(text, add_special_tokens=False)["input_ids"], repr(text)


def test_resaving_keeps_the_digit_step(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert again("in 2024", add_special_tokens=False)["input_ids"] == [254, 216, 34, 32, 34, 36]


def test_chat_template(tokenizer):
    text = tokenizer.apply_chat_template(texts.user("Hi"), add_generation_prompt=True, tokenize=False)
    assert text == ("<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
                    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    ids = tokenizer.apply_chat_template(texts.user("Hi"), add_generation_prompt=True, return_dict=False)
    assert ids == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_same_greedy_answers(from_gguf, from_directory, tokenizer):
    """Word for word with the GGUF's weights rounded to bf16, which is what the directory holds; with the unrounded ones up to ties."""
    rounded = copy.deepcopy(from_gguf)
    rounded.load_state_dict({name: value.to(torch.bfloat16).float() for name, value in from_gguf.state_dict().items()})
    rounded.config.rms_norm_eps = from_directory.config.rms_norm_eps
    for messages in texts.CONVERSATIONS:
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        ours = answers.greedy(from_directory, ids, 32)
        assert len(ours) > 3
        assert tokenizer.decode(ours) == tokenizer.decode(answers.greedy(rounded, ids, 32))
        assert answers.shortfall(from_gguf, ids, ours) < 0.1, messages  # measured: at most 0.002
