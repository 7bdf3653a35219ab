"""How a box is started: inside its limits from the first call on, by code compiled beforehand."""

import os
import time
from pathlib import Path

import pytest
from attacks import HIDDEN_MEMORY
from boxes import need_bubblewrap

from turnwise.sandboxes import Limits, bubblewrap, cgroup, compiled, inside, open_sandbox
from turnwise.sandboxes.bubblewrap_command import box_python
from turnwise.sandboxes.guest_memory import COMES_BACK_S, Shortage
from turnwise.sandboxes.watchdog import _below

SMALL = Limits(memory_mb=96, pids=24, disk_mb=4, wall_s=10.0)


def opened():
    need_bubblewrap()
    return open_sandbox("bubblewrap", limits=SMALL)


def need_cgroups():
    need_bubblewrap()
    if os.geteuid() != 0 or not cgroup._parents():
        pytest.skip("only root makes cgroups, and no controller may be used here")


def guest_of(box):
    """PID 1 of the box as this process numbers it."""
    token = box.id.partition("-")[2].encode()
    below = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in _below(os.getpid())}
    (pid,) = (
        pid
        for pid, line in below.items()
        if token in line and not line.split(b"\0")[0].endswith(b"bwrap")
        if (" 1\n" in nspid(pid))
    )
    return pid


def nspid(pid):
    lines = Path(f"/proc/{pid}/status").read_text().splitlines(keepends=True)
    return next(line.replace("\t", " ") for line in lines if line.startswith("NSpid"))


# ---------------------------------------------------------------- the cgroup


def groups_of(pid):
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    return {line.split(":")[1] for line in lines if "/turnwise-" in line.split(":", 2)[2]}


DOORS = {
    "its own": cgroup.Cgroup.open_doors,
    "none": lambda self: [],
    "closed": lambda self: [os.open("/dev/full", os.O_WRONLY) for _ in self.folders],
    "of nowhere": lambda self: [os.open("/dev/null", os.O_WRONLY) for _ in self.folders],
}


@pytest.mark.parametrize("doors", DOORS)
def test_a_box_is_in_its_cgroups_whoever_moves_it(monkeypatch, doors):
    need_cgroups()
    monkeypatch.setattr(cgroup.Cgroup, "open_doors", DOORS[doors])
    with opened() as box:
        guest = guest_of(box)
        held = {name for _, _, names in cgroup._parents() for name in names}
        assert groups_of(guest) & held == held
        said = box.exec(["cat", "/proc/self/cgroup"]).text
        assert said.count("/turnwise-") == len(groups_of(guest))
        assert box.cell("x = bytearray(200 << 20)").exit_code == 137


def test_the_agent_finds_no_way_into_a_cgroup(monkeypatch):
    need_cgroups()
    with opened() as box:
        seen = box.exec(["ls", "-l", "/proc/self/fd"]).text
        assert "cgroup" not in seen and "tasks" not in seen and "oom" not in seen
        assert seen.count("->") == 4, "three streams, and the folder that ls reads"


# ---------------------------------------------------------------- when memory runs out


def test_the_guest_shares_no_page_that_it_may_write_to_with_a_kernel():
    need_cgroups()
    with opened() as box:
        box.cell("x = 1")
        shared, rights = 0, ""
        for line in Path(f"/proc/{guest_of(box)}/smaps").read_text().splitlines():
            words = line.split()
            if "-" in words[0] and not words[0].endswith(":"):
                rights = words[1]
            elif words[0] == "Shared_Dirty:" and rights == "rw-p":
                shared += int(words[1])
        assert shared == 0


def test_page_tables_that_fill_the_limit_do_not_cost_the_box():
    need_cgroups()
    with opened() as box:
        box.put("kept", b"1")
        box.cell("kept = 2", kernel="other")
        for _ in range(3):
            result = box.cell(HIDDEN_MEMORY["page tables"], timeout_s=5.0)
            assert result.exit_code == 137 and result.state_lost
            assert box.get("kept") == b"1" and box.exec(["true"]).exit_code == 0


def test_the_guest_lies_still_once_for_each_time_that_the_kernel_ended_something(tmp_path):
    counter = tmp_path / "counter"
    shortage = Shortage()
    shortage.wait_over()
    counter.write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n")
    shortage.watch(os.open(counter, os.O_RDONLY))

    def waited():
        began = time.monotonic()
        shortage.wait_over()
        return time.monotonic() - began >= COMES_BACK_S * 0.9

    assert not waited(), "what was before does not count"
    for text in ("under_oom 1\noom_kill 4\n", "low 0\noom 9\noom_kill 5\noom_group_kill 0\n"):
        counter.write_text(text)
        assert waited() and not waited()
    os.close(shortage.events)
    assert not waited() or not waited(), "a file that is gone stops nobody for long"


def test_only_a_box_with_a_bound_on_memory_counts(tmp_path):
    for held, name, found in (
        ({"memory"}, "memory.events", True),
        ({"memory"}, "memory.oom_control", True),
        ({"memory"}, "memory.stat", False),
        ({"pids"}, "memory.events", False),
    ):
        folder = tmp_path / f"{name}-{len(held)}-{found}"
        folder.mkdir()
        (folder / name).touch()
        kills = cgroup.Cgroup(frozenset(held), [folder]).open_kills()
        assert bool(kills) == found
        for fd in kills:
            os.close(fd)


# ---------------------------------------------------------------- the guest's own code


def test_the_guest_is_compiled_once_for_the_python_of_the_box():
    need_bubblewrap()
    found = compiled.compiled_guest(box_python())
    assert [name.removesuffix(".pyc") for name in found] == [
        name.removesuffix(".py") for name in inside.guest_files()
    ]
    assert compiled.compiled_guest(box_python()) is found
    with opened() as box:
        assert box.exec(["ls", "/opt/turnwise/sandboxes"]).text.split() == sorted(
            name.rpartition("/")[2] for name in found
        )


@pytest.mark.parametrize("python", ["/usr/bin/false", "/nowhere/python"])
def test_where_it_cannot_be_compiled_a_box_runs_the_files_themselves(monkeypatch, python):
    need_bubblewrap()
    assert compiled.compiled_guest(python) == inside.guest_files()
    files = inside.guest_files()
    monkeypatch.setattr(bubblewrap, "compiled_guest", lambda python: files)
    with opened() as box:
        shown = box.cell("def f(): 1 / 0\nf()").stderr.decode()
        assert "guest" not in shown and "line 1, in f" in shown


def test_a_traceback_shows_nothing_of_the_compiled_guest():
    with opened() as box:
        shown = box.cell("def f(): 1 / 0\nf()").stderr.decode()
        assert "guest" not in shown and "line 1, in f" in shown
