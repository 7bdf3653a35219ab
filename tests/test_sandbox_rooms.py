"""Laws of rooms: what the environments of one rollout batch share, and what they do not."""

import os
import threading

import pytest
from boxes import is_open, need_bubblewrap

from turnwise.envs.pool import EnvPool
from turnwise.envs.sandbox_env import SandboxEnv
from turnwise.envs.types import Task
from turnwise.sandboxes import (
    Batch,
    Limits,
    SandboxDied,
    SandboxSpec,
    Unsupported,
    open_sandbox,
)
from turnwise.sandboxes.room import current_batch

SMALL = Limits(memory_mb=96, pids=40, disk_mb=4, wall_s=5.0)


def room(**how):
    need_bubblewrap()
    return open_sandbox("bubblewrap", limits=how.pop("limits", SMALL), isolation="batch", **how)


def said(result):
    assert result.exit_code == 0, result
    return result.text.strip()


def test_rooms_of_a_batch_share_a_box_and_no_folder_kernel_or_shell():
    with Batch():
        one, two = room(), room()
        assert one.box is two.box and one.path != two.path and one.id != two.id
        one.put("f", b"1")
        one.cell("a = 1")
        one.shell("b=1")
        assert two.exec(["ls", "-A"]).stdout == b"" and two.cell("a").exit_code == 1
        assert said(two.shell("echo [$b]")) == "[]"
        assert one.get("f") == b"1" and said(one.cell("print(a)")) == said(one.shell("echo $b"))


@pytest.mark.parametrize("way", ["exec", "cell", "shell"])
def test_every_way_to_run_something_begins_in_the_rooms_folder_also_after_a_loss(way):
    where = {
        "exec": lambda box: box.exec(["pwd"]),
        "cell": lambda box: box.cell("import os; print(os.getcwd())"),
        "shell": lambda box: box.shell("pwd"),
    }[way]
    with Batch():
        box = room()
        assert said(where(box)) == box.path == box.spec.workdir
        box.cell("import os; os._exit(1)"), box.shell("exit 3")
        assert said(where(box)) == box.path


def test_a_closed_room_leaves_no_file_and_no_process_and_the_others_go_on():
    with Batch():
        one, two = room(), room()
        for box in (one, two):
            box.put("f", b"1")
            box.cell("1"), box.shell("sleep 100 &")
        before = said(one.box.exec(["sh", "-c", "cat /proc/[0-9]*/comm"])).split()
        one.close(), one.close()
        after = said(two.exec(["sh", "-c", "cat /proc/[0-9]*/comm"])).split()
        assert before.count("bash") == 2 == before.count("sleep")
        assert after.count("bash") == 1 == after.count("sleep")
        assert after.count("python3") == before.count("python3") - 1
        assert two.box.exec(["ls", one.path]).exit_code != 0 and two.get("f") == b"1"
        with pytest.raises(SandboxDied, match="closed"):
            one.cell("1")


def test_a_room_whose_agent_clings_to_it_is_emptied_all_the_same():
    cling = "import os, signal\nos._exit = os.kill = print\nsignal.signal(15, signal.SIG_IGN)"
    with Batch():
        one, two = room(), room()
        one.cell(cling)
        one.shell("exit() { :; }; trap '' TERM HUP; setsid sleep 200 & disown")
        two.cell("kept = 1")
        one.close()
        left = said(two.exec(["sh", "-c", "cat /proc/[0-9]*/comm"])).split()
        assert left.count("bash") == left.count("sleep") == 0 and left.count("python3") == 2
        assert said(two.cell("print(kept)")) == "1"


def test_a_batch_closes_while_a_room_is_busy_and_while_a_box_starts():
    need_bubblewrap()
    batch, opening, go, caught = Batch(), threading.Event(), threading.Event(), []

    def start(spec):
        opening.set()
        assert go.wait(10.0)
        return open_sandbox("bubblewrap", limits=SMALL)

    def ask():
        try:
            batch.room(SandboxSpec(limits=SMALL), start, "slow")
        except SandboxDied as error:
            caught.append(error)

    asking = threading.Thread(target=ask)
    with batch.current():
        busy = room()

    def work():
        with pytest.raises(SandboxDied):
            busy.exec(["sleep", "9"])

    working = threading.Thread(target=work)
    for thread in (asking, working):
        thread.start()
    assert opening.wait(5.0)
    batch.close()
    assert not is_open(busy.box)
    go.set()
    for thread in (asking, working):
        thread.join(10.0)
        assert not thread.is_alive()
    assert len(caught) == 1 and "has been closed" in str(caught[0])


