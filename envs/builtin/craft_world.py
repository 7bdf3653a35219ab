"""The worlds of Craft: which things there are, and what each is made of, from a seed alone."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

RAW = (
    *("ash", "bark", "clay", "coal", "flax", "flint", "horn", "iron"),
    *("leaf", "moss", "reed", "resin", "salt", "sand", "stone", "wool"),
)
"""Things that are gathered."""

MADE = (
    *("anvil", "arrow", "axe", "basket", "bell", "boat", "boot", "bow", "brick", "broom"),
    *("bucket", "candle", "cart", "chain", "chair", "cloak", "comb", "cup", "door", "drum"),
    *("flute", "glass", "glove", "hammer", "harp", "hat", "hook", "jar", "kite", "knife"),
    *("ladder", "lamp", "mask", "mill", "mirror", "nail", "net", "oar", "pipe", "plough"),
    *("pot", "ring", "rope", "saddle", "sail", "saw", "shield", "shovel", "table", "wheel"),
)
"""Things that are crafted: a closed list, so that a small tokenizer can hold each as one token."""

Recipe = Mapping[str, int]


@dataclass(frozen=True, slots=True)
class World:
    """What can be gathered, and how everything else is made."""

    target: str
    recipes: Mapping[str, Recipe]
    """{thing: {ingredient: count}}; what has no recipe is gathered."""
    raw: tuple[str, ...]
    needed: Mapping[str, int] = field(default_factory=dict)
    """How often each thing must be crafted for one target, from nothing."""

    @property
    def crafts(self) -> int:
        """How many crafts the target takes."""
        return sum(self.needed.values())

    def describe(self, thing: str) -> str:
        """Return the recipe as the agent reads it."""
        if thing not in self.recipes:
            return f"{thing}: gather"
        return f"{thing}: " + ", ".join(f"{n} {part}" for part, n in self.recipes[thing].items())


def make_world(
    rng: random.Random, depth: int, *, inputs: int, amount: int, distractors: int
) -> World:
    """Return a world whose target takes a chain of `depth` recipes.

    Args:
        rng: Decides everything; the same state gives the same world.
        depth: Levels of recipes: at 1 the target is made of what is gathered.
        inputs: Most different ingredients of one recipe.
        amount: Most pieces of one ingredient.
        distractors: Recipes that the target does not need.
    """
    made, raw = rng.sample(MADE, len(MADE)), tuple(rng.sample(RAW, 6))
    target, recipes = made.pop(), dict[str, dict[str, int]]()
    below = target
    for level in range(depth, 0, -1):
        names = list(rng.sample(raw, rng.randint(1, inputs)))
        thing = below
        if level > 1:  # one ingredient that is itself crafted carries the chain on
            below = made.pop()
            names = [below, *names[: inputs - 1]]
        recipes[thing] = {name: rng.randint(1, amount) for name in rng.sample(names, len(names))}
    needed = _needed(target, recipes)
    for _ in range(distractors):
        known = [*raw, *(name for name in recipes if name != target)]
        names = rng.sample(known, min(len(known), rng.randint(1, inputs)))
        recipes[made.pop()] = {name: rng.randint(1, amount) for name in names}
    order = rng.sample(sorted(recipes), len(recipes))
    return World(target, {name: recipes[name] for name in order}, raw, needed)


def _needed(target: str, recipes: Mapping[str, Recipe]) -> dict[str, int]:
    """Count the crafts of each thing that one target takes."""
    counts: Counter[str] = Counter()
    open_ = [(target, 1)]
    while open_:
        thing, times = open_.pop()
        counts[thing] += times
        parts = recipes[thing].items()
        open_ += [(part, times * n) for part, n in parts if part in recipes]
    return dict(counts)


def next_piece(world: World, held: Mapping[str, int]) -> str:
    """Return the thing to get now on the shortest way to one target: gather or craft it."""
    thing = world.target
    while thing in world.recipes:
        missing = [p for p, n in world.recipes[thing].items() if held.get(p, 0) < n]
        if not missing:
            return thing
        thing = missing[0]
    return thing
