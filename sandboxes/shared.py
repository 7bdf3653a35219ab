"""One box of this process, shared by many environments whose tools are fixed functions.

Starting a box takes about a tenth of a second and a few MB; a call takes a twentieth of a
millisecond. Environments that run *no code of the agent* may therefore share one box, each in a
folder of its own. An environment that runs agent code opens its own box: `open_sandbox`.
"""

from __future__ import annotations

import itertools
import os
import threading
from dataclasses import dataclass, field
from typing import Any

from turnwise.sandboxes.base import Limits, NetPolicy, Sandbox, SandboxError
from turnwise.sandboxes.open import open_sandbox

SHARED_LIMITS = Limits(
    memory_mb=1024, pids=128, cpus=1.0, disk_mb=512, inodes=400_000, lifetime_s=30 * 86_400.0
)

_lock = threading.Lock()
_boxes: dict[tuple[str, str, Limits, str | None, NetPolicy], Sandbox] = {}
_counter = itertools.count()


@dataclass
class Lease:
    """A private folder in a shared box. Close it to give its files back."""

    box: Sandbox
    path: str
    """Absolute, inside the box; exists and is empty when the lease starts."""
    _closed: bool = field(default=False, repr=False)

    def close(self) -> None:
        """Remove the folder. Safe to call twice; never raises."""
        if self._closed:
            return
        self._closed = True
        try:
            self.box.cell(f"__import__('shutil').rmtree({self.path!r}, ignore_errors=True)")
        except (SandboxError, OSError):
            return  # its box is gone, and its files with it

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def shared_sandbox(
    key: str = "turnwise",
    *,
    backend: str = "auto",
    limits: Limits = SHARED_LIMITS,
    image: str | None = None,
    net: NetPolicy | None = None,
) -> Sandbox:
    """The box of this process for these arguments; a fresh one when it has died.

    Whoever held the dead one gets `SandboxDied` from its next call, since its files are lost.

    Raises:
        NoSafeSandbox: nothing on this machine isolates.
        StartFailed: it could not be started.
    """
    asked = key, backend, limits, image, net or NetPolicy()
    with _lock:
        box = _boxes.get(asked)
        if box is None or not getattr(box, "alive", True):
            box = open_sandbox(backend, limits=limits, image=image, net=net)
            _boxes[asked] = box
        return box


def lease_workspace(key: str = "turnwise", **how: Any) -> Lease:
    """A private, empty folder in the shared box `key`.

    Args:
        key, how: as `shared_sandbox`.

    Raises:
        NoSafeSandbox, StartFailed: as `shared_sandbox`.
        SandboxDied: the box went away at this very moment; try again.
    """
    box = shared_sandbox(key, **how)
    path = f"/workspace/{key}-{next(_counter)}"
    made = box.cell(f"__import__('os').makedirs({path!r})")
    if made.exit_code:
        raise SandboxError(f"the workspace {path} could not be made: {made.text.strip()[-300:]}")
    return Lease(box, path)


def _forget_in_child() -> None:
    # A forked child cannot speak over its parent's channel: it starts a box of its own.
    global _lock
    _lock = threading.Lock()
    _boxes.clear()


os.register_at_fork(after_in_child=_forget_in_child)
