"""Files of a plain box: reached step by step below its folder, without following any link."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY


def write_file(root: str, names: Sequence[str], data: bytes, mode: int) -> None:
    """Write a regular file; the folders above it are made.

    Raises:
        OSError: a step is a link or no folder, or the file is not a regular one.
    """
    fd = _open(root, names, os.O_WRONLY | os.O_CREAT, make=True)
    try:
        os.ftruncate(fd, 0)
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        os.fchmod(fd, mode & 0o777)
    finally:
        os.close(fd)


def read_file(root: str, names: Sequence[str], limit: int) -> bytes:
    """Read a regular file of at most `limit` bytes.

    Raises:
        OSError: it is longer, or there is no such regular file.
    """
    parts: list[bytes] = []
    have = 0
    fd = _open(root, names, os.O_RDONLY, make=False)
    try:
        while have <= limit:
            part = os.read(fd, min(1 << 20, limit + 1 - have))
            if not part:
                return b"".join(parts)
            parts.append(part)
            have += len(part)
    finally:
        os.close(fd)
    raise OSError(errno.EFBIG, f"longer than {limit} bytes", names[-1])


def _open(root: str, names: Sequence[str], flags: int, make: bool) -> int:
    _require_a_path(names)
    folder = os.open(root, _FOLDER)
    try:
        for name in names[:-1]:
            folder = _step(folder, name, make)
        fd = os.open(names[-1], flags | _FILE, 0o600, dir_fd=folder)
    finally:
        os.close(folder)
    # Only now is it certain which file it is: not a pipe, a device or a folder.
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file", names[-1])
    return fd


def _require_a_path(names: Sequence[str]) -> None:
    """Refuse what no file can be called as an `OSError`, not as a `ValueError`."""
    path = "/".join(names)
    try:
        encoded = os.fsencode(path)
    except UnicodeEncodeError:
        encoded = b"\0"
    if b"\0" in encoded:
        raise OSError(errno.EINVAL, f"no file can be called {path!r:.100}")
    if len(encoded) > 4095:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), path[:100])


def _step(folder: int, name: str, make: bool) -> int:
    """The folder below, in exchange for `folder`, which stays open where the step fails."""
    try:
        below = os.open(name, _FOLDER, dir_fd=folder)
    except FileNotFoundError:
        if not make:
            raise
        os.mkdir(name, 0o755, dir_fd=folder)
        below = os.open(name, _FOLDER, dir_fd=folder)
    os.close(folder)
    return below
