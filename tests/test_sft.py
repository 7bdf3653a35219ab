"""Imitation of an environment's expert: what is shown, and what is learnt from it."""

from __future__ import annotations

import pytest
import torch
from fakes import Guess
from toy_runs import fresh
from toys import Walks

from turnwise.agents.renderer import Renderer
from turnwise.trainers.batch import rows_of, taught
from turnwise.trainers.learner import Learner
from turnwise.trainers.sft import demonstrations, imitate

torch.set_num_threads(1)


def test_demonstrations_are_solved_in_order_and_teach_only_the_expert():
    _, tokenizer = fresh(Guess)
    tasks = Guess().tasks("train")[:20]
    demos = demonstrations(Guess, tasks, Renderer(tokenizer), seed=0, noise=0.3)
    assert all(e.success for e in demos)
    places = [tasks.index(e.task) for e in demos]
    assert places == sorted(places) and len(places) > 5
    turns = [t for e in demos for t in e.turns]
    assert {t.executor for t in turns} == {"expert", "student"}
    rows = rows_of(demos, taught)
    expected = sum(len(t.action_ids) for t in turns if t.executor == "expert")
    assert sum(len(row.trained) for row in rows) == expected


def test_imitation_learns_and_stops_when_it_is_enough():
    model, tokenizer = fresh()
    heard, tasks = [], Walks().tasks("train")[:20]
    demos = demonstrations(Walks, tasks, Renderer(tokenizer), seed=0, watch=heard.append)
    assert heard == list(range(1, 21))
    learner = Learner(model, learning_rate=1e-2)
    steps = imitate(learner, demos, steps=50, batch=4, seed=0, enough=lambda n: n == 15)
    nll = [metrics["nll"] for metrics in steps]
    assert len(nll) == 15 and nll[-1] < 0.2 * nll[0]


def test_nothing_can_be_imitated_without_a_solved_task():
    class Hopeless(Walks):
        def expert(self):
            return "zzz"

    _, tokenizer = fresh()
    demos = demonstrations(Hopeless, Walks().tasks("train")[:3], Renderer(tokenizer), seed=0)
    with pytest.raises(ValueError, match="no episode is given"):
        next(imitate(Learner(fresh()[0], learning_rate=1e-3), demos, steps=1, batch=1, seed=0))
