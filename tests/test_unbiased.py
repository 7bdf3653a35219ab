"""Exact policy gradients: every group of attempts at two small worlds, weighed by its probability.

`STOPPING`: three turns, at each the policy stops or goes on; turn rewards are shaped. An earlier
study reported the estimators on such a world but not its rewards; ours were chosen to come close,
and its values stand beside ours as `study`.
`ROOMS`: two rooms that can be revisited, so that anchors and histories form groups of their own.
No sampling anywhere, hence tolerances of 1e-9.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from turnwise.envs.types import Episode, Group, Segment, Task, Turn
from turnwise.trainers.advantages import (
    Baseline,
    Credit,
    Level,
    TurnTable,
    by_levels,
    group_by,
    leave_one_out,
    mean,
    nonzero,
    summed,
    turn_table,
    unscaled,
)
from turnwise.trainers.objective import TokenBatch, objective
from turnwise.trainers.recipe import no_credit
from turnwise.trainers.recipes import recipe, recipes
from turnwise.trainers.recipes.gigpo import gigpo
from turnwise.trainers.recipes.hgpo import hgpo
from turnwise.trainers.recipes.turn_rloo import turn_rloo
from turnwise.trainers.turns import anchor, history, outcome, reward_to_go, turn

# The worlds


@dataclass(frozen=True, eq=False)
class Path:
    """One possible episode: its probability, and d log pi / d logits of its turns [T, P]."""

    probability: float
    score_TP: np.ndarray
    episode: Episode


@dataclass(frozen=True)
class World:
    """Logits by state [S, A]; `play(states, action)` -> (reward, next state or None at the end)."""

    logits_SA: tuple[tuple[float, ...], ...]
    play: Callable[[tuple[int, ...], int], tuple[float, int | None]]

    def probabilities(self) -> np.ndarray:
        weight_SA = np.exp(np.array(self.logits_SA))
        return weight_SA / weight_SA.sum(1, keepdims=True)


def paths(world: World, states: tuple[int, ...] = (0,), actions=(), rewards=()) -> Iterator[Path]:
    """Every episode that goes on from `states` and `actions`."""
    for action in range(len(world.logits_SA[0])):
        reward, following = world.play(states, action)
        taken, earned = (*actions, action), (*rewards, reward)
        if following is None:
            yield path(world, states, taken, earned)
        else:
            yield from paths(world, (*states, following), taken, earned)


def path(world: World, states, actions, rewards) -> Path:
    pi_SA = world.probabilities()
    score_TSA = np.zeros((len(states), *pi_SA.shape))
    for t, (state, action) in enumerate(zip(states, actions, strict=True)):
        score_TSA[t, state] = -pi_SA[state]
        score_TSA[t, state, action] += 1
    turns = tuple(
        Turn(action_ids=(s * 10 + a,), logprobs=(0.0,), reward=r, state_before=f"room{s}")
        for s, a, r in zip(states, actions, rewards, strict=True)
    )
    episode = Episode(id="path", env_id="toy", task=Task(), segments=(Segment(turns=turns),))
    probability = float(np.prod([pi_SA[s, a] for s, a in zip(states, actions, strict=True)]))
    return Path(probability, score_TSA.reshape(len(states), -1), episode)


STOP_REWARD, GO_REWARD = (0.4, 0.8, 0.7), (0.2, 0.0, 1.9)


def stopping(states: tuple[int, ...], action: int) -> tuple[float, int | None]:
    t = len(states) - 1
    return (GO_REWARD if action else STOP_REWARD)[t], t + 1 if action and t < 2 else None


def rooms(states: tuple[int, ...], action: int) -> tuple[float, int | None]:
    """Stop, stay or change rooms; stopping pays in room 1, and more for who began by staying."""
    here, t = states[-1], len(states) - 1
    if action == 0 or t == 2:
        return 0.3 + 0.9 * here * (action == 0) + 0.5 * (states[:2] == (0, 0)), None
    return (0.25, -0.1)[action - 1] * (1 + here), here if action == 1 else 1 - here


def logit(p: float) -> float:
    return float(np.log(p / (1 - p)))


STOPPING = World(tuple((0.0, logit(p)) for p in (0.75, 0.2, 0.8)), stopping)
ROOMS = World(((0.1, 0.4, 0.7), (-0.3, 0.2, 0.5)), rooms)


@functools.cache
def groups_of(world: World, size: int) -> tuple[np.ndarray, TurnTable, np.ndarray]:
    """Probabilities [C] of all ordered groups, their turns [N], and the scores of these [N, P]."""
    found = tuple(paths(world))
    combinations = list(itertools.product(found, repeat=size))
    probability_C = np.array([np.prod([p.probability for p in c]) for c in combinations])
    table = turn_table(
        [Group(task=Task(), episodes=tuple(p.episode for p in c)) for c in combinations]
    )
    return probability_C, table, np.concatenate([p.score_TP for c in combinations for p in c])


def estimate(world: World, size: int, credit: Credit) -> tuple[np.ndarray, float]:
    """E[1/N sum_i sum_t A_it d log pi_it] [P], and half the total variance of that estimate.

    Half, because the scores of two actions are opposite and count the one free logit twice.
    """
    probability_C, table, score_NP = groups_of(world, size)
    terms_NP = credit(table)[:, None] * score_NP / size
    gradient_CP = np.stack([np.bincount(table.group_N, column) for column in terms_NP.T], 1)
    mean_P = probability_C @ gradient_CP
    variance = probability_C @ (gradient_CP**2).sum(1) - mean_P @ mean_P
    return mean_P, float(variance) / 2


@functools.cache
def truth(world: World) -> np.ndarray:
    """dJ/d logits [P] = sum over episodes of P(episode) R d log P(episode)."""
    return sum(p.probability * p.episode.reward * p.score_TP.sum(0) for p in paths(world))


def ratio(world: World, size: int, credit: Credit) -> float:
    """The estimate's component along the true gradient, in units of that gradient."""
    true_P = truth(world)
    return float(estimate(world, size, credit)[0] @ true_P / (true_P @ true_P))


