"""What tests of imitation share: a student that wanders, teachers, and episodes with labels."""

from __future__ import annotations

from collections import Counter

from toy_runs import TINY, fresh
from toys import Walks

from turnwise.agents.engines.embedded import EmbeddedEngine
from turnwise.agents.labels import Labelling, play_labelled
from turnwise.agents.policy import LLMPolicy, ScriptedPolicy, expert
from turnwise.agents.renderer import Renderer
from turnwise.agents.rollout import Settings, jobs_for
from turnwise.agents.teachers import LLMTeacher, TextTeacher
from turnwise.envs.types import Episode
from turnwise.trainers.model import tiny_from_env


def wander(seat) -> str:
    """A student without a model."""
    return "xyz"[seat.turn % 3]


def renderer_of(env=Walks) -> Renderer:
    return Renderer(fresh(env)[1])


def jobs_of(env=Walks, tasks=6, replicas=1, seed=0):
    return jobs_for(env().tasks("train")[:tasks], replicas, run_seed=seed, split="train")


def played(jobs, make_env, policy, **settings) -> list[Episode]:
    order = {job.id: i for i, job in enumerate(jobs)}
    found = list(play_labelled(jobs, make_env, policy, Settings(**settings)))
    assert Counter(e.id for e in found) == Counter(list(order))
    return sorted(found, key=lambda e: order[e.id])


def scripted(roll_in, act=expert, student=wander, renderer=None, **more) -> Labelling:
    renderer = renderer or renderer_of()
    doer = ScriptedPolicy(student, renderer=renderer, executor="student")
    return Labelling(doer, TextTeacher(act, renderer=renderer, **more), roll_in)


def essence(episode) -> list[tuple]:
    """What must not depend on timing."""
    return [
        (t.context_ids, t.action_ids, t.observation, t.executor, t.label, t.label_ids,
         t.label_error, t.state_before, t.reward)
        for t in episode.turns
    ]  # fmt: skip


def models(env=Walks, max_len=128):
    student, tokenizer = tiny_from_env(env, tasks=10, max_len=max_len, **TINY)
    teacher, _ = tiny_from_env(env, tasks=10, max_len=max_len, seed=7, **TINY)
    return student, teacher, Renderer(tokenizer)


def neural(roll_in, engine=None, teacher_tokens=3, scripted_student=False) -> Labelling:
    student, teacher, renderer = models()
    student = EmbeddedEngine(student, slots=16, max_len=96)
    engine = engine or EmbeddedEngine(teacher, slots=16, max_len=96)
    doer = LLMPolicy(student, renderer, max_new_tokens=3)
    if scripted_student:  # which writes what it does at once, before the label is drawn
        doer = ScriptedPolicy(wander, renderer=renderer, executor="student")
    other = LLMPolicy(engine, renderer, max_new_tokens=teacher_tokens, executor="teacher")
    return Labelling(doer, LLMTeacher(other), roll_in)
