"""Writes tests/golden/text: what transformers makes of strings and conversations, for src/text/golden_test.cpp.

Run by hand when the cases change:
  $(python3 scripts/lathe_cache.py reference) tools/golden_text.py "$(python3 scripts/prepare_model.py)" "$(python3 scripts/fetch_tokenizers.py)"

Rendered texts are stored whole, token ids as "count:hash" (64-bit FNV-1a of their little-endian 32-bit values).
"""

import copy
import json
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
OUT = ROOT / "tests/golden/text"
sys.path.insert(0, str(ROOT / "tests/reference"))

import cpu_torch  # noqa: E402

cpu_torch.prepare()

import golden_conversations  # noqa: E402
import texts  # noqa: E402
import tokenizers  # noqa: E402
import transformers  # noqa: E402
from transformers.utils import chat_template_utils  # noqa: E402

# What opens an assistant turn, what a template may put there by itself, and what ends it.
THINK = r"(?:<think>\n\n</think>\n\n|<think>\n)"
TURNS = {
    "own": r"<\|im_start\|>assistant\n" + THINK + r"?(.*?<\|im_end\|>)",
    # Writes an empty <think> block by itself only in the last message.
    "qwen3": r"<\|im_start\|>assistant\n(?:" + THINK + r"(?=(?:(?!<\|im_start\|>).)*\Z))?(.*?<\|im_end\|>)",
    "smollm2": r"<\|im_start\|>assistant\n(.*?<\|im_end\|>)",
    "llama3_1": r"<\|start_header_id\|>assistant<\|end_header_id\|>\n\n(.*?<\|eot_id\|>)",
    "deepseek_v3": r"<｜Assistant｜>(.*?<｜end▁of▁sentence｜>)",
    "gemma3": r"<start_of_turn>model\n(.*?<end_of_turn>)",
}


def fingerprint(ids):
    value = 0xCBF29CE484222325
    for byte in b"".join(i.to_bytes(4, "little") for i in ids):
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return f"{len(ids)}:{value:016x}"


