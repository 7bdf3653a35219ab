"""Laws of RepoRepair: bugs that a folder's own tests see, and mends that cannot reach these."""

import ast
import colorsys
import inspect

import pytest
from boxes import need_bubblewrap

from turnwise.envs.builtin import repo_world
from turnwise.envs.builtin.repo_files import is_test, modules, read_folder, without_tests
from turnwise.envs.builtin.repo_guard import objection
from turnwise.envs.builtin.repo_repair import Mutant, RepoBug, RepoRepair, _shown
from turnwise.envs.builtin.repo_sample import FILES
from turnwise.envs.builtin.repo_suite import Folder, _by_command
from turnwise.envs.builtin.repo_world import UnfitRepo, split_of
from turnwise.sandboxes import open_sandbox

FEW = {"per_function": 1, "max_functions": 8}


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    """Keep what is found out in a folder of these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def repair():
    """Make environments that are closed at the end."""
    need_bubblewrap()
    made = []

    def make(**kwargs):
        made.append(RepoRepair(**{**FEW, **kwargs}))
        return made[-1]

    yield make
    for env in made:
        env.close()


def begin(env, task):
    env.reset(seed=0, options={"task": task})
    return env


def play(env, tool, **args):
    return env.step(env.call_text(tool, **args))


def finish(env):
    total, done, info = 0.0, False, {}
    while not done:
        _, reward, terminated, truncated, info = env.step(env.expert())
        total, done = total + reward, terminated or truncated
    return total, info


def bug_of(task):
    return Mutant(**{**task.hidden, "failing": tuple(task.hidden["failing"])})


def test_the_expert_mends_a_bug_of_every_split_of_the_sample(repair):
    env = repair()
    for split in env.splits:
        for task in env.tasks(split)[:2]:
            total, info = finish(begin(env, task))
            assert info["success"] and total == 1.0


@pytest.mark.slow
def test_the_expert_mends_a_third_of_all_bugs_of_the_sample(repair):
    env = repair(per_function=4, max_functions=40)
    for task in [task for split in env.splits for task in env.tasks(split)[::3]]:
        total, info = finish(begin(env, task))
        assert info["success"] and total == 1.0, task


def test_splits_put_bugs_into_different_functions(repair):
    env = repair(max_functions=10)
    used = {
        split: {(bug_of(task).path, bug_of(task).function) for task in env.tasks(split)}
        for split in env.splits
    }
    assert all(used.values()) and len(used["train"]) > len(used["test"])
    assert not used["train"] & used["test"] and not used["train"] & used["dev"]
    assert not used["test"] & used["dev"]
    for split, functions in used.items():
        assert {split_of(*one) for one in functions} == {split}, "whatever else the folder holds"


def test_what_was_found_out_is_kept_and_found_again(repair, monkeypatch):
    first = repair().tasks("train")
    monkeypatch.setattr(repo_world, "_known", {})
    monkeypatch.setattr(repo_world, "_search", None)  # calling it would fail
    assert [task.key for task in repair().tasks("train")] == [task.key for task in first]


@pytest.fixture
def colours(tmp_path):
    """A module of the standard library with a few tests of ours."""
    (tmp_path / "colours.py").write_text(inspect.getsource(colorsys))
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").write_text("history")
    (tmp_path / "test_colours.py").write_text(
        "import unittest\nimport colours\n\n\nclass ColoursTest(unittest.TestCase):\n"
        "    def near(self, one, other):\n"
        "        for a, b in zip(one, other, strict=True):\n"
        "            self.assertAlmostEqual(a, b, 3)\n\n"
        "    def test_hsv(self):\n"
        "        self.near(colours.rgb_to_hsv(0.5, 0.25, 0.75), (0.75, 0.667, 0.75))\n\n"
        "    def test_hsv_back(self):\n"
        "        for rgb in ((0.5, 0.25, 0.75), (1, 0.5, 0), (0.1, 0.9, 0.4), (0.2, 0.2, 0.2)):\n"
        "            self.near(colours.hsv_to_rgb(*colours.rgb_to_hsv(*rgb)), rgb)\n\n"
        "    def test_hls_back(self):\n"
        "        for rgb in ((0.5, 0.25, 0.75), (1, 0.5, 0), (0.1, 0.9, 0.4), (0.2, 0.2, 0.2)):\n"
        "            self.near(colours.hls_to_rgb(*colours.rgb_to_hls(*rgb)), rgb)\n\n"
        "    def test_yiq_back(self):\n"
        "        for rgb in ((0.5, 0.25, 0.75), (0.1, 0.9, 0.4)):\n"
        "            self.near(colours.yiq_to_rgb(*colours.rgb_to_yiq(*rgb)), rgb)\n\n"
        "    def test_hsv_alone(self):\n"
        "        self.near(colours.hsv_to_rgb(0.39583, 0.88889, 0.9), (0.1, 0.9, 0.4))\n"
        "        self.near(colours.hsv_to_rgb(0.75, 0.66667, 0.75), (0.5, 0.25, 0.75))\n"
        "        self.near(colours.hsv_to_rgb(0.08333, 1, 1), (1, 0.5, 0))\n\n"
        "    def test_hls(self):\n"
        "        self.near(colours.rgb_to_hls(0.5, 0.25, 0.75), (0.75, 0.5, 0.5))\n"
        "        self.near(colours.hls_to_rgb(0.75, 0.5, 0.5), (0.5, 0.25, 0.75))\n"
        "        self.near(colours.rgb_to_hls(0.1, 0.9, 0.4), (0.3958, 0.5, 0.8))\n"
        "        self.near(colours.hls_to_rgb(0.3958, 0.5, 0.8), (0.1, 0.9, 0.4))\n\n"
        "    def test_yiq(self):\n"
        "        self.near(colours.rgb_to_yiq(0.5, 0.25, 0.75), (0.38, -0.0111, 0.2093))\n"
        "        self.near(colours.yiq_to_rgb(0.38, -0.0111, 0.2093), (0.5, 0.25, 0.75))\n\n"
        "    def test_nothing_to_do_with_it(self):\n"
        "        self.assertEqual(1, 1)\n"
    )
    return str(tmp_path)


@pytest.mark.parametrize("command", [None, "python3 -m unittest -v"])
def test_a_module_of_the_standard_library_is_mended(repair, colours, command):
    env = repair(repo=colours, test_command=command, max_functions=7, hide=0.0)
    for split in env.splits:
        task = env.tasks(split)[0]
        begin(env, task)
        assert ".git" not in str(env.files) + str(env.read_only)
        assert all("test_nothing" not in name for name in env.shown)
        total, info = finish(env)
        assert info["success"] and total == 1.0


def hidden_task(env):
    """A bug that several tests see, of which some are hidden."""
    for task in (task for split in env.splits for task in env.tasks(split)):
        begin(env, task)
        if len(env.shown) < len(bug_of(task).failing):
            return task
    raise AssertionError("no test is hidden in any task")


def test_every_bug_is_seen_by_a_test_that_is_shown_and_by_one_that_is_not(repair):
    env = repair(per_function=2)
    for task in [task for split in env.splits for task in env.tasks(split)]:
        begin(env, task)
        failing = set(bug_of(task).failing)
        assert env.shown and set(env.shown) < failing, task
        assert not (failing - set(env.shown)) & set(env._visible)


@pytest.mark.parametrize("hide", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_tests_are_hidden_with_all_their_parameters(hide):
    names = ("a.py::test_x[1]", "a.py::test_x[2]", "a.py::test_y")
    shown = _shown(Mutant("a.py", "f", "", 0, 0, "", 1, "train", names), hide)
    assert ({*shown} == {*names}) == (hide == 0.0)
    assert {*shown} in ({*names}, {*names[:2]}, {*names[2:]})


def test_half_of_the_tests_that_see_a_bug_are_not_to_be_read(repair):
    env = repair(per_function=4, max_functions=10)
    task = hidden_task(env)
    hidden = set(bug_of(task).failing) - set(env.shown)
    text = "".join(env.read_only.values()) + play(env, "run_tests")[0]
    assert hidden and not any(f"def {name.rpartition('.')[2]}(" in text for name in hidden)
    assert all(name.rpartition(".")[2] in text for name in env.shown)
    assert finish(begin(env, task))[1]["success"]


FRAMES = """

