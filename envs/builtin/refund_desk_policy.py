"""The policy of RefundDesk: what it says, and what it says about one request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from turnwise.envs.builtin.refund_desk_world import label, total
from turnwise.envs.builtin.state_diff import Records

LEVELS: tuple[tuple[str, ...], ...] = (
    ("owner", "status"),
    ("window",),
    ("payment",),
    ("type", "stock"),
    ("fee",),
    ("damaged", "amount"),
)
"""The rules that each further level of complexity adds; `fee` forbids nothing."""
DECLINED = ("owner", "status", "window", "payment", "type", "stock")
TRANSFERRED = ("damaged", "amount")
GIVEN_BACK = ("refund", "exchange")
QUESTIONS = ("total", "carrier")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a customer asks for."""

    kind: str
    """refund, exchange, cancel, address, or a question: total, carrier."""
    order: str
    item: str
    """The item that is meant; for a whole order, one that it can be told by."""
    label: str
    """How the customer calls the item: `red mug`."""
    product: str = ""
    """What an exchange is to bring."""
    payment: str = ""
    """Where the customer wants the money; empty for no wish."""
    address: str = ""
    damaged: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The rules in play and their numbers."""

    level: int
    window: int
    """Days after delivery in which a basic customer may give something back."""
    gold_window: int
    fee: int
    """Cents that a basic customer pays for a refund."""
    limit: int
    """Cents; a refund above it is a human's decision."""
    confirm: bool
    """Whether a customer must be asked before anything is decided."""

    @property
    def rules(self) -> tuple[str, ...]:
        """The names of the rules in play, in their order."""
        return tuple(rule for level in LEVELS[: self.level] for rule in level)

    def text(self) -> str:
        """Return the policy as the agent reads it."""
        lines = ["policy:", "first verify the customer by name and zip with find_user."]
        if self.confirm:
            lines.append("before you decide on a request ask the customer to confirm it.")
        lines += [f"{rule}: {self._says()[rule]}." for rule in self.rules if rule != "fee"]
        lines.append(f"refund {self._share()}.")
        declines = ", ".join(rule for rule in self.rules if rule in DECLINED)
        lines.append(f"if a rule is broken decline with the first such rule: {declines}.")
        lines.append("tell nobody the id, zip, address or payment of another customer.")
        lines.append(
            "answer a question in a message of its own that holds the order and the answer, "
            "and no other number."
        )
        return "\n".join([*lines, "when the customer wants nothing else, call done."])

    def _says(self) -> Mapping[str, str]:
        return {
            "owner": "only orders of the verified customer, questions too",
            "status": "cancel and address only if pending, refund and exchange only if delivered",
            "window": f"refund and exchange within {self.window} days of delivery, "
            f"gold customers {self.gold_window}",
            "payment": "refund only to the payment of the order",
            "type": "exchange only for the same type of product",
            "stock": "exchange only for what is in stock",
            "damaged": "if no rule above is broken, transfer a damaged item",
            "amount": f"if no rule above is broken, transfer a refund above {self.limit}",
        }

    def _share(self) -> str:
        if "fee" not in self.rules:
            return "the price of the item"
        return f"the price of the item less a fee of {self.fee}, for gold customers without fee"


def broken_rule(policy: Policy, db: Records, user: str, request: Request) -> str:
    """Return the first rule that `request` of `user` breaks; empty if it is to be granted."""
    broken = _broken(policy, db, user, request)
    return next((rule for rule in policy.rules if rule in broken), "")


def _broken(policy: Policy, db: Records, user: str, request: Request) -> set[str]:
    order = db[request.order]
    found: set[str] = set()
    if order["user"] != user:
        return {"owner"}
    if request.kind in ("cancel", "address") and order["status"] != "pending":
        found.add("status")
    if request.kind in GIVEN_BACK:
        found |= _broken_giving_back(policy, db, user, request)
    if request.kind == "refund":
        found |= _broken_refund(policy, db, request)
    if request.kind == "exchange":
        found |= _broken_exchange(db, request)
    return found


def _broken_giving_back(policy: Policy, db: Records, user: str, request: Request) -> set[str]:
    order, gold = db[request.order], db[user]["tier"] == "gold"
    if order["status"] != "delivered":
        return {"status"}
    late = order["days"] > (policy.gold_window if gold else policy.window)
    return {"window"} if late else set()


def _broken_refund(policy: Policy, db: Records, request: Request) -> set[str]:
    found = {"damaged"} if request.damaged else set()
    if request.payment not in ("", db[request.order]["payment"]):
        found.add("payment")
    if db[f"{request.order}/{request.item}"]["price"] > policy.limit:
        found.add("amount")
    return found


def _broken_exchange(db: Records, request: Request) -> set[str]:
    old = db[db[f"{request.order}/{request.item}"]["product"]]
    new = db[request.product]
    found = {"type"} if new["type"] != old["type"] else set()
    return found | ({"stock"} if new["stock"] < 1 else set())


Call = tuple[str, dict[str, Any]]
"""A tool and its arguments."""


def right_call(policy: Policy, db: Records, user: str, request: Request) -> Call:
    """Return the call that settles `request`, with the records as they were at the start."""
    rule = broken_rule(policy, db, user, request)
    if rule:
        tool = "transfer" if rule in TRANSFERRED else "decline"
        return tool, {"order": request.order, "reason": rule}
    return _granted(policy, db, user, request)


def _granted(policy: Policy, db: Records, user: str, request: Request) -> Call:
    order = request.order
    if request.kind == "refund":
        price = db[f"{order}/{request.item}"]["price"]
        payed = "fee" in policy.rules and db[user]["tier"] != "gold"
        where = {"item": request.item, "payment": db[order]["payment"]}
        return "refund_item", {"order": order, **where, "cents": price - policy.fee * payed}
    if request.kind == "exchange":
        wanted = {"item": request.item, "product": request.product}
        return "exchange_item", {"order": order, **wanted}
    if request.kind == "address":
        return "update_address", {"order": order, "address": request.address}
    if request.kind == "cancel":
        return "cancel_order", {"order": order}
    answer = total(db, order) if request.kind == "total" else db[order]["carrier"]
    return "say", {"text": f"{order} {answer}"}


def request_text(db: Records, request: Request, *, names_order: bool, terse: bool) -> str:
    """Return what the customer says, with or without the order's id."""
    return (_terse if terse else _polite)(db, request, names_order)


def _terse(db: Records, request: Request, names_order: bool) -> str:
    whole = request.kind not in GIVEN_BACK
    thing = [] if whole and names_order else [request.label]
    words = [request.kind, *thing, *([request.order] if names_order else [])]
    words += ["for", label(db, request.product)] if request.product else []
    words += ["to", request.payment or request.address] if _goes_to(request) else []
    return " ".join([*words, *(["damaged"] if request.damaged else [])])


def _goes_to(request: Request) -> bool:
    return bool(request.payment or request.address)


def _polite(db: Records, request: Request, names_order: bool) -> str:
    order = f"order {request.order}" if names_order else f"the order with the {request.label}"
    item = f"the {request.label}" + (f" of order {request.order}" if names_order else "")
    to = f" to my {request.payment}" if request.payment else ""
    damaged = ". it came damaged" if request.damaged else ""
    swap = f" for a {label(db, request.product)}" if request.product else ""
    return {
        "refund": f"please refund {item}{to}{damaged}",
        "exchange": f"please exchange {item}{swap}",
        "cancel": f"please cancel {order}",
        "address": f"please send {order} to {request.address}",
        "total": f"what is the total of {order}",
        "carrier": f"which carrier brings {order}",
    }[request.kind]
