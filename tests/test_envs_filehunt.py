"""Laws of FileHunt: a hunt follows from its task, can be solved, pays in order, leaks nothing."""

import math
import os
import random
import subprocess
import sys
from types import MappingProxyType

import pytest
from boxes import need_bubblewrap

from turnwise.envs.builtin import filehunt_box
from turnwise.envs.builtin.filehunt import CLUE, SHARE, FileHunt, Hunt, task_world
from turnwise.envs.builtin.filehunt_world import KINDS_OF_THING, START, WORDS
from turnwise.envs.types import digest
from turnwise.sandboxes.base import SandboxError
from turnwise.sandboxes.shared import shared_sandbox

HUNTS = "/workspace/hunts"
WITH_LOOK = [task for task in FileHunt(depth=4).tasks("test")[:12] if
             any(hop.kind == "look" for hop in task_world(task).hops)]  # fmt: skip


@pytest.fixture
def hunt():
    """Make environments that are closed at the end."""
    need_bubblewrap()
    made = []

    def make(**kwargs):
        made.append(FileHunt(**kwargs))
        return made[-1]

    yield make
    for env in made:
        env.close()


def begin(env, task, seed=0):
    env.reset(seed=seed, options={"task": task})
    return env


def solve(env, stumbles=MappingProxyType({})):
    """Play the expert, at some turns a stumble instead; return (turns, reward, last info)."""
    total, turns, done, info = 0.0, 0, False, {}
    while not done:
        action = stumbles.get(turns)
        _, reward, terminated, truncated, info = env.step(
            env.expert() if action is None else action
        )
        total, turns, done = total + reward, turns + 1, terminated or truncated
    return turns, total, info


def solved(env):
    _, total, info = solve(env)
    return info["success"] and math.isclose(total, (env.task.depth + 1) * SHARE)


def reach(env, index):
    """Let the expert play until `index` clues of the chain were reached."""
    while env.reached < index:
        env.step(env.expert())


# ---------------------------------------------------------------- worlds


def worlds_of(split, count):
    tasks = FileHunt(depth=(2, 12)).tasks(split)[:count]
    return [digest([t.key, dict(w.files), dict(w.tags), w.code])
            for t, w in ((t, task_world(t)) for t in tasks)]  # fmt: skip


def test_a_world_follows_from_its_task_alone_in_every_process():
    code = "from test_envs_filehunt import worlds_of; print(*worlds_of('dev', 20))"
    env = {**os.environ, "PYTHONHASHSEED": "77"}
    fresh = subprocess.run(
        [sys.executable, "-c", code], cwd=os.path.dirname(__file__), env=env, text=True,
        stdout=subprocess.PIPE, check=True, timeout=120,
    )  # fmt: skip
    random.seed(1)
    assert fresh.stdout.split() == worlds_of("dev", 20)


def test_no_task_and_no_world_is_in_two_splits():
    splits = {split: FileHunt(depth=(2, 12)).tasks(split)[:150] for split in FileHunt.splits}
    keys = [task.key for tasks in splits.values() for task in tasks]
    files = [digest(dict(task_world(t).files)) for tasks in splits.values() for t in tasks]
    assert len(set(keys)) == len(keys) and len(set(files)) == len(files)


def test_tasks_are_a_fixed_lazy_sequence_in_which_depths_take_turns():
    tasks = FileHunt(depth=(2, 4)).tasks("train")
    assert [task.depth for task in tasks[:7]] == [2, 3, 4, 2, 3, 4, 2]
    assert tasks[5] == FileHunt(depth=(2, 4)).tasks("train")[5] and tasks[-1] == tasks[999_999]
    with pytest.raises(IndexError, match="1000000 tasks, asked for 1000000"):
        tasks[1_000_000]


@pytest.mark.parametrize("siblings", [1, 3, 8])
def test_exactly_one_candidate_is_of_the_kind_that_a_clue_asks_for(siblings):
    looks = 0
    for index in range(40):
        world = task_world(Hunt(index=index, depth=6, siblings=siblings))
        for hop in (hop for hop in world.hops if hop.kind == "look"):
            thing = hop.clue.split()[-1]
            names = [path for path in world.files if path.startswith(hop.folder + "/")]
            meant = [path for path in names if path.split("/")[-1] in KINDS_OF_THING[thing]]
            assert meant == [hop.path] and len(names) == siblings + 1
            looks += 1
    assert looks > 40


def test_the_four_kinds_of_thing_share_no_name():
    assert len(WORDS) == len(set(WORDS)) == sum(map(len, KINDS_OF_THING.values()))


