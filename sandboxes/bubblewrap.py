"""Boxes by bubblewrap: namespaces, a seccomp filter and limits around this host's own /usr.

No image and no engine. Inside there is /usr (read-only), a private /proc and /dev, and three
small tmpfs; /etc, /home, /root, /var and /run do not exist. Root drops to an unprivileged user
before bwrap starts, so that an escape is nobody rather than root.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import math
import os
import platform
import secrets
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from typing import Any

from turnwise.sandboxes import cgroup, layers, proxy, seccomp, watchdog
from turnwise.sandboxes.base import (
    NoSafeSandbox,
    Sandbox,
    SandboxDied,
    SandboxError,
    SandboxSpec,
    StartFailed,
    Unsupported,
)
from turnwise.sandboxes.bubblewrap_command import BOX_UID, INSTALL_PYTHON, box_python, command
from turnwise.sandboxes.channel import Channel, GuestBox
from turnwise.sandboxes.compiled import compiled_guest
from turnwise.sandboxes.host_files import HostFiles
from turnwise.sandboxes.inside import (
    MARKER,
    accounts,
    check_workdir,
    environment,
    max_body,
    uid_of_the_moment,
)
from turnwise.sandboxes.spawner import spawn

NAME = "bubblewrap"
START_TIMEOUT_S = 30.0
_counter = itertools.count()
_starting = threading.BoundedSemaphore(max(2, os.cpu_count() or 1))


@dataclass
class _Parts:
    """What a start has made so far, and how to unmake it."""

    group: cgroup.Cgroup
    owner: int = field(default_factory=os.getpid)
    user: int | None = None
    """Of this host, whom root becomes for the box."""
    log: int = -1
    process: subprocess.Popen[bytes] | None = None
    guest: int = -1
    """A descriptor of PID 1 of the box; -1 before and after its time."""
    pid: int = 0
    """Its number here; to be trusted only while `guest` is seen to run, under `lock`."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    channel: Channel | None = None
    watched: watchdog.Watched | None = None
    proxy: proxy.Proxy | None = None
    starved_at_end: int | None = None

    def starved(self) -> int:
        """How many of its processes the kernel has ended for want of memory."""
        return self.group.starved() if self.starved_at_end is None else self.starved_at_end

    def end(self) -> str:
        """Kill the box, wait until it is gone, and return the last words of bwrap and guest."""
        if os.getpid() != self.owner:  # a forked child must not end its parent's boxes
            return ""
        if self.watched:
            watchdog.forget(self.watched)
        if self.proxy:
            self.proxy.close()
        if self.channel:
            self.channel.hang_up()
        how = self._kill()
        self.starved_at_end = self.group.starved()
        self.group.remove()
        words = _read_log(self.log)
        with contextlib.suppress(OSError):
            os.close(self.log)
        return "; ".join(part for part in (how, words) if part)

    def _kill(self) -> str:
        if self.process is None:
            return ""
        ended = self.process.poll()
        with self.lock:
            guest, self.guest = self.guest, -1
        if guest >= 0:
            # PID 1 has ended when the last process of its namespace has: wait for just that.
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(guest, signal.SIGKILL)
            select.select([guest], [], [], 10.0)
            os.close(guest)
        if ended is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(0.5)
            self.process.kill()
        self.process.wait()
        return "" if ended is None else f"bwrap had ended with {ended}"


def open_box(spec: SandboxSpec, layer: layers.Layer | None = None) -> GuestBox:
    """A started box.

    Args:
        layer: the files that it starts with; only to root, and where layers can be used.

    Raises:
        NoSafeSandbox: bwrap or a Python under /usr is missing, or too old to hold a limit.
        Unsupported: the spec asks for an image.
        ValueError: its workdir or its list of hosts is none.
        StartFailed: bwrap could not make the namespaces, or the guest did not answer.
    """
    _refuse(spec)
    with _starting:
        _sweep_once()
        parts = _Parts(cgroup.make(next(_counter), spec.limits))
        try:
            return _start(spec, parts, layer)
        except SandboxError as error:
            raise type(error)(_with_words(error, parts.end())) from None
        except OSError as error:
            raise StartFailed(_with_words(error, parts.end())) from error
        except BaseException:
            parts.end()
            raise


def _with_words(error: Exception, words: str) -> str:
    return f"{error} ({words})" if words else str(error)


def _refuse(spec: SandboxSpec) -> None:
    if spec.image is not None:
        raise Unsupported(f"{NAME} runs this host's /usr, not the image {spec.image!r}")
    if spec.net.mode == "proxy":
        proxy.parse_allow(spec.net.allow)
    elif spec.net.mode != "none":
        raise Unsupported(f"{NAME} has no network mode {spec.net.mode!r}; use 'none' or 'proxy'")
    check_workdir(spec)


