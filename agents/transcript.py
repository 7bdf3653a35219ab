"""An episode as text for a terminal."""

from __future__ import annotations

import math
import shutil
import textwrap
from collections.abc import Iterator

from turnwise.agents.blobs import digests_of, picture_faults
from turnwise.envs.types import Episode, Turn

_BOLD, _DIM, _GREEN, _RED, _CYAN, _END = (f"\x1b[{code}m" for code in (1, 2, 32, 31, 36, 0))


def view(episode: Episode, *, width: int = 0, color: bool = False) -> str:
    """Return the episode as text, turn by turn: what the agent read, did and got.

    Control characters in recorded text are shown, not sent: an observation cannot move the
    cursor or recolour the terminal of whoever reads it.

    Args:
        episode: The episode; it needs neither its environment nor a model.
        width: Columns; 0 takes the terminal's.
        color: Add ANSI colours.
    """
    width = width or min(shutil.get_terminal_size((100, 24)).columns, 120)
    lines = [*_head(episode)]
    for number, turn in enumerate(episode.turns):
        lines += ["", *_turn(number, turn, width)]
    if episode.final_observation:
        lines += ["", f"{_BOLD}end{_END}", *_block("reads", episode.final_observation, width, "")]
    if episode.error:
        lines += ["", f"{_RED}{printable(episode.error)}{_END}"]
    text = "\n".join(lines) + "\n"
    return text if color else _plain(text)


def printable(text: str) -> str:
    """Return `text` with every control character but newline and tab written out as an escape."""
    return "".join(c if c.isprintable() or c in "\n\t" else _escaped(c) for c in text)


def _head(episode: Episode) -> Iterator[str]:
    verdict = f"{_GREEN}solved{_END}" if episode.success else f"{_RED}not solved{_END}"
    yield f"{_BOLD}{printable(episode.id)}{_END}  {printable(episode.env_id)}"
    task = ", ".join(f"{k}={v!r}" for k, v in episode.task.to_json().items() if k != "hidden")
    yield f"{_DIM}task {episode.task.key}  {printable(task)}{_END}"
    tokens = sum(len(turn.action_ids) for turn in episode.turns)
    parts = [
        verdict,
        f"reward {episode.reward:g}",
        f"{len(episode.turns)} turns",
        f"{tokens} sampled tokens" if tokens else "no tokens",
        f"{episode.outcome.value}, {episode.stop.value}",
        f"seed {episode.env_seed}",
        f"replica {episode.replica}",
    ]
    yield " · ".join(parts)
    if kept := len(set(filter(None, digests_of(episode)))):
        yield from _pictures(kept, picture_faults(episode))
    if len(episode.segments) > 1:
        yield f"{_DIM}{_branches(episode)}{_END}"


def _pictures(kept: int, faults: list[str]) -> Iterator[str]:
    """Say how many pictures the record names, and which of them are not as they were."""
    yield f"{_DIM}{kept - len(faults)} of {kept} pictures as recorded{_END}"
    for fault in faults:
        yield f"{_RED}{printable(fault)}{_END}"


def _branches(episode: Episode) -> str:
    """Say why there are several segments: `Renderer.recall` is meant, a rewrite is not."""
    more = len(episode.segments) - 1
    if episode.metrics.get("drift", more):
        return f"history rewritten {more} times"
    return f"shown its last turns alone: {more + 1} prompts"


def _turn(number: int, turn: Turn, width: int) -> Iterator[str]:
    rewards = ", ".join(f"{name} {value:+g}" for name, value in turn.rewards.items())
    facts = [f"turn {number}", f"reward {turn.reward:+g}" + (f" ({rewards})" if rewards else "")]
    if turn.executor != "student":
        facts.append(turn.executor)
    if turn.action_ids:
        mean = math.fsum(turn.logprobs) / len(turn.logprobs)
        facts.append(f"{len(turn.action_ids)} tokens, {mean:.3f} nats each, {turn.finish}")
    if turn.state_before or turn.state_after:
        facts.append(f"state {turn.state_before[:8]} -> {turn.state_after[:8]}")
    yield f"{_BOLD}{facts[0]}{_END}{_DIM}  {printable('  '.join(facts[1:]))}{_END}"
    yield from _block("reads", turn.observation, width, "")
    yield from _block("acts", turn.action, width, _CYAN)


def _block(label: str, text: str, width: int, style: str) -> Iterator[str]:
    wrapped = [
        part
        for line in printable(text).expandtabs(4).split("\n")
        for part in textwrap.wrap(line, max(20, width - 10), drop_whitespace=False) or [""]
    ]
    for number, line in enumerate(wrapped):
        name = label if number == 0 else ""
        yield f"{_DIM}{name:>6} │{_END} {style}{line}{_END if style else ''}"


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


def _plain(text: str) -> str:
    for code in (_BOLD, _DIM, _GREEN, _RED, _CYAN, _END):
        text = text.replace(code, "")
    return text