@pytest.mark.parametrize(
    ("kwargs", "says"),
    [
        ({"depth": 17}, "depth must lie in 1..16"),
        ({"depth": (5, 4)}, "least before most"),
        ({"siblings": 0}, "siblings must lie in 1..8"),
        ({"tool_failure": 1.0}, "a probability below 1"),
    ],
)
def test_a_hunt_that_cannot_be_made_is_refused_at_once(kwargs, says):
    with pytest.raises(ValueError, match=says):
        FileHunt(**kwargs)


# ---------------------------------------------------------------- playing


@pytest.mark.parametrize("depth", range(2, 13))
def test_the_expert_solves_every_depth_in_its_turns_and_earns_a_share_per_clue(hunt, depth):
    env = hunt(depth=depth)
    for task in env.tasks("test")[:2]:
        turns, total, info = solve(begin(env, task))
        assert info["success"] and turns == env.world.expert_turns
        assert total == pytest.approx((depth + 1) / 17) and info["metrics"]["clues"] == 1.0


def wrong_call(rng, world):
    """A call that leads nowhere: another folder, a file off the chain, no tag, no tool."""
    chain = {START, *(hop.path for hop in world.hops)}
    beside = rng.choice([path for path in world.files if path not in chain])
    return rng.choice([f"ls /{rng.choice(WORDS)}", f"cat {beside}", "cat /nowhere",
                       f"grep {rng.choice(WORDS)}", "sing", "cat", "cat 'a", ""])  # fmt: skip


@pytest.mark.parametrize("depth", range(2, 13))
def test_an_expert_that_stumbles_twice_still_solves_within_the_slack(hunt, depth):
    env, rng = hunt(depth=depth), random.Random(depth)
    for task in env.tasks("test")[:4]:
        begin(env, task)
        when = rng.sample(range(env.world.expert_turns), 2)
        stumbles = {turn: wrong_call(rng, env.world) for turn in when}
        turns, total, info = solve(env, stumbles)
        assert info["success"] and total == pytest.approx((depth + 1) / 17), env.episode.actions
        assert turns <= env.world.expert_turns + 2 * 3, "a stumble costs itself, /clue and a detour"


def test_clue_always_shows_the_clue_that_was_reached_last(hunt):
    env, rng = hunt(depth=6, slack=200), random.Random(0)
    for task in env.tasks("test")[:3]:
        world = begin(env, task).world
        clues = [*(hop.clue for hop in world.hops), f"code {world.code}"]
        for index, clue in enumerate(clues):
            reach(env, index)
            for _ in range(3):
                assert env.step(f"cat {CLUE}")[0] == clue
                env.step(wrong_call(rng, world))


@pytest.mark.parametrize("task", WITH_LOOK[:4], ids=lambda task: f"hunt{task.index}")
def test_a_wrong_candidate_pays_nothing_and_the_right_one_a_share(hunt, task):
    env = begin(hunt(slack=50), task)
    index = next(i for i, hop in enumerate(env.world.hops) if hop.kind == "look")
    hop = env.world.hops[index]
    reach(env, index)
    listed = env.step(f"ls {hop.folder}")[0].split("\n")
    assert len(listed) == 4
    for name in listed:
        if hop.folder + name != hop.path:
            assert env.step(f"cat {hop.folder}{name}")[1] == 0.0 and env.reached == index
    assert env.step(f"cat {hop.path}")[1] == pytest.approx(SHARE) and env.reached == index + 1
    assert env.step(f"cat {hop.path}")[1] == 0.0, "a clue is paid once"


def test_a_clue_read_before_its_turn_pays_nothing(hunt):
    env = begin(hunt(depth=4), FileHunt(depth=4).tasks("test")[1])
    for hop in reversed(env.world.hops[1:]):
        assert env.step(f"cat {hop.path}")[1] == 0.0 and env.reached == 0


@pytest.mark.parametrize("spelt", ["{}/", "/{}", "/.{}", "./{}"])
def test_a_clue_is_reached_however_its_path_is_written(hunt, spelt):
    env = begin(hunt(depth=2), FileHunt(depth=2).tasks("test")[0])
    shown, reward, *_ = env.step("cat " + spelt.format(env.world.hops[0].path))
    assert shown == env.world.hops[1].clue and reward == pytest.approx(SHARE)
    assert env.step(f"cat {CLUE}")[0] == shown


def test_a_code_that_is_not_the_one_at_the_end_of_the_chain_ends_the_hunt_unpaid(hunt):
    env = hunt(depth=2, decoys=1.0)
    task = next(t for t in env.tasks("test") if "code" in str(decoys_of(task_world(t))))
    begin(env, task)
    code = next(text for text in decoys_of(env.world) if text.startswith("code")).split()[1]
    _, reward, terminated, _, info = env.step(f"submit {code}")
    assert (reward, terminated, info["success"]) == (0.0, True, False)


