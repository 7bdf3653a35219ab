"""Rows meet their teacher: one pass over the batch before its first update, then pure NumPy.

rows --score--> TokenTable --teach--> rows with an advantage and a weight per token
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from turnwise.envs.types import Episode
from turnwise.trainers.batch import Packed, Row, pack, totals_of
from turnwise.trainers.distillation import Column, Distillation, Taught, teach
from turnwise.trainers.divergences import rkl
from turnwise.trainers.learner import Learner
from turnwise.trainers.mixes import Progress
from turnwise.trainers.surrogates import token_mean
from turnwise.trainers.teachers import Teacher, chosen_by, chosen_of, scores_by_parts
from turnwise.trainers.tokens import TokenTable
from turnwise.trainers.turns import TurnTable
from turnwise.trainers.vocabulary import parts_of, rows_at_once

TOP = 16
"""K of the overlap of top-K sets (Prune-OPD)."""
OF_ALL: tuple[Column, ...] = ("top", "reverse_kl", "entropy", "overlap")
"""Columns that ask for distributions over the whole vocabulary."""
OF_STUDENT: set[Column] = {"reverse_kl", "entropy", "overlap"}
"""Those that ask for the student's, too."""


def distil(
    rows: Sequence[Row],
    advantages_N: np.ndarray,
    table: TurnTable,
    episodes: Sequence[Episode],
    *,
    learner: Learner,
    teacher: Teacher,
    how: Distillation,
    progress: Progress,
) -> tuple[list[Row], dict[str, float]]:
    """Return `rows` with what the teacher makes of each token, and the metrics of it.

    Where the schedule is at 0 and the teacher has no say, nothing is scored.

    Args:
        advantages_N: float64 [turns], of the reward; zeros where there is none.
        table: the turns, as `Row.turn` counts them.
        episodes: by `Row.traj`.
    """
    turn_M = np.array([turn for row in rows for turn in row.turn], np.int64)
    if how.signal is not None and how.is_silent(progress):
        rewarded_M = how.mix(advantages_N[turn_M], np.zeros(len(turn_M)), 0.0)
        return _by_reward_alone(rows, rewarded_M), {"teacher_coefficient": 0.0}
    tokens = token_table(rows, table, episodes, score(rows, learner, teacher, how.needs))
    taught = teach(tokens, advantages_N[turn_M], how, progress)
    hits = float(np.mean([bool(row.hint) for row in rows])) if rows else 0.0
    return _filled(rows, tokens, taught), taught.metrics | {"teacher_context": hits}


def _by_reward_alone(rows: Sequence[Row], rewarded_M: np.ndarray) -> list[Row]:
    cuts = np.cumsum([len(row.trained) for row in rows])[:-1]
    parts = zip(rows, np.split(rewarded_M, cuts), strict=True)
    return [replace(row, advantage=part.tolist()) for row, part in parts]


def _filled(rows: Sequence[Row], tokens: TokenTable, taught: Taught) -> list[Row]:
    cuts = np.cumsum([len(row.trained) for row in rows])[:-1]
    columns = (taught.advantage_M, taught.direct_M, tokens.teacher_M)
    parts = zip(rows, *(np.split(column, cuts) for column in columns), strict=True)
    return [
        replace(row, advantage=a.tolist(), direct=d.tolist(), teacher=q.tolist())
        for row, a, d, q in parts
    ]


def token_table(
    rows: Sequence[Row],
    table: TurnTable,
    episodes: Sequence[Episode],
    scores: dict[str, np.ndarray],
) -> TokenTable:
    """Return the table of all trained tokens of `rows`, in their order."""
    turn_M = np.array([turn for row in rows for turn in row.turn], np.int64)
    traj_M = table.traj_N[turn_M]
    won = np.array([episode.success for episode in episodes], bool)
    paid = np.array([episode.reward for episode in episodes], float)
    return TokenTable(
        old_M=np.array([o for row in rows for o in row.old], float),
        step_M=table.turn_N[turn_M],
        traj_M=traj_M,
        group_M=table.group_N[turn_M],
        success_M=won[traj_M],
        reward_M=paid[traj_M],
        kind_M=np.array([turn.kind for episode in episodes for turn in episode.turns])[turn_M],
        **scores,
    )


@torch.no_grad()
def score(
    rows: Sequence[Row], learner: Learner, teacher: Teacher, needs: Sequence[Column] = ()
) -> dict[str, np.ndarray]:
    """Return `teacher_M` and each needed column, of every trained token in the order of `rows`."""
    totals, device = totals_of(rows), learner.accelerator.device

    def find(some: Sequence[Row]) -> dict[str, Tensor]:
        packed = pack(some, aggregate=token_mean, totals=totals, device=device)
        return _score_part(packed, learner, teacher, needs)

    joined = learner.found_by_all(rows, find)
    found = {name: column.double().numpy() for name, column in joined.items()}
    return found or {"teacher_M": np.zeros(0)}


def _score_part(
    packed: Packed, learner: Learner, teacher: Teacher, needs: Sequence[Column]
) -> dict[str, Tensor]:
    at_once = learner.scorer.logits_at_once
    if set(OF_ALL) & set(needs):
        found = _of_distributions(packed, learner, teacher, needs)
    else:
        found = {"teacher_M": chosen_by(teacher, packed, learner.vocabulary, at_once)}
    if "reference" in needs:
        found["reference_M"] = learner.reference_logprobs(packed)
    if "against" in needs:
        bare = [replace(row, hint=(), hint_at=0) for row in packed.rows]
        again = replace(packed, rows=bare)
        found["against_M"] = chosen_by(teacher, again, learner.vocabulary, at_once)
    return found


def _of_distributions(
    packed: Packed, learner: Learner, teacher: Teacher, needs: Sequence[Column]
) -> dict[str, Tensor]:
    """Return the columns that take all of the vocabulary, a part of the tokens at a time."""
    taught = scores_by_parts(teacher, packed, learner.vocabulary)
    names = ("teacher_M", *(f"{name}_M" for name in OF_ALL if name in needs))

    def find(logits: Tensor | None, part: slice) -> tuple[Tensor, ...]:
        teacher_mV = taught(part)
        found = {"teacher_M": chosen_of(teacher_mV, packed, part)}
        found["top_M"] = teacher_mV.max(-1).values.exp()
        if logits is not None:
            student_mV = (logits / packed.temperature_M[part, None]).log_softmax(-1)
            found |= _of_both(student_mV, teacher_mV, needs)
        return tuple(found[name] for name in names)

    if OF_STUDENT & set(needs):
        return dict(zip(names, learner.scorer.each(packed, find), strict=True))
    rows = rows_at_once(learner.scorer.logits_at_once, learner.vocabulary)
    parts = [find(None, part) for part in parts_of(len(packed.target_M), rows)]
    return dict(zip(names, map(torch.cat, zip(*parts, strict=True)), strict=True))


def _of_both(student_mV: Tensor, teacher_mV: Tensor, needs: Sequence[Column]) -> dict[str, Tensor]:
    found = {}
    if "reverse_kl" in needs:
        found["reverse_kl_M"] = rkl(student_mV, teacher_mV).sum(-1)
    if "entropy" in needs:
        found["entropy_M"] = -(student_mV.exp() * student_mV).sum(-1)
    if "overlap" in needs:
        k = min(TOP, student_mV.shape[-1])
        mine, theirs = student_mV.topk(k, -1).indices, teacher_mV.topk(k, -1).indices
        shared = (mine[:, :, None] == theirs[:, None, :]).any(-1).double().mean(-1)
        found["overlap_M"] = shared
    return found
