"""RepoRepair: mend a bug in a real package, a folder that you point at.

Bugs are put into its functions; only those are used that at least two of its own tests see. What
is submitted is judged in a fresh box, from the folder's own files and the modules that were edited.

The tests run beside the code that they test, as the folder's author wrote them, and no process can
judge itself for certain. So an edit may add only what is known to be harmless (see `repo_guard`,
which also says what that leaves open), and with unittest's discovery each test has a process of its
own, whose word is checked by one that never loads the folder's code (see `repo_runner`). With a
`test_command` the results are what that command prints: the guard alone is between.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, ClassVar

from turnwise.envs.builtin.mend import Mend
from turnwise.envs.builtin.mutate import compiles
from turnwise.envs.builtin.repo_files import read_folder, texts, without_tests
from turnwise.envs.builtin.repo_guard import objection
from turnwise.envs.builtin.repo_sample import FILES
from turnwise.envs.builtin.repo_suite import Folder, Results
from turnwise.envs.builtin.repo_world import Mutant, Repo, UnfitRepo, explore, test_function
from turnwise.envs.knobs import count, within
from turnwise.envs.seeds import derive
from turnwise.envs.tools import ToolFailed, tool
from turnwise.envs.types import Task, digest
from turnwise.sandboxes.base import Limits

MAX_FOUND, MAX_FAILURES = 20, 5
"""Lines that `search` shows, and tests of which a run tells what went wrong."""


@dataclass(frozen=True, kw_only=True)
class RepoBug(Task):
    """One bug in a folder."""

    repo: str = ""
    """Hash of the folder's content: the task means nothing in another one."""
    split: str = "train"
    index: int = 0
    hidden: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """The bug: where it is, what it changes, which tests see it."""


