"""`SandboxEnv`: an environment whose tools run code in a sandbox.

Example:
    class Times(CodeEnv):
        Task = Factor

        def tasks(self, split):
            first = 100 * self.splits.index(self.known_split(split))
            return [Factor(value=first + i) for i in range(100)]

        def setup(self, task, rng):
            self.inputs = [rng.randrange(1000) for _ in range(3)]
            return f"Write solve.py: it reads a number and prints it times {task.value}."

        @tool(final=True)
        def submit(self) -> None:
            '''Hand in solve.py; ends the episode.'''

        @reward()
        def solved(self, episode) -> float:
            files = self.taken("solve.py")
            with self.fresh_box(files) as box:  # which no code of the agent has run in before
                for number in self.inputs if files else ():
                    ran = box.exec(["python3", "solve.py"], stdin=b"%d" % number)
                    if ran.stdout.split() != [b"%d" % (number * self.task.value)]:
                        return 0.0
            return float(bool(files))

        def expert(self):
            code = f"print(int(input()) * {self.task.value})"
            if self.taken("solve.py") == {"solve.py": code.encode()}:
                return self.call_text("submit")
            return self.call_text("write", path="solve.py", text=code)

The right answers never enter a box: a grader runs the agent's files in a fresh one, and compares
on the host what they print. Code that judges beside the agent's code can be fooled by it.

Whatever goes wrong with a box is a `SandboxError` that leaves `step`: the rollout masks and retries
the episode. What the agent's code does wrong is a result that the agent reads; if it uses up the
memory of its box until even our guest is gone, the episode ends without success.
"""

from __future__ import annotations

import os
import posixpath
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from turnwise.envs.base import Response
from turnwise.envs.signatures import Tool
from turnwise.envs.snapshot import ByReplay
from turnwise.envs.tool_env import ToolEnv
from turnwise.envs.tools import Grader, ToolFailed
from turnwise.envs.types import Task
from turnwise.sandboxes.base import (
    ExecResult,
    Isolation,
    Limits,
    NetPolicy,
    Sandbox,
    SandboxDied,
    StartFailed,
)
from turnwise.sandboxes.open import open_sandbox
from turnwise.sandboxes.pool import WarmPool, start_kernel, warm_pool
from turnwise.sandboxes.reaper import end_at_sigterm
from turnwise.sandboxes.room import Batch, current_batch

MAX_POOLED = 4096
"""Above any number of live episodes: an episode that grades holds two boxes, and must not wait for
another one that does, too."""
START_PAUSES_S = (0.5, 1.5, 3.0)
"""Before further tries to start a box: an engine that was started anew answers after some seconds.
No code of the agent has run by then."""


