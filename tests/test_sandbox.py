"""The promises of `turnwise.sandboxes.base`, held against a real box."""

import ast
import json
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from attack_columns import NoPython, lay_open, python_for_others
from boxes import need_bubblewrap, processes_with, wait_until

from turnwise.sandboxes import (
    BACKENDS,
    Limits,
    NetPolicy,
    NoSafeSandbox,
    ProtocolError,
    Sandbox,
    SandboxDied,
    SandboxSpec,
    StartFailed,
    Unsupported,
    bubblewrap,
    bubblewrap_command,
    cgroup,
    guest,
    guest_children,
    open_sandbox,
    probe,
    seccomp,
    shared_sandbox,
)
from turnwise.sandboxes.channel import Channel

SMALL = Limits(memory_mb=96, pids=24, disk_mb=4, inodes=500, output_bytes=2000, wall_s=10.0)


@pytest.fixture(scope="module", autouse=True)
def no_docker():
    """Here `auto` means bubblewrap, whatever engine this machine has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
        yield


@pytest.fixture(scope="module")
def box():
    need_bubblewrap()
    with open_sandbox(limits=SMALL) as box:
        yield box


@pytest.fixture
def own_box():
    """For tests that break it."""
    need_bubblewrap()
    with open_sandbox(limits=SMALL) as box:
        yield box


def insides(box):
    """The backend's own handle on what it started."""
    return box._end.peek()[1].__self__


def commands(box):
    """The names of the live processes in the box."""
    stats = box.exec(["sh", "-c", "cat /proc/[0-9]*/stat"]).text.splitlines()
    fields = [line.replace("(", ")").split(")") for line in stats]
    return [name for _, name, rest in fields if rest.split()[0] != "Z"]


def kill(box):
    """Kill the box's PID 1 from outside and wait until it is dead."""
    guest_fd = insides(box).guest
    signal.pidfd_send_signal(guest_fd, signal.SIGKILL)
    assert select.select([guest_fd], [], [], 10.0)[0]


# ---------------------------------------------------------------- exec


def test_a_box_keeps_the_protocol(box):
    assert isinstance(box, Sandbox)
    assert box.backend == "bubblewrap" and box.spec.limits == SMALL


def test_a_program_returns_its_output_and_its_exit_code(box):
    result = box.exec(["sh", "-c", "echo out; echo err >&2; exit 3"])
    assert (result.exit_code, result.stdout, result.stderr) == (3, b"out\n", b"err\n")
    assert not result.timed_out and result.truncated == 0 and result.wall_s > 0


def test_a_program_killed_by_a_signal_reports_it_as_a_shell_does(box):
    assert box.exec(["sh", "-c", "kill -SEGV $$"]).exit_code == 128 + 11


@pytest.mark.parametrize(
    ("argv", "cwd", "code", "word"),
    [
        (["no-such-program"], None, 127, b"no-such-program"),
        (["/usr"], None, 126, b"/usr"),
        (["true"], "/no/such/folder", 126, b"/no/such/folder"),
    ],
)
def test_what_cannot_be_run_is_a_result_that_names_it(box, argv, cwd, code, word):
    result = box.exec(argv, cwd=cwd)
    assert result.exit_code == code and word in result.stderr


def test_a_program_gets_its_input_folder_and_environment(box):
    sent = os.urandom(300_000)
    counted = box.exec(["sh", "-c", "wc -c; pwd; echo $A"], stdin=sent, cwd="/tmp", env={"A": "b"})
    assert counted.stdout.split() == [b"300000", b"/tmp", b"b"]
    assert box.exec(["true"], stdin=sent).exit_code == 0, "it may leave its input unread"
    assert box.exec(["sh", "-c", "echo $A"]).stdout == b"\n", "the environment of one call only"


def test_argv_is_not_a_shell_line(box):
    assert box.exec(["echo", "a; echo b", "$HOME"]).stdout == b"a; echo b $HOME\n"
    with pytest.raises(ValueError, match="list of words"):
        box.exec("echo a")


def test_a_timeout_ends_the_whole_tree_even_what_left_its_session(box):
    line = "setsid sh -c 'trap \"\" TERM INT HUP; sleep 77 & sleep 77' & sleep 77"
    began = time.monotonic()
    result = box.exec(["sh", "-c", line], timeout_s=0.3)
    assert result.timed_out and result.exit_code == 137
    assert time.monotonic() - began < 2.0
    assert "sleep" not in commands(box)


def test_what_a_program_leaves_running_ends_with_it(box):
    box.exec(["sh", "-c", "setsid sleep 77 >/dev/null 2>&1 & :"])
    assert "sleep" not in commands(box)


