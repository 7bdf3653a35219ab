"""Plain subprocesses of this user, on this machine: no wall at all.

For code that you wrote or read, where no sandbox can be had. It needs two opt-ins,
`backend="unsafe"` and TURNWISE_ALLOW_UNSAFE=1, is refused to root, is never chosen by `auto`,
and warns at each start. Of `Limits` it holds `wall_s`, `output_bytes`, `file_bytes` (of `put` and
`get`) and `lifetime_s`; nothing holds memory, processes, CPU, disk or network.

It ends only process groups that it started itself. What leaves its group (`setsid`) gets away.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import sys
import tempfile
import threading
import time
import warnings
import weakref
from collections.abc import Mapping, Sequence
from typing import NoReturn

from turnwise.sandboxes.base import (
    ExecResult,
    SandboxDied,
    SandboxSpec,
    Unsupported,
    deadline_of,
    words_of,
)
from turnwise.sandboxes.closing import ClosedAtExit
from turnwise.sandboxes.unsafe_files import read_file, write_file
from turnwise.sandboxes.unsafe_process import Group, Runner, run_program

NAME = "unsafe"
ALLOW = "TURNWISE_ALLOW_UNSAFE"


class UnsafeSandboxWarning(UserWarning):
    """A box was started that isolates nothing."""


def open_box(spec: SandboxSpec) -> UnsafeBox:
    """A started box without walls.

    Raises:
        Unsupported: to root, without TURNWISE_ALLOW_UNSAFE=1, or when the spec asks for an image
            or a network policy.
    """
    if 0 in os.getresuid():
        raise Unsupported(
            f"the {NAME} backend is refused to root, which it would hand to the agent; run as"
            " another user, or take a backend that isolates: apt-get install -y bubblewrap"
        )
    if os.environ.get(ALLOW) != "1":
        raise Unsupported(
            f"the {NAME} backend isolates nothing: what an agent writes would run as you. If that"
            f" is what you want, set {ALLOW}=1; else: apt-get install -y bubblewrap"
        )
    if spec.image is not None or spec.net.mode != "none":
        raise Unsupported(
            f"{NAME} runs this machine's own programs with its network, not image {spec.image!r}"
            f" with network mode {spec.net.mode!r}"
        )
    box = UnsafeBox(spec)
    # It names the box, so that Python does not take it for one that was shown before.
    warnings.warn(
        f"box {box.id} isolates nothing: code in it runs as user {os.getuid()} of this machine",
        UnsafeSandboxWarning,
        stacklevel=2,
    )
    return box


class UnsafeBox(ClosedAtExit):
    """Implements `turnwise.sandboxes.base.Sandbox` without isolating; `folder` is its workdir."""

    backend = NAME
    capabilities = frozenset({"files", "python_state"})

    def __init__(self, spec: SandboxSpec) -> None:
        self.id, self.spec = f"{NAME}-{secrets.token_hex(4)}", spec
        self.folder = os.path.realpath(tempfile.mkdtemp(prefix="turnwise-unsafe-"))
        self._runners: dict[str, Runner] = {}
        self._groups: set[Group] = set()
        self._lock, self._pid = threading.RLock(), os.getpid()
        self._gone = ""
        self._ends_at = time.monotonic() + spec.limits.lifetime_s
        self._end = weakref.finalize(self, _end, self.folder, self._groups, self._pid)

    @property
    def alive(self) -> bool:
        """False after `close`, after its lifetime, and in a forked child."""
        over = time.monotonic() > self._ends_at
        return not self._gone and not over and self._pid == os.getpid()

    def exec(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes = b"",
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> ExecResult:
        """See `Sandbox.exec`; what left the program's process group is not ended."""
        argv, limit_s = words_of(argv), self._deadline(timeout_s)
        with self._lock:
            where = self._place(cwd)
            env = {**self._environment(), **(env or {})}
            result = run_program(
                argv, stdin, where, env, limit_s, self.spec.limits.output_bytes, self._groups
            )
            self._require_alive()
        return result

    def cell(
        self, code: str, *, kernel: str = "main", timeout_s: float | None = None
    ) -> ExecResult:
        """See `Sandbox.cell`."""
        limit_s = self._deadline(timeout_s)
        with self._lock:
            self._require_alive()
            runner = self._runners.pop(kernel, None)  # kept only once it has answered
            if runner is None:
                runner = Runner(sys.executable, self.folder, self._environment(), self._groups)
            result = runner.cell(code, limit_s, self.spec.limits.output_bytes)
            if not result.state_lost:
                self._runners[kernel] = runner
            self._require_alive()
        return result

    def put(self, path: str, data: bytes, *, mode: int = 0o644) -> None:
        """See `Sandbox.put`; only below the workdir."""
        limit = self.spec.limits.file_bytes
        if len(data) > limit:
            raise OSError(errno.EFBIG, f"{len(data)} bytes are over the limit of {limit}", path)
        with self._lock:
            self._require_alive()
            write_file(self.folder, self._names(path), data, mode)

    def get(self, path: str, *, max_bytes: int | None = None) -> bytes:
        """See `Sandbox.get`; only below the workdir."""
        limit = self.spec.limits.file_bytes
        with self._lock:
            self._require_alive()
            wanted = limit if max_bytes is None else min(max_bytes, limit)
            return read_file(self.folder, self._names(path), wanted)

    def shell(self, command: str, **_: object) -> NoReturn:
        """Not offered.

        Raises:
            Unsupported: always.
        """
        raise Unsupported(f"the {NAME} backend has no stateful shell; use exec(['sh', '-c', ...])")

    def snapshot(self) -> NoReturn:
        """Not offered.

        Raises:
            Unsupported: always.
        """
        raise Unsupported(f"the {NAME} backend takes no snapshots and forks no boxes")

    def fork(self, n: int = 1, snapshot: object = None, *, fresh: object = None) -> NoReturn:
        """Not offered.

        Raises:
            Unsupported: always.
        """
        self.snapshot()

    def fork_kernel(self, kernel: str = "main", into: str = "") -> NoReturn:
        """Not offered.

        Raises:
            Unsupported: always.
        """
        self.snapshot()

    def close(self) -> None:
        """End what it started and remove its folder. Safe to call twice; never raises."""
        self._gone = self._gone or "it was closed"
        if self._pid != os.getpid():
            return
        while not self._lock.acquire(timeout=0.05):  # a call in progress ends with its group
            for group in list(self._groups):
                group.kill()
        self._end()
        self._lock.release()

    def _require_alive(self) -> None:
        if self.alive:
            return
        if self._pid != os.getpid():
            raise SandboxDied(f"box {self.id}: it belongs to another process")
        if not self._gone:
            self._gone = f"the lifetime of {self.spec.limits.lifetime_s:.0f} s is over"
            self._end()
        raise SandboxDied(f"box {self.id}: {self._gone}")

    def _deadline(self, timeout_s: float | None) -> float:
        timeout_s = deadline_of(timeout_s, self.spec.limits)
        return max(0.001, min(timeout_s, self._ends_at - time.monotonic()))

    def _names(self, path: str) -> list[str]:
        """The steps from the folder to `path`, which is relative to it or below the workdir."""
        whole = os.path.normpath(os.path.join(self.spec.workdir, path))
        for root in (self.spec.workdir, self.folder):
            if whole.startswith(root + "/"):
                return whole[len(root) + 1 :].split("/")
        raise PermissionError(errno.EACCES, "outside the workspace", path)

    def _place(self, cwd: str | None) -> str:
        self._require_alive()
        workdir = self.spec.workdir
        if cwd is not None and (cwd == workdir or cwd.startswith(workdir + "/")):
            cwd = cwd[len(workdir) + 1 :]
        return os.path.join(self.folder, cwd or "")

    def _environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": self.folder,
            "TMPDIR": self.folder,
            "LANG": "C.UTF-8",
            "TERM": "dumb",
            **self.spec.env,
        }


def _end(folder: str, groups: set[Group], owner: int) -> None:
    if os.getpid() != owner:  # a forked child must not end its parent's box
        return
    for group in list(groups):
        group.end()
    shutil.rmtree(folder, ignore_errors=True)
