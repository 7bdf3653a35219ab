"""The tasks of `RepoRepair`: mutants of a folder's modules that its own tests see.

Which ones do is found out in a box, once: the result is kept on disk under a hash of the folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from turnwise.envs.builtin.mutate import Mutation, apply
from turnwise.envs.builtin.repo_files import functions, modules
from turnwise.envs.builtin.repo_suite import Folder
from turnwise.envs.seeds import derive
from turnwise.envs.types import digest
from turnwise.sandboxes.base import Sandbox

VERSION = 3
"""Of what is kept on disk; raise it when mutants or the way they are run change."""
SHARES = (*["train"] * 6, *["dev"] * 2, *["test"] * 2)
"""Of ten classes of functions, by hash, the split of each: no two splits share a function."""
TRIES = 3
"""Mutations of a function that are tried for each one that is wanted."""
MIN_FAILING = 2
"""Tests that see a bug, parametrized ones counted once: one is shown, and one is not, so that to
know the shown one by heart is no help."""
RUNS = 2
"""Of the clean suite: a test that does not pass in each is left out."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """One bug in a folder, and the tests that see it."""

    path: str
    function: str
    kind: str
    start: int
    end: int
    new: str
    line: int
    split: str
    failing: tuple[str, ...]

    def apply(self, source: str) -> str:
        """Return the module with the bug in it."""
        bug = Mutation(self.kind, self.start, self.end, self.new, self.line, self.function)
        return apply(source, [bug])


@dataclass(frozen=True, slots=True)
class Repo:
    """A folder, the tests that pass in it, and its mutants."""

    files: Mapping[str, bytes]
    sources: Mapping[str, str]
    """The modules that bugs are in."""
    sha: str
    passing: tuple[str, ...]
    mutants: tuple[Mutant, ...]


class UnfitRepo(ValueError):
    """The folder offers no tasks; the message says what its tests said."""


def split_of(path: str, function: str) -> str:
    """Return the split of a function, which does not depend on what else there is."""
    return SHARES[derive("split", path, function) % len(SHARES)]


def test_function(test: str) -> str:
    """Return a test's name without its parameters: they cannot be hidden one by one."""
    return test.partition("[")[0]


def content_hash(files: Mapping[str, bytes]) -> str:
    """Return 16 hex digits over paths and contents."""
    return digest({path: hashlib.sha256(data).hexdigest() for path, data in files.items()})


_known: dict[str, Repo] = {}
_lock = threading.Lock()


def explore(
    files: Mapping[str, bytes],
    open_box: Callable[[], Sandbox],
    *,
    command: str | None,
    timeout_s: float,
    per_function: int,
    max_functions: int,
) -> Repo:
    """Return the folder with its mutants: from memory, from disk, or found out in a box.

    Args:
        files: path -> content.
        open_box: makes the box that is used; it is closed here.
        command, timeout_s: see `Folder.run`.
        per_function: at most so many mutants of one function.
        max_functions: no more functions are looked at once so many have mutants.

    Raises:
        UnfitRepo: no test passes in the clean folder, or no mutant is seen by two.
        SandboxError: the machine failed.
    """
    bounds = [command, per_function, max_functions, timeout_s, VERSION]
    key = digest([content_hash(files), bounds])
    with _lock:  # one at a time: the others find it in memory
        if key not in _known:
            found = _read(key) or _search(files, open_box, command, timeout_s, bounds)
            _keep(key, found)
            _known[key] = _repo(files, found)
        return _known[key]


def _repo(files: Mapping[str, bytes], found: dict[str, Any]) -> Repo:
    mutants = tuple(
        Mutant(**{**mutant, "failing": tuple(mutant["failing"])}) for mutant in found["mutants"]
    )
    sha = content_hash(files)
    return Repo(files, modules(files), sha, tuple(found["passing"]), mutants)


def _search(
    files: Mapping[str, bytes],
    open_box: Callable[[], Sandbox],
    command: str | None,
    timeout_s: float,
    bounds: list[Any],
) -> dict[str, Any]:
    """Try mutations of one function after another in a box."""
    sources, mutants, with_mutants = modules(files), list[dict[str, Any]](), 0
    with open_box() as box:
        folder = Folder(box)
        passing = _passing(folder, files, command, timeout_s)
        for path, function, offered in functions(sources):
            if with_mutants == bounds[2]:
                break
            accepted = []
            for mutation in offered[: TRIES * bounds[1]]:
                broken = {**files, path: apply(sources[path], [mutation]).encode()}
                results = folder.run(broken, command, timeout_s)
                failing = [name for name in passing if results.get(name, "gone")]
                seen_by = len({test_function(name) for name in failing})
                # With fewer results than tests it hangs or does not import.
                if seen_by >= MIN_FAILING and len(results) >= len(passing):
                    accepted.append((mutation, failing))
                if len(accepted) == bounds[1]:
                    break
            split = split_of(path, function)
            with_mutants += bool(accepted)
            mutants += [_mutant(path, split, *one) for one in accepted]
            folder.run(files, command, timeout_s)
    if not mutants:
        raise UnfitRepo(
            f"no mutant is seen by {MIN_FAILING} tests that pass, one to be shown and one to be "
            "hidden; the folder needs more tests"
        )
    return {"passing": passing, "mutants": mutants}


def _mutant(path: str, split: str, mutation: Mutation, failing: list[str]) -> dict[str, Any]:
    fields = {name: getattr(mutation, name) for name in Mutation.__slots__}
    return {"path": path, "split": split, "failing": failing, **fields}


def _passing(
    folder: Folder, files: Mapping[str, bytes], command: str | None, timeout_s: float
) -> list[str]:
    """Return the tests that pass in each run of the clean suite."""
    runs = [folder.run(files, command, timeout_s) for _ in range(RUNS)]
    passing = sorted(
        name for name, why in runs[0].items() if not any(r.get(name, "") for r in runs)
    )
    if not passing:
        said = "; ".join(f"{name}: {why}" for name, why in list(runs[0].items())[:2]) or "nothing"
        how = command or "unittest's discovery"
        raise UnfitRepo(f"no test passes in the clean folder by {how}, which says: {said[:400]}")
    return passing


def _folder() -> Path | None:
    """Where results are kept: the user's cache; None where there is none to write to."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    place = Path(home) / "turnwise" / "repo-repair"
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return None
    return place


def _read(key: str) -> dict[str, Any] | None:
    """Return what was kept, unless it is damaged."""
    place = _folder()
    try:
        value = json.loads((place / f"{key}.json").read_text()) if place else None
    except (OSError, ValueError):
        return None
    whole = isinstance(value, dict) and value.get("passing") and value.get("mutants")
    return value if whole else None


def _keep(key: str, found: dict[str, Any]) -> None:
    if (place := _folder()) is None:
        return
    with contextlib.suppress(OSError):
        draft = place / f"{key}.{os.getpid()}"
        draft.write_text(json.dumps(found))
        draft.replace(place / f"{key}.json")
