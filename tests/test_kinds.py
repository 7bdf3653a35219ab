"""Kinds of turns: told by an environment, kept in the record, and what a run's numbers split by."""

from dataclasses import replace

import numpy as np
import pytest
from fakes import Guess

from turnwise.agents.episode_json import episode_from_json, episode_to_json
from turnwise.agents.policy import ScriptedPolicy, random_tool
from turnwise.agents.rollout import jobs_for, play
from turnwise.envs.builtin.corridor import Corridor
from turnwise.trainers.distillation import Distillation, teach
from turnwise.trainers.mixes import Progress
from turnwise.trainers.signals import reverse_kl
from turnwise.trainers.tokens import TokenTable
from turnwise.trainers.watch import rollout_metrics
from turnwise.trainers.weights import sod


def episodes(make_env, n=4):
    jobs = jobs_for(make_env().tasks("train")[:n], run_seed=0, split="train")
    return list(play(jobs, make_env, ScriptedPolicy(random_tool)))


def test_a_record_gives_kinds_back_and_is_as_it_was_where_there_are_none():
    for episode in episodes(Corridor):
        data = episode_to_json(episode)
        assert episode_from_json(data, type(episode.task)) == episode
        assert {turn["kind"] for turn in data["turns"]} <= {"on", "off", "failed"}
    for episode in episodes(Guess):
        assert not any("kind" in turn for turn in episode_to_json(episode)["turns"])


def test_shares_of_kinds_add_up_to_one_and_are_left_out_where_nobody_tells():
    def own(made):
        acted = [replace(e, segments=tuple(map(with_ids, e.segments))) for e in made]
        return {k: v for k, v in rollout_metrics(acted).items() if k.startswith("turns_")}

    def with_ids(segment):
        turns = (replace(turn, action_ids=(7,), logprobs=(0.0,)) for turn in segment.turns)
        return replace(segment, turns=tuple(turns))

    assert sum(own(episodes(Corridor)).values()) == pytest.approx(1)
    assert own(episodes(Guess)) == {}


def table(kinds):
    rng = np.random.default_rng(1)
    turns = len(kinds)
    return TokenTable(
        old_M=rng.normal(size=2 * turns),
        teacher_M=np.where(rng.random(2 * turns) < 0.1, np.nan, rng.normal(size=2 * turns)),
        step_M=np.repeat(np.arange(turns) % 4, 2),
        traj_M=np.repeat(np.arange(turns) // 4, 2),
        group_M=np.zeros(2 * turns, np.int64),
        success_M=np.zeros(2 * turns, bool),
        reward_M=np.zeros(2 * turns),
        kind_M=np.repeat(np.array(kinds), 2),
    )


def test_kl_and_weights_of_the_kinds_add_up_to_those_of_all_turns():
    kinds = ["on", "off", "failed", "on"] * 5
    tokens = table(kinds)
    how = Distillation(signal=reverse_kl, weight=sod())
    found = teach(tokens, np.zeros(len(tokens)), how, Progress(0, 1)).metrics
    turns = {kind: kinds.count(kind) for kind in set(kinds)}
    lead = np.nansum(tokens.old_M - tokens.teacher_M)
    assert sum(found[f"teacher_kl_{kind}"] * n for kind, n in turns.items()) == pytest.approx(lead)
    weights = sum(found[f"teacher_weight_{kind}"] * n for kind, n in turns.items()) / len(kinds)
    assert weights == pytest.approx(found["teacher_weight"])


def test_turns_of_which_nobody_tells_the_kind_are_split_by_nothing():
    for tokens in (table([""] * 8), replace(table([""] * 8), kind_M=None)):
        how = Distillation(signal=reverse_kl)
        found = teach(tokens, np.zeros(len(tokens)), how, Progress(0, 1)).metrics
        assert not [name for name in found if name.startswith("teacher_kl_")]
