"""Logits a few tokens at a time are the same loss and the same gradient, in less memory."""

from __future__ import annotations

import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from miniatures import VOCAB, qwen3
from ragged import episodes, relative_gap
from torch.utils._python_dispatch import TorchDispatchMode

from turnwise.trainers.batch import rows_of
from turnwise.trainers.divergences import full, jsd, top_k
from turnwise.trainers.learner import Learner
from turnwise.trainers.model_teacher import frozen
from turnwise.trainers.precision import bf16, fp32
from turnwise.trainers.recipes import recipe
from turnwise.trainers.several import Several
from turnwise.trainers.teaching import score
from turnwise.trainers.vocabulary import by_parts

torch.set_num_threads(1)
VIEWS = ("t", "transpose", "detach", "view", "_unsafe_view", "slice", "alias", "expand")


class Widest(TorchDispatchMode):
    """Watches the most rows of a tensor that has a column for every word."""

    def __init__(self, *words):
        super().__init__()
        self.words, self.rows = words, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for made in out if isinstance(out, tuple | list) else [out]:
            wide = isinstance(made, torch.Tensor) and made.dim() and made.shape[-1] in self.words
            if wide and func.overloadpacket.__name__ not in VIEWS:
                self.rows = max(self.rows, made.numel() // made.shape[-1])
        return out


def stepped(method, at_once, teacher=None, show=False):
    """Metrics and gradient of one step that holds so many logits at once."""
    learner = Learner(qwen3(), learning_rate=1e-3, max_len=256)
    learner.scorer.logits_at_once = at_once
    seen = {}

    def look(loss):
        seen.update({n: p.grad.clone() for n, p in learner.model.named_parameters()})
        return {}

    learner._apply = look
    rows = [replace(row, direct=[0.5] * len(row.trained)) for row in rows_of(episodes())]
    if show:
        direct = method.distillation.direct
        return learner.imitate(rows, direct=direct, teacher=teacher), seen
    advantages = torch.randn(200, generator=torch.Generator().manual_seed(0)).double().numpy()
    return learner.improve(rows, advantages, method, teacher), seen


def direct(loss):
    method = recipe("gkd")
    return replace(method, distillation=replace(method.distillation, direct=loss, signal=None))


METHODS = {
    "reinforcement": recipe("turn_rloo"),
    "whole vocabulary": direct(full(jsd(0.5))),
    "top tokens": direct(top_k(k=8)),
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("at_once", [89, 89 * 7])
def test_parts_add_up_to_the_step_of_the_whole(name, at_once):
    teacher = frozen(qwen3(1), 256) if METHODS[name].distillation else None
    for show in (False, True) if teacher else (False,):
        whole, gradient = stepped(METHODS[name], 10**9, teacher, show)
        parts, found = stepped(METHODS[name], at_once, teacher, show)
        assert whole.keys() == parts.keys() and float(whole["loss"]) != 0
        for key, value in whole.items():
            assert parts[key] == pytest.approx(value, rel=1e-5, abs=1e-5), key
        assert relative_gap(found, gradient) < 1e-5


def expert(row):
    return {0: 0, 1: None}.get(row.traj % 3, 1)


TEACHERS = {
    "a model": lambda: frozen(qwen3(1), 256),
    "of more words": lambda: frozen(qwen3(1, vocab=VOCAB + 8), 256),
    "with few positions": lambda: frozen(qwen3(1, max_len=64), 64),
    "several": lambda: Several([frozen(qwen3(1), 256), frozen(qwen3(2), 256)], expert),
}
COLUMNS = {
    "the token": (),
    "in two contexts": ("against",),
    "the likeliest": ("top",),
    "all": ("top", "reverse_kl", "entropy", "overlap", "against"),
}


def told(rows):
    """Two of three rows with a hint, which makes the longest of them longer than 64 ids."""
    hint = tuple(range(1, 21))
    return [replace(row, hint=hint, hint_at=2) if i % 3 else row for i, row in enumerate(rows)]


@pytest.mark.parametrize("name", TEACHERS)
@pytest.mark.parametrize("needs", COLUMNS)
def test_a_teachers_scores_are_the_same_by_parts_and_no_more_are_made_at_once(name, needs):
    teacher, learner = TEACHERS[name](), Learner(qwen3(), learning_rate=1e-3, max_len=256)
    rows = told(rows_of(episodes()))
    whole = score(rows, learner, teacher, COLUMNS[needs])
    learner.scorer.logits_at_once = VOCAB * 7
    with Widest(VOCAB, VOCAB + 8) as widest:
        parts = score(rows, learner, teacher, COLUMNS[needs])
    assert whole.keys() == parts.keys() and len(whole["teacher_M"]) > 7
    for column, values in whole.items():
        np.testing.assert_allclose(parts[column], values, rtol=1e-5, atol=1e-5)
    missing = np.isnan(whole["teacher_M"]).mean()
    assert 0 < missing < 1 if name in ("with few positions", "several") else missing == 0
    assert widest.rows == 7


class Whole:
    """A teacher that scores all at once."""

    def __init__(self, teacher):
        self.logprobs = teacher.logprobs


def test_a_teacher_that_scores_all_at_once_is_taken_too():
    teacher = Whole(frozen(qwen3(1), 256))
    whole, gradient = stepped(METHODS["whole vocabulary"], 10**9, teacher)
    parts, found = stepped(METHODS["whole vocabulary"], 89 * 5, teacher)
    assert parts["direct_loss"] == pytest.approx(whole["direct_loss"], rel=1e-5)
    assert relative_gap(found, gradient) < 1e-5


def test_a_teacher_is_not_rounded_to_the_precision_of_its_student():
    rows = rows_of(episodes())
    found = []
    for precision in (fp32, bf16):
        learner = Learner(qwen3(), learning_rate=1e-3, max_len=256, precision=precision)
        found.append(score(rows, learner, frozen(qwen3(1), 256), ("entropy",)))
    np.testing.assert_array_equal(found[0]["teacher_M"], found[1]["teacher_M"])
    assert np.abs(found[0]["entropy_M"] - found[1]["entropy_M"]).max() > 1e-4


def test_no_more_logits_are_made_than_may_be_there_at_once():
    made = []

    def head(hidden):
        made.append(len(hidden))
        return hidden @ torch.ones(4, 11)

    hidden = torch.ones(10, 4, requires_grad=True)
    (sums,) = by_parts(head, hidden, lambda logits, part: (logits.sum(-1),), rows=3)
    assert made == [3, 3, 3, 1]
    sums.sum().backward()
    assert sorted(made) == sorted([3, 3, 3, 1] * 2), "and again in the backward pass"
    assert torch.equal(hidden.grad, torch.full((10, 4), 11.0))


def test_the_benchmark_fails_above_half_the_memory_and_on_another_loss():
    place = Path(__file__).parents[1] / "benchmarks/large_vocabulary.py"
    is_held = runpy.run_path(str(place))["is_held"]
    whole = {"loss": 1.0, "grad_norm": 2.0, "peak_mib": 100.0}
    assert is_held(whole, whole | {"peak_mib": 50.0})
    assert not is_held(whole, whole | {"peak_mib": 51.0})
    assert not is_held(whole, whole | {"peak_mib": 50.0, "loss": 1.1})
