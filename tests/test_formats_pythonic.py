"""A list of Python calls: read as Python reads it, and never evaluated."""

import ast
import json
import warnings

import pytest
from format_laws import NAMES, VALUES, refused
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from turnwise.envs.actions import PYTHONIC
from turnwise.envs.formats.literals import LiteralFault, Reader


def read(text):
    return [
        (call.name, call.args if call.error is None else call.code)
        for call in PYTHONIC.parse(text).calls
    ]


def value_of(text):
    reader = Reader(text, 0)
    value = reader.value(0)
    if reader.skip_space() < len(text):
        raise LiteralFault(reader.at, "more behind it")
    return value


def is_json(value):
    if isinstance(value, dict):
        return all(isinstance(key, str) and is_json(item) for key, item in value.items())
    if isinstance(value, list):
        return all(map(is_json, value))
    return value is None or isinstance(value, bool | int | float | str)


PARTS = st.sampled_from(
    [
        *("'", '"', "'''", '"""', "\\", "\\n", "\\d", "\\x41", "\\101", "\\u00e9", "\\U0001F44B"),
        *("\\\n", "a", "1", "-1", "0.5", "1e3", "[", "]", "{", "}", ":", ",", " ", "True", "None"),
        *("'k'", "é", "\\\\", "\\'", "01", "1_0", "0x1", "r", "b", "f", "+", "(", ")", "...", "#"),
    ]
)
LITERALS = st.lists(PARTS, min_size=1, max_size=8).map("".join) | VALUES.map(repr)


@given(text=LITERALS)
@settings(max_examples=500, deadline=None)
def test_what_is_read_is_what_python_makes_of_it(text):
    try:
        value = value_of(text)
    except LiteralFault:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = ast.literal_eval(text.strip())
    assert json.dumps(value) == json.dumps(expected) and type(value) is type(expected)


@given(value=VALUES)
@settings(deadline=None)
def test_every_json_value_that_python_prints_is_read(value):
    text = repr(value)
    assume("\\ud" not in text)
    assert value_of(text) == value


@given(value=VALUES)
@settings(deadline=None)
def test_json_spelling_is_read_too(value):
    text = json.dumps(value)
    assert value_of(text) == value


@given(text=LITERALS)
@settings(deadline=None)
def test_what_json_cannot_hold_is_refused(text):
    try:
        assert is_json(value_of(text))
    except LiteralFault as fault:
        assert 0 <= fault.at <= len(text)


@given(calls=st.lists(st.tuples(NAMES, st.dictionaries(NAMES, VALUES, max_size=2)), min_size=1))
@settings(max_examples=50, deadline=None)
def test_a_list_of_calls_is_read_in_order(calls):
    text = ", ".join(PYTHONIC.render(name, args)[1:-1] for name, args in calls)
    assert read(f"Sure.\n[{text}]\nDone.") == calls
    assert "".join(call.raw for call in PYTHONIC.parse(f"[{text}]").calls) == "".join(
        PYTHONIC.render(name, args)[1:-1] for name, args in calls
    )


@pytest.mark.parametrize(
    "text",
    [
        "[cat(path='/a', n=-3)]",
        '<|python_start|>[cat(path="/a", n=-3)]<|python_end|>',
        '[\n  cat(\n    path = "/a",\n    n = -3,\n  )\n]',
        '[cat(path="/" "a", n=-3)]',
        '[cat(path="""/a""", n=-3)]',
        '[cat(path="\\x2fa", n=-3)]',
    ],
)
def test_a_call_may_be_written_in_each_of_these_ways(text):
    assert read(text) == [("cat", {"path": "/a", "n": -3})]


def test_words_of_json_and_of_python_and_escapes_are_read():
    text = r'[f(a=true, b=False, c=null, d=None, e="\d+\n\ud83d\udc4b", from="x")]'
    args = {"a": True, "b": False, "c": None, "d": None, "e": "\\d+\n👋", "from": "x"}
    assert read(text) == [("f", args)]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("[f(1)]", "line 1 col 4: expected an argument: name=value"),
        ('[f("x")]', "line 1 col 4: expected an argument: name=value"),
        ("[f(a)]", "line 1 col 5: an argument is written name=value"),
        ("[f(a=b)]", "line 1 col 6: expected a literal"),
        ("[f(a=1+1)]", "line 1 col 7: expected , or )"),
        ("[f(a=g(1))]", "line 1 col 6: expected a literal"),
        ("[f(a=__import__('os'))]", "line 1 col 6: expected a literal"),
        ("[f(a=(1, 2))]", "line 1 col 6: expected a literal"),
        ("[f(a=f'{1}')]", "line 1 col 6: expected a literal"),
        ("[f(a=1, a=2)]", "line 1 col 9: duplicate argument 'a'"),
        ("[f(a={'k': 1, 'k': 2})]", "line 1 col 15: duplicate key 'k'"),
        ("[f(a={1: 2})]", "line 1 col 7: a key is text in quotes"),
        ("[f(**{'a': 1})]", "line 1 col 4: expected an argument"),
        ("[f(a=1e999)]", "line 1 col 6: the number 1e999 is not finite"),
        ("[f(a=" + "9" * 5000 + ")]", "line 1 col 6: the number has too many digits"),
        ("[f(a=01)]", "line 1 col 6: expected a literal"),
        ("[f(a='\n')]", "line 1 col 6: unclosed quote '"),
        ("[f(a='\\ud800')]", "line 1 col 6: a \\ud800-\\udfff escape has no partner"),
        ("[f(a='\\xZ')]", "line 1 col 7: \\x is no character"),
        ("[f(a='\\N{BULLET}')]", "line 1 col 7: \\N is no character"),
        ("[f(a=" + "[" * 40 + "]" * 40 + ")]", "nested deeper than 32"),
        ("[]", "line 1 col 2: expected a call"),
        ("[1, 2]", "line 1 col 2: expected a call"),
        ("f(a=1)", "line 1 col 1: calls stand in a list: [name(...)]"),
        ("see\n [f(a=1", "line 2 col 8: expected , or )"),
    ],
)
def test_what_is_no_list_of_calls_is_refused_with_its_place(text, error):
    found = refused("pythonic", text)
    assert found.startswith("bad_command line ") and error in found


def test_the_calls_before_a_fault_stand_and_none_is_lost():
    assert read("[f(a=1), g(b=)]") == [("f", {"a": 1}), ("", "bad_command")]
    assert read("[f(a=1)") == [("f", {"a": 1}), ("", "bad_command")]
    assert read('[f(a=x), g(b="[h()]")]') == [("", "bad_command")]


def test_a_name_that_would_read_as_something_else_is_not_written():
    with pytest.raises(ValueError, match="a name in this format is letters"):
        PYTHONIC.render("f", {"a b": 1})