class SandboxEnv(ByReplay, ToolEnv):
    """A `ToolEnv` with a box: use `run_...`, `put_file` and `get_file`, or `self.box` itself.

    A box is opened when an episode first uses it and destroyed when the episode ends, by `reset`
    or by `close`. No two episodes see the same one, unless `isolation` is `batch`.

    What a kernel, a shell and a file system hold cannot be saved together, so a snapshot is the
    seed and the actions: `restore` and `fork` play them again in a box of their own.

    Args:
        backend, image: override the class's.
        options: See `ToolEnv`.
    """

    backend: str = "auto"
    """A name of `turnwise.sandboxes.BACKENDS`, or `auto`."""
    image: str | None = None
    limits: Limits = Limits(wall_s=10.0)
    net: NetPolicy = NetPolicy()
    """No network; or the hosts that a proxy lets through. Fresh boxes for graders have the same."""
    isolation: ClassVar[Isolation] = "episode"
    """`batch`: the environments of one rollout share a box, each with a folder, a kernel and a
    shell of its own. It is faster, no wall stands between their episodes, and `limits` hold for all
    of them together. Graders get boxes of their own either way."""
    warm: ClassVar[int] = 0
    """So many boxes are kept ready for all environments of this class in this process."""
    step_timeout_s = 120.0

    def __init__(
        self, *, backend: str | None = None, image: str | None = None, **options: Any
    ) -> None:
        super().__init__(**options)
        end_at_sigterm()  # boxes start on the threads of a rollout, which cannot arrange for it
        self.backend = backend or type(self).backend
        self.image = image or type(self).image
        self._batch = current_batch() or Batch()
        self._alone = current_batch() is None
        self._box: Sandbox | None = None
        self._used, self._starved = "", False

    @property
    def box(self) -> Sandbox:
        """This episode's box, started at the first use.

        Raises:
            SandboxError: it could not be started.
        """
        if self._box is None:
            self._begin_box()
        assert self._box is not None
        return self._box

    @property
    def workspace(self) -> str:
        """The folder in the box where this episode's files are; commands start there."""
        return self.box.spec.workdir

    def run_program(self, *argv: str, **options: Any) -> ExecResult:
        """Run a program in the workspace; see `Sandbox.exec`."""
        return self.box.exec(argv, **options)

    def run_python(self, code: str, **options: Any) -> ExecResult:
        """Run Python in this episode's kernel; see `Sandbox.cell`."""
        return self.box.cell(code, **options)

    def run_shell(self, command: str, **options: Any) -> ExecResult:
        """Run a command in this episode's shell; see `Sandbox.shell`."""
        return self.box.shell(command, **options)

    def put_file(self, path: str, data: bytes) -> None:
        """Write a file of the workspace.

        Raises:
            ToolFailed: it cannot be written there; so a tool need not catch it.
            SandboxError: the box is gone.
        """
        try:
            self.box.put(self._place(path), data)
        except OSError as error:
            raise ToolFailed(f"{path[:100]}: {error.strerror or error}") from None

    def get_file(self, path: str, *, max_bytes: int | None = None) -> bytes:
        """Read a regular file of the workspace.

        Raises:
            ToolFailed: there is no such file, or it is too long.
            SandboxError: the box is gone.
        """
        try:
            return self.box.get(self._place(path), max_bytes=max_bytes)
        except OSError as error:
            raise ToolFailed(f"{path[:100]}: {error.strerror or error}") from None

    def taken(self, *paths: str, max_bytes: int | None = None) -> dict[str, bytes]:
        """{path: content} of those files of the workspace that there are, for a grader."""
        found: dict[str, bytes] = {}
        for path in paths if self._box is not None else ():
            try:
                found[path] = self.get_file(path, max_bytes=max_bytes)
            except ToolFailed:
                continue
        return found

    def fresh_box(self, files: Mapping[str, bytes] | None = None) -> Sandbox:
        """A new box of the same kind that holds `files`; close it, or use it in a `with`.

        Raises:
            SandboxError: it could not be started.
            OSError: a file does not fit.
        """
        box = self._open()
        try:
            for path, data in (files or {}).items():
                box.put(path, data)
        except BaseException:
            box.close()
            raise
        return box

    @staticmethod
    def prepare(box: Sandbox) -> None:
        """Do what can be done before an episode takes a `warm` box: start its Python."""
        start_kernel(box)

    def release(self) -> None:
        """Give up this episode's box and all in it. Safe to call twice; never raises."""
        box, self._box = self._box, None
        if box is not None:
            box.close()

    def run_tool(self, tool: Tool, args: dict[str, Any]) -> Any:
        """Run a call; a box that the agent's own processes starved to death is the agent's mistake.

        It ends the episode without success: there is nothing left to judge.

        Raises:
            ToolFailed: what the agent reads in place of a result.
            SandboxError: the machine failed.
        """
        try:
            return super().run_tool(tool, args)
        except SandboxDied as error:
            if not error.out_of_memory or self._box is None:  # None: it is no box of the agent's
                raise
            self.release()
            self._starved = self._ended = True
            raise ToolFailed("the sandbox ran out of memory, and all in it is lost") from None

    def _grade(self, answer: Response, grader: Grader) -> float | None:
        # What is no matter of success needs no box, and may be what takes shaping back.
        return 0.0 if self._starved and grader.decides else super()._grade(answer, grader)

    def begin(self, *args: Any, **kwargs: Any) -> Task:
        """Start the books of an episode; the box of the last one is given up."""
        self.release()
        self._used, self._starved = "", False
        return super().begin(*args, **kwargs)

    def judge(self, answer: Response) -> None:
        """Pay the end rewards, and note which backend ran the episode."""
        super().judge(answer)
        if self._used:
            answer.metrics[f"backend_{self._used}"] = 1.0

    def close(self) -> None:
        """Give up the box. Safe to call twice."""
        self.release()
        if self._alone:
            self._batch.close()
            self._batch = Batch()
        super().close()

    def _info(self, answer: Response) -> dict[str, Any]:
        info = {**super()._info(answer), "sandbox": self._used or None}
        if not self._running:
            self.release()
        return info

    def _begin_box(self) -> None:
        if self.isolation == "episode":
            self._box = self._open()
        else:
            with self._batch.current():
                self._box = self._patiently(lambda: open_sandbox(**self._how(), isolation="batch"))
        self._used = self._box.backend

    def _open(self) -> Sandbox:
        return self._patiently(self._open_once)

    @staticmethod
    def _patiently(start: Callable[[], Sandbox]) -> Sandbox:
        for pause_s in START_PAUSES_S:
            try:
                return start()
            except StartFailed:
                time.sleep(pause_s)
        return start()

    def _open_once(self) -> Sandbox:
        if self.warm:
            return _pool(self.warm, prepare=type(self).prepare, **self._how()).lease()
        return open_sandbox(**self._how())

    def _how(self) -> dict[str, Any]:
        """How `open_sandbox` makes a box of this environment."""
        return {
            "backend": self.backend,
            "limits": self.limits,
            "image": self.image,
            "net": self.net,
        }

    def _place(self, path: str) -> str:
        """`path` as the box takes it; in a room it must stay in the workspace."""
        place = posixpath.normpath(posixpath.join(self.workspace, path))
        if self.isolation == "batch" and not place.startswith(self.workspace + "/"):
            raise ToolFailed(f"{path[:100]}: outside of the workspace", "not_allowed")
        return place


_pools: dict[tuple[Any, ...], WarmPool] = {}
_lock = threading.Lock()


def _pool(target: int, **how: Any) -> WarmPool:
    with _lock:
        key = (target, *how.values())
        if key not in _pools:
            _pools[key] = warm_pool(target=target, max_live=MAX_POOLED, **how)
        return _pools[key]


def _forget_in_child() -> None:
    # A pool belongs to the process that started its boxes.
    global _lock
    _lock = threading.Lock()
    _pools.clear()


os.register_at_fork(after_in_child=_forget_in_child)
