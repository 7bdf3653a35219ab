"""A step of on-policy distillation: `python benchmarks/distillation_step.py [--json]`.

16 episodes x 8 turns of 40 tokens read and 20 sampled behind a prompt of 120 tokens, 4 attempts at
each of 4 tasks; a random Qwen3 student of about a million parameters and a teacher of at least
twice that, in fp32 on one thread. All ways score with the teacher, then take the same step of `opd`
with a mean over tokens, in micro-batches of about 8192 tokens:

    packed                   one row per episode, the prompt of a group once; one teacher pass each
    per turn                 one row per turn, the teacher called for each of them
    per turn, batched calls  one row per turn, the teacher called with as many as fit

Target: per turn costs 5 times as much as packed, with the same loss to 1e-5. Not a test: read the
ratio. CPU seconds, so that a busy machine does not count; the best of three.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import packed_vs_rows as layout
import torch
from table import show
from torch import nn

from turnwise.trainers.batch import Row, pack, rows_of, totals_of
from turnwise.trainers.model_teacher import ModelTeacher, frozen
from turnwise.trainers.objective import objective
from turnwise.trainers.recipes import recipe
from turnwise.trainers.scorer import Scorer
from turnwise.trainers.surrogates import token_mean
from turnwise.trainers.teachers import chosen_by
from turnwise.trainers.tiny import tiny_model

TASKS, ATTEMPTS, LIMIT, REPEATS = 4, 4, 10.0, 3
RECIPE = replace(recipe("opd"), aggregate=token_mean)


def step(
    student: nn.Module, teacher: ModelTeacher, rows: Sequence[Row], share: bool, by_row: bool
) -> tuple[float, float, float]:
    """Score, then accumulate the gradient; return CPU seconds of both, and the loss."""
    totals, start = totals_of(rows), time.process_time()
    calls = ([row] for row in rows) if by_row else layout.batches(rows, share)
    scores = []
    for some in calls:
        packed = pack(some, aggregate=token_mean, totals=totals, share_prompts=share)
        scores.append(chosen_by(teacher, packed, layout.VOCAB))
    scored = time.process_time()
    loss = 0.0
    for some in layout.batches(_taught(rows, torch.cat(scores)), share):
        packed = pack(some, aggregate=token_mean, totals=totals, share_prompts=share)
        logprobs_M, entropy_M = Scorer(student, 1024).logprobs_and_entropy(packed)
        part = objective(logprobs_M, packed.tokens, RECIPE, entropy_M)[0]
        part.backward()
        loss += part.item()
    return scored - start, time.process_time() - scored, loss


def _taught(rows: Sequence[Row], teacher_M: torch.Tensor) -> list[Row]:
    """Return `rows` with the advantage log T - log pi_old of each token."""
    cuts = np.cumsum([len(row.trained) for row in rows])[:-1]
    old_M = np.array([old for row in rows for old in row.old])
    advantage_M = np.clip(teacher_M.double().numpy() - old_M, -LIMIT, LIMIT)
    parts = zip(rows, np.split(advantage_M, cuts), strict=True)
    return [replace(row, advantage=part.tolist()) for row, part in parts]


def main() -> None:
    """Take the same step in three ways and compare cost, loss and gradients."""
    torch.set_num_threads(1)
    layout.TASKS, layout.ATTEMPTS = TASKS, ATTEMPTS
    shape = {"layers": 4, "heads": 4, "kv_heads": 2}
    student = tiny_model(layout.VOCAB, hidden=128, ffn=384, seed=0, **shape)
    teacher = frozen(tiny_model(layout.VOCAB, hidden=192, ffn=640, seed=1, **shape), 1024)
    rows = rows_of(layout.episodes())
    turns = list(layout.by_turn(rows))
    ways = {
        "packed": (rows, True, False),
        "per turn": (turns, False, True),
        "per turn, batched calls": (turns, False, False),
    }
    step(student, teacher, rows[:2], True, False)  # warm up
    table, gradients, losses, seconds = [], [], [], {}
    for way, laid_out in ways.items():
        times = []
        for _ in range(REPEATS):
            student.zero_grad()
            *spent, loss = step(student, teacher, *laid_out)
            times.append(spent)
        losses.append(loss)
        gradients.append(torch.cat([p.grad.flatten() for p in student.parameters()]))
        best = min(times, key=sum)
        seconds[way] = sum(best)
        cost = {"teacher CPU s": f"{best[0]:.2f}", "step CPU s": f"{best[1]:.2f}"}
        table.append({"way": way, "rows": len(laid_out[0]), **cost})
    norm = gradients[0].norm()
    show(
        f"a distillation step on {TASKS} x {ATTEMPTS} episodes of {layout.TURNS} turns",
        table,
        student=_size(student),
        teacher=_size(teacher.model),
        loss_gap=f"{max(abs(loss - losses[0]) for loss in losses):.1e}",
        gradient_gap=f"{max(float((g - gradients[0]).norm() / norm) for g in gradients):.1e}",
        ratio=round(seconds["per turn"] / seconds["packed"], 2),
        ratio_batched=round(seconds["per turn, batched calls"] / seconds["packed"], 2),
        target=5,
    )


def _size(model: nn.Module) -> str:
    return f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M"


if __name__ == "__main__":
    main()
