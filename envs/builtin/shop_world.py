"""The catalogues, accounts and errands of Shop, from a seed."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from turnwise.envs.builtin.shop_goods import (
    BRANDS,
    CATEGORIES,
    CITIES,
    COLOURS,
    COUPONS,
    FIRST_NAMES,
    LAST_NAMES,
    MATERIALS,
    SHIPPING,
    SIZES,
    STREETS,
    STYLES,
    Product,
    stars,
)

ASKED = ("brand", "style", "material", "max_price", "min_rating")
"""What a goal may ask of a product besides its category."""


@dataclass(frozen=True, slots=True)
class Goal:
    """One product to be bought: what is asked of it, and the one that fits."""

    product: Product
    asked: Mapping[str, Any]
    """Of `ASKED`, those that this goal names."""
    colour: str
    size: str
    quantity: int

    def fits(self, product: Product) -> bool:
        """Whether `product` has all that is asked."""
        return (
            product.category == self.product.category
            and self.colour in product.colours
            and all(_meets(product, name, value) for name, value in self.asked.items())
        )

    @property
    def text(self) -> str:
        """As the agent reads it."""
        kinds = [self.asked[name] for name in ("brand", "style", "material") if name in self.asked]
        said = [" ".join([f"{self.quantity} x", *kinds, self.product.category])]
        if "max_price" in self.asked:
            said.append(f"at most ${self.asked['max_price']}")
        if "min_rating" in self.asked:
            said.append(f"rated {stars(self.asked['min_rating'])} or more")
        said.append(f"in {self.colour}")
        return ", ".join([*said, f"size {self.size}"] if self.size else said)

    @property
    def line(self) -> list[Any]:
        """As it stands in a cart: product, colour, size, quantity."""
        return [self.product.id, self.colour, self.size, self.quantity]


def _meets(product: Product, name: str, value: Any) -> bool:
    if name == "max_price":
        return product.price <= value
    if name == "min_rating":
        return product.rating >= value
    return bool(getattr(product, name) == value)


@dataclass(frozen=True, slots=True)
class World:
    """Everything of one task."""

    products: tuple[Product, ...]
    """In the order in which the shop lists them."""
    goals: tuple[Goal, ...]
    addresses: Mapping[str, Mapping[str, str]]
    """By name: `home`, `work`; and `new` where the address is to be typed."""
    address: str
    shipping: str
    coupon: str
    gift: bool

    def order(self) -> dict[str, Any]:
        """Return the one order that solves the task, as the shop's database holds it."""
        return {
            "lines": sorted(goal.line for goal in self.goals),
            "address": dict(self.addresses[self.address]),
            "shipping": self.shipping,
            "coupon": self.coupon,
            "gift": self.gift,
            "newsletter": False,
        }

    @property
    def text(self) -> str:
        """The errand in words."""
        bought = "; ".join(goal.text for goal in self.goals)
        to = f"the {self.address} address"
        if self.address == "new":
            to = ", ".join(f"{name} {value}" for name, value in self.addresses["new"].items())
        said = [f"Buy {bought}.", f"Ship {self.shipping} to {to}."]
        said += [f"Use coupon {self.coupon}."] if self.coupon else []
        said += ["Add gift wrap."] if self.gift else []
        return " ".join([*said, "Buy nothing else. Then call done."])


def make_world(
    rng: random.Random,
    *,
    products: int,
    constraints: int,
    items: int,
    distractors: int,
    depth: int,
    per_page: int,
    extras: bool,
    typed_address: bool,
) -> World:
    """Return a world in which exactly one product fits each goal.

    Args:
        rng: Every choice comes from it.
        products: Size of the catalogue.
        constraints: How many of `ASKED` each goal names.
        items: How many goals there are, each in a category of its own.
        distractors: Products per goal that miss what is asked in one point.
        depth: Result pages of its category before the one that lists the product.
        per_page: Products on a page of results.
        extras: Whether there may be a coupon and gift wrap.
        typed_address: Whether the address is to be typed.
    """
    categories = rng.sample(CATEGORIES, items)
    shares = _shares(rng, products, categories, max((depth + 1) * per_page, distractors + 1))
    made: dict[str, list[Product]] = {}
    goals = []
    for category, size in shares.items():
        made[category] = _stock(rng, category, size)
        if category in categories:
            goal = _goal(rng, rng.choice(made[category]), constraints)
            made[category] = _arranged(rng, goal, made[category], distractors, depth, per_page)
            goals.append(goal)
    listed = _interleaved(rng, list(made.values()))
    numbered = {product.name: i for i, product in enumerate(listed, 1)}
    goals.sort(key=lambda goal: categories.index(goal.product.category))
    addresses = _addresses(rng, typed_address)
    return World(
        products=tuple(replace(product, id=numbered[product.name]) for product in listed),
        goals=tuple(_numbered(goal, numbered) for goal in goals),
        addresses=addresses,
        address="new" if typed_address else rng.choice(("home", "work")),
        shipping=rng.choice(SHIPPING),
        coupon=rng.choice((*COUPONS, "", "")) if extras else "",
        gift=extras and rng.random() < 0.4,
    )


