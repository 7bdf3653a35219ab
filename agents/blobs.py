"""Pictures beside a record: one file each in the folder `blobs`, named by what is in it.

    runs/a/episodes.jsonl        a turn says "picture": "3f7a..."
    runs/a/blobs/3f7a....jpg     the bytes whose SHA-256 that is

The record's hash chain covers the names, and a name its file, so that a picture that was changed
is told from the one that was recorded. A file is written once, by the `RecordWriter`, before the
line that names it. Move the folder along with the record.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from turnwise.envs.types import Episode

FOLDER = "blobs"
MAX_BLOB_BYTES = 16 << 20
_SUFFIX = ".jpg"
_DIGEST = re.compile(r"[0-9a-f]{64}")


class BlobFault(KeyError):
    """A blob is missing or was changed since it was recorded; the message says which and where."""

    def __str__(self) -> str:
        """Return the message without the quotes of a key."""
        return str(self.args[0])


def blob_digest(data: bytes) -> str:
    """Return the 64 hex digits under which `data` is kept."""
    return hashlib.sha256(data).hexdigest()


class Blobs(Mapping[str, bytes]):
    """The blobs beside one record, by digest; each is read and proven when it is asked for.

    Args:
        record: The record's file; several in one folder share their blobs.
    """

    def __init__(self, record: str | os.PathLike[str]) -> None:
        self.folder = Path(record).parent / FOLDER
        self._unsynced: list[Path] = []

    def __getitem__(self, digest: str) -> bytes:
        """Return the bytes of this digest.

        Raises:
            BlobFault: they are missing, cannot be read, or are other bytes by now.
        """
        path = self._path(digest)
        data = _read(path)
        if blob_digest(data) != digest:
            raise BlobFault(f"{path} was changed after it was recorded")
        return data

    def __iter__(self) -> Iterator[str]:
        """Yield the digests that have a file."""
        if self.folder.is_dir():
            yield from sorted(path.stem for path in self.folder.glob(f"*{_SUFFIX}"))

    def __len__(self) -> int:
        """Return how many files there are."""
        return sum(1 for _ in self)

    def keep(self, data: bytes) -> None:
        """Write `data` under its digest, unless it is there; a file is whole or absent.

        Raises:
            OSError: the folder cannot be written, or the disk is full.
        """
        digest = blob_digest(data)
        if self.get(digest) is not None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self._path(digest)
        part = path.with_name(f".{digest}.{os.getpid()}")
        try:
            part.write_bytes(data)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
        self._unsynced.append(path)

    def sync(self) -> None:
        """Wait until what was kept survives the death of the machine (fsync)."""
        paths = [*self._unsynced, *([self.folder] if self._unsynced else ())]
        for path in paths:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        self._unsynced = []

    def _path(self, digest: str) -> Path:
        if not _DIGEST.fullmatch(digest):  # a record of somebody else's must not name any file
            raise BlobFault(f"{digest[:80]!r} is no digest of a picture")
        return self.folder / f"{digest}{_SUFFIX}"


def _read(path: Path) -> bytes:
    """Return the bytes of a file, cut behind the most that a blob may hold.

    Raises:
        BlobFault: there is no such file, or it cannot be read.
    """
    if not path.is_file():
        raise BlobFault(f"{path} is missing; move the folder {FOLDER} along with the record")
    try:
        with path.open("rb") as file:
            return file.read(MAX_BLOB_BYTES + 1)
    except OSError as error:
        raise BlobFault(f"{path} cannot be read: {error.strerror}") from error


def digests_of(episode: Episode) -> list[str]:
    """Return the pictures of an episode: what was seen before each action, and at the end.

    Empty where nothing was drawn.
    """
    return [*(turn.picture for turn in episode.turns), episode.final_picture]


def picture_of(episode: Episode, digest: str) -> bytes:
    """Return the picture of this digest.

    Raises:
        BlobFault: it is missing, or was changed after it was recorded.
    """
    try:
        return episode.blobs[digest]
    except BlobFault:
        raise
    except KeyError:
        raise BlobFault(f"picture {digest} is missing: the episode came without it") from None


def picture_faults(episode: Episode) -> list[str]:
    """Return what is wrong with the pictures that the episode names, one line each."""
    faults = []
    for digest in dict.fromkeys(filter(None, digests_of(episode))):
        try:
            picture_of(episode, digest)
        except BlobFault as fault:
            faults.append(str(fault))
    return faults
