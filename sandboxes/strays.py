"""Boxes of bubblewrap as their command lines tell of them, and the end of those without an owner.

A box ends with its owner by itself: bwrap dies with its parent, and the guest when its channel
closes. Neither holds before both are set up, and who is killed just then leaves a bwrap that waits
for ever. So each command line names the owner, and a sweep ends what a dead one has left.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from turnwise.sandboxes import owner

OWNER_VARIABLE = "TURNWISE_OWNER"
_GUEST = b"from turnwise.sandboxes.guest import main"


@dataclass(frozen=True, slots=True)
class SeenBox:
    """A bwrap of ours, of this user or, for root, of any."""

    pid: int
    token: str
    owner: str
    argv: bytes

    @property
    def id(self) -> str:
        """As `Sandbox.id`."""
        return f"bwrap-{self.token[:8]}"


def signature(owner: str) -> list[str]:
    """Arguments of bwrap that name the owner to whoever sees its command line, not to the box."""
    return ["--setenv", OWNER_VARIABLE, owner, "--unsetenv", OWNER_VARIABLE]


def seen_boxes() -> Iterator[SeenBox]:
    """Every bwrap that bears our signature; one that is starting may be there twice."""
    for name in os.listdir("/proc"):
        if name.isdigit() and (box := _seen(int(name))):
            yield box


def _seen(pid: int) -> SeenBox | None:
    with contextlib.suppress(OSError, IndexError, ValueError):
        argv = Path(f"/proc/{pid}/cmdline").read_bytes()
        words = argv.split(b"\0")
        if words[0].endswith(b"bwrap") and any(_GUEST in word for word in words):
            who = words[words.index(OWNER_VARIABLE.encode()) + 1].decode()
            return SeenBox(pid, words[-3].decode(), who, argv)
    return None


def sweep_boxes() -> tuple[str, ...]:
    """End the boxes whose owners provably ended on this very machine; their ids."""
    return tuple(sorted({box.id for box in seen_boxes() if _is_stray(box) and _end(box)}))


def _is_stray(box: SeenBox) -> bool:
    with contextlib.suppress(ValueError):  # an owner that we did not write
        return not owner.is_alive(box.owner)
    return False


def _end(box: SeenBox) -> bool:
    """Kill this process and no other that was given its number meanwhile."""
    with contextlib.suppress(OSError):
        process = os.pidfd_open(box.pid)
        try:
            if Path(f"/proc/{box.pid}/cmdline").read_bytes() == box.argv:
                signal.pidfd_send_signal(process, signal.SIGKILL)
                return True
        finally:
            os.close(process)
    return False
