"""Holds memory and process limits where no cgroup can: one thread looks at every box.

It sums what the processes of a box have resident and ends the largest, but never the guest, until
the rest fits. It sees a box's processes only as children of the one that this process started.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from turnwise.sandboxes.cgroup import start_time

PERIOD_S = 0.03
FREE_FOR_SOCKETS, TCP_BYTES = 32 << 20, 5 << 19
"""No process is charged for what waits in its sockets, so each counts as full beyond some."""


@dataclass(frozen=True)
class Watched:
    """PID 1 of a box, as this process numbers it, and what the box may hold."""

    guest_pid: int
    memory_bytes: int | None
    pids: int | None


_lock = threading.Lock()
_boxes: set[Watched] = set()
_running = False


def watch(box: Watched) -> None:
    """Look after `box` until `forget`."""
    global _running
    with _lock:
        _boxes.add(box)
        if not _running:
            _running = True
            threading.Thread(target=_look, name="turnwise-watchdog", daemon=True).start()


def forget(box: Watched) -> None:
    """Stop looking after `box`."""
    with _lock:
        _boxes.discard(box)


def _look() -> None:
    global _running
    while True:
        with _lock:
            boxes = list(_boxes)
            if not boxes:
                _running = False
                return
        for box in boxes:
            with contextlib.suppress(OSError):
                enforce(box)
        time.sleep(PERIOD_S)


def enforce(box: Watched) -> int:
    """End the largest processes of `box` that are over its limits; how many."""
    sizes = {pid: _resident(pid) for pid in _below(box.guest_pid)}
    nobodys = 0 if box.memory_bytes is None else _in_sockets(box.guest_pid)
    if box.memory_bytes is not None and sum(sizes.values()) + nobodys > box.memory_bytes:
        sizes = {pid: _own_share(pid, size) for pid, size in sizes.items()}
    total, count, ended = sum(sizes.values()) + nobodys, len(sizes) + 1, 0
    for pid in sorted(sizes, key=sizes.__getitem__, reverse=True):
        fits = box.memory_bytes is None or total <= box.memory_bytes
        if fits and (box.pids is None or count <= box.pids):
            break
        _kill(pid)
        total, count, ended = total - sizes[pid], count - 1, ended + 1
    return ended


def _below(root: int) -> list[int]:
    found: list[int] = []
    todo = [root]
    while todo:
        pid = todo.pop()
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{pid}/task"):
                with contextlib.suppress(OSError):
                    text = Path(f"/proc/{pid}/task/{task}/children").read_text()
                    todo.extend(map(int, text.split()))
                    found.extend(map(int, text.split()))
    return found


def _resident(pid: int) -> int:
    """What `pid` has resident, its page tables included: to look costs memory, too."""
    return _kib(f"/proc/{pid}/status", "VmRSS:", "VmPTE:")


def _own_share(pid: int, resident: int) -> int:
    """As `_resident`, a page that n processes share counted 1/n; slower.

    A process that hides its map from us is counted in full.
    """
    share = _kib(f"/proc/{pid}/smaps_rollup", "Pss:")
    return share + _kib(f"/proc/{pid}/status", "VmPTE:") if share else resident


def _kib(path: str, *names: str) -> int:
    """The sum of the lines of `path` that begin with `names`, in bytes; 0 where it is gone."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith(names))


def _in_sockets(pid: int) -> int:
    """The most that may wait in the sockets of the box of `pid`, above a free share.

    Without a cgroup, the filter keeps their buffers at the size that they start with.
    """
    try:
        words = Path(f"/proc/{pid}/net/sockstat").read_text().split()
        tcp, every = int(words[words.index("TCP:") + 2]), int(words[words.index("used") + 1])
    except (OSError, ValueError, IndexError):
        return 0
    return max(0, tcp * TCP_BYTES + every * _socket_bytes() - FREE_FOR_SOCKETS)


@cache
def _socket_bytes() -> int:
    return int(Path("/proc/sys/net/core/wmem_default").read_text())


def _kill(pid: int) -> None:
    # Between the listing and here the pid may have gone to another process: hold it by a
    # descriptor and make sure that it is still inside a namespace below ours before the signal.
    before = start_time(pid)
    with contextlib.suppress(OSError):
        fd = os.pidfd_open(pid)
        try:
            if before and start_time(pid) == before and _is_nested(pid):
                signal.pidfd_send_signal(fd, signal.SIGKILL)
        finally:
            os.close(fd)


def _is_nested(pid: int) -> bool:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("NSpid:"):
            return len(line.split()) > 2
    return False


def _forget_in_child() -> None:
    global _lock, _running
    _lock, _running = threading.Lock(), False
    _boxes.clear()


os.register_at_fork(after_in_child=_forget_in_child)
