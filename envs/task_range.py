"""A long sequence of tasks, each made when it is asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar, overload

from turnwise.envs.env import Env
from turnwise.envs.knobs import count
from turnwise.envs.names import known_names
from turnwise.envs.types import Task

T = TypeVar("T", bound=Task, covariant=True)


def check_drawn(task: Task, **bounds: tuple[int, int]) -> None:
    """Check a task that follows from a split, an index and numbers; for its `__post_init__`.

    Args:
        task: It has the fields `split`, `index` and those in `bounds`.
        bounds: Field -> the least and the most that the environment's knob takes.

    Raises:
        UnknownName: there is no such split.
        ValueError: a field is no whole number within its bounds; the message names it.
    """
    known_names(f"{type(task).__name__}.split", [getattr(task, "split")], Env.splits)  # noqa: B009
    for name, ends in {"index": (0, math.inf), **bounds}.items():
        count(f"{type(task).__name__}.{name}", getattr(task, name), *ends)


class TaskRange(Sequence[T]):
    """`length` tasks, the one at `i` made by `make(i)`.

    Example:
        `TaskRange(lambda i: Hunt(seed=i), 1_000_000)`
    """

    def __init__(self, make: Callable[[int], T], length: int) -> None:
        self._make, self._range = make, range(length)

    def __len__(self) -> int:
        return len(self._range)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        if isinstance(index, slice):
            return [self._make(i) for i in self._range[index]]
        return self._make(self._range[index])
