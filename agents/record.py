"""Episode records: one JSONL file, a header line, then one line per episode, hash-chained.

An episode is whole or absent. `jq '.turns[].action' episodes.jsonl` reads one; `read_records`
proves the chain (chain.py) while it reads, and needs no environment and no model.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, Self

from turnwise.agents.blobs import Blobs, digests_of
from turnwise.agents.chain import (
    SCHEMA,
    START,
    NewerSchema,
    Position,
    RecordError,
    prove,
    seal,
    to_body,
)
from turnwise.agents.episode_json import episode_from_json, episode_to_json
from turnwise.envs.types import Episode

__all__ = [
    "SCHEMA",
    "NewerSchema",
    "Position",
    "RecordError",
    "RecordWriter",
    "Recorded",
    "read_header",
    "read_records",
    "verify",
]
_EMPTY = "the file is empty; a record begins with a header line"


@dataclass(frozen=True)
class Recorded:
    """One line of a record. `episode` is built when it is first asked for."""

    raw: Mapping[str, Any] = field(repr=False)
    line: int
    path: Path

    @cached_property
    def episode(self) -> Episode:
        """The episode, its task as a `RecordedTask`: no environment needs to be installed.

        Raises:
            RecordError: the line is whole, but not an episode of this schema.
        """
        try:
            return replace(episode_from_json(self.raw), blobs=Blobs(self.path))
        except (KeyError, TypeError, ValueError) as error:
            reason = f"not an episode of {SCHEMA}: {type(error).__name__}: {error}"
            raise RecordError(self.path, self.line, reason) from error


def read_header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return line 1: `schema`, `created` and `run` as given to the writer.

    Raises:
        RecordError: there is no such file, or it does not begin with a header of this schema.
    """
    with _opened(path) as file:
        for _, body in prove(path, file):
            return json.loads(body)
    raise RecordError(path, 1, _EMPTY)


def read_records(path: str | os.PathLike[str]) -> Iterator[Recorded]:
    """Yield the episodes in the order in which they were written, proving each line first.

    Raises:
        RecordError: there is no such file, or a line was changed, cut or moved; `line` says which.
        NewerSchema: a newer turnwise wrote it.
    """
    with _opened(path) as file:
        for end, body in prove(path, file):
            if end.lines > 1:
                yield Recorded(json.loads(body), end.lines, Path(path))


def verify(path: str | os.PathLike[str], position: Position | None = None) -> Position:
    """Prove every line and return the end of the record.

    Args:
        path: The record.
        position: Where the record ended when it was finished; shows lines removed since.

    Raises:
        RecordError: a line was changed, cut, moved, added or removed; `line` says which.
        NewerSchema: a newer turnwise wrote it.
    """
    end = START
    with _opened(path) as file:
        for end, _ in prove(path, file):
            _require_known(path, end, position)
    _require_reached(path, end, position)
    return end


