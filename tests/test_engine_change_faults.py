"""Changes of weights that fail or reach half of a server: found out, and never asked for twice."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import ExitStack

import httpx
import pytest
import torch
from servers import MAX_LEN, PROMPT, Proxy, draw, engine_on, inside, saved, small, standin

from turnwise.agents.engines.base import EngineError, ScoreRequest
from turnwise.agents.engines.standin import Settings as Flags
from turnwise.agents.engines.standin import StandIn, served
from turnwise.agents.engines.vllm import EngineBroken
from turnwise.agents.engines.vllm_weights import SavedWeights, four_phases, hot_lora, reload_folder
from turnwise.trainers.engines import own_logprobs
from turnwise.trainers.model import add_lora

torch.set_num_threads(1)


@pytest.fixture
def stack():
    with ExitStack() as stack:
        yield stack


def test_a_change_of_weights_is_never_asked_for_twice(stack, tmp_path):
    url = stack.enter_context(served(standin()))
    proxy = Proxy(url, breaks=1, path="/update_weights")
    stack.callback(proxy.close)
    engine = engine_on(stack, proxy.url, way=four_phases)
    with pytest.raises(EngineBroken, match="/update_weights"):
        engine.update_weights(saved(*small(), tmp_path), 1)
    assert proxy.seen == 1


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
