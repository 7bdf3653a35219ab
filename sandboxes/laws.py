"""The laws of a sandbox, each as a function that tries it on a real box; see `check_sandbox`."""

from __future__ import annotations

from turnwise.sandboxes.law import Law
from turnwise.sandboxes.laws_calls import CALLS
from turnwise.sandboxes.laws_life import LIFE
from turnwise.sandboxes.laws_walls import WALLS

LAWS: tuple[Law, ...] = (*CALLS, *LIFE, *WALLS)
"""In the order in which they are tried: no bomb before the walls have held."""
