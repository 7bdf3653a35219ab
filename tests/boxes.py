"""What the sandbox tests share: a real box, or the reason why there is none."""

import os
import shutil
import time
from collections.abc import Callable

import pytest


def need_bubblewrap() -> None:
    """Skip where bubblewrap is missing; fail there under CI, which must not skip its walls."""
    if shutil.which("bwrap") is None:
        reason = "bubblewrap is not installed: apt-get install -y bubblewrap"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)


def need_docker() -> None:
    """Skip where no engine with our image answers; fail there under CI."""
    from turnwise.sandboxes.base import SandboxError
    from turnwise.sandboxes.docker import find_image
    from turnwise.sandboxes.docker_engine import connect

    try:
        find_image(connect(), None)
    except SandboxError as error:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(str(error))


def wait_until(holds: Callable[[], object], timeout_s: float = 5.0) -> bool:
    """Whether `holds()` became true in time."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if holds():
            return True
        time.sleep(0.01)
    return False


def processes_with(word: str) -> list[int]:
    """Host pids whose command line holds `word`."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            try:
                with open(f"/proc/{name}/cmdline", "rb") as file:
                    if word.encode() in file.read():
                        found.append(int(name))
            except OSError:
                continue
    return found


def is_open(box) -> bool:
    """Whether nobody has closed `box` or found it gone."""
    return bool(box.alive)
