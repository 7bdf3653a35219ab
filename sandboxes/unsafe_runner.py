"""Beside a plain box: the process in which its cells run. Started by `unsafe.py`, by path.

It reads code from a socket and answers each cell with its exit code. It supervises nothing and
signals nobody. It ends when the socket closes.
"""

from __future__ import annotations

import contextlib
import linecache
import os
import signal
import socket
import struct
import sys
import traceback
import types
from typing import Any, NoReturn

LENGTH, EXIT = struct.Struct(">I"), struct.Struct(">i")


class Cells:
    """Runs cells, one after another, in one namespace."""

    def __init__(self, control: socket.socket) -> None:
        self.control, self.pid = control, os.getpid()
        self.running, self.count = False, 0
        self.main = types.ModuleType("__main__")
        sys.modules["__main__"] = self.main

    def serve(self) -> NoReturn:
        signal.signal(signal.SIGINT, self.interrupt)
        while True:
            (length,) = LENGTH.unpack(self.receive(LENGTH.size))
            exit_code = self.run(self.receive(length).decode("utf-8", "replace"))
            for file in (sys.stdout, sys.stderr):
                with contextlib.suppress(Exception):
                    file.flush()
            if os.getpid() != self.pid:  # the cell forked, and this is its child on the way back
                os._exit(exit_code)
            self.control.sendall(EXIT.pack(exit_code))

    def interrupt(self, number: int, frame: Any) -> None:
        if self.running:
            raise KeyboardInterrupt

    def receive(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            data += self.control.recv(size - len(data)) or os._exit(0)
        return data

    def run(self, code: str) -> int:
        """The cell's exit code; what it raised goes to standard error."""
        self.count += 1
        name = f"<cell {self.count}>"
        linecache.cache[name] = (len(code), None, code.splitlines(True), name)
        try:
            self.running = True
            try:
                exec(compile(code, name, "exec", dont_inherit=True), self.main.__dict__)
                return 0
            finally:
                self.running = False
        except SystemExit as stop:
            return stopped(stop.code)
        except BaseException as error:
            self.running = False  # the interrupt may have come inside the `finally`
            return failed(error)


def stopped(code: object) -> int:
    """The exit code of `raise SystemExit(code)`."""
    if code is None or isinstance(code, int):
        return (code or 0) & 0xFF
    print(code, file=sys.stderr)
    return 1


def failed(error: BaseException) -> int:
    """Show `error` as Python would, without the frames of this file."""
    try:
        shown = traceback.TracebackException(type(error), error, error.__traceback__)
        shown.stack[:] = [frame for frame in shown.stack if frame.filename != __file__]
        print("".join(shown.format()), end="", file=sys.stderr)
    except BaseException:  # the code of the cell can break anything here
        os.write(2, f"{type(error).__name__}\n".encode())
    return 130 if isinstance(error, KeyboardInterrupt) else 1


if __name__ == "__main__":
    channel = socket.socket(fileno=int(sys.argv[1]))
    channel.set_inheritable(False)
    sys.argv = [""]
    sys.path.insert(0, "")
    Cells(channel).serve()
