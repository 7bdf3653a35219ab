"""Labels to rows: an episode's history once, and a branch off it for every label.

At a turn of the student's the history goes on with what the student did, and the target is what the
teacher would have done. So an episode with T labels is one shared prompt, its whole history, and T
short rows that see it up to their own turn (`Row.seen`): O(T) tokens and not O(T^2).

    L = sum_l w_l sum_j -log pi(label_j | history, label_<j) / (number of label tokens)

w_l is T/k where k of an episode's T labels are drawn, and the denominator counts all T, so that the
expectation over the draw is the loss of all labels.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from turnwise.envs.seeds import derive
from turnwise.envs.types import Episode, Segment, Turn
from turnwise.trainers.batch import LedgerMismatch, Row
from turnwise.trainers.surrogates import Totals


@dataclass(frozen=True, eq=False)
class Lessons:
    """Labelled episodes, and what is to be learnt from each."""

    episodes: Sequence[Episode]
    weights: Sequence[Mapping[int, float]]
    """By episode: turn -> weight of its label. Turns that are not there are not learnt from."""
    totals: Sequence[Totals]
    """By episode, before any were left out by `cap`."""

    def __len__(self) -> int:
        return len(self.episodes)

    @property
    def labels(self) -> int:
        """How many labels there are to be learnt from."""
        return sum(map(len, self.weights))

    def rows(self, which: Sequence[int] | None = None) -> list[Row]:
        """Return the rows of some episodes; `Row.traj` is the index, turns count through all.

        Raises:
            LedgerMismatch: the tokens of a history are not those that were recorded.
        """
        firsts = np.cumsum([0, *(len(episode.turns) for episode in self.episodes)])
        chosen = range(len(self)) if which is None else which
        return [
            row
            for i in chosen
            for row in _rows(self.episodes[i], self.weights[i], int(i), int(firsts[i]))
        ]

    def denominators(self, which: Sequence[int]) -> Totals:
        """Return the totals of some episodes."""
        total = Totals(tokens=0, turns=0, trajs=0)
        for i in which:
            total = total + self.totals[i]
        return total


def lessons(
    episodes: Sequence[Episode], *, distinct: bool = True, cap: int | None = None, seed: int = 0
) -> Lessons:
    """Choose the labels to be learnt from: those that are valid.

    Args:
        distinct: use equal labels of equal histories once; the first one stays.
        cap: at most so many per episode, drawn by `seed` and the episode's id.
    """
    seen: set[tuple[bytes, tuple[int, ...]]] = set()
    weights, totals = [], []
    for episode in episodes:
        turns = episode.turns
        good = [i for i, turn in enumerate(turns) if turn.has_label]
        if distinct:
            good = [i for i in _first_seen(episode, seen) if turns[i].has_label]
        tokens = sum(len(turns[i].label_ids) for i in good)
        totals.append(Totals(tokens=tokens, turns=len(good), trajs=int(bool(good))))
        weights.append(_capped(good, cap, random.Random(derive(seed, "cap", episode.id))))
    return Lessons(list(episodes), weights, totals)


def _capped(good: Sequence[int], cap: int | None, rng: random.Random) -> dict[int, float]:
    if cap is None or len(good) <= cap:
        return dict.fromkeys(good, 1.0)
    return dict.fromkeys(sorted(rng.sample(good, cap)), len(good) / cap)


def _first_seen(episode: Episode, seen: set[tuple[bytes, tuple[int, ...]]]) -> Iterator[int]:
    """Yield the turns whose history and label were not seen before, and remember them."""
    index = 0
    for segment in episode.segments:
        history = hashlib.blake2b(np.array(segment.inherited_ids, np.int64).tobytes())
        for turn in segment.turns:
            history.update(np.array(turn.context_ids, np.int64).tobytes())
            key = (history.digest(), turn.label_ids)
            if key not in seen:
                seen.add(key)
                yield index
            history.update(np.array(turn.action_ids, np.int64).tobytes())
            index += 1


def _rows(episode: Episode, weights: Mapping[int, float], traj: int, first: int) -> Iterator[Row]:
    at = 0
    for segment in episode.segments:
        mine = {i: weights[at + i] for i in range(len(segment.turns)) if at + i in weights}
        if mine:
            if segment.sealed and segment.sealed != segment.sha:
                raise LedgerMismatch("a labelled history differs from the ledger of its episode")
            shown = all(_executed(segment.turns[i]) for i in mine)
            yield from (_trunk if shown else _branches)(segment, mine, traj, first + at)
        at += len(segment.turns)


def _executed(turn: Turn) -> bool:
    """The label is what was done: it stands in the history itself."""
    return turn.executor != "student" and turn.label_ids == turn.action_ids


def _trunk(segment: Segment, weights: Mapping[int, float], traj: int, first: int) -> Iterator[Row]:
    """One row for all labels, as every one of them was acted out; attempts share the opening."""
    prompt = (*segment.inherited_ids, *segment.turns[0].context_ids)
    row = Row(prompt, [], [], [], [], [], traj, direct=[])
    assert row.direct is not None
    for i, turn in enumerate(segment.turns[: max(weights) + 1]):
        row.rest.extend(turn.context_ids if i else ())
        if i in weights:
            start, n = len(row.rest), len(turn.action_ids)
            row.trained.extend(range(start, start + n))
            row.old.extend([0.0] * n)
            row.turn.extend([first + i] * n)
            row.temperature.extend([1.0] * n)
            row.direct.extend([weights[i]] * n)
        row.rest.extend(turn.action_ids)
    yield row


def _branches(
    segment: Segment, weights: Mapping[int, float], traj: int, first: int
) -> Iterator[Row]:
    """A row per label, off the one history of the segment."""
    history, ends = list(segment.inherited_ids), []
    for turn in segment.turns[: max(weights) + 1]:
        history += turn.context_ids
        ends.append(len(history))
        history += turn.action_ids
    prompt = tuple(history[: ends[-1]])
    for i, weight in weights.items():
        ids = list(segment.turns[i].label_ids)
        n = len(ids)
        yield Row(
            prompt, ids, list(range(n)), [0.0] * n, [first + i] * n, [1.0] * n, traj,
            direct=[weight] * n, seen=ends[i],
        )  # fmt: skip
