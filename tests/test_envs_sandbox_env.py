"""Laws of `SandboxEnv`: a box per episode, graders out of reach, failures of the machine masked."""

from dataclasses import dataclass

import pytest
from boxes import is_open, need_bubblewrap

from turnwise.envs import sandbox_env
from turnwise.envs.check import check_env
from turnwise.envs.code_env import CodeEnv, text_of
from turnwise.envs.sandbox_env import SandboxEnv
from turnwise.envs.tools import ToolFailed, reward, tool
from turnwise.envs.types import Task
from turnwise.sandboxes.base import ExecResult, Limits, NetPolicy, SandboxDied, Unsupported
from turnwise.sandboxes.room import Batch


@dataclass(frozen=True, kw_only=True)
class Factor(Task):
    value: int = 0


class Times(CodeEnv):
    """The example of the module's docstring."""

    Task = Factor
    backend = "bubblewrap"
    limits = Limits(memory_mb=96, pids=24, disk_mb=4, wall_s=20.0)
    max_turns = 3

    def tasks(self, split):
        first = 100 * self.splits.index(self.known_split(split))
        return [Factor(value=first + i) for i in range(100)]

    def setup(self, task, rng):
        self.inputs = [rng.randrange(1000) for _ in range(3)]
        return f"Write solve.py: it reads a number and prints it times {task.value}."

    @tool(final=True)
    def submit(self) -> None:
        """Hand in solve.py; ends the episode."""

    @reward()
    def solved(self, episode) -> float:
        files = self.taken("solve.py")
        with self.fresh_box(files) as box:
            for number in self.inputs if files else ():
                ran = box.exec(["python3", "solve.py"], stdin=b"%d" % number)
                if ran.stdout.split() != [b"%d" % (number * self.task.value)]:
                    return 0.0
        return float(bool(files))

    def expert(self):
        code = f"print(int(input()) * {self.task.value})"
        if self.taken("solve.py") == {"solve.py": code.encode()}:
            return self.call_text("submit")
        return self.call_text("write", path="solve.py", text=code)


class Lab(CodeEnv):
    """Four tools and nothing to solve."""

    backend = "bubblewrap"
    limits = Times.limits

    def tasks(self, split):
        return [Factor(value=self.splits.index(split))]

    def setup(self, task, rng):
        return "Do what you like."

    @tool(final=True)
    def stop(self) -> None:
        """End the episode."""


@pytest.fixture
def lab():
    need_bubblewrap()
    env = Lab()
    env.reset(seed=0)
    yield env
    env.close()


def answers(env, tool, **args):
    return env.step(env.call_text(tool, **args))[0]


# ---------------------------------------------------------------- the example


def test_the_example_of_the_docstring_keeps_the_contract():
    need_bubblewrap()
    report = check_env(Times, seeds=range(1), concurrency=2)
    assert report.ok, str(report)


def test_a_grader_judges_what_the_agent_left_and_not_what_it_claims():
    need_bubblewrap()
    env = Times()
    for text, earned in (
        ("print(int(input()) * {})", 1.0),
        ("print(int(input()) * {} + 1)", 0.0),
        ("import os; print('all tests passed'); os._exit(0)", 0.0),
        ("while True: pass", 0.0),
    ):
        env.limits = Limits(memory_mb=96, pids=24, disk_mb=4, wall_s=0.5)
        env.reset(seed=1, options={"task": Factor(value=7)})
        answers(env, "write", path="solve.py", text=text.format(7))
        _, reward_, ended, _, info = env.step(env.call_text("submit"))
        assert (reward_, ended, info["success"]) == (earned, True, earned == 1.0)
        assert info["sandbox"] == "bubblewrap" and info["metrics"]["backend_bubblewrap"] == 1.0
    env.close()


def test_a_grader_runs_where_no_code_of_the_agent_has_run():
    need_bubblewrap()
    env = Times()
    env.reset(seed=1)
    evil = "import pathlib; pathlib.Path('/tmp/trap').write_text('x')"
    answers(env, "python", code=evil + "\npathlib.Path('mine').write_text('y')")
    with env.fresh_box(env.taken("mine", "missing")) as fresh:
        assert fresh.id != env.box.id and fresh.get("mine") == b"y"
        assert fresh.exec(["ls", "-A", "/tmp", "."]).stdout.split() == [b".:", b"mine", b"/tmp:"]
    env.close()


# ---------------------------------------------------------------- a box per episode


def test_a_box_is_opened_when_first_used_and_gone_when_the_episode_ends(lab):
    assert lab._box is None, "an episode that needs none starts none"
    assert answers(lab, "python", code="a = 1; print(a)") == "1"
    box = lab.box
    assert is_open(box)
    lab.step(lab.call_text("stop"))
    assert not is_open(box) and lab._box is None


@pytest.mark.parametrize("how", ["reset", "close"])
def test_reset_and_close_in_an_episode_give_up_its_box(lab, how):
    answers(lab, "write", path="kept", text="x")
    box = lab.box
    lab.reset(seed=0) if how == "reset" else lab.close()
    assert not is_open(box)
    lab.close()
    if how == "reset":
        assert answers(lab, "read", path="kept").startswith("ToolError[tool_raised] kept")


def test_state_is_kept_between_calls_and_episodes_share_none(lab):
    answers(lab, "bash", command="x=5; cd /tmp")
    assert answers(lab, "bash", command="echo $x; pwd") == "5\n/tmp"
    answers(lab, "python", code="y = 6")
    other = Lab()
    other.reset(seed=0)
    assert "NameError" in answers(other, "python", code="print(y)")
    assert answers(other, "bash", command="echo .$x; pwd") == ".\n/workspace"
    other.close()
    assert answers(lab, "python", code="print(y)") == "6"


