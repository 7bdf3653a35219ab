"""One tree of seeds: every random choice of a run follows from the run's seed and its place."""

from __future__ import annotations

from typing import Any

from turnwise.envs.types import digest


def derive(*parts: Any) -> int:
    """Return a 31-bit seed named by `parts`; equal parts give equal seeds in every process.

    The order of calls, the number of threads and everything else that may differ between two runs
    does not enter. Parts are JSON values.

    Example:
        `derive(run_seed, "env", "train", task.key)` excludes the replica, so that all attempts of
        a group start from the same state.
    """
    return int(digest(list(parts), 8), 16) & 0x7FFFFFFF