def reach():
    box = []
    def gen():
        yield box[0].gi_frame.f_back
    box.append(gen())
    frame = next(box[0])
    while frame is not None:
        names = frame.f_globals
        if "_told" in names:
            names["_told"] = lambda error: ""
        frame = frame.f_back


reach()
"""
CAUGHT = """
def g():
    try:
        1 // 0
    except Exception as e:
        match e:
            case Exception(__traceback__=tb):
                return tb.tb_frame.f_builtins["e" + "xec"]
"""
PIECES = "def g(n, o='_'+'_'):\n    return ('{0.'+o+'globals'+o+'}').format(g)\n"
CLEAN = """import math
import os


class Point:
    def __init__(self, x):
        self.x = x

    def __eq__(self, other):
        return self.x == other.x

    def moved(self, by):
        return Point(math.floor(self.x + by))


def here():
    return "{} {}".format(os.getcwd(), 1)
"""
ADDED = {
    "frames of a generator": FRAMES,
    "a pattern that reads an attribute": CAUGHT,
    "a format made of pieces": PIECES,
    "a generator's frame": "x = (x for x in ()).gi_frame",
    "a coroutine's frame": "async def c(): pass\nx = c().cr_frame",
    "a format that reads an attribute": "x = '{0.moved}'.format(1)",
    "a format within a format": "x = '{:{0.moved}}'.format(1)",
    "a format that is handed on": "x = [*map('{0.moved}'.format, [1])]",
    "a module's name for something else": "def g(math): return math.gi_frame",
    "what a list and a module have in common": "os.remove('a'); os.replace('a', 'b')",
    "a module under another name": "m = os\nm.replace('a', 'b')",
    "a hook of unittest": "def load_tests(loader, tests, pattern): return tests",
    "a hook of pytest": "def pytest_runtest_makereport(item): return 1",
    "a decorator": "@here\ndef g(): pass",
    "a lambda's default": "x = lambda f=vars: f",
    "a comprehension": "x = [f.mro for f in [1]]",
    "a global": "def g():\n    global here\n    here = 1",
    "a class of the same name": "class Point(int): pass",
    "a special method": "class Point:\n    def __len__(self): return 1",
    "an equal of everything again": "class Point:\n    def __eq__(self, other): return True",
    "an alias within a class": "class Point:\n    x = here",
    "a star of a subject": "match 1:\n    case int(real=len, gi_frame=f): pass",
    "a deleted attribute": "del Point.moved",
    "an attribute as a loop's target": "for Point.moved in [1]: pass",
    "too deep to look at": "x = " + "-" * 5000 + "1",
}


@pytest.mark.parametrize("name", ADDED)
def test_what_leads_out_of_a_module_is_objected_to(name):
    folder = [CLEAN, "import sys\nx = sys.a.b.gi_frame.f_back.mro.__class__\n".replace("mro", "z")]
    assert objection(CLEAN, CLEAN, folder) is None
    try:
        ast.parse(CLEAN + ADDED[name])
    except (RecursionError, MemoryError):
        return  # the host's Python cannot read it: such text is never paid for
    assert objection(CLEAN, CLEAN + ADDED[name], folder) is not None


def test_the_text_is_read_as_python_reads_the_file():
    hidden = "# coding: utf-7\n" + "+AGkAbQBwAG8AcgB0 sys\n"
    assert objection(CLEAN, hidden) is not None
    assert objection(CLEAN, "# a\r# coding: latin-1\n" + CLEAN) == "an encoding"
    assert objection(CLEAN, "\ufeffimport sys\n" + CLEAN) == "import sys"


def test_a_bug_that_adds_a_word_does_not_forbid_other_edits():
    broken = CLEAN.replace("self.x + by", "self.x.gi_frame + by")
    assert objection(CLEAN, broken + "x = 1\n") == "gi_frame"
    assert objection(CLEAN, broken + "x = 1\n", broken=broken) is None


def test_a_comparison_may_be_mended_only_where_the_bug_is():
    wrong, right = "self.x == other.x", "not self.x != other.x"
    mend = CLEAN.replace(wrong, right)
    assert objection(CLEAN, mend, broken=CLEAN) == "another __eq__"
    assert objection(CLEAN, mend, broken=CLEAN.replace(wrong, "self.x != other.x")) is None


HONEST = {
    "methods of plain values": "def g(x): return [*x.items()], x.get(1), 'a'.join(x).upper()",
    "attributes of the folder": "def g(x): return x.price, Point(1).x",
    "builtins that compute": "def g(x): return sorted(map(int, x), key=len), sum(x)",
    "errors": "def g(x):\n    try: x()\n    except ValueError as e: raise KeyError(e.args)",
    "a plain format": "def g(x): return '{} {1!r} {a:>3}'.format(x, 1, a=2), f'{x:>{3}}'",
    "more of math": "def g(x): return math.ceil(x), math.gcd(2, 4)",
    "patterns": "def g(x):\n    match x:\n        case [1, *rest] | {'a': rest}: return rest",
    "a pattern of the folder": "def g(x):\n    match x:\n        case Point(x=1): return 2",
    "its own calls": "def g(): return os.getcwd()",
}  # fmt: skip


@pytest.mark.parametrize("name", HONEST)
def test_an_honest_mend_is_let_through(name):
    assert objection(CLEAN, CLEAN + HONEST[name], [CLEAN, "def f(a): return a.price\n"]) is None


def run_unguarded(files, command=None):
    need_bubblewrap()
    with open_sandbox() as box:
        return Folder(box).run({k: v.encode() for k, v in files.items()}, command, 20.0)


TEST_A = "import unittest\nimport a\n\n\nclass A(unittest.TestCase):\n" + "".join(
    f"    def test_{n}(self):\n        self.assertEqual(a.f({n}), {n})\n" for n in range(3)
)
WRITES = """
import os

