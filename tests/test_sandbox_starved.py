"""A box whose memory the agent used up to the guest's death: its own doing, and never masked."""

import os
import select
import signal

import pytest
from boxes import need_bubblewrap, need_docker

from turnwise.envs.sandbox_env import SandboxEnv
from turnwise.envs.tools import reward, tool
from turnwise.envs.types import Task
from turnwise.sandboxes import Batch, Limits, SandboxDied, open_sandbox
from turnwise.sandboxes.remote_wire import pack_error, unpack, unpack_error

SMALL = Limits(memory_mb=64, pids=50, disk_mb=80, wall_s=20.0)
STARVE = """
import os, time
def step_back():
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("0")
step_back()
for _ in range(25):
    if os.fork() == 0:
        step_back()
        held = bytearray(b"1") * (1 << 20)
        time.sleep(20)
        os._exit(0)
time.sleep(0.3)
with open("/tmp/file", "wb") as file:
    while True:
        file.write(bytes(1 << 16))
        file.flush()
"""


def opened(backend):
    if os.geteuid() != 0 and backend == "bubblewrap":
        pytest.skip("without a cgroup the largest process is ended, which is never the guest")
    need_docker() if backend == "docker" else need_bubblewrap()
    return open_sandbox(backend, limits=SMALL)


@pytest.mark.parametrize(
    "backend", ["bubblewrap", pytest.param("docker", marks=pytest.mark.docker)]
)
def test_a_box_that_starved_its_guest_says_so(backend):
    with opened(backend) as box, pytest.raises(SandboxDied) as caught:
        for _ in range(5):  # the kernel may first choose another
            box.cell(STARVE)
    assert caught.value.out_of_memory


def test_a_guest_that_died_otherwise_did_not_starve():
    with opened("bubblewrap") as box:
        kill_guest_of(box)
        with pytest.raises(SandboxDied) as caught:
            box.cell("1")
    assert not caught.value.out_of_memory


def test_a_guest_that_died_otherwise_long_after_a_shortage_did_not_starve():
    with opened("bubblewrap") as box:
        assert box.cell("held = bytearray(100 << 20)", kernel="eater").exit_code == 137
        assert box.exec(["true"]).exit_code == 0
        kill_guest_of(box)
        with pytest.raises(SandboxDied) as caught:
            box.cell("1")
    assert not caught.value.out_of_memory


def test_no_room_is_blamed_for_what_all_rooms_share():
    need_bubblewrap()
    with Batch():
        one = open_sandbox("bubblewrap", limits=SMALL, isolation="batch")
        two = open_sandbox("bubblewrap", limits=SMALL, isolation="batch")
        for room in (one, two):
            with pytest.raises(SandboxDied) as caught:
                for _ in range(5):
                    room.cell(STARVE)
            assert not caught.value.out_of_memory


@pytest.mark.parametrize("starved", [True, False])
def test_the_reason_travels(starved):
    error = died(starved)
    status, message = pack_error(error)
    again = unpack_error(unpack(message)[0], status)
    assert isinstance(again, SandboxDied) and again.out_of_memory == starved


def kill_guest_of(box):
    guest = box._end.peek()[1].__self__.guest
    signal.pidfd_send_signal(guest, signal.SIGKILL)
    select.select([guest], [], [], 10.0)


def died(starved):
    error = SandboxDied("gone")
    error.out_of_memory = starved
    return error


class Fragile(SandboxEnv):
    """Its tool and its grader lose their boxes as the class says."""

    backend = "bubblewrap"
    starved = True
    where = "tool"
    chance = 0.0

    def tasks(self, split):
        return [Task()]

    def setup(self, task, rng):
        self.put_file("given", b"1")
        return "go"

    @tool
    def run(self) -> str:
        """Run something."""
        if self.where in ("tool", "shaped"):
            raise died(self.starved)
        return "ran"

    @tool
    def look(self) -> str:
        """Look around."""
        return self.run_program("ls").text

    @tool(final=True)
    def submit(self) -> None:
        """End."""

    @reward(0.5, shaping=True)
    def bookkeeping(self, episode) -> float:
        return -1.0 if self.where == "shaped" else 0.0

    @reward()
    def solved(self, episode) -> float:
        if self.where == "grader":
            raise died(self.starved)
        return 1.0


@pytest.fixture
def fragile():
    need_bubblewrap()
    made = []

    def make(**how):
        env = type("Fragile", (Fragile,), how)()
        env.reset(seed=0)
        made.append(env)
        return env

    yield make
    for env in made:
        env.close()


def test_the_agent_reads_that_it_starved_its_box_and_the_episode_earns_nothing(fragile):
    env = fragile()
    assert "given" in env.step(env.call_text("look"))[0]
    box = env.box
    observation, paid, terminated, _, info = env.step(env.call_text("run"))
    assert "ToolError[tool_raised]" in observation and "out of memory" in observation
    assert (paid, terminated, info["success"]) == (0.0, True, False) and not box.alive
    env.reset(seed=0)
    assert env.step(env.call_text("submit"))[1] == 1.0, "the next episode begins anew"


def test_what_takes_shaping_back_is_paid_after_a_starvation_too(fragile):
    env = fragile(where="shaped")
    assert env.step(env.call_text("run"))[1] == -0.5


def test_files_that_starve_the_graders_box_earn_nothing_and_end_the_episode(fragile):
    env = fragile(where="grader")
    _, paid, terminated, _, _ = env.step(env.call_text("submit"))
    assert paid == 0.0 and terminated


@pytest.mark.parametrize("where", ["tool", "grader"])
def test_what_the_machine_did_is_never_the_agents_mistake(fragile, where):
    env = fragile(starved=False, where=where)
    with pytest.raises(SandboxDied):
        env.step(env.call_text("run" if where == "tool" else "submit"))
