"""What is the same in every box that our guest runs: its source, its user, its environment."""

from __future__ import annotations

import itertools
import math
import os
from functools import cache
from pathlib import Path

from turnwise.sandboxes import proxy
from turnwise.sandboxes.base import SandboxSpec

MARKER = "/.turnwise-box"
"""Holds the token of this start: what the guest demands to see before it supervises anything."""
HOME_OF_GUEST = "/opt/turnwise/sandboxes"
START_GUEST = """import sys
sys.path.insert(0, "/opt")
from turnwise.sandboxes.guest import main
sys.exit(main(sys.argv[1:]))"""
SEGMENT_PAGES = 2048
"""Of System V shared memory in all of a box: it outlives whoever made it, and counts for nobody."""
_FIRST_UID, _UIDS = 61184, 4336  # the range that systemd, too, gives to users of the moment
_TAKEN = {"", "usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32", "proc", "dev", "etc", "tmp"}
_counter = itertools.count()


@cache
def guest_files() -> dict[str, bytes]:
    """Where each file of the guest lies in the box, and what is in it."""
    files = sorted(Path(__file__).parent.glob("guest*.py"))
    return {f"{HOME_OF_GUEST}/{file.name}": file.read_bytes() for file in files}


def uid_of_the_moment() -> int:
    """A user of the host that nobody is, another one for each box of a process."""
    return _FIRST_UID + (os.getpid() * 31 + next(_counter)) % _UIDS


def accounts(uid: int, workdir: str) -> dict[str, bytes]:
    """The users that the box knows: root, who is nobody there, and the agent."""
    agent = f"agent:x:{uid}:{uid}:agent:{workdir}:/bin/sh"
    return {
        "/etc/passwd": f"root:x:0:0:root:/:/bin/sh\n{agent}\n".encode(),
        "/etc/group": f"root:x:0:\nagent:x:{uid}:\n".encode(),
    }


def environment(spec: SandboxSpec) -> dict[str, str]:
    """What everything in the box finds in its environment."""
    return {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": spec.workdir,
        "USER": "agent",
        "LANG": "C.UTF-8",
        "TERM": "dumb",
        "TMPDIR": "/tmp",
        "OMP_NUM_THREADS": str(math.ceil(spec.limits.cpus)),
        **(proxy.environment(spec.net.allow) if spec.net.mode == "proxy" else {}),
        **spec.env,
    }


def max_body(spec: SandboxSpec) -> int:
    """Bytes that an honest guest may send in one frame."""
    return max(spec.limits.file_bytes, 2 * spec.limits.output_bytes) + 16_384


def check_workdir(spec: SandboxSpec) -> None:
    """Raise `ValueError` unless the workdir can be a folder of its own."""
    if not spec.workdir.startswith("/") or spec.workdir.split("/")[1] in _TAKEN:
        raise ValueError(f"workdir must be a new top-level folder of the box, got {spec.workdir!r}")
