"""What docs/environments.md shows is true: its example, its output, its commands, its tables."""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
from importlib import import_module
from pathlib import Path

import pytest

from turnwise.cli.main import VERBS, main
from turnwise.cli.options import parse
from turnwise.envs.registry import list_envs, spec

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "environments.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE, re.DOTALL)
EXAMPLE, IN_A_TEST = (block for language, block in BLOCKS if language == "python")
COMMANDS = [
    shlex.split(line)
    for language, block in BLOCKS
    if language == "sh"
    for line in block.splitlines()
]
REGISTERED = [spec.id for spec in list_envs() if spec.id.startswith("turnwise/")]


def script():
    """scripts/floors.py as a module."""
    found = importlib.util.spec_from_file_location("floors", ROOT / "scripts" / "floors.py")
    module = importlib.util.module_from_spec(found)
    sys.modules["floors"] = module  # dataclasses look their annotations up there
    found.loader.exec_module(module)
    return module


floors = script()
MEASURED = PAGE.partition(floors.BEGIN)[2].partition(floors.END)[0]


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """A reader's folder, where `save` puts an example as the page says."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "parcels", raising=False)

    def save(example):
        assert "Put this into `parcels.py`" in PAGE
        (tmp_path / "parcels.py").write_text(example)

    yield save
    sys.modules.pop("parcels", None)


def test_the_example_is_sound_and_its_commands_say_so(reader, capsys):
    reader(EXAMPLE)
    for program, *arguments in COMMANDS:
        assert program == "turnwise"
        assert main(arguments) == 0, capsys.readouterr().out
    assert "sound" in capsys.readouterr().out


def test_the_check_in_a_test_of_the_reader_passes(reader):
    reader(EXAMPLE)
    exec(IN_A_TEST, {})


def test_the_example_is_short():
    lines = [line for line in EXAMPLE.splitlines() if line]
    assert len(lines) <= 45 and max(map(len, lines)) <= 100


def test_what_check_is_shown_to_say_is_what_it_says(reader, capsys):
    (shown,) = [block for language, block in BLOCKS if language == "text"]
    command, shown = shown.split("\n", 1)
    worse = EXAMPLE.replace("max_turns = 12", "max_turns = 6")
    worse = re.sub(r"\n    chance_reward.*", "", worse)
    assert worse != EXAMPLE
    reader(worse)
    assert main(shlex.split(command)[2:]) == 2
    said = " ".join(capsys.readouterr().out.split())
    assert "2 broken" in said
    for part in re.split(r"\n\n|\n(?=\w)", shown.strip()):
        assert " ".join(part.split()) in said


def test_every_verb_and_option_that_the_text_names_is_one():
    for line in re.findall(r"`turnwise ([^`]+)`", PAGE):
        verb, *arguments = shlex.split(line)
        assert verb in VERBS
        options = [argument for argument in arguments if argument.startswith("--")]
        help_of = import_module(f"turnwise.cli.{verb}").Options.__dataclass_fields__
        assert all(option[2:].replace("-", "_") in help_of for option in options), line
    parse(import_module("turnwise.cli.check").Options, "check", ["x:Y", "--law", "seeds differ"])


def test_every_registered_environment_is_in_the_tables():
    missing = [id for id in REGISTERED if f"`{id}`" not in MEASURED]
    assert not missing, f"{missing}: run `python scripts/floors.py --missing`"


def test_the_tables_are_those_that_the_script_writes():
    assert floors.line(floors.FLOORS) in MEASURED and floors.line(floors.KNOBS) in MEASURED
    rows = floors.rows_of(MEASURED)
    assert list(rows) == [spec.id for spec in floors.measured_specs()]
    assert all(len(row) == len(floors.FLOORS) for row in rows.values())
    assert floors.section(list(rows.values())) == MEASURED.strip(), (
        "run python scripts/floors.py --missing"
    )


def test_no_environment_has_an_expert_that_fails_or_a_floor_above_its_expert():
    for id, row in floors.rows_of(MEASURED).items():
        cells = dict(zip(floors.FLOORS, row, strict=True))
        if cells["what it is"] == "not measured":
            continue
        sizes = [int(n.replace(",", "")) for n in cells["train / dev / test"].split(" / ")]
        played = [f"{min(size, 200)} of {min(size, 200)}" for size in sizes]
        assert cells["expert"] == " / ".join(played), id
        assert all(float(cells[name].split()[0]) < 0.5 for name in ("random", "no-op")), id


def test_a_row_holds_what_was_played(tmp_path):
    options = floors.Options(seconds=0.2, most=20)
    row = dict(zip(floors.FLOORS, floors.floors_row(spec("fakes:Guess"), options), strict=True))
    assert row["expert"] == "20 of 20 / 20 of 20 / 20 of 20"
    assert row["no-op"].startswith("0.00 [")
    assert (row["train / dev / test"], row["turns at most"]) == ("50 / 50 / 50", "10")
    assert row["chance_reward"] == "0.05" and row["what it is"].startswith("Guess a number")


def test_writing_the_tables_again_changes_only_what_stands_between_the_marks():
    old = floors.rows_of(MEASURED)
    page = floors.written(PAGE, floors.section(list(old.values())))
    assert page == PAGE
    assert floors.written(PAGE, "x\\1").count("x\\1") == 1
