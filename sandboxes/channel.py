"""A `Sandbox` over the guest's framed channel; a backend adds only how to start and to end it.

All that comes from the guest is untrusted: sizes are capped before anything is read, types are
checked, nothing is unpickled. The frames are described in `guest.py`.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import struct
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, NoReturn, Self

from turnwise.sandboxes.base import ExecResult, ProtocolError, SandboxDied, SandboxError
from turnwise.sandboxes.base import SandboxSpec as Spec

_FRAME = struct.Struct(">II")
_TIMEVAL = struct.Struct("@ll")
_encode = json.JSONEncoder(separators=(",", ":")).encode
_decode = json.JSONDecoder().decode

MAX_HEADER_BYTES = 1 << 16
READ_BYTES = 1 << 16
MAX_TIMEOUT_S = 7 * 86_400.0
GRACE_S = 10.0
"""How much later than its own deadline the guest may answer before its box is given up."""

_open_channels: weakref.WeakSet[Channel] = weakref.WeakSet()


class Channel:
    """Sends a request, returns the reply; one at a time.

    Raises:
        SandboxDied: the guest hung up, or did not answer in time.
        ProtocolError: it answered with something else.
    """

    def __init__(self, sock: socket.socket, max_body_bytes: int) -> None:
        self.sock = sock
        self.max_body_bytes = max_body_bytes
        self._count = 0
        self._timeout_s = -1.0
        _open_channels.add(self)

    def call(
        self, op: str, fields: dict[str, Any], body: bytes = b"", *, timeout_s: float
    ) -> tuple[dict[str, Any], bytes]:
        """The reply to one request.

        Raises:
            OSError: the guest could not do it; `errno` is its own.
        """
        self._count += 1
        head = _encode({"op": op, "id": self._count, **fields}).encode()
        self._set_timeout(timeout_s)
        try:
            self.sock.sendall(_FRAME.pack(len(head), len(body)) + head + body)
            reply, payload = self._receive(time.monotonic() + timeout_s)
        except BlockingIOError:
            raise SandboxDied(f"the box did not answer {op!r} within {timeout_s:.1f} s") from None
        except OSError as error:
            raise SandboxDied(f"the box is gone: {error}") from None
        if reply.get("id") != self._count:
            raise ProtocolError(f"reply {reply.get('id')!r} to request {self._count}")
        if "errno" in reply:
            raise OSError(int(reply["errno"]), str(reply.get("message"))[:400])
        return reply, payload

    def hang_up(self) -> None:
        """Close it and wake whoever waits for a reply; the guest ends itself."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()

    def _set_timeout(self, timeout_s: float) -> None:
        # Kernel-side timeouts spare the poll() that Python's own socket timeouts make per call.
        if timeout_s != self._timeout_s:
            value = _TIMEVAL.pack(int(timeout_s), int(timeout_s % 1 * 1e6))
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)
            self._timeout_s = timeout_s

    def _receive(self, deadline: float) -> tuple[dict[str, Any], bytes]:
        data = self._read(b"", _FRAME.size, deadline)
        head, body = _FRAME.unpack_from(data)
        if head > MAX_HEADER_BYTES or body > self.max_body_bytes:
            raise ProtocolError(f"a frame of {head} + {body} bytes is over the limit")
        end = _FRAME.size + head
        data = self._read(data, end, deadline)
        if len(data) > end + body:
            raise ProtocolError(f"{len(data) - end - body} bytes after the end of a frame")
        try:
            reply = _decode(data[_FRAME.size : end].decode())
        except ValueError as error:
            raise ProtocolError(f"a header that is not JSON: {error}") from None
        if not isinstance(reply, dict):
            raise ProtocolError(f"a header that is not an object: {reply!r:.100}")
        payload = data[end:]
        return reply, payload if len(payload) == body else self._fill(payload, body, deadline)

    def _read(self, data: bytes, size: int, deadline: float) -> bytes:
        """`data` and what follows it, at least `size` bytes in all."""
        while len(data) < size:
            data += self.sock.recv(READ_BYTES) or self._hung_up()
            _check_time(deadline)
        return data

    def _fill(self, begun: bytes, size: int, deadline: float) -> bytes:
        """`begun` and what follows it, exactly `size` bytes in all."""
        whole, have = bytearray(size), len(begun)
        whole[:have] = begun
        view = memoryview(whole)
        while have < size:
            have += self.sock.recv_into(view[have:]) or self._hung_up()
            _check_time(deadline)
        return bytes(whole)

    def _hung_up(self) -> NoReturn:
        raise ConnectionError("it closed its channel")


def _check_time(deadline: float) -> None:
    # The socket's own timeout starts anew with each piece that trickles in.
    if time.monotonic() > deadline:
        raise BlockingIOError


