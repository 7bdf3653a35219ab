"""Which process a box, a container or a folder belongs to, told so that any process can check it.

A pid may be given to another process after a while, and means something else in another PID
namespace or after a reboot; an owner names all four. What cannot be judged from here, such as a
process of another machine that shares a container engine, counts as alive: a deadline ends it.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

OWNER_LABEL, DEADLINE_LABEL = "turnwise.owner", "turnwise.deadline"
_NAME = re.compile(r"([0-9a-f]{8})-(\d+)-(\d+)-(\d+)")
_held: tuple[int, Path, int] | None = None


def owner_of_this_process() -> str:
    """`<boot and PID namespace>:<pid>:<start time>`; another one after a fork."""
    return f"{_world()}:{os.getpid()}:{start_time(os.getpid())}"


def is_alive(owner: str) -> bool:
    """Whether `owner` may still run; false only where it provably ended on this very machine.

    Raises:
        ValueError: it is not what `owner_of_this_process` returns.
    """
    world, pid, start = _parts(owner)
    return world != _world() or _runs(pid, start)


def is_of_this_boot(owner: str) -> bool:
    """Whether `owner` was started since this machine was."""
    return _parts(owner)[0].rpartition("-")[0] == _boot()


def pid_of(owner: str) -> int:
    """The pid in `owner`, as its own namespace numbers it."""
    return _parts(owner)[1]


def _parts(owner: str) -> tuple[str, int, int]:
    try:
        world, pid, start = owner.split(":")
        return world, int(pid), int(start)
    except ValueError:
        raise ValueError(f"an owner is '<boot>:<pid>:<start time>', got {owner!r}") from None


@cache
def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


@cache
def _world() -> str:
    return f"{_boot()}-{os.stat('/proc/self/ns/pid').st_ino}"


def start_time(pid: int) -> int:
    """When `pid` was started, in clock ticks after boot; raises OSError where there is none."""
    return int(stat_of(pid)[19])


def stat_of(pid: int) -> list[bytes]:
    """The fields of /proc/<pid>/stat after the command: state, parent, ... start time at 19."""
    return Path(f"/proc/{pid}/stat").read_bytes().rsplit(b")", 1)[1].split()


def _runs(pid: int, start: int) -> bool:
    """Whether the process that was given `pid` at `start`, in ticks after boot, may still run."""
    try:
        fields = stat_of(pid)
    except OSError:
        return _exists(pid)  # /proc may hide what belongs to other users
    return fields[0] not in (b"Z", b"X") and int(fields[19]) == start


def _exists(pid: int) -> bool:
    try:
        os.close(os.pidfd_open(pid))
    except OSError:
        return False
    return True


def own_folder() -> Path:
    """A folder of this process for sockets and files; `sweep_folders` of others spare it.

    Others may enter but not list it: a box of root's runs as another user, which must reach the
    one socket that it is given.

    Raises:
        OSError: it cannot be made, or somebody else's lies in its place.
    """
    global _held
    if _held is None or _held[0] != os.getpid():
        world, pid, start = _parts(owner_of_this_process())
        folder = _folders() / f"{_short(world)}-{pid}-{start}"
        folder.mkdir(mode=0o711, exist_ok=True)
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        _held = (os.getpid(), folder, lock)
        atexit.register(_remove_own, _held)
    return _held[1]


def _remove_own(held: tuple[int, Path, int]) -> None:
    if held[0] == os.getpid():  # a forked child inherits what is done at exit
        shutil.rmtree(held[1], ignore_errors=True)


def _short(world: str) -> str:
    # The path of a unix socket may have 107 bytes.
    boot, _, space = world.rpartition("-")
    return f"{boot[:8]}-{space}"


def _folders() -> Path:
    folder = Path(tempfile.gettempdir(), f"turnwise-run-{os.geteuid()}")
    folder.mkdir(mode=0o711, exist_ok=True)
    found = os.lstat(folder)
    if found.st_uid != os.geteuid() or found.st_mode & 0o170022 != 0o040000:
        raise PermissionError(f"{folder} must be a folder that only its owner writes to; remove it")
    return folder


def leftover_folders() -> Iterator[Path]:
    """Folders of this user whose owners have ended, or were started before this machine was."""
    boot, space = _short(_world()).split("-")
    with contextlib.suppress(OSError):
        for folder in _folders().iterdir():
            if match := _NAME.fullmatch(folder.name):
                ended = match[2] == space and not _runs(int(match[3]), int(match[4]))
                if ended or match[1] != boot:
                    yield folder


def sweep_folders() -> list[Path]:
    """Remove `leftover_folders`, each under its lock; those that were removed."""
    gone = []
    for folder in list(leftover_folders()):
        with contextlib.suppress(OSError):
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
                gone.append(folder)
            finally:
                os.close(lock)
    return gone
