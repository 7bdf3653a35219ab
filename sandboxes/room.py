"""Rooms: boxes within one box, for a rollout batch whose environments ask for speed.

A room has a folder, kernels and shells of its own in a box that the batch shares. It costs a folder
instead of a box. **No wall stands between the rooms of a batch**: they are of one user, their calls
take turns, and an agent that looks for the others finds them. Batches share nothing, and the box of
a batch ends with it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import posixpath
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import NoReturn, Self

from turnwise.sandboxes.base import (
    ExecResult,
    Sandbox,
    SandboxDied,
    SandboxError,
    SandboxSpec,
    StartFailed,
    Unsupported,
)

_here = threading.local()
_numbers = itertools.count()


class Room:
    """A `Sandbox` in a box that others share.

    `snapshot`, `fork` and `fork_kernel` raise `Unsupported`: a box is forked as a whole.

    Args:
        box: The box.
        path: A new folder for the room.
        spec: What the room was asked to be.

    Raises:
        SandboxError: the folder cannot be made.
    """

    def __init__(self, box: Sandbox, path: str, spec: SandboxSpec) -> None:
        self.box, self.path = box, path
        self.id, self.backend = f"{box.id}/{posixpath.basename(path)}", box.backend
        self.spec = replace(spec, workdir=path)
        self.capabilities = box.capabilities & {"files", "python_state", "shell"}
        self._kernels: set[str] = set()
        self._shells: set[str] = set()
        self._closed = False
        made = box.exec(["mkdir", "-p", path])
        if made.exit_code:
            raise StartFailed(f"no room could be made: {made.text.strip()[-300:]}")

    @property
    def alive(self) -> bool:
        """Whether it is open and its box has not been found gone."""
        return not self._closed and bool(getattr(self.box, "alive", True))

    def exec(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes = b"",
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> ExecResult:
        """See `Sandbox.exec`; it starts in the room's folder."""
        self._require_open()
        cwd = posixpath.join(self.path, cwd or "")
        return self.box.exec(argv, stdin=stdin, cwd=cwd, env=env, timeout_s=timeout_s)

    def cell(
        self, code: str, *, kernel: str = "main", timeout_s: float | None = None
    ) -> ExecResult:
        """See `Sandbox.cell`."""
        self._require_open()
        name = self._own(kernel)
        if kernel not in self._kernels:
            self.box.cell(f"import os; os.chdir({self.path!r}); del os", kernel=name)
        result = self.box.cell(code, kernel=name, timeout_s=timeout_s)
        _note(self._kernels, kernel, result)
        return result

    def shell(
        self, command: str, *, name: str = "main", timeout_s: float | None = None
    ) -> ExecResult:
        """See `Sandbox.shell`."""
        self._require_open()
        own = self._own(name)
        if name not in self._shells:
            self.box.shell(f"cd {self.path}", name=own)
        result = self.box.shell(command, name=own, timeout_s=timeout_s)
        _note(self._shells, name, result)
        return result

    def put(self, path: str, data: bytes, *, mode: int = 0o644) -> None:
        """See `Sandbox.put`; a path that does not begin with / is the room's."""
        self._require_open()
        self.box.put(posixpath.join(self.path, path), data, mode=mode)

    def get(self, path: str, *, max_bytes: int | None = None) -> bytes:
        """See `Sandbox.get`; a path that does not begin with / is the room's."""
        self._require_open()
        return self.box.get(posixpath.join(self.path, path), max_bytes=max_bytes)

    def snapshot(self) -> NoReturn:
        """Raise `Unsupported`."""
        raise _whole("snapshot")

    def fork(self, n: int = 1, snapshot: object = None, *, fresh: object = None) -> NoReturn:
        """Raise `Unsupported`."""
        raise _whole("fork")

    def fork_kernel(self, kernel: str = "main", *, into: str = "fork-1") -> NoReturn:
        """Raise `Unsupported`."""
        raise _whole("fork_kernel")

    def close(self) -> None:
        """End its kernels and shells and remove its folder. Safe to call twice; never raises."""
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(SandboxError, OSError):  # its box is gone, and all in it
            for kernel in self._kernels:
                self.box.cell("import os; os._exit(0)", kernel=self._own(kernel))
            for name in self._shells:
                self.box.shell("exit", name=self._own(name))
            self.box.exec(["rm", "-rf", self.path])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _own(self, name: str) -> str:
        return f"{posixpath.basename(self.path)}-{name}"

    def _require_open(self) -> None:
        if self._closed:
            raise SandboxDied(f"room {self.id}: it was closed")


def _note(placed: set[str], name: str, result: ExecResult) -> None:
    """Whoever comes anew after a loss must be led into the room's folder again."""
    (placed.discard if result.state_lost else placed.add)(name)


def _whole(what: str) -> Unsupported:
    return Unsupported(f"{what} works on whole boxes: ask for isolation='episode', the default")


class Batch:
    """The boxes whose rooms the environments of one rollout share. A `with` makes it current.

    Environments that are made while it is current belong to it. `EnvPool`, and so `rollout`,
    `evaluate` and `make_vec`, make theirs so; one that is made by hand is a batch of its own.

    Example:
        with Batch():
            one = open_sandbox(isolation="batch")
            two = open_sandbox(isolation="batch")  # another room of the same box
    """

    def __init__(self) -> None:
        self._closed = False
        self._boxes: dict[tuple[str, str], Sandbox] = {}
        self._lock = threading.Lock()
        self._pid = os.getpid()

    def room(self, spec: SandboxSpec, open_box: Callable[[SandboxSpec], Sandbox], key: str) -> Room:
        """A new room of the box for `key` and `spec`, which is opened for the first one.

        When a box has died, its rooms have, and the next room is in a new one.

        Args:
            spec: What is asked for; the limits hold for all rooms of the box together.
            open_box: Opens a box.
            key: What tells boxes apart that are opened in other ways.

        Raises:
            SandboxError: it could not be started, or the batch has been closed.
        """
        return Room(self._box(spec, open_box, key), f"/workspace/room-{next(_numbers)}", spec)

    @contextlib.contextmanager
    def current(self) -> Iterator[Self]:
        """Make it the batch of what this thread makes within; it stays open afterwards."""
        before = current_batch()
        _here.batch = self
        try:
            yield self
        finally:
            _here.batch = before

    def close(self) -> None:
        """Close its boxes, and so all rooms. Safe to call twice; never raises."""
        self._closed = True
        with self._lock:
            boxes, self._boxes = self._boxes, {}
        if self._pid == os.getpid():
            for box in boxes.values():
                box.close()

    def __enter__(self) -> Self:
        self._within = self.current()
        return self._within.__enter__()

    def __exit__(self, *_: object) -> None:
        self._within.__exit__(None, None, None)
        self.close()

    def _box(
        self, spec: SandboxSpec, open_box: Callable[[SandboxSpec], Sandbox], key: str
    ) -> Sandbox:
        if self._pid != os.getpid():  # a forked child cannot speak over its parent's channels
            self._boxes, self._lock, self._pid = {}, threading.Lock(), os.getpid()
        whole = replace(spec, isolation="episode")
        asked = key, repr(whole)
        with self._lock:
            if self._closed:
                raise SandboxDied("the batch of this room has been closed")
            box = self._boxes.get(asked)
            if box is None or not getattr(box, "alive", True):
                box = self._boxes[asked] = open_box(whole)
            return box


def current_batch() -> Batch | None:
    """The batch that is current in this thread."""
    return getattr(_here, "batch", None)
