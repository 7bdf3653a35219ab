"""What a teacher did in a round: how much it acted, as intended or not, and what labels it gave."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from turnwise.agents.executors import RollIn
from turnwise.envs.types import Episode, Turn


def said_in(episodes: Sequence[Episode], roll_in: RollIn) -> dict[str, float]:
    """Return shares over the turns of all trainable episodes.

    `teacher_share`: turns that the teacher took, and `teacher_tokens`, of the action tokens;
    `teacher_odds`: what the roll-in intends for the turns that were visited, which is beta by
    chance. `labels`: turns with a label to be learnt from; `label_errors`: of those asked for, the
    labels that are not, and `label_error_<code>` by their reason. `agreement`: labels of the
    student's turns that are what it did.
    """
    turns = [(i, turn) for e in episodes if e.trainable for i, turn in enumerate(e.turns)]
    if not turns:
        return {}
    taken = [turn for _, turn in turns if turn.executor != "student"]
    tokens = sum(len(turn.action_ids) for _, turn in turns)
    return {
        "teacher_share": len(taken) / len(turns),
        "teacher_tokens": sum(len(turn.action_ids) for turn in taken) / max(tokens, 1),
        "teacher_odds": sum(roll_in.odds(i) for i, _ in turns) / len(turns),
        "labels": sum(turn.has_label for _, turn in turns) / len(turns),
        **_errors([turn for _, turn in turns]),
        **_agreement([turn for _, turn in turns]),
    }


def _errors(turns: Sequence[Turn]) -> dict[str, float]:
    asked = [turn.label_error for turn in turns if turn.label_ids or turn.label_error]
    codes = Counter(error.partition(":")[0] for error in asked if error)
    shares = {f"label_error_{code}": n / len(asked) for code, n in sorted(codes.items())}
    return {"label_errors": codes.total() / max(len(asked), 1), **shares}


def _agreement(turns: Sequence[Turn]) -> dict[str, float]:
    both = [turn for turn in turns if turn.executor == "student" and turn.has_label]
    same = sum(turn.action_ids == turn.label_ids for turn in both)
    return {"agreement": same / len(both)} if both else {}
