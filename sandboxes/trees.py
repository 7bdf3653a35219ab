"""A folder of a box copied by the host, file by file and without following a link.

What is kept is what `guest_pack.Packer` keeps: regular files, folders and links that stay inside,
as far as their own user may read them. The tree is the agent's and may change at any time: each
step is opened from the folder above it, and only what is open is looked at.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import itertools
import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from turnwise.sandboxes.guest_files import FILE, FOLDER
from turnwise.sandboxes.guest_kernel import PR_SET_DUMPABLE
from turnwise.sandboxes.guest_pack import MAX_DEPTH
from turnwise.sandboxes.guest_tar import stays_inside

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_REPLACED = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENXIO, errno.EINVAL)
"""Removed, or made into something else, since it was listed."""


_libc = ctypes.PyDLL(None)  # for calls that are over before other threads could make use of it
_PR_GET_DUMPABLE = 3
_DUMPABLE = _libc.prctl(_PR_GET_DUMPABLE, 0, 0, 0, 0) == 1


class TooMuch(Exception):
    """The tree is over a bound of its copy."""


class Copier:
    """Copies one tree of at most `max_files` files, folders and links.

    Args:
        max_files: So many.
        user: Whom the copy is to belong to, if root copies; whoever copies by default.

    Raises:
        TooMuch: it has more, or folders are nested deeper than a snapshot may have them.
        OSError: the copy cannot be written; ENOSPC when it is full.
    """

    def __init__(self, max_files: int, user: int | None = None) -> None:
        self.files_left, self.user = max_files, user

    def copy(self, source: int, target: int, path: bytes = b"") -> None:
        """Copy what is in the folder `source` into the empty folder `target`, both descriptors."""
        if path.count(b"/") >= MAX_DEPTH:
            raise TooMuch
        for entry in self.listed(source):
            name = os.fsencode(entry.name)
            try:
                self.one(entry, source, target, path + b"/" + name if path else name)
            except OSError as error:
                if error.errno not in _REPLACED:
                    raise

    def listed(self, folder: int) -> list[os.DirEntry[str]]:
        """What is in it, by name: the order in which files are made shows in the copy."""
        with os.scandir(folder) as entries:
            found = list(itertools.islice(entries, self.files_left + 1))
        self.files_left -= len(found)
        if self.files_left < 0:
            raise TooMuch
        return sorted(found, key=lambda entry: entry.name)

    def one(self, entry: os.DirEntry[str], source: int, target: int, path: bytes) -> None:
        if entry.is_file(follow_symlinks=False):
            self.file(entry.name, source, target)
        elif entry.is_dir(follow_symlinks=False):
            self.folder(entry.name, source, target, path)
        elif entry.is_symlink():
            aim = os.readlink(os.fsencode(entry.name), dir_fd=source)
            if stays_inside(path, aim):
                with self.as_user():
                    os.symlink(aim, os.fsencode(entry.name), dir_fd=target)

    def folder(self, name: str, source: int, target: int, path: bytes) -> None:
        theirs = os.open(name, FOLDER, dir_fd=source)
        try:
            mode = os.fstat(theirs).st_mode
            if mode & stat.S_IRUSR:
                with self.as_user():
                    os.mkdir(name, 0o700, dir_fd=target)
                self.inside(theirs, os.open(name, FOLDER, dir_fd=target), path, mode)
        finally:
            os.close(theirs)

    def inside(self, theirs: int, ours: int, path: bytes, mode: int) -> None:
        try:
            if mode & stat.S_IXUSR:
                self.copy(theirs, ours, path)
            os.fchmod(ours, mode & 0o777)
        finally:
            os.close(ours)

    def file(self, name: str, source: int, target: int) -> None:
        theirs = os.open(name, os.O_RDONLY | FILE, dir_fd=source)
        try:
            found = os.fstat(theirs)
            if stat.S_ISREG(found.st_mode) and found.st_mode & stat.S_IRUSR:
                with self.as_user():
                    ours = os.open(name, _CREATE, 0o600, dir_fd=target)
                _pour(theirs, ours, found)
        finally:
            os.close(theirs)

    @contextlib.contextmanager
    def as_user(self) -> Iterator[None]:
        """For what is made meanwhile by this thread; a box's file system knows no root of ours."""
        try:
            if self.user is not None:
                _act_as(self.user)
            yield
        finally:
            if self.user is not None:
                _act_as(0)


def copy_as(user: int, max_files: int, source: int, target: int) -> None:
    """Copy a tree as `Copier` does, for root; the copy belongs to `user`.

    It is done on a thread of its own, since a thread that acts as another user loses what it was to
    hear of its parent's death, and the process the right to be looked into, which is given back.
    """
    with ThreadPoolExecutor(1) as apart:
        try:
            apart.submit(Copier(max_files, user).copy, source, target).result()
        finally:
            if _DUMPABLE:
                _libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)


def _act_as(user: int) -> None:
    """Have this thread's files belong to `user`; for root only."""
    _libc.setfsgid(user)
    _libc.setfsuid(user)


def _pour(source: int, target: int, found: os.stat_result) -> None:
    """Copy what is `found` in `source` into `target`, and close that."""
    try:
        left = found.st_size
        while left and (part := os.sendfile(target, source, None, left)):
            left -= part
        if left:  # it shrank: the copy is as long as an archive's would be
            os.ftruncate(target, found.st_size)
        os.fchmod(target, found.st_mode & 0o777)
        os.utime(target, ns=(found.st_mtime_ns, found.st_mtime_ns))
    finally:
        os.close(target)
