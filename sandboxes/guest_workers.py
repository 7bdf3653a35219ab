"""Inside the box: processes that keep their state between calls, whatever language they speak."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time

from turnwise.sandboxes.guest_children import READ_BYTES, Pipe, Ring, exit_code
from turnwise.sandboxes.guest_run import TICK_S, Call, poller

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from turnwise.sandboxes.guest_run import Host

INTERRUPT_GRACE_S = 0.5


class Worker:
    """The guest's handle on one such process.

    Args:
        inlet: descriptor on which it takes requests; ours, closed with the worker.
        outlet: descriptor on which it answers; may be `inlet`. Nothing on it is believed.
    """

    kind = "worker"
    may_outlive_its_channel = False
    """Whether it may go on without `outlet`, as a shell does that a program took the place of."""

    def __init__(self, host: Host, inlet: int, outlet: int) -> None:
        self.inlet, self.outlet = inlet, outlet
        self.calls = 0
        self.pid = 0
        self.out, self.err = Pipe(), Pipe()
        for fd in (inlet, outlet):
            os.set_blocking(fd, False)
        self.poll = poller(host, outlet, self.out.fd, self.err.fd)

    def request(self, body: bytes | bytearray) -> bytes:
        """The next call as it goes to the process."""
        raise NotImplementedError

    def after_interrupt(self) -> bytes:
        """What it needs to hear once more when an interrupt made it forget what it had read."""
        return b""

    def take(self, reply: bytes, call: Call) -> int | None:
        """The exit code once `reply` is whole, -1 if it is none of ours, None to read on."""
        raise NotImplementedError

    def send_some(self, view: memoryview) -> memoryview:
        """What is left of `view` after one write; a stopped process takes none, a dead one all."""
        if not view:
            return view
        try:
            return view[os.write(self.inlet, view) :]
        except BlockingIOError:
            return view
        except OSError:
            return view[:0]

    def receive_some(self) -> bytes:
        """What the process sent; nothing if it hung up."""
        try:
            return os.read(self.outlet, READ_BYTES)
        except OSError:
            return b""

    def drain(self, ready: dict[int, int], call: Call) -> None:
        """Take over what was written to the pipes in `ready`."""
        for pipe, ring in ((self.out, call.out), (self.err, call.err)):
            if pipe.fd in ready and not pipe.drain(ring):
                self.poll.unregister(pipe.fd)

    def close(self) -> None:
        for fd in {self.inlet, self.outlet}:
            os.close(fd)
        self.out.close()
        self.err.close()


class Workers:
    """All of them in one box, by kind and name."""

    def __init__(self, host: Host, limits: dict[str, Any], workdir: str) -> None:
        self.host, self.limits, self.workdir = host, limits, workdir
        self.running: dict[tuple[str, str], Worker] = {}

    def pids(self, without: Worker | None = None) -> list[int]:
        """The processes whose trees every sweep must spare."""
        return [worker.pid for worker in self.running.values() if worker is not without]

    def call(self, header: dict[str, Any]) -> Call:
        """The books of a call that begins now."""
        return Call(self.limits, self.workdir, header["timeout_s"])

    def adopt(self, name: str, worker: Worker) -> None:
        """Look after a process that has just been started."""
        self.running[worker.kind, name] = worker
        self.host.children.watch(worker.pid)
        for pipe in (worker.out, worker.err):
            self.host.poll.register(pipe.fd, select.POLLIN)

    def is_running(self, worker: Worker) -> bool:
        return self.host.children.ended[worker.pid] is None

    def end(self, name: str, worker: Worker, call: Call) -> int:
        """Kill a worker and all it started; its exit code. What it wrote last goes to `call`."""
        if self.running.get((worker.kind, name)) is worker:
            del self.running[worker.kind, name]
        self.host.children.sweep(self.pids())
        for pipe, ring in ((worker.out, call.out), (worker.err, call.err)):
            pipe.drain(ring)
            with contextlib.suppress(KeyError):
                self.host.poll.unregister(pipe.fd)
        worker.close()
        return exit_code(self.host.children.ended.pop(worker.pid))

    def discard(self, ready: dict[int, int]) -> None:
        """Throw away what background work writes between two calls, lest it block."""
        for worker in self.running.values():
            for pipe in (worker.out, worker.err):
                if pipe.fd in ready and not pipe.drain(Ring(2)):
                    self.host.poll.unregister(pipe.fd)

    def await_answer(self, worker: Worker, request: bytes, call: Call) -> int | None:
        """Hand over the request and drain the worker until it answers; None if it must go."""
        to_send = memoryview(request)
        reply, asked = b"", False
        while True:
            to_send = worker.send_some(to_send)
            now = time.monotonic()
            if now >= call.limit if asked else call.overdue(now):
                if asked:
                    return None
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(worker.pid, signal.SIGINT)  # what Ctrl-C would do
                to_send = memoryview(bytes(to_send) + worker.after_interrupt())
                asked, call.limit = True, now + INTERRUPT_GRACE_S
            wait = 0.001 if to_send else min(TICK_S, call.limit - now)
            ready = dict(worker.poll.poll(max(wait, 0) * 1000 + 0.5))
            if worker.outlet in ready:
                part = worker.receive_some()
                reply += part
                result = worker.take(reply, call) if part else self.hung_up(worker)
                if result is not None:
                    return None if result < 0 else result
            self.host.check(ready)
            if self.has_ended(worker, ready):
                return None
            worker.drain(ready, call)

    def hung_up(self, worker: Worker) -> int | None:
        if not worker.may_outlive_its_channel:
            self.host.children.await_end(TICK_S)
            return -1
        worker.poll.unregister(worker.outlet)
        return None

    def has_ended(self, worker: Worker, ready: dict[int, int]) -> bool:
        if self.host.children.wake in ready:
            self.host.children.reap()
        return not self.is_running(worker)
