"""Laws of ends of turns: one that is none to the teacher has no score, wherever the teacher is."""

from __future__ import annotations

import math

import pytest
import torch
from pupils import learner_of, packed_of
from servers import small
from test_engine_training import run, tokens
from toys import Walks

from turnwise.agents.engines.embedded import EmbeddedEngine
from turnwise.agents.engines.standin import Settings as Served
from turnwise.agents.engines.standin import StandIn
from turnwise.agents.engines.standin import served as serving
from turnwise.agents.renderer import Renderer
from turnwise.trainers.batch import rows_of, taught
from turnwise.trainers.ends import ends_in, ends_of, foreign
from turnwise.trainers.engine_teacher import EngineTeacher
from turnwise.trainers.learner import Learner
from turnwise.trainers.model import load_model, load_tokenizer, save_model
from turnwise.trainers.model_teacher import frozen
from turnwise.trainers.recipes import recipe
from turnwise.trainers.sft import demonstrations, imitate
from turnwise.trainers.teachers import chosen_by
from turnwise.trainers.tutor import tutor_for

torch.set_num_threads(1)
END, PAD = 1, 0


class Brief(Walks):
    """Walks whose expert says little enough for three tokens."""

    def expert(self):
        return "a"


@pytest.fixture(scope="module")
def shown():
    return demonstrations(Brief, Brief().tasks("train")[:32], Renderer(small()[1]), seed=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, shown):
    """A model that ends its turns."""
    model, tokenizer = small()
    learner = Learner(model, learning_rate=1e-2, max_len=96)
    for _ in imitate(learner, shown, steps=15, batch=8, seed=0):
        pass
    return save_model(model, tokenizer, tmp_path_factory.mktemp("model") / "ends")


@pytest.fixture(scope="module")
def base(tmp_path_factory, folder):
    """The same weights under the ends of another model."""
    model, tokenizer = load_model(str(folder))
    tokenizer.eos_token, model.generation_config.eos_token_id = "<|pad|>", [PAD]
    return save_model(model, tokenizer, tmp_path_factory.mktemp("model") / "base")


def at_server(where):
    return serving(StandIn(*load_model(str(where)), Served(max_logprobs=64, root=str(where))))


@pytest.mark.parametrize("name", ["opd", "gkd", "kdrl"])
def test_the_students_end_is_not_scored_by_a_teacher_with_another(folder, base, tmp_path, name):
    how = {"recipe": name, "steps": 1, "learning_rate": 1e-4, "model": load_model(str(folder))}
    (plain,) = run(tmp_path / "plain", teacher=str(folder), **how)
    (here,) = run(tmp_path / "here", teacher=str(base), **how)
    said = [ids for turns in tokens(tmp_path / "here").values() for ids in turns]
    ended, count = sum(END in ids for ids in said), sum(map(len, said))
    assert ended > 12 and plain["teacher_missing"] == 0
    assert here["teacher_missing"] == pytest.approx(ended / count)
    assert all(math.isfinite(v) for v in here.values() if isinstance(v, float))


def test_a_server_leaves_out_what_its_model_leaves_out_in_this_process(folder, base, tmp_path):
    how = {"recipe": "opd", "steps": 1, "learning_rate": 1e-4}
    (here,) = run(tmp_path / "here", model=load_model(str(folder)), teacher=str(base), **how)
    with at_server(base) as url:
        (there,) = run(tmp_path / "there", model=load_model(str(folder)), teacher=url, **how)
    assert tokens(tmp_path / "there") == tokens(tmp_path / "here")
    assert there["teacher_missing"] == here["teacher_missing"] > 0.1
    assert there["loss"] == pytest.approx(here["loss"], abs=1e-5)


def test_exactly_the_ends_are_left_out_and_all_else_is_scored_as_ever(folder, shown):
    packed = packed_of(rows_of(shown[:6], taught))
    model, _ = load_model(str(folder))
    vocabulary, mute = model.config.vocab_size, frozenset({END})
    engine = EmbeddedEngine(model, slots=1, max_len=96)
    is_end_M = packed.target_M == END
    assert 0 < is_end_M.sum() < len(is_end_M)
    for plain, silent in (
        (frozen(model, 96), frozen(model, 96, mute)),
        (EngineTeacher(engine, vocabulary, 3), EngineTeacher(engine, vocabulary, 3, mute)),
    ):
        whole_MV, left_MV = plain.logprobs(packed), silent.logprobs(packed)
        assert torch.equal(left_MV.isnan().all(-1), is_end_M)
        assert torch.equal(left_MV[~is_end_M], whole_MV[~is_end_M])
        left_M = chosen_by(silent, packed, vocabulary, at_once=5 * vocabulary)
        assert torch.equal(left_M.isnan(), is_end_M)


@pytest.mark.parametrize("where", ["both", "tokenizer", "generation"])
def test_an_end_counts_that_the_tokenizer_or_the_generation_names(folder, base, tmp_path, where):
    """And a folder says of itself, unloaded, what its model says."""
    model, _ = load_model(str(folder if where == "tokenizer" else base))
    tokenizer = load_tokenizer(str(folder if where == "generation" else base))
    mixed = save_model(model, tokenizer, tmp_path / "mixed")
    assert ends_in(str(mixed)) == ends_of(*load_model(str(mixed))[::-1])
    student = ends_of(*load_model(str(folder))[::-1])
    assert foreign(student, ends_in(str(mixed))) == ({END} if where == "both" else set())


def test_without_a_generation_config_a_folder_has_the_ends_of_its_config(folder, tmp_path):
    model, tokenizer = load_model(str(folder))
    bare = save_model(model, tokenizer, tmp_path / "bare")
    (bare / "generation_config.json").unlink()
    assert ends_in(str(bare)) == ends_of(*load_model(str(bare))[::-1]) == {END}


def test_what_is_not_known_leaves_nothing_out():
    assert foreign(frozenset({1, 2}), frozenset({2, 3})) == {1}
    assert foreign(frozenset({1, 2}), frozenset()) == ends_in("/nowhere") == ends_in("") == set()


def test_a_server_that_names_no_folder_of_this_machine_is_taken_at_its_word(folder, base):
    model, tokenizer = load_model(str(folder))
    learner, how = learner_of(model), {"steps": 1}
    for root, unscored in ((str(base), {END}), ("some/name", set()), ("", set())):
        served = StandIn(*load_model(str(base)), Served(max_logprobs=64, root=root))
        with serving(served) as url:
            tutor = tutor_for(recipe("opd"), learner, tokenizer, None, teacher=url, **how)
            tutor.close()
        assert tutor.teacher.unscored == unscored
