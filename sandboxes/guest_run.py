"""Inside the box: what one call may use, and the running of programs."""

from __future__ import annotations

import errno
import os
import select
import socket
import time

from turnwise.sandboxes.guest_children import (
    READ_BYTES,
    Children,
    Pipe,
    Ring,
    exit_code,
    processes,
)
from turnwise.sandboxes.guest_kernel import become_user_code

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn, Protocol

    Answer = tuple[dict[str, Any], bytes]

    class Host(Protocol):
        """What a call needs of the guest."""

        channel: socket.socket
        children: Children
        poll: Any

        def check(self, ready: dict[int, int]) -> None:
            """End the box if the client has left or its lifetime is over."""


TICK_S = 0.05


class NoRoom(Exception):
    """The box is at a limit and can hold no further process."""


def fork() -> int:
    """As `os.fork`.

    Raises:
        NoRoom: the limit of processes or of memory is reached.
    """
    try:
        return os.fork()
    except OSError as error:
        raise NoRoom(f"no process could be started: {error.strerror}") from None


def poller(host: Host, *fds: int) -> Any:
    """A poll object for what every call must notice, and for `fds`."""
    poll = select.poll()
    for fd in (host.channel.fileno(), host.children.wake, *fds):
        poll.register(fd, select.POLLIN)
    return poll


class Call:
    """Output, clock and verdict of one call."""

    def __init__(self, limits: dict[str, Any], workdir: str, timeout_s: float) -> None:
        self.began = time.monotonic()
        self.limit = self.began + timeout_s
        self.out, self.err = Ring(limits["output_bytes"]), Ring(limits["output_bytes"])
        self.late = False
        """Whether it had to be ended at its deadline."""
        self.lost = False

    def overdue(self, now: float) -> bool:
        """Whether its deadline has passed; sets `late`."""
        self.late = self.late or now >= self.limit
        return self.late

    def note(self, text: str) -> None:
        """A line of ours at the end of standard error; room is made for it."""
        self.err.half += 400
        self.err.add(f"{text}\n".encode())

    def answer(self, code: int) -> Answer:
        out, err = self.out.bytes(), self.err.bytes()
        fields = {
            "exit": code,
            "out": len(out),
            "err": len(err),
            "timed_out": self.late,
            "truncated": self.out.dropped + self.err.dropped,
            "state_lost": self.lost,
            "wall_s": time.monotonic() - self.began,
        }
        return fields, out + err


class Programs:
    """Runs programs, each in a process of its own.

    Args:
        kernels: returns the pids whose trees outlive a program.
    """

    def __init__(
        self, host: Host, limits: dict[str, Any], workdir: str, kernels: Callable[[], list[int]]
    ) -> None:
        self.host, self.limits, self.workdir, self.kernels = host, limits, workdir, kernels

    def exec(self, header: dict[str, Any], stdin: bytes | bytearray) -> Answer:
        """Run one program to its end, then end everything that it left running."""
        call = Call(self.limits, self.workdir, header["timeout_s"])
        before = processes() if self.kernels() else {}
        pipes = [Pipe(), Pipe(), Pipe()]
        try:
            pid = fork()
            if pid == 0:
                self.become(header, pipes)
            self.host.children.watch(pid)
            self.attend(pid, call, pipes, memoryview(stdin))
            self.host.children.sweep(still_there(before))
            for pipe, ring in ((pipes[0], call.out), (pipes[1], call.err)):
                pipe.drain(ring)
            return call.answer(exit_code(self.host.children.ended.pop(pid)))
        except NoRoom as error:
            call.note(str(error))
            return call.answer(126)
        finally:
            for pipe in pipes:
                pipe.close()

    def become(self, header: dict[str, Any], pipes: list[Pipe]) -> NoReturn:
        """In the forked child: turn into the program."""
        out, err, feed = pipes
        code, what = 126, os.path.join(self.workdir, header["cwd"] or "")
        try:
            become_user_code(is_python=False)
            os.set_blocking(feed.fd, True)
            for fd, number in ((feed.fd, 0), (out.child, 1), (err.child, 2)):
                os.dup2(fd, number)
            os.chdir(what)
            os.environ.update(header["env"])
            code, what = 127, header["argv"][0]
            os.execvp(what, header["argv"])
        except OSError as error:
            code = 127 if code == 127 and error.errno in (errno.ENOENT, errno.ENOTDIR) else 126
            os.write(2, f"{what}: {error.strerror}\n".encode())
        except BaseException as error:
            os.write(2, f"{error!r}\n".encode())
        finally:
            os._exit(code)

    def attend(self, pid: int, call: Call, pipes: list[Pipe], stdin: memoryview) -> None:
        """Feed and drain a program until it ends, or until `call` is overdue."""
        children = self.host.children
        out, err, feed = pipes
        poll = poller(self.host, out.fd, err.fd)
        out.close_child()
        err.close_child()
        os.set_blocking(feed.child, False)
        poll.register(feed.child, select.POLLOUT)
        while children.ended[pid] is None:
            now = time.monotonic()
            if call.overdue(now):
                return
            ready = dict(poll.poll(min(TICK_S, call.limit - now) * 1000 + 1))
            self.host.check(ready)
            if children.wake in ready:
                children.reap()
            for pipe, ring in ((out, call.out), (err, call.err)):
                if pipe.fd in ready and not pipe.drain(ring):
                    poll.unregister(pipe.fd)
            if feed.child in ready:
                stdin = _feed(feed, stdin, poll)


def still_there(before: dict[int, tuple[int, int]]) -> list[int]:
    """Those of `before` that still run, not those whose pid was given to another process."""
    now = processes() if before else {}
    return [pid for pid, seen in before.items() if pid in now and now[pid][1] == seen[1]]


def _feed(feed: Pipe, stdin: memoryview, poll: Any) -> memoryview:
    """What is left of `stdin` after one write; the pipe is closed at its end."""
    try:
        stdin = stdin[os.write(feed.child, stdin[:READ_BYTES]) :] if stdin else stdin
    except BlockingIOError:
        return stdin
    except OSError:  # the program does not read it
        stdin = stdin[:0]
    if not stdin:
        poll.unregister(feed.child)
        feed.close_child()
    return stdin
