"""Laws of reading tool calls: what is rendered is read back, and nothing else is guessed at."""

import json
import shlex

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from turnwise.envs.actions import COMMAND, FORMATS, HERMES, ToolCall
from turnwise.envs.formats.command import word
from turnwise.envs.formats.strict_json import JsonFault, loads
from turnwise.envs.fuzz import MALFORMED
from turnwise.envs.names import UnknownName
from turnwise.envs.tool_env import CODES

NAMES = st.from_regex(r"[a-z][a-z_0-9]{0,9}", fullmatch=True)
TEXTS = st.text(max_size=20)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
ARGS = st.dictionaries(NAMES, VALUES, max_size=4)
ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=60)
TAGS = ["<tool_call>", "</tool_call>", "<think>", "</think>", '{"name"', ': "cat"', "cat"]
SCRAPS = [
    ', "arguments": {}',
    "}",
    '"',
    "\\",
    "'",
    "cat",
    " ",
    "\n",
    "NaN",
    "\\ud800",
    "[",
    "1e999",
]
FRAGMENTS = st.sampled_from([*TAGS, *SCRAPS])
NOISE = st.lists(FRAGMENTS | ANY_TEXT, max_size=12).map("".join)


def refused(text: str, format=HERMES) -> str:
    (call,) = format.parse(text).calls
    assert call.args is None and call.words is None
    return call.error


@given(NAMES, ARGS)
def test_a_rendered_hermes_call_is_read_back_as_it_was(name, args):
    (call,) = HERMES.parse(HERMES.render(name, args)).calls
    assert (call.name, call.args, call.error) == (name, args, None)


@given(NAMES, ARGS)
def test_a_rendered_command_is_read_back_as_it_was(name, args):
    (call,) = COMMAND.parse(COMMAND.render(name, args)).calls
    assert (call.name, call.error) == (name, None)
    assert call.words == tuple(word(value) for value in args.values())


@given(st.lists(st.tuples(NAMES, ARGS), min_size=1, max_size=4), TEXTS)
def test_every_hermes_call_of_an_action_is_read_in_order(wanted, between):
    assume("<" not in between)
    text = between.join(HERMES.render(name, args) for name, args in wanted)
    calls = HERMES.parse(text).calls
    assert [(call.name, call.args) for call in calls] == wanted
    assert [call.id for call in calls] == [f"c{i}" for i in range(len(calls))]


@pytest.mark.parametrize("format", FORMATS.values(), ids=FORMATS)
@given(text=NOISE)
def test_no_text_makes_parsing_raise_and_every_call_is_read_or_refused(format, text):
    action = format.parse(text)
    assert action.calls
    for call in action.calls:
        given = [call.args is not None, call.words is not None, call.error is not None]
        assert sum(given) == 1
        assert call.error is None or call.code in CODES
        assert ToolCall.from_json(json.loads(json.dumps(call.to_json()))) == call


@pytest.mark.parametrize("text", MALFORMED, ids=range(len(MALFORMED)))
def test_what_a_sampler_may_produce_never_runs_with_made_up_arguments(text):
    for call in HERMES.parse(text).calls:
        assert call.error is not None or call.args == json.loads(call.raw[11:-12])["arguments"]


@given(st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\n"), max_size=40))
@example(r"""say "a \" b \\ c \d" 'e \' \f "" '' g"h"'i' j""")
@example('say "a')
@example("say a\\")
def test_a_command_line_is_split_as_shlex_splits_it(line):
    try:
        expected = shlex.split(line)
    except ValueError:
        assert COMMAND.parse(line).calls[0].code == "bad_command"
        return
    (call,) = COMMAND.parse(line).calls
    if expected and expected[0]:
        assert [call.name, *call.words] == expected
    else:
        assert call.error is not None


def test_an_error_points_at_the_line_and_column_of_the_fault():
    text = '<tool_call>\n{"name": "cat", "arguments": {"path": /a}}\n</tool_call>'
    assert refused(text) == "bad_json line 2 col 39: expecting value"
    assert refused("cat /a 'b", COMMAND) == "bad_command line 1 col 8: unclosed quote '"
    assert refused("\ncat a\ncat b", COMMAND).startswith("bad_command line 3 col 1: one command")


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ('{"name": "cat"}', "'arguments'"),
        ('{"name": "cat", "arguments": "{}"}', "'arguments'"),
        ('{"name": "cat", "arguments": null}', "'arguments'"),
        ('{"name": "cat", "parameters": {}}', "unexpected key 'parameters'"),
        ('{"arguments": {}}', "'name'"),
        ('{"name": "cat", "arguments": {"a": 1, "a": 2}}', "duplicate key 'a'"),
        ('{"name": "cat", "arguments": {"a": NaN}}', "NaN is not finite"),
        ('{"name": "cat", "arguments": {"a": -1e999}}', "-1e999 is not finite"),
        ('{"name": "cat", "arguments": {"a": "\\udc00"}}', "no partner"),
        ('{"name": "cat", "arguments": {"a": ' + "[" * 40 + "]" * 40 + "}}", "nested deeper"),
        ('{"name": "cat", "arguments": {"a": ' + '["x", ' * 40 + "1" + "]" * 40 + "}}", "nested"),
        ('{"name": "cat", "arguments": {"a": ' + "9" * 9000 + "}}", "4300 digits"),
        ('{"name": "cat", "arguments": {}} extra', "expected </tool_call>"),
        ("[]", "expected an object"),
    ],
)
def test_json_that_is_not_exactly_a_call_is_refused_with_the_reason(body, why):
    error = refused(f"<tool_call>{body}</tool_call>")
    assert error.startswith("bad_json line 1 col ") and why in error


def test_a_call_that_is_not_closed_is_refused():
    assert "expected </tool_call>" in refused('<tool_call>{"name": "cat", "arguments": {}}')


def test_a_malformed_call_does_not_take_the_next_one_with_it():
    good = HERMES.render("cat", {"path": "a"})
    first, second = HERMES.parse(f"<tool_call>{{</tool_call>{good}").calls
    assert (first.code, second.args) == ("bad_json", {"path": "a"})


def test_a_closing_tag_inside_a_string_is_text():
    args = {"text": "</tool_call><tool_call>"}
    (call,) = HERMES.parse(HERMES.render("write", args)).calls
    assert call.args == args


@pytest.mark.parametrize("opening", ["<think>", ""])
def test_a_call_that_is_only_thought_about_is_not_run(opening):
    call = HERMES.render("cat", {"path": "a"})
    action = HERMES.parse(f"{opening}I could cat.</think>{call}")
    assert [call.name for call in action.calls] == ["cat"]
    assert refused(f"<think>{call}").startswith("no_call")
    assert refused(f"<think>{call}</think>").startswith("no_call")


def test_text_without_a_call_is_an_error_of_its_own():
    assert refused("I am done.").startswith("no_call")
    assert refused(" \n", COMMAND).startswith("no_call")


def test_a_deep_nest_of_brackets_inside_a_string_is_only_text():
    assert loads(json.dumps("[" * 1000)) == "[" * 1000
    with pytest.raises(JsonFault, match="extra text"):
        loads("1 2")


def test_an_unknown_format_is_answered_with_the_nearest():
    with pytest.raises(UnknownName, match="did you mean 'hermes'"):
        FORMATS["herms"]