def assert_unbiased(world: World, size: int, credit: Credit) -> None:
    np.testing.assert_allclose(estimate(world, size, credit)[0], truth(world), atol=1e-9)


def assert_crooked(world: World, size: int, credit: Credit) -> None:
    """Biased, and not by a common factor either, which a learning rate could absorb."""
    estimated_P, true_P = estimate(world, size, credit)[0], truth(world)
    residual_P = estimated_P - ratio(world, size, credit) * true_P
    assert np.linalg.norm(residual_P) > 1e-3 * np.linalg.norm(true_P)


# The estimators

TO_GO = reward_to_go(1.0)
LOO = by_levels(Level(returns=outcome, once=True))
TASK, ALIVE = Level(returns=outcome, once=True), Level(returns=TO_GO, keys=turn)


def alive_or_raw(table: TurnTable) -> np.ndarray:
    """Return-to-go less the others alive at the turn; the raw return where there is none."""
    present_N = group_by(table, turn(table)).present_N
    return np.where(present_N, by_levels(ALIVE)(table), TO_GO(table))


def finished_count_as_zero(size: int) -> Credit:
    def credit(table: TurnTable) -> np.ndarray:
        total_N = np.bincount(turn(table), TO_GO(table))[turn(table)]
        return TO_GO(table) - (total_N - TO_GO(table)) / (size - 1)

    return credit


def half_and_half(table: TurnTable) -> np.ndarray:
    return (LOO(table) + alive_or_raw(table)) / 2


def immediate(baseline: Baseline) -> Credit:
    """Centre each turn's own reward among the turns of its index, and only then sum to go."""
    centred = by_levels(Level(returns=lambda t: t.reward_N, keys=turn, baseline=baseline))
    return lambda table: TO_GO(replace(table, reward_N=centred(table)))


