"""Laws of tasks: identity follows from typed fields that JSON gives back, or the fault is named."""

from __future__ import annotations

import enum
import json
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import pytest

from turnwise.envs.types import Task


@dataclass(frozen=True, kw_only=True)
class Trip(Task):
    """A task with a field of every kind."""

    start: str = "é"
    days: int = 1
    share: float = 0.5
    fixed: bool = True
    stops: tuple[str, ...] = ("a",)
    table: dict[str, list[int]] = field(default_factory=lambda: {"b": [1]})
    odd: Any = None


def test_a_task_comes_back_from_json_with_its_key_and_every_field_counts():
    trip = Trip()
    fields = json.loads(json.dumps(trip.to_json()))
    assert Trip(**{**fields, "stops": tuple(fields["stops"])}) == trip
    assert Trip(**fields).key == trip.key == Trip().key
    changes = {"start": "f", "days": 2, "share": 0.6, "fixed": False, "stops": ("a", "a")}
    others = [replace(trip, **{k: v}) for k, v in {**changes, "table": {}, "odd": 0}.items()]
    assert len({other.key for other in [trip, *others]}) == len(others) + 1


@dataclass(frozen=True)
class Point:
    x: int = 0


class Plain(enum.Enum):
    A = "a"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({1, 2}, r"Trip\.odd holds \{1, 2\}, a set that JSON cannot give back"),
        ([{"a": b"x"}], r"Trip\.odd\[0\]\['a'\] holds b'x', a bytes"),
        ({1: "a"}, r"Trip\.odd has the key 1; JSON has keys of type str only"),
        (float("nan"), r"Trip\.odd holds nan"),
        (np.int64(3), r"Trip\.odd holds .*3.*, a int64"),
        (Point(), r"Trip\.odd holds Point\(x=0\), a Point"),
        (Plain.A, r"Trip\.odd holds <Plain.A: 'a'>, a Plain"),
    ],
)
def test_a_field_that_json_cannot_give_back_is_named(value, message):
    with pytest.raises(TypeError, match=message):
        Trip(odd=value).key  # noqa: B018


def test_a_task_class_without_its_decorator_is_refused_with_the_line_to_write():
    class Bare(Task):
        seed: int = 0

    class Same(Task):
        LIMIT: ClassVar[int] = 3

    with pytest.raises(TypeError, match=r"Bare declares seed .*@dataclass\(frozen=True, kw_only"):
        Bare(seed=1)
    with pytest.raises(TypeError, match="Bare declares seed"):
        Bare()
    assert Same().key != Task().key


def test_a_task_that_can_be_changed_is_refused_where_it_is_defined():
    with pytest.raises(TypeError, match="cannot inherit non-frozen dataclass"):

        @dataclass(kw_only=True)
        class Loose(Task):
            seed: int = 0
