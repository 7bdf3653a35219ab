"""A box of another machine, as its user holds it; `remote.py` speaks to the server."""

from __future__ import annotations

import errno
import os
import secrets
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from turnwise.sandboxes.base import (
    ExecResult,
    ProtocolError,
    Sandbox,
    SandboxDied,
    SandboxError,
    SandboxSpec,
    Unsupported,
)
from turnwise.sandboxes.closing import ClosedAtExit
from turnwise.sandboxes.remote_wire import EXTRA_BYTES, pack

if TYPE_CHECKING:
    from turnwise.sandboxes.remote import Server
    from turnwise.sandboxes.snapshot import Snapshot

NAME = "remote"
START_TIMEOUT_S = 120.0
GRACE_S = 20.0
"""How much later than the deadline of a call its answer may arrive."""


class RemoteBox(ClosedAtExit):
    """A running box of a server; implements `turnwise.sandboxes.base.Sandbox`."""

    def __init__(
        self, server: Server, id: str, spec: SandboxSpec, capabilities: frozenset[str]
    ) -> None:
        self.id, self.backend, self.spec, self.capabilities = id, NAME, spec, capabilities
        self._server = server
        self._lock = threading.Lock()
        self._number = 0
        self._pid = os.getpid()
        self._gone: str | None = None
        self._end = weakref.finalize(self, server.delete, id, self._pid)

    @property
    def alive(self) -> bool:
        """False after `close` or once it is known to be gone."""
        return self._gone is None and self._pid == os.getpid()

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
        if isinstance(argv, str):
            raise ValueError(f"argv must be a list of words without NUL, got {argv!r}")
        head = {"argv": list(argv), "cwd": cwd, "env": dict(env or {})}
        return self._run("exec", head, stdin, timeout_s)

    def cell(
        self, code: str, *, kernel: str = "main", timeout_s: float | None = None
    ) -> ExecResult:
        """See `Sandbox.cell`."""
        return self._run("cell", {"kernel": kernel}, _bytes(code), timeout_s)

    def shell(
        self, command: str, *, name: str = "main", timeout_s: float | None = None
    ) -> ExecResult:
        """See `Sandbox.shell`."""
        return self._run("shell", {"name": name}, _bytes(command), timeout_s)

    def fork_kernel(self, kernel: str = "main", *, into: str = "fork-1") -> None:
        """See `Sandbox.fork_kernel`."""
        self._call("fork_kernel", {"kernel": kernel, "into": into})

    def put(self, path: str, data: bytes, *, mode: int = 0o644) -> None:
        """See `Sandbox.put`."""
        limit = self.spec.limits.file_bytes
        if len(data) > limit:
            raise OSError(errno.EFBIG, f"{len(data)} bytes are over the limit of {limit}", path)
        self._call("put", {"path": path, "mode": mode}, data)

    def get(self, path: str, *, max_bytes: int | None = None) -> bytes:
        """See `Sandbox.get`."""
        return self._call("get", {"path": path, "max_bytes": max_bytes})[1]

    def snapshot(self) -> Snapshot:
        """See `Sandbox.snapshot`."""
        from turnwise.sandboxes.snapshot import snapshot_from

        reply, data = self._call("snapshot", {})
        try:
            return snapshot_from(reply, data, self.spec.limits)
        except ValueError as error:
            raise ProtocolError(f"box {self.id}: {error}") from None

    def fork(
        self,
        n: int = 1,
        snapshot: Snapshot | None = None,
        *,
        fresh: Callable[[], Sandbox] | None = None,
    ) -> list[Sandbox]:
        """See `Sandbox.fork`; `fresh` is refused, as the server starts what it forks."""
        if fresh is not None:
            raise Unsupported("a remote box is forked by its server, which starts the boxes")
        if not 1 <= n <= 256:
            raise ValueError(f"a box is forked into 1 to 256, asked for {n}")
        creates = [secrets.token_hex(16) for _ in range(n)]
        head = {"creates": creates, "given": snapshot is not None}
        body = b"" if snapshot is None else snapshot.data
        reply, _ = self._call("fork", head, body, timeout_s=START_TIMEOUT_S)
        return [self._server.lend(about, self.spec) for about in reply["boxes"]]

    def gone(self, why: str) -> None:
        """Have every later call say that the box is gone."""
        self._gone = self._gone or why

    def close(self) -> None:
        """See `Sandbox.close`."""
        self.gone("it was closed")
        self._end()

    def _run(
        self, op: str, head: dict[str, Any], body: bytes, timeout_s: float | None
    ) -> ExecResult:
        reply, data = self._call(op, head | {"timeout_s": timeout_s}, body, timeout_s)
        try:
            out, err = int(reply["stdout"]), int(reply["stderr"])
            if min(out, err) < 0 or out + err != len(data):
                raise ValueError(f"{out} + {err} bytes announced, {len(data)} sent")
            return ExecResult(**reply | {"stdout": data[:out], "stderr": data[out:]})
        except (KeyError, TypeError, ValueError) as error:
            self._fail(f"an answer to {op!r} that is none: {error}")
            raise ProtocolError(
                f"box {self.id}: an answer to {op!r} that is none: {error}"
            ) from None

    def _call(
        self,
        op: str,
        head: dict[str, Any],
        body: bytes = b"",
        timeout_s: float | None = None,
    ) -> tuple[dict[str, Any], bytes]:
        limits = self.spec.limits
        most = max(limits.file_bytes, 2 * limits.output_bytes) + EXTRA_BYTES
        wait_s = (limits.wall_s if timeout_s is None else timeout_s) + GRACE_S
        with self._lock:
            if not self.alive:
                why = self._gone or "it belongs to another process"
                raise SandboxDied(f"box {self.id}: {why}")
            self._number += 1
            message = pack(head | {"number": self._number}, body)
            path = f"/v1/sandboxes/{self.id}/calls/{op}"
            try:
                return self._server.ask("POST", path, message, timeout_s=wait_s, most=most)
            except (SandboxDied, ProtocolError) as error:
                self._fail(str(error))
                raise
            except (SandboxError, OSError, ValueError):
                raise
            except BaseException:
                self._fail("a call was interrupted")  # the server may still be at it
                raise

    def _fail(self, why: str) -> None:
        self.gone(why)
        self._end()


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
