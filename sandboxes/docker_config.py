"""What a docker box is, as the engine's API takes it; every flag is one of its walls."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from turnwise.sandboxes import inside, seccomp
from turnwise.sandboxes.base import SandboxSpec
from turnwise.sandboxes.inside import HOME_OF_GUEST, MARKER, SEGMENT_PAGES, START_GUEST
from turnwise.sandboxes.owner import DEADLINE_LABEL, OWNER_LABEL, owner_of_this_process

RUN_LABEL = "turnwise.run"
"""What `TURNWISE_RUN` says in the owner's environment, for people who look at containers."""
SOCKET, DOOR = "channel.sock", "door.sock"
"""Where the guest finds its host, and where its relay finds the proxy."""
START_TIMEOUT_S = 30.0
OPEN_FILES = 1024
# What docker hides by default, and all of /sys: what the host is made of is none of an agent's.
_HIDDEN = (
    *("/sys", "/proc/asound", "/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats"),
    *("/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi"),
)
_READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


@dataclass(frozen=True)
class Start:
    """What is decided anew for each box."""

    token: str
    uid: int
    """Of the box's only user; no user of the host has it."""
    shared: Path
    """The folder of the host that the box sees."""
    cores: int
    """Of the engine's machine."""


def container(spec: SandboxSpec, image: dict[str, Any], start: Start) -> dict[str, Any]:
    """The container that runs `image`, which is what the engine says of it."""
    guest = [
        "python3",
        "-I",
        "-S",
        "-B",
        "-c",
        START_GUEST,
        start.token,
        f"{HOME_OF_GUEST}/{SOCKET}",
    ]
    return {
        "Image": image["Id"],
        "Entrypoint": guest,
        "Cmd": [],
        "User": f"{start.uid}:{start.uid}",
        "WorkingDir": "/",
        "Hostname": "sandbox",
        "StopSignal": "SIGKILL",  # PID 1 ignores the others: the engine itself would wait to end
        "Labels": {
            OWNER_LABEL: owner_of_this_process(),
            DEADLINE_LABEL: str(int(time.time() + spec.limits.lifetime_s + START_TIMEOUT_S)),
            RUN_LABEL: os.environ.get("TURNWISE_RUN", ""),
        },
        "NetworkDisabled": True,
        # An image's own check would run beside the guest, again and again.
        "Healthcheck": {"Test": ["NONE"]},
        "HostConfig": {
            **_walls(),
            **_bounds(spec, start),
            "AutoRemove": True,
            "Init": False,  # the guest must be PID 1
            "Tmpfs": _writable(spec, image, start.uid),
            "Mounts": [
                _bind(start.shared, HOME_OF_GUEST),
                _bind(start.shared / "marker", MARKER),
                _bind(start.shared / "passwd", "/etc/passwd"),
                _bind(start.shared / "group", "/etc/group"),
            ],
        },
    }


def _walls() -> dict[str, Any]:
    profile = json.dumps(seccomp.docker_profile())
    return {
        "NetworkMode": "none",
        "IpcMode": "private",
        "Sysctls": {"kernel.shmall": str(SEGMENT_PAGES)},
        "CgroupnsMode": "private",
        "ReadonlyRootfs": True,
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges", f"seccomp={profile}"],
        "MaskedPaths": list(_HIDDEN),
        "ReadonlyPaths": list(_READ_ONLY),
        # Output comes by the channel; a log would be a file of the host that the box can fill.
        "LogConfig": {"Type": "none"},
    }


def _bounds(spec: SandboxSpec, start: Start) -> dict[str, Any]:
    memory = spec.limits.memory_mb << 20
    return {
        "Memory": memory,
        "MemorySwap": memory,
        "PidsLimit": spec.limits.pids,
        # The engine refuses more cores than there are.
        "NanoCpus": int(min(spec.limits.cpus, start.cores) * 1e9),
        "Ulimits": [
            {"Name": "nofile", "Soft": OPEN_FILES, "Hard": OPEN_FILES},
            {"Name": "core", "Soft": 0, "Hard": 0},
        ],
    }


def _writable(spec: SandboxSpec, image: dict[str, Any], uid: int) -> dict[str, str]:
    """Every folder that can be written to, each with a bound on its bytes and its files."""
    limits = spec.limits
    common = f"rw,exec,nosuid,nodev,nr_inodes={limits.inodes + 1}"  # the folder itself is one
    disk = f"{common},size={limits.disk_mb}m"
    # A volume that the image declares would be a folder of the host, as large as its disk.
    volumes = (image.get("Config") or {}).get("Volumes") or {}
    return {
        **dict.fromkeys(volumes, f"{disk},mode=1777"),
        "/dev/shm": f"{common},size=16m,mode=1777",
        "/tmp": f"{disk},mode=1777",
        spec.workdir: f"{disk},mode=0755,uid={uid},gid={uid}",
    }


def _bind(source: Path, target: str) -> dict[str, Any]:
    return {"Type": "bind", "Source": str(source), "Target": target, "ReadOnly": True}


def environment(spec: SandboxSpec, image: dict[str, Any]) -> dict[str, str]:
    """What everything in the box finds in its environment: ours, the image's, the spec's."""
    ours = inside.environment(spec)
    entries = (image.get("Config") or {}).get("Env") or []
    theirs = dict(entry.split("=", 1) for entry in entries if "=" in entry)
    kept = {name: ours[name] for name in ("HOME", "USER", "TMPDIR")}
    return {**ours, **theirs, **kept, **spec.env}


def files(spec: SandboxSpec, start: Start) -> dict[str, bytes]:
    """What lies in the shared folder: the guest's source and what is bound over single files."""
    laid = {**inside.guest_files(), **inside.accounts(start.uid, spec.workdir)}
    return {Path(path).name: data for path, data in laid.items()} | {"marker": start.token.encode()}
