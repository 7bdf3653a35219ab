"""Processes of a plain box. Only a group whose leader was started here is ever signalled."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from turnwise.sandboxes.base import ExecResult
from turnwise.sandboxes.unsafe_runner import EXIT, LENGTH

READ_BYTES = 1 << 16
TICK_S, GRACE_S = 0.02, 0.5


class Kept:
    """The head and the tail of a stream; what lies between is counted and dropped."""

    def __init__(self, limit: int) -> None:
        self.half = max(1, limit // 2)
        self.head, self.tail = bytearray(), bytearray()
        self.dropped = 0

    def add(self, data: bytes) -> None:
        """Take over the next piece."""
        room = max(0, self.half - len(self.head))
        self.head += data[:room]
        self.tail += data[room:]
        extra = len(self.tail) - self.half
        if extra > 0:
            del self.tail[:extra]
            self.dropped += extra

    def bytes(self) -> bytes:
        """What was kept, with a line that says what was not."""
        if not self.dropped:
            return bytes(self.head + self.tail)
        return b"%s\n... %d bytes dropped ...\n%s" % (self.head, self.dropped, self.tail)


class Group:
    """A process that this one started as the leader of a process group of its own.

    The group's number is the leader's pid, which the kernel gives to nobody else until the leader
    has been waited for. So a signal is sent only before that, under the lock that guards it.

    Raises:
        OSError: it could not be started.
    """

    def __init__(
        self,
        argv: Sequence[str],
        cwd: str,
        env: Mapping[str, str],
        groups: set[Group],
        fds: Sequence[int] = (),
    ) -> None:
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL if fds else pipe,
            stdout=pipe,
            stderr=pipe,
            cwd=cwd,
            env=dict(env),
            pass_fds=fds,
            start_new_session=True,
            bufsize=0,
        )
        self._lock, self._groups = threading.Lock(), groups
        groups.add(self)

    def has_ended(self) -> bool:
        """Whether the leader has; it is not waited for."""
        with self._lock:
            if self.process.returncode is not None:
                return True
            how = os.WEXITED | os.WNOHANG | os.WNOWAIT
            with contextlib.suppress(ChildProcessError):  # where SIGCHLD is ignored
                return os.waitid(os.P_PID, self.process.pid, how) is not None
            return True

    def interrupt(self) -> None:
        """What Ctrl-C would do."""
        with self._lock:
            self._signal(signal.SIGINT)

    def kill(self) -> None:
        """As `end`, but leave the waiting and the closing to whoever reads its output."""
        with self._lock:
            self._signal(signal.SIGKILL)

    def end(self) -> int:
        """Kill the group and wait for its leader; the leader's exit code. Safe to call twice."""
        with self._lock:
            self._signal(signal.SIGKILL)
            code = self.process.wait()
            for file in (self.process.stdin, self.process.stdout, self.process.stderr):
                if file is not None:
                    file.close()
            self._groups.discard(self)
        return code if code >= 0 else 128 - code

    def _signal(self, number: int) -> None:
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, number)


class Pump:
    """Moves what a group writes into two rings, and waits for other descriptors meanwhile."""

    def __init__(self, group: Group, limit: int) -> None:
        self.kept = [Kept(limit), Kept(limit)]
        self.poll = select.poll()
        self.open: dict[int, Kept] = {}
        for file, kept in zip((group.process.stdout, group.process.stderr), self.kept, strict=True):
            assert file is not None
            os.set_blocking(file.fileno(), False)
            self.poll.register(file.fileno(), select.POLLIN)
            self.open[file.fileno()] = kept

    def step(self, wait_s: float) -> dict[int, int]:
        """Wait until something can be moved, move it, and say what else is ready."""
        ready = dict(self.poll.poll(max(wait_s, 0.0) * 1000))
        for fd in list(self.open):
            if fd in ready and not self._drain(fd):
                self.poll.unregister(fd)
                del self.open[fd]
        return ready

    def _drain(self, fd: int) -> bool:
        """Read what is there, 2 MiB at most; False once every writer is gone."""
        try:
            for _ in range(32):
                data = os.read(fd, READ_BYTES)
                if not data:
                    return False
                self.open[fd].add(data)
        except BlockingIOError:
            return True
        except OSError:  # `close` from another thread
            return False
        return True

    def result(self, code: int, began: float, *, late: bool, lost: bool = False) -> ExecResult:
        """What the call did."""
        return ExecResult(
            exit_code=code,
            stdout=self.kept[0].bytes(),
            stderr=self.kept[1].bytes(),
            timed_out=late,
            truncated=sum(kept.dropped for kept in self.kept),
            state_lost=lost,
            wall_s=time.monotonic() - began,
        )


