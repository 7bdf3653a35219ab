"""What a teacher is: it scores the student's tokens, which are of one vocabulary with its own.

`turnwise.trainers.model_teacher` has a model in this process, `turnwise.trainers.engine_teacher`
one on a server, and `turnwise.trainers.several` one for each trajectory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from turnwise.trainers.batch import Packed, Row
from turnwise.trainers.vocabulary import LOGITS_AT_ONCE, parts_of, rows_at_once

Value = TypeVar("Value")
Scored = Callable[[slice], Tensor]
"""Which of the M trained tokens -> log T over the vocabulary of those, [m, V]."""


BY_ITS_TEXT = "or learn from its text: --recipe dagger --teacher openai:MODEL@URL"
"""What is left to a teacher whose tokens are not the student's."""


class TeacherMismatch(ValueError):
    """What the teacher says is not about the student's tokens; the message says how they differ."""


class Teacher(Protocol):
    """Scores packed rows."""

    def logprobs(self, packed: Packed) -> Tensor:
        """Return log T over the vocabulary at each trained token, nats, float32 [M, V].

        At the temperature at which the token was sampled. A row of NaN: no score.
        """
        ...

    def after_update(self, model: nn.Module, updates: int) -> None:
        """Follow the student, which has just taken its update number `updates`."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run cannot make again; empty for a frozen teacher."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take what `state_dict` gave."""
        ...


def scores_by(teacher: Teacher, packed: Packed, vocabulary: int) -> Tensor:
    """Return log T over the student's vocabulary at each trained token. [M, V]

    A larger model may have more columns than the student, for ids that no tokenizer gives: they are
    cut off, and what is left sums to one again.

    Raises:
        TeacherMismatch: there is not one row for each trained token, or a column is missing.
    """
    scores_MV = teacher.logprobs(packed)
    require_rows(scores_MV, packed)
    return _of_the_student(scores_MV, vocabulary)


def _of_the_student(scores_MV: Tensor, vocabulary: int) -> Tensor:
    if (width := scores_MV.shape[-1]) < vocabulary:
        raise TeacherMismatch(
            f"the teacher scores {width} ids and the student has {vocabulary}: resize the "
            f"student's embeddings to the teacher's, {BY_ITS_TEXT}"
        )
    return scores_MV if width == vocabulary else scores_MV[:, :vocabulary].log_softmax(-1)


@runtime_checkable
class Chooses(Protocol):
    """A teacher that can say what a token costs without the rest of the vocabulary."""

    def chosen(self, packed: Packed) -> Tensor:
        """Return log T of each trained token, nats, float32; NaN where there is no score. [M]"""
        ...


@runtime_checkable
class Partly(Protocol):
    """A teacher that makes columns for every word a part of the tokens at a time."""

    def by_parts(self, packed: Packed) -> Scored:
        """Return what gives `logprobs` of some of the trained tokens, [m, V], when it is called."""
        ...


@runtime_checkable
class Divided(Protocol):
    """A teacher that is several, each with tokens of its own."""

    def mixed(self, packed: Packed, scores_of: Callable[[Teacher], Tensor]) -> Tensor:
        """Return of what each teacher gives, [M] or [M, V], the rows that are its own."""
        ...

    def mixed_by_parts(self, packed: Packed, vocabulary: int) -> Scored:
        """Return what gives log T of some of the trained tokens, each by its own teacher."""
        ...


def chosen_by(
    teacher: Teacher, packed: Packed, vocabulary: int, at_once: int = LOGITS_AT_ONCE
) -> Tensor:
    """Return log T of each trained token, from all of the vocabulary if there is no other way. [M]

    Args:
        at_once: a teacher in this process holds so many of its log-probabilities at a time.

    Raises:
        TeacherMismatch: see `scores_by`.
    """
    if isinstance(teacher, Divided):
        return teacher.mixed(packed, lambda one: chosen_by(one, packed, vocabulary, at_once))
    if isinstance(teacher, Chooses):
        chosen_M = teacher.chosen(packed)
        require_rows(chosen_M, packed)
        return chosen_M
    taught = scores_by_parts(teacher, packed, vocabulary)
    parts = parts_of(len(packed.target_M), rows_at_once(at_once, vocabulary))
    with torch.no_grad():
        return torch.cat([chosen_of(taught(part), packed, part) for part in parts])


def chosen_of(scores_mV: Tensor, packed: Packed, part: slice) -> Tensor:
    """Return what the scores of a part of the trained tokens say of the tokens themselves. [m]"""
    return scores_mV.gather(-1, packed.target_M[part, None])[:, 0]


def require_rows(scores_MV: Tensor, packed: Packed) -> None:
    """Raise TeacherMismatch where there is not one row, or number, for each trained token."""
    if len(scores_MV) != len(packed.target_M):
        raise TeacherMismatch(
            f"the teacher scored {len(scores_MV)} tokens and {len(packed.target_M)} are trained: "
            "one row for each, in their order; a token without a score is a row of NaN"
        )


def scores_by_parts(teacher: Teacher, packed: Packed, vocabulary: int) -> Scored:
    """Return what gives log T of some of the trained tokens, [m, V], without a graph.

    A teacher that is not `Partly`, alone or as one of several, scores all at once.

    Raises:
        TeacherMismatch: see `scores_by`.
    """
    with torch.no_grad():
        if isinstance(teacher, Divided):
            return teacher.mixed_by_parts(packed, vocabulary)
        if not isinstance(teacher, Partly):
            return scores_by(teacher, packed, vocabulary).__getitem__
        taught = teacher.by_parts(packed)
    return lambda part: _of_the_student(taught(part), vocabulary)


def without(scores: Tensor, target_m: Tensor, ids: frozenset[int]) -> Tensor:
    """Return the scores, [m] or [m, V], with NaN at the tokens that are one of `ids`."""
    if not ids:
        return scores
    gone_m = torch.isin(target_m, target_m.new_tensor(sorted(ids)))
    return scores.masked_fill(gone_m if scores.ndim == 1 else gone_m[:, None], torch.nan)


def of_tokens(by_row: Sequence[Value], rows: Sequence[Row]) -> list[Value]:
    """Return what each trained token's row has. [M]"""
    return [value for row, value in zip(rows, by_row, strict=True) for _ in row.trained]


def require_same_vocabulary(student: object, teacher: object) -> None:
    """Compare two tokenizers: on-policy distillation scores the student's very ids.

    Raises:
        TeacherMismatch: they differ; the message names the first difference and the way out.
    """
    mine, theirs = _vocabulary(student), _vocabulary(teacher)
    if mine == theirs:
        return
    differing = sorted(set(mine.items()) ^ set(theirs.items()), key=lambda item: (item[1], item[0]))
    token, index = differing[0]
    raise TeacherMismatch(
        f"the teacher's vocabulary of {len(theirs)} tokens is not the student's of {len(mine)}: "
        f"the first difference is token {token!r} with id {index}; train a teacher with the "
        f"student's tokenizer, {BY_ITS_TEXT}"
    )


def _vocabulary(tokenizer: object) -> dict[str, int]:
    return dict(tokenizer.get_vocab())  # type: ignore[attr-defined]
