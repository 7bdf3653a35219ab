"""A long sequence of tasks, each made when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar, overload

from turnwise.envs.types import Task

T = TypeVar("T", bound=Task, covariant=True)


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
