"""A teacher on a server teaches what its model does in this process, or is refused at start."""

from __future__ import annotations

import math
import threading

import pytest
import torch
from pupils import episodes_of, parts
from servers import real_url, small
from test_engine_training import give_back, run, tokens

from turnwise.agents.engines.base import ScoreRequest, ServerUnfit
from turnwise.agents.engines.standin import Settings as Served
from turnwise.agents.engines.standin import StandIn
from turnwise.agents.engines.standin import served as serving
from turnwise.agents.record import read_records
from turnwise.trainers.batch import pack, totals_of
from turnwise.trainers.engine_teacher import EngineTeacher
from turnwise.trainers.engines import served
from turnwise.trainers.model import load_model, save_model
from turnwise.trainers.model_teacher import frozen
from turnwise.trainers.recipes import NAMES, recipe
from turnwise.trainers.surrogates import token_mean
from turnwise.trainers.teachers import TeacherMismatch
from turnwise.trainers.tutor import NoTeacher, tutor_for

torch.set_num_threads(1)
TAUGHT = [n for n in NAMES if (how := recipe(n).distillation) is not None and how.source is None]
WHOLE = {"vopd", "gkd"}
"""Recipes that read the teacher's whole vocabulary."""


@pytest.fixture(scope="module", params=["standin", pytest.param("vllm", marks=pytest.mark.vllm)])
def teacher(request, tmp_path_factory):
    """The folder of a model, the address of a server that holds it, and how near the two are."""
    model, tokenizer = small(3)
    folder = save_model(model, tokenizer, tmp_path_factory.mktemp("teacher") / "model")
    if request.param == "vllm":
        give_back(real_url(), model, folder)
        yield str(folder), real_url(), 1e-4
        return
    settings = Served(max_model_len=512, max_logprobs=64)
    with serving(StandIn(*small(3), settings)) as url:
        yield str(folder), url, 1e-5


@pytest.mark.parametrize("topk", [0, 5])
def test_a_server_scores_rows_as_its_model_does_in_this_process(teacher, topk):
    folder, url, near = teacher
    model, tokenizer = load_model(folder)
    rows, _, _ = parts(episodes_of(small(0)[0]))
    packed = pack(rows, aggregate=token_mean, totals=totals_of(rows))
    vocab = model.get_input_embeddings().weight.shape[0]
    there = EngineTeacher(served(url, tokenizer, 256), vocab, topk)
    own_MV = frozen(model, 256).logprobs(packed)
    said_MV = there.logprobs(packed)
    own_M = own_MV.gather(-1, packed.target_M[:, None])[:, 0]
    torch.testing.assert_close(there.chosen(packed), own_M, atol=near, rtol=0)
    known_MV = said_MV > -torch.inf
    assert known_MV.sum() >= (topk or 1) * len(own_M)
    torch.testing.assert_close(said_MV[known_MV], own_MV[known_MV], atol=near, rtol=0)
    assert known_MV.gather(-1, own_MV.topk(max(topk, 1), -1).indices).all() or not topk
    there.close()


def executors(out) -> set[str]:
    """Who took turns in a run."""
    episodes = [record.episode for record in read_records(out / "episodes.jsonl")]
    return {turn.executor for e in episodes for turn in e.turns}


@pytest.mark.parametrize("name", sorted(set(TAUGHT) - WHOLE))
def test_a_server_teaches_what_its_model_teaches_in_this_process(teacher, tmp_path, name):
    folder, url, near = teacher
    how = {"recipe": name, "steps": 2, "max_failed": 1.0}  # what a random model says hardly ends
    how["learning_rate"] = 1e-4  # ratios stay off the bounds of a clip, where a rounding is a jump
    here = run(tmp_path / "here", teacher=folder, **how)
    there = run(tmp_path / "there", teacher=url, **how)
    if recipe(name).imitation is not None and near > 1e-5:  # the teacher acts by draws of its own
        assert executors(tmp_path / "there") == executors(tmp_path / "here")
        assert all(math.isfinite(row["loss"]) and row["grad_norm"] > 0 for row in there)
        return
    assert tokens(tmp_path / "there") == tokens(tmp_path / "here")
    assert any(row["loss"] != 0 for row in here)
    first = {"abs": near, "rel": near}  # of equal weights; Adam's first step enlarges roundings
    for row, other, within in zip(here, there, (first, {"rel": 100 * near}), strict=True):
        assert other["loss"] == pytest.approx(row["loss"], **within)
        assert other["grad_norm"] == pytest.approx(row["grad_norm"], rel=100 * near)


@pytest.mark.parametrize("name", sorted(WHOLE))
def test_who_reads_a_whole_vocabulary_is_told_so_before_anything_is_played(teacher, tmp_path, name):
    threads = threading.active_count()
    with pytest.raises(TeacherMismatch, match="reads the whole vocabulary"):
        run(tmp_path / "run", teacher=teacher[1], recipe=name)
    assert not (tmp_path / "run").exists() and threading.active_count() == threads


def test_a_temperature_at_which_no_server_scores_is_refused_before_one_is_asked():
    how = {"teacher": "http://127.0.0.1:9", "steps": 1}
    with pytest.raises(TeacherMismatch, match=r"samples at temperature 0\.7.* set temperature 1"):
        tutor_for(recipe("opd"), None, None, None, temperature=0.7, **how)


def test_a_server_that_is_too_short_is_refused_with_what_to_change(tmp_path):
    short = StandIn(*small(3), Served(max_model_len=96))  # no room for a token behind 96
    with serving(short) as url, pytest.raises(ServerUnfit, match="--max-model-len 97"):
        run(tmp_path / "run", teacher=url, recipe="opd", max_tokens=96)


def test_an_episode_that_fills_the_context_is_scored_to_its_last_token(teacher):
    engine = served(teacher[1], small(0)[1], 96)
    try:
        ids = [7 + n % 90 for n in range(96)]
        (said,) = engine.score([ScoreRequest(ids)])
        assert len(said.logprobs) == 95
    finally:
        engine.close()


def test_dagger_is_shown_the_turns_of_a_model_on_a_server(teacher, tmp_path):
    how = {"recipe": "dagger", "steps": 2, "max_failed": 1.0}  # see above
    rows = run(tmp_path / "run", teacher=teacher[1], **how)
    assert executors(tmp_path / "run") == {"student", "teacher"}
    assert rows[-1]["loss"] < rows[0]["loss"]


def test_a_server_has_no_distributions_for_dagger(teacher, tmp_path):
    how = {"recipe": "dagger", "recipe_options": '{"white_box": true}'}
    with pytest.raises(NoTeacher, match="a server gives none"):
        run(tmp_path / "run", teacher=teacher[1], **how)
