"""`ObservationBudget`: the wrapper that bounds what an agent reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from turnwise.envs.base import Env
from turnwise.envs.calling import TRUNCATED
from turnwise.envs.types import Message
from turnwise.envs.wrapper import Step, Wrapper

LEAST_CHARS = 60
"""Of an observation: room for the note that something was left out."""


class ObservationBudget(Wrapper):
    """Bounds what the agent reads per turn; the middle of a longer text is left out.

    The opening is bounded, too, but for the system prompt, without which nobody could act. Where
    a turn has several messages, long ones are cut before short ones.

    Args:
        env: What is wrapped.
        chars: Characters per turn, at least 60.

    Raises:
        ValueError: `chars` is lower.
    """

    def __init__(self, env: Env, /, *, chars: int) -> None:
        if isinstance(chars, bool) or not isinstance(chars, int) or chars < LEAST_CHARS:
            raise ValueError(f"chars must be an integer of at least {LEAST_CHARS}, got {chars!r}")
        super().__init__(env, chars=chars)
        self.chars = chars

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Start an episode; its opening is bounded."""
        return self._seen(*super().reset(seed=seed, options=options))

    def step(self, action: str) -> Step:
        """Play one turn; what it answers is bounded."""
        observation, *verdict, info = super().step(action)
        observation, info = self._seen(observation, info)
        return observation, *verdict, info  # type: ignore[return-value]

    def _seen(self, observation: str, info: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        messages: list[Message] = list(info.get("messages") or ())
        heard = [i for i, message in enumerate(messages) if message["role"] != "system"]
        texts = [messages[i]["content"] for i in heard]
        rooms = shares([len(text) for text in texts], self.chars - len(texts) + 1)
        short = [shortened(text, room) for text, room in zip(texts, rooms, strict=True)]
        if short != texts:
            for i, text in zip(heard, short, strict=True):
                messages[i] = {**messages[i], "content": text}
            info = {**info, "messages": messages}
        if observation == "\n".join(texts):  # so a `ToolEnv` joins its answers
            observation = "\n".join(short)
        elif texts and observation == texts[-1]:
            observation = short[-1]
        return shortened(observation, self.chars), info


def shares(lengths: Sequence[int], budget: int) -> list[int]:
    """Return how much of each length is granted so that the sum is within `budget`, most evenly."""
    granted, left = [0] * len(lengths), max(budget, 0)
    for rank, i in enumerate(sorted(range(len(lengths)), key=lengths.__getitem__)):
        granted[i] = min(lengths[i], left // (len(lengths) - rank))
        left -= granted[i]
    return granted


def shortened(text: str, room: int) -> str:
    """Return `text` in at most `room` characters; its middle is left out, and said to be."""
    if len(text) <= room:
        return text
    longest_note = f"\n[{TRUNCATED}] {len(text)} characters left out\n"
    if (kept := room - len(longest_note)) < 0:
        return text[:room]
    half = kept // 2
    note = f"\n[{TRUNCATED}] {len(text) - kept} characters left out\n"
    return text[: kept - half] + note + text[len(text) - half :]
