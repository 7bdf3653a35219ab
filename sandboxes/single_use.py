"""A box on loan from a pool: the box itself, and a `close` that tells the pool."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from turnwise.sandboxes.base import Sandbox, SandboxError
from turnwise.sandboxes.closing import ClosedAtExit


class SingleUse(ClosedAtExit):
    """Does all that `box` does.

    Its methods are the box's own, so that a call through it costs nothing more.

    Args:
        box: what was leased.
        end: destroys the box; called once, by `close` or when nobody holds this any more.
    """

    def __init__(self, box: Sandbox, end: Callable[[Sandbox], None]) -> None:
        self._box = box
        for name in _offered():
            if hasattr(box, name):
                setattr(self, name, getattr(box, name))
        self._end = weakref.finalize(self, end, box)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._box, name)

    def close(self) -> None:
        """Destroy the box. Safe to call twice; never raises."""
        self._end()


def _offered() -> list[str]:
    names = {*vars(Sandbox), *Sandbox.__annotations__} - {"close"}
    return [name for name in names if not name.startswith("_")]


def answers(box: Sandbox) -> bool:
    """Whether `box` is there: any answer, even that / is no regular file, is one."""
    try:
        box.get("/", max_bytes=1)
    except SandboxError:
        return False
    except OSError:
        pass
    return True
