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
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path

from turnwise.sandboxes import cgroup, proxy, seccomp, watchdog
from turnwise.sandboxes.base import (
    Limits,
    NoSafeSandbox,
    SandboxError,
    SandboxSpec,
    StartFailed,
    Unsupported,
)
from turnwise.sandboxes.channel import Channel, GuestBox
from turnwise.sandboxes.inside import (
    MARKER,
    SEGMENT_PAGES,
    START_GUEST,
    accounts,
    check_workdir,
    environment,
    guest_files,
    max_body,
    uid_of_the_moment,
)
from turnwise.sandboxes.spawner import spawn

NAME = "bubblewrap"
INSTALL = "apt-get install -y bubblewrap"
INSTALL_PYTHON = "apt-get install -y python3"
START_TIMEOUT_S = 30.0
BOX_UID = 1000
_counter = itertools.count()
_starting = threading.BoundedSemaphore(max(2, os.cpu_count() or 1))


@dataclass
class _Parts:
    """What a start has made so far, and how to unmake it."""

    group: cgroup.Cgroup
    owner: int = field(default_factory=os.getpid)
    log: int = -1
    process: subprocess.Popen[bytes] | None = None
    guest: int = -1
    channel: Channel | None = None
    watched: watchdog.Watched | None = None
    proxy: proxy.Proxy | None = None

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
        self.group.remove()
        words = _read_log(self.log)
        with contextlib.suppress(OSError):
            os.close(self.log)
        return "; ".join(part for part in (how, words) if part)

    def _kill(self) -> str:
        if self.process is None:
            return ""
        ended = self.process.poll()
        if self.guest >= 0:
            # PID 1 has ended when the last process of its namespace has: wait for just that.
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(self.guest, signal.SIGKILL)
            select.select([self.guest], [], [], 10.0)
            os.close(self.guest)
        if ended is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(0.5)
            self.process.kill()
        self.process.wait()
        return "" if ended is None else f"bwrap had ended with {ended}"