# The worlds are what they claim to be


@pytest.mark.parametrize("world", [STOPPING, ROOMS], ids=["stopping", "rooms"])
def test_the_true_gradient_is_the_derivative_of_the_expected_return(world):
    def value(logits):
        shifted = replace(world, logits_SA=tuple(map(tuple, logits)))
        return sum(p.probability * p.episode.reward for p in paths(shifted))

    logits_SA = np.array(world.logits_SA)
    steps = 1e-6 * np.eye(logits_SA.size).reshape(-1, *logits_SA.shape)
    slopes = [(value(logits_SA + h) - value(logits_SA - h)) / 2e-6 for h in steps]
    np.testing.assert_allclose(slopes, truth(world), atol=1e-8)
    assert sum(p.probability for p in paths(world)) == pytest.approx(1.0, abs=1e-12)


# Which baseline is unbiased?


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize(
    "make",
    [
        lambda n: TO_GO,
        lambda n: LOO,
        lambda n: alive_or_raw,
        finished_count_as_zero,
        lambda n: half_and_half,
        lambda n: by_levels(TASK, ALIVE),
    ],
    ids=["to_go", "rloo", "alive", "finished_zero", "half", "renormalised"],
)
def test_baselines_from_other_trajectories_alone_are_unbiased(make, size):
    assert_unbiased(STOPPING, size, make(size))


def test_their_variances_are_ordered_as_in_the_study():
    """Four attempts. Study: .1056, .0448, .0418, .0406, .0397; renormalised .0392."""
    credits = [TO_GO, finished_count_as_zero(4), LOO, alive_or_raw, half_and_half]
    variances = [estimate(STOPPING, 4, credit)[1] for credit in credits]
    assert variances == sorted(variances, reverse=True)
    np.testing.assert_allclose(variances, [0.0977, 0.0468, 0.0409, 0.0404, 0.0393], atol=5e-5)
    renormalised = estimate(STOPPING, 4, by_levels(TASK, ALIVE))[1]
    assert renormalised == pytest.approx(0.0381, abs=5e-5)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_grpos_mean_shrinks_the_gradient_by_exactly_one_attempt(size):
    credit = by_levels(Level(returns=outcome, baseline=mean, once=True))
    estimated_P = estimate(STOPPING, size, credit)[0]
    np.testing.assert_allclose(estimated_P, (size - 1) / size * truth(STOPPING), atol=1e-9)


@pytest.mark.parametrize(
    ("credit", "ours", "study"),
    [
        (by_levels(replace(ALIVE, baseline=mean)), (0.6191, 0.7091), (0.621, 0.712)),
        (by_levels(Level(returns=outcome, baseline=mean)), (0.6724, 0.7557), (0.670, 0.758)),
        (immediate(mean), (-0.2798, -0.3244), (-0.283, -0.335)),
    ],
    ids=["alive_mean_with_self", "length_weighted", "immediate"],
)
def test_baselines_with_the_own_trajectory_are_biased_and_not_by_a_factor(credit, ours, study):
    got = [ratio(STOPPING, size, credit) for size in (3, 4)]
    np.testing.assert_allclose(got, ours, atol=5e-5)
    np.testing.assert_allclose(got, study, atol=0.012)
    assert_crooked(STOPPING, 4, credit)


@pytest.mark.parametrize("baseline", [mean, leave_one_out])
@pytest.mark.parametrize("size", [2, 3, 4])
def test_normalising_immediate_rewards_by_turn_index_flips_the_sign(baseline, size):
    """Each further turn costs its expected reward, so the agent is taught to stop early."""
    assert ratio(STOPPING, size, immediate(baseline)) < -0.1


# Which way of combining levels is unbiased?


