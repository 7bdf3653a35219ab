"""What the README shows is true: its example is sound, its commands and links exist."""

from __future__ import annotations

import re
import runpy
import shlex
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from turnwise.cli.main import VERBS, main
from turnwise.cli.options import parse

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", TEXT, re.DOTALL)
COMMANDS = [
    shlex.split(line, comments=True)
    for language, block in BLOCKS
    if language == "sh"
    for line in block.splitlines()
]


def commands(program: str) -> list[list[str]]:
    """The arguments of each command line that starts with `program`."""
    return [rest for name, *rest in COMMANDS if name == program]


@pytest.fixture
def vault(tmp_path, monkeypatch):
    """The folder of a reader who has saved the example as the README says."""
    (example,) = [block for language, block in BLOCKS if language == "python"]
    assert "Put this into `vault.py`" in TEXT
    (tmp_path / "vault.py").write_text(example)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "vault", raising=False)
    yield example
    sys.modules.pop("vault", None)


def test_the_example_is_sound_and_its_commands_say_so(vault, capsys):
    shown = [arguments for arguments in commands("turnwise") if "vault:Vault" in arguments]
    assert [arguments[0] for arguments in shown] == ["check", "info"]
    for arguments in shown:
        assert main(arguments) == 0, capsys.readouterr().out
    assert "sound" in capsys.readouterr().out


def test_whoever_bisects_opens_the_vault_and_whoever_does_not_stays_outside(vault, monkeypatch):
    monkeypatch.syspath_prepend(Path.cwd())
    env = import_module("vault").Vault()
    env.reset(seed=3)
    low, high, paid = 0, 999, 0.0
    for _ in range(10):
        middle = (low + high) // 2
        said, paid, done, *_ = env.step(env.call_text("dial", code=middle))
        low, high = (middle + 1, high) if said == "higher" else (low, middle - 1)
        if done:
            break
    assert (said, paid, done) == ("open", 1.0, True)
    env.reset(seed=3)
    for _ in range(env.max_turns):
        said, paid, *_, info = env.step(env.call_text("dial", code=-1))
    assert (said, paid, info["success"]) == ("higher", 0.0, False)


def test_everything_that_is_shown_is_short():
    assert len(TEXT.splitlines()) < 110
    for _, block in BLOCKS:
        assert len([line for line in block.splitlines() if line]) <= 16


def test_every_command_is_one_that_the_program_takes():
    for verb, *arguments in commands("turnwise"):
        parse(import_module(f"turnwise.cli.{verb}").Options, verb, arguments)
    assert {verb for verb, *_ in commands("turnwise")} <= VERBS.keys()
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {name for (name,) in commands("make")} <= {*targets}
    assert {name for name, *_ in COMMANDS} <= {"make", "turnwise", "python", "jq"}


@pytest.mark.parametrize("arguments", commands("python"), ids=" ".join)
def test_a_script_that_is_shown_takes_the_options_that_are_shown(arguments, monkeypatch, capsys):
    script, *options = arguments
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with pytest.raises(SystemExit) as exit:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    assert not exit.value.code
    said = capsys.readouterr().out
    assert all(option in said for option in options if option.startswith("--"))


def test_the_files_that_it_links_are_there():
    links = re.findall(r"\]\(([^)#]+)\)", TEXT)
    assert links and all((ROOT / link).is_file() for link in links)


@pytest.mark.skipif(shutil.which("jq") is None, reason="jq is not installed")
def test_a_record_reads_with_jq_as_shown(vault, capfd):
    main(["eval", "vault:Vault", "--policy", "random", "--tasks", "2", "--record", "eval.jsonl"])
    capfd.readouterr()
    ((query, *_),) = commands("jq")
    done = subprocess.run(["jq", query, "eval.jsonl"], capture_output=True, text=True)
    assert done.returncode == 0 and '"name\\": \\"dial' in done.stdout
