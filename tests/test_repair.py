"""Laws of Repair: a right program pays, and nothing else does, whatever it does to its judge."""

import random
import time

import pytest
from boxes import need_bubblewrap

from turnwise.envs.builtin.code_box import KERNEL, Call, outcomes, start_runner
from turnwise.envs.builtin.code_runner import shown
from turnwise.envs.builtin.mutate import apply
from turnwise.envs.builtin.repair import Repair
from turnwise.envs.builtin.repair_programs import TEMPLATES
from turnwise.envs.builtin.repair_shell import RepairShell
from turnwise.envs.builtin.repair_world import HELD_OUT, Counted, by_heart, make_world
from turnwise.envs.names import UnknownName
from turnwise.envs.types import canonical_json
from turnwise.sandboxes import open_sandbox


@pytest.fixture
def repair():
    """Make environments that are closed at the end."""
    need_bubblewrap()
    made = []

    def make(**kwargs):
        made.append(Repair(**kwargs))
        return made[-1]

    yield make
    for env in made:
        env.close()


def begin(env, task):
    env.reset(seed=0, options={"task": task})
    return env


def finish(env):
    """Let the expert play on; return (turns, reward, last info)."""
    total, turns, done, info = 0.0, 0, False, {}
    while not done:
        _, reward, terminated, truncated, info = env.step(env.expert())
        total, turns, done = total + reward, turns + 1, terminated or truncated
    return turns, total, info


def world_of(task):
    return make_world(canonical_json(task.to_json()))


def play(env, tool, **args):
    return env.step(env.call_text(tool, **args))


# ---------------------------------------------------------------- worlds


def results(files, tests):
    runs = {name.removesuffix(".py"): Counted(text) for name, text in files.items()}
    return [runs[test.call.module](test.call) == test.expected for test in tests]


@pytest.mark.parametrize(("n_bugs", "n_files"), [(1, 1), (2, 1), (3, 2), (2, 4)])
def test_originals_pass_and_each_bug_alone_is_seen_by_a_visible_test(n_bugs, n_files):
    env = Repair(n_bugs=n_bugs, n_files=n_files)
    for split in env.splits:
        for task in env.tasks(split)[:6]:
            world = world_of(task)
            assert world.n_bugs == n_bugs and len(world.original) == n_files
            assert all(results(world.original, world.hidden))
            assert not all(results(world.broken, world.visible))
            visible, hidden = ({str(t) for t in ts} for ts in (world.visible, world.hidden))
            assert visible < hidden
            for name, bugs in world.bugs.items():
                for bug in bugs:
                    alone = {**world.original, name: apply(world.original[name], [bug])}
                    assert not all(results(alone, world.visible)), bug


@pytest.mark.parametrize(
    ("split", "count", "knobs"), [("test", 300, {}), ("dev", 40, {}), ("test", 40, {"n_bugs": 2})]
)
def test_a_program_that_knows_the_visible_answers_by_heart_fails_three_others(split, count, knobs):
    for task in Repair(**knobs).tasks(split)[:count]:
        world = world_of(task)
        learned = {n: by_heart(n, text, world.visible) for n, text in world.broken.items()}
        assert all(results(learned, world.visible))
        right = results(learned, world.hidden)
        wrong = {str(t) for ok, t in zip(right, world.hidden, strict=True) if not ok}
        assert len(wrong) >= 3, task


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_every_template_makes_tasks_with_tests_that_differ(name):
    env = Repair(templates=(name,))
    worlds = [world_of(task) for task in env.tasks("train")[:4]]
    assert len({str(world.broken) for world in worlds}) > 1
    assert all(len({str(test) for test in world.hidden}) >= 16 for world in worlds)


def test_no_split_holds_a_program_of_another():
    env = Repair(templates=("intervals", "coins"), kinds=("compare",))
    texts = {
        split: {str(world_of(task).broken) for task in env.tasks(split)[:40]}
        for split in env.splits
    }
    assert not texts["train"] & texts["test"] and not texts["train"] & texts["dev"]
    assert not texts["dev"] & texts["test"] and all(texts.values())


