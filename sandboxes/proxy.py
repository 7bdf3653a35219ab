"""The one way out of a box with `NetPolicy("proxy", allow)`: HTTP(S) to hosts that are listed.

The proxy runs on the host and has no address: the box hands it connections over a socketpair (see
`guest_relay.py`). It looks names up here, connects to just the address that it has judged, and
speaks CONNECT and plain HTTP. The box itself has no route, no DNS and no other door. What may be
listed, and what a listed name may lead to, is told in `allow.py`.

What it cannot see is what goes on inside of TLS: a listed host that serves several sites serves
them all, and whatever a listed host accepts can be sent to it.
"""

from __future__ import annotations

import array
import contextlib
import os
import select
import socket
import stat
import threading
import time
from collections.abc import Sequence
from urllib.parse import urlsplit

from turnwise.sandboxes.allow import Policy, Refused, split_authority
from turnwise.sandboxes.allow import parse_allow as parse_allow  # the backends check with it

PORT = 3128
"""On the loopback of the box."""
MAX_HEAD_BYTES = 32_768
MAX_CONNECTIONS = 32
REQUEST_TIMEOUT_S = 10.0
IDLE_TIMEOUT_S = 120.0
_CHUNK = 65_536


class Proxy:
    """Serves the connections that a box hands over.

    Args:
        allow: see `NetPolicy`.
        control: our end of the socketpair whose other end the relay of the box holds.
    """

    def __init__(self, allow: Sequence[str], control: socket.socket) -> None:
        self.policy, self._control = Policy(allow), control
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._closed = False
        threading.Thread(target=self._accept, name="turnwise-proxy", daemon=True).start()

    def close(self) -> None:
        """Close every connection. Safe to call twice; never raises."""
        with self._lock:
            self._closed = True
            ends = [self._control, *self._open]
        for end in ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with self._control:
            while (handed := _receive(self._control)) is not None:
                for connection in handed:
                    self._begin(connection)

    def _begin(self, connection: socket.socket) -> None:
        with self._lock:
            if self._closed or len(self._open) >= MAX_CONNECTIONS:
                connection.close()
                return
            self._open.add(connection)
        name = "turnwise-proxied"
        threading.Thread(target=self._serve, args=(connection,), name=name, daemon=True).start()

    def _serve(self, box: socket.socket) -> None:
        try:
            with contextlib.suppress(OSError), box:
                box.settimeout(REQUEST_TIMEOUT_S)
                self._answer(box)
        finally:
            with self._lock:
                self._open.discard(box)

    def _answer(self, box: socket.socket) -> None:
        try:
            head, rest = _read_head(box)
            host, port, first = _understand(head)
            there = self.policy.dial(host, port)
        except Refused as refused:
            body = f"the proxy of this sandbox: {refused}\n".encode()
            length = f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            answer = f"HTTP/1.1 {refused.status}\r\nContent-Type: text/plain\r\n{length}"
            box.sendall(answer.encode() + body)
            return
        with there:
            if first is None:
                box.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            there.sendall((first or b"") + rest)
            _relay(box, there)


def _receive(control: socket.socket) -> list[socket.socket] | None:
    """TCP connections that the box handed over; None once it is gone.

    What comes is the box's choice: a descriptor that is no TCP socket is closed unread.
    """
    space = socket.CMSG_SPACE(8 * array.array("i").itemsize)
    try:
        data, notes, _, _ = control.recvmsg(64, space, socket.MSG_CMSG_CLOEXEC)
    except OSError:
        return None
    if not data:
        return None
    made = []
    for level, kind, payload in notes:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds = array.array("i", payload[: len(payload) - len(payload) % 4])
            made += [sock for fd in fds if (sock := _tcp_socket(fd)) is not None]
    return made


def _tcp_socket(fd: int) -> socket.socket | None:
    try:
        if stat.S_ISSOCK(os.fstat(fd).st_mode):
            sock = socket.socket(fileno=fd)
            if (sock.family, sock.type) == (socket.AF_INET, socket.SOCK_STREAM):
                return sock
            sock.detach()
    except OSError:
        pass
    os.close(fd)
    return None


def _read_head(box: socket.socket) -> tuple[list[bytes], bytes]:
    """(lines of the head of a request, what came after it)."""
    data, end = b"", time.monotonic() + REQUEST_TIMEOUT_S
    while b"\r\n\r\n" not in data[:MAX_HEAD_BYTES]:
        part = box.recv(_CHUNK)
        if not part or len(data) > MAX_HEAD_BYTES or time.monotonic() > end:
            raise Refused("400 Bad Request", "no HTTP request of a reasonable size came")
        data += part
    head, _, rest = data.partition(b"\r\n\r\n")
    return head.split(b"\r\n"), rest


def _understand(lines: list[bytes]) -> tuple[str, int, bytes | None]:
    """(host, port, what to send there first); None to send nothing, for CONNECT."""
    try:
        method, target, version = lines[0].decode("ascii").split(" ")
        if not version.startswith("HTTP/1.") or not target.isprintable():
            raise ValueError(f"{version[:20]!r}")
        if method == "CONNECT":
            return *split_authority(target, 443), None
        url = urlsplit(target)
        if url.scheme != "http" or not url.netloc:
            raise ValueError("only http:// URLs and CONNECT; https goes through CONNECT")
        host, port = split_authority(url.netloc, 80)
    except (ValueError, UnicodeDecodeError) as error:
        raise Refused("400 Bad Request", f"not a request to a proxy: {error}") from None
    path = target.split("://", 1)[1].partition("#")[0][len(url.netloc) :] or "/"
    path = path if path.startswith("/") else f"/{path}"
    # One request per connection, to the host that was judged: not to one that Host names instead.
    drop = (b"host:", b"connection:", b"proxy-", b"keep-alive:")
    kept = [line for line in lines[1:] if not line.lower().startswith(drop)]
    first = [f"{method} {path} {version}".encode(), b"Host: " + url.netloc.encode()]
    return host, port, b"\r\n".join([*first, b"Connection: close", *kept, b"", b""])


def _relay(one: socket.socket, other: socket.socket) -> None:
    """Pass bytes both ways until both sides have said all, or neither says anything for long."""
    to = {one: other, other: one}
    waiting = select.poll()  # not `select`, which knows no descriptor above 1023
    for end in to:
        end.settimeout(IDLE_TIMEOUT_S)
        waiting.register(end, select.POLLIN)
    ends, reading = {end.fileno(): end for end in to}, 2
    while reading:
        ready = waiting.poll(IDLE_TIMEOUT_S * 1000)
        if not ready:
            return
        for fd, _ in ready:
            end = ends[fd]
            if data := end.recv(_CHUNK):
                to[end].sendall(data)
                continue
            waiting.unregister(end)
            reading -= 1
            to[end].shutdown(socket.SHUT_WR)


def environment(allow: Sequence[str]) -> dict[str, str]:
    """What tells the programs of a box about their proxy, and that their own servers need none."""
    listed = {entry.host for entry in parse_allow(allow)}
    own = ",".join(host for host in ("localhost", "127.0.0.1", "::1") if host not in listed)
    names = ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")
    url = dict.fromkeys(names, f"http://127.0.0.1:{PORT}")
    return url | dict.fromkeys(("NO_PROXY", "no_proxy"), own)
