"""Laws of every call format: what is rendered is read back, and nothing is dropped or made up."""

import json
import time

import pytest
from format_laws import (
    ARGS,
    NAMES,
    NOISE,
    OPENERS,
    TAGS,
    TEXTS,
    meant,
    refused,
    rendered,
    said,
)
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from turnwise.envs.actions import FORMATS, ToolCall
from turnwise.envs.formats.reading import MAX_CALLS
from turnwise.envs.fuzz import MALFORMED
from turnwise.envs.tool_env import CODES

each_format = pytest.mark.parametrize("format", FORMATS.values(), ids=FORMATS)
each_opener = pytest.mark.parametrize(
    ("name", "opener"), [(name, opener) for name in OPENERS for opener in OPENERS[name]]
)
BETWEEN = {"hermes": "", "qwen_coder": "\n", "llama3": "; ", "mistral": "", "pythonic": "\n"}


@each_format
@given(name=NAMES, args=ARGS)
@example(name="write", args={"text": "</parameter>\n</tool_call><tool_call>[TOOL_CALLS]"})
@example(name="write", args={"text": "```\n````\n```", "more": "\\boxed{x}</think>"})
@example(name="write", args={"text": "\n\n a \n"})
@example(name="write", args={"text": "```\n````\n```"})
@example(name="write", args={"text": "{\\{} \\}"})
@example(name="write", args={"text": "</think>"})
@example(name="write", args={"text": ""})
@example(name="write", args={})
@settings(deadline=None)
def test_what_is_rendered_is_read_back_as_it_was(format, name, args):
    if format.name == "boxed":
        args, name = dict(list(args.items())[:1]), "submit"
    if format.name == "fenced":
        args = dict(list(args.items())[:1])
    (call,) = format.parse(rendered(format, name, args)).calls
    assert (call.name, said(call)) == (name, meant(format, args))


@pytest.mark.parametrize("name", BETWEEN)
@given(wanted=st.lists(st.tuples(NAMES, ARGS), min_size=1, max_size=3))
@settings(max_examples=30, deadline=None)
def test_every_call_of_an_action_is_read_in_order_and_its_raw_text_is_its_own(name, wanted):
    format = FORMATS[name]
    text = BETWEEN[name].join(rendered(format, tool, args) for tool, args in wanted)
    calls = format.parse(text).calls
    assert [(call.name, said(call)) for call in calls] == [
        (tool, meant(format, args)) for tool, args in wanted
    ]
    assert [call.id for call in calls] == [f"c{i}" for i in range(len(calls))]
    assert [text.count(call.raw) > 0 for call in calls] == [True] * len(calls)


@each_format
@given(text=NOISE)
@settings(max_examples=200, deadline=None)
def test_no_text_makes_parsing_raise_and_every_call_is_read_or_refused(format, text):
    action = format.parse(text)
    assert action.calls and action.text == text
    assert len({call.id for call in action.calls}) == len(action.calls)
    for call in action.calls:
        assert len(said(call)) == 1
        assert call.error is None or call.code in CODES
        assert ToolCall.from_json(json.loads(json.dumps(call.to_json()))) == call


@each_format
@pytest.mark.parametrize("text", MALFORMED, ids=range(len(MALFORMED)))
def test_what_a_sampler_may_produce_is_read_or_refused_by_every_format(format, text):
    assert all(len(said(call)) == 1 for call in format.parse(text).calls)


@each_opener
@given(rest=NOISE)
@settings(max_examples=50, deadline=None)
def test_a_call_that_was_begun_is_never_passed_over(name, opener, rest):
    assume("think>" not in rest.lower() and "THINK" not in rest)
    calls = FORMATS[name].parse(opener + rest).calls
    assert calls and all(call.code != "no_call" for call in calls)


@each_opener
def test_a_call_that_is_cut_short_is_an_error_with_its_text(name, opener):
    (call,) = FORMATS[name].parse(opener).calls
    assert call.code in ("bad_json", "bad_command") and call.raw in opener and call.raw


@pytest.mark.parametrize("name", OPENERS)
@given(said=TEXTS)
@settings(deadline=None)
def test_text_without_a_call_is_an_error_of_its_own(name, said):
    assume(not any(opener[:1] in said for opener in ("<", "{", "[", "(", "`", "\\", ";")))
    assert refused(name, said).startswith("no_call line ")


