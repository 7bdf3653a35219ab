"""What a task of RefundDesk is: its fields, and the world that follows from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from turnwise.envs.builtin import refund_desk_world as world
from turnwise.envs.builtin.refund_desk_policy import Policy
from turnwise.envs.builtin.refund_desk_user import Script
from turnwise.envs.builtin.state_diff import Records
from turnwise.envs.knobs import share
from turnwise.envs.task_range import check_drawn
from turnwise.envs.types import Task

MAX_REQUESTS, MAX_LEVEL, MAX_USERS = 4, 6, 64


@dataclass(frozen=True, kw_only=True)
class Ticket(Task):
    """One conversation at the desk. Shop, customer and policy follow from these fields alone."""

    split: str = "train"
    index: int = 0
    requests: int = 1
    rules: int = 3
    forbidden: float = 0.5
    cooperative: float = 0.5
    fickle: float = 0.25
    users: int = 8
    terse: bool = False

    def __post_init__(self) -> None:
        check_drawn(self, requests=(1, MAX_REQUESTS), rules=(1, MAX_LEVEL), users=(2, MAX_USERS))
        for name in ("forbidden", "cooperative", "fickle"):
            share(f"Ticket.{name}", getattr(self, name))


@dataclass(frozen=True, slots=True)
class Desk:
    """One shop with its customer, and how it must look in the end."""

    records: Records
    user: str
    """The customer's id."""
    script: Script
    policy: Policy
    gold: Records
    calls: tuple[tuple[str, dict[str, Any]], ...]
    """What settles each wish, in their order."""


def settle(records: Records, call: tuple[str, dict[str, Any]]) -> None:
    """Carry out one settling call on `records`.

    Raises:
        ToolFailed: it cannot be carried out any more.
    """
    name, args = call
    if name == "say":
        world.tell(records, args["text"])
    else:
        world.EFFECTS[name](records, **args)
