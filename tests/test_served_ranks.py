"""Processes that share servers: they make the run of one, and bring new weights once."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import ranked
import torch
from servers import Place, draw, on_loopback, standin

from turnwise.agents.engines.standin import Settings, StandIn, served
from turnwise.agents.engines.vllm import EngineBroken, VllmEngine
from turnwise.cli.launch import launch
from turnwise.trainers.model import load_model

torch.set_num_threads(1)
HERE = Path(__file__).parent
ENV = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "level"),
    [("plain", 0), ("plain", 2), ("plain-shard", 0), ("adapters", 0), ("paced", 0)],
)
def test_two_processes_on_a_server_make_the_run_of_one_without(tmp_path, name, level):
    ranked.models(tmp_path)
    alone = ranked.go(tmp_path / "one", name)
    begins = "model" if name == "adapters" else "teacher"  # with weights that are not the run's
    held = StandIn(*load_model(str(tmp_path / begins)), Settings(max_model_len=128))
    heard = []

    async def listening(scope, receive, send):
        heard.append(scope.get("path"))
        await held(scope, receive, send)

    with served(listening) as url:
        options = {"engine": url, "engine_sync": "lora" if name == "adapters" else "reload"}
        options |= {"engine_sleep": level}
        (tmp_path / "options.json").write_text(json.dumps(options))
        command = [sys.executable, str(HERE / "ranked.py"), str(tmp_path / "two"), name]
        late = {**ENV, "TURNWISE_TEST_LATE": "1"}
        code, line = launch(command, 2, logs=tmp_path / "logs", env=late)
    assert (code, line) == (0, ""), (tmp_path / "logs" / "rank-1.log").read_text()[-2000:]
    assert ranked.sampled(tmp_path / "two" / name) == ranked.sampled(tmp_path / "one" / name)
    found = json.loads((tmp_path / "two" / "found.json").read_text())[name]
    for row, other in zip(alone, found, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], abs=1e-5)
        # What is played ahead is older than the weights that learn from it.
        assert other["engine_gap"] < 1e-4 or other["staleness"] > 0
    # Those that share servers put them to sleep once a step, and leave them awake.
    steps = len(found) if level else 0
    assert heard.count("/sleep") == steps and not held.asleep
    # Both have looked at what the server held before anything was changed there.
    changed = heard.index("/v1/load_lora_adapter" if name == "adapters" else "/pause")
    assert heard[:changed].count("/version") == 2


def same(one, other) -> None:
    """Assert that both have drawn alike, up to the last digits of another batch."""
    assert one.token_ids == other.token_ids and one.versions == other.versions
    assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)


@pytest.fixture
def place(tmp_path):
    with on_loopback() as (server, (model, tokenizer)):
        yield Place("loopback", server, model, tokenizer, tmp_path / "weights")


def test_who_adopts_weights_samples_with_them_as_who_brought_them(place):
    first, other = place.engine(), VllmEngine([place.server()])
    try:
        with torch.no_grad():
            place.model.get_output_embeddings().weight.mul_(1.5)
        place.sync(first, 2)
        other.adopt(first.held(), 2)
        same(draw(other), draw(first))
        assert draw(other).versions == ((2, 0, 8),)
    finally:
        first.close()
        other.close()


def test_who_was_not_proved_does_not_come_back_to_who_adopts_by_the_version_that_it_names(place):
    with served(standin()) as liar:
        first = place.engine()
        other = VllmEngine([place.server(), liar], rest_s=1e-3)
        try:
            stamp = {"new_version": "step-1"}
            assert httpx.post(f"{liar}/update_weight_version", json=stamp).status_code == 200
            other.adopt(first.held(), 1)
            for session in "abcd":
                time.sleep(0.01)
                draw(other, session=session)
            assert [replica.alive for replica in other.replicas.every] == [True, False]
        finally:
            first.close()
            other.close()


def test_a_server_that_holds_other_weights_than_those_to_adopt_is_never_asked(place):
    with served(standin()) as stale:
        first = place.engine()
        other = VllmEngine([place.server(), stale])
        try:
            here = first.held()
            other.adopt(replace(here, servers=(*here.servers, stale)), 1)
            for session in "abcd":
                same(draw(other, session=session), draw(first, session=session))
            assert [replica.server.url for replica in other.replicas.living] == [
                first.replicas.every[0].server.url
            ]
            with pytest.raises(EngineBroken, match="version 7"):
                other.adopt(first.held(), 7)
            with pytest.raises(EngineBroken):
                draw(other)
        finally:
            first.close()
            other.close()
