"""Craft: make a thing of things that are made of things.

    make a lamp
    > recipe lamp
    lamp: 1 glass, 2 rope
    > recipe glass
    glass: 2 sand
    > gather sand

Crafting uses its ingredients up. Nothing is lost for good: whatever was wasted can be gathered
again, if the turns suffice.

Rewards: half for the crafts on the way, the same share for each that the target takes (a second
one pays nothing), and half for the target.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from turnwise.envs.builtin.craft_world import MADE, RAW, World, make_world, next_piece
from turnwise.envs.knobs import count, span
from turnwise.envs.seeds import derive
from turnwise.envs.task_range import TaskRange, check_drawn
from turnwise.envs.tool_env import EpisodeView, ToolEnv
from turnwise.envs.tools import ToolFailed, metric, reward, tool
from turnwise.envs.types import Task, digest

MAX_DEPTH = 6
SIZES = {"train": 1_000_000, "dev": 10_000, "test": 10_000}


@dataclass(frozen=True, kw_only=True)
class Order(Task):
    """One thing to make. The world follows from these fields alone."""

    split: str = "train"
    index: int = 0
    depth: int = 2
    inputs: int = 2
    amount: int = 1
    distractors: int = 3
    told: bool = False

    def __post_init__(self) -> None:
        check_drawn(self, depth=(1, MAX_DEPTH), inputs=(1, 4), amount=(1, 3), distractors=(0, 20))


class Craft(ToolEnv):
    """Look recipes up, gather what grows, craft the rest.

    Args:
        depth: levels of recipes, or (least, most), which the tasks take in turns.
        inputs: most different ingredients of a recipe, 1 to 4.
        amount: most pieces of one ingredient, 1 to 3.
        distractors: recipes that the target does not need, 0 to 20.
        told: whether the opening lists the recipes; else each must be looked up.
        slack: turns beyond what the expert needs from the start.
        actions: `command` (one line, few tokens) or another name of `FORMATS`.
    """

    Task: ClassVar[type[Task]] = Order
    fast: ClassVar[bool] = True
    hints = False
    words: ClassVar[tuple[str, ...]] = (*RAW, *MADE)

    def __init__(
        self,
        *,
        depth: int | Sequence[int] = (1, 3),
        inputs: int = 2,
        amount: int = 1,
        distractors: int = 3,
        told: bool = False,
        slack: int = 10,
        actions: str = "command",
    ) -> None:
        super().__init__(actions=actions)
        self.depths = span("depth", depth, 1, MAX_DEPTH)
        self.inputs = count("inputs", inputs, 1, 4)
        self.amount = count("amount", amount, 1, 3)
        self.distractors = count("distractors", distractors, 0, 20)
        self.told, self.slack = told, count("slack", slack, 0, 1000)

    def tasks(self, split: str) -> Sequence[Order]:
        """Return the orders of a split, made on demand; depths take turns."""
        self.known_split(split)
        low, high = self.depths

        def order(index: int) -> Order:
            return Order(
                split=split,
                index=index,
                depth=low + index % (high - low + 1),
                inputs=self.inputs,
                amount=self.amount,
                distractors=self.distractors,
                told=self.told,
            )

        return TaskRange(order, SIZES[split])

    def system(self) -> str:
        """Return what the agent is told before the order."""
        if self.format.name != "command":
            return super().system()
        return "tools: recipe gather craft inventory"

    def setup(self, task: Order, rng: random.Random) -> str:
        """Start with nothing, and know nothing unless the recipes are told."""
        self.world = task_world(task)
        self.held: Counter[str] = Counter()
        self.crafted: Counter[str] = Counter()
        self.known = set(self.world.recipes) if task.told else set[str]()
        self._paid = 0
        self.max_turns = _expert_turns(self.world, told=task.told) + self.slack
        listed = [self.world.describe(thing) for thing in self.world.recipes] if task.told else []
        return "\n".join([*listed, f"make {self.world.target}"])

    @tool
    def recipe(self, thing: str) -> str:
        """Tell what a thing is made of.

        Args:
            thing: Its name.
        """
        self._refuse_unknown(thing)
        self.known.add(thing)
        return self.world.describe(thing)

    @tool
    def gather(self, thing: str) -> str:
        """Gather one piece of a thing that has no recipe.

        Args:
            thing: Its name.
        """
        self._refuse_unknown(thing)
        if thing in self.world.recipes:
            raise ToolFailed(f"{thing} is crafted")
        return self._got(thing)

    @tool
    def craft(self, thing: str) -> str:
        """Craft one piece of a thing; its ingredients are used up.

        Args:
            thing: Its name.
        """
        self._refuse_unknown(thing)
        if thing not in self.world.recipes:
            raise ToolFailed(f"{thing} is gathered")
        parts = Counter(self.world.recipes[thing])
        if lacking := parts - self.held:
            raise ToolFailed("missing " + _listed(lacking))
        self.held -= parts
        self.crafted[thing] += 1
        if thing == self.world.target:
            self.finish()
        return self._got(thing)

    @tool
    def inventory(self) -> str:
        """List what you hold."""
        return _listed(self.held) or "nothing"

    @reward(weight=0.5, turn=True)
    def progress(self, episode: EpisodeView) -> float:
        """Pay the share of each needed craft once."""
        done = sum(min(self.crafted[thing], n) for thing, n in self.world.needed.items())
        newly, self._paid = done - self._paid, done
        return newly / self.world.crafts

    @reward(weight=0.5)
    def made(self, episode: EpisodeView) -> float:
        """Pay for the target."""
        return float(self.crafted[self.world.target] > 0)

    @metric
    def wasted(self, episode: EpisodeView) -> float:
        """Crafts that the target did not take."""
        return float(sum((self.crafted - Counter(self.world.needed)).values()))

    def expert(self) -> str:
        """Return the right call now: look up what is not known yet, else get the next piece."""
        for thing in self._to_look_up():
            return self.call_text("recipe", thing=thing)
        thing = next_piece(self.world, self.held)
        return self.call_text("craft" if thing in self.world.recipes else "gather", thing=thing)

    def state_hash(self) -> str:
        """Hash what is held, known and done; the turn's number is left out."""
        counts = [sorted(self.held.items()), sorted(self.crafted.items())]
        return digest([self.task.key, *counts, sorted(self.known)])

    def _to_look_up(self) -> list[str]:
        """Return what must be looked up before the whole tree of the target is known."""
        unknown, open_ = [], [self.world.target]
        while open_:
            thing = open_.pop()
            if thing not in self.known:
                unknown.append(thing)
            elif thing in self.world.recipes:
                open_ += self.world.recipes[thing]
        return [] if self.task.told else unknown  # type: ignore[attr-defined]

    def _refuse_unknown(self, thing: str) -> None:
        if thing not in self.world.recipes and thing not in self.world.raw:
            raise ToolFailed(f"there is no {thing[:40]}")

    def _got(self, thing: str) -> str:
        self.held[thing] += 1
        return f"{self.held[thing]} {thing}"


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{n} {thing}" for thing, n in sorted(counts.items()) if n)


def task_world(task: Order) -> World:
    """Return the world of a task."""
    rng = random.Random(derive("craft", json.dumps(task.to_json(), sort_keys=True)))
    return make_world(
        rng, task.depth, inputs=task.inputs, amount=task.amount, distractors=task.distractors
    )


def _expert_turns(world: World, *, told: bool) -> int:
    """Count the expert's turns from the start."""
    raw: Counter[str] = Counter()
    for thing, times in world.needed.items():
        for part, n in world.recipes[thing].items():
            raw[part] += times * n if part not in world.recipes else 0
    looked_up = 0 if told else len(world.needed) + sum(1 for n in raw.values() if n)
    return looked_up + sum(raw.values()) + world.crafts