for n in range(3, 64):
    try:
        os.write(n, b'turnwise-results {}\\n["", "done", 0, 0]\\n')
    except OSError:
        pass
"""
UNGUARDED = {
    "an answer of its own": WRITES,
    "a new name for what tells": FRAMES,
    "the end": "import os\n\n\ndef f(x):\n    os._exit(0)\n",
    "the end at once": "import os\nos._exit(0)\n",
    "a child that goes on": "import os\n\n\ndef f(x):\n    os.fork()\n    return -1\n",
    "a word to whoever asks": "import os\nprint('turnwise-results {}')\n",
}  # fmt: skip


@pytest.mark.parametrize("name", UNGUARDED)
def test_even_without_a_guard_such_code_passes_no_test(name):
    code = "def f(x):\n    return -1\n" + UNGUARDED[name]
    results = run_unguarded({"a.py": code, "test_a.py": TEST_A})
    assert not any(results.get(f"test_a.A.test_{n}", "gone") == "" for n in range(3)), results


def test_no_test_leaves_anything_to_the_next():
    code = "seen = []\n\n\ndef f(x):\n    seen.append(x)\n    return x if len(seen) == 1 else -1\n"
    results = run_unguarded({"a.py": code, "test_a.py": TEST_A})
    assert results == {f"test_a.A.test_{n}": "" for n in range(3)}


CHEATS = {
    "exit": "import os; os._exit(0)",
    "a patched test case": "import unittest; unittest.TestCase.assertEqual = print",
    "an equal of everything": "class E:\n    __eq__ = lambda self, other: True",
    "a word in a str": "x = getattr(1, '__class__')",
    "a patched module": "math.floor = 1",
    "the end of the process": "raise SystemExit(0)",
    "another builtin": "globals()['len'] = 1",
    "made of words": "x = type('E', (), {'__eq__': len})",
    "another file": "open('tests/test_money.py', 'w')",
    "a skipped test": "raise SkipTest",
    "frames": FRAMES,
    "a caught error": CAUGHT,
    "pieces": PIECES,
    "another encoding": "# coding: utf-7\n+AGkAbQBwAG8AcgB0 sys",
}


@pytest.mark.parametrize("name", CHEATS)
def test_an_edit_that_could_reach_the_tests_is_refused(repair, name):
    env = repair()
    begin(env, env.tasks("train")[0])
    path = bug_of(env.task).path
    said = play(env, "edit", path=path, old=env.files[path], new=CHEATS[name] + "\n")[0]
    assert said.startswith("ToolError[not_allowed]"), said
    env.files[path] = CHEATS[name] + "\n" + env.original[path]  # were it let through all the same
    assert play(env, "submit")[1] == 0.0


def test_what_a_module_had_before_may_stay_and_come_back():
    original = "import os\n\n\nclass A:\n    def __init__(self):\n        self._a = os.getcwd()\n"
    assert objection(original, original) is None
    assert objection(original, original.replace("os.getcwd()", "1")) is None
    assert objection(original, original + "    def b(self):\n        return self._a\n") is None
    another = original + "    def __eq__(self, o):\n        pass\n"
    assert objection(original, another) == "def A.__eq__"
    assert objection(original, original.replace("self._a", "os.x")) == "os.x ="
    assert objection(original, "def (") is None  # no test passes with it


def test_tests_cannot_be_edited_and_doing_nothing_earns_nothing(repair):
    env = repair()
    begin(env, env.tasks("train")[0])
    test = next(path for path in env.read_only if is_test(path) and env.read_only[path])
    assert "not_allowed" in play(env, "edit", path=test, old="import", new="")[0]
    _, reward, done, _, info = play(env, "submit")
    assert done and reward == 0.0 and not info["success"]


def test_search_and_ls_find_their_way(repair):
    env = repair()
    begin(env, env.tasks("train")[0])
    assert "basket/money.py:" in play(env, "search", text="def parse")[0]
    assert play(env, "search", text="no such words")[0] == "nothing found"
    listed = play(env, "ls", path="basket/")[0].splitlines()
    assert len(listed) == sum(path.startswith("basket/") for path in FILES)


def test_a_task_of_another_folder_is_refused(repair, colours):
    task = repair().tasks("train")[0]
    with pytest.raises(ValueError, match="give the `repo` that it was made from"):
        begin(repair(repo=colours, max_functions=3), task)
    assert RepoBug(**task.to_json()).key == task.key


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({}, "holds no Python files"),
        ({"a.py": "def f():\n    return 1\n"}, "unittest found no tests.*tests/__init__.py"),
        ({"a.py": "x = 1\n", "tests/test_a.py": "def test_a(): pass\n"}, "python3 -m pytest"),
        ({"a.py": "x = 1\n", "test_a.py": "import unittest\n\n\nclass A(unittest.TestCase):\n"
          "    def test_a(self):\n        pass\n"}, "no mutant is seen"),
        ({"a.py": "def f(n):\n    return n + 1\n", "test_a.py": "import unittest\nimport a\n\n\n"
          "class A(unittest.TestCase):\n    def test_a(self):\n"
          "        self.assertEqual(a.f(1), 2)\n"}, "one to be shown and one to be hidden"),
    ],
)  # fmt: skip
def test_a_folder_that_offers_no_tasks_says_why(repair, tmp_path, files, says):
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
    with pytest.raises(ValueError, match=says):
        repair(repo=str(tmp_path)).tasks("train")


def test_without_pytest_in_the_box_it_is_said_how_to_get_it():
    (why,) = run_unguarded({"a.py": ""}, "echo No module named pytest; false").values()
    assert "apt-get install python3-pytest" in why and "image build" in why


def test_a_split_without_functions_says_so(repair, colours):
    with pytest.raises(UnfitRepo, match=r"no task in split 'test'.*raise max_functions"):
        repair(repo=colours, max_functions=3).tasks("test")


def test_another_time_limit_is_looked_at_anew(repair, monkeypatch):
    repair(timeout_s=30.0).tasks("train")
    monkeypatch.setattr(repo_world, "_search", None)
    with pytest.raises(TypeError):
        repair(timeout_s=29.0).tasks("train")


def test_no_folder_at_all_is_refused(repair, tmp_path):
    with pytest.raises(ValueError, match="must be a folder"):
        repair(repo=str(tmp_path / "none"))
    assert issubclass(UnfitRepo, ValueError)


def test_a_folder_is_taken_without_history_links_and_caches(tmp_path):
    for path in ("a.py", "b/c.py", ".git/x", "__pycache__/d.py", "b/.hidden", "e.pyc"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text("x = 1\n")
    (tmp_path / "link.py").symlink_to("/etc/passwd")
    assert set(read_folder(str(tmp_path))) == {"a.py", "b/c.py"}


def test_tests_are_told_from_modules():
    assert is_test("tests/a.py") and is_test("a/test_b.py") and is_test("conftest.py")
    assert not is_test("a/contest.py") and not is_test("testing.py")
    found = modules({"a.py": b"x = 1\n", "b.py": b"def (", "test_c.py": b"", "d.txt": b""})
    assert set(found) == {"a.py"}


def test_a_test_file_loses_only_the_tests_that_are_named():
    source = (
        "class A(T):\n    @x\n    def test_a(self):\n        pass\n\n    def test_b(self):\n"
        "        pass\n\n\ndef test_c():\n    pass\n"
    )
    left = without_tests(source, {"A.test_a", "test_c"})
    assert [n.name for n in ast.walk(ast.parse(left)) if isinstance(n, ast.FunctionDef)] == [
        "test_b"
    ]
    assert "test_c" not in without_tests(
        source.replace("def test_c", "async def test_c"), {"test_c"}
    )
    assert "class A(T):\n    pass\n" in without_tests(source, {"A.test_a", "A.test_b"})


def test_what_pytest_and_unittest_print_is_read():
    text = (
        "PASSED tests/test_a.py::test_x[1-2]\nFAILED a.py::T::test_y - assert 1 == 2\n"
        "test_z (tests.test_b.B.test_z) ... ok\ntest_w (tests.test_b.B)\nA doc. ... FAIL\n"
    )
    assert _by_command(text) == {
        "tests/test_a.py::test_x[1-2]": "",
        "a.py::T::test_y": "assert 1 == 2",
        "tests.test_b.B.test_z": "",
        "tests.test_b.B.test_w": "fail",
    }