def test_batches_share_nothing_and_end_with_their_boxes():
    with Batch():
        one = room()
        with Batch():
            inner = room()
            assert inner.box is not one.box
        assert not is_open(inner.box) and is_open(one.box)
        assert room().box is one.box, "the batch around is current again"
    assert not is_open(one.box) and current_batch() is None


@pytest.mark.parametrize("other", [{"limits": Limits(memory_mb=80)}, {"env": {"A": "1"}}])
def test_rooms_that_were_asked_for_otherwise_are_in_another_box(other):
    with Batch():
        assert room().box is not room(**other).box
        assert room(**other).box is room(**other).box


def test_the_room_after_a_death_is_in_a_new_box_and_closing_the_dead_one_is_quiet():
    with Batch():
        one = room()
        one.box.close()
        with pytest.raises(SandboxDied):
            one.cell("1")
        assert not one.alive
        two = room()
        assert two.box is not one.box and said(two.cell("print(1)")) == "1"
        one.close()


def test_what_works_on_whole_boxes_is_refused_and_says_how_to_have_it():
    with Batch():
        box = room()
        assert box.capabilities == {"files", "python_state", "shell"}
        for call in (box.snapshot, box.fork, box.fork_kernel):
            with pytest.raises(Unsupported, match="isolation='episode'"):
                call()


def test_what_has_no_walls_has_no_rooms():
    with Batch(), pytest.raises(Unsupported, match="no walls"):
        open_sandbox("unsafe", isolation="batch")


def test_a_room_needs_an_open_batch_and_a_known_isolation():
    with pytest.raises(ValueError, match="with Batch"):
        room()
    with pytest.raises(ValueError, match="'episode' or 'batch', got 'none'"):
        open_sandbox("bubblewrap", isolation="none")
    batch = Batch()
    batch.close()
    with batch.current(), pytest.raises(SandboxDied, match="has been closed"):
        room()


def test_a_forked_child_opens_a_box_of_its_own_and_leaves_its_parents_alone():
    with Batch() as batch:
        box = room()
        child = os.fork()
        if child == 0:
            try:
                batch.close()  # a copy of its parent's, which it must not touch
                with Batch():
                    mine = room()
                    right = mine.box is not box.box and said(mine.cell("print(2)")) == "2"
                os._exit(0 if right else 1)
            except BaseException:
                os._exit(2)
        assert (
            os.waitpid(child, 0)[1] == 0 and is_open(box.box) and said(box.cell("print(3)")) == "3"
        )


class Shared(SandboxEnv):
    isolation = "batch"
    backend = "bubblewrap"
    limits = SMALL

    def tasks(self, split):
        return [Task()]

    def setup(self, task, rng):
        self.run_program("true")
        return "nothing to do"


def test_a_pools_environments_are_a_batch_whose_box_ends_with_the_pool():
    need_bubblewrap()
    with EnvPool(Shared, 3) as pool, EnvPool(Shared, 1) as other:
        envs = [pool.env(index) for index in range(3)] + [other.env(0)]
        for env in envs:
            env.reset(seed=0)
        boxes = [env.box.box for env in envs]
        assert boxes[0] is boxes[1] is boxes[2] is not boxes[3]
        with envs[0].fresh_box() as grader:
            assert grader not in boxes and grader.spec.isolation == "episode"
    assert not any(map(is_open, boxes))


def test_an_environment_made_by_hand_is_a_batch_of_its_own_and_may_begin_again():
    need_bubblewrap()
    one, two = Shared(), Shared()
    for env in (one, two):
        env.reset(seed=0)
    box = one.box.box
    assert box is not two.box.box
    one.reset(seed=1)
    assert one.box.box is box, "episodes of one batch share it"
    one.close()
    assert not is_open(box)
    one.reset(seed=0)
    assert is_open(one.box.box) and two.run_program("true").exit_code == 0
    one.close(), two.close()
