"""The ledger writes tokens once, in order, and never again."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from turnwise.agents.ledger import ContextFull, Ledger, LedgerError
from turnwise.envs.types import Segment

tokens = st.lists(st.integers(0, 9), min_size=1, max_size=4)
steps = st.lists(st.tuples(st.sampled_from(["turn", "branch"]), tokens, tokens), max_size=6)


def play(ledger: Ledger, steps: list[tuple[str, list[int], list[int]]]) -> None:
    """Play turns; what a branch inherits starts with a token that no history starts with."""
    for kind, read, action in steps:
        if kind == "branch":
            ledger.branch([ledger.ids[0] + 10, *read])
        else:
            ledger.context(read)
        ledger.sampled(action, [-0.5] * len(action), "stop", 3)
        ledger.turn(observation="o", reward=1.0)


@given(tokens, steps)
@settings(deadline=None)
def test_the_segments_hold_every_token_and_only_actions_are_trained_on(prompt, steps):
    ledger = Ledger()
    ledger.start(prompt)
    play(ledger, [("turn", [1], [2]), *steps])
    turns = [turn for segment in ledger.segments for turn in segment.turns]
    assert [list(turn.action_ids) for turn in turns] == [[2], *[action for _, _, action in steps]]
    assert ledger.segments[-1].ids == ledger.ids
    assert ledger.segments[-1].sha == ledger.sha
    assert ledger.drift.total() == sum(kind == "branch" for kind, _, _ in steps)
    assert len(ledger.segments) == 1 + ledger.drift["rewrite"]


@given(tokens, steps)
@settings(deadline=None)
def test_what_was_written_stays_where_it_is(prompt, steps):
    ledger, before = Ledger(), []
    ledger.start(prompt)
    for step in steps:
        if step[0] == "turn":
            play(ledger, [step])
            assert ledger.ids[: len(before)] == before
        before = list(ledger.ids)


def one_turn() -> Segment:
    ledger = Ledger()
    ledger.start([1, 2])
    play(ledger, [("turn", [3], [4, 5])])
    return ledger.segments[0]


def test_the_sha_changes_when_any_id_or_any_mask_bit_changes():
    segment = one_turn()
    (turn,) = segment.turns
    assert (turn.context_ids, turn.action_ids) == ((1, 2, 3), (4, 5))
    shas = [segment.sha]
    for i in range(3):
        other = tuple(7 if j == i else token for j, token in enumerate(turn.context_ids))
        shas.append(replace(segment, turns=(replace(turn, context_ids=other),)).sha)
    for action in ((7, 5), (4, 7)):
        shas.append(replace(segment, turns=(replace(turn, action_ids=action),)).sha)
    moved = replace(turn, context_ids=(1, 2, 3, 4), action_ids=(5,), logprobs=(-0.5,))
    shas.append(replace(segment, turns=(moved,)).sha)
    assert len(set(shas)) == len(shas)


def test_the_ledgers_sha_tells_context_from_action():
    first, second = Ledger(), Ledger()
    for ledger, context, action in ((first, [2], [3]), (second, [2, 3], [])):
        ledger.start([1])
        ledger.context(context)
        ledger.sampled([*action, 4], [0.0] * (len(action) + 1), "stop", 0)
        ledger.turn()
    assert first.ids == second.ids and first.sha != second.sha


def test_context_that_no_action_followed_is_not_in_the_sha():
    ledger = Ledger()
    ledger.start([1])
    play(ledger, [("turn", [2], [3])])
    sha = ledger.sha
    ledger.context([4])
    assert ledger.sha == sha == ledger.segments[0].sha


def test_a_turn_carries_what_the_engine_returned_and_what_the_caller_adds():
    ledger = Ledger()
    ledger.start([1])
    ledger.sampled([2, 3], [-0.25, -1.0], "length", 7, temperature=0.7)
    turn = ledger.turn(observation="seen", action="done", reward=0.5)
    assert (turn.logprobs, turn.finish, turn.policy_version) == ((-0.25, -1.0), "length", 7)
    assert (turn.temperature, turn.observation, turn.reward) == (0.7, "seen", 0.5)


def test_a_rewrite_that_only_extends_the_history_is_no_drift():
    ledger = Ledger()
    ledger.start([1])
    play(ledger, [("turn", [2], [3])])
    assert not ledger.branch([1, 2, 3, 4])
    play(ledger, [("turn", [5], [6])])
    assert ledger.drift.total() == 0 and len(ledger.segments) == 1
    assert ledger.segments[0].turns[1].context_ids == (4, 5)


def test_a_branch_inherits_the_rewritten_history_without_training_on_it():
    ledger = Ledger()
    ledger.start([1])
    play(ledger, [("turn", [2], [3])])
    assert ledger.branch([1, 9], cause="compaction")
    play(ledger, [("turn", [4], [5])])
    first, second = ledger.segments
    assert (first.ids, second.inherited_ids, second.ids) == ([1, 2, 3], (1, 9), [1, 9, 4, 5])
    assert second.turns[0].context_ids == (4,) and ledger.drift == {"compaction": 1}


def test_a_branch_before_any_turn_leaves_no_empty_segment():
    ledger = Ledger()
    ledger.start([1])
    ledger.branch([9])
    play(ledger, [("turn", [2], [3])])
    assert [segment.ids for segment in ledger.segments] == [[9, 2, 3]]


@pytest.mark.parametrize("write", ["start", "context", "sampled", "branch"])
def test_tokens_over_the_limit_are_refused_and_nothing_is_written(write: str):
    ledger = Ledger(limit=3)
    if write != "start":
        ledger.start([1, 2])
    before = list(ledger.ids)
    arguments = {"sampled": ([5, 5], [0.0, 0.0], "stop", 0), "context": ([5, 5],)}
    with pytest.raises(ContextFull, match="4 tokens do not fit into 3: end the episode"):
        getattr(ledger, write)(*arguments.get(write, ([9, 9, 9, 9],)))
    assert ledger.ids == before and ledger.room == 3 - len(before)
    assert ledger.drift.total() == 0 and ledger.segments == ()


def test_a_full_context_is_not_an_overfull_one():
    ledger = Ledger(limit=4)
    ledger.start([1, 2])
    play(ledger, [("turn", [3], [4])])
    assert ledger.room == 0


def test_writing_before_the_start_is_refused():
    for write in (lambda x: x.context([1]), lambda x: x.branch([1]), sample):
        with pytest.raises(LedgerError, match="call `start`"):
            write(Ledger())


def sample(ledger: Ledger) -> None:
    ledger.sampled([1], [0.0], "stop", 0)


def test_starting_twice_and_starting_with_nothing_are_refused():
    ledger = Ledger()
    with pytest.raises(LedgerError, match="prompt is empty"):
        ledger.start([])
    ledger.start([1])
    with pytest.raises(LedgerError, match="has started"):
        ledger.start([1])


def test_an_action_becomes_one_turn_before_anything_else_is_written():
    ledger = Ledger()
    ledger.start([1])
    with pytest.raises(LedgerError, match="nothing was sampled"):
        ledger.turn()
    sample(ledger)
    for write in (lambda x: x.context([1]), lambda x: x.branch([1]), sample):
        with pytest.raises(LedgerError, match="call `turn` first"):
            write(ledger)
    ledger.turn()
    with pytest.raises(LedgerError, match="nothing was sampled"):
        ledger.turn()


@pytest.mark.parametrize(("ids", "logprobs"), [([], []), ([1, 2], [0.0]), ([1], [])])
def test_an_action_without_tokens_or_with_missing_logprobs_is_refused(ids, logprobs):
    ledger = Ledger()
    ledger.start([1])
    with pytest.raises(LedgerError, match="one logprob for each"):
        ledger.sampled(ids, logprobs, "stop", 0)
    assert ledger.ids == [1]


def test_a_logprob_that_is_not_finite_is_refused_by_the_turn():
    ledger = Ledger()
    ledger.start([1])
    ledger.sampled([2], [float("nan")], "stop", 0)
    with pytest.raises(ValueError, match="non-finite"):
        ledger.turn()
