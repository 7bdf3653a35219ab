"""The customer of RefundDesk: knows what they want, and says it when asked.

Deterministic: an answer depends on the script and on what was asked before. Messages are read by
their words, so that any wording does: whatever has `name` in it is answered with the name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from turnwise.envs.builtin.refund_desk_policy import Request, request_text
from turnwise.envs.builtin.state_diff import Records

NAME = frozenset({"name"})
ZIP = frozenset({"zip", "zipcode", "postcode", "postal"})
IDENTITY = frozenset({"verify", "identify", "identity", "who"})
NEXT = frozenset({"else", "more", "anything", "further", "next", "other", "help", "assist"})
CONFIRM = frozenset({"confirm", "correct", "sure", "proceed", "agree", "agreed"})
WHICH = frozenset({"which", "number", "id"})
AGAIN = frozenset({"again", "repeat", "what"})
REFUSAL = frozenset({"cannot", "decline", "declined", "unable", "sorry", "unfortunately"})
NUMERALS = re.compile(r"\b\d+\b")
_WORD = re.compile(r"[a-z]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """One thing that the customer wants, and how they put it."""

    request: Request
    """What they want in the end."""
    first: Request | None = None
    """What they ask for before they are asked to confirm, where they change their mind."""
    names_order: bool = True
    """Whether they know the order's id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """Everything that decides what a customer says."""

    name: str
    zip: str
    wishes: tuple[Wish, ...]
    greets_with_name: bool = True
    greets_with_zip: bool = True
    greets_with_wish: bool = True
    pushy: bool = False
    """Asks for an exception when refused."""
    terse: bool = False


class Customer:
    """A customer in conversation.

    Args:
        script: What they want and how they say it.
        records: As they were at the start; names of things come from them.
    """

    def __init__(self, script: Script, records: Records) -> None:
        self.script, self._records = script, records
        self.told_name = self.told_zip = False
        self.stated = 0
        """How many wishes they have told."""
        self.confirmed = 0
        """How many of these they were asked to confirm."""
        self.satisfied = False
        """Whether they have said that there is nothing else."""

    def state(self) -> list[object]:
        """Return all that decides what they say next, as JSON values."""
        told = [self.told_name, self.told_zip, self.satisfied]
        return [*told, self.stated, self.confirmed]

    def said(self) -> set[str]:
        """Return the zip, addresses and payments that they have said."""
        wishes = [wish for i in range(self.stated) for wish in self._wishes_so_far(i)]
        told = {self.script.zip} if self.told_zip else set()
        return told | {word for w in wishes for word in (w.address, w.payment) if word}

    def _wishes_so_far(self, index: int) -> list[Request]:
        wish = self.script.wishes[index]
        return [wish.first, self.wants(index)] if wish.first else [wish.request]

    def wants(self, index: int) -> Request:
        """Return what they want by now, as far as they have said."""
        wish = self.script.wishes[index]
        changes = index >= self.confirmed and wish.first is not None
        return wish.first if changes and wish.first is not None else wish.request

    def names_order(self, index: int) -> bool:
        """Return whether they have named the order of that wish by its id."""
        return self.script.wishes[index].names_order

    def greeting(self) -> str:
        """Return what they open with."""
        script = self.script
        parts = ["hello"]
        parts += [self._name()] if script.greets_with_name else []
        parts += [self._zip()] if script.greets_with_zip else []
        parts += [self._next()] if script.greets_with_wish else []
        return self._join(parts)

    def answer(self, text: str) -> str:
        """Return what they say to a message of the desk."""
        words = set(_WORD.findall(text.lower()))
        parts = [self._name()] if words & (NAME | IDENTITY) else []
        parts += [self._zip()] if words & (ZIP | IDENTITY) else []
        parts += [self._confirm()] if words & CONFIRM and not parts else []
        parts += [self._next()] if words & NEXT else []
        return self._join(parts or [self._reaction(text, words)])

    def _join(self, parts: Sequence[str]) -> str:
        return (" " if self.script.terse else ". ").join(parts)

    def _name(self) -> str:
        self.told_name = True
        return self.script.name if self.script.terse else f"my name is {self.script.name}"

    def _zip(self) -> str:
        self.told_zip = True
        return self.script.zip if self.script.terse else f"my zip is {self.script.zip}"

    def _next(self) -> str:
        if self.stated == len(self.script.wishes):
            self.satisfied = True
            return "no that is all"
        self.stated += 1
        return self._wish(self.stated - 1)

    def _wish(self, index: int) -> str:
        named = self.names_order(index)
        wanted, terse = self.wants(index), self.script.terse
        return request_text(self._records, wanted, names_order=named, terse=terse)

    def _confirm(self) -> str:
        """Confirm everything that was told; what they changed their mind about, they tell anew."""
        if not self.stated:
            return self._next()
        open_wishes = range(self.confirmed, self.stated)
        self.confirmed = self.stated
        changed = [i for i in open_wishes if self.script.wishes[i].first is not None]
        return self._join([f"no wait {self._wish(i)}" for i in changed] or ["yes"])

    def _reaction(self, text: str, words: set[str]) -> str:
        """Return what they say to anything but a question of the desk's routine."""
        if words & REFUSAL:
            return "please make an exception" if self.script.pushy else "that is a pity"
        if words & (WHICH | AGAIN) and self.stated:
            return self._wish(self.stated - 1)
        if words & WHICH and not self.stated:
            return self._next()
        return "thanks" if NUMERALS.search(text) or len(words) > 1 else "sorry what do you mean"
