"""Who teaches: a model that scores the student's tokens, in one forward pass per episode.

A teacher is frozen, or follows the student: a moving average, or a copy made now and then. It has
the student's vocabulary; `Row.hint` may give it a longer prompt than the student's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from turnwise.agents.engines.functional import base_model
from turnwise.trainers.batch import Packed, Row, pack, totals_of
from turnwise.trainers.scorer import Scorer
from turnwise.trainers.surrogates import token_mean
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
    _require_rows(scores_MV, packed)
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


def chosen_by(
    teacher: Teacher, packed: Packed, vocabulary: int, at_once: int = LOGITS_AT_ONCE
) -> Tensor:
    """Return log T of each trained token, from all of the vocabulary if there is no other way. [M]

    Args:
        at_once: a teacher in this process holds so many of its log-probabilities at a time.

    Raises:
        TeacherMismatch: see `scores_by`.
    """
    if isinstance(teacher, Several):
        return teacher.mixed(packed, lambda one: chosen_by(one, packed, vocabulary, at_once))
    if isinstance(teacher, Chooses):
        chosen_M = teacher.chosen(packed)
        _require_rows(chosen_M, packed)
        return chosen_M
    taught = scores_by_parts(teacher, packed, vocabulary)
    parts = parts_of(len(packed.target_M), rows_at_once(at_once, vocabulary))
    with torch.no_grad():
        return torch.cat([chosen_of(taught(part), packed, part) for part in parts])


def chosen_of(scores_mV: Tensor, packed: Packed, part: slice) -> Tensor:
    """Return what the scores of a part of the trained tokens say of the tokens themselves. [m]"""
    return scores_mV.gather(-1, packed.target_M[part, None])[:, 0]


def _require_rows(scores_MV: Tensor, packed: Packed) -> None:
    if len(scores_MV) != len(packed.target_M):
        raise TeacherMismatch(
            f"the teacher scored {len(scores_MV)} tokens and {len(packed.target_M)} are trained: "
            "one row for each, in their order; a token without a score is a row of NaN"
        )


class ModelTeacher:
    """A causal model in this process; `follow` says how it follows the student, if at all.

    Args:
        model: kept as it is, without gradients.
        max_len: longest sequence in tokens; a hint may come on top.
        follow: (own parameters, student's parameters, updates); see `ema` and `synced`.
        unscored: ids that mean something else to it, see `turnwise.trainers.ends`.
    """

    def __init__(
        self,
        model: nn.Module,
        max_len: int,
        follow: Callable[..., None] | None = None,
        unscored: frozenset[int] = frozenset(),
    ) -> None:
        self.model = model.requires_grad_(False).eval()
        self.max_len, self.scorer, self.follow = max_len, Scorer(self.model, max_len), follow
        self.unscored = unscored

    def logprobs(self, packed: Packed) -> Tensor:
        """Return log T over the vocabulary at each trained token. [M, V]

        Rows that a hint makes longer than the model has positions have no score.
        """
        with torch.no_grad():
            return self.by_parts(packed)(slice(None))

    @torch.no_grad()
    def by_parts(self, packed: Packed) -> Scored:
        """Return what gives log T of some of the trained tokens, [m, V], when it is called.

        Rows that a hint makes longer than the model has positions have no score.
        """
        self.scorer.make_room(self.max_len + max((len(row.hint) for row in packed.rows), default=0))
        fits = [not row.hint or _length(row) <= self._positions for row in packed.rows]
        if all(fits):
            return self._scored(_with_hints(packed))
        rows = [row for fit, row in zip(fits, packed.rows, strict=True) if fit]
        device = packed.ids_N.device
        fits_M = torch.tensor(_of_tokens(fits, packed.rows), dtype=torch.bool, device=device)
        taught = self._scored(_packed(rows, device)) if rows else None
        return partial(_scored_where, fits_M, taught, self._width)

    def _scored(self, seen: Packed) -> Scored:
        logits = self.scorer.by_parts(seen)

        def of(part: slice) -> Tensor:
            scores_mV = (logits(part) / seen.temperature_M[part, None]).log_softmax(-1)
            return without(scores_mV, seen.target_M[part], self.unscored)

        return of

    @property
    def _positions(self) -> int:
        return int(getattr(self.model.config, "max_position_embeddings", self.max_len))

    @property
    def _width(self) -> int:
        config: Any = self.model.config
        return int(config.vocab_size)

    @torch.no_grad()
    def after_update(self, model: nn.Module, updates: int) -> None:
        """Follow the student."""
        if self.follow is not None:
            own, theirs = self.model.parameters(), base_model(model).parameters()
            self.follow(list(own), [p.detach() for p in theirs], updates)

    def state_dict(self) -> dict[str, Any]:
        """Return the weights, if they follow the student's."""
        return {} if self.follow is None else self.model.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the weights."""
        self.model.load_state_dict(state)


def scores_by_parts(teacher: Teacher, packed: Packed, vocabulary: int) -> Scored:
    """Return what gives log T of some of the trained tokens, [m, V], without a graph.

    A teacher that is not `Partly`, alone or as one of `Several`, scores all at once.

    Raises:
        TeacherMismatch: see `scores_by`.
    """
    with torch.no_grad():
        if isinstance(teacher, Several):
            return teacher.by_parts(packed, vocabulary)
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


def _of_tokens(by_row: Sequence[Value], rows: Sequence[Row]) -> list[Value]:
    """What each trained token's row has. [M]"""
    return [value for row, value in zip(rows, by_row, strict=True) for _ in row.trained]


def _scored_where(there_M: Tensor, taught: Scored | None, width: int, part: slice) -> Tensor:
    """Return the scores of a part, [m, width], of which `taught` knows those that are there."""
    there_m = there_M[part]
    scores_mV = torch.full((len(there_m), width), torch.nan, device=there_M.device)
    if taught is not None and there_m.any():
        first = int(there_M[: part.indices(len(there_M))[0]].sum())
        scores_mV[there_m] = taught(slice(first, first + int(there_m.sum())))
    return scores_mV


def _with_hints(packed: Packed) -> Packed:
    if not any(row.hint for row in packed.rows):
        return packed
    return _packed(packed.rows, packed.ids_N.device)


def _packed(rows: Sequence[Row], device: torch.device) -> Packed:
    """The rows as the teacher reads them."""
    longer = [row.hinted() for row in rows]
    return pack(longer, aggregate=token_mean, totals=totals_of(longer), device=device)


def _length(row: Row) -> int:
    return len(row.hint) + max(len(row.prompt), row.start + len(row))


def frozen(model: nn.Module, max_len: int, unscored: frozenset[int] = frozenset()) -> ModelTeacher:
    """Another model, or the student's first weights, for good."""
    return ModelTeacher(model, max_len, unscored=unscored)


def copied(student: nn.Module) -> nn.Module:
    """Return a copy of the student as it is now, without its adapters."""
    return copy.deepcopy(base_model(student))


def self_base(student: nn.Module, max_len: int) -> ModelTeacher:
    """The student as it is now, for good (OPSD, arXiv:2601.18734)."""
    return ModelTeacher(copied(student), max_len)


def ema(student: nn.Module, max_len: int, *, decay: float = 0.995, every: int = 1) -> ModelTeacher:
    """The student's moving average: T <- decay T + (1 - decay) pi, every so many updates."""
    if not 0 <= decay < 1:
        raise ValueError(f"decay is a share from 0 to below 1, got {decay}")

    def follow(own: Sequence[Tensor], theirs: Sequence[Tensor], updates: int) -> None:
        if updates % every == 0:
            for mine, other in zip(own, theirs, strict=True):
                mine.lerp_(other, 1 - decay)

    return ModelTeacher(copied(student), max_len, follow)


def synced(student: nn.Module, max_len: int, *, every: int = 1) -> ModelTeacher:
    """A copy of the student, made anew every so many updates (Skill-SD, arXiv:2604.10674)."""
    return ema(student, max_len, decay=0.0, every=every)


class Several:
    """Each trajectory has one of several teachers (domain experts).

    Args:
        teachers: by index.
        choose: `Row` to the index of its teacher, or None for none: its tokens have no score.
    """

    def __init__(self, teachers: Sequence[Teacher], choose: Callable[[Row], int | None]) -> None:
        self.teachers, self.choose = list(teachers), choose

    def logprobs(self, packed: Packed) -> Tensor:
        """Return each token's score by its own teacher. [M, V]"""

        def scores_of(teacher: Teacher) -> Tensor:
            scores_MV = teacher.logprobs(packed)
            _require_rows(scores_MV, packed)
            return scores_MV

        return self.mixed(packed, scores_of)

    def mixed(self, packed: Packed, scores_of: Callable[[Teacher], Tensor]) -> Tensor:
        """Return of what each teacher gives, [M] or [M, V], the rows that are its own.

        Raises:
            TeacherMismatch: no row of the batch has a teacher.
        """
        found: Tensor | None = None
        for teacher, mine_M in self._chosen(packed):
            scores = scores_of(teacher)
            found = torch.full_like(scores, torch.nan) if found is None else found
            found[mine_M] = scores[mine_M]
        assert found is not None
        return found

    def by_parts(self, packed: Packed, vocabulary: int) -> Scored:
        """Return what gives log T of some of the trained tokens, each by its own teacher.

        Args:
            vocabulary: the student's, of which the teachers' may be more.

        Raises:
            TeacherMismatch: no row of the batch has a teacher, or see `scores_by`.
        """
        taught = [
            (scores_by_parts(teacher, packed, vocabulary), mine_M)
            for teacher, mine_M in self._chosen(packed)
        ]

        def of(part: slice) -> Tensor:
            tokens = len(packed.target_M[part])
            found_mV = packed.temperature_M.new_full((tokens, vocabulary), torch.nan)
            for scores, mine_M in taught:
                if (mine_m := mine_M[part]).any():
                    found_mV[mine_m] = scores(part)[mine_m]
            return found_mV

        return of

    def _chosen(self, packed: Packed) -> list[tuple[Teacher, Tensor]]:
        """The teachers that have a row here, and which of the M tokens are theirs."""
        of_M = _of_tokens([self.choose(row) for row in packed.rows], packed.rows)
        device = packed.ids_N.device
        found = [
            (teacher, torch.tensor([i == index for i in of_M], device=device))
            for index, teacher in enumerate(self.teachers)
            if index in of_M
        ]
        if not found:
            raise TeacherMismatch(
                f"no row of the batch has one of the {len(self.teachers)} teachers"
            )
        return found

    def after_update(self, model: nn.Module, updates: int) -> None:
        """Let each follow."""
        for teacher in self.teachers:
            teacher.after_update(model, updates)

    def state_dict(self) -> dict[str, Any]:
        """Return the states by index."""
        states = {str(i): teacher.state_dict() for i, teacher in enumerate(self.teachers)}
        return {index: state for index, state in states.items() if state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Hand each its state."""
        for index, part in state.items():
            self.teachers[int(index)].load_state_dict(part)


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