def test_what_the_agents_code_does_wrong_is_read_by_the_agent(lab):
    lab.limits = Limits(memory_mb=96, pids=24, disk_mb=4, wall_s=0.3)
    assert answers(lab, "bash", command="echo out; exit 3") == (
        "out\nexit\n[it had to be killed: its state is lost]\n[exit code 3]"
    )
    assert "[timed out]" in answers(lab, "bash", command="sleep 77")
    assert "ZeroDivisionError" in answers(lab, "python", code="1 / 0")
    for path in ("/", "/etc/x", "nowhere/x", "a\0b", "x" * 5000):
        assert "ToolError[tool_raised]" in answers(lab, "read", path=path)
    assert "ToolError[tool_raised]" in answers(lab, "write", path="/proc/x", text="1")
    assert "ToolError[tool_raised]" in answers(lab, "bash", command="a\0b")
    assert answers(lab, "write", path="é", text="é") == "ok"
    missing = answers(lab, "read", path="a/b")
    assert "a/b: No such file or directory" in missing and "Errno" not in missing


def test_a_box_that_dies_leaves_step_as_its_own_error_and_the_next_episode_gets_another(lab):
    answers(lab, "python", code="a = 1")
    lab.box.close()
    with pytest.raises(SandboxDied):
        answers(lab, "python", code="print(a)")
    lab.reset(seed=0)
    assert answers(lab, "python", code="print(2)") == "2"


def test_a_box_that_dies_under_a_grader_is_not_a_reward_of_zero():
    need_bubblewrap()
    env = Times()
    env.reset(seed=1)
    answers(env, "write", path="solve.py", text="1")
    env.box.close()
    with pytest.raises(SandboxDied):
        env.step(env.call_text("submit"))
    env.close()


def test_what_is_taken_holds_only_what_is_there(lab):
    assert lab.taken("a", "b") == {} and lab._box is None
    answers(lab, "write", path="a", text="12345")
    assert lab.taken("a", "b", "/proc/self/status") == {"a": b"12345"}
    assert lab.taken("a", max_bytes=4) == {}


def test_a_fresh_box_that_cannot_hold_its_files_is_closed(lab):
    opened = []
    lab._open = lambda: opened.append(SandboxEnv._open(lab)) or opened[-1]
    with pytest.raises(OSError):
        lab.fresh_box({"big": bytes(5 << 20)})
    assert not is_open(opened[0])


def test_an_observation_tells_no_times():
    result = ExecResult(1, b"out\n", b"err\n", True, 5, True, 1.25)
    said = "out\nerr\n[timed out]\n[it had to be killed: its state is lost]\n[exit code 1]"
    assert text_of(result) == said
    assert text_of(ExecResult(0)) == ""


# ---------------------------------------------------------------- shared and warm


class SharedLab(Lab):
    isolation = "batch"


def test_environments_of_a_batch_share_a_box_and_have_folders_kernels_and_shells_of_their_own():
    need_bubblewrap()
    batch = Batch()
    with batch.current():
        one, two = SharedLab(), SharedLab()
    for env in (one, two):
        env.reset(seed=0)
    answers(one, "write", path="f", text="1")
    answers(one, "python", code="a = 1")
    answers(one, "bash", command="b=1")
    assert one.box.box is two.box.box and one.workspace != two.workspace
    assert answers(one, "bash", command="cat f; pwd") == f"1{one.workspace}"
    assert answers(one, "python", code="import os; print(os.getcwd())") == one.workspace
    assert one.run_program("pwd").stdout.decode().strip() == one.workspace
    assert "NameError" in answers(two, "python", code="a")
    assert answers(two, "bash", command="echo $b; ls") == ""
    for path in ("../x", f"{one.workspace}/f", "/tmp/x", "."):
        with pytest.raises(ToolFailed, match="outside of the workspace"):
            two.get_file(path)
    one.close(), two.close(), batch.close()


class WarmLab(Lab):
    warm = 1


@pytest.fixture
def pools():
    """The pools of a test, closed after it."""
    yield sandbox_env._pools
    for pool in sandbox_env._pools.values():
        pool.close()
    sandbox_env._pools.clear()


def test_warm_environments_lease_boxes_that_nobody_used_before(pools):
    need_bubblewrap()
    env, seen = WarmLab(), set()
    for _ in range(3):
        env.reset(seed=0)
        assert answers(env, "bash", command="ls; touch used") == ""
        seen.add(env.box.id)
    env.close()
    assert len(seen) == 3


@pytest.mark.parametrize("base", [Lab, SharedLab, WarmLab])
def test_image_and_network_of_the_class_hold_however_its_boxes_are_come_by(base, pools):
    need_bubblewrap()
    listed = NetPolicy("proxy", ("example.org",))

    class Connected(base):
        net = listed

    env = Connected()
    env.reset(seed=0)
    assert env.box.spec.net == listed
    with env.fresh_box() as fresh:
        assert fresh.spec.net == listed
    box = env.box
    env.close()
    box.close()
    with pytest.raises(Unsupported, match="no-such-image"):
        base(image="no-such-image").box  # noqa: B018


def test_tools_refuse_by_tool_failed_outside_of_a_call_too(lab):
    with pytest.raises(ToolFailed, match="nothing"):
        lab.get_file("nothing")
