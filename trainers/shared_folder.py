"""The run folder of several processes: rank 0 writes, and all hear of it when it cannot."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from turnwise.envs.types import Episode
from turnwise.trainers import ranks
from turnwise.trainers.run_folder import RunFolder

Save = Callable[[Path], None]
NOTHING: tuple[str, Any] = ("", None)
"""What a rank gives that only listens."""


def open_folder(path: Path, config: dict[str, Any], *, resume: bool) -> RunFolder | SharedFolder:
    """Open or resume a run folder; every process of the run calls this.

    Raises:
        RunFolderError: see `RunFolder`; on every rank.
    """
    if ranks.count() == 1:
        return RunFolder(path, config, resume=resume)
    return SharedFolder(path, config, resume=resume)


class SharedFolder:
    """What a run folder is to a rank: its methods are called by all ranks alike.

    Raises:
        RunFolderError, RecordError: from any method, on every rank.
    """

    def __init__(self, path: Path, config: dict[str, Any], *, resume: bool) -> None:
        self._own = ranks.on_main(lambda: RunFolder(path, config, resume=resume))
        state: dict[str, Any] = getattr(self._own, "state", {})
        self.path = Path(path)
        self.resumed: Path | None = ranks.tell(None if self._own is None else self._own.resumed)
        self.state: dict[str, Any] = ranks.tell(state)
        self.records = _Records(self._own)

    def log(self, row: dict[str, Any]) -> None:
        """Append the metrics of a step."""
        ranks.on_main(lambda: self._own.log(row) if self._own is not None else None)

    def checkpoint(self, step: int, save: Save) -> None:
        """Write a checkpoint with `save(folder)`, which runs on every rank."""
        if self._own is None:
            return _follow(save)
        error: Exception | None = None
        try:
            self._own.checkpoint(step, partial(_lead, save))
        except Exception as raised:
            error = raised
        ranks.tell(("over", ranks.portable(error)))
        if error is not None:
            raise error

    def close(self) -> None:
        """Close the files. Safe to call twice."""
        if self._own is not None:
            self._own.close()


class _Records:
    """Where episodes are written."""

    def __init__(self, own: RunFolder | None) -> None:
        self._own = own

    def extend(self, episodes: Iterable[Episode]) -> None:
        """Write episodes."""
        own = self._own
        ranks.on_main(lambda: own.records.extend(episodes) if own is not None else None)


def _lead(save: Save, folder: Path) -> None:
    """Save on every rank, once the folder is there and empty."""
    folder.mkdir()
    ranks.tell(("save", folder))
    save(folder)


def _follow(save: Save) -> None:
    """Do what rank 0 says, until it says that the checkpoint is there or could not be written."""
    while True:
        word, what = ranks.tell(NOTHING)
        if word == "save":
            save(what)
        elif what is not None:
            raise what
        else:
            return