class RepoRepair(Mend):
    """A package with a bug in one function, found by some of its own tests.

    Reward: 1 if all its tests pass in a fresh box, also those that were taken out of the files
    that the agent can read; else 0. Each bug is seen by at least one test that is shown and, unless
    `hide` is 0, by one that is not: an answer made for the shown input alone earns 0.

    Args:
        repo: the folder; a small sample package without it. Hidden files (`.git`) are left out.
        test_command: a shell command that prints results as `pytest -rA` or `unittest -v` do, for
            example `python3 -m pytest -q -rA`; by default unittest's discovery. What it needs must
            be installed in the box.
        timeout_s: of one run of the suite.
        per_function: mutants of each function, at most.
        max_functions: functions to put bugs into, at most.
        hide: share of the tests that see the bug which the agent cannot read: at least one of them,
            but never all; with 0 none.
        options: see `Mend`.

    Example:
        env = make("turnwise/RepoRepair-v1", repo="src/mypackage")
    """

    Task: ClassVar[type[Task]] = RepoBug
    limits = Limits(memory_mb=512, pids=64, disk_mb=64, wall_s=60.0)

    def __init__(
        self,
        *,
        repo: str | None = None,
        test_command: str | None = None,
        timeout_s: float = 30.0,
        per_function: int = 4,
        max_functions: int = 40,
        hide: float = 0.5,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        within("timeout_s", timeout_s, 0, 600)
        count("per_function", per_function, 1, 100)
        count("max_functions", max_functions, 3, 10_000)
        within("hide", hide, 0, 1)
        sample = {path: text.encode() for path, text in FILES.items()}
        self._contents = read_folder(repo) if repo else sample
        self.test_command, self.timeout_s, self.hide = test_command, timeout_s, hide
        self.per_function, self.max_functions = per_function, max_functions
        self._known: Repo | None = None
        self._folder: Folder | None = None

    @property
    def repo(self) -> Repo:
        """The folder with its mutants, found out at the first use.

        Raises:
            UnfitRepo: it offers no tasks; the message says why.
            SandboxError: the machine failed.
        """
        self._known = self._known or explore(
            self._contents,
            self.fresh_box,
            command=self.test_command,
            timeout_s=self.timeout_s,
            per_function=self.per_function,
            max_functions=self.max_functions,
        )
        return self._known

    def tasks(self, split: str) -> Sequence[RepoBug]:
        """Return the bugs of a split; no two splits put bugs into the same function."""
        known, repo = self.known_split(split), self.repo
        own = [mutant for mutant in repo.mutants if mutant.split == known]
        if not own:
            count = len({(mutant.path, mutant.function) for mutant in repo.mutants})
            raise UnfitRepo(
                f"no task in split {known!r}: a hash of a function's path and name decides its "
                f"split, and none of the {count} that have bugs falls there; raise max_functions, "
                "point at a larger folder, or use another split"
            )
        return [
            RepoBug(repo=repo.sha, split=known, index=i, hidden=_fields(mutant))
            for i, mutant in enumerate(own)
        ]

    def setup(self, task: RepoBug, rng: random.Random) -> str:
        """Put the bug in, and say which tests see it."""
        repo = self.repo
        if task.repo != repo.sha:
            raise ValueError(
                f"the task is of a folder with hash {task.repo!r}, and this one has {repo.sha!r}; "
                "give the `repo` that it was made from"
            )
        self._folder = None
        mutant = Mutant(**{**task.hidden, "failing": tuple(task.hidden["failing"])})
        self.shown = _shown(mutant, self.hide)
        broken = dict(repo.sources)
        broken[mutant.path] = mutant.apply(broken[mutant.path])
        self._tests = self._visible_files(set(mutant.failing) - set(self.shown))
        others = texts({**repo.files, **self._tests})
        read_only = {path: text for path, text in others.items() if path not in broken}
        self._visible = [n for n in repo.passing if n in self.shown or n not in mutant.failing]
        share = 1.0 - len(self.shown) / len(self._visible)
        self.begin_mend(repo.sources, broken, read_only, bugs=1, passing=share)
        self.max_turns += 4  # a folder takes some looking around
        names = "\n".join(self.shown[:MAX_FAILURES])
        return f"These tests fail:\n{names}\nMend the code, not the tests, and submit."

    @tool
    def ls(self, path: str = "") -> str:
        """List the files.

        Args:
            path: Only those whose path starts so.
        """
        self._last = f"ls {path}"
        return "\n".join(self.listed(path.removeprefix("./"))) or "no files"

    @tool
    def search(self, text: str) -> str:
        """Find the lines of all files that hold a text.

        Args:
            text: The text, as it stands there.
        """
        if not text.strip():
            raise ToolFailed("give a text to look for")
        self._last = digest(["search", text])
        found = [
            f"{path}:{number}: {line.strip()[:160]}"
            for path, content in sorted({**self.files, **self.read_only}.items())
            for number, line in enumerate(content.splitlines(), 1)
            if text in line
        ]
        more = [f"and {len(found) - MAX_FOUND} more"] if len(found) > MAX_FOUND else []
        return "\n".join([*found[:MAX_FOUND], *more]) or "nothing found"

    def refuse(self, name: str, text: str) -> None:
        """Refuse what could reach the tests that run beside the code."""
        if (word := self._objection(name, text)) is not None:
            raise ToolFailed(f"a mend of {name} must not add {word[:60]!r}", "not_allowed")

    def _objection(self, name: str, text: str) -> str | None:
        sources = self.repo.sources
        return objection(sources[name], text, sources.values(), self.broken[name])

    def try_visible(self) -> tuple[str, float]:
        """Run the suite in this episode's box, without the tests that are hidden."""
        self._folder = self._folder or Folder(self.box)
        files = {**self.repo.files, **self._tests, **self._edited()}
        results = self._folder.run(files, self.test_command, self.timeout_s)
        failed = [name for name in self._visible if results.get(name, "did not run")]
        passed = len(self._visible) - len(failed)
        return _report(results, failed, len(self._visible)), passed / len(self._visible)

    def is_right(self) -> bool:
        """Run the whole suite in a fresh box on the folder's own files and the edited modules."""
        changed = [(name, text) for name, text in self.files.items() if text != self.broken[name]]
        if any(self._objection(*one) or not compiles(one[1]) for one in changed):
            return False
        files = {**self.repo.files, **self._edited()}
        with self.fresh_box() as box:
            results = Folder(box).run(files, self.test_command, self.timeout_s)
        return not any(results.get(name, "did not run") for name in self.repo.passing)

    def _edited(self) -> dict[str, bytes]:
        return {name: text.encode() for name, text in self.files.items()}

    def _visible_files(self, hidden: set[str]) -> dict[str, bytes]:
        """Return the test files that hold hidden tests, without these."""
        found = {}
        for path, data in self.repo.files.items():
            names = {local for name in hidden if (local := _local(name, path))}
            if names:
                found[path] = without_tests(data.decode("utf-8", "replace"), names).encode()
        return found


def _fields(mutant: Mutant) -> dict[str, Any]:
    fields = {name: getattr(mutant, name) for name in Mutant.__slots__}
    return {**fields, "failing": list(mutant.failing)}


def _shown(mutant: Mutant, hide: float) -> list[str]:
    """Return the failing tests that the agent may read, by name."""
    functions = {test_function(name) for name in mutant.failing}
    order = sorted(functions, key=lambda name: derive("shown", mutant.function, name))
    hidden = max(1, int(len(order) * hide)) if hide else 0
    shown = set(order[: max(1, len(order) - hidden)])
    return sorted(name for name in mutant.failing if test_function(name) in shown)


def _local(test: str, path: str) -> str:
    """Return `Class.method` of a test that is in the file `path`; empty if it is elsewhere."""
    if not path.endswith(".py"):
        return ""
    if "::" in test:
        file, _, name = test.partition("::")
        return test_function(name).replace("::", ".") if file == path else ""
    module = ".".join(PurePosixPath(path).with_suffix("").parts)
    return test[len(module) + 1 :] if test.startswith(f"{module}.") else ""


def _report(results: Results, failed: list[str], count: int) -> str:
    told = [f"{count - len(failed)} of {count} tests pass"]
    for name in failed[:MAX_FAILURES]:
        why = results.get(name) or next(iter(results.values()), "") or "did not run"
        told.append(f"{name}: {why}"[:240])
    if len(failed) > MAX_FAILURES:
        told.append(f"and {len(failed) - MAX_FAILURES} more")
    return "\n".join(told)
