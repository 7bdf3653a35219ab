"""The server inside a box: PID 1, standard library only, Python 3.8 or later.

It never runs user code itself. A `cell` runs in a forked Python kernel that keeps its variables;
an `exec` runs in a fresh process. It answers one request at a time over one inherited socket, and
it ends when that socket closes: the end of PID 1 is the end of everything in its namespace, so a
killed host leaves nothing behind.

A supervisor that may end every process it sees must first prove that it only sees its own. This
one refuses to start unless it is PID 1 *and* the marker file that the host wrote into this very
box holds the token of this very start *and* /proc agrees. There is no switch to skip that.

    frame    >II header length, body length | header, a JSON object | body, bytes
    hello    {limits, env, workdir}                  -> {python}
    cell     {kernel, timeout_s}  body: code         -> {exit, out, err, ...}  body: out + err
    fork_kernel {kernel, into, timeout_s}             -> {}
    shell    {name, timeout_s}  body: command        -> as cell
    exec     {argv, cwd, env, timeout_s}  body: stdin -> the same
    put      {path, mode}  body: data                -> {}
    get      {path, max_bytes}                       -> {}  body: data
    pack     {}                                      -> {left_out, left_out_count}  body: tar
    unpack   {}  body: tar                           -> {}

The files `guest*.py` are laid into the box under the same package name that they have here.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import resource
import select
import signal
import socket
import struct
import sys
import time

from turnwise.sandboxes.guest_cells import Kernels
from turnwise.sandboxes.guest_children import READ_BYTES, Children, Refused
from turnwise.sandboxes.guest_files import get, put
from turnwise.sandboxes.guest_frames import FRAME, BadFrame, encode, max_body_bytes, sizes
from turnwise.sandboxes.guest_frames import header as parse_header
from turnwise.sandboxes.guest_kernel import LIBC, OPEN_FILES, PR_SET_DUMPABLE
from turnwise.sandboxes.guest_memory import part_from_children
from turnwise.sandboxes.guest_pack import Archives
from turnwise.sandboxes.guest_run import Programs
from turnwise.sandboxes.guest_shell import Shells
from turnwise.sandboxes.guest_workers import Workers

TYPE_CHECKING = False  # importing `typing` would take longer than all the rest
if TYPE_CHECKING:
    from typing import Any, NoReturn

MARKER = "/.turnwise-box"
PR_SET_NO_NEW_PRIVS = 38
FRAME_S = 300.0
"""So long may the host stop in the middle of a frame, or leave a reply unread."""
IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGXFSZ)


def prove_own_namespace(token: str) -> None:
    """Raise `Refused` unless every other process that this one can see was started by it."""
    if os.getpid() != 1:
        raise Refused(f"the guest must be PID 1 of its own namespace, it is {os.getpid()}")
    try:
        with open(MARKER) as file:
            found = file.read(256)
        with open("/proc/self/status") as file:
            nspid = [line.split()[-1] for line in file if line.startswith("NSpid:")]
    except OSError as error:
        raise Refused(f"this is not a box of ours: {error}") from None
    if len(token) < 16 or found != token:
        raise Refused(f"the marker {MARKER} is not the one of this start")
    if nspid and nspid != ["1"]:
        raise Refused(f"/proc says that this process is {nspid}, not 1")


def harden() -> None:
    """Close the guest to signals, debuggers and file descriptors of the code it supervises."""
    if LIBC.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) or LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise Refused(f"prctl: {os.strerror(ctypes.get_errno())}")
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)


class Guest:
    """Reads requests from `channel` and answers each."""

    def __init__(self, channel: socket.socket, token: str) -> None:
        prove_own_namespace(token)
        harden()
        self.channel = channel
        self.limits: dict[str, Any] = {"lifetime_s": 60.0}
        self.deadline: float = time.monotonic() + self.limits["lifetime_s"]
        self.workers: Workers | None = None
        self.children = Children(prove=lambda: prove_own_namespace(token))
        self.poll = select.poll()
        self.poll.register(channel, select.POLLIN)
        self.poll.register(self.children.wake, select.POLLIN)

    def serve(self) -> NoReturn:
        """Answer requests until the host hangs up; end the box on what is none."""
        try:
            self.take_deadlines()
            handlers = {"hello": self.hello}
            while True:
                self.idle()
                header, body = self.receive()
                fields, payload = self.answer(handlers[header["op"]], header, body)
                if header["op"] == "hello":
                    handlers = self.handlers(header["workdir"])
                    self.take_deadlines()
                fields["id"] = header["id"]
                self.children.shortage.wait_over()
                self.send(encode(fields).encode(), payload)
        except BadFrame as error:
            self.leave(f"the channel carries no frames of ours: {error}")
        except Exception as error:  # no host of ours asks so; what holds now is unknown
            self.leave(f"a request that cannot be served: {error!r:.400}")

    def answer(
        self, handler: Any, header: dict[str, Any], body: bytes | bytearray
    ) -> tuple[dict[str, Any], bytes | list[bytes]]:
        try:
            fields, payload = handler(header, body)
        except OSError as error:
            number = error.errno or errno.EIO
            message = str(error)[:400].replace(f"[Errno {number}] ", "", 1)  # the host adds it
            return {"errno": number, "message": message}, b""
        return fields, payload

    def take_deadlines(self) -> None:
        """Have the channel's own calls fail when the host stops in the middle of a frame."""
        seconds = max(min(FRAME_S, self.limits["lifetime_s"]), 0.1)
        value = struct.pack("@ll", int(seconds), int(seconds % 1 * 1e6))
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            self.channel.setsockopt(socket.SOL_SOCKET, option, value)

    def handlers(self, workdir: str) -> dict[str, Any]:
        self.workers = workers = Workers(self, self.limits, workdir)
        kernels, shells = Kernels(workers), Shells(workers)
        programs = Programs(self, self.limits, workdir, workers.pids)
        archives = Archives(self.limits, workdir)
        return {
            "cell": kernels.cell,
            "fork_kernel": kernels.fork,
            "shell": shells.shell,
            "exec": programs.exec,
            "put": put,
            "get": get,
            "pack": archives.pack,
            "unpack": archives.unpack,
        }

    def idle(self) -> None:
        """Wait for a request; meanwhile bury the processes that nobody waits for."""
        while True:
            ready = dict(self.poll.poll(min(self.time_left(), 3600.0) * 1000 + 1))
            if self.channel.fileno() in ready:
                return
            if self.children.wake in ready:
                self.children.reap()
            if self.workers:
                self.workers.discard(ready)

    def time_left(self) -> float:
        left = self.deadline - time.monotonic()
        if left <= 0:
            self.leave(f"the lifetime of {self.limits['lifetime_s']:.0f} s is over")
        return left

    def check(self, ready: dict[int, int]) -> None:
        """A client that left, or a lifetime that is over, ends the box in the middle of a call."""
        if self.channel.fileno() in ready:
            self.leave("")
        self.time_left()

    def receive(self) -> tuple[dict[str, Any], bytes | bytearray]:
        data = self.channel.recv(READ_BYTES)
        while len(data) < FRAME.size:
            data += self.more(FRAME.size - len(data))
        head, length = sizes(data, max_body_bytes(self.limits))
        start = FRAME.size + head
        while len(data) < start:
            data += self.more(start - len(data))
        header, body = parse_header(data[FRAME.size : start]), data[start:]
        if len(body) > length:
            raise BadFrame(f"{len(body) - length} bytes after the end of a frame")
        return header, body if len(body) == length else self.fill(body, length)

    def more(self, size: int) -> bytes:
        return self.channel.recv(size) or self.leave("")

    def fill(self, begun: bytes, length: int) -> bytearray:
        # One buffer, filled in place: the box has little memory and a file may be large.
        whole, have = bytearray(length), len(begun)
        whole[:have] = begun
        view = memoryview(whole)
        while have < length:
            have += self.channel.recv_into(view[have:]) or self.leave("")
        return whole

    def send(self, head: bytes, payload: bytes | list[bytes]) -> None:
        parts = payload if isinstance(payload, list) else [payload]
        length = sum(map(len, parts))
        first = FRAME.pack(len(head), length) + head
        if length <= READ_BYTES:
            parts, first = [], b"".join([first, *parts])
        for part in [first, *parts]:
            self.channel.sendall(part)

    def leave(self, why: str) -> NoReturn:
        """End the box: PID 1 takes everything with it. The host reads `why` in the log."""
        if why:
            os.write(2, f"{why}\n".encode())
        os._exit(0)

    def hello(
        self, header: dict[str, Any], body: bytes | bytearray
    ) -> tuple[dict[str, Any], bytes]:
        """Take the limits and the environment; the first request and no other."""
        self.limits = header["limits"]
        self.deadline = time.monotonic() + self.limits["lifetime_s"]
        os.environ.clear()
        os.environ.update(header["env"])
        os.chdir(header["workdir"])
        bounds = [
            (resource.RLIMIT_CORE, 0),
            (resource.RLIMIT_NOFILE, OPEN_FILES),
            (resource.RLIMIT_FSIZE, self.limits["file_bytes"]),
        ]
        if self.limits["rlimit_pids"]:
            bounds.append((resource.RLIMIT_NPROC, self.limits["pids"]))
        for kind, value in bounds:
            hard = resource.getrlimit(kind)[1]
            value = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(kind, (value, value))
        for door in header.get("groups", ()):
            with contextlib.suppress(OSError):  # the host sees to it that we are in
                os.write(door, b"0")
            os.close(door)
        for no_more in ("workdir_fd", "info_fd"):  # it is mounted by now, and it is read
            if no_more in header:
                os.close(header[no_more])
        if "kills" in header:
            os.set_inheritable(header["kills"], False)
            self.children.shortage.watch(header["kills"])
        if "relay" in header:
            from turnwise.sandboxes import guest_relay

            relay = header["relay"]
            door = _channel(relay["at"]).detach()
            self.children.spared.add(guest_relay.start(door, relay["port"]))
            part_from_children()
        return {"python": "{}.{}.{}".format(*sys.version_info[:3])}, b""


def _channel(where: str) -> socket.socket:
    """The channel on an inherited descriptor, or to the socket of the host at a path."""
    if where.startswith("/"):
        channel = socket.socket(socket.AF_UNIX)
        channel.connect(where)
        return channel
    os.set_inheritable(int(where), False)
    return socket.socket(fileno=int(where))


def main(argv: list[str]) -> int:
    """`TOKEN FD` or `TOKEN PATH`: serve that channel, or refuse with exit code 97."""
    try:
        if len(argv) != 2:
            raise Refused("this file is started by turnwise inside a box, not by hand")
        prove_own_namespace(argv[0])
        guest = Guest(_channel(argv[1]), argv[0])
    except Refused as refusal:
        sys.stderr.write(f"refused: {refusal}\n")
        return 97
    guest.serve()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
