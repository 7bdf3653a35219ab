"""The same recipe on servers: what is sampled, what is learnt, and what an engine changes."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from servers import altered, real_url, small, standin
from toys import Walks

from turnwise.agents.engines.base import ServerUnfit
from turnwise.agents.engines.standin import served
from turnwise.agents.engines.vllm import VllmEngine
from turnwise.agents.engines.vllm_start import Needs
from turnwise.agents.engines.vllm_weights import SavedWeights
from turnwise.agents.record import read_records
from turnwise.trainers.config import TrainConfig
from turnwise.trainers.engines import own_logprobs
from turnwise.trainers.loop import train
from turnwise.trainers.model import load_model
from turnwise.trainers.run_folder import RunFolderError
from turnwise.trainers.teachers import TeacherMismatch

torch.set_num_threads(1)
HOW = [("reload", "completions"), ("phases", "generate")]
ADAPTED = [("lora", "completions"), ("lora", "generate")]


class Easy(Walks):
    """A random model of bytes is right about a third of the time."""

    wanted = frozenset(map(chr, range(32, 112)))


def run(out: Path, engine: str = "", model=None, **more) -> list[dict[str, float]]:
    return list(training(out, engine, model, **more))


def training(out: Path, engine: str = "", model=None, **more) -> Iterator[dict[str, float]]:
    usual = {"tasks_per_step": 3, "group_size": 4, "max_new_tokens": 3, "max_tokens": 96}
    usual |= {"learning_rate": 1e-2, "warmup_steps": 1, "checkpoint_every": 0, "steps": 3}
    config = TrainConfig(out=out, engine=engine, **{**usual, **more})
    return train(config, model=model or small(), make_env=Easy)


def tokens(out: Path) -> dict[str, list[tuple[int, ...]]]:
    episodes = [record.episode for record in read_records(out / "episodes.jsonl")]
    return {e.id: [tuple(turn.action_ids) for turn in e.turns] for e in episodes}


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
    out = tmp_path_factory.mktemp("embedded") / "run"
    return out, run(out, "embedded")


@pytest.mark.parametrize(("sync", "route"), HOW)
def test_the_same_recipe_and_seed_draw_the_same_tokens_on_a_server_and_learn_the_same(
    embedded, tmp_path, sync, route
):
    out, rows = embedded
    with served(standin()) as url:
        again = run(tmp_path / "run", url, engine_sync=sync, engine_route=route)
    assert tokens(tmp_path / "run") == tokens(out)
    assert any(row["loss"] != 0 for row in rows)
    for row, other in zip(rows, again, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], abs=1e-5)
        assert row["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)
        assert other["engine_gap"] < 1e-4


@pytest.mark.parametrize("temperature", [0.7, 1.3])
def test_the_first_ratio_is_one_at_any_temperature_on_a_server_and_here(tmp_path, temperature):
    how = {"temperature": temperature, "steps": 1}
    (here,) = run(tmp_path / "here", "embedded", **how)
    with served(standin()) as url:
        (there,) = run(tmp_path / "there", url, **how)
    assert max(here["engine_gap"], there["engine_gap"]) < 1e-4
    assert tokens(tmp_path / "there") == tokens(tmp_path / "here")


def test_two_servers_draw_what_one_does(embedded, tmp_path):
    out, _ = embedded
    with served(standin()) as one, served(standin()) as two:
        run(tmp_path / "run", f"{one},{two}")
    assert tokens(tmp_path / "run") == tokens(out)


def test_adapters_alone_are_sent_where_adapters_alone_are_trained(tmp_path):
    with served(standin()) as url:
        rows = run(tmp_path / "run", url, lora_rank=2, engine_sync="lora")
    assert max(row["engine_gap"] for row in rows) < 1e-4
    assert (tmp_path / "run/served/adapter_model.safetensors").stat().st_size < 100_000


@pytest.mark.parametrize(
    ("sync", "depth", "more"),
    [
        ("reload", 1, {}),
        ("phases", 2, {}),
        ("lora", 1, {"lora_rank": 2}),
    ],
)
def test_batches_in_flight_on_servers_of_their_own_are_those_of_the_embedded_engine(
    tmp_path, sync, depth, more
):
    plan = {"pipeline_depth": depth, "steps": 4, **more}
    own = run(tmp_path / "own", **plan)
    with served(standin()) as one, served(standin()) as two:
        away = run(tmp_path / "away", f"{one},{two}", engine_sync=sync, **plan)
    assert tokens(tmp_path / "away") == tokens(tmp_path / "own")
    for row, other in zip(own, away, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], abs=1e-5)
        assert row["max_staleness"] == other["max_staleness"]
    assert own[-1]["max_staleness"] == 2 * depth


def test_what_was_in_flight_is_played_on_with_its_own_weights_after_a_resumption(tmp_path):
    with served(standin()) as url:
        whole = run(tmp_path / "whole", url, pipeline_depth=1, steps=4)
        run(tmp_path / "run", url, pipeline_depth=1, steps=2)
    with served(standin()) as url:  # another server, which has never heard of the run
        rest = run(tmp_path / "run", url, pipeline_depth=1, steps=4, resume=True)
    assert tokens(tmp_path / "run") == tokens(tmp_path / "whole")
    for row, other in zip(whole[2:], rest, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], abs=1e-5)


def test_more_batches_at_once_than_servers_are_refused_with_what_to_do(tmp_path):
    with pytest.raises(ValueError, match="name at least 2"):
        run(tmp_path / "run", "http://127.0.0.1:9", pipeline_depth=2)


def test_a_run_whose_folder_is_refused_leaves_no_connection_and_no_thread(tmp_path):
    with served(standin()) as url:
        run(tmp_path / "run", url, steps=1)
        with pytest.raises(RunFolderError):
            run(tmp_path / "run", url, steps=1)
    assert "turnwise-background" not in {thread.name for thread in threading.enumerate()}


def test_a_used_folder_is_refused_before_a_server_is_given_anything(tmp_path):
    asked = []

    def noted(path, body):
        asked.append(path)
        return body

    with served(altered(standin(), noted, asked=True)) as url:
        run(tmp_path / "run", "embedded", steps=1)
        with pytest.raises(RunFolderError, match="--resume"):
            run(tmp_path / "run", url, steps=1)
        with pytest.raises(RunFolderError, match=r"learning_rate=0\.01"):
            run(tmp_path / "run", url, steps=2, learning_rate=1e-3, resume=True)
    assert not asked and not (tmp_path / "run/served").exists()


def test_a_resumed_run_gives_the_server_its_weights_back_and_goes_on_as_if_nothing_was(
    embedded, tmp_path
):
    out, _ = embedded
    with served(standin()) as url:
        run(tmp_path / "run", url, steps=2)
    with served(standin()) as url:  # another server, which has never heard of the run
        run(tmp_path / "run", url, resume=True)
    assert tokens(tmp_path / "run") == tokens(out)


def test_what_is_wrong_with_the_engine_is_said_before_anything_is_played(tmp_path):
    with pytest.raises(ValueError, match="did you mean 'reload'"):
        run(tmp_path / "a", "http://127.0.0.1:9", engine_sync="relode")
    with pytest.raises(ValueError, match="set lora_rank"):
        run(tmp_path / "b", "http://127.0.0.1:9", engine_sync="lora")
    with (
        served(standin(processed=False)) as url,
        pytest.raises(ServerUnfit, match="processed_logprobs"),
    ):
        run(tmp_path / "c", url)
    assert not (tmp_path / "c/episodes.jsonl").exists()
    with pytest.raises(TeacherMismatch, match="set temperature 1"):
        run(tmp_path / "d", teacher="http://127.0.0.1:9", recipe="opd", temperature=0.7)
    assert not (tmp_path / "d/episodes.jsonl").exists()


def give_back(url: str, model, folder: Path) -> None:
    """Have a server hold a model, whatever it was trained to before."""
    engine = VllmEngine([url], needs=Needs(updates=True))
    vocab = model.get_input_embeddings().weight.shape[0]
    engine.update_weights(SavedWeights(folder, partial(own_logprobs, model), vocab), 1)
    engine.close()


@pytest.mark.vllm
@pytest.mark.parametrize(("sync", "route"), HOW + ADAPTED)
def test_a_real_vllm_is_trained_through_with_its_weights_proved_after_every_update(
    tmp_path, sync, route
):
    url, steps = real_url(), 4
    import os

    folder = os.environ["TURNWISE_VLLM_MODEL"]
    start, how = load_model(folder), {"engine_sync": sync, "engine_route": route}
    if sync == "lora":
        give_back(url, start[0], Path(folder))
        how["lora_rank"] = 2
    rows = run(tmp_path / "run", url, start, steps=steps, **how)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert max(row["engine_gap"] for row in rows) < 1e-3
    assert any(row["grad_norm"] > 0 for row in rows)
    episodes = [record.episode for record in read_records(tmp_path / "run/episodes.jsonl")]
    assert len(episodes) == steps * 12 and all(e.outcome.trainable for e in episodes)
    assert {turn.policy_version for e in episodes for turn in e.turns} == {0, 2, 4, 6}
    print(json.dumps([{k: row[k] for k in ("loss", "engine_gap", "success")} for row in rows]))
