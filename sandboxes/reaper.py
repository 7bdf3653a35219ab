"""Three layers that leave nothing behind, whatever ends the process that owns a box.

1. The guest ends when its channel closes: that is enough for a `kill -9`, and lies in `guest.py`.
2. At exit, and at a SIGTERM that nobody else handles, this process ends its own boxes.
3. A sweep, at the first start of a process and each minute while it has boxes, removes what owners
   that were killed could not: containers by their labels, boxes that were starting, cgroups,
   folders. It goes by the proof that an owner has ended or by a deadline that has passed, and
   touches nothing else.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
import weakref
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import Any

from turnwise.sandboxes import cgroup, owner
from turnwise.sandboxes.base import Sandbox, SandboxError
from turnwise.sandboxes.owner import DEADLINE_LABEL, OWNER_LABEL
from turnwise.sandboxes.strays import sweep_boxes

PERIOD_S = 60.0
GRACE_S = 5.0
"""How long a SIGTERM waits for the boxes to end."""

_lock = threading.Lock()
_boxes: weakref.WeakSet[Sandbox] = weakref.WeakSet()
_engines: set[str] = set()
"""Backends of this process whose leftovers must be asked for elsewhere."""
_running = False
_swept = False


@dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep removed."""

    cgroups: int = 0
    folders: tuple[str, ...] = ()
    containers: tuple[str, ...] = ()
    boxes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Container:
    """One that is labelled as ours, by whichever process of whichever user."""

    id: str
    name: str
    owner: str
    deadline: float
    """Seconds since the epoch."""
    status: str
    """As the engine puts it, such as `running`."""
    age_s: float = 0.0

    def is_leftover(self, now: float) -> bool:
        """Whether its owner provably ended, its time is over, or it ran before a reboot."""
        ended = self.status in ("exited", "dead")
        try:
            alive = owner.is_alive(self.owner)
            old = not owner.is_of_this_boot(self.owner)
        except ValueError:  # a label that we did not write: the deadline alone decides
            alive, old = True, False
        return not alive or now >= self.deadline or (old and ended)


def watch_over(box: Sandbox) -> None:
    """Have `box` ended with this process, and leftovers swept while it lives."""
    global _running
    with _lock:
        _boxes.add(box)
        if not _running:
            _running = True
            threading.Thread(target=_each_minute, name="turnwise-reaper", daemon=True).start()


def before_start(backend: str) -> None:
    """Sweep, if this is the first start of this process, or its first with this engine."""
    global _swept
    with _lock:
        fresh = backend == "docker" and backend not in _engines
        first, _swept = not _swept, True
        _engines.update({backend} & {"docker"})
    end_at_sigterm()
    if first or fresh:
        sweep(containers=fresh)


def sweep(*, containers: bool = True) -> Swept:
    """Remove what owners that have ended left; never raises.

    Args:
        containers: ask the docker engine, too, if one answers.
    """
    boxes = sweep_boxes()
    cgroups = cgroup.sweep_leftovers()
    folders: tuple[str, ...] = ()
    # The folders say where cgroups lie, and one may still hold a process that is just ending.
    if next(cgroup.leftovers(), None) is None:
        folders = tuple(str(folder) for folder in owner.sweep_folders())
    return Swept(cgroups, folders, _sweep_containers() if containers else (), boxes)


def list_containers() -> list[Container]:
    """The containers with our labels; none where no engine answers.

    Raises:
        SandboxError: an engine is there and fails.
    """
    from turnwise.sandboxes.docker_engine import connect, failures

    engine = connect()
    with failures(engine.url):
        found = engine.api.containers(all=True, filters={"label": OWNER_LABEL})
    return [_container(entry) for entry in found]


def _container(entry: dict[str, Any]) -> Container:
    labels = entry["Labels"]
    try:
        deadline = float(labels[DEADLINE_LABEL])
    except (KeyError, ValueError):
        deadline = float("inf")
    name = (entry.get("Names") or [entry["Id"][:12]])[0].lstrip("/")
    age_s = round(time.time() - entry["Created"], 1)
    return Container(entry["Id"], name, labels[OWNER_LABEL], deadline, entry["State"], age_s)


def _sweep_containers() -> tuple[str, ...]:
    removed = []
    with contextlib.suppress(SandboxError):
        from turnwise.sandboxes.docker_engine import connect, quietly

        api, now = connect().api, time.time()
        for found in list_containers():
            if found.is_leftover(now):
                gone = quietly(partial(api.remove_container, found.id, force=True, v=True))
                removed += [found.name] if gone is None else []
    return tuple(removed)


def _each_minute() -> None:
    global _running
    while True:
        time.sleep(PERIOD_S)
        with _lock:
            alive = [box for box in _boxes if getattr(box, "alive", True)]
            if not alive:
                _running = False
                return
            containers = bool(_engines)
        del alive  # a thread that holds a box would keep it from being collected
        sweep(containers=containers)


def end_all() -> None:
    """End every box of this process, several at a time."""
    with _lock:
        boxes = list(_boxes)
    threads = [threading.Thread(target=box.close, daemon=True) for box in boxes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def end_at_sigterm() -> bool:
    """End the boxes of this process at SIGTERM, then die of it; whether that could be arranged.

    Only where nobody else handles the signal: a trainer that ends its step first still needs its
    boxes, and reaches the end of the process by itself. Only from the main thread, since no other
    may set a handler: what is made there and starts boxes on threads calls this when it is made.
    In both cases the other layers remain.
    """
    if threading.current_thread() is not threading.main_thread():
        return False
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        return signal.getsignal(signal.SIGTERM) is _at_sigterm
    signal.signal(signal.SIGTERM, _at_sigterm)
    return True


def _at_sigterm(number: int, frame: FrameType | None) -> None:
    # On a thread, with a deadline: the main thread may hold any lock, since it was interrupted.
    ending = threading.Thread(target=end_all, daemon=True)
    ending.start()
    ending.join(GRACE_S)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)


def _forget_in_child() -> None:
    global _lock, _running, _swept
    _lock, _running, _swept = threading.Lock(), False, False
    _boxes.clear()
    _engines.clear()


os.register_at_fork(after_in_child=_forget_in_child)