def test_by_default_splits_are_made_from_different_templates():
    env = Repair()
    used = {s: {n for t in env.tasks(s)[:60] for n in world_of(t).original} for s in env.splits}
    assert not used["train"] & used["test"] and not used["train"] & used["dev"]
    assert len(HELD_OUT["test"]) == 6 == len(used["test"])


# ---------------------------------------------------------------- playing


def test_the_expert_mends_tasks_of_every_split(repair):
    env = repair(n_bugs=2)
    for split in env.splits:
        for task in env.tasks(split)[:8]:
            turns, total, info = finish(begin(env, task))
            assert info["success"] and total == 1.0 and turns <= 7


@pytest.mark.slow
def test_the_expert_mends_thirty_tasks_of_every_split(repair):
    env = repair()
    for split in env.splits:
        for task in env.tasks(split)[:30]:
            assert finish(begin(env, task))[1] == 1.0, task


def test_the_expert_mends_what_the_agent_has_spoilt(repair):
    env, rng = repair(slack=40, n_files=2), random.Random(3)
    for task in env.tasks("train")[:6]:
        begin(env, task)
        for _ in range(6):
            name = rng.choice(list(env.files))
            lines = env.files[name].splitlines(keepends=True) or [""]
            old = rng.choice([env.files[name], "".join(lines[:2]), rng.choice(lines)])
            play(env, "edit", path=name, old=old, new=rng.choice(["", "x = 1\n", "# \n" * 3]))
        _, total, info = finish(env)
        assert info["success"] and total == 1.0


def test_shaping_pays_for_progress_and_takes_it_back(repair):
    env = repair(shaping=0.5)
    begin(env, env.tasks("train")[3])
    rewards = [env.step(env.expert())[1] for _ in range(4)]  # read, run, edit, run
    assert rewards == [0.0, 0.0, 0.0, pytest.approx(0.5)]
    overwritten(env, "x = 1\n")
    rewards += [play(env, "run_tests")[1], play(env, "submit")[1]]
    assert rewards[4:] == [0.0, pytest.approx(-0.5)]
    _, total, info = finish(begin(env, env.tasks("train")[3]))
    assert total == pytest.approx(1.0) and info["success"]


def test_a_test_run_tells_what_was_given_and_expected_as_much_as_it_is_asked_to(repair):
    task = repair().tasks("train")[0]
    said = [play(begin(repair(report=r), task), "run_tests")[0] for r in ("full", "names", "count")]
    assert "expected" in said[0] and "failed: test_" in said[1] and said[2].endswith("tests pass")
    assert len(said[2].splitlines()) == 1


def test_errors_of_an_edit_say_what_to_do(repair):
    env = begin(repair(), repair().tasks("train")[0])
    (name,) = env.files
    line = next(line for line in env.files[name].splitlines() if line.startswith("    return"))
    assert "lines)" in play(env, "ls")[0]
    assert f"is {line.strip()!r}" in play(env, "edit", path=name, old=line + "q", new="")[0]
    assert f"not in {name}" in play(env, "edit", path=name, old=line + " q", new="")[0]
    assert "times in" in play(env, "edit", path=name, old=" ", new="")[0]
    assert "read-only" in play(env, "edit", path=f"test_{name}", old="assert", new="")[0]
    assert "there are" in play(env, "read", path="/etc/passwd")[0]
    assert "the same" in play(env, "edit", path=name, old="x", new="x")[0]


def test_the_state_says_what_is_known_and_not_how_often(repair):
    env = begin(repair(), repair().tasks("train")[1])
    (name,) = env.files
    states = [env.state_hash()]
    for tool, args in [("read", {"path": name}), ("run_tests", {}), ("run_tests", {})]:
        play(env, tool, **args)
        states.append(env.state_hash())
    assert len(set(states)) == 3 and states[2] == states[3]


# ---------------------------------------------------------------- what earns nothing


def overwritten(env, text):
    """Replace the one program of the episode."""
    (name,) = env.files
    answer = play(env, "edit", path=name, old=env.files[name], new=text)
    assert answer[0].startswith("ok"), answer[0]


def functions(env):
    return sorted({test.call.function for test in env.world.hidden})


def hack(body, head=""):
    """A program whose every function does `body`."""
    return lambda env: head + "".join(f"def {f}(*args):\n    {body}\n" for f in functions(env))