class RecordWriter:
    """Appends episodes to one record; one process and one thread at a time.

    Raises:
        RecordError: there already is a record, another process writes it, the folder cannot be
            written, or the disk is full. The file then ends with its last whole line, and the
            writer can go on once there is room.
        ValueError: an episode holds NaN or an infinity, which JSON cannot hold. Nothing is written.

    Example:
        `with RecordWriter("runs/a/episodes.jsonl", {"seed": 0}) as record: record.extend(episodes)`
    """

    def __init__(
        self, path: str | os.PathLike[str], run_info: Mapping[str, Any] | None = None
    ) -> None:
        header = {
            "schema": SCHEMA,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "run": dict(run_info or {}),
            "turns": [],  # so that `jq '.turns[]'` passes over the header
        }
        self._open(path, os.O_CREAT)
        with self._closed_on_error():
            self._require_unused()
            self._write(to_body(header))
            self.sync()
            _sync_folder(self.path.parent)

    @classmethod
    def resume(cls, path: str | os.PathLike[str], position: Position | None = None) -> Self:
        """Open an existing record and cut everything after `position`.

        Without a position, only an unfinished last line is cut. Nothing is cut unless every line
        that stays is proven.

        Raises:
            RecordError: there is no record, a line that should stay was changed, the record
                ends before `position`, or the reasons of the class.
            NewerSchema: a newer turnwise wrote it.
        """
        self = cls.__new__(cls)
        self._open(path, 0)
        with self._closed_on_error(), open(self._fd, "rb", closefd=False) as file:
            self._end = _end_to_keep(self.path, file, position)
            os.ftruncate(self._fd, self._end.offset)
            self.sync()
        return self

    def append(self, episode: Episode) -> None:
        """Write one episode as one line, its pictures before it, each once.

        It survives the death of this process, see `sync`.
        """
        try:
            body = to_body(episode_to_json(episode))
        except (ValueError, TypeError) as error:
            raise ValueError(f"episode {episode.id!r} cannot be recorded: {error}") from error
        self._keep_pictures(episode)
        self._write(body)

    def _keep_pictures(self, episode: Episode) -> None:
        """Keep what the episode brings; what it only names is told missing when it is looked at."""
        for digest in filter(None, digests_of(episode)):
            if (picture := episode.blobs.get(digest)) is not None:
                with self._clear_errors():
                    self._blobs.keep(picture)

    def extend(self, episodes: Iterable[Episode]) -> None:
        """Write a batch, then `sync`; every whole line written before an error stays."""
        for episode in episodes:
            self.append(episode)
        self.sync()

    def sync(self) -> None:
        """Wait until what was written survives the death of the machine (fsync)."""
        with self._clear_errors():
            self._blobs.sync()
            os.fsync(self._fd)

    def position(self) -> Position:
        """Sync, and return where the record ends: what a checkpoint keeps."""
        self.sync()
        return self._end

    def close(self) -> None:
        """Sync and close. Safe to call twice."""
        if self._fd >= 0:
            try:
                self.sync()
            finally:
                self._drop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self, path: str | os.PathLike[str], flags: int) -> None:
        self.path, self._fd, self._end = Path(path), -1, START
        self._blobs = Blobs(self.path)
        with self._clear_errors():
            if flags:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC | flags, 0o644)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._drop()
            self._fail("another process is writing this record; wait for it or stop it")

    def _require_unused(self) -> None:
        with open(self._fd, "rb", closefd=False) as file:
            line = file.readline()
        begun = b'{"created":"'  # all that a crash may have left of a header is written anew
        if line.endswith(b"\n") or not begun.startswith(line[: len(begun)]):
            self._fail("there already is a file; resume it or choose another path")
        os.ftruncate(self._fd, 0)

    def _write(self, body: bytes) -> None:
        line, end = seal(body, self._end)
        try:
            with self._clear_errors():
                written = 0
                while written < len(line):
                    written += os.pwrite(self._fd, line[written:], self._end.offset + written)
        except BaseException:  # also an interrupt: no half line stays
            os.ftruncate(self._fd, self._end.offset)
            raise
        self._end = end

    @contextlib.contextmanager
    def _clear_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            safe = max(0, self._end.lines - 1)
            no_folder = isinstance(error, FileExistsError | NotADirectoryError)
            why = "its folder is a file" if no_folder else error.strerror
            self._fail(
                f"cannot write the record: {why}. The {safe} episodes in it are safe; "
                "free space or choose a folder that you may write, then resume",
                error,
            )

    @contextlib.contextmanager
    def _closed_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._drop()
            raise

    def _drop(self) -> None:
        os.close(self._fd)
        self._fd = -1

    def _fail(self, reason: str, cause: Exception | None = None) -> NoReturn:
        raise RecordError(self.path, 0, reason) from cause


def _end_to_keep(path: Path, file: BinaryIO, position: Position | None) -> Position:
    end = START
    try:
        for end, _ in prove(path, file):
            _require_known(path, end, position)
            if position is not None and end == position:
                return end
    except RecordError as error:
        file.seek(end.offset)
        unfinished = error.line > end.lines > 0 and b"\n" not in file.read()
        if not unfinished:
            raise
    _require_reached(path, end, position)
    return end


def _require_known(path: str | os.PathLike[str], end: Position, known: Position | None) -> None:
    if known is not None and end.lines == known.lines and end != known:
        raise RecordError(path, end.lines, "not the line that is expected here: another run's")


def _require_reached(path: str | os.PathLike[str], end: Position, known: Position | None) -> None:
    if end == START:
        raise RecordError(path, 1, _EMPTY)
    if known is not None and end.lines < known.lines:
        reason = f"missing: {known.lines} lines were written, {end.lines} are left"
        raise RecordError(path, end.lines + 1, reason)


@contextlib.contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    try:
        file = open(path, "rb")  # noqa: SIM115 (closed by the `with` below)
    except OSError as error:
        raise RecordError(path, 0, f"cannot read the record: {error.strerror}") from error
    with file:
        yield file


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
