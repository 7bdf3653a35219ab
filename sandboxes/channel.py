"""A `Sandbox` over the guest's framed channel; a backend adds only how to start and to end it.

All that comes from the guest is untrusted: sizes are capped before anything is read, types are
checked, nothing is unpickled. The frames are described in `guest.py`.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import struct
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from typing import Any, NoReturn, TypeVar, cast

from turnwise.sandboxes import host_files, layers
from turnwise.sandboxes.base import (
    MAX_TIMEOUT_S,
    ExecResult,
    ProtocolError,
    Sandbox,
    SandboxDied,
    SandboxError,
    deadline_of,
    words_of,
)
from turnwise.sandboxes.base import SandboxSpec as Spec
from turnwise.sandboxes.closing import ClosedAtExit
from turnwise.sandboxes.host_files import HostFiles
from turnwise.sandboxes.layers import Layer
from turnwise.sandboxes.snapshot import Snapshot, check_archive, open_copies, snapshot_from

T = TypeVar("T")
Fresh = Callable[[], Sandbox]
_FRAME = struct.Struct(">II")
_TIMEVAL = struct.Struct("@ll")
_encode = json.JSONEncoder(separators=(",", ":")).encode
_decode = json.JSONDecoder().decode

MAX_HEADER_BYTES = 1 << 16
MAX_REQUEST_HEAD_BYTES = 1 << 24
READ_BYTES = 1 << 16
KILLED = 128 + 9
GRACE_S = 10.0
"""How much later than its own deadline the guest may answer before its box is given up."""


class _HungUp(SandboxDied):
    """The guest ended, by itself as it seems from here."""


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
        if len(head) > MAX_REQUEST_HEAD_BYTES:
            raise OSError(errno.E2BIG, f"arguments of {len(head)} bytes are too long for {op!r}")
        self._set_timeout(timeout_s)
        try:
            self.sock.sendall(_FRAME.pack(len(head), len(body)) + head + body)
            reply, payload = self._receive(time.monotonic() + timeout_s)
        except BlockingIOError:
            raise SandboxDied(f"the box did not answer {op!r} within {timeout_s:.1f} s") from None
        except OSError as error:
            raise _HungUp(f"the box is gone: {error}") from None
        if whole_number(reply.get("id"), "id") != self._count:
            raise ProtocolError(f"reply {reply['id']} to request {self._count}")
        if "errno" in reply:
            number = whole_number(reply["errno"], "errno", below=4096)
            raise OSError(number, str(reply.get("message"))[:400])
        return reply, payload

    def hang_up(self) -> None:
        """Close it and wake whoever waits for a reply; the guest ends itself."""
        with suppress(OSError):
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
        except (ValueError, RecursionError) as error:
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


def whole_number(value: object, name: str, *, below: int = 1 << 53) -> int:
    """`value` if it is a whole number from 0 that fits.

    Raises:
        ProtocolError: it is anything else; a guest of ours does not send such a thing.
    """
    if type(value) is not int or not 0 <= value < below:
        raise ProtocolError(f"{name} is no number from 0 to {below - 1}: {value!r:.60}")
    return value


def _check_time(deadline: float) -> None:
    # The socket's own timeout starts anew with each piece that trickles in.
    if time.monotonic() > deadline:
        raise BlockingIOError


def _forget_in_child() -> None:
    # A forked child that kept the descriptor would keep the box alive after the parent's end.
    for channel in list(_open_channels):
        channel.sock.close()


os.register_at_fork(after_in_child=_forget_in_child)


def _at_most(data: bytes, limit: int) -> bytes:
    if len(data) > limit:
        raise ProtocolError(f"{len(data)} bytes sent, asked for at most {limit}")
    return data


def _unpack(box: Sandbox, data: bytes) -> None:
    box.unpack(data)  # type: ignore[attr-defined]  # it is one of ours, or on loan from a pool


def _result(reply: dict[str, Any], data: bytes) -> ExecResult:
    out = whole_number(reply.get("out"), "out")
    if out + whole_number(reply.get("err"), "err") != len(data):
        raise ProtocolError(f"{out} + {reply['err']} bytes announced, {len(data)} sent")
    wall_s = reply.get("wall_s")
    if not isinstance(wall_s, int | float) or not 0 <= wall_s < MAX_TIMEOUT_S * 2:
        raise ProtocolError(f"wall_s is no number of seconds: {wall_s!r:.60}")
    return ExecResult(
        exit_code=whole_number(reply.get("exit"), "exit", below=256),
        stdout=data[:out],
        stderr=data[out:],
        timed_out=reply.get("timed_out") is True,
        truncated=whole_number(reply.get("truncated"), "truncated"),
        state_lost=reply.get("state_lost") is True,
        wall_s=float(wall_s),
    )


class GuestBox(ClosedAtExit):
    """A running box; implements `turnwise.sandboxes.base.Sandbox`.

    Args:
        channel: connected to a guest that has answered `hello`.
        end: destroys the box and returns what is known about why it ended; may be called from
            any thread, once.
        host: reaches its files past the guest, where this host may.
        starved: how many of its processes the kernel has ended since they had used up its memory;
            asked after such an end, and once the box has ended by itself.
    """

    capabilities = frozenset({"files", "python_state", "shell", "snapshot_files", "fork_python"})

    def __init__(
        self,
        id: str,
        backend: str,
        spec: Spec,
        channel: Channel,
        end: Callable[[], str],
        host: HostFiles | None = None,
        starved: Callable[[], int] = lambda: 0,
    ) -> None:
        self.id, self.backend, self.spec = id, backend, spec
        self._channel, self.host, self._starved = channel, host, starved
        self._starved_before = 0
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

    def shell(
        self, command: str, *, name: str = "main", timeout_s: float | None = None
    ) -> ExecResult:
        """See `Sandbox.shell`."""
        if "\0" in command:
            raise ValueError(f"a shell command cannot hold NUL, got {command[:80]!r}")
        timeout_s = self._deadline(timeout_s)
        body = command.encode("utf-8", "surrogatepass")
        return self._run("shell", {"name": name, "timeout_s": timeout_s}, body, timeout_s)

    def fork_kernel(self, kernel: str = "main", *, into: str = "fork-1") -> None:
        """See `Sandbox.fork_kernel`."""
        if kernel == into:
            raise ValueError(f"a kernel cannot be forked into itself: {kernel!r}")
        fields = {"kernel": kernel, "into": into, "timeout_s": self._wall_s}
        self._call("fork_kernel", fields, b"", self._wall_s)

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
        argv, timeout_s = words_of(argv), self._deadline(timeout_s)
        fields = {"argv": argv, "cwd": cwd, "env": dict(env or {}), "timeout_s": timeout_s}
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
        limit = limit if max_bytes is None else min(max_bytes, limit)
        data = self._call("get", {"path": path, "max_bytes": limit}, b"", self._wall_s)[1]
        return self._believe(lambda: _at_most(data, limit))

    def snapshot(self) -> Snapshot:
        """See `Sandbox.snapshot`."""
        reply, data = self._call("pack", {}, b"", self._wall_s)
        return self._believe(lambda: snapshot_from(reply, data, self.spec.limits))

    def fork(
        self, n: int = 1, snapshot: Snapshot | None = None, *, fresh: Fresh | None = None
    ) -> list[Sandbox]:
        """See `Sandbox.fork`."""
        open_box = partial(self._like_this, fresh)
        if snapshot is not None:
            data = snapshot.data
            check_archive(data, self.spec.limits)
            return open_copies(open_box, lambda box: _unpack(box, data), n)
        if n == 1 and fresh is not None:
            return open_copies(open_box, self._copy_into, n)
        over = self.host.open_over if self.host and fresh is None else None
        with self._frozen(layers.SHARE if over else 1) as layer:
            if layer is not None and over is not None:
                return open_copies(lambda: cast(Sandbox, over(layer)), lambda box: None, n)
            if layer is not None:
                return open_copies(open_box, lambda box: self._lay(layer, box), n)
        with ThreadPoolExecutor(1) as meanwhile:  # it packs while they start
            packing = meanwhile.submit(self._packed)
            return open_copies(open_box, lambda box: _unpack(box, packing.result()), n)

    def _like_this(self, fresh: Fresh | None) -> Sandbox:
        """A new box of the same spec.

        Raises:
            ValueError: `fresh` gave one of another.
        """
        from turnwise.sandboxes.open import open_spec

        if fresh is None:
            return open_spec(self.backend, self.spec)
        box = fresh()
        if (box.backend, box.spec) != (self.backend, self.spec):
            box.close()
            raise ValueError(
                f"a fork has the spec of its stem, {self.backend} {self.spec}, and `fresh` gave"
                f" {box.backend} {box.spec}"
            )
        return box

    def _frozen(self, share: int) -> AbstractContextManager[Layer | None]:
        """The files of now, where the host can have them so.

        Raises:
            SandboxDied: the box is gone.
        """
        with self._reached():
            return (self.host and self.host.freeze(share)) or nullcontext()

    def _copy_into(self, box: Sandbox) -> None:
        """Copy the files of now into a fresh box."""
        with self._reached():
            if self.host and self.host.copy_into(box):
                return
        _unpack(box, self._packed())

    def _lay(self, layer: Layer, box: Sandbox) -> None:
        """Copy frozen files into a fresh box."""
        if not host_files.lay(layer.fd, box):
            _unpack(box, self._packed())

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """While it is certain that no call is in progress, and that the box is there."""
        with self._lock:
            self._require_running()
            try:
                yield
            except SandboxDied as error:
                raise self._lost(error) from None

    def _packed(self) -> bytes:
        """The archive of a snapshot."""
        data = self._call("pack", {}, b"", self._wall_s)[1]
        self._believe(lambda: check_archive(data, self.spec.limits))
        return data

    def unpack(self, data: bytes) -> None:
        """Write the files of a snapshot into the workdir.

        Raises:
            SandboxDied: the box is gone.
            OSError: the disk is full, or something is in the way.
        """
        self._call("unpack", {}, data, self._wall_s)

    def close(self) -> None:
        """See `Sandbox.close`."""
        self._gone = self._gone or "it was closed"
        self._end()

    def _deadline(self, timeout_s: float | None) -> float:
        return deadline_of(timeout_s, self.spec.limits)

    def _run(self, op: str, fields: dict[str, Any], body: bytes, timeout_s: float) -> ExecResult:
        reply, data = self._call(op, fields, body, timeout_s)
        result = self._believe(lambda: _result(reply, data))
        if result.exit_code == KILLED:
            self._starved_before = self._starved()
        return result

    def _believe(self, read: Callable[[], T]) -> T:
        """What `read` makes of an answer; a guest that sent what makes no sense is given up."""
        try:
            return read()
        except (ProtocolError, ValueError) as error:
            raise self._lost(ProtocolError(str(error))) from None

    def _call(
        self, op: str, fields: dict[str, Any], body: bytes, timeout_s: float
    ) -> tuple[dict[str, Any], bytes]:
        longest = max(self.spec.limits.file_bytes, 1 << 20)
        if len(body) > longest:
            raise OSError(errno.EFBIG, f"{len(body)} bytes for {op!r} are over {longest}")
        with self._lock:
            self._require_running()
            try:
                return self._channel.call(op, fields, body, timeout_s=timeout_s + GRACE_S)
            except SandboxError as error:
                raise self._lost(error) from None
            except OSError:
                raise
            except BaseException:
                # Interrupted between request and reply: the next reply would be the wrong one.
                self._fail("a call was interrupted")
                raise

    def _require_running(self) -> None:
        if self._gone is not None or self._pid != os.getpid():
            raise SandboxDied(f"box {self.id}: {self._gone or 'it belongs to another process'}")

    def _fail(self, why: str) -> str:
        self._gone = why
        seen = self._end()
        return f" ({seen})" if seen else ""

    def _lost(self, error: SandboxError) -> SandboxError:
        """Give the box up; the error that says so, and what is known about the reason."""
        why = self._fail(str(error))
        kind = SandboxDied if isinstance(error, _HungUp) else type(error)
        lost = kind(f"box {self.id}: {error}{why}")
        if isinstance(lost, SandboxDied):
            by_itself = isinstance(error, _HungUp)
            lost.out_of_memory = by_itself and self._starved() > self._starved_before
        return lost