def test_a_background_child_that_holds_the_output_does_not_hold_the_call(box):
    began = time.monotonic()
    assert box.exec(["sh", "-c", "sleep 77 & echo done"]).stdout == b"done\n"
    assert time.monotonic() - began < 2.0


def test_output_over_the_limit_keeps_head_and_tail_and_counts_the_rest(box):
    result = box.exec(["sh", "-c", "echo first; head -c 1000000 /dev/zero | tr '\\0' x; echo last"])
    assert result.stdout.startswith(b"first\n") and result.stdout.endswith(b"last\n")
    assert result.truncated == 6 + 1_000_000 + 5 - SMALL.output_bytes
    assert b"bytes dropped" in result.stdout and len(result.stdout) < SMALL.output_bytes + 100
    exact = box.exec(["head", "-c", str(SMALL.output_bytes), "/dev/zero"])
    assert exact.truncated == 0 and len(exact.stdout) == SMALL.output_bytes


# ---------------------------------------------------------------- cells


def test_cells_share_their_variables_and_kernels_do_not(box):
    assert box.cell("a = 1", kernel="one").exit_code == 0
    assert box.cell("print(a + 1)", kernel="one").stdout == b"2\n"
    assert b"NameError" in box.cell("a", kernel="two").stderr


def test_an_exception_is_a_result_with_the_line_at_fault_and_keeps_the_state(box):
    box.cell("kept = 5")
    result = box.cell("def f():\n    return 1 / 0\nprint('before')\nf()")
    assert result.exit_code == 1 and result.stdout == b"before\n" and not result.state_lost
    assert b"return 1 / 0" in result.stderr and b"guest" not in result.stderr
    assert box.cell("print(kept)").stdout == b"5\n"
    assert b"SyntaxError" in box.cell("a b").stderr


@pytest.mark.parametrize(
    ("code", "exit_code", "stderr"),
    [("raise SystemExit", 0, b""), ("exit(3)", 3, b""), ("raise SystemExit('no')", 1, b"no\n")],
)
def test_leaving_a_cell_is_not_leaving_its_kernel(box, code, exit_code, stderr):
    result = box.cell(code)
    assert (result.exit_code, result.stderr, result.state_lost) == (exit_code, stderr, False)


def test_all_output_of_a_cell_comes_in_order_whoever_writes_it(box):
    code = """
import os, subprocess, sys
print("é", flush=True)
os.write(1, b"raw\\n")
subprocess.run(["echo", "child"])
print("x" * 100, end="|")
print("error", file=sys.stderr)
"""
    result = box.cell(code)
    assert result.stdout == "é\nraw\nchild\n".encode() + b"x" * 100 + b"|"
    assert result.stderr == b"error\n"


def test_a_flood_from_a_cell_is_truncated_and_counted(box):
    result = box.cell("print('first'); print('x' * 1_000_000); print('last')")
    assert result.stdout.startswith(b"first\n") and result.stdout.endswith(b"last\n")
    assert result.truncated == 6 + 1_000_001 + 5 - SMALL.output_bytes


def test_a_cell_that_is_late_is_interrupted_and_keeps_its_state(box):
    box.cell("kept = 6")
    result = box.cell("import time\nprint('begun')\ntime.sleep(77)", timeout_s=0.2)
    assert (result.exit_code, result.timed_out, result.state_lost) == (130, True, False)
    assert result.stdout == b"begun\n" and b"KeyboardInterrupt" in result.stderr
    assert box.cell("print(kept)").stdout == b"6\n"


def test_a_late_cell_takes_its_children_with_it(box):
    code = "import subprocess\np = subprocess.Popen(['setsid', 'sleep', '77'])\np.wait()"
    assert box.cell(code, timeout_s=0.2).timed_out
    assert "sleep" not in commands(box)


def test_a_cell_deaf_to_interrupts_is_killed_and_says_that_its_state_is_lost(box):
    box.cell("kept = 7", kernel="deaf")
    code = "import signal, time\nsignal.signal(2, signal.SIG_IGN)\ntime.sleep(77)"
    result = box.cell(code, kernel="deaf", timeout_s=0.2)
    assert result.timed_out and result.state_lost and 0.6 < result.wall_s < 3.0
    assert b"NameError" in box.cell("kept", kernel="deaf").stderr


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [("import os; os._exit(4)", 4), ("import os; os.kill(os.getpid(), 9)", 137)],
)
def test_a_kernel_that_ends_is_a_result_and_the_next_cell_gets_a_fresh_one(box, code, exit_code):
    result = box.cell("print('begun', flush=True)\n" + code, kernel="ending")
    assert (result.exit_code, result.state_lost) == (exit_code, True)
    assert result.stdout == b"begun\n"
    assert box.cell("print(1)", kernel="ending").stdout == b"1\n"