def open_box(spec: SandboxSpec) -> GuestBox:
    """A started box.

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
            return _start(spec, parts)
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


def _start(spec: SandboxSpec, parts: _Parts) -> GuestBox:
    here, there = socket.socketpair()
    info, info_child = os.pipe()
    parts.log = os.memfd_create("turnwise-log")
    token = secrets.token_hex(16)
    denied = _also_denied(parts.group.held)
    files = {MARKER: token.encode(), **accounts(BOX_UID, spec.workdir), **guest_files()}
    fds = {path: _memfd(path, data) for path, data in files.items()}
    filter_fd = _memfd("seccomp", seccomp.compile_filter(also_denied=denied))
    door = _door(spec, parts)
    try:
        argv = command(spec, fds, filter_fd, info_child, [token, str(there.fileno())])
        passed = [*fds.values(), filter_fd, info_child, there.fileno(), *door]
        parts.process = spawn(lambda: _popen(argv, passed, parts, spec))
    finally:
        there.close()
        for fd in (*fds.values(), filter_fd, info_child, *door):
            os.close(fd)
    parts.channel = Channel(here, max_body(spec))
    pid = _guest_pid(info)
    parts.guest = os.pidfd_open(pid)
    parts.group.add(pid)
    _hello(spec, parts, door)
    _watch(spec, parts, pid)
    return GuestBox(f"bwrap-{token[:8]}", NAME, spec, parts.channel, parts.end)


def _door(spec: SandboxSpec, parts: _Parts) -> list[int]:
    """The descriptor on which the box hands its connections to the proxy; none without one."""
    if spec.net.mode == "none":
        return []
    ours, theirs = socket.socketpair()
    parts.proxy = proxy.Proxy(spec.net.allow, ours)
    return [theirs.detach()]


def _popen(
    argv: list[str], fds: list[int], parts: _Parts, spec: SandboxSpec
) -> subprocess.Popen[bytes]:
    """Start bwrap; runs on the spawner thread, whose CPU affinity it borrows."""
    number = os.getpid() * 31 + next(_counter)
    uid = uid_of_the_moment() if os.geteuid() == 0 else None
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


def command(
    spec: SandboxSpec, files: dict[str, int], filter_fd: int, info_fd: int, guest_args: list[str]
) -> list[str]:
    """The bwrap command line; `files` maps a path in the box to a descriptor with its content."""
    argv = _premount(spec.limits)
    argv += [bwrap(), "--unshare-pid", "--unshare-uts", "--unshare-cgroup-try"]
    argv += ["--unshare-net", "--unshare-user", "--disable-userns"]
    argv += ["--uid", str(BOX_UID), "--gid", str(BOX_UID), "--hostname", "sandbox"]
    argv += ["--die-with-parent", "--new-session", "--as-pid-1", "--clearenv", "--cap-drop", "ALL"]
    argv += _rootfs()
    # What there is of the kernel's settings per namespace would be the box's own to change.
    argv += ["--proc", "/proc", "--ro-bind", "/proc/sys", "/proc/sys"]
    argv += ["--dev", "/dev", "--remount-ro", "/dev"]
    for place, folder in (("/dev/shm", "/dev/shm"), ("/tmp", "/tmp"), (_WORK, spec.workdir)):
        argv += ["--bind", place, folder]
    for path, fd in files.items():
        argv += ["--perms", "0444", "--ro-bind-data", str(fd), path]
    argv += ["--remount-ro", "/", "--chdir", spec.workdir]
    argv += ["--seccomp", str(filter_fd), "--info-fd", str(info_fd)]
    return [*argv, box_python(), "-I", "-S", "-B", "-c", START_GUEST, *guest_args]


_WORK = "/var/tmp"
"""Where the workdir is mounted before bwrap takes it over; any folder that every host has."""


def _premount(limits: Limits) -> list[str]:
    """What starts bwrap in namespaces where the writable folders are ready.

    They need a bound on files as well as on bytes, and `bwrap --tmpfs` sets only the latter. The
    namespaces belong to a user namespace of their own, so that no right of root's is needed.
    """
    folders = (("/dev/shm", 16, 1777), ("/tmp", limits.disk_mb, 1777), (_WORK, limits.disk_mb, 755))
    mounts = [
        f"{_program('mount')} -t tmpfs"
        f" -o nosuid,nodev,size={size}m,mode={mode},nr_inodes={limits.inodes + 1} tmpfs {place}"
        for place, size, mode in folders
    ]
    # Segments outlive their makers and could leave no memory for the guest. Linux before 5.19 does
    # not let us bound them; there they only count for the cgroup, or are denied without one.
    segments = f"{{ echo {SEGMENT_PAGES} >/proc/sys/kernel/shmall; }} 2>/dev/null || :"
    script = " && ".join([*mounts, f"{{ {segments}; }}", 'exec "$@"'])
    unshare = [_program("unshare"), "--user", "--map-root-user", "--mount", "--ipc"]
    return [*unshare, "/bin/sh", "-c", script, "-"]


@cache
def _program(name: str) -> str:
    """Where a program of util-linux is.

    Raises:
        NoSafeSandbox: it is missing.
    """
    path = shutil.which(name)
    if path is None:
        raise NoSafeSandbox(f"{name} is not installed; run: apt-get install -y util-linux")
    return path


def _rootfs() -> list[str]:
    argv = ["--ro-bind", "/usr", "/usr"]
    for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
        path = Path("/", name)
        if path.is_symlink():
            argv += ["--symlink", os.readlink(path).lstrip("/"), str(path)]
        elif path.is_dir():
            argv += ["--ro-bind", str(path), str(path)]
    for file in ("/etc/alternatives", "/etc/ld.so.cache"):
        argv += ["--ro-bind-try", file, file]
    return argv


@cache
def bwrap() -> str:
    """Where bwrap is.

    Raises:
        NoSafeSandbox: it is missing, or lacks an option that a limit needs.
    """
    path = shutil.which("bwrap")
    if path is None:
        raise NoSafeSandbox(f"bubblewrap is not installed; run: {INSTALL}")
    answer = subprocess.run([path, "--help"], capture_output=True, timeout=10, check=False)
    for option in (b"--size", b"--disable-userns", b"--as-pid-1"):
        if option not in answer.stdout + answer.stderr:
            raise NoSafeSandbox(
                f"{path} is too old, it has no {option.decode()}: bubblewrap 0.8 or later is needed"
                f" (Debian 12, Ubuntu 24.04); upgrade it, then run: {INSTALL}"
            )
    return path


@cache
def box_python() -> str:
    """A Python 3.8 or later that the box can run: one whose real path is under /usr.

    Raises:
        NoSafeSandbox: there is none.
    """
    for path in ("/usr/bin/python3", "/usr/local/bin/python3"):
        if os.access(path, os.X_OK) and os.path.realpath(path).startswith("/usr/"):
            return path
    raise NoSafeSandbox(
        f"the box runs this host's /usr, which holds no python3; run: {INSTALL_PYTHON}"
    )


def _memfd(name: str, data: bytes) -> int:
    fd = os.memfd_create(f"turnwise-{name.rsplit('/', 1)[-1]}")
    os.write(fd, data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _guest_pid(info: int) -> int:
    """PID 1 of the box as this process numbers it, from what bwrap writes to its info-fd."""
    text = b""
    deadline = time.monotonic() + START_TIMEOUT_S
    try:
        while b"}" not in text:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([info], [], [], left)[0]:
                raise StartFailed(f"bwrap did not start within {START_TIMEOUT_S:.0f} s")
            part = os.read(info, 4096)
            if not part:
                raise StartFailed("bwrap ended before it started the guest")
            text += part
    finally:
        os.close(info)
    return int(json.loads(text)["child-pid"])


def _hello(spec: SandboxSpec, parts: _Parts, door: list[int]) -> None:
    assert parts.channel is not None
    limits = asdict(spec.limits) | {"rlimit_pids": _rlimit_is_per_box()}
    fields = {"limits": limits, "env": environment(spec), "workdir": spec.workdir}
    if door:
        fields["relay"] = {"at": str(door[0]), "port": proxy.PORT}
    try:
        parts.channel.call("hello", fields, timeout_s=START_TIMEOUT_S)
    except (SandboxError, OSError) as error:
        raise StartFailed(f"the guest did not start: {error}") from None


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


def _watch(spec: SandboxSpec, parts: _Parts, pid: int) -> None:
    memory = None if "memory" in parts.group.held else spec.limits.memory_mb << 20
    pids = None if "pids" in parts.group.held or _rlimit_is_per_box() else spec.limits.pids
    if memory is not None or pids is not None:
        parts.watched = watchdog.Watched(pid, memory, pids)
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
