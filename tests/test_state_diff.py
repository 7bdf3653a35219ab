"""Laws of records with changes on top, and of the list of what differs."""

import copy

from hypothesis import given
from hypothesis import strategies as st

from turnwise.envs.builtin.state_diff import NOTHING, Records, differences, record_differences

SCALARS = st.one_of(st.integers(-3, 3), st.booleans(), st.none(), st.text("ab", max_size=2))
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text("xyz", max_size=1), inner, max_size=3)
    ),
    max_leaves=8,
)
IDS = st.sampled_from(["a", "b", "c"])
BASES = st.dictionaries(IDS, st.fixed_dictionaries({"n": st.integers(0, 2)}), max_size=3)
WRITES = st.lists(st.tuples(IDS, st.one_of(st.none(), st.integers(0, 2))), max_size=8)


def typed(value):
    """Return a value that is equal only to itself: True is not 1."""
    if isinstance(value, dict):
        return {key: typed(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [typed(inner) for inner in value]
    return [type(value).__name__, value]


def write(records, writes):
    for id, n in writes:
        if n is None:
            records.remove(id)
        else:
            records.put(id, n=n)
    return records


def plain(records):
    return {id: dict(records[id]) for id in records}


@given(VALUES, VALUES)
def test_two_values_differ_somewhere_just_when_they_are_not_equal(one, other):
    assert bool(differences(one, other)) == (typed(one) != typed(other))


@given(VALUES, VALUES)
def test_what_is_found_and_what_is_wanted_trade_places(one, other):
    there, back = differences(one, other), differences(other, one)
    assert [(d.path, d.found, d.wanted) for d in there] == [
        (d.path, d.wanted, d.found) for d in back
    ]


@given(VALUES)
def test_a_difference_is_found_at_its_path(value):
    found = differences({"k": [value, 1]}, {"k": [value, 2]}, "at")
    assert [str(difference) for difference in found] == ["at.k[1]: found 1, wanted 2"]


def test_what_is_not_there_is_told_from_none():
    assert differences({"a": None}, {}) == differences({"a": None}, {"b": NOTHING})[:1]
    assert str(differences({}, {"a": None})[0]) == "a: found nothing, wanted None"
    assert differences([1], (1,)) == []
    assert differences(True, 1) and differences({"a": 0}, {"a": False})


@given(BASES, WRITES)
def test_records_are_what_a_dict_would_be_and_the_base_stays(base, writes):
    kept, mirror = copy.deepcopy(base), copy.deepcopy(base)
    for id, n in writes:
        if n is None:
            mirror.pop(id, None)
        else:
            mirror[id] = {"n": n}
    records = write(Records(base), writes)
    assert plain(records) == mirror and base == kept
    assert all((id in records) == (id in mirror) for id in "abc")


@given(BASES, WRITES, WRITES)
def test_changes_depend_on_where_one_is_and_not_on_the_way_there(base, one, other):
    a, b = write(Records(base), one), write(Records(base), other)
    assert (a.changes == b.changes) == (plain(a) == plain(b))
    assert (record_differences(a, b) == []) == (plain(a) == plain(b))


@given(BASES, WRITES, WRITES)
def test_a_copy_is_changed_alone(base, first, then):
    records = write(Records(base), first)
    before = plain(records)
    write(records.copy(), then)
    assert plain(records) == before
