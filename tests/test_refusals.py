"""What a run cannot do is refused before anything is lost, in words that say the way out."""

from __future__ import annotations

import math
import resource
import shutil
import time
from pathlib import Path

import pytest
import torch
from fakes import Guess
from miniatures import naive_logprobs
from toy_runs import TINY, config_of, fresh, history, run, same_weights
from toys import Walks

from turnwise.envs.registry import UnknownEnv
from turnwise.trainers.loop import train
from turnwise.trainers.model import (
    ModelNotFound,
    TokenizerMismatch,
    check_match,
    hub_answers,
    load_model,
    save_model,
    tiny_from_env,
)
from turnwise.trainers.recipes import UnknownRecipe
from turnwise.trainers.run_folder import RunFolder, RunFolderError

torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ({"group_size": 1}, "group_size must be at least 2.*got 1"),
        ({"temperature": 0.0}, "temperature must be above 0.*got 0"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"seed": -1}, "seed must be 0 or more, got -1"),
        ({"first_task": -1}, "first_task must be 0 or more, got -1"),
        ({"updates_per_step": 0}, "updates_per_step must be at least 1"),
        ({"env_kwargs": "{depth: 2}"}, "env_kwargs must be JSON.*depth"),
        ({"env_kwargs": "[1]"}, "env_kwargs must be a JSON object"),
    ],
)
def test_an_impossible_config_is_refused_by_name(bad, why):
    with pytest.raises(ValueError, match=why):
        config_of("nowhere", **bad)


def test_only_the_length_of_a_gradient_may_have_no_end():
    assert config_of("nowhere", max_grad_norm=math.inf)
    for name in ("learning_rate", "temperature", "weight_decay"):
        with pytest.raises(ValueError, match=f"{name} must be a finite number, got inf"):
            config_of("nowhere", **{name: math.inf})


@pytest.mark.parametrize(
    ("bad", "error", "why"),
    [
        ({"env": "turnwise/FileHumt-v1"}, UnknownEnv, "did you mean 'turnwise/FileHunt-v1'"),
        ({"env": "toys:Walks", "env_kwargs": '{"lenght": 3}'}, TypeError, "length"),
        ({"recipe": "turn_rlo"}, UnknownRecipe, "did you mean 'turn_rloo'"),
        ({"model": ""}, ModelNotFound, "no model was named"),
        ({"model": "./nowhere"}, ModelNotFound, "nowhere.*no config.json"),
    ],
)
def test_what_does_not_exist_is_refused_before_the_folder_is_made(tmp_path, bad, error, why):
    config = config_of(tmp_path / "run", **{"env": "toys:Walks", "model": "./nowhere", **bad})
    with pytest.raises(error, match=why):
        next(train(config))
    assert not (tmp_path / "run").exists()


def test_a_name_that_is_no_folder_is_not_waited_for_where_the_hub_does_not_answer(monkeypatch):
    monkeypatch.setattr("turnwise.trainers.model.getproxies", dict)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    hub_answers.cache_clear()
    start = time.monotonic()
    try:
        with pytest.raises(ModelNotFound, match="no such folder, and Hugging Face does not answer"):
            load_model("a-name-that-nobody-took")
    finally:
        hub_answers.cache_clear()
    assert time.monotonic() - start < 5


def test_a_folder_without_a_loadable_model_says_so(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelNotFound, match="cannot load a"):
        load_model(str(tmp_path))


def test_a_tokenizer_that_does_not_match_is_refused(tmp_path):
    model, _ = fresh()
    _, larger = tiny_from_env(Guess, tasks=10, **TINY)
    with pytest.raises(TokenizerMismatch, match="load both from the same folder"):
        check_match(model, larger)
    save_model(model, larger, tmp_path)
    with pytest.raises(TokenizerMismatch):
        load_model(str(tmp_path))


