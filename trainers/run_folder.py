"""The folder of one run: config, metrics, episode records, checkpoints, the final model.

A checkpoint is written beside its place and renamed, so a kill leaves the old one or the new one.
It names the end of the records and of the metrics; resuming cuts both back to it, and what is then
played again is the same, so nothing is lost and nothing is there twice.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import OutOfMemoryError

from turnwise.agents.record import Position, RecordWriter
from turnwise.trainers.addresses import is_address
from turnwise.trainers.ranks import RankFailed, RankLost

KEEP = 2
MAY_CHANGE = frozenset(
    {"steps", "resume", "checkpoint_every", "threads", "out", "max_failed"}
    | {"retries", "reply_timeout_s", "stall_timeout_s"}
    | {"processes", "shard", "checkpoint_activations", "flex_attention", "rank_timeout_s"}
    | {"engine", "engine_sync", "engine_route", "engine_sleep", "engine_tolerance"}
    | {"ray", "ray_address", "ray_workers", "ray_timeout_s"}
    | {"ray_worker_resources", "ray_learner_resources"}
)
"""Settings that a resumed run may change; any other would make it a different run."""
_UNWRITTEN = (OSError, RuntimeError, SafetensorError)
"""What the writers of a checkpoint raise on a full disk; PyTorch's is a RuntimeError."""
_UNREAD = (*_UNWRITTEN, EOFError, LookupError, TypeError, ValueError, pickle.UnpicklingError)
"""What its readers raise where a file is missing, cut short, or of another model."""

MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)


class RunFolderError(OSError):
    """The run folder cannot be used; the message says why and what to do."""

    machine = False
    """The disk failed or is full: the command was right."""


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
        refuse_used(self.path, config, resume=resume)
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            (self.path / "config.json").write_text(json.dumps(config, indent=1) + "\n")
        except RunFolderError:
            raise
        except OSError as error:
            raise _failed(
                f"cannot write to run folder {self.path}: {error.strerror}; give another --out",
                error,
            ) from None

    def _open(self, config: dict[str, Any]) -> None:
        records = self.path / "episodes.jsonl"
        if self.resumed is None:
            for stale in (records, self._metrics_path):
                stale.unlink(missing_ok=True)
            self.records = RecordWriter(records, {"config": config})
            self.metrics = self._metrics_path.open("w")
            self._mark()
            return
        with reading(self.resumed):
            self.state: dict[str, Any] = json.loads((self.resumed / "progress.json").read_text())
            position, end = Position(**self.state["records"]), int(self.state["metrics"])
            int(self.state["step"])
        self.records = RecordWriter.resume(records, position)
        self.metrics = self._metrics_path.open("r+")
        self.metrics.truncate(end)
        self.metrics.seek(0, os.SEEK_END)
        self._mark()

    def _mark(self) -> None:
        """Remember where a step ends: a checkpoint refers to it, also amid the next step."""
        end = self.records.position().to_json()
        self._step_end = {"records": end, "metrics": self.metrics.tell()}

    def newest(self) -> Path | None:
        """Return the newest whole checkpoint."""
        found = _whole(self.checkpoints)
        return found[-1] if found else None

    def log(self, row: dict[str, Any]) -> None:
        """Append the metrics of a step, which is then over; what is not finite becomes null."""
        finite = {name: None if _not_finite(value) else value for name, value in row.items()}
        try:
            self.metrics.write(json.dumps(finite, allow_nan=False) + "\n")
            self.metrics.flush()
        except OSError as error:
            raise _failed(
                f"cannot write metrics to {self._metrics_path}: {error.strerror}; free some space "
                "and run again with --resume",
                error,
            ) from None
        self._mark()
        self._show(finite)

    def _show(self, row: dict[str, Any]) -> None:
        """Put the numbers on the TensorBoard; a board that cannot be written is given up."""
        try:
            for name, value in row.items() if self.board is not None else ():
                if isinstance(value, (int, float)) and name != "step":
                    self.board.add_scalar(name, value, row["step"])
        except OSError:
            self.board = None  # metrics.jsonl holds the same

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
            _sync(beside)
            beside.rename(place)
        except _UNWRITTEN as error:
            shutil.rmtree(beside, ignore_errors=True)
            why = getattr(error, "strerror", None) or "the disk is full, or it fails"
            raise _failed(
                f"cannot write a checkpoint to {place}: {why}; free some space and run again "
                "with --resume: nothing before it is lost",
                error,
            ) from error
        for old in _whole(self.checkpoints)[:-KEEP]:
            shutil.rmtree(old, ignore_errors=True)
        return place

    def close(self) -> None:
        """Close the files. Safe to call twice."""
        self.records.close()
        self.metrics.close()
        if self.board is not None:
            with contextlib.suppress(OSError):
                self.board.close()


