"""Laws of the token check: what was recorded follows from the messages, or the turn is named."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import pytest
from fakes import Guess

from turnwise.agents.drift import Drift, _classify, tokens
from turnwise.agents.policy import ScriptedPolicy, expert
from turnwise.agents.renderer import Renderer
from turnwise.agents.rollout import Settings, jobs_for, play
from turnwise.envs.base import Response, TextEnv
from turnwise.envs.types import Episode, Segment, Task, Turn
from turnwise.trainers.tiny import tiny_tokenizer

TEXTS = ["guess my number 0 to 19 look submit higher lower", "say it again please"] * 40
STRIPPING = """
{%- set ns = namespace(last=-1) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}
{%- endfor %}
{%- for m in messages %}{{ '<|' + m.role + '|>' }}
{%- if m.role == 'assistant' and loop.index0 < ns.last -%}
{{ m.content.split('</think>')[-1].lstrip('\n') }}
{%- else %}{{ m.content }}{% endif %}{{ '<|end|>' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"""


@cache
def renderer(template: str = "", texts: int = 80) -> Renderer:
    tokenizer = tiny_tokenizer(TEXTS[:texts], 320)
    if template:
        tokenizer.chat_template = template
    return Renderer(tokenizer)


@dataclass(frozen=True, kw_only=True)
class Round(Task):
    index: int


class Chatter(TextEnv):
    """Answers three times as a user."""

    Task = Round
    fast = True

    def tasks(self, split):
        return [Round(index=i) for i in range(3)]

    def setup(self, task, rng):
        return f"say it {task.index}"

    def respond(self, action):
        return Response(f"again please {self.turn}", terminated=self.turn == 3)


def played(env_type, act, template: str = "") -> Episode:
    policy = ScriptedPolicy(act, renderer=renderer(template))
    jobs = jobs_for(env_type().tasks("train")[:3], run_seed=0, split="train")
    return max(play(jobs, env_type, policy, Settings()), key=lambda episode: len(episode.turns))


def thinks(seat) -> str:
    return f"<think>\nturn {seat.turn}\n</think>\n\nsay {seat.turn}"


def changed(episode: Episode, k: int, **fields) -> Episode:
    (segment,) = episode.segments
    turns = list(segment.turns)
    turns[k] = replace(turns[k], **fields)
    return replace(episode, segments=(replace(segment, turns=tuple(turns)),))


def test_the_tokens_of_a_tool_episode_are_proven_and_clean():
    result = tokens(played(Guess, expert), renderer(), Guess)
    assert result.proven
    assert result.drift == (Drift.CLEAN,)


def test_a_template_that_strips_reasoning_gives_proven_branches():
    episode = played(Chatter, thinks, STRIPPING)
    assert len(episode.segments) == 3
    result = tokens(episode, renderer(STRIPPING), Chatter)
    assert result.mismatch is None
    assert result.drift == (Drift.CLEAN,) * 3


def test_another_tokenizer_or_template_is_seen_at_once():
    episode = played(Guess, expert)
    for other in (renderer(texts=0), renderer(STRIPPING.replace("<|' +", "<|system|><|' +"))):
        mismatch = tokens(episode, other, Guess).mismatch
        assert (mismatch.turn, mismatch.field) == (0, "context_ids")


def test_one_changed_token_is_named_by_its_turn():
    episode = played(Guess, expert)
    for k, turn in enumerate(episode.turns):
        context = (*turn.context_ids[:-2], turn.context_ids[-2] ^ 1, turn.context_ids[-1])
        mismatch = tokens(changed(episode, k, context_ids=context), renderer(), Guess).mismatch
        assert (mismatch.turn, mismatch.field) == (k, "context_ids")
        action = (turn.action_ids[0] ^ 1, *turn.action_ids[1:])
        mismatch = tokens(changed(episode, k, action_ids=action), renderer(), Guess).mismatch
        assert (mismatch.turn, mismatch.field) == (k, "action")


def test_a_call_that_is_parsed_otherwise_today_is_named():
    episode = changed(played(Guess, expert), 1, calls=())
    mismatch = tokens(episode, renderer(), Guess).mismatch
    assert (mismatch.turn, mismatch.field) == (1, "calls")
    assert str(mismatch).startswith("turn 1: calls was '[]'")


def test_the_same_text_in_other_tokens_is_proven_but_would_drift():
    episode = played(Guess, expert)
    first = episode.turns[0]
    codec = renderer().codec
    bytewise = [token for letter in first.action for token in codec.plain(letter)]
    assert len(bytewise) >= len(first.action_ids)
    ids = (*bytewise, first.action_ids[-1])
    episode = changed(episode, 0, action_ids=ids, logprobs=(0.0,) * len(ids))
    result = tokens(episode, renderer(), Guess)
    assert result.proven
    assert result.drift == (Drift.RETOKEN,)


@pytest.mark.parametrize(
    ("again", "drift"),
    [
        ("<|user|>hi<|end|><|assistant|>look <|end|>", Drift.CLEAN),
        ("<|user|>hi!<|end|><|assistant|>look <|end|>", Drift.TEMPLATE),
        ("<|user|>hi<|end|><|assistant|>look<|end|>", Drift.REWRITE),
    ],
)
def test_drift_tells_a_changed_frame_from_a_changed_action(again, drift):
    encode = renderer().codec.encode
    turn = Turn(
        context_ids=tuple(encode("<|user|>hi<|end|><|assistant|>")),
        action_ids=(*encode("look "), renderer().stop_ids[0]),
        logprobs=(0.0,) * (len(encode("look ")) + 1),
        action="look ",
    )
    assert _classify(Segment(turns=(turn,)), encode(again), renderer()) is drift


def test_an_episode_without_tokens_proves_nothing():
    jobs = jobs_for(Guess().tasks("train")[:1], run_seed=0, split="train")
    (episode,) = play(jobs, Guess, ScriptedPolicy(expert))
    result = tokens(episode, renderer(), Guess)
    assert (result.count, result.proven, result.mismatch) == (0, False, None)
