"""Llama's and Mistral's ways to write calls as JSON, as their templates and models write them."""

import pytest
from format_laws import refused

from turnwise.envs.actions import LLAMA3, MISTRAL

CAT = '{"name": "cat", "parameters": {"path": "/a"}}'
GREP = '{"name": "grep", "parameters": {"word": "b;{\\"name\\": \\"rm\\"}"}}'


def read(format, text):
    return [
        (call.name, call.args if call.error is None else call.code)
        for call in format.parse(text).calls
    ]


@pytest.mark.parametrize(
    "text",
    [
        CAT,
        f"<|python_tag|>{CAT}",
        f"  <|python_tag|>\n{CAT}\n",
        f"I will look.\n{CAT}<|eom_id|>",
        f"{CAT};",
        '{"type": "function", "name": "cat", "parameters": {"path": "/a"}}',
        '{"name": "cat", "arguments": {"path": "/a"}}',
        '{"parameters": {"path": "/a"}, "name": "cat"}',
    ],
)
def test_llama_may_write_a_call_in_each_of_these_ways(text):
    assert read(LLAMA3, text) == [("cat", {"path": "/a"})]


@pytest.mark.parametrize("between", [";", " ;\n", "", "\n", "<|python_tag|>", "; <|python_tag|>"])
def test_llama_calls_follow_one_another(between):
    word = {"word": 'b;{"name": "rm"}'}
    wanted = [("cat", {"path": "/a"}), ("grep", word), ("cat", {"path": "/a"})]
    assert read(LLAMA3, between.join([CAT, GREP, CAT])) == wanted


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("<|python_tag|>print(1)", "line 1 col 15: expected {"),
        (f"{CAT[:-1]}", "line 1 col 45: expecting ',' delimiter"),
        ('{"name": "cat"}', "line 1 col 1: expected a key 'parameters'"),
        ('{"name": "cat", "parameters": {}, "arguments": {}}', "unexpected key 'arguments'"),
        ('{"type": "code", "name": "cat", "parameters": {}}', "a key 'type' that holds 'function'"),
        ('{"name": "cat", "parameters": "{}"}', "'parameters' that holds an object"),
        ("{}", "expected a key 'name'"),
        ("<|python_tag|>", "line 1 col 15: expected {"),
    ],
)
def test_what_is_no_call_of_llama_is_refused_with_its_place(text, error):
    found = refused("llama3", text)
    assert found.startswith("bad_json line ") and error in found


def test_what_stands_behind_a_broken_llama_call_is_not_run():
    text = '{"name": "write", "parameters": {"text": "a" "b": ' + CAT + "}}; " + CAT
    assert read(LLAMA3, text) == [("", "bad_json")]
    assert LLAMA3.parse(text).calls[0].raw == text
    assert read(LLAMA3, f"{text}<|python_tag|>{CAT}") == [("", "bad_json"), ("cat", {"path": "/a"})]


def test_a_semicolon_behind_a_llama_call_announces_another_one():
    assert read(LLAMA3, f"{CAT}; then wait") == [("cat", {"path": "/a"}), ("", "bad_json")]
    assert read(LLAMA3, f"{CAT} then wait") == [("cat", {"path": "/a"})]


@pytest.mark.parametrize(
    "text",
    [
        '[TOOL_CALLS]cat[ARGS]{"path": "/a"}',
        'Look: [TOOL_CALLS] cat [ARGS] {"path": "/a"}\n',
        '[TOOL_CALLS]cat{"path": "/a"}',
        '[TOOL_CALLS]cat[CALL_ID]bbc5b7ede[ARGS]{"path": "/a"}',
        '[TOOL_CALLS][{"name": "cat", "arguments": {"path": "/a"}}]',
        '[TOOL_CALLS] [{"name": "cat", "arguments": {"path": "/a"}, "id": "bbc5b7ede"}]',
        '[THINK]which?[/THINK][TOOL_CALLS]cat[ARGS]{"path": "/a"}',
    ],
)
def test_mistral_may_write_a_call_in_each_of_these_ways(text):
    assert read(MISTRAL, text) == [("cat", {"path": "/a"})]


@pytest.mark.parametrize(
    "text",
    [
        '[TOOL_CALLS]a[ARGS]{"x": 1}[TOOL_CALLS]b[ARGS]{"y": "[TOOL_CALLS]"}',
        '[TOOL_CALLS][{"name": "a", "arguments": {"x": 1}}, '
        '{"name": "b", "arguments": {"y": "[TOOL_CALLS]"}}]',
        '[TOOL_CALLS]a{"x": 1} [TOOL_CALLS][{"name": "b", "arguments": {"y": "[TOOL_CALLS]"}}]',
    ],
)
def test_mistral_calls_follow_one_another(text):
    assert read(MISTRAL, text) == [("a", {"x": 1}), ("b", {"y": "[TOOL_CALLS]"})]
    assert [call.id for call in MISTRAL.parse(text).calls] == ["c0", "c1"]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("[TOOL_CALLS]", "line 1 col 13: expected a tool's name or ["),
        ("[TOOL_CALLS]cat", "line 1 col 16: expected [ARGS] and an object"),
        ("[TOOL_CALLS]cat[ARGS]", "line 1 col 22: expected [ARGS] and an object"),
        ("[TOOL_CALLS]cat[ARGS][1]", "expected [ARGS] and an object"),
        ("[TOOL_CALLS]cat[ARGS]{} and then", "line 1 col 25: expected [TOOL_CALLS] or the end"),
        ("[TOOL_CALLS][]", "line 1 col 14: expecting value"),
        ("[TOOL_CALLS][1]", "line 1 col 14: expected an object, got int"),
        ('[TOOL_CALLS][{"name": "a"}]', "line 1 col 14: expected a key 'arguments'"),
    ],
)
def test_what_is_no_call_of_mistral_is_refused_with_its_place(text, error):
    found = refused("mistral", text)
    assert found.startswith("bad_json line ") and error in found


def test_the_calls_of_a_mistral_list_before_its_fault_stand_and_none_is_lost():
    good = '{"name": "a", "arguments": {}}'
    for text in (f"[{good}, {{]", f"[{good}", f"[{good}] tail", f"[{good}, ]", f"[{good} {good}]"):
        assert read(MISTRAL, f"[TOOL_CALLS]{text}") == [("a", {}), ("", "bad_json")]
    calls = read(MISTRAL, f"[TOOL_CALLS][{{[TOOL_CALLS][{good}]")
    assert calls == [("", "bad_json"), ("a", {})]
