"""Laws of rows: what of an episode is trained on, and that nothing that was altered is."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from miniatures import VOCAB, naive_logprobs, qwen3
from ragged import episode, episodes, packed_of, segment, words

from turnwise.agents.ledger import Ledger
from turnwise.envs.types import Segment, Turn
from turnwise.trainers.batch import LedgerMismatch, rows_of, student, taught, totals_of
from turnwise.trainers.scorer import Scorer

torch.set_num_threads(1)


# What is trained on


def test_only_what_the_student_sampled_is_trained_on():
    rows = rows_of(episodes())
    packed = packed_of(rows)
    turns = [t for e in episodes() for t in e.turns if t.executor == "student"]
    assert packed.target_M.tolist() == [i for t in turns for i in t.action_ids]
    old = [x for t in turns for x in t.logprobs]
    torch.testing.assert_close(packed.tokens.old_M, torch.tensor(old))
    # The token that is predicted stands one behind the one that is looked from.
    for row in rows:
        assert all(row.rest[i] == t for i, t in zip(row.trained, targets(row), strict=True))


def targets(row):
    by_turn = [t for e in episodes() for t in e.turns]
    return [i for turn in dict.fromkeys(row.turn) for i in by_turn[turn].action_ids]


def test_student_and_teacher_share_the_turns_between_them():
    every = [i for e in episodes() for t in e.turns for i in t.action_ids]
    counts = [sum(len(r.trained) for r in rows_of(episodes(), who)) for who in (student, taught)]
    assert all(counts) and sum(counts) == len(every)


def test_turns_are_numbered_through_all_segments_and_carry_their_advantage():
    rows = rows_of(episodes())
    numbers = [t for row in rows for t in dict.fromkeys(row.turn)]
    students = [i for i, t in enumerate(t for e in episodes() for t in e.turns) if student(t)]
    assert numbers == students
    advantages = np.arange(200.0)
    packed = packed_of(rows, advantages=advantages)
    expected = [float(t) for row in rows for t in row.turn]
    assert packed.tokens.advantages_M.tolist() == expected


def test_a_segment_after_a_rewrite_is_a_row_that_starts_from_what_it_inherited():
    branched = next(e for e in episodes() if len(e.segments) == 2)
    first, second = rows_of([branched])
    inherited = branched.segments[1]
    assert second.prompt == (*inherited.inherited_ids, *inherited.turns[0].context_ids)
    assert first.traj == second.traj == 0
    assert totals_of([first, second]).trajs == 1
    model = qwen3()
    logprobs = Scorer(model, 256).logprobs(packed_of([first, second]))
    ids = [*second.prompt, *second.rest]
    expected = naive_logprobs(model, ids)[len(second.prompt) - 1 + second.trained[0]]
    assert logprobs[len(first.trained)].item() == pytest.approx(float(expected), abs=1e-5)


def test_totals_count_what_is_trained_on():
    totals = totals_of(rows_of(episodes()))
    turns = [t for e in episodes() for t in e.turns if student(t)]
    assert (totals.tokens, totals.turns) == (sum(len(t.action_ids) for t in turns), len(turns))
    assert totals.trajs == len(episodes())


def test_a_row_that_is_not_what_the_ledger_hashed_is_refused():
    rng = random.Random(0)
    true = segment(rng, words(rng, 5, 9), turns=2)
    hashed = type("Hashed", (Segment,), {"sha": true.sha})
    rows_of([episode(hashed(turns=true.turns))])
    first, second = true.turns
    other_token = (first.action_ids[0] % (VOCAB - 1) + 1, *first.action_ids[1:])
    altered = [
        (replace(first, action_ids=other_token), second),
        (replace(first, context_ids=first.context_ids[1:]), second),
        (second, first),
        # The same ids, another loss mask.
        (
            replace(
                first,
                context_ids=(*first.context_ids, first.action_ids[0]),
                action_ids=first.action_ids[1:] or (1,),
                logprobs=(first.logprobs[1:] or (0.0,)),
            ),
            second,
        ),
    ]
    for turns in altered:
        with pytest.raises(LedgerMismatch, match="differs from the ledger"):
            rows_of([episode(hashed(turns=turns))])


def test_tokens_that_were_altered_after_they_were_sampled_are_not_trained_on():
    ledger = Ledger()
    ledger.start([1, 2, 3])
    ledger.sampled([4, 5], [-0.5, -0.25], "stop", 0)
    ledger.turn()
    (sealed,) = ledger.segments
    assert rows_of([episode(sealed)])
    forged = replace(sealed, turns=(replace(sealed.turns[0], action_ids=(4, 6)),))
    with pytest.raises(LedgerMismatch, match="differs from the ledger"):
        rows_of([episode(forged)])


def test_a_segment_without_a_prompt_is_refused():
    bare = Segment(turns=(Turn(action_ids=(1, 2), logprobs=(-1.0, -1.0)),))
    with pytest.raises(LedgerMismatch, match="without a prompt"):
        rows_of([episode(bare)])
