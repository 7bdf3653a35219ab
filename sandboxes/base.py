"""What every sandbox promises, whatever runs it.

* SandboxError           the machine failed, not the agent: masked and retried, never scored
  - StartFailed          the box could not be started (retryable)
  - SandboxDied          it was running and is gone (retryable)
  - ProtocolError        the guest sent something that is not a frame (retryable)
  - Unsupported          the backend lacks this capability (not retryable)
  - NoSafeSandbox        nothing on this machine isolates; the message holds the command that
                         fixes it (not retryable)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Protocol, Self, get_args, runtime_checkable

if TYPE_CHECKING:
    from turnwise.sandboxes.snapshot import Snapshot


class SandboxError(RuntimeError):
    """An infrastructure failure. `retryable` says whether a fresh box may help."""

    retryable = True


class StartFailed(SandboxError):
    """The box could not be started."""


class SandboxDied(SandboxError):
    """The box was running and is gone; its state is lost."""

    out_of_memory = False
    """Whether it went because its own processes had used up `Limits.memory_mb`: what the agent did,
    not the machine. `SandboxEnv` tells the agent so, and a grader that meets it pays nothing."""


class ProtocolError(SandboxError):
    """The guest sent something that is not a frame of ours."""


class Unsupported(SandboxError):
    """This backend lacks the capability that was asked for."""

    retryable = False


class NoSafeSandbox(SandboxError):
    """No backend on this machine isolates. The message holds the command that fixes it."""

    retryable = False


@dataclass(frozen=True, slots=True)
class Limits:
    """What one box may use. Every field is enforced or the backend refuses to start."""

    memory_mb: int = 256
    pids: int = 64
    cpus: float = 1.0
    """Cores; rounded up to whole ones where no cgroup can be made."""
    disk_mb: int = 64
    """Of each writable folder: the workdir and /tmp."""
    inodes: int = 20_000
    """Files and folders in each writable folder."""
    output_bytes: int = 1 << 20
    """Kept per stream and call, head and tail; the rest is counted in `ExecResult.truncated`."""
    file_bytes: int = 64 << 20
    wall_s: float = 30.0
    """Default deadline of one call."""
    lifetime_s: float = 3600.0

    def __post_init__(self) -> None:
        for limit in fields(self):
            value = getattr(self, limit.name)
            if not value > 0:
                raise ValueError(f"Limits.{limit.name} must be above 0, got {value!r}")


@dataclass(frozen=True, slots=True)
class NetPolicy:
    """No network by default; `proxy` reaches `allow` through a host-run proxy on a unix socket."""

    mode: Literal["none", "proxy"] = "none"
    allow: tuple[str, ...] = ()


Isolation = Literal["episode", "batch"]
"""`episode`: a box for each, the default. `batch`: a room in a box that one rollout batch shares,
with a folder, kernels and shells of its own; no wall stands between the rooms of a box."""


@dataclass(frozen=True, slots=True)
class SandboxSpec:
    """Everything that decides what a box is; equal specs may share a warm pool."""

    image: str | None = None
    limits: Limits = field(default_factory=Limits)
    net: NetPolicy = field(default_factory=NetPolicy)
    env: Mapping[str, str] = field(default_factory=dict)
    workdir: str = "/workspace"
    isolation: Isolation = "episode"

    def __post_init__(self) -> None:
        if self.isolation not in get_args(Isolation):
            known = " or ".join(map(repr, get_args(Isolation)))
            raise ValueError(f"isolation must be {known}, got {self.isolation!r}")


@dataclass(frozen=True, slots=True)
class ExecResult:
    """What a call did. A non-zero exit, a missing program and a timeout are results, not errors."""

    exit_code: int
    """128 + signal when killed by a signal; 127 when the program does not exist."""
    stdout: bytes = b""
    stderr: bytes = b""
    timed_out: bool = False
    truncated: int = 0
    """Bytes of output that were counted and dropped."""
    state_lost: bool = False
    """The kernel or shell behind the call had to be killed; the next call gets a fresh one."""
    wall_s: float = 0.0

    @property
    def text(self) -> str:
        """Standard output, then standard error, decoded; undecodable bytes become U+FFFD."""
        return (self.stdout + self.stderr).decode("utf-8", "replace")


MAX_TIMEOUT_S = 7 * 86_400.0


def words_of(argv: Sequence[str]) -> list[str]:
    """`argv` as a list.

    Raises:
        ValueError: it is a string, empty, or holds NUL.
    """
    if isinstance(argv, str) or not argv or any("\0" in word for word in argv):
        raise ValueError(f"argv must be a list of words without NUL, got {argv!r}")
    return list(argv)


def deadline_of(timeout_s: float | None, limits: Limits) -> float:
    """Seconds that a call may take.

    Raises:
        ValueError: `timeout_s` is not above 0, or longer than a week.
    """
    timeout_s = limits.wall_s if timeout_s is None else timeout_s
    if not 0.0 < timeout_s <= MAX_TIMEOUT_S:
        raise ValueError(f"timeout_s must be in (0, {MAX_TIMEOUT_S:.0f}], got {timeout_s!r}")
    return timeout_s


@runtime_checkable
class Sandbox(Protocol):
    """One running box. Synchronous; safe to use from many threads; a context manager."""

    id: str
    backend: str
    spec: SandboxSpec
    capabilities: frozenset[str]

    def exec(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes = b"",
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> ExecResult:
        """Run `argv` and wait; no shell is involved, and every process it left is killed.

        Raises:
            SandboxDied: the box is gone.
        """

    def cell(
        self, code: str, *, kernel: str = "main", timeout_s: float | None = None
    ) -> ExecResult:
        """Run Python `code` in the named, stateful kernel; its prints are the result's stdout.

        An exception in `code` is a result with exit code 1 and the traceback on stderr.

        Raises:
            SandboxDied: the box is gone.
        """

    def shell(
        self, command: str, *, name: str = "main", timeout_s: float | None = None
    ) -> ExecResult:
        """Run `command` in the named, stateful shell: bash, or sh where there is none.

        Folder, variables, functions and background jobs outlive the command. Its standard input is
        empty, and redirections by `exec` of streams 0 and 2 last for one command. A late command
        is interrupted as by Ctrl-C; a shell deaf to that is killed, with all it started, and the
        result says `state_lost`. So it does for a command that closed the shell (`exit 3`).

        Raises:
            SandboxDied: the box is gone.
            ValueError: the command holds NUL.
        """

    def put(self, path: str, data: bytes, *, mode: int = 0o644) -> None:
        """Write a file inside the box as the guest user; parents are made, links not followed.

        Raises:
            SandboxDied: the box is gone.
            OSError: the guest could not write there (its disk is full, the path is a folder).
        """

    def get(self, path: str, *, max_bytes: int | None = None) -> bytes:
        """Read a regular file from inside the box.

        Raises:
            SandboxDied: the box is gone.
            OSError: there is no such regular file, or it is longer than `max_bytes`.
        """

    def snapshot(self) -> Snapshot:
        """The files of the workdir now; `Snapshot.kinds` and `left_out` say what is not in it.

        Raises:
            SandboxDied: the box is gone.
            OSError: they are over `Limits.file_bytes` or `Limits.inodes`, or cannot be read.
        """

    def fork(
        self,
        n: int = 1,
        snapshot: Snapshot | None = None,
        *,
        fresh: Callable[[], Sandbox] | None = None,
    ) -> list[Sandbox]:
        """`n` fresh boxes of the same spec with the files of `snapshot`, or else of now.

        All or none are returned; the caller closes them.

        Args:
            fresh: where the boxes come from that the files are put into: `pool.lease` of a
                `warm_pool` of the same spec. They are started by default.

        Raises:
            SandboxError: a box could not be started, or this one is gone.
            OSError: as `snapshot`, and when the files do not fit.
            ValueError: `snapshot` is not a whole archive of the kind that `Snapshot` describes,
                `n` is not in 1..256, or `fresh` gives boxes of another spec.
            Unsupported: the backend cannot.
        """

    def fork_kernel(self, kernel: str = "main", *, into: str = "fork-1") -> None:
        """Copy the Python state of `kernel` into another kernel of this box, by `os.fork`.

        Afterwards each has its own variables; files and limits are shared. What is named `into`
        is replaced: forking a kept kernel back is a way to undo. Threads of the kernel other than
        its main one are not in the copy, nor are its child processes; open files are shared.

        Raises:
            SandboxDied: the box is gone.
            OSError: the box is at its limit of processes or memory; or the kernel had ended or
                does not answer, and its state is lost.
            ValueError: `into` is `kernel`.
        """

    def close(self) -> None:
        """Destroy the box and everything in it. Safe to call twice; never raises."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...