@pytest.mark.parametrize(
    ("credit", "ours", "study"),
    [
        (by_levels(TASK, ALIVE, combine=summed), (1.8962, 1.9792), (1.902, 1.984)),
        (by_levels(ALIVE), (0.8962, 0.9792), (0.902, 0.984)),
    ],
    ids=["gigpo_sum", "turn_level_alone"],
)
def test_a_level_that_is_sometimes_absent_weighs_turns_unequally(credit, ours, study):
    got = [ratio(STOPPING, size, credit) for size in (2, 4)]
    np.testing.assert_allclose(got, ours, atol=5e-5)
    np.testing.assert_allclose(got, study, atol=0.006)
    for size in (2, 4):
        assert_crooked(STOPPING, size, credit)


def test_renormalising_over_nonzero_advantages_is_biased():
    """HGPO as released: whether a level counts depends on the own return. Study: 1.000, 1.009."""
    credit = by_levels(TASK, ALIVE, combine=nonzero)
    estimated_P = estimate(STOPPING, 4, credit)[0]
    assert np.linalg.norm(estimated_P - truth(STOPPING)) > 1e-3 * np.linalg.norm(truth(STOPPING))
    assert_unbiased(STOPPING, 4, by_levels(TASK, ALIVE))


# Recipes


@pytest.mark.parametrize(("world", "size"), [(STOPPING, 2), (STOPPING, 4), (ROOMS, 2), (ROOMS, 3)])
@pytest.mark.parametrize("name", ["turn_rloo", "rloo", "mt_grpo"])
def test_the_recipes_with_baselines_from_others_are_unbiased(name, world, size):
    assert_unbiased(world, size, recipe(name).credit)


@pytest.mark.parametrize("options", [{"history_turns": 0}, {"history_turns": 1, "alpha": 3.0}])
def test_turn_rloo_is_unbiased_whatever_its_levels_weigh(options):
    assert_unbiased(ROOMS, 3, turn_rloo(**options).credit)


def test_the_rooms_have_revisits_and_absent_levels():
    """Else the law above would say nothing about them."""
    _, table, _ = groups_of(ROOMS, 3)
    anchors, pasts = group_by(table, anchor(table)), group_by(table, history(1)(table))
    assert len(np.unique(anchors.cell_N)) < len(table)
    for g in (anchors, pasts):
        assert 0 < g.present_N.sum() < len(table)


@pytest.mark.parametrize("baseline", [leave_one_out, mean])
def test_only_excluding_the_whole_trajectory_survives_revisits(baseline):
    rooms = Level(returns=TO_GO, keys=anchor, baseline=baseline)
    estimated_P = estimate(ROOMS, 3, by_levels(TASK, rooms))[0]
    error = np.linalg.norm(estimated_P - truth(ROOMS)) / np.linalg.norm(truth(ROOMS))
    assert error < 1e-9 if baseline is leave_one_out else error > 0.05


@pytest.mark.parametrize(
    "credit",
    [
        gigpo(gamma=1.0, scale=unscaled).credit,
        gigpo(gamma=1.0, scale=unscaled, length_weighted=True).credit,
        gigpo().credit,
        hgpo(gamma=1.0).credit,
        hgpo(gamma=1.0, renormalise=nonzero, floor=0.0).credit,
    ],
    ids=["gigpo_mean_norm", "gigpo_length_weighted", "gigpo", "hgpo", "hgpo_released"],
)
def test_the_published_turn_methods_are_biased_beyond_a_factor(credit):
    for world in (STOPPING, ROOMS):
        assert_crooked(world, 3, credit)


def test_of_two_attempts_grpos_scale_leaves_only_which_was_better():
    """A_i = sign(R_i - R_j) / sqrt 2: the gradient of the odds to beat an attempt like it."""
    found = list(paths(STOPPING))
    expected_P = sum(
        p.probability * q.probability * np.sign(p.episode.reward - q.episode.reward)
        * p.score_TP.sum(0)
        for p, q in itertools.product(found, repeat=2)
    ) / np.sqrt(2)  # fmt: skip
    got_P = estimate(STOPPING, 2, recipe("grpo").credit)[0]
    np.testing.assert_allclose(got_P, expected_P, atol=1e-5)
    assert_crooked(STOPPING, 2, recipe("grpo").credit)


