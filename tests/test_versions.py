"""The laws of policy versions: every token knows the weights that sampled it, into the loss."""

from __future__ import annotations

import json

import pytest
import torch
from test_rollout import jobs_of, llm
from toys import Walks

from turnwise.agents.episode_json import episode_from_json, episode_to_json
from turnwise.agents.rollout import Settings, play
from turnwise.envs.types import Turn
from turnwise.trainers.batch import rows_of
from turnwise.trainers.off_policy import staleness

torch.set_num_threads(1)


def played_while_weights_change():
    """Episodes, and the version that drew each token of each session, in order."""
    policy = llm()
    engine, drawn = policy.engine, {}
    submit, draw = engine.submit, engine._draw
    names: dict[int, str] = {}

    def note_submit(request):
        submit(request)
        names[id(engine._sessions[request.session])] = request.session

    def note_draw(sessions, logits):
        for session in sessions:
            drawn.setdefault(names[id(session)], []).append(engine.version)
        found = draw(sessions, logits)
        if len(drawn) % 2:
            engine.update_weights(None, engine.version + 1)
        return found

    engine.submit, engine._draw = note_submit, note_draw
    return list(play(jobs_of(), Walks, policy, Settings(concurrency=3))), drawn


def test_every_token_keeps_the_version_that_drew_it_from_the_engine_to_the_row():
    episodes, drawn = played_while_weights_change()
    assert any(turn.versions for e in episodes for turn in e.turns)
    for episode in episodes:
        assert [v for turn in episode.turns for v in turn.token_versions] == drawn[episode.id]
    rows = rows_of(episodes)
    for row, episode in zip(rows, episodes, strict=True):
        assert row.version == drawn[episode.id] and len(row.version) == len(row.trained)
    newest = max(map(max, drawn.values()))
    oldest = min(map(min, drawn.values()))
    assert staleness(rows, newest)["max_staleness"] == newest - oldest > 0


def test_versions_come_back_from_json_and_are_left_out_where_there_is_one():
    episodes, _ = played_while_weights_change()
    for episode in episodes:
        data = json.loads(json.dumps(episode_to_json(episode)))
        assert episode_from_json(data).segments == episode.segments
        for turn, written in zip(episode.turns, data["turns"], strict=True):
            assert ("versions" in written) == (len(set(turn.token_versions)) > 1)


@pytest.mark.parametrize("versions", [((0, 0, 1),), ((0, 0, 1), (1, 2, 3)), ((0, 1, 3),)])
def test_versions_that_leave_a_gap_are_refused(versions):
    with pytest.raises(ValueError, match="cover the 3 action tokens"):
        Turn(action_ids=(1, 2, 3), logprobs=(0.0,) * 3, versions=versions)