def _forget_in_child() -> None:
    # A forked child that kept the descriptor would keep the box alive after the parent's end.
    for channel in list(_open_channels):
        channel.sock.close()


os.register_at_fork(after_in_child=_forget_in_child)


class GuestBox:
    """A running box; implements `turnwise.sandboxes.base.Sandbox`.

    Args:
        channel: connected to a guest that has answered `hello`.
        end: destroys the box and returns what is known about why it ended; may be called from
            any thread, once.
    """

    capabilities = frozenset({"files", "python_state"})

    def __init__(
        self, id: str, backend: str, spec: Spec, channel: Channel, end: Callable[[], str]
    ) -> None:
        self.id, self.backend, self.spec = id, backend, spec
        self._channel = channel
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._gone: str | None = None
        self._end = weakref.finalize(self, end)
        self._wall_s = spec.limits.wall_s

    @property
    def alive(self) -> bool:
        """False after `close` or once a call has found the box gone."""
        return self._gone is None and self._pid == os.getpid()

    def cell(
        self, code: str, *, kernel: str = "main", timeout_s: float | None = None
    ) -> ExecResult:
        """See `Sandbox.cell`."""
        timeout_s = self._deadline(timeout_s)
        fields = {"kernel": kernel, "timeout_s": timeout_s}
        body = code.encode("utf-8", "surrogatepass")
        return self._run("cell", fields, body, timeout_s)

    def exec(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes = b"",
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> ExecResult:
        """See `Sandbox.exec`."""
        if isinstance(argv, str) or not argv or any("\0" in word for word in argv):
            raise ValueError(f"argv must be a list of words without NUL, got {argv!r}")
        timeout_s = self._deadline(timeout_s)
        fields = {"argv": list(argv), "cwd": cwd, "env": dict(env or {}), "timeout_s": timeout_s}
        return self._run("exec", fields, stdin, timeout_s)

    def put(self, path: str, data: bytes, *, mode: int = 0o644) -> None:
        """See `Sandbox.put`."""
        limit = self.spec.limits.file_bytes
        if len(data) > limit:
            raise OSError(errno.EFBIG, f"{len(data)} bytes are over the limit of {limit}", path)
        self._call("put", {"path": path, "mode": mode}, data, self._wall_s)

    def get(self, path: str, *, max_bytes: int | None = None) -> bytes:
        """See `Sandbox.get`."""
        limit = self.spec.limits.file_bytes
        fields = {"path": path, "max_bytes": limit if max_bytes is None else min(max_bytes, limit)}
        return self._call("get", fields, b"", self._wall_s)[1]

    def close(self) -> None:
        """See `Sandbox.close`."""
        self._gone = self._gone or "it was closed"
        self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _deadline(self, timeout_s: float | None) -> float:
        timeout_s = self._wall_s if timeout_s is None else timeout_s
        if not 0.0 < timeout_s <= MAX_TIMEOUT_S:
            raise ValueError(f"timeout_s must be in (0, {MAX_TIMEOUT_S:.0f}], got {timeout_s!r}")
        return timeout_s

    def _run(self, op: str, fields: dict[str, Any], body: bytes, timeout_s: float) -> ExecResult:
        reply, data = self._call(op, fields, body, timeout_s)
        try:
            out, err = int(reply["out"]), int(reply["err"])
            result = ExecResult(
                exit_code=int(reply["exit"]),
                stdout=data[:out],
                stderr=data[out:],
                timed_out=reply["timed_out"] is True,
                truncated=int(reply["truncated"]),
                state_lost=reply["state_lost"] is True,
                wall_s=float(reply["wall_s"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            self._fail(f"an answer to {op!r} without {error}")
            raise ProtocolError(f"box {self.id}: an answer to {op!r} without {error}") from None
        if out < 0 or err < 0 or out + err != len(data):
            self._fail("sizes that do not add up")
            raise ProtocolError(f"box {self.id}: {out} + {err} bytes announced, {len(data)} sent")
        return result

    def _call(
        self, op: str, fields: dict[str, Any], body: bytes, timeout_s: float
    ) -> tuple[dict[str, Any], bytes]:
        with self._lock:
            if self._gone is not None or self._pid != os.getpid():
                raise SandboxDied(f"box {self.id}: {self._gone or 'it belongs to another process'}")
            try:
                return self._channel.call(op, fields, body, timeout_s=timeout_s + GRACE_S)
            except SandboxError as error:
                why = self._fail(str(error))
                raise type(error)(f"box {self.id}: {error}{why}") from None
            except OSError:
                raise
            except BaseException:
                # Interrupted between request and reply: the next reply would be the wrong one.
                self._fail("a call was interrupted")
                raise

    def _fail(self, why: str) -> str:
        self._gone = why
        seen = self._end()
        return f" ({seen})" if seen else ""
