"""Tool calls are read from what was sampled, not from how it looks."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from turnwise.agents.parsers import parse
from turnwise.agents.renderer import Renderer
from turnwise.envs.actions import COMMAND, HERMES
from turnwise.trainers.tiny import tiny_tokenizer

PLAIN = tiny_tokenizer([])
TAGGED = tiny_tokenizer([])
TAGGED.add_tokens([AddedToken(tag, normalized=False) for tag in ("<tool_call>", "</tool_call>")])
RENDERERS = {"text": Renderer(PLAIN), "ids": Renderer(TAGGED)}

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