def test_a_kernel_that_ends_between_cells_does_not_run_the_next_one_in_silence(box):
    code = "import os, threading, time\nthreading.Timer(0.05, os._exit, [5]).start()"
    assert box.cell(code, kernel="timer").exit_code == 0
    time.sleep(0.2)
    result = box.cell("print('ran')", kernel="timer")
    assert result.state_lost and result.stdout == b"" and b"did not run" in result.stderr


def test_background_work_of_a_cell_neither_blocks_nor_spoils_later_output(box):
    line = "sleep 0.1; head -c 300000 /dev/zero; echo written > /tmp/written"
    box.cell(f"import subprocess\np = subprocess.Popen(['sh', '-c', {line!r}])", kernel="busy")
    time.sleep(0.5)
    assert box.cell("print(p.wait(5))", kernel="busy").stdout == b"0\n"
    assert box.get("/tmp/written") == b"written\n"


def test_a_child_forked_by_a_cell_does_not_answer_for_it(box):
    code = "import os\npid = os.fork()\nprint('child' if pid == 0 else os.waitpid(pid, 0)[1])"
    result = box.cell(code)
    assert sorted(result.stdout.split()) == [b"0", b"child"] and not result.state_lost
    assert box.cell("print(2)").stdout == b"2\n"


def test_exec_spares_the_kernels_and_what_they_started(box):
    box.cell("import subprocess; p = subprocess.Popen(['sleep', '77']); kept = 8", kernel="spared")
    box.exec(["sh", "-c", "setsid sleep 78 & :"])
    assert box.cell("print(kept, p.poll())", kernel="spared").stdout == b"8 None\n"
    assert box.cell("p.kill(); print(p.wait())", kernel="spared").stdout == b"-9\n"


def test_a_cell_can_use_the_installed_packages_threads_and_processes(box):
    code = """
import asyncio, concurrent.futures as futures, json, multiprocessing, sqlite3, ssl
with futures.ThreadPoolExecutor(2) as pool:
    print(sum(pool.map(abs, [-1, 2])))
with multiprocessing.Pool(2) as pool:
    print(sum(pool.map(abs, [-3, 4])))
async def run():
    child = await asyncio.create_subprocess_exec("echo", "hi", stdout=-1)
    return (await child.communicate())[0]
print(asyncio.run(run()).decode().strip())
print(sqlite3.connect("/tmp/a.db").execute("select 5").fetchone())
"""
    result = box.cell(code, kernel="packages")
    assert result.stdout.split() == [b"3", b"7", b"hi", b"(5,)"], result.text


