"""What a good clerk of RefundDesk does next, whatever was done before."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from turnwise.envs.builtin.refund_desk_grade import wrongs
from turnwise.envs.builtin.refund_desk_policy import Call, Request, broken_rule
from turnwise.envs.builtin.refund_desk_tasks import Desk, settle
from turnwise.envs.builtin.refund_desk_user import Customer
from turnwise.envs.builtin.state_diff import Records
from turnwise.envs.tools import ToolFailed


@dataclass(slots=True)
class Notes:
    """What the agent has looked up so far."""

    listed: bool = False
    """The customer's orders."""
    opened: set[str] = field(default_factory=set)
    """Orders."""
    browsed: set[str] = field(default_factory=set)
    """Types of product."""

    def state(self) -> list[Any]:
        """Return the notes as JSON values."""
        return [self.listed, sorted(self.opened), sorted(self.browsed)]


def next_call(desk: Desk, db: Records, customer: Customer, notes: Notes) -> Call:
    """Return the tool to call now, and its arguments.

    It uses what the agent can know by now: it asks for what the customer has not said, and looks up
    what a decision rests on.
    """
    if is_spoilt(desk, db):
        return "done", {}
    if db["desk"]["verified"] != desk.user:
        return _verify(customer)
    for index in range(customer.stated):
        if not _settled(db, desk.gold, desk.calls[index]):
            return _serve(desk, index, customer, notes)
    if customer.satisfied:
        return "done", {}
    return _say("anything else" if customer.stated else "how can i help")


def _say(text: str) -> Call:
    return "say", {"text": text}


def _verify(customer: Customer) -> Call:
    asked = [what for what, told in _identity(customer) if not told]
    if asked:
        return _say(f"what is your {' and '.join(asked)}")
    return "find_user", {"name": customer.script.name, "zip": customer.script.zip}


def _identity(customer: Customer) -> tuple[tuple[str, bool], ...]:
    return (("name", customer.told_name), ("zip", customer.told_zip))


def is_spoilt(desk: Desk, db: Records) -> bool:
    """Return whether nothing that can still be done leads to the gold records.

    Every settling call that is missing is tried on a copy: what then differs stays different.
    """
    trial = db.copy()
    trial.put("desk", verified=desk.user)
    for call in desk.calls:
        if _settled(trial, desk.gold, call):
            continue
        try:
            settle(trial, call)
        except ToolFailed:
            return True
    return bool(wrongs(trial, desk.gold))


def _settled(db: Records, gold: Records, call: Call) -> bool:
    """Return whether the last decision or answer about the call's order is the right one."""
    name, args = call
    if name == "say":
        id = f"told/{args['text'].split()[0]}"
        told, asked = db.get(id) or {}, gold[id]
        return all(told.get(kind) == asked[kind] for kind in asked)
    id = f"case/{args['order']}"
    return db.get(id) == gold[id]


def _serve(desk: Desk, index: int, customer: Customer, notes: Notes) -> Call:
    """Return the next step towards settling a request that the customer has told."""
    if desk.policy.confirm and index >= customer.confirmed:
        return _say("please confirm")
    request = customer.wants(index)
    if request.order not in notes.opened:
        return _look_for(desk, request, customer.names_order(index), notes)
    rule = broken_rule(desk.policy, desk.records, desk.user, request)
    if request.kind == "exchange" and rule in ("", "stock"):
        kind = desk.records[request.product]["type"]
        if kind not in notes.browsed:
            return "get_product", {"type": kind}
    return desk.calls[index]


def _look_for(desk: Desk, request: Request, named: bool, notes: Notes) -> Call:
    """Open the order; where the customer does not know its id, open theirs one by one."""
    if named:
        return "get_order", {"order": request.order}
    if not notes.listed:
        return "list_orders", {"user": desk.user}
    own = (id for id in desk.records if desk.records[id].get("user") == desk.user)
    return "get_order", {"order": next(order for order in own if order not in notes.opened)}
