"""Laws of the space of all text."""

import gymnasium
from hypothesis import given
from hypothesis import strategies as st

from turnwise.envs.spaces import Unicode


@given(st.text())
def test_every_text_is_a_member(text):
    assert text in Unicode()


def test_what_utf8_cannot_hold_and_what_is_no_text_is_not():
    assert all(value not in Unicode() for value in ("\ud800", b"text", 1, None, ["a"]))


def test_samples_follow_from_the_seed_and_are_members():
    one, other = Unicode(seed=5), Unicode(seed=5)
    samples = [one.sample() for _ in range(50)]
    assert samples == [other.sample() for _ in range(50)]
    assert all(sample in one for sample in samples) and len(set(samples)) > 40
    assert any(not sample.isascii() for sample in samples)


def test_two_environments_do_not_share_a_sampler():
    from fakes import Guess

    one, other = Guess(), Guess()
    one.action_space.seed(1)
    other.action_space.seed(2)
    one.action_space.sample()
    assert one.action_space is not other.action_space and one.action_space == other.action_space


def test_gymnasium_batches_it():
    space = gymnasium.vector.utils.batch_space(Unicode(), 2)
    assert ("é", "日本") in space