def decoys_of(world):
    chain = {START, *(hop.path for hop in world.hops)}
    return [text for path, text in world.files.items() if path not in chain]


# ---------------------------------------------------------------- calls that fail


def failing_run(env, task, seed):
    """Play the expert; return which calls timed out, after showing that each lost nothing."""
    begin(env, task, seed)
    failed, paid, done, info = [], 0.0, False, {}
    while not done:
        before = (env.expert(), env.state_hash(), env.reached)
        observation, reward, terminated, truncated, info = env.step(before[0])
        failed.append(observation.startswith("ToolError[timeout]"))
        if failed[-1]:
            assert (env.expert(), env.state_hash(), env.reached) == before and reward == 0.0
            assert info["error"] == "timeout" and "try again" in observation
        paid, done = paid + reward, terminated or truncated
    assert info["success"] and paid == pytest.approx((task.depth + 1) * SHARE)
    return failed


def test_a_call_that_fails_for_no_reason_loses_nothing_and_the_expert_still_solves(hunt):
    env = hunt(depth=8, tool_failure=0.3, slack=80)
    calls = [c for task in env.tasks("test")[:12] for c in failing_run(env, task, task.index)]
    assert 0.2 < sum(calls) / len(calls) < 0.4


def test_failures_follow_from_the_seed(hunt):
    task = FileHunt(depth=8).tasks("test")[0]
    runs = [failing_run(hunt(tool_failure=0.3, slack=80), task, seed) for seed in (3, 3, 4)]
    assert runs[0] == runs[1] != runs[2]


def test_calls_do_not_fail_unless_it_was_asked_for(hunt):
    env = hunt(depth=8, slack=0)
    assert all(solved(begin(env, task, task.index)) for task in env.tasks("test")[:6])


# ---------------------------------------------------------------- trees


def box_of(env):
    """The box that the environments of this process share; `env` must have begun."""
    assert env.world
    return shared_sandbox("filehunt")


def kill_kernel(env):
    """Kill the process in the box that reads the trees; the box lives on."""
    box = box_of(env)
    pid = box.cell("import os; print(os.getpid())", kernel=filehunt_box.KERNEL).text.strip()
    box.exec(["sh", "-c", f"kill -9 {pid}"])


def test_attempts_at_one_task_read_one_tree_that_is_written_once(hunt):
    task = FileHunt().tasks("test")[101]
    first, second = begin(hunt(), task), hunt()
    box_of(first).put(f"{HUNTS}/{task.key}{START}", b"marked")
    assert [begin(env, task).step(f"cat {START}")[0] for env in (second, first)] == ["marked"] * 2
    first.close()
    assert second.step(f"cat {START}")[0] == "marked"


def test_a_tree_that_is_read_stays_however_many_others_are_mounted(hunt, monkeypatch):
    monkeypatch.setattr(filehunt_box, "KEEP", 3)
    tasks = FileHunt(depth=3).tasks("test")[200:212]
    reader, passing = begin(hunt(depth=3), tasks[0]), hunt(depth=3)
    for task in tasks[1:]:
        begin(passing, task)
    kept = box_of(reader).exec(["ls", HUNTS]).text.split()
    assert tasks[0].key in kept and tasks[1].key not in kept
    assert len(kept) == 3 + 2, "KEEP that nobody reads, and the two that are read"
    assert solved(reader) and solved(begin(passing, tasks[1])), "and what was dropped comes back"


def test_closing_twice_or_before_the_first_hunt_is_safe(hunt):
    task, env, other = FileHunt(depth=2).tasks("test")[300], hunt(depth=2), hunt(depth=2)
    env.close()
    begin(env, task)
    begin(other, task)
    env.close()
    env.close()
    assert solved(other), "a second close must not take the tree from another reader"
    assert solved(begin(env, task)), "a closed environment may begin again"


def test_a_view_of_a_tree_that_is_closed_twice_gives_it_back_once(hunt, monkeypatch):
    monkeypatch.setattr(filehunt_box, "KEEP", 0)
    task, view = FileHunt(depth=2).tasks("test")[310], filehunt_box.Tree()
    reader = begin(hunt(depth=2), task)
    view.mount(task.key, reader.world)
    view.close()
    view.close()
    assert solved(reader)


def test_a_box_that_dies_is_an_infrastructure_failure_and_a_fresh_hunt_gets_a_fresh_box(hunt):
    tasks = FileHunt(depth=3).tasks("test")[400:402]
    env, other = begin(hunt(), tasks[0]), begin(hunt(), tasks[1])
    box_of(env).close()
    with pytest.raises(SandboxError):
        env.step(f"cat {START}")
    assert solved(begin(hunt(), tasks[0]))
    with pytest.raises(SandboxError):
        other.step(f"cat {START}")
    assert solved(begin(env, tasks[1])) and solved(begin(other, tasks[0]))


