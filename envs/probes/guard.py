"""A watch over the generators that a whole process shares: who seeds them, who draws from them."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

_RANDOM = tuple(
    name
    for name in (*random.__all__, "_randbelow")
    if hasattr(getattr(random, name, None), "__self__")
    and getattr(random, name).__self__ is random._inst
)
_NUMPY = tuple(
    name
    for name in np.random.__all__
    if hasattr(getattr(np.random, name), "__self__") and name not in ("get_state", "default_rng")
)


@contextlib.contextmanager
def watched() -> Iterator[list[str]]:
    """Yield a list that grows by `random.seed in vault.py:12` with each use of a shared generator.

    A function that was imported by name before is not seen here: compare the states, too.
    """
    uses: list[str] = []
    kept = [(random, name, getattr(random, name)) for name in _RANDOM]
    kept += [(np.random, name, getattr(np.random, name)) for name in _NUMPY]
    try:
        for module, name, function in kept:
            setattr(module, name, _noting(uses, f"{module.__name__}.{name}", function))
        yield uses
    finally:
        for module, name, function in kept:
            setattr(module, name, function)


def _noting(uses: list[str], name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def noting(*args: Any, **kwargs: Any) -> Any:
        caller = sys._getframe(1)
        if name.rpartition(".")[2] not in ("getstate", "setstate", "get_state", "set_state"):
            uses.append(f"{name} in {Path(caller.f_code.co_filename).name}:{caller.f_lineno}")
        return function(*args, **kwargs)

    return noting
