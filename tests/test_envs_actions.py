"""Laws of reading tool calls: what is rendered is read back, and nothing else is guessed at."""

import json
import shlex

import pytest
from format_laws import ARGS, NAMES, TEXTS, refused
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from turnwise.envs.actions import COMMAND, FORMATS, HERMES
from turnwise.envs.formats.strict_json import JsonFault, loads
from turnwise.envs.fuzz import MALFORMED
from turnwise.envs.names import UnknownName


@given(st.lists(st.tuples(NAMES, ARGS), min_size=1, max_size=4), TEXTS)
@settings(deadline=None)
def test_every_hermes_call_of_an_action_is_read_in_order(wanted, between):
    assume("<" not in between)
    text = between.join(HERMES.render(name, args) for name, args in wanted)
    calls = HERMES.parse(text).calls
    assert [(call.name, call.args) for call in calls] == wanted
    assert [call.id for call in calls] == [f"c{i}" for i in range(len(calls))]


@pytest.mark.parametrize("text", MALFORMED, ids=range(len(MALFORMED)))
def test_what_a_sampler_may_produce_never_runs_with_made_up_arguments(text):
    for call in HERMES.parse(text).calls:
        assert call.error is not None or call.args == json.loads(call.raw[11:-12])["arguments"]


@given(st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\n"), max_size=40))
@example(r"""say "a \" b \\ c \d" 'e \' \f "" '' g"h"'i' j""")
@example('say "a')
@example("say a\\")
@settings(deadline=None)
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
    assert refused("hermes", text) == "bad_json line 2 col 39: expecting value"
    assert refused("command", "cat /a 'b") == "bad_command line 1 col 8: unclosed quote '"
    assert refused("command", "\ncat a\ncat b").startswith("bad_command line 3 col 1: one command")


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
    error = refused("hermes", f"<tool_call>{body}</tool_call>")
    assert error.startswith("bad_json line 1 col ") and why in error


def test_a_call_that_is_not_closed_is_refused():
    assert "expected </tool_call>" in refused(
        "hermes", '<tool_call>{"name": "cat", "arguments": {}}'
    )


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
    assert refused("hermes", f"<think>{call}").startswith("no_call")
    assert refused("hermes", f"<think>{call}</think>").startswith("no_call")


def test_text_without_a_call_is_an_error_of_its_own():
    assert refused("hermes", "I am done.").startswith("no_call")
    assert refused("command", " \n").startswith("no_call")


def test_a_deep_nest_of_brackets_inside_a_string_is_only_text():
    assert loads(json.dumps("[" * 1000)) == "[" * 1000
    with pytest.raises(JsonFault, match="extra text"):
        loads("1 2")


def test_an_unknown_format_is_answered_with_the_nearest():
    with pytest.raises(UnknownName, match="did you mean 'hermes'"):
        FORMATS["herms"]
