"""Where attacks are played: in this process, or in one of an unprivileged user.

Run as a program, `attack_columns.py BACKEND`, it reads names of attacks and answers each with a
line of JSON. It must not need pytest: the other user's Python may not have it.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

UID = 64_123
"""Of nobody else: what a stray process of the attacks could reach is nothing."""


class Here:
    """Plays attacks in this process; one box is shared by all that do not break it."""

    def __init__(self, backend: str) -> None:
        import attacks

        from turnwise.sandboxes import open_sandbox

        self.attacks = attacks
        self.open: Callable[..., Any] = functools.partial(open_sandbox, backend)
        self.stack = ExitStack()
        self.bait = self.stack.enter_context(attacks.lay_out())
        self.shared = self.stack.enter_context(self.open(limits=attacks.LIMITS))

    def play(self, attack: Any) -> list[str]:
        """The words of `attack`; a shared box that an attack ended is replaced."""
        if not self.shared.alive:
            self.shared = self.stack.enter_context(self.open(limits=self.attacks.LIMITS))
        return self.attacks.run(attack, self.shared, self.open, self.bait)

    def close(self) -> None:
        self.stack.close()


class NoPython(Exception):
    """No Python that another user may run is new enough."""


class AsUser:
    """Plays attacks in a process that was nobody in particular before it imported turnwise.

    Raises:
        NoPython: see there.
    """

    def __init__(self, backend: str) -> None:
        self.stack = ExitStack()
        folder = Path(self.stack.enter_context(tempfile.TemporaryDirectory(prefix="turnwise-")))
        self.process = subprocess.Popen(
            [python_for_others(), str(folder / "attack_columns.py"), backend],
            **lay_open(folder, "attacks.py", "attack_columns.py"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def play(self, attack: Any) -> list[str]:
        """The words of `attack`."""
        assert self.process.stdin and self.process.stdout
        print(attack.name, file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        return json.loads(answer) if answer else ["THROUGH the other user's process ended"]

    def close(self) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()
        self.stack.close()


def lay_open(folder: Path, *tests: str) -> dict[str, Any]:
    """Copy the sandboxes and some `tests` for another user; how a subprocess becomes that user."""
    import turnwise.sandboxes.base as base

    folder.chmod(0o755)
    ours, leave_out = Path(base.__file__).parent, shutil.ignore_patterns("__pycache__")
    shutil.copytree(ours, folder / "turnwise" / "sandboxes", ignore=leave_out)
    for file in tests:
        shutil.copy(Path(__file__).with_name(file), folder)
    own = folder / "own"
    own.mkdir()
    own.chmod(0o700)
    as_user: dict[str, Any] = {}
    if os.geteuid() == 0:
        os.chown(own, UID, UID)
        as_user = {"user": UID, "group": UID, "extra_groups": []}
    env = {name: os.environ[name] for name in ("PATH", "TURNWISE_TEST_KILL") if name in os.environ}
    env |= {"PYTHONPATH": str(folder), "TMPDIR": str(own), "XDG_CACHE_HOME": str(own)}
    return {"cwd": "/", "env": env | {"TURNWISE_ALLOW_UNSAFE": "1"}, **as_user}


@functools.cache
def python_for_others() -> str:
    """A Python 3.11 or later that an unprivileged user may run.

    Raises:
        NoPython: there is none.
    """
    asked = "import sys; print(sys.version_info >= (3, 11))"
    as_user = {"user": UID, "group": UID, "extra_groups": []} if os.geteuid() == 0 else {}
    for path in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
        try:
            ran = subprocess.run([path, "-c", asked], capture_output=True, cwd="/", **as_user)
        except OSError:
            continue
        if ran.stdout == b"True\n":
            return path
    raise NoPython("no Python 3.11 or later that another user may run: apt-get install python3")


def serve(column: Here, names: IO[str], answers: IO[str]) -> None:
    """Play each attack that is named, and answer with its words."""
    by_name = {attack.name: attack for attack in column.attacks.ATTACKS}
    for line in names:
        try:
            words = column.play(by_name[line.strip()])
        except Exception as error:
            words = [f"THROUGH or failed: {type(error).__name__}: {error}"]
        print(json.dumps(words), file=answers, flush=True)


if __name__ == "__main__":
    served = Here(sys.argv[1])
    try:
        serve(served, sys.stdin, sys.stdout)
    finally:
        served.close()
