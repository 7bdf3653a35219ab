"""A policy-gradient step, packed or by rows: `python benchmarks/packed_vs_rows.py [--json]`.

4 tasks x 8 attempts x 8 turns of 40 tokens read and 20 sampled behind a prompt of 120 tokens, with
a random Qwen3 of about a million parameters in fp32 on one thread. All ways compute the same loss
and the same gradients, in micro-batches of about 8192 tokens, output layer at sampled tokens only:

    packed         one row per episode, the prompt of a group once
    per episode    one row per episode, each with its prompt
    per turn       one row per turn, each with the whole history before it

Target: per turn costs 5 times as much as packed. Not a test: read the ratio.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from table import show

from turnwise.envs.types import Episode, Segment, Task, Turn
from turnwise.trainers.batch import Row, micro_batches, pack, rows_of, totals_of
from turnwise.trainers.objective import objective
from turnwise.trainers.recipes import recipe
from turnwise.trainers.scorer import Scorer
from turnwise.trainers.tiny import tiny_model

TASKS, ATTEMPTS, TURNS, PROMPT, READ, SAMPLED, VOCAB = 4, 8, 8, 120, 40, 20, 1024
BUDGET = 8192
RECIPE = recipe("turn_rloo")


def episodes() -> Iterator[Episode]:
    """Episodes of random tokens; attempts at a task share their prompt."""
    rng = random.Random(0)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(rng.randrange(6, VOCAB) for _ in range(count))

    for _ in range(TASKS):
        prompt = tokens(PROMPT)
        for _ in range(ATTEMPTS):
            turns = tuple(
                Turn(
                    context_ids=tokens(READ) if i else prompt,
                    action_ids=tokens(SAMPLED),
                    logprobs=(-7.0,) * SAMPLED,
                )
                for i in range(TURNS)
            )
            yield Episode(id="", env_id="", task=Task(), segments=(Segment(turns=turns),))


def by_turn(rows: Iterable[Row]) -> Iterator[Row]:
    """Each turn a row of its own."""
    for row in rows:
        ids = [*row.prompt, *row.rest]
        for i in range(TURNS):
            some = slice(i * SAMPLED, (i + 1) * SAMPLED)
            start = len(row.prompt) + row.trained[some][0]
            yield Row(
                prompt=tuple(ids[:start]),
                rest=ids[start : start + SAMPLED],
                trained=list(range(SAMPLED)),
                old=row.old[some],
                turn=row.turn[some],
                temperature=row.temperature[some],
                traj=row.traj,
            )


def batches(rows: Sequence[Row], share: bool) -> Iterator[list[Row]]:
    """Split by tokens; without sharing any row may go anywhere."""
    if share:
        yield from micro_batches(rows, BUDGET)
        return
    size = max(1, BUDGET * len(rows) // sum(len(row.prompt) + len(row) for row in rows))
    yield from (list(rows[i : i + size]) for i in range(0, len(rows), size))


def step(scorer: Scorer, rows: Sequence[Row], share: bool) -> tuple[float, int]:
    """Accumulate the gradient of the batch; return CPU seconds and tokens that were computed."""
    advantages = np.random.default_rng(0).normal(size=TASKS * ATTEMPTS * TURNS)
    totals, tokens, start = totals_of(rows), 0, time.process_time()
    for some in batches(rows, share):
        packed = pack(
            some,
            advantages=advantages,
            aggregate=RECIPE.aggregate,
            totals=totals,
            share_prompts=share,
        )
        logprobs_M, entropy_M = scorer.logprobs_and_entropy(packed)
        objective(logprobs_M, packed.tokens, RECIPE, entropy_M)[0].backward()
        tokens += len(packed.ids_N)
    return time.process_time() - start, tokens


def main() -> None:
    """Take the same step in three ways and compare cost and gradients."""
    torch.set_num_threads(1)
    model = tiny_model(VOCAB, hidden=128, layers=4, heads=4, kv_heads=2, ffn=384, seed=0)
    scorer, rows = Scorer(model, 1024), rows_of(episodes())
    step(scorer, rows[:2], True)  # warm up
    ways = {"packed": (rows, True), "per episode": (rows, False)}
    ways["per turn"] = (list(by_turn(rows)), False)
    table, gradients, seconds = [], [], {}
    for way, (laid_out, share) in ways.items():
        model.zero_grad()
        seconds[way], tokens = step(scorer, laid_out, share)
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
        cost = f"{seconds[way]:.2f}"
        table.append({"way": way, "rows": len(laid_out), "tokens": tokens, "CPU s": cost})
    norm = gradients[0].norm()
    show(
        f"a step on {TASKS} x {ATTEMPTS} episodes of {TURNS} turns",
        table,
        gradient_gap=f"{max(float((g - gradients[0]).norm() / norm) for g in gradients):.1e}",
        ratio=round(seconds["per turn"] / seconds["packed"], 2),
        target=5,
    )


if __name__ == "__main__":
    main()
