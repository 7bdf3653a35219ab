"""Tool calls from token ids.

Text alone cannot tell a tag that the model *meant* from one that it quotes, as in a file that it
writes. Where the tokenizer has an id for the tag, the ids can.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from itertools import groupby
from typing import Any

from turnwise.agents.codec import TAGS, Codec
from turnwise.agents.renderer import Renderer
from turnwise.agents.template import unused
from turnwise.envs.actions import Action, ActionFormat, ToolCall


def parse(ids: Sequence[int], renderer: Renderer, form: ActionFormat) -> Action:
    """Return the calls in a sampled action; never raises on ids of the vocabulary.

    A tag counts only if it was sampled as its own token, where the tokenizer has one for it.
    Otherwise this is `form.parse(renderer.action_text(ids))`. Positions in errors are those of the
    text in either case.
    """
    text = renderer.action_text(ids)
    known = {renderer.codec.control[tag]: tag for tag in TAGS if tag in renderer.codec.control}
    if not any(tag in text for tag in known.values()):
        return form.parse(text)
    mute = unused(text)
    ended = len(ids) > 0 and ids[-1] in renderer.stop_ids
    action = form.parse(_muted(ids[:-1] if ended else ids, renderer.codec, known, mute))
    return Action(text, tuple(_restored_call(call, mute) for call in action.calls))


def _muted(ids: Sequence[int], codec: Codec, known: Mapping[int, str], mute: str) -> str:
    """Return the text of `ids`, with `mute` for the first character of each spelled-out tag."""
    text = ""
    for is_tag, run in groupby(ids, known.__contains__):
        part = codec.decode(list(run))
        for tag in () if is_tag else known.values():
            part = part.replace(tag, mute + tag[1:])
        text += part
    return text


def _restored_call(call: ToolCall, mute: str) -> ToolCall:
    values = {field.name: getattr(call, field.name) for field in fields(call)}
    return replace(call, **_restored(values, mute))


def _restored(value: Any, mute: str) -> Any:
    if isinstance(value, str):
        return value.replace(mute, "<")
    if isinstance(value, dict):
        return {_restored(key, mute): _restored(item, mute) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_restored(item, mute) for item in value)
    return value
