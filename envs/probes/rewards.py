"""Laws of pay: rewards are what they are declared to be, and the right answer earns them."""

from __future__ import annotations

from turnwise.envs import fuzz
from turnwise.envs.playing import Broken, Played, Skipped, Subject, play, repeat

ATTEMPTS = 5
"""So often a grader judges the same actions, where there is time; twice at least."""


def rewards_stay_in_range(subject: Subject) -> str:
    """Rewards are finite, add up from their parts, and their sum stays in `reward_range`."""
    totals = []
    with subject.open() as env:
        low, high = env.reward_range
        for seed in subject.each_seed():
            for agent in (None, *([fuzz.expert_agent] if hasattr(env, "expert") else [])):
                played = play(env, seed, agent)
                _refuse_judge_error(played)
                _adds_up(played)
                totals.append(played.reward)
    worst = max(totals, key=lambda total: max(low - total, total - high))
    if not low - 1e-9 <= worst <= high + 1e-9:
        raise Broken(
            f"an episode earned {worst:g}, outside reward_range [{low:g}, {high:g}]",
            "correct the reward or declare the range",
        )
    return f"{min(totals):g} to {max(totals):g} in {len(totals)} episodes"


def _refuse_judge_error(played: Played) -> None:
    if played.info.get("outcome") == "judge_error":
        raise Broken(
            f"the grader failed: {played.info.get('detail', '')}",
            "a @reward method must return a finite float in every state",
        )


def _adds_up(played: Played) -> None:
    for turn, row in enumerate(played.rows[1:], 1):
        if abs(sum(row["rewards"].values()) - row["reward"]) > 1e-9:
            raise Broken(
                f"turn {turn}: the parts {row['rewards']} do not add up to {row['reward']}",
                "put every part, with its weight, into info['rewards']",
            )


def expert_is_accepted(subject: Subject) -> str:
    """The grader accepts what the environment's own expert does."""
    count = 0
    with subject.open() as env:
        if not hasattr(env, "expert"):
            raise Skipped("no expert() is offered")
        for count, seed in enumerate(subject.each_seed(), 1):  # noqa: B007
            played = play(env, seed, fuzz.expert_agent)
            if not played.info.get("success"):
                raise Broken(
                    f"seed {seed}: the expert failed after {len(played.actions)} turns with "
                    f"reward {played.reward:g}; it last did {played.actions[-1][:60]!r} and read "
                    f"{played.rows[-1]['observation'][:80]!r}",
                    "correct expert(), the grader or max_turns",
                )
    return f"{count} episodes"


def graders_are_steady(subject: Subject) -> str:
    """The same actions earn the same reward, however often they are judged."""
    judged = 0
    with subject.open() as env:
        for seed in subject.each_seed():
            for agent in (None, *([fuzz.expert_agent] if hasattr(env, "expert") else [])):
                played = play(env, seed, agent)
                for _ in subject.each_seed(range(ATTEMPTS - 1), share=0.25):
                    _same_pay(played, repeat(env, seed, played.actions), seed)
                    judged += 1
    return f"judged again {judged} times"


def _same_pay(first: Played, again: Played, seed: int) -> None:
    if (first.reward, first.info.get("success")) != (again.reward, again.info.get("success")):
        raise Broken(
            f"seed {seed}: the same {len(first.actions)} actions earned {first.reward:g} and then "
            f"{again.reward:g}",
            "let a grader judge the state alone: no chance, no clock, no limit that load exceeds",
        )