@dataclass
class _Passed:
    """Descriptors that the box inherits; ours are closed at the end of a `with`."""

    fds: list[int]

    def add(self, fd: int) -> int:
        self.fds.append(fd)
        return fd

    def __enter__(self) -> _Passed:
        return self

    def __exit__(self, *_: object) -> None:
        for fd in self.fds:
            os.close(fd)


def _start(spec: SandboxSpec, parts: _Parts, layer: layers.Layer | None) -> GuestBox:
    here, there = socket.socketpair()
    parts.channel = Channel(here, max_body(spec))
    parts.log = os.memfd_create("turnwise-log")
    token = secrets.token_hex(16)
    told, tell = os.pipe()
    with open(told, "rb", buffering=0) as info:
        with _Passed([there.detach(), tell]) as passed:
            extra = _extra(spec, parts, layer, passed)
            # bwrap writes there while its child waits for it. If it also holds the end to read
            # from, a dead owner is no broken pipe, which would leave the child waiting for ever.
            extra["info_fd"] = passed.add(os.dup(told))
            argv = _argv(spec, parts, token, passed, extra.get("workdir_fd"))
            parts.process = spawn(lambda: _popen(argv, passed.fds, parts, spec))
        parts.pid = _guest_pid(info.fileno())
    parts.guest = os.pidfd_open(parts.pid)
    if not extra["groups"]:
        parts.group.add(parts.pid)
    _hello(spec, parts, extra)
    parts.group.add(parts.pid)  # it is in by now, whoever moved it; no code of the agent's ran yet
    _watch(spec, parts)
    host = HostFiles(spec, partial(_root_of, parts), parts.user, partial(_open_over, spec))
    name = f"bwrap-{token[:8]}"
    return GuestBox(name, NAME, spec, parts.channel, parts.end, host, parts.starved)


def _open_over(spec: SandboxSpec, layer: layers.Layer) -> Sandbox:
    """A box whose workdir is an overlay of `layer`."""
    from turnwise.sandboxes.open import open_spec

    return open_spec(NAME, spec, partial(open_box, layer=layer))


def _extra(
    spec: SandboxSpec, parts: _Parts, layer: layers.Layer | None, passed: _Passed
) -> dict[str, Any]:
    """What this box gets that not every box does, as the guest is told of it."""
    extra: dict[str, Any] = {"groups": [passed.add(fd) for fd in parts.group.open_doors()]}
    if os.geteuid() == 0:
        parts.user = uid_of_the_moment()
        if layer:
            parts.user, workdir = layer.workdir(spec.limits)
            extra["workdir_fd"] = passed.add(workdir)
    for kills in parts.group.open_kills():
        extra["kills"] = passed.add(kills)
    if spec.net.mode != "none":
        ours, theirs = socket.socketpair()
        parts.proxy = proxy.Proxy(spec.net.allow, ours)
        extra["relay"] = {"at": str(passed.add(theirs.detach())), "port": proxy.PORT}
    return extra


def _argv(
    spec: SandboxSpec, parts: _Parts, token: str, passed: _Passed, workdir: int | None
) -> list[str]:
    channel, tell = passed.fds[:2]
    guest = compiled_guest(box_python())
    files = {MARKER: token.encode(), **accounts(BOX_UID, spec.workdir), **guest}
    fds = {path: passed.add(_memfd(path, data)) for path, data in files.items()}
    denied = _also_denied(parts.group.held)
    filter_fd = passed.add(_memfd("seccomp", seccomp.compile_filter(also_denied=denied)))
    return command(spec, fds, filter_fd, tell, [token, str(channel)], workdir)


def _popen(
    argv: list[str], fds: list[int], parts: _Parts, spec: SandboxSpec
) -> subprocess.Popen[bytes]:
    """Start bwrap; runs on the spawner thread, whose CPU affinity it borrows."""
    number = os.getpid() * 31 + next(_counter)
    uid = parts.user
    cores = os.sched_getaffinity(0)
    if "cpu" not in parts.group.held:
        count = min(len(cores), math.ceil(spec.limits.cpus))
        first = number % len(cores)
        os.sched_setaffinity(0, (sorted(cores) * 2)[first : first + count])
    try:
        return subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=parts.log,
            stderr=parts.log,
            pass_fds=fds,
            env={},
            cwd="/",
            user=uid,
            group=uid,
            extra_groups=None if uid is None else [],
            umask=0o022,
            # Ctrl-C is for the owner to handle; it must not end the boxes under it.
            start_new_session=True,
        )
    except OSError as error:
        if uid is None or error.errno not in (errno.EPERM, errno.EINVAL):
            raise
        raise NoSafeSandbox(
            "root cannot become another user here, as in a user namespace without others: start"
            " turnwise as an ordinary user, or the container with a range of users (--privileged)"
        ) from None
    finally:
        os.sched_setaffinity(0, cores)


