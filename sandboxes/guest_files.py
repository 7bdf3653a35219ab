"""Inside the box: reading and writing files for the host, without following any link."""

from __future__ import annotations

import errno
import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
FILE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY


def put(header: dict[str, Any], data: bytes | bytearray) -> tuple[dict[str, Any], bytes]:
    """Write a regular file; the folders above it are made."""
    folder, name = folder_of(header["path"], make=True)
    try:
        write(folder, name, data, header["mode"], path=header["path"])
    finally:
        os.close(folder)
    return {}, b""


def write(
    folder: int,
    name: str,
    data: bytes | bytearray,
    mode: int,
    mtime: int | None = None,
    path: str = "",
) -> None:
    """Write the regular file `name` in an open folder; its time is now unless one is given."""
    fd = _open_in(folder, name, os.O_WRONLY | os.O_CREAT, path)
    try:
        os.ftruncate(fd, 0)
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        os.fchmod(fd, mode & 0o777)
        if mtime is not None:
            os.utime(fd, (mtime, mtime))
    finally:
        os.close(fd)


def get(header: dict[str, Any], body: bytes | bytearray) -> tuple[dict[str, Any], list[bytes]]:
    """Read a regular file of at most `max_bytes`, as a list of pieces."""
    parts: list[bytes] = []
    limit, have = header["max_bytes"], 0
    folder, name = folder_of(header["path"], make=False)
    try:
        fd = _open_in(folder, name, os.O_RDONLY, header["path"])
    finally:
        os.close(folder)
    try:
        while have <= limit:
            part = os.read(fd, min(1 << 20, limit + 1 - have))
            if not part:
                return {}, parts
            parts.append(part)
            have += len(part)
    finally:
        os.close(fd)
    raise OSError(errno.EFBIG, f"longer than {limit} bytes", header["path"])


def _open_in(folder: int, name: str, flags: int, path: str) -> int:
    fd = os.open(name, flags | FILE, 0o600, dir_fd=folder)
    # Only now is it certain which file it is: not a pipe, a device or a folder of the agent's.
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file", path or name)
    return fd


def folder_of(path: str, make: bool) -> tuple[int, str]:
    """(descriptor of the folder of `path`, its last name); a relative path starts at the workdir.

    Each step is opened from the one before, so that no link and no rename can lead elsewhere.
    """
    _require_a_path(path)
    names = [name for name in os.path.abspath(path).split("/") if name]
    if not names:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    fd = os.open("/", FOLDER)
    for name in names[:-1]:
        above = fd
        try:
            fd = _step(name, above, make)
        finally:
            os.close(above)
    return fd, names[-1]


def _require_a_path(path: str) -> None:
    """Refuse what no file can be called as an `OSError`: paths may come from the agent."""
    try:
        encoded = os.fsencode(path)
    except UnicodeEncodeError:
        encoded = b"\0"
    if b"\0" in encoded:
        raise OSError(errno.EINVAL, "no file can be called so", ascii(path[:100]))
    if len(encoded) > 4095:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), ascii(path[:100]))


def _step(name: str, above: int, make: bool) -> int:
    try:
        return os.open(name, FOLDER, dir_fd=above)
    except FileNotFoundError:
        if not make:
            raise
    os.mkdir(name, 0o755, dir_fd=above)
    return os.open(name, FOLDER, dir_fd=above)
