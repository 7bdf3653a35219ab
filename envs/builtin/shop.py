"""Shop: errands in a small web shop, played as text or in a real browser.

    Buy 2 x Birk wool blanket, at most $40, in red. Ship express to the home address.
    Use coupon SAVE10. Buy nothing else. Then call done.

The shop runs in a sandbox: a catalogue with categories, a search with filters, sorting and pages,
products with colours and sizes, a cart, a checkout with addresses, shipping, coupons and gift wrap,
a review and a confirmation. Exactly one product fits each wish; others miss it in one point.

Reward: 1 if the shop's database holds the one order that was asked for and no other, else 0.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from turnwise.envs.builtin import shop_goods as goods
from turnwise.envs.builtin.shop_expert import next_action
from turnwise.envs.builtin.shop_world import World, make_world
from turnwise.envs.knobs import count, span
from turnwise.envs.seeds import derive
from turnwise.envs.task_range import TaskRange, check_drawn
from turnwise.envs.tool_env import EpisodeView
from turnwise.envs.tools import metric, reward
from turnwise.envs.types import Task
from turnwise.envs.web.env import WebEnv

SIZES = {"train": 1_000_000, "dev": 10_000, "test": 10_000}
PER_PAGE = 8
BOUNDS: dict[str, tuple[int, int]] = {
    "products": (8, 480),
    "constraints": (1, 5),
    "items": (1, 4),
    "distractors": (0, 8),
    "depth": (0, 3),
    "per_page": (2, 24),
}


@dataclass(frozen=True, kw_only=True)
class Errand(Task):
    """One errand. The shop and what is to be bought follow from these fields alone."""

    split: str = "train"
    index: int = 0
    products: int = 60
    constraints: int = 2
    items: int = 1
    distractors: int = 3
    depth: int = 0
    per_page: int = PER_PAGE
    extras: bool = True
    typed_address: bool = False

    def __post_init__(self) -> None:
        check_drawn(self, **BOUNDS)
        least = least_products(self.items, self.depth, self.per_page, self.distractors)
        count("Errand.products", self.products, least, BOUNDS["products"][1])


class Shop(WebEnv):
    """Buy what is asked for, and nothing else, in a small web shop.

    Args:
        products: Size of the catalogue, 8 to 480.
        constraints: How many of brand, style, material, price and rating a wish names, 1 to 5.
        items: Wishes per errand, or (least, most), 1 to 4; tasks take turns.
        distractors: Products per wish that miss it in one point, 0 to 8.
        depth: Result pages before the one that lists what fits, or (least, most), 0 to 3.
        per_page: Products on a page of results, 2 to 24.
        filters: Whether results can be filtered and sorted.
        extras: Whether errands may name a coupon and gift wrap.
        typed_address: Whether the address must be typed rather than chosen.
        slack: Turns beyond what the expert needs.
        options: See `WebEnv`: `mode`, `view_lines`, `remind`, `pictures`, `actions`.

    Raises:
        ValueError: a number lies outside its range, or the catalogue is too small for the others.

    Example:
        `make("turnwise/Shop-v1", products=12, constraints=1, extras=False, actions="command")`
    """

    Task: ClassVar[type[Task]] = Errand
    site: ClassVar[tuple[str, ...]] = (".shop_pages", ".shop_site")
    static: ClassVar[tuple[str, ...]] = ("shop.css",)
    words: ClassVar[tuple[str, ...]] = (
        *(*goods.CATEGORIES, *goods.BRANDS, *goods.STYLES, *goods.COLOURS),
        *(m for kinds in goods.MATERIALS.values() for m in kinds),
        *goods.SHIPPING,
    )
    """What a tokenizer made for this environment should hold as single tokens."""

    def __init__(
        self,
        *,
        products: int = 60,
        constraints: int = 2,
        items: int | Sequence[int] = (1, 2),
        distractors: int = 3,
        depth: int | Sequence[int] = (0, 1),
        per_page: int = PER_PAGE,
        filters: bool = True,
        extras: bool = True,
        typed_address: bool = False,
        slack: int = 15,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.items = span("items", items, *BOUNDS["items"])
        self.depths = span("depth", depth, *BOUNDS["depth"])
        self.filters, self.slack = filters, count("slack", slack, 0, 1000)
        count("constraints", constraints, *BOUNDS["constraints"])
        count("distractors", distractors, *BOUNDS["distractors"])
        count("per_page", per_page, *BOUNDS["per_page"])
        count("products", products, *BOUNDS["products"])
        least = least_products(self.items[1], self.depths[1], per_page, distractors)
        if products < least:
            raise ValueError(
                f"products must be at least {least} for items={items}, depth={depth}, "
                f"distractors={distractors} and per_page={per_page}, got {products}; "
                "take more products or fewer of the others"
            )
        self._fields: dict[str, Any] = {
            "products": products,
            "constraints": constraints,
            "distractors": distractors,
            "per_page": per_page,
            "extras": extras,
            "typed_address": typed_address,
        }

    def tasks(self, split: str) -> Sequence[Errand]:
        """Return the errands of a split, made on demand; numbers of items and depths take turns."""
        self.known_split(split)
        return TaskRange(lambda index: self._errand(split, index), SIZES[split])

    def setup(self, task: Errand, rng: random.Random) -> str:
        """Open the shop and return the errand and the front page."""
        self.world: World = task_world(task)
        self.max_turns = expert_turns(self.world, task) + self.slack
        return self.open_site(self.world.text, site_data(self.world, task, self.filters))

    @reward()
    def ordered(self, episode: EpisodeView) -> float:
        """Pay for the one order that was asked for, once the agent is done."""
        return float(episode.terminated and self.db.get("orders") == [self.world.order()])

    @metric
    def orders(self, episode: EpisodeView) -> float:
        """How many orders were placed."""
        return float(len(self.db.get("orders", [])))

    def expert(self) -> str:
        """Return the right action now, whatever was done before."""
        return next_action(self, self.world)

    def _errand(self, split: str, index: int) -> Errand:
        (low, high), (shallow, deep) = self.items, self.depths
        items = low + index % (high - low + 1)
        depth = shallow + index // (high - low + 1) % (deep - shallow + 1)
        return Errand(split=split, index=index, items=items, depth=depth, **self._fields)


def least_products(items: int, depth: int, per_page: int, distractors: int) -> int:
    """Return how large the catalogue of an errand must be."""
    return items * max((depth + 1) * per_page, distractors + 1)


def task_world(task: Errand) -> World:
    """Return the world of an errand."""
    fields = task.to_json()
    rng = random.Random(derive("shop", fields))
    for name in ("hidden", "split", "index"):
        del fields[name]
    return make_world(rng, **fields)


def site_data(world: World, task: Errand, filters: bool) -> dict[str, Any]:
    """Return what the shop's pages are made of; nothing in it says what is to be bought."""
    return {
        "name": "Hearth",
        "products": [product.to_json() for product in world.products],
        "categories": goods.CATEGORIES,
        "brands": goods.BRANDS,
        "styles": goods.STYLES,
        "addresses": {k: v for k, v in world.addresses.items() if k != "new"},
        "shipping": goods.SHIPPING_PRICES,
        "coupons": goods.COUPONS,
        "per_page": task.per_page,
        "featured": min(4, task.per_page),
        "filters": filters,
    }


def expert_turns(world: World, task: Errand) -> int:
    """Return at most how many turns the expert needs where nothing has to be scrolled for."""
    per_item = sum(6 + task.depth + bool(goal.size) for goal in world.goals)
    address = 5 if world.address == "new" else 1
    return per_item + address + 5 + bool(world.coupon) + world.gift