def test_a_model_comes_back_as_it_was_saved(tmp_path):
    model, tokenizer = fresh()
    loaded, same = load_model(str(save_model(model, tokenizer, tmp_path / "model")))
    ids = tokenizer.encode("walk 7", add_special_tokens=False)
    assert same.encode("walk 7", add_special_tokens=False) == ids
    assert torch.equal(naive_logprobs(loaded, ids), naive_logprobs(model, ids))


def test_a_used_folder_is_not_written_over(tmp_path):
    run(tmp_path / "run", steps=1)
    before = history(tmp_path / "run")
    with pytest.raises(RunFolderError, match="holds a run already; pass --resume"):
        run(tmp_path / "run", steps=1)
    assert history(tmp_path / "run") == before


def test_a_folder_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match=r"cannot write to run folder .*give another --out"):
        run(tmp_path / "file" / "run", steps=1)


def test_a_disk_that_fills_up_loses_no_checkpoint(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    rows = train(config_of(tmp_path / "run", checkpoint_every=1), model=fresh(), make_env=Walks)
    next(rows)
    place = RunFolder.checkpoint

    def full(self, step, save):
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
        try:
            return place(self, step, save)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "checkpoint", full)
        with pytest.raises(RunFolderError, match=r"cannot write a checkpoint.*--resume"):
            next(rows)
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-000001"]
    assert run(tmp_path / "run", resume=True, steps=2)[0]["step"] == 2


# A damaged checkpoint


FILES = ("model.safetensors", "learner.pt", "optimizer.bin", "progress.json", "prompts.json")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run of three steps, with its last two checkpoints."""
    out = tmp_path_factory.mktemp("saved") / "run"
    run(out, steps=3, checkpoint_every=1)
    return out


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("damage", [cut, Path.unlink])
@pytest.mark.parametrize("name", [*FILES, "alarms.json"])
def test_a_damaged_checkpoint_is_named_with_the_one_before_and_loses_nothing(
    tmp_path, saved, name, damage
):
    out = Path(shutil.copytree(saved, tmp_path / "run"))
    whole = history(out)
    newest = out / "checkpoints" / "step-000003"
    damage(newest / name)
    with pytest.raises(RunFolderError, match=f"{newest}: .*to go on from step-000002") as refusal:
        run(out, steps=3, resume=True)
    assert len(str(refusal.value)) < 500 and not refusal.value.machine
    shutil.rmtree(newest)
    run(out, steps=3, resume=True)
    assert history(out) == whole and same_weights(out, saved)


def test_where_no_other_checkpoint_is_left_the_run_begins_anew(tmp_path, saved):
    out = Path(shutil.copytree(saved, tmp_path / "run"))
    shutil.rmtree(out / "checkpoints" / "step-000002")
    cut(out / "checkpoints" / "step-000003" / "learner.pt")
    with pytest.raises(RunFolderError, match="to begin anew"):
        run(out, steps=3, resume=True)


def test_a_checkpoint_of_another_model_is_refused_and_names_what_differs(tmp_path, saved):
    out = Path(shutil.copytree(saved, tmp_path / "run"))
    larger = tiny_from_env(Walks, tasks=10, max_len=128, **{**TINY, "hidden": 48})
    with pytest.raises(RunFolderError, match=r"size mismatch.*of another model"):
        run(out, steps=3, resume=True, model=larger)


def test_a_run_is_no_model_but_tells_where_its_model_is(saved):
    with pytest.raises(ModelNotFound, match=f"the folder of a run: its model is '{saved}/model'"):
        load_model(str(saved))
    with pytest.raises(ModelNotFound, match="is a checkpoint, from which --resume goes on"):
        load_model(str(saved / "checkpoints" / "step-000003"))


def test_a_run_that_has_not_ended_has_no_model_yet(tmp_path, saved):
    out = Path(shutil.copytree(saved, tmp_path / "run"))
    shutil.rmtree(out / "model")
    with pytest.raises(ModelNotFound, match="it has no model yet: --resume"):
        load_model(str(out))
