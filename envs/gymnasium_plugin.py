"""Make every id known to `gymnasium.make` as well.

gymnasium 1.x loads no plugins by itself: `import turnwise.envs` registers, and so does the id form
that gymnasium offers for this, after `import gymnasium` alone:

    gymnasium.make("turnwise.envs:turnwise/FileHunt-v1")

The entry point `gymnasium.envs` of this distribution names `register_all`, for loaders that read
it. Nothing but gymnasium's own table is touched, and no environment is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from gymnasium.envs import registration


def mirror(
    id: str, entry_point: str | type | Callable[..., Any], kwargs: Mapping[str, Any]
) -> None:
    """Put one environment into gymnasium's table."""
    maker: Any = entry_point
    registration.registry[id] = registration.EnvSpec(id, maker, kwargs=dict(kwargs))


def register_all() -> None:
    """Put every built-in environment into gymnasium's table."""
    import turnwise.envs.registry  # noqa: F401  registering is what importing it does