@contextlib.contextmanager
def reading(checkpoint: Path) -> Iterator[None]:
    """Have whatever fails to read a checkpoint say which it is, and how the run can go on.

    Raises:
        RunFolderError: a file of it is missing, cut short, or belongs to another model.
    """
    try:
        yield
    except (RankFailed, RankLost, OutOfMemoryError):
        raise
    except _UNREAD as error:
        before = [c.name for c in _whole(checkpoint.parent) if c.name < checkpoint.name]
        way_on = f"go on from {before[-1]}" if before else "begin anew"
        unread = RunFolderError(
            f"cannot read checkpoint {checkpoint}: {_in_short(error)}; if it is damaged, or of "
            f"another model, remove that folder and run again with --resume, to {way_on}"
        )
        unread.machine = getattr(error, "errno", None) in MACHINE
        raise unread from error


def _in_short(error: Exception) -> str:
    """Return what a reader said: PyTorch goes on for many lines."""
    said = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        said = f"{Path(str(error.filename)).name}: {error.strerror}"
    return said if len(said) <= 160 else f"{said[:157]}..."


def _whole(folder: Path) -> list[Path]:
    """Return the checkpoints that were written to their end, the newest last."""
    return sorted(folder.glob("step-[0-9]*[0-9]"))


def refuse_used(path: Path, config: dict[str, Any], *, resume: bool) -> None:
    """Refuse a folder that holds a run, unless that very run is to go on; nothing is written.

    Its length may change, and what is in `MAY_CHANGE`.

    Raises:
        RunFolderError: it does.
    """
    saved = Path(path) / "config.json"
    if not _is_used(path):
        return
    if not resume:
        raise RunFolderError(
            f"run folder {path} holds a run already; pass --resume to go on with it, or "
            "give another --out"
        )
    before = json.loads(saved.read_text()) if saved.exists() else config
    for name in config.keys() | before.keys():
        if not _may_change(name, before.get(name), config.get(name)):
            raise RunFolderError(
                f"run folder {path} holds a run with {name}={before.get(name)!r}, and "
                f"{name}={config.get(name)!r} was asked for: give the same, or another --out"
            )


def _may_change(name: str, before: Any, now: Any) -> bool:
    """Whether a setting may; a teacher may be served elsewhere, but not be another kind of one."""
    served = all(is_address(str(value)) for value in (before, now))
    return before == now or name in MAY_CHANGE or (name == "teacher" and served)


def _is_used(path: Path) -> bool:
    return any(os.path.exists(Path(path) / name) for name in ("metrics.jsonl", "episodes.jsonl"))


def _board(path: Path, first: int) -> Any:
    """Return a TensorBoard writer that forgets what came after step `first`, if there is one."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(path), purge_step=first + 1)


def _not_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _failed(message: str, cause: Exception) -> RunFolderError:
    """Return the error, with the system's number where there is one: a full disk is no misuse."""
    error = RunFolderError(message)
    error.machine = getattr(cause, "errno", None) in MACHINE or not isinstance(cause, OSError)
    return error


def _sync(folder: Path) -> None:
    """Bring every file of a checkpoint to the disk before its name says that it is whole."""
    for path in (*(p for p in folder.rglob("*") if p.is_file()), folder):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
