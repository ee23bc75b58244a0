#!/usr/bin/env python3
"""The same work as bench/cpu_bench.cpp, by transformers and torch's AdamW, on the same machine.

Prints one JSON line per case: {"case", "seconds" or "tokens_per_second", "peak_mib"}. One case per process: the peak is the
process's own. usage: peer_transformers.py MODEL_DIR prefill|decode|correction|train
"""

import json
import pathlib
import resource
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tests/reference"))
import cpu_torch  # noqa: E402

cpu_torch.prepare()
import torch  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

PROMPT_TOKENS, DECODE_TOKENS, CONTEXT_TOKENS, ANSWER_TOKENS, STEPS = 512, 64, 64, 64, 8
TRAIN_TOKENS, TRAIN_STEPS = 512, 5


def tokens(count):
    """Random ids, the same as the C++ side's: a linear congruential generator."""
    state, out = 12345, []
    for _ in range(count):
        state = (state * 1103515245 + 12345) % 2**31
        out.append(1000 + state % 40000)
    return torch.tensor([out])


def prefill(model):
    ids = tokens(PROMPT_TOKENS)
    with torch.no_grad():
        model(ids, use_cache=True, logits_to_keep=1)
        begin = time.perf_counter()
        model(ids, use_cache=True, logits_to_keep=1)
    return {"tokens_per_second": PROMPT_TOKENS / (time.perf_counter() - begin)}


def decode(model):
    ids = tokens(32)
    with torch.no_grad():
        generate = dict(do_sample=False, min_new_tokens=DECODE_TOKENS, pad_token_id=2)
        model.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=2)
        begin = time.perf_counter()
        model.generate(ids, max_new_tokens=DECODE_TOKENS, **generate)
    return {"tokens_per_second": DECODE_TOKENS / (time.perf_counter() - begin)}


def correction(model):
    """Supervised fine-tuning of one answer after a context, weights and AdamW states in bf16, as a user would run it."""
    ids = tokens(CONTEXT_TOKENS + ANSWER_TOKENS)
    labels = ids.clone()
    labels[:, :CONTEXT_TOKENS] = -100
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5, weight_decay=0.0, fused=True)
    begin = time.perf_counter()
    for _ in range(STEPS):
        loss = model(ids, labels=labels, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return {"seconds": time.perf_counter() - begin, "loss": loss.item()}


def train(model):
    """Fine-tuning on one sequence of which every token is graded; the first step is not counted."""
    ids = tokens(TRAIN_TOKENS)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5, weight_decay=0.0, fused=True)
    for step in range(TRAIN_STEPS + 1):
        if step == 1:
            begin = time.perf_counter()
        loss = model(ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return {"tokens_per_second": TRAIN_TOKENS * TRAIN_STEPS / (time.perf_counter() - begin), "loss": loss.item()}


def main():
    directory, case = sys.argv[1:3]
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16)
    model.eval()
    result = {"prefill": prefill, "decode": decode, "correction": correction, "train": train}[case](model)
    result["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"case": case, **result}))


if __name__ == "__main__":
    main()
