"""Laws of a language model as the teacher: it labels before the student acts, and reads once."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from imitated import essence, jobs_of, models, neural, played
from toys import Walks

from turnwise.agents.engines.base import EngineError, GenRequest
from turnwise.agents.engines.embedded import EmbeddedEngine
from turnwise.agents.executors import ByChance
from turnwise.agents.labels import FAILED
from turnwise.envs.seeds import derive
from turnwise.trainers.batch import rows_of

torch.set_num_threads(1)


@pytest.mark.parametrize("scripted_student", [False, True])
def test_a_neural_teacher_labels_what_it_would_have_sampled_before_the_student_acts(
    scripted_student,
):
    policy = neural(ByChance(0.4), scripted_student=scripted_student)
    episodes = played(jobs_of(tasks=8), partial(Walks, length=4), policy, max_tokens=96)
    model = policy.teacher.policy.engine.model
    relabelled, cut = 0, 0
    for episode in episodes:
        ids = []
        for i, turn in enumerate(episode.turns):
            ids += turn.context_ids
            if turn.executor == "student":
                naive = EmbeddedEngine(model, slots=1, max_len=96)
                seed = derive(episode.policy_seed, "label", i)
                room = policy.teacher.policy.at_most(96 - len(ids))
                (out,) = naive.generate([GenRequest("x", ids, room, seed)])
                assert turn.label_ids == out.token_ids
                assert turn.label_error == ("cut" if out.finish == "length" else "")
                relabelled += 1
            else:
                assert turn.executor == "teacher" and turn.label_ids == turn.action_ids
                assert turn.label_error == ("cut" if turn.finish == "length" else "")
            cut += turn.label_error == "cut"
            ids += turn.action_ids
    assert relabelled > 8 and cut > 0


@pytest.mark.parametrize("teacher_tokens", [3, 9])  # as slow as the student, or slower
def test_the_teacher_reads_every_token_of_an_episode_at_most_once(teacher_tokens):
    policy = neural(ByChance(0.4), teacher_tokens=teacher_tokens)
    episodes = played(jobs_of(tasks=8), partial(Walks, length=4), policy, max_tokens=96)
    stats = policy.teacher.policy.engine.stats
    assert stats.evictions == 0
    assert stats.prefilled_tokens <= sum(len(s.ids) for e in episodes for s in e.segments)
    assert policy.teacher.policy.engine._sessions == {}  # and every cache is freed


def test_labels_of_a_model_are_the_same_under_any_concurrency():
    found = [
        [
            essence(e)
            for e in played(
                jobs_of(tasks=8),
                partial(Walks, length=4),
                neural(ByChance(0.5)),
                max_tokens=96,
                concurrency=n,
            )
        ]
        for n in (1, 16)
    ]
    assert found[0] == found[1]


def test_turns_of_a_neural_teacher_are_imitated_and_never_trained_by_policy_gradients():
    episodes = played(jobs_of(tasks=4), partial(Walks, length=4), neural(ByChance(0.5)))
    own = sum(len(t.action_ids) for e in episodes for t in e.turns if t.executor == "student")
    assert sum(len(row.trained) for row in rows_of(episodes)) == own > 0


class Breaking:
    """An engine that breaks down at one poll."""

    def __init__(self, engine, at):
        self.engine, self.left = engine, at

    def __getattr__(self, name):
        return getattr(self.engine, name)

    def poll(self):
        self.left -= 1
        if self.left == 0:
            for session in list(self.engine._sessions):
                self.engine.end_session(session)
            raise EngineError("the engine is gone")
        return self.engine.poll()


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_an_engine_that_breaks_loses_labels_and_retries_episodes_that_wait_for_an_action(beta):
    _, teacher, _ = models()
    engine = Breaking(EmbeddedEngine(teacher, slots=16, max_len=96), 4)
    policy = neural(ByChance(beta), engine=engine)
    episodes = played(jobs_of(tasks=6), partial(Walks, length=4), policy, max_tokens=96)
    assert all(e.outcome == "ok" for e in episodes)
    lost = [t.label_error for e in episodes for t in e.turns if t.label_error.startswith(FAILED)]
    if beta == 0:
        assert set(lost) == {f"{FAILED}: EngineError: the engine is gone"}
        assert {e.attempts for e in episodes} == {1}
    else:
        assert max(e.attempts for e in episodes) == 2
    good = [t for e in episodes for t in e.turns if t.label_ids]
    assert len(good) + len(lost) == sum(len(e.turns) for e in episodes)