def batch_by_batch(world: World, size: int, credit: Credit) -> np.ndarray:
    """`estimate`, where every group is a batch of its own; of sums over turns, not means. [P]"""
    total_P = np.zeros(truth(world).size)
    for chosen in itertools.product(paths(world), repeat=size):
        table = turn_table([Group(task=Task(), episodes=tuple(p.episode for p in chosen))])
        score_NP = np.concatenate([p.score_TP for p in chosen])
        odds = np.prod([p.probability for p in chosen])
        total_P += odds * (credit(table)[:, None] * score_NP).sum(0) / size
    return total_P


def test_whitening_over_the_batch_bends_the_gradient_of_reinforce_pp():
    """Its mean and scale hold the own return; the return to go itself is unbiased."""
    np.testing.assert_allclose(batch_by_batch(STOPPING, 3, TO_GO), truth(STOPPING), atol=1e-9)
    true_P, got_P = truth(STOPPING), batch_by_batch(STOPPING, 3, recipe("reinforce_pp").credit)
    along = float(got_P @ true_P / (true_P @ true_P))
    assert np.linalg.norm(got_P - along * true_P) > 1e-3 * np.linalg.norm(true_P)


OTHERS = {"turn_rloo", "rloo", "mt_grpo", "opd_then_rl"}
"""Baselines from other trajectories alone: unbiased."""
SHRUNK = {"dr_grpo"}
"""The mean with the own return, without a scale: one attempt too few, and else exact."""
BENT = {"grpo", "dapo", "gspo", "cispo", "sod", "kdrl", "gigpo", "hgpo", "reinforce_pp"}
"""A scale, or a level, that holds the own return: biased beyond a factor."""
REWARDED = [found.name for found in recipes() if found.credit is not no_credit]


def test_every_recipe_with_a_reward_states_its_bias_and_only_one():
    """A new recipe has to say here which it is; the next law holds it to that."""
    assert sorted([*OTHERS, *SHRUNK, *BENT]) == sorted(REWARDED)


@pytest.mark.parametrize("name", [name for name in REWARDED if name != "reinforce_pp"])
def test_a_recipe_has_the_bias_that_is_stated_and_no_other(name):
    """REINFORCE++ whitens over a batch, so its law stands alone, above."""
    credit = recipe(name).credit
    for world in (STOPPING, ROOMS):
        if name in BENT:
            assert_crooked(world, 3, credit)
        else:
            share = 2 / 3 if name in SHRUNK else 1.0
            expected_P = share * truth(world)
            np.testing.assert_allclose(estimate(world, 3, credit)[0], expected_P, atol=1e-9)


def test_the_objective_descends_the_exact_gradient():
    """From groups through credit, tokens and loss to the logits: backward() is -dJ."""
    probability_C, table, _ = groups_of(ROOMS, 3)
    logits_SA = torch.tensor(ROOMS.logits_SA, dtype=torch.float64, requires_grad=True)
    action_ids = [
        turn.action_ids[0]
        for chosen in itertools.product(paths(ROOMS), repeat=3)
        for path in chosen
        for turn in path.episode.turns
    ]
    state_M, action_M = torch.tensor(action_ids) // 10, torch.tensor(action_ids) % 10
    logprobs_M = logits_SA.log_softmax(1)[state_M, action_M]
    method = recipe("turn_rloo")
    tokens = TokenBatch(
        old_M=logprobs_M.detach(),
        advantages_M=torch.from_numpy(method.credit(table)),
        weight_M=torch.from_numpy(probability_C[table.group_N] / 3),
        turn_M=torch.arange(len(table)),
        traj_M=torch.from_numpy(table.traj_N),
    )
    objective(logprobs_M, tokens, method)[0].backward()
    np.testing.assert_allclose(-logits_SA.grad.numpy().ravel(), truth(ROOMS), atol=1e-9)
