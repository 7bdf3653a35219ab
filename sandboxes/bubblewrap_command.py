"""The command line that makes a box of bubblewrap, and the programs of this host that it needs."""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

from turnwise.sandboxes.base import Limits, NoSafeSandbox, SandboxSpec
from turnwise.sandboxes.inside import SEGMENT_PAGES, START_GUEST
from turnwise.sandboxes.owner import owner_of_this_process
from turnwise.sandboxes.strays import signature

INSTALL = "apt-get install -y bubblewrap"
INSTALL_PYTHON = "apt-get install -y python3"
BOX_UID = 1000
_WORK = "/var/tmp"
"""Where the workdir is mounted before bwrap takes it over; any folder that every host has."""


def command(
    spec: SandboxSpec,
    files: dict[str, int],
    filter_fd: int,
    info_fd: int,
    guest_args: list[str],
    workdir: int | None = None,
) -> list[str]:
    """The whole command line.

    Args:
        files: a path in the box, and a descriptor with its content.
        workdir: a descriptor of the folder that is to be the workdir, instead of an empty one.
    """
    bwrap()  # told first where it is missing
    argv = premount(spec.limits, workdir)
    argv += [bwrap(), "--unshare-pid", "--unshare-uts", "--unshare-cgroup-try"]
    argv += ["--unshare-net", "--unshare-user", "--disable-userns"]
    argv += ["--uid", str(BOX_UID), "--gid", str(BOX_UID), "--hostname", "sandbox"]
    argv += ["--die-with-parent", "--new-session", "--as-pid-1", "--clearenv", "--cap-drop", "ALL"]
    argv += [*signature(owner_of_this_process()), *_rootfs()]
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


def premount(limits: Limits, workdir: int | None = None) -> list[str]:
    """What starts bwrap in namespaces where the writable folders are ready.

    They need a bound on files as well as on bytes, and `bwrap --tmpfs` sets only the latter. The
    namespaces belong to a user namespace of their own, so that no right of root's is needed.
    """
    size, files = limits.disk_mb, limits.inodes
    own = _empty(_WORK, size, files, 755) if workdir is None else bound(workdir, _WORK)
    mounts = [_empty("/dev/shm", 16, files, 1777), _empty("/tmp", size, files, 1777), own]
    # Segments outlive their makers and could leave no memory for the guest. Linux before 5.19 does
    # not let us bound them; there they only count for the cgroup, or are denied without one.
    segments = f"{{ echo {SEGMENT_PAGES} >/proc/sys/kernel/shmall; }} 2>/dev/null || :"
    return unshared(" && ".join([*mounts, f"{{ {segments}; }}", 'exec "$@"']))


def unshared(script: str) -> list[str]:
    """What runs a shell script where it may mount; what follows is its arguments."""
    unshare = [program("unshare"), "--user", "--map-root-user", "--mount", "--ipc"]
    return [*unshare, "/bin/sh", "-c", script, "-"]


def bound(fd: int, place: str) -> str:
    """The shell command that mounts the folder `fd` at `place`.

    As a path the name would lead to the root folder; -c has it taken as it is, and -ef sees to it.
    """
    name = f"/proc/self/fd/{fd}"
    return f"{program('mount')} -c --bind {name} {place} && [ {name} -ef {place} ]"


def _empty(place: str, size_mb: int, files: int, mode: int) -> str:
    return (
        f"{program('mount')} -t tmpfs"
        f" -o nosuid,nodev,size={size_mb}m,mode={mode},nr_inodes={files + 1} tmpfs {place}"
    )


@cache
def program(name: str) -> str:
    """Where a program of every Linux is.

    Raises:
        NoSafeSandbox: it is missing.
    """
    path = shutil.which(name)
    if path is None:
        cure = "apt-get install -y util-linux coreutils"
        raise NoSafeSandbox(f"{name} is not installed; run: {cure}")
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