def _numbered(goal: Goal, numbers: Mapping[str, int]) -> Goal:
    return replace(goal, product=replace(goal.product, id=numbers[goal.product.name]))


def _shares(rng: random.Random, products: int, goals: Sequence[str], least: int) -> dict[str, int]:
    """Return how many products each category has; those of the goals have at least `least`."""
    shares = {category: least if category in goals else 0 for category in CATEGORIES}
    for _ in range(products - sum(shares.values())):
        room = [c for c in CATEGORIES if shares[c] < MAX_PER_CATEGORY]
        shares[rng.choice(room)] += 1
    return shares


MAX_PER_CATEGORY = len(BRANDS) * len(STYLES) * 4


def _stock(rng: random.Random, category: str, size: int) -> list[Product]:
    kinds = [(b, s, m) for b in BRANDS for s in STYLES for m in MATERIALS[category]]
    return [_product(rng, category, *kind) for kind in rng.sample(kinds, size)]


def _product(rng: random.Random, category: str, brand: str, style: str, material: str) -> Product:
    colours = tuple(rng.sample(COLOURS, rng.randint(2, 4)))
    sizes = SIZES.get(category, ())
    price, rating = rng.randint(8, 90), rng.randint(30, 50)
    return Product(0, category, brand, style, material, price, rating, colours, sizes)


def _goal(rng: random.Random, product: Product, constraints: int) -> Goal:
    values = product.to_json()
    values["max_price"] = product.price + rng.randint(0, 5)
    values["min_rating"] = max(product.rating - rng.randint(0, 3), 30)
    named = set(rng.sample(ASKED, constraints))
    asked = {name: values[name] for name in ASKED if name in named}
    size = rng.choice(product.sizes) if product.sizes else ""
    return Goal(product, asked, rng.choice(product.colours), size, rng.choice((1, 1, 2, 3)))


def _arranged(
    rng: random.Random,
    goal: Goal,
    stock: list[Product],
    distractors: int,
    depth: int,
    per_page: int,
) -> list[Product]:
    """Return the category's products such that only the goal's fits, at its place in the list."""
    others = [product for product in stock if product != goal.product]
    names = {product.name for product in stock}
    for i, product in enumerate(others):
        near = goal.product if i < distractors else product
        if i < distractors or goal.fits(product):
            names.discard(product.name)
            others[i] = _spoilt(rng, goal, near, names, _product(rng, *_kind(product)))
            names.add(others[i].name)
    rng.shuffle(others)
    place = depth * per_page + rng.randrange(min(per_page, len(stock) - depth * per_page))
    others.insert(place, goal.product)
    return others


def _kind(product: Product) -> tuple[str, str, str, str]:
    return product.category, product.brand, product.style, product.material


def _spoilt(
    rng: random.Random, goal: Goal, near: Product, taken: set[str], spare: Product
) -> Product:
    """Return a product like `near` that misses one thing that `goal` asks, its name not taken."""
    for _ in range(50):
        made = _missing(rng, goal, near, rng.choice([*goal.asked, "colour"]))
        if made.name in taken:
            made = _renamed(rng, goal, made)
        if made.name not in taken and not goal.fits(made):
            return made
    return _missing(rng, goal, spare, "colour")


def _missing(rng: random.Random, goal: Goal, near: Product, point: str) -> Product:
    if point == "max_price":
        return replace(near, price=goal.asked[point] + rng.randint(1, 9))
    if point == "min_rating":
        return replace(near, rating=goal.asked[point] - rng.randint(1, 5))
    if point == "colour":
        kept = [c for c in COLOURS if c != goal.colour]
        return replace(near, colours=tuple(rng.sample(kept, rng.randint(2, 4))))
    return _other(rng, near, point)


def _renamed(rng: random.Random, goal: Goal, product: Product) -> Product:
    """Give it another brand, style or material; first those that the goal does not ask about."""
    free = [name for name in ("brand", "style", "material") if name not in goal.asked]
    point = rng.choice(free or ["brand", "style", "material"])
    return _other(rng, product, point)


def _other(rng: random.Random, product: Product, point: str) -> Product:
    """Return the product with another brand, style or material, or by chance the same one."""
    choices = {"brand": BRANDS, "style": STYLES, "material": MATERIALS[product.category]}
    changed: dict[str, Any] = {point: rng.choice(choices[point])}
    return replace(product, **changed)


def _interleaved(rng: random.Random, lists: list[list[Product]]) -> list[Product]:
    """Return all products mixed, those of each list in its order."""
    turns = [i for i, products in enumerate(lists) for _ in products]
    rng.shuffle(turns)
    queues = [iter(products) for products in lists]
    return [next(queues[i]) for i in turns]


def _addresses(rng: random.Random, typed: bool) -> dict[str, dict[str, str]]:
    name = f"{rng.choice(FIRST_NAMES)} {rng.choice(LAST_NAMES)}"
    names = ("home", "work", "new") if typed else ("home", "work")
    streets = rng.sample(STREETS, len(names))
    return {
        key: {
            "name": name,
            "street": f"{rng.randint(1, 99)} {street}",
            "city": rng.choice(CITIES),
            "zip": f"{rng.randint(10000, 99999)}",
        }
        for key, street in zip(names, streets, strict=True)
    }
