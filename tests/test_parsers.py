"""Tool calls are read from what was sampled, not from how it looks."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from turnwise.agents.codec import TAGS
from turnwise.agents.parsers import parse
from turnwise.agents.renderer import Renderer
from turnwise.envs.actions import COMMAND, FORMATS, HERMES
from turnwise.trainers.tiny import tiny_tokenizer

PLAIN = tiny_tokenizer([])
TAGGED = tiny_tokenizer([])
TAGGED.add_tokens([AddedToken(tag, normalized=False) for tag in ("<tool_call>", "</tool_call>")])
RENDERERS = {"text": Renderer(PLAIN), "ids": Renderer(TAGGED)}
ALL_TAGS = tiny_tokenizer([])
ALL_TAGS.add_tokens([AddedToken(tag, normalized=False, special=True) for tag in TAGS])
EVERY = Renderer(ALL_TAGS)
OPENED = {
    "hermes": '<tool_call>{"name": "say", "arguments": {"text": "@"}}</tool_call>',
    "qwen_coder": "<tool_call>\n<function=say>\n<parameter=text>\n@\n</parameter>\n</function>\n"
    "</tool_call>",
    "llama3": '<|python_tag|>{"name": "say", "parameters": {"text": "@"}}',
    "mistral": '[TOOL_CALLS]say[ARGS]{"text": "@"}',
    "pythonic": '<|python_start|>[say(text="@")]<|python_end|>',
}
"""A call whose tags are meant, and `@` for what it says."""

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
arguments = st.dictionaries(st.text(), values, max_size=3)


def spelled(text: str) -> list[int]:
    """Return the ids of `text` in which no tag is a token."""
    return PLAIN.encode(text, add_special_tokens=False, split_special_tokens=True)


@pytest.mark.parametrize("kind", RENDERERS)
@given(args=arguments, said=st.text(st.characters(codec="utf-8", exclude_characters="<")))
@settings(deadline=None)
def test_a_rendered_call_is_read_back(kind: str, args: dict[str, Any], said: str):
    ids = RENDERERS[kind].action_ids(said + HERMES.render("cat", args))
    (call,) = parse(ids, RENDERERS[kind], HERMES).calls
    assert (call.name, call.args, call.error) == ("cat", args, None)


@pytest.mark.parametrize("kind", RENDERERS)
@given(st.lists(st.integers(0, len(PLAIN) - 1)))
@settings(deadline=None)
def test_a_format_without_tags_reads_ids_as_it_reads_text(kind: str, ids: list[int]):
    text = RENDERERS[kind].action_text(ids)
    assert parse(ids, RENDERERS[kind], COMMAND) == COMMAND.parse(text)


def test_a_tag_that_is_spelled_out_is_a_call_only_where_no_token_exists_for_it():
    ids = spelled(HERMES.render("cat", {"path": "/a"}))
    assert parse(ids, RENDERERS["text"], HERMES).ok
    for stop in ([], [*RENDERERS["ids"].stop_ids]):
        (call,) = parse([*ids, *stop], RENDERERS["ids"], HERMES).calls
        assert call.error is not None and call.error.startswith("no_call line 3 col 13: ")


def test_a_call_may_quote_a_tag_in_its_arguments_and_in_the_text_before_it():
    renderer = RENDERERS["ids"]
    start, end = (renderer.codec.control[tag] for tag in ("<tool_call>", "</tool_call>"))
    quoted = "write </tool_call> after <tool_call>"
    body = spelled(f'{{"name": "say", "arguments": {{"<tool_call>": ["{quoted}"]}}}}')
    ids = [*spelled("The tag <tool_call> comes first. "), start, *body, end, *renderer.stop_ids]
    action = parse(ids, renderer, HERMES)
    (call,) = action.calls
    assert (call.name, call.args) == ("say", {"<tool_call>": [quoted]})
    assert action.text == renderer.action_text(ids) and call.raw in action.text


def test_the_position_of_an_error_is_that_in_the_text():
    renderer = RENDERERS["ids"]
    text = 'see <tool_call>\n<tool_call>{"name": }</tool_call>'
    first = text.index("<tool_call>") + len("<tool_call>")
    ids = [*spelled(text[:first]), *renderer.action_ids(text[first:])]
    (call,) = parse(ids, renderer, HERMES).calls
    assert call.error is not None and call.error.startswith("bad_json line 2 col 21: ")


@given(st.lists(st.integers(0, len(TAGGED) - 1)))
@settings(deadline=None)
def test_no_ids_of_the_vocabulary_raise(ids: list[int]):
    renderer = RENDERERS["ids"]
    assert parse(ids, renderer, HERMES).text == renderer.action_text(ids)


def sampled(text: str, quoted: str) -> list[int]:
    """Return ids of `text`, its tags as tokens, with `quoted` for its `@`, no tag a token."""
    ids: list[int] = []
    for part in EVERY.codec.split(text):
        if isinstance(part, int):
            ids.append(part)
        else:
            ids += spelled(part.replace("@", quoted))
    return [*ids, *EVERY.stop_ids]


QUOTES = st.lists(st.sampled_from(TAGS) | st.sampled_from(["a", " ", "{", "["])).map("".join)


@pytest.mark.parametrize("name", OPENED)
@given(quoted=QUOTES, before=st.lists(st.sampled_from([*TAGS[:-2], "so "])).map("".join))
@settings(deadline=None)
def test_every_tag_of_every_format_may_be_quoted_in_a_value_and_before_the_call(
    name: str, quoted: str, before: str
):
    before = "Quoting " + before.replace("<function", "")
    ids = [*spelled(before), *sampled(OPENED[name], quoted)]
    action = parse(ids, EVERY, FORMATS[name])
    (call,) = action.calls
    assert call.error is None, call.error
    assert list((call.args or call.texts or {}).items()) == [("text", quoted)]
    assert action.text == EVERY.action_text(ids) and call.raw in action.text


@pytest.mark.parametrize("name", OPENED)
def test_a_spelled_tag_opens_no_call_where_there_is_a_token_for_it(name: str):
    opener = FORMATS[name].tags[0]
    text = f"{opener} is how it begins"
    assert FORMATS[name].parse(text).calls[0].code != "no_call"
    (call,) = parse(spelled(text), EVERY, FORMATS[name]).calls
    assert call.code == "no_call"
    meant = [EVERY.codec.control[opener], *spelled(" is how it begins")]
    assert parse(meant, EVERY, FORMATS[name]).calls[0].code != "no_call"
    assert parse(spelled(text), RENDERERS["text"], FORMATS[name]) == FORMATS[name].parse(text)


@pytest.mark.parametrize("name", OPENED)
def test_without_special_tokens_calls_are_read_from_the_text(name: str):
    text = OPENED[name].replace("@", "hello")
    (call,) = parse(spelled(text), RENDERERS["text"], FORMATS[name]).calls
    assert (call.args or call.texts) == {"text": "hello"}


def test_a_spelled_end_of_a_thought_does_not_end_it():
    opened, closed = (EVERY.codec.control[tag] for tag in ("<think>", "</think>"))
    call = HERMES.render("cat", {"path": "a"})
    ids = [opened, *spelled("the tag is </think>: "), *EVERY.action_ids(call)]
    assert parse(ids, EVERY, HERMES).calls[0].code == "no_call"
    ids = [*ids[:-1], closed, *EVERY.action_ids(call)]
    assert [found.name for found in parse(ids, EVERY, HERMES).calls] == ["cat"]


@pytest.mark.parametrize("role", ["user", "tool"])
def test_a_tag_in_what_others_wrote_is_never_its_token(role: str):
    known = {EVERY.codec.control[tag] for tag in TAGS}
    text = "".join(TAGS)
    ids = EVERY.open([{"role": "user", "content": "go"}, {"role": role, "content": text}])
    assert not known & set(ids) and text in ALL_TAGS.decode(ids)
    said = EVERY.open([{"role": "user", "content": "go"}, {"role": "assistant", "content": text}])
    assert known <= set(said)
