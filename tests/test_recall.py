"""Laws of agents that are shown their last turns alone: prompts, record and training."""

from functools import cache, partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ragged import naive
from toy_runs import history, run, same_weights
from toys import Walks

from turnwise.agents.engines.embedded import EmbeddedEngine
from turnwise.agents.policy import LLMPolicy
from turnwise.agents.renderer import Renderer, noted_recall, recent, remember
from turnwise.agents.replay import tokens, view
from turnwise.agents.rollout import jobs_for, play
from turnwise.agents.viewer import Exhibit, write_report
from turnwise.cli.policies import language_model
from turnwise.trainers.batch import micro_batches, pack, rows_of, totals_of
from turnwise.trainers.config import TrainConfig
from turnwise.trainers.model import load_model, save_model, tiny_from_env
from turnwise.trainers.run_folder import RunFolderError
from turnwise.trainers.scorer import Scorer
from turnwise.trainers.surrogates import token_mean

TINY = {"hidden": 32, "layers": 1, "heads": 2, "kv_heads": 1, "head_dim": 16, "ffn": 64}
WALK = partial(Walks, length=5)


@cache
def fresh():
    return tiny_from_env(WALK, tasks=10, max_len=512, **TINY)


def played(recall):
    """Twelve episodes of five turns, sampled from a random model that recalls so many turns."""
    model, tokenizer = fresh()
    renderer = Renderer(tokenizer, recall=recall)
    policy = LLMPolicy(EmbeddedEngine(model, max_len=512), renderer, max_new_tokens=4)
    jobs = jobs_for(WALK().tasks("train")[:4], 3, run_seed=0, split="train")
    return renderer, sorted(play(jobs, WALK, policy), key=lambda episode: episode.id)


def conversation(turns, *, system):
    talk = [{"role": "system", "content": "s"}] if system else []
    for k in range(turns):
        talk += [{"role": "user", "content": f"o{k}"}, {"role": "assistant", "content": f"a{k}"}]
    return [*talk, {"role": "tool", "content": "x"}, {"role": "tool", "content": "y"}]


def prompts(episode):
    """What each action of the episode was sampled after."""
    for segment in episode.segments:
        ids = list(segment.inherited_ids)
        for turn in segment.turns:
            yield (ids := [*ids, *turn.context_ids])
            ids = [*ids, *turn.action_ids]


@given(st.integers(0, 6), st.integers(0, 8), st.booleans())
def test_what_is_recalled_is_the_end_of_the_talk(turns, recall, system):
    whole = conversation(turns, system=system)
    found = recent(whole, recall)
    kept = min(turns, recall)
    assert found[: int(system)] == whole[: int(system)]
    assert found[int(system) :] == whole[len(whole) - 2 * kept - 2 :]


def test_a_recalled_turn_begins_with_what_was_read():
    spoken = [*conversation(2, system=True), {"role": "assistant", "content": "a2"}]
    assert [m["content"] for m in recent(spoken, 0)] == ["s", "x", "y", "a2"]


@pytest.mark.parametrize("recall", [0, 1, 2])
def test_each_prompt_holds_the_last_turns_and_nothing_else(recall):
    renderer, episodes = played(recall)
    for episode in episodes:
        talk = []
        for prompt, turn in zip(prompts(episode), episode.turns, strict=True):
            talk.append({"role": "user", "content": turn.observation})
            assert prompt == renderer.open(recent(talk, recall))
            talk.append({"role": "assistant", "content": turn.action})
        assert episode.metrics["drift"] == 0, "forgetting is meant, not drift"


@pytest.mark.parametrize("recall", [0, 2, 99, None])
def test_the_recorded_tokens_prove_themselves_and_the_trainer_agrees_with_the_engine(recall):
    renderer, episodes = played(recall)
    assert all(tokens(episode, renderer, WALK).proven for episode in episodes)
    rows = rows_of(episodes)
    packed = pack(rows, aggregate=token_mean, totals=totals_of(rows))
    found = Scorer(fresh()[0], 512).logprobs(packed)
    torch.testing.assert_close(found, packed.tokens.old_M, rtol=0, atol=1e-4)
    torch.testing.assert_close(found, naive(fresh()[0], rows), rtol=0, atol=1e-4)


def test_another_recall_does_not_prove_the_tokens():
    _, episodes = played(0)
    renderer = Renderer(fresh()[1], recall=1)
    assert not any(tokens(episode, renderer, WALK).proven for episode in episodes)


def test_a_saved_model_knows_what_it_was_shown(tmp_path):
    model, tokenizer = tiny_from_env(WALK, tasks=10, **TINY)
    assert Renderer(tokenizer).recall is None
    remember(tokenizer, None)
    assert noted_recall(tokenizer) is None
    remember(tokenizer, 2)
    save_model(model, tokenizer, tmp_path)
    assert Renderer(load_model(str(tmp_path))[1]).recall == 2
    assert Renderer(load_model(str(tmp_path))[1], recall=0).recall == 0


def test_less_than_nothing_cannot_be_recalled():
    with pytest.raises(ValueError, match="0 or more, got -1"):
        Renderer(fresh()[1], recall=-1)


def test_a_resumed_run_recalls_as_before_and_ends_with_the_same_weights(tmp_path):
    usual = {"env": WALK, "recall": 1, "checkpoint_every": 1}
    run(tmp_path / "whole", steps=3, **usual)
    run(tmp_path / "parts", steps=2, **usual)
    run(tmp_path / "parts", steps=3, resume=True, **usual)
    assert same_weights(tmp_path / "whole", tmp_path / "parts")
    assert history(tmp_path / "whole") == history(tmp_path / "parts")
    assert noted_recall(load_model(str(tmp_path / "parts" / "model"))[1]) == 1
    with pytest.raises(RunFolderError, match="recall=1, and recall=0 was asked for"):
        run(tmp_path / "parts", steps=4, resume=True, **{**usual, "recall": 0})


def test_an_evaluation_plays_what_the_folder_notes_and_says_so(tmp_path):
    model, tokenizer = tiny_from_env(WALK, tasks=10, **TINY)
    sampling = {"temperature": 1.0, "max_new_tokens": 4, "max_tokens": 256}
    many = {"slots": 2, "threads": 1}
    save_model(model, tokenizer, tmp_path)
    assert "recall" not in language_model(str(tmp_path), **sampling, **many).identity
    remember(tokenizer, 2)
    save_model(model, tokenizer, tmp_path)
    player = language_model(str(tmp_path), **sampling, **many)
    assert player.policy.renderer.recall == player.identity["recall"] == 2


def test_every_prompt_counts_towards_a_micro_batch():
    rows = rows_of(played(0)[1])
    largest = max(sum(len(r.prompt) + len(r) for r in rows if r.traj == t) for t in range(12))
    for some in micro_batches(rows, largest):
        packed = pack(some, aggregate=token_mean, totals=totals_of(rows))
        assert len(packed.ids_N) <= largest


def test_what_is_shown_of_an_episode_tells_forgetting_from_a_rewrite(tmp_path):
    episode = played(0)[1][0]
    assert len(episode.segments) == len(episode.turns) == 5
    assert "rewritten" not in (text := view(episode))
    assert "shown its last turns alone: 5 prompts" in text
    page = write_report(tmp_path / "x", title="", episodes=[Exhibit(episode)]).read_text()
    for prompt in prompts(episode):
        assert f'"context":{len(prompt)},' in page


def test_less_than_nothing_is_refused_with_the_config():
    with pytest.raises(ValueError, match="recall is a number of past turns, 0 or more, got -1"):
        TrainConfig(recall=-1)
