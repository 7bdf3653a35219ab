"""Makes the worlds of RefundDesk: a shop, a customer, and what they want of it."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from turnwise.envs.builtin.refund_desk_policy import (
    DECLINED,
    QUESTIONS,
    TRANSFERRED,
    Policy,
    Request,
    broken_rule,
    right_call,
)
from turnwise.envs.builtin.refund_desk_shop import STATUSES, Shop
from turnwise.envs.builtin.refund_desk_tasks import Desk, Ticket, settle
from turnwise.envs.builtin.refund_desk_user import Script, Wish
from turnwise.envs.builtin.state_diff import Records
from turnwise.envs.seeds import derive

TOO = 0.3
"""Share of refunds that break a rule and a later one, too."""


def make_desk(task: Ticket) -> Desk:
    """Return the world of a task; the same fields give the same world."""
    rng = random.Random(derive("refund desk", task.to_json()))
    return _Maker(rng, task).desk()


class _Maker:
    """Makes one world; every choice is taken from one generator, in a fixed order."""

    def __init__(self, rng: random.Random, task: Ticket) -> None:
        self.rng, self.task = rng, task
        self.policy = self._policy()
        self.shop = Shop(rng, task.users)
        self.base = self.shop.base
        self.user = rng.choice(self.shop.users)
        self.taken: set[str] = set()
        """Products that an exchange is about: one request must not spoil another."""

    def _policy(self) -> Policy:
        window = self.rng.choice((10, 20, 30))
        return Policy(
            level=self.task.rules,
            window=window,
            gold_window=window + self.rng.choice((10, 20, 30)),
            fee=self.rng.choice((100, 200, 300)),
            limit=self.rng.choice((5000, 6000, 7000)),
            confirm=self.task.fickle > 0,
        )

    def desk(self) -> Desk:
        wishes = tuple(self._wish() for _ in range(self.task.requests))
        for user in self.shop.users:
            for _ in range(self.rng.randrange(3)):
                self.shop.order(user, self.rng.choice(STATUSES))
        self.base["desk"] = {"verified": "", "breaches": ()}
        records = self.shop.records()
        calls = tuple(right_call(self.policy, records, self.user, w.request) for w in wishes)
        gold, script = self._gold(records, calls), self._script(wishes)
        return Desk(records, self.user, script, self.policy, gold, calls)

    def _gold(self, records: Records, calls: Sequence[tuple[str, dict[str, Any]]]) -> Records:
        gold = records.copy()
        gold.put("desk", verified=self.user)
        for call in calls:
            settle(gold, call)
        return gold

    def _script(self, wishes: tuple[Wish, ...]) -> Script:
        who = self.base[self.user]
        return Script(
            name=who["name"],
            zip=who["zip"],
            wishes=wishes,
            greets_with_name=self._volunteers(),
            greets_with_zip=self._volunteers(),
            greets_with_wish=self._volunteers(),
            pushy=self.rng.random() < 0.5,
            terse=self.task.terse,
        )

    def _volunteers(self) -> bool:
        return self.rng.random() < self.task.cooperative

    def _wish(self) -> Wish:
        rule = self._rule_to_break()
        request = self._request(rule)
        assert broken_rule(self.policy, Records(self.base), self.user, request) == rule
        first = None
        if self.rng.random() < self.task.fickle:
            kept = set(self.taken)  # nobody is to carry out what is taken back
            first, self.taken = self._request(""), kept
        named = self._volunteers() or rule == "owner"
        return Wish(request=request, first=first, names_order=named)

    def _rule_to_break(self) -> str:
        if self.rng.random() >= self.task.forbidden:
            return ""
        rules = [r for r in self.policy.rules if r in (*DECLINED, *TRANSFERRED)]
        return self.rng.choice(rules)

    def _request(self, rule: str) -> Request:
        """Make an order and a request about it that breaks just that rule first."""
        kind = self.rng.choice(self._kinds(rule))
        owner = self.user
        if rule == "owner":
            owner = self.rng.choice([user for user in self.shop.users if user != self.user])
        order = self.shop.order(owner, self._status(kind, rule), days=self._days(rule))
        item = self.rng.choice(self.base[order]["items"])
        product = self.base[f"{order}/{item}"]["product"]
        request = Request(kind=kind, order=order, item=item, label=self.shop.label(product))
        return self._detailed(request, rule)

    def _kinds(self, rule: str) -> tuple[str, ...]:
        """Return the kinds of request that can break `rule`."""
        swap = ("exchange",) if "type" in self.policy.rules else ()
        if rule in ("type", "stock"):
            return swap
        if rule in ("payment", *TRANSFERRED):
            return ("refund",)
        if rule == "window":
            return ("refund", *swap)
        whole = ("cancel", "address")
        return ("refund", *swap, *whole, *(QUESTIONS if rule != "status" else ()))

    def _status(self, kind: str, rule: str) -> str:
        if kind in QUESTIONS:
            return self.rng.choice(STATUSES)
        right = "pending" if kind in ("cancel", "address") else "delivered"
        wrong = [status for status in STATUSES if status != right]
        return self.rng.choice(wrong) if rule == "status" else right

    def _days(self, rule: str) -> int:
        """Return days since delivery, on the right side of this customer's window; often near."""
        gold = self.base[self.user]["tier"] == "gold"
        last = self.policy.gold_window if gold else self.policy.window
        near = self.rng.randrange(3)
        if rule == "window":
            return last + 1 + self.rng.choice((near, self.rng.randrange(30)))
        return last - self.rng.choice((near, self.rng.randrange(last)))

    def _detailed(self, request: Request, rule: str) -> Request:
        detail: dict[str, Callable[[Request, str], Request]] = {
            "refund": self._refund,
            "exchange": self._exchange,
            "address": self._move,
        }
        return detail[request.kind](request, rule) if request.kind in detail else request

    def _move(self, request: Request, rule: str) -> Request:
        now = self.base[request.order]["address"]
        return replace(request, address=next(a for a in iter(self.shop.address, "") if a != now))

    def _also(self, later: str, rule: str) -> bool:
        """Say whether to break a later rule, too: the first is the one that counts."""
        rules = self.policy.rules
        after = rule in rules and later in rules and rules.index(rule) < rules.index(later)
        return after and self.rng.random() < TOO

    def _refund(self, request: Request, rule: str) -> Request:
        item, limit = f"{request.order}/{request.item}", self.policy.limit
        high = "amount" in self.policy.rules and rule == "amount"
        cents = self.shop.cents(limit + 100) if high else self.shop.cents(high=limit)
        self.base[item] = {**self.base[item], "price": cents}
        paid = self.base[request.order]["payment"]
        owner = self.base[request.order]["user"]
        other = next(p for p in self.base[owner]["payments"] if p != paid)
        wanted = self.rng.choice(("", paid)) if "payment" in self.policy.rules else ""
        if rule == "payment" or self._also("payment", rule):
            wanted = other
        return replace(
            request, payment=wanted, damaged=rule == "damaged" or self._also("damaged", rule)
        )

    def _exchange(self, request: Request, rule: str) -> Request:
        old = self.base[f"{request.order}/{request.item}"]["product"]
        kind, same = self.base[old]["type"], rule != "type"
        fitting = [p for p in self.shop.products if p != old and p not in self.taken]
        fitting = [p for p in fitting if (self.base[p]["type"] == kind) == same]
        new = self.rng.choice(fitting)
        self.taken |= {new}
        if rule == "stock":
            self.base[new] = {**self.base[new], "stock": 0}
        return replace(request, product=new)
