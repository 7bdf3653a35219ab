"""The folder of one run: config, metrics, episode records, checkpoints, the final model.

A checkpoint is written beside its place and renamed, so a kill leaves the old one or the new one.
It names the end of the records and of the metrics; resuming cuts both back to it, and what is then
played again is the same, so nothing is lost and nothing is there twice.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from turnwise.agents.record import Position, RecordWriter

KEEP = 2
_UNWRITTEN = (OSError, RuntimeError, SafetensorError)
"""What the writers of a checkpoint raise on a full disk; PyTorch's is a RuntimeError."""


class RunFolderError(OSError):
    """The run folder cannot be used; the message says why and what to do."""


class RunFolder:
    """Opens or resumes `path`.

    Args:
        path: the folder; made if missing.
        config: what the run is, as JSON values; kept in `config.json`.
        resume: go on from the newest checkpoint; a folder without one is started anew.

    Raises:
        RunFolderError: it is not writable, or holds another run and `resume` is off.
    """

    def __init__(self, path: Path, config: dict[str, Any], *, resume: bool) -> None:
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self._make(config, resume)
        self.resumed = self.newest() if resume else None
        self._metrics_path = self.path / "metrics.jsonl"
        self._open(config)
        first = self.state["step"] if self.resumed is not None else 0
        self.board = _board(self.path / "tensorboard", first)

    def _make(self, config: dict[str, Any], resume: bool) -> None:
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            used = (self.path / "metrics.jsonl").exists()
            if not used or resume:
                (self.path / "config.json").write_text(json.dumps(config, indent=1) + "\n")
        except OSError as error:
            raise RunFolderError(
                f"cannot write to run folder {self.path}: {error.strerror}; give another --out"
            ) from None
        if used and not resume:
            raise RunFolderError(
                f"run folder {self.path} holds a run already; pass --resume to go on with it, or "
                "give another --out"
            )

    def _open(self, config: dict[str, Any]) -> None:
        records = self.path / "episodes.jsonl"
        if self.resumed is None:
            for stale in (records, self._metrics_path):
                stale.unlink(missing_ok=True)
            self.records = RecordWriter(records, {"config": config})
            self.metrics = self._metrics_path.open("w")
            self._mark()
            return
        self.state: dict[str, Any] = json.loads((self.resumed / "progress.json").read_text())
        self.records = RecordWriter.resume(records, Position(**self.state["records"]))
        self.metrics = self._metrics_path.open("r+")
        self.metrics.truncate(self.state["metrics"])
        self.metrics.seek(0, os.SEEK_END)
        self._mark()

    def _mark(self) -> None:
        """Remember where a step ends: a checkpoint refers to it, also amid the next step."""
        end = self.records.position().to_json()
        self._step_end = {"records": end, "metrics": self.metrics.tell()}

    def newest(self) -> Path | None:
        """Return the newest whole checkpoint."""
        found = sorted(self.checkpoints.glob("step-[0-9]*[0-9]"))
        return found[-1] if found else None

    def log(self, row: dict[str, Any]) -> None:
        """Append the metrics of a step, which is then over; what is not finite becomes null."""
        finite = {name: None if _not_finite(value) else value for name, value in row.items()}
        self.metrics.write(json.dumps(finite, allow_nan=False) + "\n")
        self.metrics.flush()
        self._mark()
        if self.board is not None:
            for name, value in finite.items():
                if isinstance(value, (int, float)) and name != "step":
                    self.board.add_scalar(name, value, row["step"])

    def checkpoint(self, step: int, save: Callable[[Path], None]) -> Path:
        """Write a checkpoint with `save(folder)`, then drop all but the newest few.

        It refers to the end of the last step that was logged. One that exists is left as it is.

        Raises:
            RunFolderError: it could not be written; the checkpoints before it are untouched.
        """
        place = self.checkpoints / f"step-{step:06d}"
        if place.exists():
            return place
        beside = self.checkpoints / f".writing-{step:06d}"
        try:
            shutil.rmtree(beside, ignore_errors=True)
            save(beside)
            (beside / "progress.json").write_text(json.dumps({"step": step, **self._step_end}))
            beside.rename(place)
        except _UNWRITTEN as error:
            shutil.rmtree(beside, ignore_errors=True)
            raise RunFolderError(
                f"cannot write a checkpoint to {place}: {error}; free some space and run again "
                "with --resume: nothing before it is lost"
            ) from None
        for old in sorted(self.checkpoints.glob("step-[0-9]*[0-9]"))[:-KEEP]:
            shutil.rmtree(old, ignore_errors=True)
        return place

    def close(self) -> None:
        """Close the files. Safe to call twice."""
        self.records.close()
        self.metrics.close()
        if self.board is not None:
            self.board.close()


def _board(path: Path, first: int) -> Any:
    """Return a TensorBoard writer that forgets what came after step `first`, if there is one."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(path), purge_step=first + 1)


def _not_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
