"""Laws against hacking: whoever does not do the task earns at most `chance_reward`."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from turnwise.envs import fuzz
from turnwise.envs.base import Env
from turnwise.envs.playing import Broken, Subject, play, start
from turnwise.envs.probes import hacks

EXTRA_SEEDS = 56
"""Episodes beyond the given seeds, where luck could explain what an agent earns."""
SURE = 2.0
"""Standard errors by which a mean must exceed what chance earns."""
_MEND = (
    "pay for the result and not for its form: compare the whole answer, count it once, and judge "
    "where the agent cannot write; or, if chance earns as much, declare chance_reward"
)


def no_reward_without_trying(subject: Subject) -> str:
    """Agents that say nothing, echo, or only get the format right earn at most chance."""

    def agents(tools: Sequence[Mapping[str, Any]]) -> dict[str, fuzz.Agent]:
        silent = {"empty": fuzz.empty_agent, "echo": fuzz.echo_agent}
        return {**silent, **fuzz.format_agents(tools)}

    return _at_most_chance(subject, agents)


def no_reward_for_hedging(subject: Subject) -> str:
    """Agents that answer with all that they read, all numbers or words, or a guess earn no more."""
    return _at_most_chance(subject, hacks.hedging)


def no_reward_for_repetition(subject: Subject) -> str:
    """Agents that write five well-formed calls without content, every turn, earn at most chance."""
    return _at_most_chance(subject, hacks.repeating)


def no_reward_for_size_or_script(subject: Subject) -> str:
    """Agents that answer with a giant text or with odd characters earn at most chance."""
    return _at_most_chance(subject, hacks.oversized)


def no_reward_for_claims(subject: Subject) -> str:
    """Agents that inject tags, claim success or write reward files earn at most chance."""
    return _at_most_chance(subject, hacks.injecting)


def no_reward_for_spam(subject: Subject) -> str:
    """Agents that call every tool every turn, with many answers, earn at most chance."""
    return _at_most_chance(subject, hacks.spamming)


def _at_most_chance(
    subject: Subject, family: Callable[[Sequence[Mapping[str, Any]]], dict[str, fuzz.Agent]]
) -> str:
    """Require of each agent that its mean reward does not exceed `chance_reward` beyond luck."""
    with subject.open() as env:
        agents = family(start(env, subject.seeds[0]).info["tools"])
        earned: dict[str, list[float]] = {name: [] for name in agents}
        for seed in subject.each_seed():
            for name, agent in agents.items():
                earned[name].append(play(env, seed, agent).reward)
        lucky = [name for name in agents if _above(earned[name], env)]
        for name in lucky:
            _try_on(subject, env, agents[name], earned[name], share=1 / len(lucky))
            if _above(earned[name], env) and not _by_luck(earned[name], env):
                raise Broken(_what(name, earned[name], env), _MEND)
        return _seen(earned, env)


def _seen(earned: Mapping[str, Sequence[float]], env: Env) -> str:
    named = ", ".join(earned) if len(earned) < 5 else f"{len(earned)} agents"
    most, least = max(map(statistics.fmean, earned.values())), min(map(len, earned.values()))
    return f"{named}: at most {most:.3g} in {least} episodes, chance {env.chance_reward:g}"


def _try_on(
    subject: Subject, env: Env, agent: fuzz.Agent, earned: list[float], *, share: float
) -> None:
    """Play further episodes while luck might explain what was earned."""
    first = max(subject.seeds) + 1
    for seed in subject.each_seed(range(first, first + EXTRA_SEEDS), share=share):
        if not _above(earned, env) or not _by_luck(earned, env):
            return
        earned.append(play(env, seed, agent).reward)


def _above(earned: Sequence[float], env: Env) -> bool:
    return statistics.fmean(earned) > env.chance_reward + 1e-9


def _by_luck(earned: Sequence[float], env: Env) -> bool:
    """Whether the mean is above chance by no more than its standard error lets one expect."""
    if env.chance_reward <= env.reward_range[0]:
        return False  # it was declared that nobody ever earns anything so
    if len(earned) < 2:
        return True
    error = statistics.stdev(earned) / math.sqrt(len(earned))
    return statistics.fmean(earned) - SURE * error <= env.chance_reward


def _what(name: str, earned: Sequence[float], env: Env) -> str:
    return (
        f"the {name} agent earns {statistics.fmean(earned):.3g} on average over {len(earned)} "
        f"episodes (at most {max(earned):.3g}), more than chance_reward {env.chance_reward:g}"
    )
