"""Runs the test suite of a folder in a box: by our unittest runner, or by a user's command."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping

from turnwise.envs.builtin import repo_runner
from turnwise.envs.builtin.repo_runner import MARK
from turnwise.sandboxes.base import ExecResult, Sandbox

ROOT = "repo"
WHOLE = "the test command"
"""The name of the one test that a command is of which nothing more can be read."""
MAX_TOLD = 200

NO_TESTS = (
    "unittest found no tests: it looks in files called test*.py for classes derived from "
    "unittest.TestCase, and in a folder such as tests/ only if there is a tests/__init__.py; for "
    "tests of another kind give test_command='python3 -m pytest -q -rA'"
)
NO_PYTEST = (
    "pytest is not in the box: with bubblewrap the box has the machine's /usr, so install it "
    "there (apt-get install python3-pytest); with docker, build an image that has it (turnwise "
    "sandbox image build --packages python3-pytest) and give backend='docker', image=..."
)

Results = dict[str, str]
"""Test name -> what went wrong; empty for nothing."""

_ENV = {"PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": ".:src"}
_PYTEST = re.compile(r"^(PASSED|FAILED|ERROR|XFAIL|XPASS) (\S+?::\S+)(?: - (.*))?$", re.M)
_NO_PYTEST = re.compile(r"No module named '?pytest|pytest: (command )?not found")
_UNITTEST = re.compile(r"^(\w+) \(([\w.]+)\)(?:\n.*?)? \.\.\. (ok|FAIL|ERROR|skipped.*)$", re.M)


class Folder:
    """A folder in a box whose files are kept equal to texts on this side."""

    def __init__(self, box: Sandbox) -> None:
        self.box = box
        self.held: dict[str, bytes] = {}

    def run(self, files: Mapping[str, bytes], command: str | None, timeout_s: float) -> Results:
        """Write what has changed, and run the suite.

        Args:
            files: path -> content; paths that are gone are left out by a new `Folder`.
            command: a shell command that prints results as `pytest -rA` or `unittest -v` do; None
                runs `unittest`'s discovery.
            timeout_s: a suite that takes longer fails as a whole.

        Raises:
            SandboxDied: the box is gone.
            OSError: the files do not fit into it.
        """
        for path, data in files.items():
            if self.held.get(path) != data:
                self.box.put(f"{ROOT}/{path}", data)
                self.held[path] = data
        argv = ["sh", "-c", command] if command else ["python3", "-s", "-c", _RUNNER]
        cwd = f"{self.box.spec.workdir}/{ROOT}"
        ran = self.box.exec(argv, cwd=cwd, env=_ENV, timeout_s=timeout_s)
        return _read(ran, command)


_RUNNER = inspect.getsource(repo_runner) + "\nmain()\n"


def _read(ran: ExecResult, command: str | None) -> Results:
    """Return the results that were printed; a run without any is one test that failed."""
    if ran.timed_out:
        return {WHOLE: "took too long"}
    found = _by_command(ran.text) if command else _by_runner(ran)
    if found:
        return found
    if found is not None and not command:
        return {WHOLE: NO_TESTS}
    if _NO_PYTEST.search(ran.text):
        return {WHOLE: NO_PYTEST}
    if command and ran.exit_code == 0:
        return {WHOLE: ""}
    last = (ran.text.strip().splitlines() or [""])[-1]
    return {WHOLE: f"exit code {ran.exit_code} {last}"[:MAX_TOLD]}


def _by_runner(ran: ExecResult) -> Results | None:
    """Return what the runner printed, one line at the end of a run that ended well; else None."""
    lines = ran.stdout.decode("utf-8", "replace").splitlines()
    if ran.exit_code or len(lines) != 1 or not lines[0].startswith(MARK):
        return None
    try:
        value = json.loads(lines[0][len(MARK) :])
    except ValueError:
        return None
    return {str(k): str(why) for k, why in value.items()} if isinstance(value, dict) else None


def _by_command(text: str) -> Results:
    found: Results = {}
    for verdict, name, why in _PYTEST.findall(text):
        found[name] = "" if verdict in ("PASSED", "XFAIL") else why or verdict.lower()
    for method, where, verdict in _UNITTEST.findall(text):
        name = where if where.endswith(f".{method}") else f"{where}.{method}"
        found[name] = "" if verdict == "ok" else verdict.lower()
    return found
