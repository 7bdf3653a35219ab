"""The shop of RefundDesk before anybody asks for anything: products, users, orders."""

from __future__ import annotations

import random

from turnwise.envs.builtin import refund_desk_world as world
from turnwise.envs.builtin.people import NAMES
from turnwise.envs.builtin.state_diff import Record, Records

TYPES = (
    *("mug", "lamp", "chair", "clock", "shirt", "scarf", "radio", "kettle"),
    *("wallet", "pillow", "basket", "mirror"),
)
COLORS = ("red", "blue", "green", "black", "white", "pink")
STREETS = ("elm", "oak", "ash", "maple", "cedar", "birch", "linden", "poplar")
STATUSES = ("pending", "shipped", "delivered")
KINDS = 8
"""Types that one shop sells, in every colour."""
ORDERS, ORDERS_PER_USER = 40, 4
"""Ids of orders run from 1 to ORDERS + ORDERS_PER_USER * users; some are never given out."""


class Shop:
    """Makes the records of a shop; every choice is taken from one generator, in a fixed order.

    Args:
        rng: the only source of randomness.
        users: how many customers there are.
    """

    def __init__(self, rng: random.Random, users: int) -> None:
        self.rng = rng
        self.base: dict[str, Record] = {}
        most = ORDERS + ORDERS_PER_USER * users
        self._ids = [f"o{i}" for i in rng.sample(range(1, most + 1), most)]
        self._add_products()
        self._add_users(users)
        self._unbought = {
            user: rng.sample(self.products, len(self.products)) for user in self.users
        }
        """Nobody buys the same thing twice, so that a customer can say which they mean."""

    def _add_products(self) -> None:
        kinds = [(kind, color) for kind in self.rng.sample(TYPES, KINDS) for color in COLORS]
        ids = self.rng.sample(range(1, len(kinds) + 1), len(kinds))
        self.products = [f"p{id}" for id in ids]
        for id, (kind, color) in sorted(zip(ids, kinds, strict=True)):
            price, stock = self.cents(), self.rng.randrange(1, 6)
            self.base[f"p{id}"] = {"type": kind, "color": color, "price": price, "stock": stock}

    def _add_users(self, count: int) -> None:
        zips = self.rng.sample(range(10, 100), count)
        self.users = [f"u{i}" for i in range(1, count + 1)]
        for user, code in zip(self.users, zips, strict=True):
            payments = tuple(self.rng.sample(world.PAYMENTS, 2))
            who = {"name": self.rng.choice(NAMES), "zip": f"z{code}"}
            tier = self.rng.choice(world.TIERS)
            self.base[user] = {**who, "tier": tier, "payments": payments}
            self.base |= {f"{user}/{payment}": {"credit": 0} for payment in payments}

    def cents(self, low: int = 500, high: int = 9900) -> int:
        """Return an amount in cents, a multiple of 100."""
        return 100 * self.rng.randrange(low // 100, high // 100 + 1)

    def order(self, user: str, status: str, *, days: int | None = None) -> str:
        """Add an order of one or two items and return its id."""
        order, rng = self._ids.pop(), self.rng
        items = tuple(f"i{i}" for i in range(1, rng.randrange(1, 3) + 1))
        for item in items:
            bought = {
                "product": self._unbought[user].pop(),
                "price": self.cents(),
                "state": "bought",
            }
            self.base[f"{order}/{item}"] = bought
        self.base[order] = {
            "user": user,
            "status": status,
            "days": (days if days is not None else rng.randrange(60))
            if status == "delivered"
            else 0,
            "payment": rng.choice(self.base[user]["payments"]),
            "address": self.address(),
            "carrier": rng.choice(world.CARRIERS),
            "items": items,
        }
        return order

    def address(self) -> str:
        """Return an address; not a new one each time."""
        return f"{self.rng.choice(STREETS)}-{self.rng.randrange(1, 10)}"

    def label(self, product: str) -> str:
        """Return how people call a product."""
        return world.label(Records(self.base), product)

    def records(self) -> Records:
        """Return all records, in the order of their ids."""
        return Records({id: self.base[id] for id in sorted(self.base, key=_by_number)})


def _by_number(id: str) -> tuple[str, int, str]:
    """Order ids as people do: o2 before o12, and an order before its items."""
    head, _, tail = id.partition("/")
    digits = "".join(c for c in head if c.isdigit())
    return head.rstrip("0123456789"), int(digits or 0), tail