def _memfd(name: str, data: bytes) -> int:
    fd = os.memfd_create(f"turnwise-{name.rsplit('/', 1)[-1]}")
    os.write(fd, data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _guest_pid(info: int) -> int:
    """PID 1 of the box as this process numbers it, from what bwrap writes to its info-fd."""
    text = b""
    deadline = time.monotonic() + START_TIMEOUT_S
    while b"}" not in text:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([info], [], [], left)[0]:
            raise StartFailed(f"bwrap did not start within {START_TIMEOUT_S:.0f} s")
        part = os.read(info, 4096)
        if not part:
            raise StartFailed("bwrap ended before it started the guest")
        text += part
    return int(json.loads(text)["child-pid"])


def _hello(spec: SandboxSpec, parts: _Parts, extra: dict[str, Any]) -> None:
    assert parts.channel is not None
    limits = asdict(spec.limits) | {"rlimit_pids": _rlimit_is_per_box()}
    fields = {"limits": limits, "env": environment(spec), "workdir": spec.workdir, **extra}
    try:
        parts.channel.call("hello", fields, timeout_s=START_TIMEOUT_S)
    except (SandboxError, OSError) as error:
        raise StartFailed(f"the guest did not start: {error}") from None


def _root_of(parts: _Parts) -> int:
    """A descriptor of the root folder of the box.

    Raises:
        SandboxDied: it is gone.
        OSError: this root may not look into another user's processes.
    """
    with parts.lock, contextlib.suppress(FileNotFoundError):
        root = os.open(f"/proc/{parts.pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        # Until now the number cannot have gone to another process.
        if parts.guest >= 0 and not select.select([parts.guest], [], [], 0)[0]:
            return root
        os.close(root)
    raise SandboxDied("it has ended")


@cache
def _rlimit_is_per_box() -> bool:
    """Since Linux 5.14 RLIMIT_NPROC counts per user namespace; before, per user of the host."""
    major, minor = platform.release().split(".")[:2]
    return (int(major), int("".join(c for c in minor if c.isdigit()) or 0)) >= (5, 14)


def _also_denied(held: frozenset[str]) -> list[dict[str, tuple[int | None, int | None]]]:
    tables = []
    if "memory" not in held:
        tables.append(seccomp.UNLIMITED_MEMORY)
    if "cpu" not in held:
        tables.append(seccomp.UNLIMITED_CPU)
    return tables


def _watch(spec: SandboxSpec, parts: _Parts) -> None:
    memory = None if "memory" in parts.group.held else spec.limits.memory_mb << 20
    pids = None if "pids" in parts.group.held or _rlimit_is_per_box() else spec.limits.pids
    if memory is not None or pids is not None:
        parts.watched = watchdog.Watched(parts.pid, memory, pids)
        watchdog.watch(parts.watched)


def _read_log(fd: int) -> str:
    with contextlib.suppress(OSError):
        size = os.fstat(fd).st_size
        text = os.pread(fd, 2000, max(0, size - 2000)).decode("utf-8", "replace").strip()
        return text + _hint(text)
    return ""


def _hint(text: str) -> str:
    if "unshare failed: No space left on device" in text:
        cure = "sysctl -w user.max_user_namespaces=10000"
        return f"; this host allows no user namespaces: run as root `{cure}`"
    if "uid map" in text or "Operation not permitted" in text or "No permissions" in text:
        return (
            "; this host refuses user namespaces: run as root `sysctl -w"
            " kernel.apparmor_restrict_unprivileged_userns=0 kernel.unprivileged_userns_clone=1`"
            " (inside a container: start it with --privileged)"
        )
    if "No module named" in text:
        return f"; run: {INSTALL_PYTHON}"
    return ""


_sweep_once: Callable[[], int] = cache(cgroup.sweep_leftovers)


def _forget_in_child() -> None:
    # The thread that held a place does not exist in the child, and would never give it back.
    global _starting
    _starting = threading.BoundedSemaphore(max(2, os.cpu_count() or 1))


os.register_at_fork(after_in_child=_forget_in_child)
