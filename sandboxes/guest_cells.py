"""Inside the box: the guest's side of the kernels in which cells run, and their forks."""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import time

from turnwise.sandboxes.guest_children import processes
from turnwise.sandboxes.guest_kernel import (
    BORN,
    FORK,
    FROM_KERNEL,
    INLINE_BYTES,
    TO_KERNEL,
    kernel_main,
)
from turnwise.sandboxes.guest_memory import part_from_children
from turnwise.sandboxes.guest_run import TICK_S, Call, NoRoom, fork
from turnwise.sandboxes.guest_workers import Worker, Workers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from turnwise.sandboxes.guest_run import Answer, Host

_CREDENTIALS = struct.Struct("@3i")  # pid, uid, gid


class Kernel(Worker):
    """A Python process that keeps its variables; there is none before `start` or a fork."""

    kind = "kernel"

    def __init__(self, host: Host) -> None:
        self.control, self.child = socket.socketpair()
        super().__init__(host, self.control.fileno(), self.control.fileno())

    def start(self) -> Kernel:
        """Fork the process off the guest.

        Raises:
            NoRoom: the box can hold no further process; the kernel is closed.
        """
        try:
            self.pid = fork()
        except NoRoom:
            self.close()
            raise
        if self.pid == 0:
            kernel_main(self.child.fileno(), self.out.child, self.err.child)
        self.close_child()
        part_from_children()
        return self

    def request(self, body: bytes | bytearray) -> bytes:
        return self.next_call(len(body)) + body

    def next_call(self, length: int) -> bytes:
        self.calls = (self.calls + 1) & 0xFFFFFFFF
        return TO_KERNEL.pack(self.calls, length)

    def ask_for_fork(self, fresh: Kernel) -> None:
        """Ask the process to fork, and give it the ends that the other one is to use."""
        fds = struct.pack("3i", fresh.child.fileno(), fresh.out.child, fresh.err.child)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)]
        with contextlib.suppress(OSError):  # it is dead or stopped: no answer will come
            self.control.sendmsg([self.next_call(FORK)], rights)

    def take(self, reply: bytes, call: Call) -> int | None:
        if len(reply) < FROM_KERNEL.size:
            return None
        numbers: tuple[int, int, int, int] = FROM_KERNEL.unpack_from(reply)
        number, code, out, err = numbers
        if number != self.calls or code & ~0xFF or max(out, err) > 2 * INLINE_BYTES:
            return -1
        end = FROM_KERNEL.size + out
        if len(reply) < end + err:
            return None
        self.out.drain(call.out)
        self.err.drain(call.err)
        call.out.add(reply[FROM_KERNEL.size : end])
        call.err.add(reply[end : end + err])
        return code

    def born(self) -> int:
        """The pid of the forked process, by the word of the operating system; 0 if it is none."""
        try:
            said, notes, *_ = self.control.recvmsg(1, socket.CMSG_SPACE(_CREDENTIALS.size))
        except OSError:
            return 0
        for level, kind, data in notes:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS) and said == BORN:
                pid: int = _CREDENTIALS.unpack(data)[0]
                return pid
        return 0

    def close_child(self) -> None:
        self.child.close()
        self.out.close_child()
        self.err.close_child()

    def close(self) -> None:
        self.child.close()
        super().close()
        self.control.detach()


class Kernels:
    """Runs cells, each in the kernel that it names; a kernel is started when first named."""

    def __init__(self, workers: Workers) -> None:
        self.workers = workers

    def cell(self, header: dict[str, Any], code: bytes | bytearray) -> Answer:
        """Run `code` in its kernel."""
        workers, name = self.workers, header["kernel"]
        call = workers.call(header)
        try:
            kernel = self.kernel(name)
        except NoRoom as error:
            call.note(str(error))
            return call.answer(126)
        result = None
        if workers.is_running(kernel):
            result = workers.await_answer(kernel, kernel.request(code), call)
        else:
            call.note("the kernel had ended since its last cell; this cell did not run")
        if result is None:
            result, call.lost = workers.end(name, kernel, call), True
        elif call.late:
            workers.host.children.sweep(workers.pids(without=kernel), alone=[kernel.pid])
        return call.answer(result)

    def kernel(self, name: str) -> Kernel:
        """The running kernel `name`, started if there is none."""
        found = self.workers.running.get((Kernel.kind, name))
        if found is None:
            found = Kernel(self.workers.host).start()
            self.workers.adopt(name, found)
        assert isinstance(found, Kernel)
        return found

    def fork(self, header: dict[str, Any], body: bytes | bytearray) -> Answer:
        """Copy kernel `kernel` to `into`; what ran under that name before is ended.

        Raises:
            OSError: there is no room for it, or the kernel had ended, or it does not answer.
        """
        workers, name, into = self.workers, header["kernel"], header["into"]
        call = workers.call(header)
        try:
            kernel = self.kernel(name)
        except NoRoom as error:
            raise OSError(errno.EAGAIN, str(error)) from None
        fresh = Kernel(workers.host)
        try:
            self.copy(name, kernel, fresh, call)
        except BaseException:
            fresh.close()
            workers.host.children.sweep(workers.pids())  # it may have come half of the way
            raise
        before = workers.running.get((Kernel.kind, into))
        workers.adopt(into, fresh)
        if before is not None:
            workers.end(into, before, call)
        return {}, b""

    def copy(self, name: str, kernel: Kernel, fresh: Kernel, call: Call) -> None:
        """Fork `kernel`'s process into `fresh`."""
        workers = self.workers
        # So that the other process cannot lie about its pid: the kernel adds it to what it says.
        fresh.control.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        kernel.ask_for_fork(fresh)
        code = workers.await_answer(kernel, b"", call)
        fresh.close_child()
        if code is None:
            workers.end(name, kernel, call)
            raise OSError(errno.ESRCH, f"kernel {name!r} had ended or did not answer; it is gone")
        if code or call.late:
            raise OSError(errno.EAGAIN, f"kernel {name!r} could not fork: the box is at a limit")
        fresh.pid = self.await_birth(fresh, call)
        fresh.control.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 0)

    def await_birth(self, fresh: Kernel, call: Call) -> int:
        """The pid of the process that answers on `fresh`: a child of ours, and no kernel yet."""
        host = self.workers.host
        while (now := time.monotonic()) < call.limit:
            ready = dict(fresh.poll.poll(min(TICK_S, call.limit - now) * 1000 + 1))
            host.check(ready)
            if host.children.wake in ready:
                host.children.reap()
            fresh.drain(ready, call)
            if fresh.outlet in ready:
                pid = fresh.born()
                if processes().get(pid, (0, 0))[0] == 1 and pid not in host.children.ended:
                    return pid
                break
        raise OSError(errno.ECHILD, "the forked kernel did not come to life")
