"""What the shop of Shop sells and knows: words, prices and addresses to draw from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MATERIALS: Mapping[str, tuple[str, ...]] = {
    "lamp": ("brass", "oak", "glass", "paper"),
    "mug": ("stoneware", "glass", "steel", "enamel"),
    "chair": ("oak", "steel", "rattan", "walnut"),
    "blanket": ("wool", "cotton", "linen", "fleece"),
    "shirt": ("cotton", "linen", "flannel", "silk"),
    "jacket": ("denim", "wool", "leather", "nylon"),
    "bag": ("leather", "canvas", "nylon", "felt"),
    "clock": ("oak", "brass", "steel", "slate"),
}
CATEGORIES = tuple(MATERIALS)
BRANDS = ("Alder", "Birk", "Corvo", "Dune", "Elmo", "Fjord")
STYLES = ("plain", "striped", "classic", "modern", "rustic")
COLOURS = ("red", "blue", "green", "black", "white", "yellow")
SIZES: Mapping[str, tuple[str, ...]] = {"shirt": ("S", "M", "L"), "jacket": ("S", "M", "L")}
SHIPPING = ("standard", "express", "pickup")
SHIPPING_PRICES: Mapping[str, int] = {"standard": 4, "express": 12, "pickup": 0}
COUPONS: Mapping[str, int] = {"SAVE10": 10, "HELLO5": 5, "SPRING20": 20}
STREETS = ("Oak Street", "Mill Lane", "Hill Road", "Bay Avenue", "Park Row")
CITIES = ("Milton", "Ashford", "Weston", "Derby")
FIRST_NAMES = ("Ada", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gus", "Ida")
LAST_NAMES = ("Stone", "Marsh", "Field", "Brook", "Wood", "Frost")


@dataclass(frozen=True, slots=True)
class Product:
    """One product. Prices are whole dollars, ratings tenths of a star."""

    id: int
    category: str
    brand: str
    style: str
    material: str
    price: int
    rating: int
    colours: tuple[str, ...]
    sizes: tuple[str, ...]

    @property
    def name(self) -> str:
        """As the shop writes it; no two products share it."""
        return f"{self.brand} {self.style} {self.material} {self.category}"

    def to_json(self) -> dict[str, Any]:
        """Return what the shop's pages show."""
        return {**{name: getattr(self, name) for name in self.__slots__}, "name": self.name}


def stars(tenths: int) -> str:
    """Return a rating as it is written."""
    return f"{tenths // 10}.{tenths % 10}"
