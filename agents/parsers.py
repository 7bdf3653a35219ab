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
from turnwise.envs.calls import Action, ActionFormat, ToolCall, Written


def parse(ids: Sequence[int], renderer: Renderer, form: ActionFormat) -> Action:
    """Return the calls in a sampled action; never raises on ids of the vocabulary.

    A tag counts only if it was sampled as its own token, where the tokenizer has one for it: those
    of all formats and of reasoning. Otherwise this is `form.parse(renderer.action_text(ids))`.
    Positions in errors are those of the text in either case.
    """
    text = renderer.action_text(ids)
    known = _tags_in(text, renderer.codec)
    return _parsed(ids, text, known, renderer, form) if known else form.parse(text)


def written(ids: Sequence[int], renderer: Renderer, form: ActionFormat | None) -> str:
    """Return a sampled action as an environment takes it.

    Args:
        form: How the environment's calls are written; None where it has none (`format_of`).

    Returns:
        The text; a `Written` where the text alone would be read as other calls than were sampled.
    """
    text = renderer.action_text(ids)
    if form is None or not (known := _tags_in(text, renderer.codec)):
        return text
    calls = _parsed(ids, text, known, renderer, form).calls
    return text if calls == form.parse(text).calls else Written(text, calls)


def _tags_in(text: str, codec: Codec) -> dict[int, str]:
    """Return every tag with a token of its own, by id, if `text` looks as if it held one."""
    known = {codec.control[tag]: tag for tag in TAGS if tag in codec.control}
    return known if any(tag in text for tag in known.values()) else {}


def _parsed(
    ids: Sequence[int], text: str, known: Mapping[int, str], renderer: Renderer, form: ActionFormat
) -> Action:
    mutes = _mutes(text)
    ended = len(ids) > 0 and ids[-1] in renderer.stop_ids
    action = form.parse(_muted(ids[:-1] if ended else ids, renderer.codec, known, mutes))
    meant = str.maketrans({mute: first for first, mute in mutes.items()})
    return Action(text, tuple(_restored_call(call, meant) for call in action.calls))


def _mutes(text: str) -> dict[str, str]:
    """Return, for each character that a tag begins with, one that `text` does not hold."""
    mutes: dict[str, str] = {}
    for first in sorted({tag[0] for tag in TAGS}):
        mutes[first] = unused(text + "".join(mutes.values()))
    return mutes


def _muted(
    ids: Sequence[int], codec: Codec, known: Mapping[int, str], mutes: Mapping[str, str]
) -> str:
    """Return the text of `ids`, the first character of each spelled-out tag replaced."""
    parts = []
    for is_tag, run in groupby(ids, known.__contains__):
        part = codec.decode(list(run))
        for tag in () if is_tag else known.values():
            part = part.replace(tag, mutes[tag[0]] + tag[1:])
        parts.append(part)
    return "".join(parts)


def _restored_call(call: ToolCall, meant: Mapping[int, str]) -> ToolCall:
    values = {field.name: getattr(call, field.name) for field in fields(call)}
    return replace(call, **_restored(values, meant))


def _restored(value: Any, meant: Mapping[int, str]) -> Any:
    if isinstance(value, str):
        return value.translate(meant)
    if isinstance(value, dict):
        return {_restored(key, meant): _restored(item, meant) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_restored(item, meant) for item in value)
    return value
