"""The shortest way to success in a world that is a table without chance, as toy worlds are."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from typing import Any

Table = Mapping[int, Mapping[int, Any]]
"""State to action to outcomes: (probability, next state, reward, terminated)."""


def without_chance(table: Table) -> bool:
    """Return whether every action has one outcome."""
    return all(
        outcomes[0][1:] == outcome[1:]
        for actions in table.values()
        for outcomes in actions.values()
        for outcome in outcomes[1:]
    )


def shortest_plan(table: Table, wins: Callable[[float], bool]) -> dict[int, int]:
    """Return state to best action, for every state from which success can be reached.

    Args:
        table: Of a world without chance; see `Table`.
        wins: Reward of a step that terminates to whether the episode is then a success.
    """
    steps = [(s, a, *outcomes[0]) for s in table for a, outcomes in table[s].items()]
    plan: dict[int, int] = {}
    before: dict[int, list[tuple[int, int]]] = defaultdict(list)
    reached: deque[int] = deque()
    for state, action, _, then, reward, ends in steps:
        if not ends:
            before[int(then)].append((state, action))
        elif wins(float(reward)) and state not in plan:
            plan[state] = action
            reached.append(state)
    while reached:
        for state, action in before[reached.popleft()]:
            if state not in plan:
                plan[state] = action
                reached.append(state)
    return plan
