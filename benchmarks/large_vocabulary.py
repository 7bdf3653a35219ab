"""Peak memory of an update over 151 936 words.

    python benchmarks/large_vocabulary.py [--gpt2] [--json]

One policy-gradient step on 768 sampled tokens behind a prompt of 64, by a random Qwen3 of one
layer and width 32 in fp32 on one thread; `--gpt2` takes a GPT-2 of that size, for which there is no
functional form. Each way runs in a process of its own:

    whole      the logits of all sampled tokens at once (GPT-2: of all positions, by its own
               forward pass)
    by parts   16 M logits of sampled tokens at once, computed again in the backward pass

Numbers: peak resident memory of the process, and what of it the step adds to the loaded model.
Loss and gradient length must agree to 1e-5, and the peak by parts is at most half of the whole one:
it ends with 1 otherwise.
"""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
import time
from typing import Any

WORDS, ROWS, TOKENS, PROMPT = 151_936, 4, 192, 64
WHOLE = 2**62


def step(at_once: int, kind: str) -> dict[str, float]:
    """Take a step and return what it cost; the peak is that of this process."""
    import numpy as np
    import torch

    from turnwise.trainers.batch import Row
    from turnwise.trainers.learner import Learner
    from turnwise.trainers.recipes import recipe

    torch.set_num_threads(1)
    rng = random.Random(0)
    prompt = tuple(rng.randrange(WORDS) for _ in range(PROMPT))
    rows = [
        Row(
            prompt,
            [rng.randrange(WORDS) for _ in range(TOKENS)],
            list(range(TOKENS)),
            [-11.9] * TOKENS,
            [traj] * TOKENS,
            [1.0] * TOKENS,
            traj,
        )
        for traj in range(ROWS)
    ]
    learner = Learner(_model(kind), learning_rate=1e-4)
    learner.scorer.logits_at_once = at_once
    if at_once == WHOLE:
        learner.scorer.halves = None
    before, start = _peak_mib(), time.monotonic()
    advantages = np.linspace(-1, 1, ROWS)
    out = learner.improve(rows, advantages, recipe("turn_rloo"))
    seconds = time.monotonic() - start
    return {
        "peak_mib": _peak_mib(),
        "step_mib": _peak_mib() - before,
        "step_s": seconds,
        "loss": out["loss"],
        "grad_norm": out["grad_norm"],
    }


def _model(kind: str) -> Any:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from turnwise.trainers.tiny import tiny_model

    if kind == "gpt2":
        torch.manual_seed(0)
        return GPT2LMHeadModel(GPT2Config(vocab_size=WORDS, n_embd=32, n_layer=1, n_head=2))
    return tiny_model(WORDS, hidden=32, layers=1, heads=2, kv_heads=1, head_dim=16, ffn=64, seed=0)


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> int:
    """Measure both ways, each in a process of its own."""
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(step(int(sys.argv[2]), sys.argv[3])))
        return 0
    kind = "gpt2" if "--gpt2" in sys.argv else "qwen3"
    found = {}
    for name, at_once in (("whole", WHOLE), ("by parts", 2**24)):
        command = [sys.executable, __file__, "--one", str(at_once), kind]
        told = subprocess.run(command, check=True, capture_output=True, text=True, timeout=900)
        found[name] = json.loads(told.stdout.splitlines()[-1])
    whole, parts = found["whole"], found["by parts"]
    found["ratio"] = {k: parts[k] / whole[k] for k in ("peak_mib", "step_mib", "step_s")}
    if "--json" in sys.argv:
        print(json.dumps(found))
    else:
        for name, row in found.items():
            print(f"{name:9}", "  ".join(f"{k} {v:.4g}" for k, v in row.items()))
    return 0 if is_held(whole, parts) else 1


def is_held(whole: dict[str, float], parts: dict[str, float]) -> bool:
    """Return whether both are the same step, and the one by parts takes at most half the memory."""
    same = all(
        abs(whole[k] - parts[k]) <= 1e-5 * abs(whole[k]) + 1e-7 for k in ("loss", "grad_norm")
    )
    return same and parts["peak_mib"] <= whole["peak_mib"] / 2


if __name__ == "__main__":
    sys.exit(main())
