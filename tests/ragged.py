"""Ragged episodes as packed rows, and the plain forward pass that they are held against."""

from __future__ import annotations

import random
from functools import cache

import numpy as np
import torch
from miniatures import VOCAB, other, qwen3
from torch import Tensor

from turnwise.envs.types import Episode, Segment, Task, Turn
from turnwise.trainers.batch import pack, totals_of
from turnwise.trainers.model import add_lora
from turnwise.trainers.objective import objective
from turnwise.trainers.recipes import recipe
from turnwise.trainers.surrogates import token_mean

torch.set_num_threads(1)

RECIPE = recipe("turn_rloo")
MODELS = {
    "qwen3": qwen3,
    "llama": lambda: other("llama"),
    "gpt2": lambda: other("gpt2"),
    "lora": lambda: warmed(add_lora(qwen3(), 2)),
}


def warmed(model):
    """Adapters begin at zero, where half of them has no gradient."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    return model


def words(rng, least, most):
    return tuple(rng.randrange(1, VOCAB) for _ in range(rng.randint(least, most)))


def segment(rng, prompt, *, inherited=(), turns=None, temperature=1.0) -> Segment:
    """Ragged turns; every third one is somebody else's."""
    made = []
    for i in range(turns or rng.randint(1, 4)):
        action = words(rng, 1, 7)
        made.append(
            Turn(
                context_ids=prompt if i == 0 else words(rng, 0, 9),
                action_ids=action,
                logprobs=tuple(-4 + rng.random() for _ in action),
                executor="expert" if i % 3 == 2 else "student",
                temperature=temperature,
            )
        )
    return Segment(turns=tuple(made), inherited_ids=inherited)


def episode(*segments, name="e") -> Episode:
    return Episode(id=name, env_id="", task=Task(), segments=segments)


@cache
def episodes(groups=3, attempts=3, temperature=1.0) -> tuple[Episode, ...]:
    rng, made = random.Random(0), []
    for g in range(groups):
        prompt = words(rng, 5, 30)
        for a in range(attempts):
            segments = [segment(rng, prompt, temperature=temperature)]
            if a == 1:  # a history that was rewritten half-way
                inherited = words(rng, 3, 12)
                segments.append(segment(rng, words(rng, 1, 3), inherited=inherited))
            made.append(episode(*segments, name=f"{g}.{a}"))
    return tuple(made)


def packed_of(rows, **more):
    generator = np.random.default_rng(1)
    turns = max((t for row in rows for t in row.turn), default=0) + 1
    advantages = generator.normal(size=max(turns, 200))
    more = {"advantages": advantages, "aggregate": token_mean, "totals": totals_of(rows)} | more
    return pack(rows, **more)


def naive(model, rows) -> Tensor:
    """One forward pass of the model per row, with its graph. [M]"""
    parts = []
    for row in rows:
        ids = torch.tensor([row.ids])
        logits = model(input_ids=ids).logits[0].float()
        for i, temperature in zip(row.trained, row.temperature, strict=True):
            at = row.start + i
            parts.append(torch.log_softmax(logits[at - 1] / temperature, -1)[ids[0, at]])
    return torch.stack(parts)


def gradients(model, logprobs_M, packed) -> dict[str, Tensor]:
    loss, _ = objective(logprobs_M, packed.tokens, RECIPE)
    loss.backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def relative_gap(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    assert found.keys() == expected.keys() and found
    scale = max(float(g.norm()) for g in expected.values())
    return max(float((found[n] - expected[n]).norm()) for n in found) / scale
