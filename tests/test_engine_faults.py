"""Servers that die, hang, lie or are not what they must be: one clear line, nothing lost twice."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import ExitStack

import httpx
import pytest
import torch
from servers import (
    MAX_LEN,
    PROMPT,
    Proxy,
    altered,
    draw,
    engine_on,
    inside,
    small,
    standin,
    wait_for,
)
from toys import Walks

from turnwise.agents.engines import client, vllm_weights
from turnwise.agents.engines.base import EngineError, GenRequest, Sampling, ScoreRequest
from turnwise.agents.engines.client import (
    ProtocolError,
    Server,
    ServerLate,
    ServerLost,
    ServerRefused,
)
from turnwise.agents.engines.replicas import NoServer, Replicas
from turnwise.agents.engines.standin import Settings as Flags
from turnwise.agents.engines.standin import StandIn, served
from turnwise.agents.engines.vllm import EngineBroken, VllmEngine
from turnwise.agents.engines.vllm_weights import (
    SavedWeights,
    four_phases,
    hot_lora,
    reload_folder,
)
from turnwise.agents.engines.vllm_wire import GENERATE
from turnwise.agents.policy import LLMPolicy
from turnwise.agents.renderer import Renderer
from turnwise.agents.rollout import Settings, jobs_for, play
from turnwise.envs.types import Outcome
from turnwise.trainers.engines import own_logprobs
from turnwise.trainers.model import add_lora, save_model

torch.set_num_threads(1)


@pytest.fixture
def stack():
    with ExitStack() as stack:
        yield stack


def saved(model, tokenizer, folder) -> SavedWeights:
    vocab = model.get_input_embeddings().weight.shape[0]
    score = lambda ids: own_logprobs(model, ids)  # noqa: E731
    return SavedWeights(save_model(model, tokenizer, folder), score, vocab)


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


def test_a_change_of_weights_is_never_asked_for_twice(stack, tmp_path):
    url = stack.enter_context(served(standin()))
    proxy = Proxy(url, breaks=1, path="/update_weights")
    stack.callback(proxy.close)
    engine = engine_on(stack, proxy.url, way=four_phases)
    with pytest.raises(EngineBroken, match="/update_weights"):
        engine.update_weights(saved(*small(), tmp_path), 1)
    assert proxy.seen == 1


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


def test_the_sessions_of_a_dead_server_move_and_draw_the_same_tokens(stack):
    first, second = (stack.enter_context(served(standin())) for _ in range(2))
    proxies = [Proxy(url) for url in (first, second)]
    engine = engine_on(stack, *(proxy.url for proxy in proxies), rest_s=3600.0)
    calm = {str(n): draw(engine, seed=n, session=str(n)).token_ids for n in range(6)}
    homes = {session: engine.replicas.of(session) for session in calm}
    assert len(set(homes.values())) == 2, "sessions are spread over the servers"
    proxies[0].breaks = 10**6
    for n in range(6):
        engine.submit(GenRequest(str(n), PROMPT, Sampling(8), n))
    again = {session: output.token_ids for session, output in wait_for(engine, 6).items()}
    assert again == calm
    assert {engine.replicas.of(session).server.url for session in calm} == {proxies[1].url}
    assert not engine.replicas.every[0].alive
    stack.callback(proxies[0].close)
    stack.callback(proxies[1].close)


def test_a_dead_server_is_asked_again_after_its_rest_and_serves_if_its_weights_are_right(
    stack, tmp_path
):
    proxies = [Proxy(stack.enter_context(served(standin()))) for _ in range(2)]
    for proxy in proxies:
        stack.callback(proxy.close)
    engine = engine_on(stack, *(proxy.url for proxy in proxies), strikes=1, rest_s=1e-3)
    model, tokenizer = small(seed=5)
    proxies[0].breaks = 10**6
    engine.update_weights(saved(model, tokenizer, tmp_path), 1)
    dead = engine.replicas.every[0]
    assert not dead.alive
    proxies[0].breaks = 0
    time.sleep(0.01)
    draw(engine)
    assert not dead.alive, "it is back, with weights of another version"
    engine.update_weights(saved(model, tokenizer, tmp_path), 2)
    assert dead.alive


class Failing:
    """A stand-in that answers requests for tokens badly while `how` says so."""

    def __init__(self) -> None:
        self.app, self.how, self.asked = standin(), "", 0

    async def __call__(self, scope, receive, send) -> None:
        self.asked += scope["path"] == "/v1/completions"
        if self.how == "503" and scope["path"] == "/v1/completions":
            start = {"type": "http.response.start", "status": 503, "headers": []}
            await send(start)
            return await send({"type": "http.response.body", "body": b"overloaded"})
        await altered(self.app, self._answer)(scope, receive, send)

    def _answer(self, path, answer):
        if self.how == "lie" and path == "/v1/completions":
            answer["choices"][0]["token_ids"].append(5)
        return answer


@pytest.mark.parametrize(("how", "most"), [("503", 0), ("lie", 3)])
def test_a_server_that_answers_badly_is_dead_after_its_strikes_though_it_has_the_least_to_do(
    stack, how, most
):
    bad, lost = Failing(), 0
    engine = engine_on(stack, inside(bad), inside(standin()), strikes=3, rest_s=3600.0)
    bad.how, bad.asked = how, 0
    for n in range(12):
        try:
            assert draw(engine, session=str(n), count=2).finish == "length"
            assert how == "lie" or bad.asked <= n + 1, "it is asked once for each request"
        except ProtocolError:
            lost += 1
    assert lost == most and bad.asked == 3
    assert [replica.alive for replica in engine.replicas.every] == [False, True]


def test_the_last_server_is_kept_whatever_it_answers_and_no_request_goes_round_for_ever(stack):
    apps = Failing(), Failing()
    engine = engine_on(stack, *map(inside, apps), strikes=2, rest_s=3600.0)
    for app in apps:
        app.how, app.asked = "503", 0
    for n in range(4):
        with pytest.raises(ServerRefused, match="503: overloaded"):
            draw(engine, session=str(n))
    assert sum(app.asked for app in apps) == 2 * 2 + 2
    assert len(engine.replicas.living) == 1
    for app in apps:
        app.how = ""
    assert draw(engine, session="z").finish == "length"


def test_a_request_that_is_wrong_is_no_fault_of_the_server(stack):
    engine = engine_on(stack, *(inside(standin()) for _ in range(2)), strikes=1)
    with pytest.raises(ServerRefused, match="answered 400"):
        draw(engine, [10**6])
    assert len(engine.replicas.living) == 2


# Scores


def test_failures_that_lie_apart_kill_no_server_that_scores_and_a_dead_one_comes_back(stack):
    proxy = Proxy(stack.enter_context(served(standin())), path="/v1/completions")
    stack.callback(proxy.close)
    engine = engine_on(stack, proxy.url, strikes=2, rest_s=0.02)
    wanted = [ScoreRequest(PROMPT)]
    calm = engine.score(wanted)
    engine.replicas.rest_s = 3600.0
    for _ in range(3):
        proxy.seen, proxy.breaks = 0, 2  # one request, and once more
        assert engine.score(wanted) == calm
    engine.replicas.rest_s = 0.02
    proxy.seen, proxy.breaks = 0, 10**6
    with pytest.raises(NoServer):
        engine.score(wanted)
    proxy.breaks = 0
    time.sleep(0.05)
    assert engine.score(wanted) == calm


def test_a_session_keeps_its_server_and_a_new_one_gets_the_least_loaded():
    replicas = Replicas([Server(f"http://{name}") for name in "abc"])
    homes = [replicas.of(str(n)) for n in range(6)]
    assert [homes.count(replica) for replica in replicas.every] == [2, 2, 2]
    homes[0].load = 5
    assert replicas.of("0") is homes[0]
    assert replicas.of("new") is not homes[0]


def test_a_server_is_dead_after_failures_in_a_row_and_not_before():
    now = [100.0]
    replicas = Replicas([Server("http://a")], strikes=3, rest_s=5.0, clock=lambda: now[0])
    (only,) = replicas.every
    for _ in range(2):
        replicas.failed(only, ServerLost("reset"))
    replicas.worked(only)
    for _ in range(2):
        replicas.failed(only, ServerLost("reset"))
    assert only.alive
    replicas.failed(only, ServerLost("reset"))
    with pytest.raises(NoServer, match="reset"):
        replicas.of("x")
    assert replicas.rested() == []
    now[0] += 6
    assert replicas.rested() == [only]


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


def test_who_asks_a_broken_engine_for_scores_is_told_so_and_does_not_wait(stack, tmp_path):
    app, found = standin(), []
    (tmp_path / "empty").mkdir()

    async def failing(server, folder, version, model):
        waiting.start()  # before the gate, while the change goes on
        await asyncio.sleep(0.3)
        return await reload_folder(server, tmp_path / "empty", version, model)

    def ask():
        with pytest.raises(EngineBroken, match="version 1 failed"):
            engine.score([ScoreRequest(PROMPT)])
        found.append("told")

    engine = engine_on(stack, inside(app), way=failing)
    waiting, later = (threading.Thread(target=ask, daemon=True) for _ in range(2))
    with pytest.raises(EngineBroken):
        engine.update_weights(saved(*small(), tmp_path / "good"), 1)
    later.start()
    for thread in (waiting, later):
        thread.join(5.0)
    assert found == ["told"] * 2


# Answers


def spoil(path, change):
    """Change the first choice of the answers of one route."""

    def changed(where, answer):
        if where == path:
            change(answer["choices"][0])
        return answer

    return changed


LIES = {
    "a token too few": lambda c: c["token_ids"].pop(),
    "a logprob too few": lambda c: c["logprobs"]["token_logprobs"].pop(),
    "another prompt": lambda c: c["prompt_token_ids"].reverse(),
    "other tokens": lambda c: c["token_ids"].reverse(),
    "a logprob above 0": lambda c: c["logprobs"]["token_logprobs"].__setitem__(0, 0.5),
    "no logprobs": lambda c: c.update(logprobs=None),
    "stopped for no reason": lambda c: c.update(finish_reason="stop"),
    "aborted": lambda c: c.update(finish_reason="abort"),
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_an_answer_that_is_not_to_what_was_asked_loses_that_request_alone(stack, lie):
    lying = False
    spoilt = spoil("/v1/completions", lie)

    def change(path, answer):
        return spoilt(path, answer) if lying else answer

    engine = engine_on(stack, inside(altered(standin(), change)))
    lying = True
    engine.submit(GenRequest("a", PROMPT, Sampling(8)))
    with pytest.raises(ProtocolError) as wrong:
        wait_for(engine, 1)
    assert wrong.value.sessions == {"a"}
    lying = False
    assert draw(engine, session="b").finish == "length"


@pytest.mark.parametrize("spans", [[], [("step-1", 0, 3)], [("step-1", 0, 3), ("step-2", 4, 8)]])
def test_version_spans_cover_the_tokens_without_a_gap(stack, spans):
    said = [{"version": v, "start": a, "end": b} for v, a, b in spans]
    lying = False

    def change(path, answer):
        if lying and path == GENERATE.path:
            answer["choices"][0]["weight_versions"] = said
        return answer

    engine = engine_on(stack, inside(altered(standin(), change)), wire=GENERATE)
    lying = True
    with pytest.raises(ProtocolError, match="version spans"):
        draw(engine)


def test_a_server_that_cuts_answers_shorter_than_it_said_is_found_out(stack):
    shorter = standin()

    def longer(path, answer):
        if path == "/v1/models":
            answer["data"][0]["max_model_len"] = 4 * MAX_LEN
        return answer

    engine = engine_on(stack, inside(altered(shorter, longer)))
    with pytest.raises(ProtocolError, match="cut the answer to 112 of 300 tokens"):
        draw(engine, [9] * (MAX_LEN - 112), count=300)


# Weights


def test_without_development_routes_a_server_may_be_used_but_not_updated(stack, tmp_path):
    engine = engine_on(stack, inside(standin(dev_mode=False)))
    draw(engine)
    with pytest.raises(EngineBroken, match="/pause"):
        engine.update_weights(saved(*small(), tmp_path), 1)


def half_loading():
    """A stand-in whose reload leaves the projections as they were."""
    from safetensors.torch import load_file

    def half(model, files):
        tensors = {k: v for path in files for k, v in load_file(path).items() if "proj" not in k}
        model.load_state_dict(tensors, strict=False)

    return StandIn(*small(), Flags(max_model_len=MAX_LEN, max_logprobs=64), load=half)


def test_a_server_that_is_lost_at_its_probe_does_not_come_back_on_its_own_word(stack, tmp_path):
    urls = [stack.enter_context(served(app)) for app in (half_loading(), standin())]
    proxies = [Proxy(url, path="/v1/completions") for url in urls]
    for proxy in proxies:
        stack.callback(proxy.close)
    engine = engine_on(stack, *(proxy.url for proxy in proxies), rest_s=1e-3)
    model, tokenizer = small(seed=4)
    proxies[0].seen, proxies[0].breaks = 0, 2  # the probe, and once more
    engine.update_weights(saved(model, tokenizer, tmp_path), 1)
    half, whole = engine.replicas.every
    said = httpx.get(f"{urls[0]}/weight_info").json()
    assert said == {"weight_version": "step-1"} and proxies[0].seen == 2
    time.sleep(0.01)
    for session in "abcd":
        output = draw(engine, session=session)
        own = own_logprobs(model, [*PROMPT, *output.token_ids])[len(PROMPT) - 1 :]
        assert output.logprobs == pytest.approx(own, abs=1e-4)
    assert whole.alive and not half.alive


def test_a_reload_that_reaches_half_of_the_layers_is_found_out(stack, tmp_path):
    """vLLM on a CPU answers 200 to such a reload: prepacked layers keep what they had."""
    engine = engine_on(stack, inside(half_loading()))
    with pytest.raises(EngineBroken, match="not those that were saved"):
        engine.update_weights(saved(*small(seed=4), tmp_path), 1)
    with pytest.raises(EngineError, match="version 1 failed"):
        engine.poll()


def test_an_adapter_is_loaded_hot_and_loaded_again_in_place(stack, tmp_path):
    app = standin()
    engine = engine_on(stack, inside(app), way=hot_lora)
    base = draw(engine)
    model = add_lora(small()[0], 2)
    for version in (1, 2):
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "lora_B" in name:
                    weight += 0.3 * version
        model.save_pretrained(tmp_path)
        engine.update_weights(
            SavedWeights(tmp_path, lambda ids: own_logprobs(model, ids), 280), version
        )
        output = draw(engine)
        own = own_logprobs(model, [*PROMPT, *output.token_ids])[len(PROMPT) - 1 :]
        assert max(abs(a - b) for a, b in zip(own, output.logprobs, strict=True)) < 1e-4
        assert output.logprobs != base.logprobs


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


def test_an_error_answer_is_told_with_what_the_server_said():
    async def ask():
        server = inside(standin())
        return await server.post("/v1/completions", {"model": "who", "prompt": [5]})

    with pytest.raises(ServerRefused, match="answered 404: The model `who` does not exist"):
        asyncio.run(ask())


def test_what_is_late_is_an_error_of_the_machine():
    assert issubclass(ServerLate, EngineError) and issubclass(ProtocolError, EngineError)


def answers(replicas, **took) -> None:
    """Have servers answer three times each, in so many seconds."""
    for replica in replicas.every:
        for _ in range(3):
            replicas.worked(replica, took[replica.server.url[-1]])


def placed(replicas, count: int) -> dict[str, int]:
    """Where so many new sessions go, by server."""
    homes = [replicas.of(f"new {n}").server.url[-1] for n in range(count)]
    return {name: homes.count(name) for name in "abc"}


def test_a_slow_server_gets_as_much_less_as_it_is_slower_and_keeps_what_it_has():
    replicas = Replicas([Server(f"http://{name}") for name in "abc"])
    before = [replicas.of(str(n)) for n in range(6)]
    assert len(set(before)) == 3
    answers(replicas, a=0.1, b=2.0, c=0.12)
    assert [replicas.of(str(n)) for n in range(6)] == before
    for n in range(6):
        replicas.forget(str(n))
    assert placed(replicas, 41) == {"a": 20, "b": 1, "c": 20}


def test_one_answer_out_of_line_makes_no_server_slow_and_one_that_is_fast_again_is_seen():
    now = [1000.0]
    replicas = Replicas([Server(f"http://{name}") for name in "abc"], clock=lambda: now[0])
    answers(replicas, a=0.1, b=0.1, c=0.1)
    replicas.worked(replicas.every[1], 9.0)
    assert placed(replicas, 6) == {"a": 2, "b": 2, "c": 2}
    for n in range(6):
        replicas.forget(f"new {n}")
    for _ in range(9):
        replicas.worked(replicas.every[1], 9.0)
    assert placed(replicas, 6) == {"a": 3, "b": 0, "c": 3}
    for n in range(6):
        replicas.forget(f"new {n}")
    now[0] += 1000.0
    for replica in replicas.every[::2]:
        replicas.worked(replica, 0.1)
    assert placed(replicas, 7) == {"a": 3, "b": 1, "c": 3}
    for n in range(7):
        replicas.forget(f"new {n}")
    answers(replicas, a=0.1, b=0.1, c=0.1)
    assert placed(replicas, 6) == {"a": 2, "b": 2, "c": 2}


def test_a_server_that_was_dead_comes_back_as_fast_as_any_other():
    replicas = Replicas([Server(f"http://{name}") for name in "ab"], clock=lambda: 1000.0)
    answers(replicas, a=0.1, b=9.0)
    slow = replicas.every[1]
    replicas.revive(slow)  # after each change of weights, too
    assert slow.pace == 9.0
    replicas.failed(slow, EngineError("gone"), at_once=True)
    replicas.revive(slow)
    assert slow.pace is None
