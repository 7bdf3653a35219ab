"""Memory, process and CPU limits of one box by cgroup v1 or v2, where this user may make them.

What no cgroup can hold is reported as missing, and the backend must hold it otherwise.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from turnwise.sandboxes.base import Limits
from turnwise.sandboxes.owner import leftover_folders, own_folder

CONTROLLERS = ("memory", "pids", "cpu")
_PERIOD_US = 100_000
_MOST_AND_LIMIT = ("memory.max_usage_in_bytes", "memory.limit_in_bytes")
"""Of cgroup v1, which counts some pages in batches."""
_NOTE = "cgroups"
"""The file in a process's own folder that tells sweepers in other cgroups where to look."""
_NAME = re.compile(r"turnwise-(\d+)-(\d+)-(\d+)-\d+")


@dataclass
class Cgroup:
    """The folders of one box; `held` names the controllers that really limit it."""

    held: frozenset[str] = frozenset()
    folders: list[Path] = field(default_factory=list)

    def open_doors(self) -> list[int]:
        """Descriptors by which a process of one thread moves itself in: it writes 0 to each.

        To move another process, the kernel holds up every start and end of one on the machine for
        some milliseconds. Version 2 does so in both cases, and has no doors.
        """
        doors: list[int] = []
        for folder in self.folders:
            with contextlib.suppress(OSError):
                doors.append(os.open(folder / "tasks", os.O_WRONLY | os.O_CLOEXEC))
        return doors

    def add(self, pid: int) -> None:
        """Move `pid` in unless it is; what it starts from now on is in, too.

        Raises:
            OSError: a folder has gone or the process has.
        """
        for folder in self.folders:
            file = folder / "cgroup.procs"
            if str(pid) not in file.read_text().split():
                file.write_text(str(pid))

    def open_kills(self) -> list[int]:
        """A descriptor of the file that counts the processes ended for want of memory, or none."""
        for folder in self.folders if "memory" in self.held else ():
            for name in ("memory.events", "memory.oom_control"):
                with contextlib.suppress(OSError):
                    return [os.open(folder / name, os.O_RDONLY | os.O_CLOEXEC)]
        return []

    def starved(self) -> int:
        """How many of its processes the kernel ended for want of memory; 0 below the memory limit.

        For a shortage of the whole machine counts, too, and is no doing of the box.
        """
        return max(map(_starved, self.folders if "memory" in self.held else ()), default=0)

    def remove(self) -> None:
        """Remove the folders; the kernel empties them a moment after the last process ends."""
        for folder in self.folders:
            for _ in range(50):
                try:
                    folder.rmdir()
                    break
                except FileNotFoundError:
                    break
                except OSError:
                    time.sleep(0.002)


def _starved(folder: Path) -> int:
    if (events := _counts(folder / "memory.events")) is not None:
        return events.get("oom_kill", 0) if events.get("oom") else 0
    with contextlib.suppress(OSError, ValueError):
        most, limit = (int((folder / name).read_text()) for name in _MOST_AND_LIMIT)
        if most >= 0.99 * limit:
            return (_counts(folder / "memory.oom_control") or {}).get("oom_kill", 0)
    return 0


def _counts(file: Path) -> dict[str, int] | None:
    """A file of names and numbers; None if there is none."""
    try:
        lines = [line.split() for line in file.read_text().splitlines()]
        return {name: int(value) for name, value in lines}
    except (OSError, ValueError):
        return None


def make(number: int, limits: Limits) -> Cgroup:
    """A cgroup for box `number` of this process; empty where this user may make none."""
    group = Cgroup()
    if os.geteuid() != 0:
        return group
    held = set()
    _note()
    for parent, version, names in _parents():
        folder = parent / f"turnwise-{_owner()}-{number}"
        with contextlib.suppress(OSError):
            folder.mkdir()
            group.folders.append(folder)
            for name in names:
                with contextlib.suppress(OSError):
                    _write(folder, version, name, limits)
                    held.add(name)
    group.held = frozenset(held)
    return group


def _write(folder: Path, version: int, name: str, limits: Limits) -> None:
    memory, quota = limits.memory_mb << 20, int(limits.cpus * _PERIOD_US)
    if name == "pids":
        (folder / "pids.max").write_text(str(limits.pids))
    elif version == 2 and name == "memory":
        (folder / "memory.max").write_text(str(memory))
        with contextlib.suppress(OSError):
            (folder / "memory.swap.max").write_text("0")
    elif version == 2:
        (folder / "cpu.max").write_text(f"{quota} {_PERIOD_US}")
    elif name == "memory":
        (folder / "memory.limit_in_bytes").write_text(str(memory))
        with contextlib.suppress(OSError):
            (folder / "memory.memsw.limit_in_bytes").write_text(str(memory))
    else:
        (folder / "cpu.cfs_period_us").write_text(str(_PERIOD_US))
        (folder / "cpu.cfs_quota_us").write_text(str(quota))


@cache
def _parents() -> list[tuple[Path, int, tuple[str, ...]]]:
    """(folder to make ours in, cgroup version, controllers it has for us)."""
    own = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, listed, path = line.split(":", 2)
        own.update(dict.fromkeys(listed.split(","), path))
    found: list[tuple[Path, int, tuple[str, ...]]] = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        kind, mount, options = right.split()[0], Path(left.split()[4]), right.split()[-1].split(",")
        if kind == "cgroup":
            names = tuple(name for name in CONTROLLERS if name in options)
            # The same hierarchy may be mounted twice; one folder in it is enough.
            if names and not any(names == other for _, _, other in found):
                inside = mount / own.get(names[0], "/").lstrip("/")
                found.append((inside if inside.is_dir() else mount, 1, names))
        elif kind == "cgroup2":
            with contextlib.suppress(OSError):
                given = (mount / "cgroup.subtree_control").read_text().split()
                names = tuple(name for name in CONTROLLERS if name in given)
                if names:
                    found.append((mount, 2, names))
    return found


@cache
def _pid_namespace() -> int:
    return os.stat("/proc/self/ns/pid").st_ino


def _owner() -> str:
    return f"{_pid_namespace()}-{os.getpid()}-{start_time(os.getpid())}"


def start_time(pid: int) -> int:
    """When `pid` was started, in clock ticks after boot; 0 where there is none.

    A pid may be given to another process; a pid and its start time may not.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rsplit(b")", 1)[1].split()
    except OSError:
        return 0
    return int(fields[19])


def _note() -> None:
    with contextlib.suppress(OSError):
        note = own_folder() / _NOTE
        if not note.exists():
            note.write_text("".join(f"{parent}\n" for parent, _, _ in _parents()))


def _noted() -> Iterator[Path]:
    """Where owners that have ended made theirs: each session may have a cgroup of its own."""
    for folder in leftover_folders():
        with contextlib.suppress(OSError):
            yield from map(Path, (folder / _NOTE).read_text().splitlines())


def leftovers() -> Iterator[Path]:
    """Folders of processes of this PID namespace that are no more."""
    parents = {parent for parent, _, _ in _parents()} | set(_noted())
    for parent in parents if os.geteuid() == 0 else ():
        for folder in parent.glob("turnwise-*"):
            match = _NAME.fullmatch(folder.name)
            if match:
                space, pid, start = map(int, match.groups())
                if space == _pid_namespace() and start_time(pid) != start:
                    yield folder


def sweep_leftovers() -> int:
    """Remove what owners that were killed could not; how many. Never touches a used one."""
    count = 0
    for folder in list(leftovers()):
        with contextlib.suppress(OSError):
            folder.rmdir()  # fails while a process is in it
            count += 1
    return count
