"""Laws of `turnwise recipes NAME`: the options are those of the recipe's function."""

from __future__ import annotations

import inspect
import json
import math
from importlib import import_module

import pytest

from turnwise.cli.main import main
from turnwise.cli.recipe_options import FROM_PYTHON, options_of
from turnwise.cli.recipes import _facts
from turnwise.trainers.recipes import NAMES, recipe


def test_a_recipe_lists_its_options_and_takes_the_defaults_that_it_lists(capsys, monkeypatch):
    def shown_by(line):
        assert main(["recipes", *line.split()]) == 0
        return capsys.readouterr().out

    monkeypatch.setenv("COLUMNS", "2000")
    for name in NAMES:
        make = getattr(import_module(f"turnwise.trainers.recipes.{name}"), name)
        told = json.loads(shown_by(f"{name} --json"))
        assert list(told["options"]) == list(inspect.signature(make).parameters)
        plain = {o: t["default"] for o, t in told["options"].items() if t["meaning"] != FROM_PYTHON}
        given = {o: math.inf if value == "Infinity" else value for o, value in plain.items()}
        assert _facts(recipe(name, **given))["pieces"] == told["pieces"]
        lines = [line.split() for line in shown_by(name).splitlines()]
        for option, value in plain.items():
            shown = value if isinstance(value, str) else json.dumps(value)
            said = told["options"][option]["meaning"].split()
            assert [option, *shown.split(), *said] in lines, (name, option)


@pytest.mark.parametrize("name", NAMES)
def test_each_argument_that_a_recipe_explains_is_an_option_and_shown_whole(name):
    """All words of `Args:` are words of the options, in their order."""
    make = getattr(import_module(f"turnwise.trainers.recipes.{name}"), name)
    section = (inspect.getdoc(make) or "").partition("Args:\n")[2].partition("Raises:\n")[0]
    meanings = {o: told["meaning"] for o, told in options_of(make, repr).items()}
    assert all(meanings.values()), meanings
    said = {o: meaning for o, meaning in meanings.items() if f"    {o}: " in section}
    order = sorted(said, key=lambda option: section.index(f"    {option}: "))
    assert " ".join(f"{o}: {said[o]}" for o in order).split() == section.split()
