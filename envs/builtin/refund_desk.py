"""RefundDesk: serve a customer of a shop by its policy, with tools over the shop's records.

    policy: first verify the customer by name and zip with find_user. owner: only orders of ...
    customer: hello. my name is ada. please refund the red mug of order o12

The agent verifies who it is talking to, finds the order, reads the policy and grants, declines or
transfers. What the records look like when it finishes is compared with how they should look: one
change too many, one cent too few, one reason that is not the first broken rule, and nothing is
paid. In the spirit of tau-bench (Yao et al., arXiv:2406.12045), with a scripted customer.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import ClassVar

from turnwise.envs.base import Response
from turnwise.envs.builtin import refund_desk_world as world
from turnwise.envs.builtin.people import NAMES
from turnwise.envs.builtin.refund_desk_expert import Notes, next_call
from turnwise.envs.builtin.refund_desk_grade import wrongs
from turnwise.envs.builtin.refund_desk_maker import make_desk
from turnwise.envs.builtin.refund_desk_shop import (
    COLORS,
    KINDS,
    ORDERS,
    ORDERS_PER_USER,
    STATUSES,
    STREETS,
    TYPES,
)
from turnwise.envs.builtin.refund_desk_tasks import MAX_LEVEL, MAX_REQUESTS, MAX_USERS, Ticket
from turnwise.envs.builtin.refund_desk_tools import DeskTools
from turnwise.envs.builtin.refund_desk_user import Customer
from turnwise.envs.knobs import count, share, span
from turnwise.envs.task_range import TaskRange
from turnwise.envs.tool_env import EpisodeView
from turnwise.envs.tools import reward
from turnwise.envs.types import Task, digest

SIZES = {"train": 1_000_000, "dev": 10_000, "test": 10_000}
TURNS_PER_REQUEST = 5
"""Most turns that the expert needs for one, besides opening orders: ask, confirm, list, browse,
settle."""
TURNS_BESIDES = 5
"""Asking for the name and the zip, finding the user, asking for more, finishing."""


class RefundDesk(DeskTools):
    """A desk that serves one customer with one or more requests.

    The reward is 1 when the agent finishes and the shop's records, the decisions about each
    request and the answers to the customer's questions are just as the policy has them, and the
    customer was told no private fact of another one, nor of anyone before they were verified; else
    0.
    There are no turn rewards: they would tell an agent which of its guesses was right.

    Who finishes, declines or transfers at once earns 0. Who serves the customer well and never
    judges earns what its prejudice is worth: over 400 test tasks with the defaults, 0.08 for
    declining everything for the best single reason and 0.38 for granting everything. `forbidden`
    and `requests` move these.

    Args:
        requests: how many the customer has, 1 to 4, or (least, most).
        rules: how much of the policy is in play, 1 to 6, or (least, most): 1 owner and status,
            2 and the window, 3 and the payment, 4 and exchanges, 5 and the fee, 6 and transfers.
        forbidden: share of requests that the policy forbids.
        cooperative: how much the customer volunteers: the probability of each of name, zip, first
            request and order ids.
        fickle: share of requests that change when the customer is asked to confirm them. Above 0
            the policy has the agent ask.
        users: customers of the shop, 2 to 64; each has a few orders.
        terse: the customer speaks in keywords, for tiny models.
        slack: turns beyond what an expert may need.
        actions: a name in `FORMATS`: `command` (one line, few tokens), `hermes` (JSON), ...
        max_turns: instead of that.

    Example:
        env = make("turnwise/RefundDesk-v1", requests=1, rules=1, terse=True)
    """

    Task: ClassVar[type[Task]] = Ticket
    fast: ClassVar[bool] = True
    hints = False
    words: ClassVar[tuple[str, ...]] = (
        *(*NAMES, *TYPES, *COLORS, *STREETS, *STATUSES, *world.PAYMENTS, *world.CARRIERS),
        *(
            *world.TIERS,
            "owner",
            "status",
            "window",
            "payment",
            "type",
            "stock",
            "damaged",
            "amount",
        ),
        *(f"o{i}" for i in range(1, ORDERS + ORDERS_PER_USER * 8 + 1)),
        *(
            *(f"p{i}" for i in range(1, KINDS * len(COLORS) + 1)),
            *(f"u{i}" for i in range(1, 9)),
            "i1",
            "i2",
        ),
        *(f"z{i}" for i in range(10, 100)),
    )
    """What a tokenizer made for this environment should hold as single tokens, at 8 users."""

    def __init__(
        self,
        *,
        requests: int | Sequence[int] = (1, 2),
        rules: int | Sequence[int] = (2, 5),
        forbidden: float = 0.5,
        cooperative: float = 0.5,
        fickle: float = 0.25,
        users: int = 8,
        terse: bool = False,
        slack: int = 8,
        actions: str = "command",
        max_turns: int | None = None,
    ) -> None:
        super().__init__(actions=actions, max_turns=max_turns)
        self.requests = span("requests", requests, 1, MAX_REQUESTS)
        self.rules = span("rules", rules, 1, MAX_LEVEL)
        self.forbidden = share("forbidden", forbidden)
        self.cooperative = share("cooperative", cooperative)
        self.fickle = share("fickle", fickle)
        self.users = count("users", users, 2, MAX_USERS)
        self.terse, self.slack = terse, count("slack", slack, 0, 1000)

    def tasks(self, split: str) -> Sequence[Ticket]:
        """Return the conversations of a split, made on demand; numbers and levels take turns."""
        name = self.known_split(split)
        return TaskRange(lambda index: self._ticket(name, index), SIZES[name])

    def _ticket(self, split: str, index: int) -> Ticket:
        fewest, requests = self.requests[0], self.requests[1] - self.requests[0] + 1
        lowest, levels = self.rules[0], self.rules[1] - self.rules[0] + 1
        return Ticket(
            split=split,
            index=index,
            requests=fewest + index % requests,
            rules=lowest + index // requests % levels,
            forbidden=self.forbidden,
            cooperative=self.cooperative,
            fickle=self.fickle,
            users=self.users,
            terse=self.terse,
        )

    def system(self) -> str:
        """Return the tools; in the terse format their names and parameters only."""
        if self.format.name != "command":
            return super().system()
        tools = self.parts.tools.values()
        shown = [self.format.describe(t.name, [p.name for p in t.parameters]) for t in tools]
        return "\n".join(["tools:", *shown])

    def setup(self, task: Ticket, rng: random.Random) -> str:
        """Open the shop; return the policy and what the customer says first."""
        self.desk = make_desk(task)
        self.db = self.desk.records.copy()
        self.customer = Customer(self.desk.script, self.desk.records)
        self.notes = Notes()
        own = sum(record.get("user") == self.desk.user for record in self.db.base.values())
        self.max_turns = TURNS_BESIDES + task.requests * TURNS_PER_REQUEST + own + self.slack
        return f"{self.desk.policy.text()}\n\ncustomer: {self.customer.greeting()}"

    @reward(weight=1.0)
    def resolved(self, episode: EpisodeView) -> float:
        """Pay for records that are just as they should be."""
        return float(episode.terminated and not wrongs(self.db, self.desk.gold))

    def judge(self, answer: Response) -> None:
        """Grade, and say for people what was wrong: the metric and `info["differences"]`."""
        super().judge(answer)
        differences = wrongs(self.db, self.desk.gold)
        answer.metrics["differences"] = float(len(differences))
        answer.info["differences"] = [str(difference) for difference in differences]

    def expert(self) -> str:
        """Return the right call now; after damage that cannot be mended, `done`."""
        name, args = next_call(self.desk, self.db, self.customer, self.notes)
        return self.call_text(name, **args)

    def state_hash(self) -> str:
        """Hash what was changed, what the customer has said and what was looked up."""
        seen = self.notes.state()
        return digest([self.task.key, self.db.changes, self.customer.state(), seen])
