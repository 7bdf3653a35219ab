"""What numbers a piece takes: refused where they are named, before a run has cost anything."""

from __future__ import annotations


def at_least(least: float, /, **numbers: float) -> None:
    """Refuse a number below `least`. Raises ValueError: one is, or is NaN."""
    for name, value in numbers.items():
        if not value >= least:
            raise ValueError(f"{name} must be at least {least:g}, got {value:g}")


def above(bound: float, /, **numbers: float) -> None:
    """Refuse a number that does not exceed `bound`. Raises ValueError: one does not, or is NaN."""
    for name, value in numbers.items():
        if not value > bound:
            raise ValueError(f"{name} must be above {bound:g}, got {value:g}")


def shares(**numbers: float) -> None:
    """Refuse what is no share of a whole. Raises ValueError: one is not from 0 to 1."""
    for name, value in numbers.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} is a share from 0 to 1, got {value:g}")
