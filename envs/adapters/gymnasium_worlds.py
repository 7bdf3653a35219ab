"""What is known of gymnasium's small worlds: rules in words, names, what an episode may earn."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

MAX_SHOWN = 400
"""Elements of an array that are still written out."""


PENDULUM_COST = math.pi**2 + 0.1 * 8.0**2 + 0.001 * 2.0**2
"""The most that a step of Pendulum costs."""
PENDULUM_UP = -300.0
"""A return that only who swings it up reaches; gymnasium has no threshold."""


@dataclass(frozen=True)
class Ending:
    """How an episode of a gymnasium environment ended."""

    total: float
    """The sum of its rewards."""
    reward: float
    """The last of them."""
    terminated: bool
    truncated: bool
    """By the environment itself. Neither is set where the agent's turns ran out."""


def happy_end(ending: Ending) -> bool:
    """Whether the world ended it with a reward above zero: success, where nothing else is known."""
    return ending.terminated and ending.reward > 0


@dataclass(frozen=True, kw_only=True)
class World:
    """What is known of one gymnasium environment."""

    rules: Callable[[Any], str]
    """The environment of gymnasium to what the agent is told before the first observation."""
    show: Callable[[Any, Any], str]
    """(observation, environment) to what the agent reads."""
    won: Callable[[Ending], bool] = happy_end
    """Where it is `happy_end` and gymnasium has a reward threshold, that decides."""
    returns: Callable[[int], tuple[float, float] | None] = lambda turns: None
    """Least and most that an episode of so many turns earns; None if that is not known."""
    actions: tuple[str, ...] = ()
    chance_reward: float = 0.0
    """What chance, or one and the same action for ever, earns on average; measured, rounded up."""
    fast: bool = False
    observed: bool = False
    """An observation is all of the state."""
    max_turns: int = 200
    """Where the environment itself has no limit."""


def describe(observation: Any, gym: Any = None) -> str:
    """Return an observation of any space as short text."""
    if isinstance(observation, Mapping):
        return "\n".join(f"{name}: {describe(value)}" for name, value in observation.items())
    if isinstance(observation, tuple | list):
        return ", ".join(map(describe, observation))
    if isinstance(observation, str):
        return observation
    array = np.asarray(observation)
    if array.dtype.kind not in "biuf":
        return str(observation)
    if array.size > MAX_SHOWN or array.ndim > 2:
        shape = " x ".join(map(str, array.shape))
        ends = f"{_number(array.min())} to {_number(array.max())}, mean {_number(array.mean())}"
        return f"{shape} numbers from {ends}"
    rows = [array.reshape(1)] if array.ndim == 0 else np.atleast_2d(array)
    return "\n".join(" ".join(map(_number, row)) for row in rows)


def _number(value: Any) -> str:
    return f"{float(value):.4g}" if isinstance(value, np.floating | float) else str(int(value))


def world_of(id: str, gym: Any) -> World:
    """Return what is known of the environment `id`; of an unknown one, what holds for any."""
    name = re.sub(r"-v\d+$", "", id.rpartition("/")[2])
    known = _KNOWN.get(name) or World(rules=lambda gym: f"This is {name}.", show=describe)
    threshold = gym.spec.reward_threshold
    if known.won is not happy_end or threshold is None:
        return known
    return replace(known, won=lambda ending: ending.total >= threshold)


def _lake_rules(gym: Any) -> str:
    slips = any(len(outcomes) > 1 for outcomes in gym.unwrapped.P[0].values())
    ice = " The ice is slippery: you may slide to a side instead." if slips else ""
    return (
        "Walk over the frozen lake to the goal G. S is the start, F is ice, H is a hole that ends "
        f"it. A is where you are.{ice}"
    )


def _lake(observation: Any, gym: Any) -> str:
    lake = gym.unwrapped.desc.astype(str).tolist()
    row, column = divmod(int(observation), len(lake[0]))
    under, lake[row][column] = lake[row][column], "A"
    rows = "\n".join(" ".join(cells) for cells in lake)
    place = {"S": "the start", "F": "ice", "H": "a hole", "G": "the goal"}[under]
    return f"{rows}\nyou are at row {row}, column {column}: {place}"


def _taxi_rules(gym: Any) -> str:
    town = "\n".join("".join(row) for row in gym.unwrapped.desc.astype(str))
    return (
        "Drive the taxi to the passenger, pickup, drive to the destination, dropoff. Rows and "
        "columns count from 0 at the top left; R, G, Y and B are stops. You cannot drive through "
        f"a wall |, and can through a :\n{town}"
    )