def train_own_tokenizer():
    """A small byte-level BPE of Qwen's shape, so that a plain clone tests without downloads."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.normalizer = tokenizers.normalizers.NFC()
    pattern = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
               r"|\s*[\r\n]+|\s+(?!\S)|\s+")
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([
        tokenizers.pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated"),
        tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    # Trims offsets, as many published files ask for; white space must be graded all the same.
    tokenizer.post_processor = tokenizers.processors.ByteLevel(trim_offsets=True)
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=600, show_progress=False,
                                             initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet())
    corpus = texts.HAND_WRITTEN + golden_conversations.ANSWERS + [s for s in golden_conversations.USERS if isinstance(s, str)]
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens([tokenizers.AddedToken(text, special=False, normalized=False) for text in ("<think>", "</think>")])
    tokenizer.save(str(OUT / "own/tokenizer.json"), pretty=False)
    config = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (OUT / "own/tokenizer_config.json").write_text(json.dumps(config) + "\n")


def takes_parts(tokenizer):
    """Whether the template prints the text of content given as a list of parts."""
    probe = [{"role": "user", "content": [{"type": "text", "text": "PROBE"}]}]
    try:
        rendered = tokenizer.apply_chat_template(probe, tokenize=False)
    except Exception:  # templates raise whatever they like
        return False
    return "PROBE" in rendered and "'text'" not in rendered


def prepared(messages, parts, parse_arguments=True, null_content=True):
    """Messages as servers hand them to a template."""
    messages = copy.deepcopy(messages)
    for message in messages:
        if isinstance(message["content"], list) and not parts:
            message["content"] = "\n".join(part["text"] for part in message["content"])
        if message["content"] is None and not null_content:
            message["content"] = ""
        for call in message.get("tool_calls", []):
            arguments = call["function"]["arguments"]
            if isinstance(arguments, str) and parse_arguments:
                call["function"]["arguments"] = json.loads(arguments)
    return messages


def render(tokenizer, case, parts, add_generation_prompt):
    """The text of the first preparation that the template takes."""
    failure = None
    for options in ({}, {"null_content": False}, {"parse_arguments": False}, {"null_content": False, "parse_arguments": False}):
        try:
            return tokenizer.apply_chat_template(prepared(case["messages"], parts, **options), tools=case.get("tools"), tokenize=False,
                                                 add_generation_prompt=add_generation_prompt, **case.get("kwargs", {}))
        except Exception as error:  # templates raise whatever they like
            failure = failure or error
    raise failure


def byte_spans(text, spans):
    return [[len(text[:begin].encode()), len(text[:end].encode())] for begin, end in spans]


def typed_tokens(case):
    written = json.dumps(case["messages"])
    return any(token in written for token in ("<|im_", "<|eot", "<|start", "_of_turn>", "<think>", "<|end"))


def golden_conversation(tokenizer, name, case, parts):
    try:
        rendered = render(tokenizer, case, parts, case["add_generation_prompt"])
    except Exception as error:  # templates raise whatever they like
        return {"error": str(error)}
    golden = {"text": rendered, "ids": fingerprint(tokenizer.encode(rendered, add_special_tokens=False))}
    unclosed = name == "deepseek_v3" and any("tool_calls" in message for message in case["messages"])  # its turns of calls never end
    if name in TURNS and not typed_tokens(case) and not unclosed:
        whole = render(tokenizer, case, parts, False)
        golden["spans"] = byte_spans(whole, [match.span(1) for match in re.finditer(TURNS[name], whole, re.DOTALL)])
    return golden


def golden_generation(source, case):
    """transformers' own spans, from the template's generation tags."""
    try:
        (text,), (spans,) = chat_template_utils.render_jinja_template([prepared(case["messages"], parts=False)], chat_template=source, return_assistant_tokens_mask=True)
    except Exception as error:  # templates raise whatever they like
        return {"error": str(error)}
    return {"text": text, "spans": byte_spans(text, spans)}


def golden_expression(source, variables):
    try:
        (text,), _ = chat_template_utils.render_jinja_template([[{"role": "user", "content": "hi"}]], chat_template=source, **variables)
    except Exception as error:  # templates raise whatever they like
        return {"source": source, "variables": variables, "error": str(error)}
    return {"source": source, "variables": variables, "text": text}


def write_model(name, directory, strings, cases):
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(directory)  # tokenizer.json as it is
    encoded = [tokenizer.encode(text, add_special_tokens=False) for text in strings]
    golden = {"transformers": transformers.__version__, "strings": [fingerprint(ids) for ids in encoded],
              "skipped": [fingerprint(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False).encode()) for ids in encoded]}
    if tokenizer.chat_template:
        parts = takes_parts(tokenizer)
        golden["conversations"] = [golden_conversation(tokenizer, name, case, parts) for case in cases]
        errors = sum("error" in entry for entry in golden["conversations"])
        print(f"{name}: {len(cases)} conversations, {errors} refused, {sum('spans' in e for e in golden['conversations'])} with spans")
    write_json(OUT / f"{name}.json", golden)


def write_json(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("},{", "},\n{") + "\n")


def main(smollm2, others):
    strings, cases = texts.strings(), golden_conversations.make(300)
    write_json(OUT / "cases.json", {"strings": strings, "conversations": cases})
    train_own_tokenizer()
    write_model("own", OUT / "own", strings, cases)
    write_model("smollm2", smollm2, strings, cases)
    for directory in sorted(pathlib.Path(others).iterdir()):
        write_model(directory.name, directory, strings, cases)
    write_json(OUT / "expressions.json", [golden_expression(*expression) for expression in golden_conversations.EXPRESSIONS])
    source = (OUT / "own/generation.jinja").read_text()
    write_json(OUT / "generation.json", [golden_generation(source, case) for case in cases])


if __name__ == "__main__":
    main(*sys.argv[1:])
