#!/usr/bin/env python3
"""Runs every case in turn with Lathe and with transformers, several rounds, and prints a table with medians and spread.

usage: compare.py CPU_BENCH MODEL_DIR PEER_PYTHON [ROUNDS]
"""

import json
import os
import pathlib
import statistics
import subprocess
import sys

# What `lathe` sets for itself (apps/lathe/torch_commands.cpp); transformers runs as it comes.
OURS = {"GOMP_SPINCOUNT": "5000", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
OURS_TRAIN = {**OURS, "GOMP_SPINCOUNT": "50000"}
HERE = pathlib.Path(__file__).resolve().parent


def run(command, environment=None):
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **(environment or {})})
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stderr}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def spread(values, digits):
    middle = statistics.median(values)
    return middle, f"{middle:.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def main():
    bench, model, peer = sys.argv[1:4]
    rounds = int(sys.argv[4]) if len(sys.argv) > 4 else 3
    cases = [("prefill", "tokens_per_second", "prefill, 512 tokens (tokens/s)"), ("decode", "tokens_per_second", "decode, one answer (tokens/s)"),
             ("correction", "seconds", "one correction: 64-token answer, 8 steps (s)"),
             ("train", "tokens_per_second", "a training step, 512 graded tokens (tokens/s)")]
    ours, theirs = ({name: [] for name, _, _ in cases} for _ in range(2))
    four, limits = [], []
    for _ in range(rounds):
        limits.append(run([bench, model, "limits"], OURS))
        four.append(run([bench, model, "decode4"], OURS))
        for name, _, _ in cases:
            ours[name].append(run([bench, model, name], OURS_TRAIN if name == "train" else OURS))
            theirs[name].append(run([peer, HERE / "peer_transformers.py", model, name]))

    print("| case | Lathe | transformers | ratio |\n|---|---|---|---|")
    for name, unit, title in cases:
        digits = 2 if unit == "seconds" else 0
        a, a_text = spread([r[unit] for r in ours[name]], digits)
        b, b_text = spread([r[unit] for r in theirs[name]], digits)
        print(f"| {title} | {a_text} | {b_text} | {b / a if unit == 'seconds' else a / b:.2f}x faster |")
    for name in ("decode", "correction", "train"):
        a, a_text = spread([r["peak_mib"] for r in ours[name]], 0)
        b, b_text = spread([r["peak_mib"] for r in theirs[name]], 0)
        print(f"| peak memory of {name} (MiB) | {a_text} | {b_text} | {a / b:.2f} of it |")

    weights = ours["decode"][0]["weights_mib"] * 2**20
    read = statistics.median(limit["read_gb_s"] for limit in limits) * 1e9
    flops = statistics.median(limit["bf16_gflop_s"] for limit in limits) * 1e9
    decode = statistics.median(r["tokens_per_second"] for r in ours["decode"])
    prefill = statistics.median(r["tokens_per_second"] for r in ours["prefill"])
    print(f"\nfour answers at once: {spread([r['tokens_per_second'] for r in four], 0)[1]} tokens/s")
    print(f"decode reads the weights once a token: {decode * weights / read:.0%} of the {read / 1e9:.1f} GB/s this machine reads")
    train = statistics.median(r["gflop_s"] for r in ours["train"]) * 1e9
    print(f"a training step does 6 FLOP per weight and token, and attention: {train / flops:.0%} of the same")
    print(f"prefill does 2 FLOP per weight and token: {prefill * weights / flops:.0%} of the {flops / 1e9:.0f} GFLOP/s of its bf16 matrix product")


if __name__ == "__main__":
    main()
