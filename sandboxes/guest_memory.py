"""Inside the box: how the guest outlives that the memory of the box runs out.

The kernel then ends the process that holds the most, and the agent's go before the guest. But page
tables come back only a moment after the process that held them has gone. Whoever asks for a page
in that moment makes the kernel choose again, and there may be none left but the guest. So it has
all the pages it needs beforehand, and asks for none until the moment is over.
"""

from __future__ import annotations

import ctypes
import os
import time

from turnwise.sandboxes.guest_kernel import LIBC

COMES_BACK_S = 0.5
"""After the end of a process, until what the kernel held for it has surely come back."""
POPULATE_WRITE = 23
"""The advice to `madvise` that makes the pages of a mapping be there and be our own; Linux 5.14."""


def part_from_children() -> None:
    """Copy now the pages that we share with forked children, not when we next write to them."""
    with open("/proc/self/maps", "rb") as file:
        mappings = [line.split(b" ", 2)[:2] for line in file]
    for where, rights in mappings:
        if rights == b"rw-p":
            start, end = (int(at, 16) for at in where.split(b"-"))
            size = ctypes.c_size_t(end - start)
            LIBC.madvise(ctypes.c_void_p(start), size, POPULATE_WRITE)  # refused before Linux 5.14


class Shortage:
    """Knows whether the kernel ended a process of the box for want of memory."""

    def __init__(self) -> None:
        self.events = -1
        self.seen = 0

    def watch(self, events: int) -> None:
        """Go by the counter in the file `events`, as the cgroup of the box keeps it."""
        self.events = events
        self.seen = self.count()

    def count(self) -> int:
        """How many processes of the box were ended so."""
        try:
            lines = os.pread(self.events, 512, 0).splitlines()
        except OSError:  # there is no such file here
            return 0
        return sum(int(line[9:]) for line in lines if line.startswith(b"oom_kill "))

    def wait_over(self) -> None:
        """Lie still if there was one since we last looked."""
        count = self.count() if self.events >= 0 else 0
        if count != self.seen:
            self.seen = count
            time.sleep(COMES_BACK_S)
