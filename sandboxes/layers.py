"""The files of a box, frozen once and shared by every box that is forked from it.

A layer is a small file system in memory that nobody can reach by a path. A forked box gets an
overlay of it: it reads the layer, and what it writes goes to a file system of its own. So files
are copied once for any number of forks, and a fork costs a mount. Layers never pile up, since a
fork of a fork is frozen with all that it sees.

Nothing is in a folder of the host, and no list of mounts shows it: the kernel takes all of it back
with the last box and descriptor, also after a `kill -9`. Only root may do this, and the kernel must
be able to mount what is in no folder (6.18 is); it is tried once, and elsewhere files travel as
archives.
"""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from turnwise.sandboxes import mounts
from turnwise.sandboxes.base import Limits, SandboxError
from turnwise.sandboxes.bubblewrap_command import bound, program, unshared
from turnwise.sandboxes.guest_files import FOLDER
from turnwise.sandboxes.inside import uid_of_the_moment
from turnwise.sandboxes.trees import Copier, TooMuch

SHARE = 4
"""A layer holds at most a quarter of what `Limits` give to a folder. What a box has of a layer
counts against its limits even after it was removed or overwritten, so that it is never over them;
it has three quarters of them to itself at the least."""
_OWN_FILES = 5
"""What an overlay itself has where it writes: two roots, two folders to work in, and one mark that
all removed files share."""


@dataclass(frozen=True)
class Owner:
    """A user of the host that nobody is, and a user namespace in which it is root."""

    uid: int
    namespace: int
    """A descriptor; it says to whom what root owns in a layer belongs. Nothing runs in there."""


@dataclass(frozen=True)
class Layer:
    """Frozen files. A context manager; close it once the boxes that share it have started."""

    fd: int
    owners: deque[Owner] = field(default_factory=deque)
    """Made while the files were frozen, for the first boxes."""

    def used(self) -> tuple[int, int]:
        """(bytes, files and folders) that it holds."""
        found = os.fstatvfs(self.fd)
        return (found.f_blocks - found.f_bfree) * found.f_frsize, found.f_files - found.f_ffree - 1

    def workdir(self, limits: Limits) -> tuple[int, int]:
        """(a user of the host, a descriptor of a writable folder with these files for its box).

        Raises:
            OSError: the kernel refuses it.
        """
        with contextlib.ExitStack() as stack:

            def kept(fd: int) -> int:
                stack.callback(os.close, fd)
                return fd

            owner = self._owner()
            below = kept(mounts.owned_by(self.fd, kept(owner.namespace)))
            above = kept(_room(owner.uid, limits, *self.used()))
            return owner.uid, mounts.mount(
                "overlay",
                {
                    "lowerdir+": below,
                    "upperdir": kept(os.open("upper", FOLDER, dir_fd=above)),
                    "workdir": kept(os.open("work", FOLDER, dir_fd=above)),
                    "redirect_dir": "on",  # or folders of the layer could not be renamed
                    "index": "off",
                    "metacopy": "off",
                },
            )

    def _owner(self) -> Owner:
        try:
            return self.owners.pop()
        except IndexError:
            return _new_owner()

    def close(self) -> None:
        """Give it up; boxes that share it keep it."""
        os.close(self.fd)
        while self.owners:
            os.close(self.owners.pop().namespace)

    def __enter__(self) -> Layer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def freeze(folder: int, limits: Limits, share: int = SHARE) -> Layer | None:
    """A layer of what is in `folder`, a descriptor; None where it cannot be had.

    That is: this kernel or user cannot make one, or the folder holds more than a layer may, which
    is one part in `share` of what the limits give to a folder.
    """
    if not usable():
        return None
    size, files = min((limits.disk_mb << 20) // share, limits.file_bytes), limits.inodes // share
    layer = Layer(_tmpfs(size, files + 1))
    try:
        with ThreadPoolExecutor(1) as meanwhile:
            if share == SHARE:  # should it fail, it is tried again once it is needed
                meanwhile.submit(lambda: layer.owners.append(_new_owner()))
            Copier(files).copy(folder, layer.fd)
    except (TooMuch, OSError):  # it is full; or this root may not read what is another user's
        layer.close()
        return None
    except BaseException:
        layer.close()
        raise
    return layer


@cache
def usable() -> bool:
    """Whether all of this works here, found by doing it once per process."""
    if os.geteuid() != 0:
        return False
    try:
        with Layer(_tmpfs(1 << 20, 10)) as layer:
            os.mkdir("folder", 0o700, dir_fd=layer.fd)
            os.mkdir("other", 0o700, dir_fd=layer.fd)
            return _another_user_may_change_it(layer)
    except (OSError, subprocess.SubprocessError, SandboxError):
        return False


def _another_user_may_change_it(layer: Layer) -> bool:
    place = "/var/tmp"
    uid, workdir = layer.workdir(Limits(disk_mb=1))
    change = f"cd {place} && mv folder renamed && echo 1 > renamed/new && rmdir other"
    argv = unshared(f"{bound(workdir, place)} && {change}")
    try:
        changed = subprocess.run(
            argv,
            pass_fds=[workdir],
            user=uid,
            group=uid,
            extra_groups=[],
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=10,
            check=False,
        )
    finally:
        os.close(workdir)
    left = [os.access(name, os.F_OK, dir_fd=layer.fd) for name in ("folder", "other", "renamed")]
    return changed.returncode == 0 and left == [True, True, False]


def _room(uid: int, limits: Limits, used: int, files: int) -> int:
    """A file system for what a box of user `uid` writes, as large as its limits leave."""
    fd = _tmpfs((limits.disk_mb << 20) - used, limits.inodes - files + _OWN_FILES)
    for name in ("upper", "work"):
        os.mkdir(name, 0o700, dir_fd=fd)
    os.chmod("upper", 0o755, dir_fd=fd)
    os.chown("upper", uid, uid, dir_fd=fd)
    return fd


def _tmpfs(size: int, files: int) -> int:
    return mounts.mount("tmpfs", {"size": str(size), "nr_inodes": str(files), "mode": "755"})


def _new_owner() -> Owner:
    uid, pipe = uid_of_the_moment(), subprocess.PIPE
    argv = [program("unshare"), "--user", program("cat")]
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, env={}, cwd="/") as waiting:
        assert waiting.stdin and waiting.stdout
        waiting.stdin.write(b".")
        waiting.stdin.flush()
        if not waiting.stdout.read(1):  # it echoes once it is in there
            raise OSError(errno.EPERM, "no user namespace can be made")
        about = Path("/proc", str(waiting.pid))
        for table in ("uid_map", "gid_map"):
            (about / table).write_text(f"0 {uid} 1")
        return Owner(uid, os.open(about / "ns" / "user", os.O_RDONLY | os.O_CLOEXEC))
