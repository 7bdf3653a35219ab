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
from typing import NoReturn, Self, TypeVar

from turnwise.sandboxes.base import (
    ExecResult,
    Sandbox,
    SandboxDied,
    SandboxError,
    SandboxSpec,
    StartFailed,
    Unsupported,
)
from turnwise.sandboxes.closing import ClosedAtExit

T = TypeVar("T")
_here = threading.local()
_numbers = itertools.count()


class Room(ClosedAtExit):
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
        self._kernels: dict[str, int] = {}
        """The processes of those that have been led into the folder."""
        self._shells: dict[str, int] = {}
        self._closed = False
        made = self._asked(lambda: box.exec(["mkdir", "-p", path]))
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
        cwd = posixpath.join(self.path, cwd or "")
        return self._asked(
            lambda: self.box.exec(argv, stdin=stdin, cwd=cwd, env=env, timeout_s=timeout_s)
        )

    def cell(
        self, code: str, *, kernel: str = "main", timeout_s: float | None = None
    ) -> ExecResult:
        """See `Sandbox.cell`."""
        name, lead = self._own(kernel), f"import os; os.chdir({self.path!r}); print(os.getpid())"
        self._lead(self._kernels, kernel, lambda: self.box.cell(f"{lead}; del os", kernel=name))
        result = self._asked(lambda: self.box.cell(code, kernel=name, timeout_s=timeout_s))
        if result.state_lost:
            self._kernels.pop(kernel, None)
        return result

    def shell(
        self, command: str, *, name: str = "main", timeout_s: float | None = None
    ) -> ExecResult:
        """See `Sandbox.shell`."""
        own, lead = self._own(name), f"cd {self.path} && echo $$"
        self._lead(self._shells, name, lambda: self.box.shell(lead, name=own))
        result = self._asked(lambda: self.box.shell(command, name=own, timeout_s=timeout_s))
        if result.state_lost:
            self._shells.pop(name, None)
        return result

    def put(self, path: str, data: bytes, *, mode: int = 0o644) -> None:
        """See `Sandbox.put`; a path that does not begin with / is the room's."""
        self._asked(lambda: self.box.put(posixpath.join(self.path, path), data, mode=mode))

    def get(self, path: str, *, max_bytes: int | None = None) -> bytes:
        """See `Sandbox.get`; a path that does not begin with / is the room's."""
        return self._asked(
            lambda: self.box.get(posixpath.join(self.path, path), max_bytes=max_bytes)
        )

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
            self._end_workers()
            self.box.exec(["rm", "-rf", self.path])

    def _end_workers(self) -> None:
        """End its kernels and shells, whatever the agent has made of them."""
        workers = [*self._kernels.values(), *self._shells.values()]
        if workers:
            self.box.exec(["kill", "-KILL", *map(str, workers)])
        for kernel in self._kernels:  # who asks for a dead one gets a fresh one, which obeys
            self.box.cell("import os; os._exit(0)", kernel=self._own(kernel))
        for name in self._shells:
            self.box.shell("exit", name=self._own(name))

    def _own(self, name: str) -> str:
        return f"{posixpath.basename(self.path)}-{name}"

    def _lead(self, led: dict[str, int], name: str, lead: Callable[[], ExecResult]) -> None:
        """Lead a kernel or shell that is new into the room's folder, and note its process."""
        if name not in led:
            result = self._asked(lead)
            with contextlib.suppress(ValueError):  # the folder is gone: it stays where it is
                led[name] = int(result.stdout)

    def _asked(self, call: Callable[[], T]) -> T:
        """What a call of the box gives.

        Raises:
            SandboxDied: it is closed or gone; never `out_of_memory`, as any room may have used up
                what all of them share.
        """
        if self._closed:
            raise SandboxDied(f"room {self.id}: it was closed")
        try:
            return call()
        except SandboxDied as error:
            error.out_of_memory = False
            raise


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
        self._within: list[contextlib.AbstractContextManager[Self]] = []
        self._boxes: dict[tuple[str, str], Sandbox] = {}
        self._lock, self._opening = threading.Lock(), threading.Lock()
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
        box = self._box(spec, open_box, key)
        return Room(box, f"{box.spec.workdir}/room-{next(_numbers)}", spec)

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
        if self._pid != os.getpid():  # a forked child must not end its parent's boxes
            return
        with self._lock:
            self._closed = True
            boxes, self._boxes = self._boxes, {}
        for box in boxes.values():
            box.close()

    def __enter__(self) -> Self:
        self._within.append(self.current())
        return self._within[-1].__enter__()

    def __exit__(self, *_: object) -> None:
        self._within.pop().__exit__(None, None, None)
        self.close()

    def _box(
        self, spec: SandboxSpec, open_box: Callable[[SandboxSpec], Sandbox], key: str
    ) -> Sandbox:
        if self._pid != os.getpid():  # nor can it speak over its parent's channels
            self._boxes, self._pid = {}, os.getpid()
            self._lock, self._opening = threading.Lock(), threading.Lock()
        whole = replace(spec, isolation="episode")
        asked = key, repr(whole)
        with self._opening:  # who closes the batch does not wait for a start
            if (box := self._boxes.get(asked)) is None or not getattr(box, "alive", True):
                self._require_open()
                box = open_box(whole)
                self._keep(asked, box)
            return box

    def _keep(self, asked: tuple[str, str], box: Sandbox) -> None:
        with self._lock:
            if not self._closed:
                self._boxes[asked] = box
                return
        box.close()
        self._require_open()

    def _require_open(self) -> None:
        if self._closed:
            raise SandboxDied("the batch of this room has been closed")


def current_batch() -> Batch | None:
    """The batch that is current in this thread."""
    return getattr(_here, "batch", None)
