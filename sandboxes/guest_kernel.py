"""Inside the box: the process in which cells run, next to the agent's code and in its power.

The guest forks it, hands it code over a socket and believes nothing of what comes back but sizes.
"""

from __future__ import annotations

import array
import builtins
import collections
import contextlib
import ctypes
import fcntl
import io
import linecache
import os
import signal
import socket
import struct
import sys
import traceback
import types

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

LIBC = ctypes.CDLL(None, use_errno=True)
PR_SET_DUMPABLE = 4
OPEN_FILES = 1024
KERNEL_FD = 900
TO_KERNEL = struct.Struct(">II")  # call number, code length
FROM_KERNEL = struct.Struct(">IiII")  # call number, exit code, inline stdout, inline stderr
INLINE_BYTES = 1 << 15
FORK = 0xFFFFFFFF
"""In place of a code length: fork, the child on the three descriptors that come with it."""
BORN = b"\1"
RIGHTS_BYTES = socket.CMSG_SPACE(3 * 4)
KEPT_CELLS, KEPT_BYTES = 256, 1 << 16
_OURS = sys._getframe().f_code.co_filename
"""The name of this file in a traceback; it may have been compiled elsewhere."""


def become_user_code(is_python: bool) -> None:
    """In a forked child: undo what protects the guest, and be the first to go when memory ends."""
    os.setsid()
    signal.set_wakeup_fd(-1)
    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD]
    if not is_python:  # Python turns these into exceptions; other programs expect the default
        numbers += [signal.SIGPIPE, signal.SIGXFSZ]
    for number in numbers:
        signal.signal(number, signal.SIG_DFL)
    LIBC.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")


def kernel_main(control: int, stdout: int, stderr: int) -> NoReturn:
    """The whole life of a kernel process."""
    try:
        become_user_code(is_python=True)
        for fd, number in ((os.open(os.devnull, os.O_RDONLY), 0), (stdout, 1), (stderr, 2)):
            os.dup2(fd, number)
        fd = fcntl.fcntl(control, fcntl.F_DUPFD_CLOEXEC, KERNEL_FD)
        os.closerange(3, fd)
        os.closerange(fd + 1, OPEN_FILES)
        look_like_python()
        Cells(socket.socket(fileno=fd)).serve()
    except BaseException as error:
        os.write(2, f"the kernel ended: {error!r}\n".encode())
    finally:
        os._exit(1)


def look_like_python() -> None:
    """Give the agent the interpreter it expects: installed packages, and no trace of the guest."""
    import site

    for name in [name for name in sys.modules if name.split(".")[0] == "turnwise"]:
        del sys.modules[name]
    sys.path.remove("/opt")
    site.main()
    sys.path.insert(0, "")
    sys.argv = [""]
    stdin = open(0)  # noqa: SIM115
    vars(sys).update(stdin=stdin, __stdin__=stdin)


