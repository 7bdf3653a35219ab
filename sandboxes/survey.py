"""Which boxes there are on this machine and whose they are, seen from outside."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from turnwise.sandboxes import cgroup, owner, reaper, strays, watchdog
from turnwise.sandboxes.base import SandboxError


@dataclass(frozen=True, slots=True)
class Found:
    """One thing of ours on this machine."""

    kind: str
    """`box`, `container`, `cgroup` or `folder`."""
    id: str
    owner_pid: int
    alive: bool
    """Whether its owner may still run; what a dead owner left is for the sweep."""
    age_s: float | None = None
    memory_mb: float | None = None
    """Resident, of all its processes; pages that they share are counted more than once."""
    left_s: float | None = None
    """Until its deadline, which ends it whatever its owner does."""


def survey() -> list[Found]:
    """Everything of ours: boxes of this user and, for root, of all users; then leftovers."""
    found = [*_boxes(), *_containers()]
    left = owner.leftover_folders()
    folders = [Found("folder", path.name, _pid_in(path), False) for path in left]
    cgroups = [Found("cgroup", path.name, _pid_in(path), False) for path in cgroup.leftovers()]
    return found + folders + cgroups


def _pid_in(path: Path) -> int:
    """The owner's pid: the third part from the end in a folder's name, before it in a cgroup's."""
    parts = path.name.split("-")
    return int(parts[2] if parts[0] == "turnwise" else parts[-2])


def _boxes() -> Iterator[Found]:
    """Boxes of bubblewrap, each by the outermost bwrap that is left of it."""
    for box in strays.seen_boxes():
        with contextlib.suppress(OSError, ValueError):
            if not _is_bwrap(parent := _parent(box.pid)):
                yield _box(box, parent)


def _box(box: strays.SeenBox, parent: int) -> Found:
    alive = owner.is_alive(box.owner)
    who = parent if alive else owner.pid_of(box.owner)  # who is alive is known by its number here
    tree = sum(watchdog._resident(below) for below in watchdog._below(box.pid))
    return Found("box", box.id, who, alive, _age_s(box.pid), round(tree / 2**20, 1))


def _parent(pid: int) -> int:
    return int(owner.stat_of(pid)[1])


def _is_bwrap(pid: int) -> bool:
    return Path(f"/proc/{pid}/comm").read_text().strip() == "bwrap"


def _age_s(pid: int) -> float:
    up = float(Path("/proc/uptime").read_text().split()[0])
    return round(up - owner.start_time(pid) / os.sysconf("SC_CLK_TCK"), 1)


def _containers() -> Iterator[Found]:
    try:
        containers = reaper.list_containers()
    except SandboxError:
        return
    now = time.time()
    for found in containers:
        pid, alive = 0, True
        with contextlib.suppress(ValueError):
            pid, alive = owner.pid_of(found.owner), owner.is_alive(found.owner)
        left = None if found.deadline == float("inf") else round(found.deadline - now)
        yield Found("container", found.name, pid, alive, found.age_s, left_s=left)
