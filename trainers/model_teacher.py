"""A model in this process as teacher, in one forward pass per episode.

It is frozen, or follows the student: a moving average, or a copy made now and then. `Row.hint` may
give it a longer prompt than the student's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from turnwise.agents.engines.functional import base_model
from turnwise.trainers.batch import Packed, Row, pack, totals_of
from turnwise.trainers.scorer import Scorer
from turnwise.trainers.surrogates import token_mean
from turnwise.trainers.teachers import Scored, of_tokens, without


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
        fits_M = torch.tensor(of_tokens(fits, packed.rows), dtype=torch.bool, device=device)
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