def test_many_threads_may_call_one_box(box):
    seen = {}

    def work(name):
        for i in range(20):
            box.cell(f"n = {i}", kernel=f"t{name}")
            seen[name, i] = box.cell("print(n)", kernel=f"t{name}").stdout

    threads = [threading.Thread(target=work, args=(name,)) for name in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(text == b"%d\n" % i for (_, i), text in seen.items()) and len(seen) == 60


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("data", [b"", b"\0\xff\n", os.urandom(2_000_000)])
def test_a_file_comes_back_as_it_was_put(box, data):
    box.put("a/b/file", data, mode=0o755)
    assert box.get("/workspace/a/b/file") == data
    assert box.exec(["stat", "-c", "%a %s", "a/b/file"]).stdout == b"755 %d\n" % len(data)
    box.put("a/b/file", b"short")
    assert box.get("a/b/file") == b"short"


def test_links_pipes_and_folders_are_neither_read_nor_written(box):
    box.exec(["sh", "-c", "ln -s /etc/passwd link; ln -s /tmp dir; mkfifo pipe; mkdir folder"])
    for path in ("link", "dir/x", "pipe", "folder", "/proc/self/status", "/"):
        with pytest.raises(OSError):
            box.put(path, b"data")
        with pytest.raises(OSError):
            box.get(path)
    assert box.exec(["ls", "/tmp/x"]).exit_code != 0


def test_a_missing_file_and_one_that_is_too_long_are_os_errors(box):
    with pytest.raises(FileNotFoundError):
        box.get("nothing/here")
    box.put("long", b"12345")
    assert box.get("long", max_bytes=5) == b"12345"
    for limit in (4, 0):
        with pytest.raises(OSError, match=f"longer than {limit}"):
            box.get("long", max_bytes=limit)
    with pytest.raises(OSError, match="No space"):
        box.put("full", b"x" * (SMALL.disk_mb << 20) + b"x")
    box.put("full", b"")


# ---------------------------------------------------------------- life and death


def test_close_is_idempotent_and_later_calls_say_so():
    need_bubblewrap()
    box = open_sandbox(limits=SMALL)
    parts = insides(box)
    box.close()
    box.close()
    assert parts.process.poll() is not None
    assert not any(folder.exists() for folder in parts.group.folders)
    with pytest.raises(SandboxDied, match="closed"):
        box.cell("1")


def test_a_killed_box_is_an_infrastructure_failure(own_box):
    kill(own_box)
    with pytest.raises(SandboxDied) as caught:
        own_box.cell("1")
    assert caught.value.retryable and not own_box.alive
    with pytest.raises(SandboxDied):
        own_box.exec(["true"])


def test_a_box_ends_when_its_lifetime_is_over():
    need_bubblewrap()
    limits = Limits(lifetime_s=0.2)
    with open_sandbox(limits=limits) as box, pytest.raises(SandboxDied, match="lifetime"):
        box.exec(["sleep", "77"])


def test_close_from_another_thread_ends_a_call_in_progress(own_box):
    threading.Timer(0.2, own_box.close).start()
    began = time.monotonic()
    with pytest.raises(SandboxDied):
        own_box.exec(["sleep", "77"])
    assert time.monotonic() - began < 5.0


def test_a_box_outlives_the_thread_that_opened_it():
    need_bubblewrap()
    boxes = []
    thread = threading.Thread(target=lambda: boxes.append(open_sandbox(limits=SMALL)))
    thread.start()
    thread.join()
    time.sleep(0.1)
    with boxes[0] as box:
        assert box.cell("print(1)").stdout == b"1\n"


OWNER = """
import sys, time
from turnwise.sandboxes import open_sandbox
box = open_sandbox()
box.cell(f"import subprocess; p = subprocess.Popen(['setsid', 'sleep', {sys.argv[1]!r}])")
print("ready", flush=True)
time.sleep(float(sys.argv[2]))
"""


@pytest.mark.parametrize("how", ["kill", "exit"])
def test_an_owner_that_ends_leaves_no_process(how):
    need_bubblewrap()
    word = f"77.{os.getpid()}{time.time_ns() % 10**9}"
    nap = "77" if how == "kill" else "0"
    with subprocess.Popen([sys.executable, "-c", OWNER, word, nap], stdout=-1) as owner:
        assert owner.stdout.readline() == b"ready\n"
        assert how == "exit" or processes_with(word)
        if how == "kill":
            owner.kill()
    assert wait_until(lambda: not processes_with(word))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes cgroups")
def test_folders_of_owners_that_were_killed_are_swept_and_of_the_living_are_not(own_box):
    parents = cgroup._parents()
    if not parents:
        pytest.skip("no cgroup controller may be used here")
    own = insides(own_box).group.folders
    space = cgroup._pid_namespace()
    dead = parents[0][0] / f"turnwise-{space}-{2**22 + 1}-1-0"
    foreign = parents[0][0] / f"turnwise-{space + 1}-{2**22 + 1}-1-0"
    just_made = parents[0][0] / f"turnwise-{cgroup._owner()}-{2**22}"
    for folder in (dead, foreign, just_made):
        folder.mkdir()
    try:
        cgroup.sweep_leftovers()
        assert not dead.exists() and foreign.exists() and just_made.exists()
        assert all(folder.exists() for folder in own)
    finally:
        foreign.rmdir()
        just_made.rmdir()


def test_a_forked_child_cannot_use_or_end_its_parents_box(own_box):
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            own_box.cell("1")
        except SandboxDied:
            own_box.close()
            code = int(own_box._channel.sock.fileno() != -1)
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    assert own_box.cell("print(1)").stdout == b"1\n"


CTRL_C = """
import os, signal
from turnwise.sandboxes import open_sandbox
signal.signal(signal.SIGINT, lambda *_: None)
with open_sandbox() as box:
    box.cell("kept = 9")
    os.killpg(0, signal.SIGINT)
    print(box.exec(["sleep", "0.1"]).exit_code, box.cell("print(kept)").text)
"""


def test_ctrl_c_is_the_owners_business_and_leaves_its_boxes_alone():
    need_bubblewrap()
    argv = [sys.executable, "-c", CTRL_C]
    ran = subprocess.run(argv, capture_output=True, start_new_session=True, timeout=60)
    assert ran.stdout.split() == [b"0", b"9"], ran.stderr


def test_a_forked_child_opens_boxes_of_its_own(own_box):
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            with open_sandbox(limits=SMALL) as box:
                code = int(box.cell("print(1)").stdout != b"1\n")
        finally:
            os._exit(code)
    assert wait_until(lambda: os.waitpid(pid, os.WNOHANG)[0] == pid, 20.0)


def test_a_call_that_was_interrupted_ends_the_box_rather_than_mix_up_replies(own_box):
    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        with pytest.raises(KeyboardInterrupt):
            own_box.exec(["sleep", "77"])
    finally:
        signal.signal(signal.SIGALRM, before)
    with pytest.raises(SandboxDied, match="interrupted"):
        own_box.exec(["true"])


# ---------------------------------------------------------------- opening


@pytest.mark.parametrize("name", ["memory_mb", "pids", "cpus", "inodes", "wall_s"])
def test_a_limit_that_allows_nothing_is_refused(name):
    with pytest.raises(ValueError, match=rf"Limits\.{name} must be above 0"):
        Limits(**{name: 0})


@pytest.mark.parametrize("timeout_s", [0, -1.0, float("nan"), float("inf")])
def test_a_timeout_that_is_no_time_is_refused(box, timeout_s):
    with pytest.raises(ValueError, match="timeout_s"):
        box.cell("1", timeout_s=timeout_s)


def test_the_guest_is_written_in_the_python_of_old_distributions():
    files = sorted(Path(guest.__file__).parent.glob("guest*.py"))
    assert len(files) > 3
    for file in files:
        tree = ast.parse(file.read_text(), feature_version=(3, 8))
        names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        words = {node.arg for node in ast.walk(tree) if isinstance(node, ast.keyword)}
        assert not names & {"removeprefix", "removesuffix", "pidfd_open", "pairwise"}, file
        assert not words & {"strict", "slots", "kw_only"}, file


def test_unknown_backends_get_the_nearest_name():
    with pytest.raises(ValueError, match="did you mean 'bubblewrap'"):
        open_sandbox("bublewrap")


def test_what_no_backend_can_do_is_refused_before_anything_starts():
    with pytest.raises(NoSafeSandbox, match="docker"):
        open_sandbox(image="no-such-image")
    with pytest.raises(ValueError, match="reaches nothing"):
        open_sandbox(net=NetPolicy("proxy"))
    with pytest.raises(Unsupported, match="bubblewrap"):
        bubblewrap.open_box(SandboxSpec(image="debian"))
    with pytest.raises(ValueError, match="workdir"):
        bubblewrap.open_box(SandboxSpec(workdir="/usr/x"))


def test_without_bubblewrap_the_error_holds_the_command(monkeypatch):
    monkeypatch.setattr(probe, "_good", set())
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    monkeypatch.setattr(probe, "_cache_file", lambda *_: None)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    bubblewrap_command.bwrap.cache_clear()
    try:
        with pytest.raises(NoSafeSandbox, match="apt-get install -y bubblewrap") as caught:
            open_sandbox()
    finally:
        bubblewrap_command.bwrap.cache_clear()
    assert not caught.value.retryable


@pytest.mark.parametrize(
    ("said", "cure"),
    [
        ("setting up uid map: no permission", "unprivileged_userns_clone=1"),
        ("unshare failed: Operation not permitted", "unprivileged_userns_clone=1"),
        ("unshare failed: No space left on device", "user.max_user_namespaces=10000"),
    ],
)
def test_a_host_that_refuses_namespaces_gets_a_reason_and_a_way_out(
    monkeypatch, tmp_path, said, cure
):
    need_bubblewrap()
    fake = tmp_path / "unshare"
    fake.write_text(f"#!/bin/sh\necho 'unshare: {said}' >&2; exit 1\n")
    fake.chmod(0o755)
    for folder in [tmp_path, *tmp_path.parents][:4]:
        if folder.owner() == Path.home().owner() and folder != Path("/"):
            folder.chmod(0o755)
    monkeypatch.setattr(bubblewrap_command, "program", lambda name: str(fake))
    with pytest.raises(StartFailed, match=rf"{said}.*sysctl.*{cure}"):
        bubblewrap.open_box(SandboxSpec())


NAMESPACES = """
import sys
from turnwise.sandboxes import NoSafeSandbox, open_sandbox
try:
    open_sandbox("bubblewrap").close()
except NoSafeSandbox as error:
    print(error)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes the user that is refused")
@pytest.mark.parametrize(
    ("refusal", "words"),
    [
        (["unshare", "--user"], "this host refuses user namespaces"),
        (["unshare", "--user", "--map-root-user"], "root cannot become another user"),
    ],
)
def test_a_user_who_really_is_refused_reads_what_to_do(refusal, words):
    need_bubblewrap()
    try:
        python = python_for_others()
    except NoPython as error:
        pytest.skip(str(error))
    with tempfile.TemporaryDirectory() as folder:
        as_user = lay_open(Path(folder))
        argv = [*refusal, python, "-c", NAMESPACES]
        ran = subprocess.run(argv, capture_output=True, text=True, timeout=60, **as_user)
    assert words in ran.stdout, ran.stderr


def test_the_probe_passes_here_and_is_remembered(monkeypatch, tmp_path):
    need_bubblewrap()
    monkeypatch.setattr(probe, "_good", set())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    backend = BACKENDS["bubblewrap"]
    assert probe.probe_isolation("bubblewrap", backend.open).failures == ()
    assert len(list(tmp_path.glob("turnwise/probe-*.json"))) == 1
    monkeypatch.setattr(probe, "_good", set())

    def no_box(spec):
        raise AssertionError("the verdict was to come from the cache")

    assert probe.probe_isolation("bubblewrap", no_box).ok


def test_a_cache_folder_that_others_can_write_to_is_not_believed(monkeypatch, tmp_path):
    folder = tmp_path / "turnwise"
    folder.mkdir()
    folder.chmod(0o777)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert probe._private_folder() != folder


def test_the_probe_sees_each_wall_that_is_missing(monkeypatch, tmp_path):
    need_bubblewrap()
    build = bubblewrap.command

    def with_holes(*parts):
        argv = build(*parts)
        argv.remove("--unshare-net")
        at = argv.index("--seccomp")
        return [*argv[: at - 4], *argv[at - 2 :]]

    monkeypatch.setattr(bubblewrap, "command", with_holes)
    # The host's own /tmp:
    monkeypatch.setattr(bubblewrap_command, "premount", lambda limits, workdir: [])
    limitless = Limits(memory_mb=512, pids=220, disk_mb=4, inodes=10**9)
    monkeypatch.setattr(probe, "LIMITS", limitless)
    failures = " | ".join(probe.try_backend("holes", bubblewrap.open_box).failures)
    for word in ("file of the host", "network", "system folders", "endless memory"):
        assert word in failures
    assert "endless processes" not in failures, "200 are under the limit that it was given"


# ---------------------------------------------------------------- the guest's proof


def test_the_guest_refuses_to_start_on_a_host():
    assert os.getpid() != 1
    with pytest.raises(guest.Refused, match="PID 1"):
        guest.prove_own_namespace("0" * 32)
    code = "from turnwise.sandboxes.guest import main; raise SystemExit(main(['0' * 32, '0']))"
    ran = subprocess.run(
        [sys.executable, "-c", code], stdin=subprocess.DEVNULL, capture_output=True
    )
    assert ran.returncode == 97 and b"refused" in ran.stderr


def test_pid_1_without_the_marker_of_this_start_refuses_too(monkeypatch):
    need_bubblewrap()
    monkeypatch.setattr(bubblewrap, "MARKER", "/.turnwise-elsewhere")
    with pytest.raises(StartFailed, match=r"refused.*turnwise-box"):
        bubblewrap.open_box(SandboxSpec())
    monkeypatch.undo()
    tokens = iter(["a" * 32, "b" * 32])
    build = bubblewrap.command
    monkeypatch.setattr(
        bubblewrap,
        "command",
        lambda spec, files, seccomp, info, args, workdir: build(
            spec, files, seccomp, info, [next(tokens), args[1]], workdir
        ),
    )
    with pytest.raises(StartFailed, match=r"refused.*not the one of this start"):
        bubblewrap.open_box(SandboxSpec())


def test_nothing_that_sweeps_exists_without_the_proof():
    def refuse():
        raise guest_children.Refused("no")

    with pytest.raises(guest_children.Refused):
        guest_children.Children(refuse)


def test_a_ring_keeps_head_and_tail_whatever_the_pieces():
    data = bytes(range(256)) * 8
    for step in (1, 7, 100, len(data)):
        ring = guest_children.Ring(200)
        for start in range(0, len(data), step):
            ring.add(data[start : start + step])
        kept = ring.bytes()
        assert kept.startswith(data[:100]) and kept.endswith(data[-100:])
        assert ring.dropped == len(data) - 200


# ---------------------------------------------------------------- frames from a guest gone wrong


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (struct.pack(">II", 1 << 30, 0), ProtocolError),
        (struct.pack(">II", 2, 1 << 30) + b"{}", ProtocolError),
        (struct.pack(">II", 2, 0) + b"[]", ProtocolError),
        (struct.pack(">II", 4, 0) + b"\xff\xff\xff\xff", ProtocolError),
        (struct.pack(">II", 8, 0) + b'{"id":9}', ProtocolError),
        (struct.pack(">II", 8, 0) + b'{"id":1}more', ProtocolError),
        (b"", SandboxDied),
        (b"\0\0", SandboxDied),
    ],
)
def test_what_is_not_a_reply_is_never_taken_for_one(answer, error):
    here, there = socket.socketpair()
    there.sendall(answer)
    there.shutdown(socket.SHUT_WR)
    with pytest.raises(error):
        Channel(here, 1 << 20).call("ping", {}, timeout_s=2.0)
    here.close()
    there.close()


def test_a_guest_that_is_silent_is_given_up_after_its_deadline():
    here, there = socket.socketpair()
    began = time.monotonic()
    with pytest.raises(SandboxDied, match="did not answer"):
        Channel(here, 100).call("ping", {}, timeout_s=0.2)
    assert time.monotonic() - began < 1.0
    here.close()
    there.close()


# ---------------------------------------------------------------- seccomp on paper


def run_filter(program, number, args=(0, 0, 0), arch=0xC000003E):
    """What the kernel would answer; an interpreter of the six instructions that we use."""
    data = struct.pack("=IIQ", number, arch, 0) + b"".join(struct.pack("=Q", a) for a in args)
    steps = [struct.unpack_from("=HBBI", program, i) for i in range(0, len(program), 8)]
    at = value = 0
    while True:
        code, yes, no, k = steps[at]
        at += 1
        if code == seccomp.LOAD:
            value = struct.unpack_from("=I", data, k)[0]
        elif code == seccomp.RETURN:
            return k
        else:
            test = {seccomp.EQUAL: value == k, seccomp.AT_LEAST: value >= k}
            at += yes if test.get(code, bool(value & k)) else no


@pytest.mark.parametrize(("machine", "column"), [("x86_64", 0), ("aarch64", 1)])
def test_the_filter_denies_what_it_names_and_allows_the_rest(machine, column):
    program = seccomp.compile_filter(machine, [seccomp.UNLIMITED_CPU])
    arch = seccomp.ARCHES[machine]
    denied = {row[column] for row in seccomp.DENIED.values()} - {None}
    denied.add(seccomp.UNLIMITED_CPU["sched_setaffinity"][column])
    judged = {seccomp.CLONE3[column], seccomp.PERSONALITY[column]}
    judged |= {seccomp.SOCKET[column], seccomp.SOCKETPAIR[column]}
    for number in range(470):
        answer = run_filter(program, number, arch=arch)
        if number in denied:
            assert answer == seccomp.FAIL_WITH | 1
        elif number not in judged:
            assert answer == seccomp.ALLOW, number
    other = seccomp.ARCHES["aarch64" if machine == "x86_64" else "x86_64"]
    assert run_filter(program, 0, arch=other) == seccomp.KILL_PROCESS
    if machine == "x86_64":
        assert run_filter(program, seccomp.X32_BIT + 1) == seccomp.FAIL_WITH | 38


@pytest.mark.parametrize(
    ("call", "args", "allowed"),
    [
        ("CLONE", (0x1200011, 0, 0), True),
        ("CLONE", (0x10000000 | 17, 0, 0), False),
        ("CLONE", (0x00020000 | 17, 0, 0), False),
        ("IOCTL", (0, 0x5413, 0), True),
        ("IOCTL", (0, 0x5412, 0), False),
        ("IOCTL", (0, 0x5412 | 1 << 32, 0), False),
        ("SOCKET", (1, 1, 0), True),
        ("SOCKET", (10, 1, 0), True),
        ("SOCKET", (16, 3, 0), False),
        ("SOCKET", (38, 5, 0), False),
        ("SOCKETPAIR", (1, 5, 0), True),
        ("SOCKETPAIR", (30, 5, 0), False),
        ("PRLIMIT64", (0, 7, 1), True),
        ("PRLIMIT64", (1, 7, 1), False),
        ("PERSONALITY", (0xFFFFFFFF, 0, 0), True),
        ("PERSONALITY", (0x0040000, 0, 0), False),
        ("CLONE3", (0, 0, 0), False),
    ],
)
@pytest.mark.parametrize(("machine", "column"), [("x86_64", 0), ("aarch64", 1)])
def test_calls_that_are_judged_by_an_argument(machine, column, call, args, allowed):
    program = seccomp.compile_filter(machine)
    number = getattr(seccomp, call)[column]
    answer = run_filter(program, number, args, seccomp.ARCHES[machine])
    assert (answer == seccomp.ALLOW) is allowed


@pytest.mark.parametrize(
    ("name", "args", "allowed"),
    [
        ("setpriority", (0, 0, 5), True),
        ("setpriority", (0, 1, 19), False),
        ("setpriority", (1, 0, 19), False),
        ("setpriority", (2, 0, 19), False),
        ("setpriority", (2**32 - 1, 0, 19), False),
        ("ioprio_set", (1, 0, 0), True),
        ("ioprio_set", (1, 1, 0), False),
        ("ioprio_set", (3, 0, 0), False),
        ("sched_setscheduler", (0, 5, 0), True),
        ("sched_setscheduler", (1, 5, 0), False),
        ("sched_setattr", (1, 0, 0), False),
        ("sched_setparam", (1, 0, 0), False),
    ],
)
@pytest.mark.parametrize(("machine", "column"), [("x86_64", 0), ("aarch64", 1)])
def test_nobody_can_slow_the_guest_down(machine, column, name, args, allowed):
    number = seccomp.ONLY_ON_ITSELF[name][0][column]
    answer = run_filter(seccomp.compile_filter(machine), number, args, seccomp.ARCHES[machine])
    assert (answer == seccomp.ALLOW) is allowed


@pytest.mark.parametrize(("machine", "column"), [("x86_64", 0), ("aarch64", 1)])
def test_buffers_of_sockets_keep_their_size_only_where_no_cgroup_counts_them(machine, column):
    arch, number = seccomp.ARCHES[machine], seccomp.SETSOCKOPT[column]
    counted = seccomp.compile_filter(machine)
    uncounted = seccomp.compile_filter(machine, [seccomp.UNLIMITED_MEMORY])
    for level, option in ((1, 7), (1, 8), (1, 32), (1, 33), (1, 9), (6, 7), (0, 8)):
        without_effect = level == 1 and option != 9
        answer = run_filter(uncounted, number, (3, level, option), arch)
        assert answer == (seccomp.FAIL_WITH | 0 if without_effect else seccomp.ALLOW)
        assert run_filter(counted, number, (3, level, option), arch) == seccomp.ALLOW


def test_machines_without_a_filter_are_refused():
    with pytest.raises(Unsupported, match="riscv64"):
        seccomp.compile_filter("riscv64")


# ---------------------------------------------------------------- shared boxes


@pytest.fixture
def shared_limits():
    """Other than the default ones, so that no other test's box is broken."""
    need_bubblewrap()
    limits = Limits(pids=33)
    yield limits
    shared_sandbox("test", limits=limits).close()


def test_a_shared_box_that_died_fails_its_users_and_is_replaced(shared_limits):
    box = shared_sandbox("test", limits=shared_limits)
    assert shared_sandbox("test", limits=shared_limits) is box
    kill(box)
    with pytest.raises(SandboxDied):
        box.cell("1")
    fresh = shared_sandbox("test", limits=shared_limits)
    assert fresh is not box and fresh.cell("print(1)").stdout == b"1\n"


def test_threads_that_ask_at_once_get_the_same_box(shared_limits):
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(shared_sandbox("test", limits=shared_limits)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and len(set(map(id, found))) == 1


# ---------------------------------------------------------------- light imports


def test_importing_the_package_imports_none_of_its_parts():
    code = (
        "import sys, turnwise.sandboxes as s\n"
        "print(sorted(n for n in sys.modules if n.startswith('turnwise.sandboxes.')))\n"
        "print(all(hasattr(s, n) for n in s.__all__), 'torch' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.stdout.splitlines() == ["[]", "True False"], ran.stderr


# ---------------------------------------------------------------- another user

NON_ROOT = """
import json, os
from turnwise.sandboxes import open_sandbox, Limits
bomb = "held = []\\nwhile True: held.append(bytearray(8 << 20))"
forks = '''
import os, time
made = 0
try:
    while made < 100:
        if not os.fork():
            time.sleep(20); os._exit(0)
        made += 1
except OSError: pass
print(made)
'''
with open_sandbox(limits=Limits(memory_mb=96, pids=24)) as box:
    print(json.dumps({
        "user": os.geteuid(),
        "sum": box.exec(["sh", "-c", "echo $((6 * 7))"]).text.strip(),
        "forks": int(box.cell(forks, kernel="forks").text),
        "lost": box.cell("os._exit(0)", kernel="forks").state_lost,
        "bomb": box.cell(bomb, kernel="bomb").exit_code,
        "alive": box.cell("print(1)").text.strip(),
    }))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="the other tests run as this user already")
def test_a_user_without_rights_gets_the_same_walls():
    need_bubblewrap()
    python = bubblewrap_command.box_python()
    asked = [python, "-c", "import sys; print(sys.version_info >= (3, 11))"]
    if subprocess.run(asked, capture_output=True).stdout != b"True\n":
        pytest.skip(f"{python} is older than 3.11")
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        package = Path(folder, "turnwise", "sandboxes")
        ours = Path(bubblewrap.__file__).parent
        shutil.copytree(ours, package, ignore=shutil.ignore_patterns("__pycache__"))
        ran = subprocess.run(
            [python, "-c", NON_ROOT],
            user=65534,
            group=65534,
            extra_groups=[],
            cwd="/",
            env={"PYTHONPATH": folder, "PATH": os.environ["PATH"], "XDG_CACHE_HOME": "/nowhere"},
            capture_output=True,
            text=True,
            timeout=60,
        )
    seen = json.loads(ran.stdout or "{}")
    assert seen, ran.stderr
    assert seen["user"] == 65534 and seen["sum"] == "42" and seen["alive"] == "1"
    assert 10 < seen["forks"] < 24 and seen["lost"] and seen["bomb"] == 137