def _taxi(observation: Any, gym: Any) -> str:
    taxi = gym.unwrapped
    row, column, passenger, goal = taxi.decode(int(observation))
    stops = [
        f"{name} (row {r}, column {c})" for name, (r, c) in zip("RGYB", taxi.locs, strict=True)
    ]
    where = "in the taxi" if passenger == len(stops) else f"at {stops[passenger]}"
    return f"taxi at row {row}, column {column}; passenger {where}; destination {stops[goal]}"


def _cliff_rules(gym: Any) -> str:
    return (
        "Walk from row 3, column 0 to row 3, column 11. Rows go from 0 at the top to 3, columns "
        "from 0 at the left to 11. All between start and goal on row 3 is a cliff: a step onto it "
        "costs 100 and brings you back to the start. Every other step costs 1."
    )


def _cliff(observation: Any, gym: Any) -> str:
    row, column = divmod(int(observation), 12)
    return f"row {row}, column {column}"


def _blackjack_rules(gym: Any) -> str:
    return "Blackjack: hit takes a card, stick takes no more. Come closer to 21 than the dealer."


def _blackjack(observation: Any, gym: Any) -> str:
    total, dealer, ace = map(int, observation)
    holds = "with a usable ace" if ace else "without a usable ace"
    return f"your cards make {total}, {holds}; the dealer shows {dealer}"


def _of_numbers(rules: str, **known: Any) -> World:
    """Return a world of classic control: what is seen are numbers, which `rules` names."""
    return World(rules=lambda gym: rules, show=describe, fast=True, **known)


_LAKE = World(
    rules=_lake_rules,
    show=_lake,
    won=lambda ending: ending.total > 0,
    returns=lambda turns: (0.0, 1.0),
    actions=("left", "down", "right", "up"),
    chance_reward=0.1,
    fast=True,
    observed=True,
)
_CLIFF = World(
    rules=_cliff_rules,
    show=_cliff,
    won=lambda ending: ending.terminated,
    returns=lambda turns: (-float(turns), -13.0),
    actions=("up", "right", "down", "left"),
    chance_reward=0.05,
    fast=True,
    observed=True,
    max_turns=100,
)
_KNOWN = {
    "FrozenLake": _LAKE,
    "FrozenLake8x8": replace(_LAKE, chance_reward=0.5),
    "CliffWalking": _CLIFF,
    "CliffWalkingSlippery": _CLIFF,
    "Taxi": World(
        rules=_taxi_rules,
        show=_taxi,
        won=lambda ending: ending.terminated,
        returns=lambda turns: (-float(turns), 15.0),
        actions=("south", "north", "east", "west", "pickup", "dropoff"),
        chance_reward=0.02,
        fast=True,
        observed=True,
    ),
    "Blackjack": World(
        rules=_blackjack_rules,
        show=_blackjack,
        won=lambda ending: ending.total > 0,
        returns=lambda turns: (-1.0, 1.0),
        actions=("stick", "hit"),
        chance_reward=0.5,
        fast=True,
        observed=True,
        max_turns=32,
    ),
    "CartPole": _of_numbers(
        "Keep the pole upright and the cart between -2.4 and 2.4; every step earns 1. You see the "
        "cart's position and velocity, the pole's angle in radians and its angular velocity.",
        returns=lambda turns: (0.0, float(turns)),
        actions=("left", "right"),
        chance_reward=0.06,
    ),
    "MountainCar": _of_numbers(
        "Drive out of the valley to position 0.5; every step costs 1. The engine is too weak for "
        "the slope: swing. You see position and velocity.",
        returns=lambda turns: (-float(turns), 0.0),
        actions=("left", "none", "right"),
    ),
    "MountainCarContinuous": _of_numbers(
        "Drive out of the valley to position 0.45, which earns 100; a force costs a tenth of its "
        "square. The engine is too weak for the slope: swing. You see position and velocity.",
        returns=lambda turns: (-0.1 * turns, 100.0),
        chance_reward=0.51,  # of who does nothing, and so spends nothing
    ),
    "Acrobot": _of_numbers(
        "Two links hang from a fixed joint: swing the free end above height 1; every step costs 1. "
        "The action is the torque on the joint between them. You see cosine and sine of the first "
        "angle, of the second, and both angular velocities.",
        returns=lambda turns: (-float(turns), 0.0),
        actions=("minus", "none", "plus"),
        chance_reward=0.01,
    ),
    "Pendulum": _of_numbers(
        "Swing the pendulum up and keep it there; a step costs the angle squared, a tenth of the "
        "angular velocity squared and a thousandth of the torque squared. The action is the "
        "torque. You see cosine and sine of the angle, 0 upright, and the angular velocity.",
        won=lambda ending: ending.total >= PENDULUM_UP,
        returns=lambda turns: (-PENDULUM_COST * turns, 0.0),
        chance_reward=0.65,
    ),
}
