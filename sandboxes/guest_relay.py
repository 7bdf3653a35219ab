"""Inside a box that may reach some hosts: the process behind its `HTTP_PROXY`.

It accepts connections on the loopback of the box and hands each one, as it is, to the proxy on the
host over an inherited socket. No byte passes through it, and it decides nothing.
"""

from __future__ import annotations

import array
import os
import signal
import socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

WAITING = 64


def start(control: int, port: int) -> int:
    """Start to listen; the pid of the process that goes on. `control` is closed here."""
    listener = socket.socket(socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(WAITING)
    pid = os.fork()
    if pid == 0:
        _serve(control, listener.fileno())
    listener.close()
    os.close(control)
    return pid


def _serve(control: int, listening: int) -> NoReturn:
    try:
        os.setsid()
        signal.set_wakeup_fd(-1)
        # Not the channel, above all: only the guest speaks there.
        first, second = sorted((control, listening))
        os.closerange(3, first)
        os.closerange(first + 1, second)
        os.closerange(second + 1, 1024)
        host = socket.socket(fileno=control)
        listener = socket.socket(fileno=listening)
        while True:
            connection, _ = listener.accept()
            with connection:
                fds = array.array("i", [connection.fileno()])
                host.sendmsg([b"c"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
    except BaseException:
        os._exit(1)
