"""Laws of equal starts: a line between two checkpoints, and the search for a target on it."""

from dataclasses import replace

import pytest
import torch
from contests import MINI, SHAPE
from hypothesis import given, settings
from hypothesis import strategies as st

from turnwise.envs.builtin.corridor import Corridor
from turnwise.trainers.comparison import crossing
from turnwise.trainers.equal_start import TargetMissed, equal_start, interpolated

RELAXED = settings(deadline=None, max_examples=40)


# Equal starts


@RELAXED
@given(st.floats(0, 1))
def test_weights_between_two_checkpoints_lie_on_the_line_and_its_ends_are_exact(share):
    torch.manual_seed(0)
    one, other = ({"w": torch.randn(4)} for _ in range(2))
    between = interpolated(one, other, share)["w"]
    assert torch.allclose(between, one["w"] + share * (other["w"] - one["w"]), atol=1e-6)
    assert interpolated(one, other, 0.0)["w"] is one["w"]
    assert interpolated(one, other, 1.0)["w"] is other["w"]


@RELAXED
@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_where_a_line_meets_the_target_is_kept_between_its_ends(low, high, target):
    share = crossing(low, high, target)
    assert 0 <= share <= 1
    if min(low, high) < target < max(low, high):
        assert low + share * (high - low) == pytest.approx(target)


def test_a_target_that_is_not_reached_is_an_error_that_names_it():
    model, shown = _pupil()
    plan = replace(MINI.start, steps=5, target=0.9)
    with pytest.raises(TargetMissed, match=r"0\.9 was asked for"):
        equal_start(model, shown, lambda pupil: 0.0, plan, seed=0)


def test_the_search_for_the_target_ends_within_its_tolerance_where_progress_is_smooth():
    model, shown = _pupil()
    first = model.get_input_embeddings().weight.detach().clone()

    def moved(pupil):
        return float((pupil.get_input_embeddings().weight.detach() - first).norm())

    plan = replace(MINI.start, target=1.0, tolerance=0.01, halvings=20, check_below=99.0)
    found = equal_start(model, shown, moved, plan, seed=0)
    assert abs(found["progress"] - 1.0) <= 0.01 and found["progress"] == pytest.approx(moved(model))


def _pupil():
    from turnwise.agents.renderer import Renderer
    from turnwise.trainers.model import tiny_from_env
    from turnwise.trainers.sft import demonstrations

    model, tokenizer = tiny_from_env(Corridor, seed=0, separators=("", " "), **SHAPE)
    tasks = Corridor(**MINI.env).tasks("train")[:32]
    shown = demonstrations(lambda: Corridor(**MINI.env), tasks, Renderer(tokenizer), seed=0)
    return model, shown
