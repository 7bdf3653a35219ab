"""Servers that reset, hang or die: asked once more, given up in time, and no episode is lost."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import ExitStack

import pytest
import torch
from servers import PROMPT, Proxy, altered, draw, engine_on, inside, saved, small, standin
from toys import Walks

from turnwise.agents.engines import client, vllm_weights
from turnwise.agents.engines.base import EngineError, ScoreRequest
from turnwise.agents.engines.client import ProtocolError, ServerLate, ServerLost
from turnwise.agents.engines.replicas import NoServer
from turnwise.agents.engines.standin import served
from turnwise.agents.engines.vllm import EngineBroken, VllmEngine
from turnwise.agents.policy import LLMPolicy
from turnwise.agents.renderer import Renderer
from turnwise.agents.rollout import Settings, jobs_for, play
from turnwise.envs.types import Outcome

torch.set_num_threads(1)


@pytest.fixture
def stack():
    with ExitStack() as stack:
        yield stack


# Connections


def test_a_reset_connection_is_asked_once_more_with_the_same_request(stack):
    url = stack.enter_context(served(standin()))
    proxy = Proxy(url, breaks=0, path="/v1/completions")
    stack.callback(proxy.close)
    engine = engine_on(stack, proxy.url, strikes=1)
    calm = draw(engine)
    proxy.seen, proxy.breaks = 0, 1
    assert draw(engine).token_ids == calm.token_ids
    assert proxy.seen == 2
    proxy.seen, proxy.breaks = 0, 2
    with pytest.raises(NoServer, match=r"tried 2x"):
        draw(engine)


def test_a_server_that_hangs_is_given_up_at_the_deadline(stack):
    hanging = False

    async def app(scope, receive, send, whole=standin()):  # noqa: B008
        if hanging and scope["path"] == "/v1/completions":
            await asyncio.sleep(60)
        await whole(scope, receive, send)

    engine = engine_on(stack, inside(app, deadline_s=20.0))
    draw(engine)
    engine.replicas.every[0].server.deadline_s, hanging = 0.2, True
    with pytest.raises(NoServer, match=r"no answer in 0.2 s"):
        draw(engine)


def test_there_is_no_engine_without_a_server_that_answers():
    with pytest.raises(ServerLost, match="is the server running"):
        VllmEngine(["http://127.0.0.1:9"])
    with pytest.raises(ValueError, match="begins with http"):
        VllmEngine(["localhost:8000"])
    with pytest.raises(ValueError, match="at least one"):
        VllmEngine([])


class Hanging:
    """A stand-in of which some routes give no answer while they are in `at`."""

    def __init__(self) -> None:
        self.app, self.at = standin(), set()

    async def __call__(self, scope, receive, send) -> None:
        while scope["path"] in self.at:
            await asyncio.sleep(0.02)
        await self.app(scope, receive, send)


def test_a_server_that_hangs_in_a_change_of_weights_is_not_waited_for_twice_and_is_named(
    stack, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(vllm_weights, "LAST_WORD_S", 0.1)
    monkeypatch.setattr(client, "PATIENCE_S", 0.5)
    app = Hanging()
    engine = engine_on(stack, inside(app))
    engine.replicas.every[0].server.deadline_s = 4.0
    app.at = {"/collective_rpc", "/resume"}
    start = time.monotonic()
    with pytest.raises(EngineBroken, match="/collective_rpc: no answer in 4 s") as broken:
        engine.update_weights(saved(*small(), tmp_path), 1)
    assert time.monotonic() - start < 7.5 and "\n" not in str(broken.value)
    (said,) = [r.getMessage() for r in caplog.records if r.name == "turnwise"]
    assert said.startswith("http://standin/collective_rpc has not answered for 0.5 s")


def test_scores_that_take_long_are_told_once_and_tokens_never(stack, monkeypatch, caplog):
    app = Hanging()
    engine = engine_on(stack, inside(app))
    monkeypatch.setattr(client, "PATIENCE_S", 0.2)
    app.at = {"/v1/completions"}
    threading.Timer(0.6, app.at.clear).start()
    draw(engine)
    assert not caplog.records
    monkeypatch.setattr(client, "PATIENCE_S", 1.0)
    app.at.add("/v1/completions")
    threading.Timer(1.5, app.at.clear).start()
    engine.score([ScoreRequest(PROMPT)] * 3)
    (said,) = [r.getMessage() for r in caplog.records if r.name == "turnwise"]
    assert said.startswith("http://standin/v1/completions has not answered")


# Episodes


def test_requests_that_a_server_loses_are_played_again_and_no_episode_is_lost_or_there_twice(stack):
    tokenizer = small()[1]
    count = 0

    def sometimes(path, answer):
        nonlocal count
        count += path == "/v1/completions"
        if path == "/v1/completions" and count > 10 and count % 7 == 0:
            answer["choices"][0]["token_ids"].append(5)
        return answer

    engine = engine_on(stack, inside(altered(standin(), sometimes)))
    policy = LLMPolicy(engine, Renderer(tokenizer), max_new_tokens=4)
    jobs = list(jobs_for(Walks().tasks("train")[:25], 4, run_seed=0, split="train"))
    settings = Settings(concurrency=8, max_tokens=128, retries=3)
    episodes = list(play(jobs, Walks, policy, settings))
    assert sorted(episode.id for episode in episodes) == sorted(job.id for job in jobs)
    assert {episode.outcome for episode in episodes} <= {Outcome.OK, Outcome.INFRA_ERROR}
    again = [episode for episode in episodes if episode.attempts > 1]
    assert 10 < len(again) < 70
    assert sum(e.outcome is Outcome.OK for e in episodes) > 90


def test_a_server_that_dies_in_mid_run_masks_its_episodes_and_never_scores_them(stack):
    tokenizer = small()[1]
    proxy = Proxy(stack.enter_context(served(standin())))
    stack.callback(proxy.close)
    engine = engine_on(stack, proxy.url, strikes=1, rest_s=3600.0)
    policy = LLMPolicy(engine, Renderer(tokenizer), max_new_tokens=4)
    jobs = list(jobs_for(Walks().tasks("train")[:12], run_seed=0, split="train"))
    played = []
    for episode in play(jobs, Walks, policy, Settings(concurrency=4, max_tokens=128)):
        played.append(episode)
        if len(played) == 4:
            proxy.breaks = 10**6
    assert len(played) == 12
    lost = [e for e in played if e.outcome is Outcome.INFRA_ERROR]
    assert lost and all("NoServer" in e.error and not e.outcome.trainable for e in lost)


def test_what_is_late_is_an_error_of_the_machine():
    assert issubclass(ServerLate, EngineError) and issubclass(ProtocolError, EngineError)
