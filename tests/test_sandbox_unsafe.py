"""The backend without walls: hard to get, loud, and careful with what is not its own."""

import ast
import os
import subprocess
import tempfile
from pathlib import Path

import pytest
import unsafe_cases
from attack_columns import NoPython, lay_open, python_for_others

from turnwise.sandboxes import BACKENDS, SandboxSpec, Unsupported, open_sandbox, unsafe

CASES = [name for name in vars(unsafe_cases) if name.startswith("case_")]


@pytest.fixture(scope="module")
def outcomes():
    """Of all cases, from a process of a user who is not root."""
    try:
        with tempfile.TemporaryDirectory(prefix="turnwise-") as folder:
            ran = subprocess.run(
                [python_for_others(), str(Path(folder, "unsafe_cases.py"))],
                **lay_open(Path(folder), "unsafe_cases.py"),
                capture_output=True,
                text=True,
                timeout=120,
            )
    except NoPython as error:
        pytest.skip(str(error))
    return dict(line.split(": ", 1) for line in ran.stdout.splitlines()), ran.stderr


@pytest.mark.parametrize("name", CASES, ids=lambda name: name.removeprefix("case_"))
def test_a_plain_box(outcomes, name):
    seen, errors = outcomes
    assert seen.get(name) == "ok", seen.get(name) or errors


def test_root_is_refused_whatever_it_opts_into(monkeypatch):
    monkeypatch.setenv(unsafe.ALLOW, "1")
    for ids in ((0, 0, 0), (1000, 1000, 0), (0, 1000, 1000)):
        monkeypatch.setattr(os, "getresuid", lambda ids=ids: ids)
        with pytest.raises(Unsupported, match="refused to root"):
            open_sandbox("unsafe")


def test_auto_never_takes_it(monkeypatch):
    monkeypatch.setenv(unsafe.ALLOW, "1")
    assert not BACKENDS["unsafe"].isolates and not BACKENDS["unsafe"].fits(SandboxSpec())
    for name in set(BACKENDS) - {"unsafe"}:
        monkeypatch.delitem(BACKENDS, name)
    with pytest.raises(Unsupported):
        open_sandbox()


def test_it_shares_no_code_with_what_sweeps():
    folder = Path(unsafe.__file__).parent
    files = sorted(folder.glob("unsafe*.py"))
    assert len(files) == 4
    for file in files:
        tree = ast.parse(file.read_text())
        imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert not any("guest" in str(module) for module in imported), file
        assert "os.kill(" not in file.read_text() and "pidfd_send" not in file.read_text(), file
    assert sum(file.read_text().count("os.killpg(") for file in files) == 1