class Stream(io.RawIOBase):
    """File descriptor `fd`; while `held` is a list, small writes are kept there instead.

    What a cell leaves unflushed rides in the reply and saves the guest one wake-up.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.held: list[bytes] | None = None

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.fd

    def write(self, data: Any) -> int:
        if self.held is not None and len(data) <= INLINE_BYTES:
            self.held.append(bytes(data))
            return len(data)
        return os.write(self.fd, data)

    def take(self) -> bytes:
        """What was held; nothing is from now on."""
        held, self.held = self.held or [], None
        return b"".join(held)


def _text_stream(stream: Stream, line_buffering: bool) -> io.TextIOWrapper:
    buffer = io.BufferedWriter(stream, INLINE_BYTES)
    return io.TextIOWrapper(buffer, "utf-8", "backslashreplace", line_buffering=line_buffering)


class Cells:
    """Runs cells, one after another, in one namespace."""

    def __init__(self, control: socket.socket) -> None:
        self.control = control
        self.pid = os.getpid()
        self.running = False
        self.count = 0
        self.compiled: collections.OrderedDict[bytes, types.CodeType] = collections.OrderedDict()
        self.streams = [Stream(1), Stream(2)]
        self.stdout = _text_stream(self.streams[0], line_buffering=False)
        self.stderr = _text_stream(self.streams[1], line_buffering=True)
        self.main = types.ModuleType("__main__")
        self.main.__dict__["__builtins__"] = builtins

    def serve(self) -> NoReturn:
        sys.modules["__main__"] = self.main
        vars(sys).update(stdout=self.stdout, __stdout__=self.stdout)
        vars(sys).update(stderr=self.stderr, __stderr__=self.stderr)
        signal.signal(signal.SIGINT, self.interrupt)
        while True:
            number, code, ends = self.receive()
            result = self.branch(ends) if code is None else self.run(code)
            if result is not None:
                self.reply(number, result)

    def interrupt(self, number: int, frame: Any) -> None:
        if self.running:
            raise KeyboardInterrupt

    def receive(self) -> tuple[int, bytes | None, list[int]]:
        """(call number, code, nothing), or (call number, None, descriptors for a fork)."""
        data, notes, *_ = self.control.recvmsg(1 << 16, RIGHTS_BYTES)
        ends = [fd for note in notes for fd in array.array("i", note[2])]
        data = data or os._exit(0)
        while len(data) < TO_KERNEL.size:
            data += self.more()
        number, length = TO_KERNEL.unpack_from(data)
        if length == FORK:
            return number, None, ends
        parts, have = [data[TO_KERNEL.size :]], len(data) - TO_KERNEL.size
        while have < length:
            parts.append(self.more())
            have += len(parts[-1])
        return number, b"".join(parts), ends

    def more(self) -> bytes:
        return self.control.recv(1 << 16) or os._exit(0)

    def branch(self, ends: list[int]) -> int | None:
        """Fork a copy of this kernel onto `ends`; 0 or 1 for failed here, None in the copy.

        The copy is a grandchild whose parent ends at once: it becomes a child of the guest, as
        every kernel is. Only this thread is in it, as after any fork.
        """
        chance: Any = getattr(sys.modules.get("random"), "getstate", tuple)()
        try:
            child = os.fork()
            if child == 0:
                self.become_copy(ends, chance)
                return None
        except OSError:
            return 1
        finally:
            for fd in ends:
                os.close(fd)
        with contextlib.suppress(ChildProcessError):  # the agent may have its own way with SIGCHLD
            return int(os.waitpid(child, 0)[1] != 0)
        return 0

    def become_copy(self, ends: list[int], chance: Any) -> None:
        """In the forked child: go on in its own child, on the other descriptors."""
        try:
            if os.fork():
                os._exit(0)
            os.setsid()
            control, stdout, stderr = ends
            os.dup2(stdout, 1)
            os.dup2(stderr, 2)
            os.dup2(control, self.control.fileno(), inheritable=False)
            self.pid = os.getpid()
            if chance:  # Python seeds it anew in a child, and this is to be a copy
                sys.modules["random"].setstate(chance)
            self.control.sendall(BORN)
        except BaseException:
            os._exit(1)

    def run(self, code: bytes) -> int:
        """The cell's exit code; what it raised goes to standard error."""
        try:
            self.running = True
            try:
                exec(self.compile(code), self.main.__dict__)
                return 0
            finally:
                self.running = False
        except SystemExit as stop:
            return self.stopped(stop.code)
        except BaseException as error:
            self.running = False  # the interrupt may have come inside the `finally`
            return self.failed(error)

    def compile(self, code: bytes) -> types.CodeType:
        """The code object of `code`; recent short ones are kept, with lines for tracebacks."""
        found = self.compiled.get(code)
        if found is not None:
            return found
        self.count += 1
        name, text = f"<cell {self.count}>", code.decode("utf-8")
        if len(code) > KEPT_BYTES:
            return compile(text, name, "exec", dont_inherit=True)
        # Before compiling: the traceback of a syntax error shows its line, too.
        linecache.cache[name] = (len(text), None, text.splitlines(True), name)
        found = self.compiled[code] = compile(text, name, "exec", dont_inherit=True)
        if len(self.compiled) > KEPT_CELLS:
            old = self.compiled.popitem(last=False)[1]
            linecache.cache.pop(old.co_filename, None)
        return found

    def stopped(self, code: Any) -> int:
        if code is None:
            return 0
        if isinstance(code, int):
            return code & 0xFF
        self.stderr.write(f"{code}\n")
        return 1

    def failed(self, error: BaseException) -> int:
        try:
            shown = traceback.TracebackException(type(error), error, error.__traceback__)
            shown.stack[:] = [frame for frame in shown.stack if frame.filename != _OURS]
            self.stderr.write("".join(shown.format()))
        except BaseException:  # the agent can break anything here, and must not end its kernel
            os.write(2, f"{type(error).__name__}\n".encode())
        return 130 if isinstance(error, KeyboardInterrupt) else 1

    def reply(self, number: int, exit_code: int) -> None:
        for stream in self.streams:
            stream.held = []
        for file in (sys.stdout, sys.stderr, self.stdout, self.stderr):
            with contextlib.suppress(Exception):
                file.flush()
        out, err = (stream.take() for stream in self.streams)
        if os.getpid() != self.pid:  # the cell forked, and this is its child on the way back
            os.write(1, out)
            os.write(2, err)
            os._exit(exit_code)
        self.control.sendall(FROM_KERNEL.pack(number, exit_code, len(out), len(err)) + out + err)
