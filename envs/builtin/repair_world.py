"""The worlds of `Repair`: right programs, the bugs put into them, and tests that tell.

Everything is made on the host from the task alone. The right programs and their mutants are ours,
so they are run here, in this process, with a budget of steps; the agent's code never is.
"""

from __future__ import annotations

import ast
import functools
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import CodeType
from typing import Any

from turnwise.envs.builtin import repair_lists, repair_machines, repair_numbers, repair_text
from turnwise.envs.builtin.code_box import Call
from turnwise.envs.builtin.code_runner import shown
from turnwise.envs.builtin.mutate import Mutation, apply, mutations
from turnwise.envs.builtin.python_source import parse
from turnwise.envs.builtin.repair_programs import TEMPLATES, Program
from turnwise.envs.seeds import derive
from turnwise.envs.split_shares import belongs

LIBRARIES = (repair_lists, repair_text, repair_numbers, repair_machines)
"""The modules whose import fills `TEMPLATES`."""
HELD_OUT = {
    "dev": ("brackets", "factors", "paths", "vending"),
    "test": ("bisection", "bowling", "calendar", "fields", "grouping", "queueing"),
}
"""Templates that no other split has, unless templates are named by hand."""
MAX_STEPS = 20_000
"""Loop rounds and calls of one test; a mutant that takes more is not used."""
VISIBLE, HIDDEN = 8, 24
"""Tests per file; the visible ones are among the hidden."""
MIN_UNSEEN = 3
"""Different tests that are not shown, and that a program with one of the bugs or with all of them
still fails when it knows the visible answers by heart."""
TRIES, DRAWS = 200, 60
"""Programs that are made for one task, and sets of bugs for one program, before it is given up."""


@dataclass(frozen=True, slots=True)
class Test:
    """A call, and the text of what a right program returns."""

    call: Call
    expected: str

    def __str__(self) -> str:
        return f"{self.call} == {self.expected}"


@dataclass(frozen=True, slots=True)
class World:
    """Programs with bugs, as they were before, and their tests."""

    original: Mapping[str, str]
    """File name -> source."""
    broken: Mapping[str, str]
    bugs: Mapping[str, tuple[Mutation, ...]]
    visible: tuple[Test, ...]
    hidden: tuple[Test, ...]
    """All tests that decide; the visible ones first."""
    passing: float
    """Share of the visible tests that pass in spite of the bugs."""

    @property
    def test_files(self) -> dict[str, str]:
        """File name -> text, as the agent reads them; what is run is not read from there."""
        return {f"test_{name}": _test_file(name, self.visible) for name in self.original}

    @property
    def n_bugs(self) -> int:
        """How many bugs there are."""
        return sum(map(len, self.bugs.values()))


class OutOfSteps(BaseException):
    """A program of ours did not come to an end; no `except Exception` of its own holds it up."""


def templates_of(split: str, named: Sequence[str], held_out: bool) -> list[str]:
    """Return the names of the templates that a split's tasks are made from."""
    if named:
        return list(named)
    kept = {name for names in HELD_OUT.values() for name in names} if held_out else set()
    own = HELD_OUT.get(split, ()) if held_out else ()
    return sorted(own or TEMPLATES.keys() - kept)


@functools.lru_cache(maxsize=512)
def make_world(text: str) -> World:
    """Return the world of a task, given as canonical JSON of its fields.

    Raises:
        RuntimeError: no program of these templates and kinds of bugs can have so many bugs.
    """
    task: dict[str, Any] = json.loads(text)
    for attempt in range(TRIES):
        seed = derive("repair", task["split"], text, attempt)
        if (world := _attempt(random.Random(seed), task)) is not None:
            return world
    raise RuntimeError(
        f"no program for {text} in {TRIES} tries; allow more templates or kinds, or fewer bugs"
    )


def _attempt(rng: random.Random, task: Mapping[str, Any]) -> World | None:
    """Return a world of the task's split, or None where luck made none."""
    names = templates_of(task["split"], task["templates"], task["held_out"])
    chosen = rng.sample(names, min(task["n_files"], len(names)))
    programs = [TEMPLATES[name](rng) for name in chosen]
    original = {f"{program.name}.py": program.source for program in programs}
    tests = [test for program in programs for test in _tests(rng, program)]
    visible = [test for i, test in enumerate(tests) if i % HIDDEN < VISIBLE]
    rest = [test for i, test in enumerate(tests) if i % HIDDEN >= VISIBLE]
    bugs = _choose_bugs(rng, original, task, visible, rest)
    if bugs is None:
        return None
    broken = _with(original, bugs)
    right = [got == test.expected for got, test in zip(_run(broken, visible), visible, strict=True)]
    passing = sum(right) / len(right)
    return World(original, broken, bugs, tuple(visible), (*visible, *rest), passing)


def _tests(rng: random.Random, program: Program) -> list[Test]:
    """Return tests that differ from one another, as far as the template can make them."""
    run, tests, known = Counted(program.source), list[Test](), set[str]()
    for tries in range(20 * HIDDEN):
        function, args = program.case(rng)
        call = Call(program.name, function, tuple(args))
        if str(call) in known and tries < 10 * HIDDEN:
            continue
        known.add(str(call))
        tests.append(Test(call, run(call)))
        if len(tests) == HIDDEN:
            break
    return tests


Drawn = dict[str, tuple[Mutation, ...]]
"""File name -> the bugs in it."""


