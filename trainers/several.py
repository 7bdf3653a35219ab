"""Several teachers: each trajectory has one of them, or none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from turnwise.trainers.batch import Packed, Row
from turnwise.trainers.teachers import (
    Scored,
    Teacher,
    TeacherMismatch,
    of_tokens,
    require_rows,
    scores_by_parts,
)


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
            require_rows(scores_MV, packed)
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

    def mixed_by_parts(self, packed: Packed, vocabulary: int) -> Scored:
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
        of_M = of_tokens([self.choose(row) for row in packed.rows], packed.rows)
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
