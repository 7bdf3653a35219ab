"""Laws of knobs and of tasks made by hand: what cannot be is refused at once, and named."""

from dataclasses import dataclass

import pytest

from turnwise.envs import make
from turnwise.envs.builtin.calculator import Calculator, Question
from turnwise.envs.builtin.craft import Craft, Order
from turnwise.envs.builtin.filehunt import Hunt
from turnwise.envs.builtin.forms import Brief, Forms
from turnwise.envs.builtin.refund_desk_tasks import Ticket
from turnwise.envs.builtin.repair import Repair
from turnwise.envs.builtin.shop import Errand, Shop
from turnwise.envs.builtin.sokoban import Puzzle
from turnwise.envs.builtin.sql import SPLIT_SCHEMAS, Asked, Sql
from turnwise.envs.builtin.workbench_tasks import Chore
from turnwise.envs.knobs import count, share, span, within
from turnwise.envs.names import UnknownName, known_names
from turnwise.envs.task_range import check_drawn
from turnwise.envs.types import Task


@dataclass(frozen=True, kw_only=True)
class Drawn(Task):
    split: str = "train"
    index: int = 0
    size: int = 1

    def __post_init__(self):
        check_drawn(self, size=(1, 3))


@pytest.mark.parametrize("value", [1.5, 2.0, True, None, "2", [2], float("nan")])
def test_a_count_is_a_whole_number(value):
    with pytest.raises(ValueError, match=r"^size must be a whole number, got "):
        count("size", value, 1, 4)


def test_a_count_lies_within_its_bounds_and_may_have_one_alone():
    assert [count("size", value, 1, 4) for value in (1, 4)] == [1, 4]
    assert count("turns", 10**9, 1) == 10**9
    with pytest.raises(ValueError, match=r"size must lie in 1\.\.4, got 5"):
        count("size", 5, 1, 4)
    with pytest.raises(ValueError, match="turns must be at least 1, got 0"):
        count("turns", 0, 1)


@pytest.mark.parametrize("value", [2.5, None, True, "12", (1, 2, 3), (), (1, 2.0), {1, 2}, (2, 1)])
def test_a_span_is_one_whole_number_or_two(value):
    with pytest.raises(ValueError, match=r"^steps must lie in 1\.\.4, least before most"):
        span("steps", value, 1, 4)
    assert span("steps", 2, 1, 4) == (2, 2)
    assert span("steps", [1, 3], 1, 4) == span("steps", (1, 3), 1, 4) == (1, 3)


def test_a_share_and_a_number_may_be_fractions():
    assert share("p", 1) == 1.0 and within("seconds", 0.5, 0, 600) == 0.5
    for value in (True, None, "1", float("nan"), 1.01):
        with pytest.raises(ValueError, match=r"p must lie in 0\.\.1"):
            share("p", value)


@pytest.mark.parametrize(
    ("make_one", "says"),
    [
        (lambda: Repair(n_bugs=1.5), "n_bugs must be a whole number, got 1.5"),
        (lambda: Repair(slack=None), "slack must be a whole number"),
        (lambda: Craft(depth=2.5), "depth must lie in 1..6"),
        (lambda: Calculator(steps=None), "steps must lie in 1..8"),
        (lambda: Sql(size=7.0), "size must be a whole number"),
        (lambda: Shop(products=60.0), "products must be a whole number"),
        (lambda: Shop(view_lines=4), "view_lines must be at least 5, got 4"),
        (lambda: Forms(view_lines=20.5), "view_lines must be a whole number"),
        (lambda: Forms(view_lines=None), "view_lines must be a whole number"),
        (lambda: make("turnwise/Workbench-v1", slack=-1), "slack must lie in 0..1000"),
    ],
)
def test_environments_refuse_what_is_no_count_by_its_name(make_one, says):
    with pytest.raises(ValueError, match=says):
        make_one()


@pytest.mark.parametrize(
    "cls", [Errand, Brief, Asked, Ticket, Chore, Question, Order, Puzzle, Hunt]
)
def test_a_task_made_by_hand_is_checked(cls):
    assert cls(index=3).index == 3
    with pytest.raises(UnknownName, match=f"{cls.__name__}.split 'trian'; did you mean 'train'"):
        cls(split="trian")
    with pytest.raises(ValueError, match=f"{cls.__name__}.index must be at least 0, got -5"):
        cls(index=-5)
    with pytest.raises(ValueError, match=f"{cls.__name__}.index must be a whole number"):
        cls(index=1.0)


@pytest.mark.parametrize(
    ("make_one", "says"),
    [
        (lambda: Drawn(size=4), r"Drawn.size must lie in 1..3, got 4"),
        (lambda: Errand(items=0), "Errand.items must lie in 1..4, got 0"),
        (lambda: Errand(depth=99), "Errand.depth must lie in 0..3"),
        (lambda: Errand(products=20, items=4), "Errand.products must lie in 32..480, got 20"),
        (lambda: Brief(pages=0), "Brief.pages must lie in 1..6"),
        (lambda: Asked(depth=99), "Asked.depth must lie in 1..5"),
        (lambda: Hunt(decoys=2.0), "Hunt.decoys must lie in 0..1"),
        (lambda: Ticket(fickle=-1), "Ticket.fickle must lie in 0..1"),
        (lambda: Chore(template="drop_evnt"), "did you mean 'drop_event'"),
        (lambda: Asked(schemas=("shops",)), "did you mean 'shop'"),
    ],
)
def test_a_field_that_no_knob_could_give_is_named(make_one, says):
    with pytest.raises((ValueError, UnknownName), match=says):
        make_one()


def test_a_question_without_schemas_is_about_those_of_its_split():
    assert Asked(split="dev").schemas == SPLIT_SCHEMAS["dev"]


def test_names_are_no_single_text():
    assert known_names("kind", ["a", "b"], {"a": 1, "b": 2}) == ("a", "b")
    with pytest.raises(TypeError, match=r"kinds are a tuple of names, got 'a'; write \('a',\)"):
        known_names("kind", "a", ("a",))
    with pytest.raises(UnknownName, match="no kind 'c'; known: a"):
        known_names("kind", ["c"], ("a",))
