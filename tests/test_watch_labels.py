"""Laws of what is said of a teacher in a round: shares of the turns that count, no others."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ragged import episode

from turnwise.agents.executors import ByChance, StudentFirst
from turnwise.envs.types import Outcome, Segment, Turn
from turnwise.trainers.watch_labels import said_in

LABELS = [{}, {"label_ids": (1, 2)}, {"label_error": "cut"}, {"label_error": "failed: late"}]
"""Not asked, a label, and two kinds of errors."""
TURNS = st.builds(
    lambda who, label, n: Turn(
        action_ids=(1, 2, 3)[:n],
        logprobs=(-1.0,) * n,
        executor=who,
        **label,
    ),
    st.sampled_from(["student", "teacher", "expert"]),
    st.sampled_from(LABELS),
    st.integers(1, 3),
)
LENGTHS = st.lists(st.lists(TURNS, min_size=1, max_size=5), min_size=1, max_size=5)


def episode_of(turns):
    return episode(Segment(turns=tuple(turns)))


@given(LENGTHS, st.integers(1, 6))
def test_odds_are_the_mean_of_what_was_meant_for_the_turns_that_were_visited(lengths, most):
    rule = StudentFirst(most)
    meant = [rule.odds(i) for turns in lengths for i in range(len(turns))]
    said = said_in(list(map(episode_of, lengths)), rule)
    assert said["teacher_odds"] == pytest.approx(sum(meant) / len(meant))


@given(LENGTHS)
def test_errors_are_shares_of_what_was_asked_and_sum_to_all_of_them(lengths):
    said = said_in(list(map(episode_of, lengths)), ByChance(0.5))
    turns = [turn for each in lengths for turn in each]
    asked = [turn for turn in turns if turn.label_ids or turn.label_error]
    wrong = [turn.label_error.partition(":")[0] for turn in asked if turn.label_error]
    for kind in ("cut", "failed"):
        share = said.get(f"label_error_{kind}", 0.0)
        assert share * len(asked) == pytest.approx(wrong.count(kind))
    assert said["label_errors"] * max(len(asked), 1) == pytest.approx(len(wrong))
    assert said["labels"] * len(turns) == pytest.approx(len(asked) - len(wrong))


@given(LENGTHS, LENGTHS)
def test_an_episode_that_is_lost_counts_nowhere(kept, lost):
    whole = list(map(episode_of, kept))
    gone = [replace(episode_of(turns), outcome=Outcome.ENV_ERROR) for turns in lost]
    rule = StudentFirst(3)
    assert said_in([*gone, *whole], rule) == said_in(whole, rule)
    assert said_in(gone, rule) == {}