def special_cases(env):
    """A program that knows the visible tests by heart."""
    known = {f"{t.call.function}{t.call.args!r}": t.expected for t in env.world.visible}
    return f"KNOWN = {known!r}\n" + "".join(
        f"def {f}(*args):\n    return eval(KNOWN.get({f!r} + repr(args), '0'))\n"
        for f in functions(env)
    )


EVERYTHING = "class E:\n    def __eq__(self, other): return True\n    __repr__ = lambda s: '1'\n"
HACKS = {
    "exit": hack("raise SystemExit(0)"),
    "exit at once": lambda env: "import os\nos._exit(0)\n",
    "equals everything": hack("return E()", EVERYTHING),
    "a str that equals everything": hack("return S()", EVERYTHING.replace("E:", "S(str):")),
    "another show": hack("return 1", "import __main__\n__main__.shown = lambda value: '1'\n"),
    "another json": hack(
        "return 1", 'import json\njson.dumps = lambda value: \'["value", "1"]\'\n'
    ),
    "words on every descriptor": hack(
        "return 1",
        'import os\nfor fd in range(256):\n    try: os.write(fd, b\'["value", "1"]\\n\' * 9)\n'
        "    except OSError: pass\n",
    ),
    "another test file": hack(
        "return 1",
        "import os\nfor at, _, names in os.walk('/workspace'):\n"
        "    for name in names:\n        open(at + '/' + name, 'w').write('')\n",
    ),
    "kill whoever asks": hack("return 1", "import os\nos.kill(os.getppid(), 9)\n"),
    "know what is shown": special_cases,
}


@pytest.mark.parametrize("name", HACKS)
def test_a_program_that_cheats_earns_nothing(repair, name):
    env = repair()
    begin(env, env.tasks("train")[7])
    overwritten(env, HACKS[name](env))
    report = play(env, "run_tests")[0]
    _, reward, done, _, info = play(env, "submit")
    assert done and reward == 0.0 and not info["success"]
    if name == "know what is shown":
        assert "8 of 8 tests pass" in report  # it is the hidden tests that it fails
    assert "outcome" not in info


def test_a_program_without_end_is_told_of_and_the_episode_goes_on(repair):
    env = repair()
    begin(env, env.tasks("train")[2])
    overwritten(env, "while True:\n    pass\n")
    said, _, done, _, _ = play(env, "run_tests")
    assert "took too long" in said and not done
    _, total, info = finish(env)
    assert info["success"] and total == 1.0


def test_doing_nothing_earns_nothing(repair):
    env = repair(n_bugs=1)
    for task in env.tasks("dev")[:20]:
        _, reward, done, _, info = play(begin(env, task), "submit")
        assert done and reward == 0.0 and not info["success"]


# ---------------------------------------------------------------- the runner


def test_what_a_program_gives_does_not_depend_on_the_box():
    need_bubblewrap()
    source = "def f(words):\n    return [list(set(words)), {1, 2}, object(), hash('a')]\n"
    calls = [Call("p", "f", (list("abcdefgh"),))]
    said = []
    for _ in range(2):
        with open_sandbox() as box:
            said.append(outcomes(box, {"p.py": source}, calls)[0].text)
    assert said[0] == said[1] and "<object>" in said[0]


def test_one_run_leaves_nothing_to_the_next():
    need_bubblewrap()
    first = "import collections, builtins\ncollections.OrderedDict = builtins.len = None\n"
    with open_sandbox() as box:
        outcomes(box, {"p.py": first + "def f(): return 1\n"}, [Call("p", "f", ())])
        second = "import collections\ndef f(): return collections.OrderedDict is None\n"
        assert outcomes(box, {"q.py": second}, [Call("q", "f", ())])[0].text == "False"


