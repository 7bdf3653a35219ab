"""One box of this process for programs of ours that many environments ask: a site, a database.

Starting a box takes about a tenth of a second and a few MB; a call takes a fifth of a millisecond.
Where the agent only sends words to a program that we wrote, no episode can change what another
sees, and one box serves them all until the process ends. What runs code of the agent's opens its
own: `open_sandbox`.
"""

from __future__ import annotations

import os
import threading

from turnwise.sandboxes.base import Limits, NetPolicy, Sandbox
from turnwise.sandboxes.open import open_sandbox

SHARED_LIMITS = Limits(
    memory_mb=1024, pids=128, cpus=1.0, disk_mb=512, inodes=400_000, lifetime_s=30 * 86_400.0
)

_lock = threading.Lock()
_boxes: dict[tuple[str, str, Limits, str | None, NetPolicy], Sandbox] = {}


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


def _forget_in_child() -> None:
    # A forked child cannot speak over its parent's channel: it starts a box of its own.
    global _lock
    _lock = threading.Lock()
    _boxes.clear()


os.register_at_fork(after_in_child=_forget_in_child)
