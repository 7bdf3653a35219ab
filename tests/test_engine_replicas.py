"""Laws of several servers: whose sessions go where, and who is dead, slow, or back again."""

from __future__ import annotations

import time
from contextlib import ExitStack

import pytest
import torch
from servers import PROMPT, Proxy, altered, draw, engine_on, inside, saved, small, standin, wait_for

from turnwise.agents.engines.base import EngineError, GenRequest, Sampling, ScoreRequest
from turnwise.agents.engines.client import ProtocolError, Server, ServerLost, ServerRefused
from turnwise.agents.engines.replicas import NoServer, Replicas
from turnwise.agents.engines.standin import served

torch.set_num_threads(1)


@pytest.fixture
def stack():
    with ExitStack() as stack:
        yield stack


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