def run_program(
    argv: list[str],
    stdin: bytes,
    cwd: str,
    env: Mapping[str, str],
    timeout_s: float,
    limit: int,
    groups: set[Group],
) -> ExecResult:
    """Run a program to its end or its deadline, then end its process group."""
    began = time.monotonic()
    if not os.path.isdir(cwd):
        return ExecResult(126, stderr=f"{cwd}: no such folder\n".encode())
    try:
        if "/" not in argv[0] and shutil.which(argv[0], path=env["PATH"]) is None:
            raise FileNotFoundError("no such program")
        group = Group(argv, cwd, env, groups)
    except (OSError, ValueError) as error:
        missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        text = f"{argv[0]}: {error}\n".encode("utf-8", "backslashreplace")
        return ExecResult(127 if missing else 126, stderr=text)
    try:
        pump = Pump(group, limit)
        late = _attend(group, pump, memoryview(stdin), began + timeout_s)
        pump.step(0.0)
    finally:
        code = group.end()
    return pump.result(137 if late else code, began, late=late)


def _attend(group: Group, pump: Pump, stdin: memoryview, limit: float) -> bool:
    """Feed and drain until the leader ends; True where it had not by `limit`."""
    assert group.process.stdin is not None
    feed = group.process.stdin.fileno()
    os.set_blocking(feed, False)
    pump.poll.register(feed, select.POLLOUT)
    feeding = True
    while not group.has_ended():
        now = time.monotonic()
        if now >= limit:
            return True
        ready = pump.step(min(TICK_S if pump.open or feeding else 0.001, limit - now))
        if feeding and feed in ready:
            stdin = _feed(feed, stdin)
            if not stdin:
                pump.poll.unregister(feed)
                group.process.stdin.close()
                feeding = False
    return False


def _feed(feed: int, stdin: memoryview) -> memoryview:
    try:
        return stdin[os.write(feed, stdin[:READ_BYTES]) :]
    except BlockingIOError:
        return stdin
    except OSError:  # the program does not read it
        return stdin[:0]


class Runner:
    """A Python process that keeps the variables of its cells."""

    def __init__(self, python: str, cwd: str, env: Mapping[str, str], groups: set[Group]) -> None:
        self.control, child = socket.socketpair()
        program = str(Path(__file__).with_name("unsafe_runner.py"))
        argv = [python, "-I", "-B", program, str(child.fileno())]
        try:
            self.group = Group(argv, cwd, env, groups, fds=[child.fileno()])
        finally:
            child.close()

    def cell(self, code: str, timeout_s: float, limit: int) -> ExecResult:
        """Run `code`; `state_lost` says that this runner is no more."""
        try:
            return self._cell(code, timeout_s, limit)
        except BaseException:  # interrupted: its reply must not be taken for the next one's
            self.group.end()
            self.control.close()
            raise

    def _cell(self, code: str, timeout_s: float, limit: int) -> ExecResult:
        began = time.monotonic()
        before, pump = Pump(self.group, limit), Pump(self.group, limit)
        before.step(0.0)  # background work wrote this since the last cell
        if self.group.has_ended():
            pump.kept[1].add(b"the kernel had ended since its last cell; this cell did not run\n")
            return self._lost(pump, began, late=False)
        body = code.encode("utf-8", "surrogatepass")
        self.control.settimeout(timeout_s)
        with contextlib.suppress(OSError):
            self.control.sendall(LENGTH.pack(len(body)) + body)
        pump.poll.register(self.control, select.POLLIN)
        reply, late = self._reply(pump, began + timeout_s)
        if len(reply) != EXIT.size or EXIT.unpack(reply)[0] & ~0xFF:
            return self._lost(pump, began, late=late)
        pump.step(0.0)
        return pump.result(EXIT.unpack(reply)[0], began, late=late)

    def _reply(self, pump: Pump, limit: float) -> tuple[bytes, bool]:
        """(what the runner answered, whether it had to be interrupted)."""
        late = False
        while True:
            now = time.monotonic()
            if now >= limit:
                if late:
                    return b"", late
                self.group.interrupt()
                late, limit = True, now + GRACE_S
            ready = pump.step(min(TICK_S, limit - now))
            if self.control.fileno() in ready:
                with contextlib.suppress(OSError):
                    return self.control.recv(EXIT.size + 1), late
                return b"", late
            if self.group.has_ended():
                return b"", late

    def _lost(self, pump: Pump, began: float, *, late: bool) -> ExecResult:
        pump.step(0.0)
        code = self.group.end()
        self.control.close()
        return pump.result(code, began, late=late, lost=True)
