"""Are the recorded token ids those that this tokenizer and template give? What drifts if not?

    clean      rendering the whole conversation again gives the recorded ids
    retoken    it gives the same text in other tokens
    template   it gives the sampled actions unchanged, with other text around them
    rewrite    an action that was sampled is no longer there as it was sampled

Training uses the recorded ids whatever the verdict: drift is what a system suffers that renders
the history again at each turn. A context that does not follow from the messages is another matter:
then the record was made with another tokenizer or template, and `Tokens.mismatch` says where.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from turnwise.agents.reenact import MakeEnv, Moment, as_played, fresh_env, reenact
from turnwise.envs.types import Episode, Message, Segment, Turn, canonical_json


class Drift(StrEnum):
    """What rendering a segment again would do to it."""

    CLEAN = "clean"
    RETOKEN = "retoken"
    TEMPLATE = "template"
    REWRITE = "rewrite"


@dataclass(frozen=True, slots=True)
class Mismatch:
    """The first recorded tokens that do not follow from the messages and the tokenizer."""

    turn: int
    field: str
    """`context_ids`, `action` (the ids decode to other text) or `calls` (parsed otherwise)."""
    recorded: str
    got: str

    def __str__(self) -> str:
        """Return one line."""
        return f"turn {self.turn}: {self.field} was {self.recorded!r}, is now {self.got!r}"


@dataclass(frozen=True, slots=True)
class Tokens:
    """What `tokens` found."""

    count: int
    """Recorded tokens, context and actions."""
    mismatch: Mismatch | None = None
    drift: tuple[Drift, ...] = ()
    """One verdict per segment that has tokens."""

    @property
    def proven(self) -> bool:
        """Whether there are tokens and all of them follow."""
        return self.count > 0 and self.mismatch is None


def tokens(episode: Episode, renderer: Any, make_env: MakeEnv | None = None) -> Tokens:
    """Render the conversation again, prove the recorded ids equal, and classify the drift.

    The messages come from a fresh environment, so the episode must replay (`execute`).

    Args:
        episode: An episode with token ids; a scripted policy leaves none, and then nothing is
            proven.
        renderer: A `turnwise.agents.renderer.Renderer` for the tokenizer in question.
        make_env: Used in place of the registry.

    Raises:
        Exception: whatever the environment raises.
    """
    count = sum(len(segment.ids) for segment in episode.segments)
    if count == 0:
        return Tokens(0)
    with closing(fresh_env(episode, make_env)) as env:
        moments = list(reenact(env, episode, [as_played(turn) for turn in episode.turns]))
    story = _Story(episode, renderer, moments)
    mismatch = next(story.mismatches(), None)
    return Tokens(count, mismatch, tuple(story.drifts()))


@dataclass(frozen=True)
class _Story:
    """An episode beside the messages it was rendered from."""

    episode: Episode
    renderer: Any
    moments: Sequence[Moment]

    def history(self, turn: int) -> list[Message]:
        """Return the messages that the agent had before it acted in `turn`."""
        messages = list(self.moments[0].messages)
        for past, moment in zip(self.episode.turns[:turn], self.moments[1:], strict=False):
            messages += [{"role": "assistant", "content": past.action}, *moment.messages]
        return messages

    @property
    def tools(self) -> Any:
        return self.moments[0].info.get("tools")

    def segments(self) -> Iterator[tuple[int, Segment]]:
        """Yield each segment with the number of its first turn."""
        first = 0
        for segment in self.episode.segments:
            yield first, segment
            first += len(segment.turns)

    def mismatches(self) -> Iterator[Mismatch]:
        for first, segment in self.segments():
            for k, turn in enumerate(segment.turns):
                if first + k >= len(self.moments):
                    return  # the environment ended earlier than it did: `execute` says where
                expected = self._context(first + k, segment, k)
                recorded = [*(segment.inherited_ids if k == 0 else ()), *turn.context_ids]
                if recorded != expected:
                    yield Mismatch(first + k, "context_ids", *self._texts(recorded, expected))
                yield from self._action(first + k, turn)

    def drifts(self) -> Iterator[Drift]:
        for first, segment in self.segments():
            if segment.ids and segment.turns:
                last = first + len(segment.turns) - 1
                spoken: Message = {"role": "assistant", "content": segment.turns[-1].action}
                again = self.renderer.rewrite([*self.history(last), spoken], self.tools)
                yield _classify(segment, again, self.renderer)

    def _context(self, number: int, segment: Segment, k: int) -> list[int]:
        """Return the ids that turn `number`, the `k`-th of its segment, must have read."""
        messages = self.moments[number].messages
        if number == 0:
            return list(self.renderer.open(messages, self.tools))
        if k > 0 and self.renderer.extends(messages):
            previous = self.episode.turns[number - 1].action_ids
            stopped = bool(previous) and previous[-1] in self.renderer.stop_ids
            return list(self.renderer.delta(messages, "stop" if stopped else "length"))
        before = Segment(turns=segment.turns[:k], inherited_ids=segment.inherited_ids).ids
        whole = list(self.renderer.rewrite(self.history(number), self.tools))
        return whole[len(before) if k > 0 else 0 :]

    def _action(self, number: int, turn: Turn) -> Iterator[Mismatch]:
        if turn.action_ids and (text := self.renderer.action_text(turn.action_ids)) != turn.action:
            yield Mismatch(number, "action", turn.action, text)
        if number + 1 < len(self.moments):
            got = canonical_json(list(self.moments[number + 1].info.get("calls") or ()))
            if (recorded := canonical_json(list(turn.calls))) != got:
                yield Mismatch(number, "calls", recorded, got)

    def _texts(self, recorded: Sequence[int], expected: Sequence[int]) -> tuple[str, str]:
        decode = self.renderer.codec.decode
        before, after = decode(recorded), decode(expected)
        return (before, after) if before != after else (str(list(recorded)), str(list(expected)))


def _classify(segment: Segment, again: Sequence[int], renderer: Any) -> Drift:
    # The template closes the last message and may open the next: only what was recorded counts.
    ids = segment.ids
    if list(again[: len(ids)]) == ids:
        return Drift.CLEAN
    text = renderer.codec.decode(again)
    if text.startswith(renderer.codec.decode(ids)):
        return Drift.RETOKEN
    at = 0
    for turn in segment.turns:
        found = text.find(turn.action, at)
        if found < 0:
            return Drift.REWRITE
        at = found + len(turn.action)
    return Drift.TEMPLATE
