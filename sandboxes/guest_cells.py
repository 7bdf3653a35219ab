"""Inside the box: the guest's side of the kernels in which cells run."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import time

from turnwise.sandboxes.guest_children import READ_BYTES, Pipe, Ring, exit_code
from turnwise.sandboxes.guest_kernel import FROM_KERNEL, INLINE_BYTES, TO_KERNEL, kernel_main
from turnwise.sandboxes.guest_run import TICK_S, Call, NoRoom, fork, poller

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from turnwise.sandboxes.guest_run import Answer, Host

INTERRUPT_GRACE_S = 0.5


class Kernel:
    """The guest's handle on one kernel process.

    Raises:
        NoRoom: the box can hold no further process.
    """

    def __init__(self, host: Host) -> None:
        self.calls = 0
        self.control, child = socket.socketpair()
        self.out, self.err = Pipe(), Pipe()
        try:
            self.pid = fork()
        except NoRoom:
            child.close()
            self.close()
            raise
        if self.pid == 0:
            kernel_main(child.fileno(), self.out.child, self.err.child)
        child.close()
        self.out.close_child()
        self.err.close_child()
        self.poll = poller(host, self.control.fileno(), self.out.fd, self.err.fd)

    def send_some(self, view: memoryview) -> memoryview:
        """What is left of `view` after one send; a stopped kernel takes none, a dead one all."""
        if not view:
            return view
        try:
            return view[self.control.send(view, socket.MSG_DONTWAIT) :]
        except BlockingIOError:
            return view
        except OSError:
            return view[:0]

    def receive_some(self) -> bytes:
        """What the kernel sent; nothing if it hung up."""
        try:
            return self.control.recv(READ_BYTES, socket.MSG_DONTWAIT)
        except OSError:
            return b""

    def drain(self, ready: dict[int, int], call: Call) -> None:
        """Take over what was written to the pipes in `ready`."""
        for pipe, ring in ((self.out, call.out), (self.err, call.err)):
            if pipe.fd in ready and not pipe.drain(ring):
                self.poll.unregister(pipe.fd)

    def close(self) -> None:
        self.control.close()
        self.out.close()
        self.err.close()


class Kernels:
    """All kernels of a box, by name; one is started when a cell first names it."""

    def __init__(self, host: Host, limits: dict[str, Any], workdir: str) -> None:
        self.host, self.limits, self.workdir = host, limits, workdir
        self.running: dict[str, Kernel] = {}

    def pids(self, without: Kernel | None = None) -> list[int]:
        return [kernel.pid for kernel in self.running.values() if kernel is not without]

    def cell(self, header: dict[str, Any], code: bytes | bytearray) -> Answer:
        """Run `code` in its kernel."""
        call = Call(self.limits, self.workdir, header["timeout_s"])
        try:
            kernel = self.running.get(header["kernel"]) or self.start(header["kernel"])
        except NoRoom as error:
            call.note(str(error))
            return call.answer(126)
        result = None
        if self.host.children.ended[kernel.pid] is None:
            result = self.await_answer(kernel, code, call)
        else:
            call.note("the kernel had ended since its last cell; this cell did not run")
        if result is None:
            result, call.lost = self.end(header["kernel"], call), True
        elif call.why:
            self.host.children.sweep(self.pids(without=kernel), alone=[kernel.pid])
        return call.answer(result)

    def start(self, name: str) -> Kernel:
        kernel = self.running[name] = Kernel(self.host)
        self.host.children.watch(kernel.pid)
        for pipe in (kernel.out, kernel.err):
            self.host.poll.register(pipe.fd, select.POLLIN)
        return kernel

    def end(self, name: str, call: Call) -> int:
        """Kill a kernel and all it started; its exit code."""
        kernel = self.running.pop(name)
        self.host.children.sweep(self.pids())
        for pipe, ring in ((kernel.out, call.out), (kernel.err, call.err)):
            pipe.drain(ring)
            with contextlib.suppress(KeyError):
                self.host.poll.unregister(pipe.fd)
        kernel.close()
        return exit_code(self.host.children.ended.pop(kernel.pid))

    def discard(self, ready: dict[int, int]) -> None:
        """Throw away what background work writes between two cells, lest it block."""
        for kernel in self.running.values():
            for pipe in (kernel.out, kernel.err):
                if pipe.fd in ready and not pipe.drain(Ring(2)):
                    self.host.poll.unregister(pipe.fd)

    def await_answer(self, kernel: Kernel, code: bytes | bytearray, call: Call) -> int | None:
        """Hand over the code and drain the kernel until it answers; None if it must go."""
        kernel.calls = (kernel.calls + 1) & 0xFFFFFFFF
        to_send = memoryview(TO_KERNEL.pack(kernel.calls, len(code)) + code)
        reply, asked = b"", False
        while True:
            to_send = kernel.send_some(to_send)
            now = time.monotonic()
            if now >= call.limit if asked else call.overdue(now):
                if asked or call.why == "files":
                    return None
                os.killpg(kernel.pid, signal.SIGINT)  # what Ctrl-C would do
                asked, call.limit = True, now + INTERRUPT_GRACE_S
            wait = 0.001 if to_send else min(TICK_S, call.limit - now)
            ready = dict(kernel.poll.poll(wait * 1000 + 0.5))
            if kernel.control.fileno() in ready:
                part = kernel.receive_some()
                reply += part
                result = _take(kernel, reply, call) if part else -1
                if result is not None:
                    return None if result < 0 else result
            self.host.check(ready)
            if self.ended(kernel, ready):
                return None
            kernel.drain(ready, call)

    def ended(self, kernel: Kernel, ready: dict[int, int]) -> bool:
        children = self.host.children
        if children.wake in ready:
            children.reap()
        return children.ended[kernel.pid] is not None


def _take(kernel: Kernel, reply: bytes, call: Call) -> int | None:
    """The exit code once `reply` is whole, -1 if it is none of ours, None to read on."""
    if len(reply) < FROM_KERNEL.size:
        return None
    numbers: tuple[int, int, int, int] = FROM_KERNEL.unpack_from(reply)
    number, code, out, err = numbers
    if number != kernel.calls or code & ~0xFF or max(out, err) > 2 * INLINE_BYTES:
        return -1
    end = FROM_KERNEL.size + out
    if len(reply) < end + err:
        return None
    kernel.out.drain(call.out)
    kernel.err.drain(call.err)
    call.out.add(reply[FROM_KERNEL.size : end])
    call.err.add(reply[end : end + err])
    return code
