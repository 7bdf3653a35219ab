"""What the teacher reads and the student does not: text spliced into the teacher's prompt.

The student's tokens behind the prompt are the same ids in the same order for both, so the map from
teacher to student positions is a shift. What can go wrong is the place: `with_context` refuses a
prompt that does not end as the chat template ends one. A privileged context that silently never
fires is the bug to fear: the log counts the rows that have one (`teacher_context`), and one of
white space is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from turnwise.agents.renderer import Renderer
from turnwise.envs.types import Episode
from turnwise.trainers.batch import Row

Context = Callable[[Episode], str]
"""What the teacher is told about an episode besides its history; empty for nothing."""


def outcome_hint(episode: Episode) -> str:
    """Say whether the attempt succeeded (TT-OPD's hint, arXiv:2605.02943)."""
    return "This attempt succeeds." if episode.success else "This attempt fails."


def with_context(
    rows: Sequence[Row], episodes: Sequence[Episode], context: Context, renderer: Renderer
) -> list[Row]:
    """Return `rows` with the ids of what the teacher is told besides.

    Args:
        episodes: by `Row.traj`.
        renderer: the student's; the text becomes one more user message at the prompt's end.

    Raises:
        ValueError: the chat template cannot put a user message there, a prompt does not end as the
            template ends one, or a context is white space.
    """
    made: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
    found = []
    for row in rows:
        text = context(episodes[row.traj])
        if text and text not in made:
            made[text] = message_ids(renderer, text)
        found.append(_told(row, *made[text]) if text else replace(row, hint=(), hint_at=0))
    return found


def _told(row: Row, ids: tuple[int, ...], behind: tuple[int, ...]) -> Row:
    at = len(row.prompt) - len(behind)
    if row.prompt[at:] != behind:
        raise ValueError(
            f"a prompt ends in {list(row.prompt[-len(behind) :])}, and this chat template ends one "
            f"in {list(behind)}: the teacher's context would stand inside a message; give it to "
            "episodes that this template rendered"
        )
    return replace(row, hint=ids, hint_at=at)


def message_ids(renderer: Renderer, text: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return (ids of one more user message, the ids of a prompt that come after it).

    Raises:
        ValueError: `text` is blank, or with one more message the template changes more than it
            adds.
    """
    if not text.strip():
        raise ValueError(f"a context is {text!r}: where the teacher is told nothing, return ''")
    said = {"role": "user", "content": "x"}
    short = renderer.open([said])  # type: ignore[list-item]
    long = renderer.open([said, {"role": "user", "content": text}])  # type: ignore[list-item]
    shared = next(
        (i for i, (a, b) in enumerate(zip(short, long, strict=False)) if a != b), len(short)
    )
    behind = tuple(short[shared:])
    end = len(long) - len(behind)
    if end <= shared or tuple(long[end:]) != behind:
        raise ValueError(
            "this chat template cannot take one more user message at the end of a prompt; give the "
            "teacher its context by a system message of its own instead"
        )
    return tuple(long[shared:end]), behind
