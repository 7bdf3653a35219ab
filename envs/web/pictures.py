"""Pictures of what a browser showed, kept beside a record and found from it.

A picture's name follows from the task, the seed and the actions up to it, all of which a record
holds: it names the picture that belongs to a turn without holding any of it, and attempts that
begin alike share their first pictures.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from turnwise.envs.types import digest
from turnwise.envs.web.tab import Tab


def picture_names(task_key: str, seed: int | None, actions: Sequence[str]) -> list[str]:
    """Return the file names of what was seen at first and after each of `actions`."""
    names = [digest([task_key, seed])]
    for action in actions:
        names.append(digest([names[-1], action.encode("utf-8", "replace").decode()]))
    return [f"{name}.jpg" for name in names]


class Album:
    """Writes the pictures of one environment; does nothing without a folder."""

    def __init__(self, folder: str | None) -> None:
        self.folder = Path(folder) if folder else None
        self._start: tuple[str, int | None] = "", None
        self._actions: list[str] = []

    def begin(self, task_key: str, seed: int | None) -> None:
        """Start an episode."""
        self._start, self._actions = (task_key, seed), []

    def turn(self, action: str) -> None:
        """Note an action."""
        self._actions.append(action)

    def keep(self, tab: Tab) -> None:
        """Write what `tab` shows now."""
        if self.folder is None or (picture := tab.picture()) is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / picture_names(*self._start, self._actions)[-1]
        part = path.with_name(f".{path.name}.{os.getpid()}-{id(self)}")
        part.write_bytes(picture)
        os.replace(part, path)