@pytest.mark.parametrize("name", OPENERS)
@pytest.mark.parametrize("tag", ["think", "THINK"])
def test_a_call_that_is_only_thought_about_is_not_run(name, tag):
    opened, closed = ("<think>", "</think>") if tag == "think" else ("[THINK]", "[/THINK]")
    idea, call = (FORMATS[name].render("submit", {"path": path}) for path in ("bad", "good"))
    for opening in (opened, f"\n {opened}", ""):
        (found,) = FORMATS[name].parse(f"{opening}I could:\n{idea}\nno.{closed}{call}").calls
        assert "good" in str(said(found)) and found.error is None
        assert refused(name, f"{opening}I could:\n{idea}\n{closed}").startswith("no_call")
    assert refused(name, f"{opened}{call}").startswith("no_call")


@pytest.mark.parametrize("name", OPENERS)
def test_a_call_may_quote_the_end_of_a_thought(name):
    format = FORMATS[name]
    (call,) = format.parse(format.render("submit", {"text": "a </think> b"}) + "\n").calls
    assert "a </think> b" in str(said(call)) and call.error is None


@pytest.mark.parametrize("name", BETWEEN)
def test_a_thought_may_mention_how_a_call_begins(name):
    opener, call = OPENERS[name][:2][-1], FORMATS[name].render("submit", {"path": "good"})
    (found,) = FORMATS[name].parse(f"I write {opener} and then</think>{call}").calls
    assert "good" in str(said(found)) and found.error is None
    assert not refused(name, f"I write:\n{opener} and </think>").startswith("no_call")


@each_format
def test_text_that_utf8_cannot_hold_is_refused_where_it_stands(format):
    (call,) = format.parse("a\n\ud800" + "b").calls
    assert call.error is not None and call.error.endswith(" line 2 col 1: not valid UTF-8")


@pytest.mark.parametrize("name", ["hermes", "qwen_coder", "llama3", "mistral", "pythonic"])
def test_the_reading_of_calls_ends_where_no_environment_would_run_them(name):
    text = BETWEEN[name].join([FORMATS[name].render("f", {})] * (MAX_CALLS + 5))
    calls = FORMATS[name].parse(text).calls
    assert [call.code for call in calls] == [None] * MAX_CALLS + ["budget_exhausted"]


TIRING = [
    *TAGS,
    *('"', "'", "\\", "[", "{", '{"', '{"a":', "(", "\n", " ", "```a\n", "\n```\n", "\\boxed{}"),
    *("<tool_call></tool_call>", '<tool_call>"</tool_call>', '<tool_call>{"a</tool_call>'),
    *("<tool_call><function=f><parameter=a></tool_call>", "<tool_call><function=f>", "</think>"),
    *("[TOOL_CALLS]a[ARGS]{", "[TOOL_CALLS][", "[f(a=", "f(", "f(),", "a=1,", ";{", "}", "{},"),
]
BEGINNINGS = ["", "<tool_call>{", "<tool_call><function=f><parameter=a>", "[TOOL_CALLS][", '{"a":"']
BEGINNINGS += ["[f(a=", '[f(a="', "```a\n", "\\boxed{", "<think>", "a '", 'a "', "[f("]


def cpu_seconds(parse, text: str) -> float:
    start = time.process_time()
    parse(text)
    return time.process_time() - start


@each_format
def test_reading_takes_time_that_grows_with_the_text_and_not_with_its_square(format):
    for begin in BEGINNINGS:
        for piece in TIRING:
            short, long = (begin + piece * (size // len(piece)) for size in (10_000, 80_000))
            if cpu_seconds(format.parse, long) < 0.02:  # at 80,000 characters, a square is seconds
                continue
            ratios = (
                cpu_seconds(format.parse, long) / max(cpu_seconds(format.parse, short), 1e-4)
                for _ in range(5)
            )
            assert any(ratio < 24 for ratio in ratios), (begin, piece)


def test_many_keys_one_of_them_twice_are_refused_in_linear_time():
    def body(count: int) -> str:
        keys = ", ".join(f'"k{i}": 0' for i in range(count))
        return f'<tool_call>{{"name": "f", "arguments": {{{keys}, "k{count - 1}": 1}}}}</tool_call>'

    parse, short, long = FORMATS["hermes"].parse, body(4_000), body(32_000)
    assert "duplicate key 'k31999'" in refused("hermes", long)
    ratios = (cpu_seconds(parse, long) / max(cpu_seconds(parse, short), 1e-4) for _ in range(5))
    assert any(ratio < 24 for ratio in ratios)