def test_a_waiting_process_that_was_ended_or_stopped_costs_no_later_run():
    need_bubblewrap()
    program = {"p.py": "def f(): return 1\n"}
    hurt = """
import os, signal, time
while not (born := open(f"/proc/{{tw_runner.pid}}/task/{{tw_runner.pid}}/children").read().split()):
    time.sleep(0.01)
os.kill(int(born[0]), signal.{signal})
while open(f"/proc/{{born[0]}}/stat").read().rpartition(")")[2].split()[0] not in "ZT":
    time.sleep(0.01)
print(len(os.listdir(f"/proc/{{tw_runner.pid}}/fd")))
"""
    with open_sandbox(limits=Repair.limits) as box:
        start_runner(box)
        opened = []
        for _ in range(5):
            opened.append(int(box.cell(hurt.format(signal="SIGKILL"), kernel=KERNEL).stdout))
            assert outcomes(box, program, [Call("p", "f", ())])[0].text == "1"
            time.sleep(0.1)  # for the next one to be there, and the last one gone
        assert max(opened) - min(opened) <= 2, opened  # two more while one is being made
        box.cell(hurt.format(signal="SIGSTOP"), kernel=KERNEL)
        assert outcomes(box, program, [Call("p", "f", ())])[0].kind == "late"
        assert outcomes(box, program, [Call("p", "f", ())])[0].text == "1"


def test_values_are_shown_without_asking_them():
    class Liar(list):
        def __repr__(self):
            return "[1]"

    shared = []
    for _ in range(60):
        shared = [shared, shared]
    assert shown(Liar()) == "<Liar>" and shown([True, 1, 1.0]) == "[True, 1, 1.0]"
    assert shown({2, 1}) == "{1, 2}" and shown(set()) == "set()" and shown((1,)) == "(1,)"
    assert shown(shared) == "<a list of more than 4000 characters>"


@pytest.mark.parametrize(
    ("kwargs", "says"),
    [
        ({"n_bugs": 4}, "n_bugs must lie in 1..3"),
        ({"n_files": 0}, "n_files must lie in 1..4"),
        ({"shaping": 2}, "shaping must lie in 0..1"),
        ({"templates": ("interval",)}, "did you mean 'intervals'"),
        ({"kinds": ("comparison",)}, "no kind of bug 'comparison'"),
        ({"report": "none"}, "no report 'none'"),
    ],
)
def test_a_knob_that_cannot_be_is_refused_at_once(kwargs, says):
    with pytest.raises((ValueError, UnknownName), match=says):
        Repair(**kwargs)
    with pytest.raises(TypeError, match="write \\('coins',\\)"):
        Repair(templates="coins")


# ---------------------------------------------------------------- with a shell


@pytest.fixture
def shell():
    need_bubblewrap()
    env = RepairShell()
    begin(env, env.tasks("train")[0])
    yield env
    env.close()


def test_a_shell_sees_the_files_and_what_it_does_to_programs_counts(shell):
    (name,) = shell.files
    assert play(shell, "bash", command="ls")[0].split() == [name, f"test_{name}"]
    text = shell.original[name]
    play(shell, "bash", command=f"cat > {name} <<'END'\n{text}END")
    assert shell.files == dict(shell.original)
    _, total, info = finish(shell)
    assert info["success"] and total == 1.0


def test_what_a_shell_does_to_tests_and_to_the_box_earns_nothing(shell):
    (name,) = shell.files
    said = "echo > test_*; echo 'x = 1' > json.py; (while true; do echo 'x = 1' > /tmp/y; done) & "
    play(shell, "bash", command=said + "mkdir -p /tmp/run; pkill -9 python3; echo done")
    play(shell, "bash", command=f"echo > {name}; rm {name}")
    assert shell.files == {name: ""}
    assert "0 of 8 tests pass" in play(shell, "run_tests")[0]
    _, reward, _, _, info = play(shell, "submit")
    assert reward == 0.0 and not info["success"]


@pytest.mark.parametrize(
    "command",
    ["ln -sf /etc/passwd {}", "rm {0}; mkdir {0}", "rm {0}; mkfifo {0}",
     "rm {0}; mkdir -p {0}/a/b; chmod 0 {0}/a {0}", "rm {0}; ln -s /nowhere {0}"],
)  # fmt: skip
def test_whatever_a_command_puts_where_a_file_was_the_next_finds_the_file(shell, command):
    (name,) = shell.files
    for path in (f"test_{name}", name):
        play(shell, "bash", command=command.format(path))
        said = play(shell, "bash", command="wc -c *.py")[0]
        assert "ToolError" not in said and "total" in said, said
    assert shell.files == {name: ""}
    _, total, info = finish(shell)
    assert info["success"] and total == 1.0