def _choose_bugs(
    rng: random.Random,
    original: Mapping[str, str],
    task: Mapping[str, Any],
    visible: Sequence[Test],
    rest: Sequence[Test],
) -> Drawn | None:
    """Return as many bugs as the task has, each of which is seen by itself: see `_fails`."""
    offered = [(f, m) for f, text in original.items() for m in mutations(text, task["kinds"])]
    kinds = sorted({bug.kind for _, bug in offered})
    seen: dict[tuple[str, Mutation], bool] = {}
    for _ in range(DRAWS if kinds else 0):
        drawn = _draw(rng, offered, kinds, task["n_bugs"])
        if not belongs(task["split"], _with(original, drawn)):
            continue
        for one in [(file, bug) for file, bugs in drawn.items() for bug in bugs]:
            if one not in seen:
                alone = _with(original, {one[0]: (one[1],)})
                seen[one] = _fails(alone, visible, rest)
            if not seen[one]:
                break
        else:
            broken = _with(original, drawn)
            if sum(map(len, drawn.values())) == task["n_bugs"] and _fails(broken, visible, rest):
                return drawn
    return None


def _draw(
    rng: random.Random, offered: Sequence[tuple[str, Mutation]], kinds: Sequence[str], count: int
) -> Drawn:
    """Return bugs on lines of their own, each kind as likely as another; at times too few."""
    found: Drawn = {}
    for _ in range(count):
        kind = rng.choice(kinds)
        file, bug = rng.choice([one for one in offered if one[1].kind == kind])
        if all(bug.line != other.line for other in found.get(file, ())):
            found[file] = (*found.get(file, ()), bug)
    return found


def _with(original: Mapping[str, str], bugs: Drawn) -> dict[str, str]:
    return {name: apply(source, bugs.get(name, ())) for name, source in original.items()}


def _run(files: Mapping[str, str], tests: Sequence[Test]) -> list[str]:
    """Return what each test comes to."""
    runs = {name.removesuffix(".py"): Counted(source) for name, source in files.items()}
    return [runs[test.call.module](test.call) for test in tests]


def _fails(files: Mapping[str, str], visible: Sequence[Test], rest: Sequence[Test]) -> bool:
    """Whether a visible test fails, none goes on for ever, and knowing the visible is no help."""
    try:
        got = _run(files, (*visible, *rest))
    except SyntaxError:
        return False
    if "hangs" in got or all(map(_agree, got[: len(visible)], visible)):
        return False
    learned = _run({name: by_heart(name, text, visible) for name, text in files.items()}, rest)
    known = {str(test) for test in visible}
    wrong = {str(test) for text, test in zip(learned, rest, strict=True) if not _agree(text, test)}
    return len(wrong - known) >= MIN_UNSEEN


def _agree(got: str, test: Test) -> bool:
    return got == test.expected


def by_heart(name: str, source: str, visible: Sequence[Test]) -> str:
    """Return the program of a file as it is, but for the inputs that the agent can read."""
    lines = [source]
    own = [test for test in visible if test.call.module == name.removesuffix(".py")]
    for function in sorted({test.call.function for test in own}):
        pairs = [(list(t.call.args), t.expected) for t in own if t.call.function == function]
        known = ", ".join(f"({args!r}, {text})" for args, text in pairs)
        lines += [f"_real_{function} = {function}", f"def {function}(*args):"]
        lines += [f"    for given, value in [{known}]:", "        if list(args) == given:"]
        lines += ["            return value", f"    return _real_{function}(*args)"]
    return "\n".join(lines) + "\n"


class Counted:
    """A program of ours that counts its steps: call it with a `Call`, get the text of a result.

    Text of what was raised starts with `raises`; `hangs` is for more than `MAX_STEPS` steps.
    """

    def __init__(self, source: str) -> None:
        self.left = 0
        self.names: dict[str, Any] = {"__name__": "program", "tw_step": self.step}
        exec(_compiled(source), self.names)

    def step(self) -> None:
        """Count one round of a loop or one call."""
        self.left -= 1
        if self.left < 0:
            raise OutOfSteps

    def __call__(self, call: Call) -> str:
        """Return what the call comes to; arguments are copied, as those of the box are."""
        self.left = MAX_STEPS
        try:
            return shown(self.names[call.function](*json.loads(json.dumps(call.args))))
        except OutOfSteps:
            return "hangs"
        except Exception as error:
            return f"raises {type(error).__name__}"


@functools.lru_cache(maxsize=256)
def _compiled(source: str) -> CodeType:
    """Compile a program of ours so that it counts its steps."""
    tree = _Counts().visit(parse(source))
    return compile(ast.fix_missing_locations(tree), "program.py", "exec")


class _Counts(ast.NodeTransformer):
    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        if isinstance(node, ast.FunctionDef | ast.While | ast.For):
            node.body.insert(0, parse("tw_step()").body[0])
        return node


def _test_file(name: str, tests: Sequence[Test]) -> str:
    """Return the visible tests of one file, as people write them."""
    module = name.removesuffix(".py")
    own = [(i, test) for i, test in enumerate(tests, 1) if test.call.module == module]
    functions = ", ".join(sorted({test.call.function for _, test in own}))
    lines = [f"from {module} import {functions}"]
    for number, test in own:
        lines += ["", "", f"def test_{number}():", f"    assert {test}"]
    return "\n".join(lines) + "\n"
