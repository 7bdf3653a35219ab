"""What the teacher reads and the student does not: text spliced into the teacher's prompt.

The student's tokens behind the prompt are the same ids in the same order for both, so the map from
teacher to student positions is a shift; `ModelTeacher` asserts that the tokens are the same. A
privileged context that silently never fires is the bug to fear: the log counts the rows that have
one (`teacher_context`).
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
        ValueError: the chat template cannot put a user message there.
    """
    made: dict[str, tuple[tuple[int, ...], int]] = {}
    found = []
    for row in rows:
        text = context(episodes[row.traj])
        if text and text not in made:
            made[text] = message_ids(renderer, text)
        ids, behind = made[text] if text else ((), 0)
        found.append(replace(row, hint=ids, hint_at=len(row.prompt) - behind))
    return found


def message_ids(renderer: Renderer, text: str) -> tuple[tuple[int, ...], int]:
    """Return (ids of one more user message, how many ids of a prompt come after it).

    Raises:
        ValueError: with one more message, the template changes more than it adds.
    """
    said = {"role": "user", "content": "x"}
    short = renderer.open([said])  # type: ignore[list-item]
    long = renderer.open([said, {"role": "user", "content": text}])  # type: ignore[list-item]
    shared = next(
        (i for i, (a, b) in enumerate(zip(short, long, strict=False)) if a != b), len(short)
    )
    behind = len(short) - shared
    added = long[shared : len(long) - behind]
    if not added or long[len(long) - behind :] != short[shared:]:
        raise ValueError(
            "this chat template cannot take one more user message at the end of a prompt; give the "
            "teacher its context by a system message of its own instead"
        )
    return tuple(added), behind