def test_a_kernel_that_dies_is_one_too_and_the_next_hunt_gets_its_files(hunt):
    tasks = FileHunt(depth=3).tasks("test")[410:412]
    env = begin(hunt(), tasks[0])
    kill_kernel(env)
    with pytest.raises(SandboxError):
        env.step(f"cat {START}")
    assert solved(begin(hunt(), tasks[0])) and solved(begin(env, tasks[1]))


def test_who_read_before_a_kernel_died_takes_no_tree_from_who_reads_after(hunt, monkeypatch):
    monkeypatch.setattr(filehunt_box, "KEEP", 0)
    task = FileHunt(depth=3).tasks("test")[420]
    before, after = begin(hunt(), task), begin(hunt(), task)
    kill_kernel(before)
    with pytest.raises(SandboxError):
        after.step(f"cat {START}")
    begin(after, task)
    before.close()
    assert solved(after)


# ---------------------------------------------------------------- odd arguments


ODD = ["", " ", "\0", "/a\0b", "..", ".", "/../..", "/etc/passwd", "/proc/self/environ", "a\nb",
       "\n", "\n#", "/" + "x" * 10_000, "/x" * 5_000, "é日本🦊", "\x7f\x1b[31m", "'", '"', "\\",
       "-rf", "$(id)", "*", "~", "{}", "%s", "null"]  # fmt: skip


@pytest.mark.parametrize("actions", ["command", "hermes"])
@pytest.mark.parametrize("tool", ["ls", "cat", "grep"])
def test_an_odd_argument_is_answered_and_never_an_exception(hunt, actions, tool):
    env = begin(hunt(slack=200, actions=actions), FileHunt(depth=2).tasks("test")[0])
    parameter = "word" if tool == "grep" else "path"
    for odd in ODD:
        observation, reward, *ended, info = env.step(env.call_text(tool, **{parameter: odd}))
        assert not any(ended) and reward == 0.0
        assert info.get("error") in (None, "tool_raised") and observation.encode(), repr(odd)
        assert len(observation) <= 400
    assert solved(env)


@pytest.mark.parametrize("odd", ODD)
def test_an_odd_code_ends_the_hunt_unpaid(hunt, odd):
    env = begin(hunt(), FileHunt(depth=2).tasks("test")[0])
    _, reward, terminated, _, info = env.step(env.call_text("submit", code=odd))
    assert (reward, terminated, info["success"]) == (0.0, True, False)


@pytest.mark.parametrize("action", ["cat \ud800", "ls a b", "cat", "rm /start", "\0", "x" * 10_000])
def test_what_is_no_call_is_answered_too(hunt, action):
    env = begin(hunt(), FileHunt(depth=2).tasks("test")[0])
    observation, reward, *ended, _ = env.step(action)
    assert observation.startswith("ToolError[") and observation.encode() and reward == 0.0
    assert not any(ended) and solved(env)


def test_nothing_outside_the_tree_can_be_read(hunt):
    mine, theirs = FileHunt(depth=2).tasks("test")[500:502]
    env, other = begin(hunt(slack=50), mine), begin(hunt(), theirs)
    box, up = box_of(other), "/.." * 9
    outside = ["/etc/passwd", f"{HUNTS}/{theirs.key}{START}", "/proc/self/cmdline"]
    for path in outside:
        assert box.exec(["cat", path]).exit_code == 0, "it is there to be read"
        ways = [path, "/" + path, up + path, up[1:] + path, "/start/.." + up + path]
        for way in [*ways, f"../{theirs.key}{START}", f"/x/../../{theirs.key}{START}"]:
            assert env.step(f"cat {way}")[0].startswith("ToolError[tool_raised] no file"), way
    root = env.step("ls /")[0]
    folders = {path.split("/")[1] for path in env.world.files}
    assert set(root.split("\n")) == {"/" + name for name in folders}
    assert env.step("ls ..")[0] == env.step("ls /../../..")[0] == root
    assert env.step(f"ls ../{theirs.key}")[0].startswith("ToolError[tool_raised] no folder")


def test_a_tag_is_found_by_grep_and_not_shown_by_cat(hunt):
    task = next(t for t in FileHunt(depth=4).tasks("test") if task_world(t).tags)
    env = begin(hunt(), task)
    for tag, path in env.world.tags.items():
        assert env.step(f"grep {tag}")[0] == path
        assert env.step(f"cat {path}")[0] == env.world.files[path]
