"""Inside the box: child processes and their output; `Children.sweep` is behind a proof."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time

from turnwise.sandboxes.guest_memory import COMES_BACK_S, Shortage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

READ_BYTES = 1 << 16


class Refused(Exception):
    """The proof that this process owns its PID namespace failed."""


class Ring:
    """The head and the tail of a stream; what lies between is counted and dropped."""

    def __init__(self, limit: int) -> None:
        self.half = max(1, limit // 2)
        self.head, self.tail = bytearray(), bytearray()
        self.dropped = 0

    def add(self, data: bytes) -> None:
        room = self.half - len(self.head)
        if room > 0:
            self.head += data[:room]
            data = data[room:]
        self.tail += data
        extra = len(self.tail) - self.half
        if extra > 0:
            del self.tail[:extra]
            self.dropped += extra

    def bytes(self) -> bytes:
        if not self.dropped:
            return bytes(self.head + self.tail)
        return b"%s\n... %d bytes dropped ...\n%s" % (self.head, self.dropped, self.tail)


class Pipe:
    """A pipe whose reading end is ours and non-blocking; `child` is the other end."""

    def __init__(self) -> None:
        self.fd, self.child = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self.fd, False)

    def drain(self, ring: Ring) -> bool:
        """Read what is there, 2 MiB at most; False once every writer is gone."""
        for _ in range(32):  # a writer as fast as this loop must not outlast the deadline
            try:
                data = os.read(self.fd, READ_BYTES)
            except BlockingIOError:
                return True
            if not data:
                return False
            ring.add(data)
        return True

    def close_child(self) -> None:
        """Close the end that belongs to the child."""
        if self.child >= 0:
            os.close(self.child)
        self.child = -1

    def close(self) -> None:
        self.close_child()
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1


def processes() -> dict[int, tuple[int, int]]:
    """{pid: (parent, start time)} of every live process in this namespace but PID 1."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and name != "1":
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    fields = file.read().rsplit(b")", 1)[1].split()
            except OSError:
                continue
            if fields[0] not in (b"Z", b"X"):
                found[int(name)] = (int(fields[1]), int(fields[19]))
    return found


def descendants(roots: Iterable[int], table: dict[int, tuple[int, int]]) -> set[int]:
    """`roots` and every process of `table` below them."""
    found = set(roots)
    while True:
        below = {pid for pid, (parent, _) in table.items() if parent in found}
        if below <= found:
            return found
        found |= below


def exit_code(status: int | None) -> int:
    """What a shell would report for a wait status."""
    if status is None:
        return 128 + signal.SIGKILL
    return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


class Children:
    """All processes of a namespace that is ours.

    Args:
        prove: raises `Refused` unless the namespace is ours; called here and before each sweep.
    """

    def __init__(self, prove: Callable[[], None]) -> None:
        prove()
        self.prove = prove
        self.sweeping = False
        self.shortage = Shortage()
        self.spared: set[int] = set()
        """Processes of the guest's own, which every sweep leaves alone."""
        self.ended: dict[int, int | None] = {}
        """Wait status of each watched child; None while it runs."""
        self.wake, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def watch(self, pid: int) -> None:
        self.ended[pid] = None

    def reap(self) -> None:
        """Bury ended children; the status of the watched is kept."""
        self.shortage.wait_over()
        with contextlib.suppress(BlockingIOError):
            os.read(self.wake, READ_BYTES)
        killed = False
        with contextlib.suppress(ChildProcessError):
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                pid, status = found
                if pid in self.ended:
                    self.ended[pid] = status
                    killed = killed or status == signal.SIGKILL
        if killed and not self.sweeping and self.shortage.events < 0:
            time.sleep(COMES_BACK_S)  # not by us, so perhaps for want of memory; once for all

    def await_end(self, timeout_s: float) -> None:
        """Bury what ends within `timeout_s`, before a sweep ends it and none knows why it did."""
        select.select([self.wake], [], [], timeout_s)
        self.reap()

    def sweep(self, trees: Iterable[int] = (), alone: Iterable[int] = ()) -> None:
        """End every process of the namespace but `trees`, all below them, and `alone`.

        All are stopped first, in one system call, so that none can fork its way out between the
        listing and the kill. The proof is taken again: this is the most dangerous line we have.
        """
        trees, alone = list(trees), {*alone, *self.spared}
        limit, keep = time.monotonic() + 2.0, set(alone)
        self.prove()
        self.sweeping = True
        try:
            while time.monotonic() < limit and self._signal_all(bool(trees or alone)):
                table = processes()
                keep = alone | (descendants(trees, table) if trees else set())
                doomed = set(table) - keep
                if not doomed:
                    return
                for pid in doomed:
                    self.signal(pid, signal.SIGKILL)
                select.select([self.wake], [], [], 0.002)
                self.reap()
        finally:
            for pid in keep:
                self.signal(pid, signal.SIGCONT)
            self.reap()
            self.sweeping = False

    def _signal_all(self, spare: bool) -> bool:
        try:
            os.kill(-1, signal.SIGSTOP if spare else signal.SIGKILL)
        except ProcessLookupError:
            return False
        return True

    def signal(self, pid: int, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
