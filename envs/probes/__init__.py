"""The laws that every environment must keep, one function each; `check_env` runs them all.

A law returns what it looked at, or raises `Broken` with what failed, why, and how to mend it, or
`Skipped` with why it does not apply.
"""

from __future__ import annotations

from collections.abc import Callable

from turnwise.envs.playing import Subject
from turnwise.envs.probes.actions import every_format_is_answered, malformed_actions_are_answered
from turnwise.envs.probes.adversary import (
    no_reward_for_claims,
    no_reward_for_hedging,
    no_reward_for_repetition,
    no_reward_for_size_or_script,
    no_reward_for_spam,
    no_reward_without_trying,
)
from turnwise.envs.probes.contract import (
    closes_twice,
    episodes_end,
    fast_is_fast,
    gymnasium_accepts,
    info_is_complete,
    splits_are_disjoint,
    tasks_survive_json,
)
from turnwise.envs.probes.isolation import (
    a_crash_stays_inside,
    a_hang_stays_inside,
    isolated_across_threads,
    isolated_from_other_environments,
)
from turnwise.envs.probes.leaks import nothing_is_left_behind
from turnwise.envs.probes.randomness import (
    global_randomness_untouched,
    groups_start_alike,
    same_in_another_process,
    seeds_are_honoured,
    seeds_differ,
)
from turnwise.envs.probes.rewards import (
    expert_is_accepted,
    graders_are_steady,
    rewards_stay_in_range,
)
from turnwise.envs.probes.snapshots import snapshots_restore

Law = Callable[[Subject], str]

LAWS: tuple[Law, ...] = (
    gymnasium_accepts,
    info_is_complete,
    seeds_are_honoured,
    seeds_differ,
    groups_start_alike,
    same_in_another_process,
    isolated_from_other_environments,
    isolated_across_threads,
    global_randomness_untouched,
    malformed_actions_are_answered,
    every_format_is_answered,
    episodes_end,
    a_crash_stays_inside,
    a_hang_stays_inside,
    rewards_stay_in_range,
    expert_is_accepted,
    graders_are_steady,
    no_reward_without_trying,
    splits_are_disjoint,
    tasks_survive_json,
    snapshots_restore,
    closes_twice,
    nothing_is_left_behind,
    fast_is_fast,
)
"""In the order in which they are reported."""

ADVERSARY: tuple[Law, ...] = (
    no_reward_for_hedging,
    no_reward_for_repetition,
    no_reward_for_size_or_script,
    no_reward_for_claims,
    no_reward_for_spam,
)
"""Of `check_env(..., adversary=True)`, besides."""


COMPARES_EPISODES = frozenset(
    {
        *(groups_start_alike, same_in_another_process, graders_are_steady, snapshots_restore),
        *(isolated_from_other_environments, isolated_across_threads),
        *(a_crash_stays_inside, a_hang_stays_inside),
    }
)
"""They say nothing where even the same seed gives other episodes."""


def name_of(law: Law) -> str:
    """Return the law's name as reports show it."""
    return law.__name__.replace("_", " ")
