"""What tests of teaching share: random episodes, and the gradient that a teacher gives on them."""

from dataclasses import replace

import numpy as np
import torch
from miniatures import VOCAB, naive_logprobs

from turnwise.envs.types import Episode, Group, Segment, Task, Turn
from turnwise.trainers.batch import pack, rows_of, totals_of
from turnwise.trainers.learner import Learner
from turnwise.trainers.mixes import Progress
from turnwise.trainers.recipes import NAMES, recipe
from turnwise.trainers.surrogates import token_mean
from turnwise.trainers.teaching import distil
from turnwise.trainers.turns import turn_table

torch.set_num_threads(1)
TAUGHT = [name for name in NAMES if recipe(name).distillation is not None]
NOW = Progress(0, 10)


def learner_of(model, micro_tokens=8192) -> Learner:
    return Learner(model, learning_rate=1e-3, micro_tokens=micro_tokens, max_len=256)


def episodes_of(model, seed=0, groups=2, attempts=3) -> list[Group]:
    """Episodes of random tokens, with the log-probabilities that `model` gives them."""
    rng = np.random.default_rng(seed)
    made = []
    for g in range(groups):
        prompt = tuple(rng.integers(1, VOCAB, 5).tolist())
        made.append([_episode(model, prompt, rng, f"{g}.{i}") for i in range(attempts)])
    return [Group(task=Task(), episodes=tuple(some)) for some in made]


def _episode(model, prompt, rng, name) -> Episode:
    ids, turns = list(prompt), []
    for t in range(rng.integers(1, 4)):
        context = prompt if t == 0 else tuple(rng.integers(1, VOCAB, 3).tolist())
        action = tuple(rng.integers(1, VOCAB, rng.integers(1, 5)).tolist())
        ids += [*(context if t else ()), *action]
        logp = naive_logprobs(model, ids, 1.0)[-len(action) :]
        turns.append(
            Turn(
                context_ids=context,
                action_ids=action,
                logprobs=tuple(float(x) for x in logp),
                reward=float(rng.random()),
            )
        )
    success = bool(rng.random() < 0.5)
    return Episode(
        id=name, env_id="toy", task=Task(), segments=(Segment(turns=tuple(turns)),), success=success
    )


def parts(groups):
    episodes = [e for group in groups for e in group.trainable]
    return rows_of(episodes), turn_table(groups), episodes


def taught(name, student, teacher, groups, micro_tokens=8192):
    """Return (learner with its gradient step not yet taken, rows, advantages) of a recipe."""
    method = replace(recipe(name), keep_group=lambda group: True)
    learner = learner_of(student, micro_tokens)
    if method.needs_reference:
        learner.keep_reference()
    rows, table, episodes = parts(groups)
    credit = np.zeros(len(table))
    rows, said = distil(
        rows, credit, table, episodes,
        learner=learner, teacher=teacher, how=method.distillation, progress=NOW,
    )  # fmt: skip
    return learner, rows, credit, replace(method, kl_coefficient=0.0), said


def gradient_of(name, student, teacher, groups, micro_tokens=8192, order=None):
    """The gradient of one update, by a learner whose optimizer only looks."""
    learner, rows, credit, method, _ = taught(name, student, teacher, groups, micro_tokens)
    rows = rows if order is None else [rows[i] for i in order]
    seen = {}

    def look(loss):
        seen.update({n: p.grad.clone() for n, p in learner.model.named_parameters()})
        return {}

    learner._apply = look
    out = learner.improve(rows, credit, method, teacher)
    learner.optimizer.zero_grad()
    return seen, out


def biggest(gradients):
    return max(float(g.abs().max()) for g in gradients.values())


class Silent:
    """A teacher who has no score for some rows, or none at all."""

    def __init__(self, teacher, quiet):
        self.teacher, self.quiet = teacher, quiet

    def logprobs(self, packed):
        found = self.teacher.logprobs(packed)
        mine = [bool(self.quiet(row)) for row in packed.rows for _ in row.trained]
        found[torch.tensor(mine)] = torch.nan
        return found


def packed_of(rows):
    return pack(rows, aggregate=token_mean, totals=totals_of(rows))
