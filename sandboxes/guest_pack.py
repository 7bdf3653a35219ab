"""Inside the box: the workdir packed into a tar archive, and one unpacked into it.

Nothing here follows a link: each step of a path is opened from the folder above it.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat

from turnwise.sandboxes.guest_files import FILE, FOLDER, folder_of, write
from turnwise.sandboxes.guest_tar import (
    BLOCK,
    DIRECTORY,
    LINK,
    REGULAR,
    entry,
    members,
    padding,
    stays_inside,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MAX_DEPTH = 64
MAX_NAMED = 32
MAX_NAMED_CHARS = 160
_NOT_THERE = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.ELOOP, errno.ENXIO)
"""Removed or replaced since it was listed, or closed to its own user."""


class Packer:
    """Packs one folder; everything is counted against the limits before it is read.

    Raises:
        OSError: the archive would be over `max_bytes` or hold more than `max_files` entries.
    """

    def __init__(self, max_bytes: int, max_files: int) -> None:
        self.max_bytes, self.max_files = max_bytes, max_files
        self.parts: list[bytes] = []
        self.size = self.count = 0
        self.left_out: list[str] = []
        self.left_out_count = 0

    def pack(self, folder: str) -> list[bytes]:
        """The archive of what is below `folder`, in pieces, sorted by name."""
        fd = os.open(folder, FOLDER)
        try:
            self.walk(fd, b"")
        finally:
            os.close(fd)
        self.add(bytes(2 * BLOCK))
        return self.parts

    def walk(self, above: int, path: bytes) -> None:
        with os.scandir(above) as entries:
            found = list(itertools.islice(entries, self.max_files + 1 - self.count))
        for name in sorted(os.fsencode(one.name) for one in found):
            self.count += 1
            if self.count > self.max_files:
                raise OSError(errno.EFBIG, f"more than {self.max_files} files")
            inside = path + b"/" + name if path else name
            try:
                self.one(above, name, inside)
            except _LeftOut:
                self.leave_out(inside)

    def one(self, above: int, name: bytes, path: bytes) -> None:
        try:
            kind = os.stat(name, dir_fd=above, follow_symlinks=False).st_mode
            if stat.S_ISLNK(kind):
                self.link(os.readlink(name, dir_fd=above), path)
            elif stat.S_ISDIR(kind):
                self.folder(os.open(name, FOLDER, dir_fd=above), path)
            elif stat.S_ISREG(kind):
                self.file(os.open(name, os.O_RDONLY | FILE, dir_fd=above), path)
            else:
                raise _LeftOut
        except OSError as error:
            if error.errno not in _NOT_THERE:
                raise
            raise _LeftOut from None

    def link(self, target: bytes, path: bytes) -> None:
        if not stays_inside(path, target):
            raise _LeftOut
        self.add(entry(path, LINK, 0o777, 0, 0, target))

    def folder(self, fd: int, path: bytes) -> None:
        try:
            if path.count(b"/") >= MAX_DEPTH:
                raise OSError(errno.EFBIG, f"folders nested deeper than {MAX_DEPTH}")
            found = os.fstat(fd)
            self.add(entry(path + b"/", DIRECTORY, found.st_mode, 0, 0))
            self.walk(fd, path)
        finally:
            os.close(fd)

    def file(self, fd: int, path: bytes) -> None:
        try:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                raise _LeftOut
            size = found.st_size
            self.add(entry(path, REGULAR, found.st_mode, size, found.st_mtime))
            if self.size + size > self.max_bytes:
                self.refuse()
            while size:
                # One that shrinks while it is read is filled up, as every tar does.
                part = os.read(fd, min(size, 1 << 20)) or bytes(min(size, 1 << 20))
                self.add(part)
                size -= len(part)
            self.add(padding(found.st_size))
        finally:
            os.close(fd)

    def add(self, data: bytes) -> None:
        self.size += len(data)
        if self.size > self.max_bytes:
            self.refuse()
        self.parts.append(data)

    def refuse(self) -> None:
        raise OSError(errno.EFBIG, f"an archive of more than {self.max_bytes} bytes")

    def leave_out(self, path: bytes) -> None:
        self.left_out_count += 1
        if len(self.left_out) < MAX_NAMED:
            self.left_out.append(path.decode("utf-8", "replace")[:MAX_NAMED_CHARS])


class _LeftOut(Exception):
    """This entry is not kept."""


def unpack(folder: str, data: bytes | bytearray) -> None:
    """Write all members below `folder`; what is there already and in the way is an `OSError`."""
    modes = []
    with _Folders(folder) as folders:
        for member in members(data):
            above, _, name = member.name.rpartition(b"/")
            if member.kind == REGULAR:
                write(folders.at(above), os.fsdecode(name), member.data, member.mode, member.mtime)
            elif member.kind == LINK:
                os.symlink(member.data, name, dir_fd=folders.at(above))
            else:
                folders.at(member.name)
                modes.append((member.name, member.mode))
        # Last, and from within: a folder may be closed to writing.
        for path, mode in reversed(modes):
            os.fchmod(folders.at(path), mode)


class _Folders:
    """The last folder that was asked for stays open: the next file is mostly in it, too."""

    def __init__(self, root: str) -> None:
        self.root, self.path, self.fd = root, b"", -1

    def at(self, path: bytes) -> int:
        """A descriptor of the folder `path` below the root; it is made if there is none."""
        if self.fd < 0 or path != self.path:
            where = os.path.join(self.root, os.fsdecode(path), "x")
            fd = folder_of(where, make=True)[0]
            self.close()
            self.path, self.fd = path, fd
        return self.fd

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1

    def __enter__(self) -> _Folders:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Archives:
    """The guest's two operations on its workdir."""

    def __init__(self, limits: dict[str, Any], workdir: str) -> None:
        self.limits, self.workdir = limits, workdir

    def pack(
        self, header: dict[str, Any], body: bytes | bytearray
    ) -> tuple[dict[str, Any], list[bytes]]:
        """The workdir as an archive of at most `file_bytes`."""
        packer = Packer(self.limits["file_bytes"], self.limits["inodes"])
        parts = packer.pack(self.workdir)
        return {"left_out": packer.left_out, "left_out_count": packer.left_out_count}, parts

    def unpack(
        self, header: dict[str, Any], body: bytes | bytearray
    ) -> tuple[dict[str, Any], bytes]:
        """Write an archive into the workdir."""
        try:
            unpack(self.workdir, body)
        except ValueError as error:
            raise OSError(errno.EINVAL, str(error)) from None
        return {}, b""
