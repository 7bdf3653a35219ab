"""What a plain box promises, for `test_sandbox_unsafe.py` to run as a user who is not root.

Run as a program it prints `name: ok` or `name: what went wrong` per case. Needs no pytest.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
import traceback
import warnings
from pathlib import Path

from turnwise.sandboxes import (
    Limits,
    SandboxDied,
    Unsupported,
    open_sandbox,
    unsafe,
    unsafe_process,
)
from turnwise.sandboxes.base import NetPolicy

SMALL = Limits(output_bytes=2000, file_bytes=100_000, wall_s=10.0)


@contextlib.contextmanager
def plain_box(**limits):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        box = open_sandbox("unsafe", limits=Limits(**limits) if limits else SMALL)
    with box:
        yield box


@contextlib.contextmanager
def raises(kind, word=""):
    try:
        yield
    except kind as error:
        assert word in str(error), error
    else:
        raise AssertionError(f"{kind.__name__} was not raised")


def case_it_needs_the_second_opt_in():
    for value in ("", "0", "true", "yes"):
        os.environ[unsafe.ALLOW] = value
        try:
            with raises(Unsupported, "TURNWISE_ALLOW_UNSAFE=1"):
                open_sandbox("unsafe")
        finally:
            os.environ[unsafe.ALLOW] = "1"


def case_it_offers_no_image_and_no_network_policy():
    with raises(Unsupported, "image"):
        open_sandbox("unsafe", image="debian")
    with raises(Unsupported, "proxy"):
        open_sandbox("unsafe", net=NetPolicy("proxy"))


def case_it_warns_at_each_start():
    for action in ("default", "once"):
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter(action)
            for _ in range(2):
                open_sandbox("unsafe").close()
        if action == "default":
            assert len(seen) == 2 and "isolates nothing" in str(seen[0].message), seen


def case_its_name_is_in_what_it_says_of_itself():
    with plain_box() as box:
        assert box.backend == "unsafe" and box.id.startswith("unsafe-")


def case_only_groups_that_it_started_are_signalled():
    sent = []
    real_group, real_kill = os.killpg, os.kill
    stranger = subprocess.Popen(["sleep", "30"], start_new_session=True)
    os.killpg = lambda pid, number: (sent.append(pid), real_group(pid, number))
    os.kill = lambda pid, number: sent.append(("kill", pid))
    started = []
    real_init = unsafe_process.Group.__init__

    def init(self, *args, **more):
        real_init(self, *args, **more)
        started.append(self.process.pid)

    unsafe_process.Group.__init__ = init
    try:
        with plain_box() as box:
            box.exec(["sh", "-c", "sleep 30 & setsid sleep 1 & echo on"])
            box.exec(["sleep", "30"], timeout_s=0.2)
            box.cell("import time\ntime.sleep(30)", timeout_s=0.2)
            box.cell("import os; os._exit(1)")
            box.cell("1", kernel="other")
    finally:
        os.killpg, os.kill, unsafe_process.Group.__init__ = real_group, real_kill, real_init
    assert sent and set(sent) <= set(started), (sent, started)
    assert stranger.poll() is None
    stranger.kill()
    stranger.wait()


def case_a_group_that_was_waited_for_is_never_signalled_again():
    groups = set()
    group = unsafe_process.Group(["true"], "/", {"PATH": os.environ["PATH"]}, groups)
    while not group.has_ended():
        time.sleep(0.01)
    assert group in groups and group.end() == 0 and not groups
    sent, real = [], os.killpg
    os.killpg = lambda *args: sent.append(args)
    try:
        group.end(), group.kill(), group.interrupt()
    finally:
        os.killpg = real
    assert not sent and group.has_ended()


def case_secrets_of_the_environment_stay_outside():
    os.environ["TURNWISE_TEST_SECRET"] = "turnwise-test-secret"
    with plain_box() as box:
        seen = box.exec(["env"]).text + box.cell("import os; print(os.environ)").text
    assert "turnwise-test-secret" not in seen and "PATH" in seen


def case_paths_stay_in_its_folder_and_follow_no_link():
    with plain_box() as box:
        box.put("/workspace/a/b", b"1")
        assert box.get("a/b") == box.get(f"{box.folder}/a/b") == b"1"
        assert Path(box.folder, "a/b").read_bytes() == b"1"
        os.symlink("/etc", Path(box.folder, "etc"))
        os.symlink("/etc/passwd", Path(box.folder, "passwd"))
        os.mkfifo(Path(box.folder, "fifo"))
        for path in ("etc/passwd", "passwd", "fifo", "../x", "/etc/passwd", "a/../../x", "/", ""):
            with raises(OSError):
                box.get(path)
            with raises(OSError):
                box.put(path, b"harmed")
        with raises(OSError, "longer"):
            box.get("a/b", max_bytes=0)
        with raises(OSError, "over the limit"):
            box.put("big", bytes(SMALL.file_bytes + 1))


def case_close_ends_what_it_started_and_removes_its_folder():
    word = f"78.{os.getpid()}"
    with plain_box() as box:
        box.cell(f"import subprocess; p = subprocess.Popen(['sleep', '{word}'])")
        (runner,) = box._runners.values()
        assert Path(box.folder).stat().st_mode & 0o077 == 0
    assert runner.group.process.returncode is not None and not os.path.exists(box.folder)
    end = time.monotonic() + 3
    while running(word) and time.monotonic() < end:
        time.sleep(0.02)
    assert not running(word)
    with raises(SandboxDied, "closed"):
        box.exec(["true"])


def running(word):
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if word.encode() in Path(f"/proc/{name}/cmdline").read_bytes():
                found.append(name)
    return found


def case_a_forked_child_neither_uses_nor_ends_it():
    with plain_box() as box:
        box.cell("kept = 1")
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                box.exec(["true"])
            except SandboxDied:
                box.close()
                box._end()  # as the end of the interpreter would
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(pid, 0)[1] == 0
        assert box.cell("print(kept)").stdout == b"1\n" and os.path.isdir(box.folder)


def case_output_of_background_work_is_not_the_next_cells():
    with plain_box() as box:
        box.cell("import subprocess\np = subprocess.Popen(['sh', '-c', 'sleep 0.1; echo late'])")
        time.sleep(0.3)
        assert box.cell("print('mine')").stdout == b"mine\n"


def case_an_interrupted_cell_never_answers_for_the_next():
    def interrupt(*_):
        raise KeyboardInterrupt

    signal.signal(signal.SIGALRM, interrupt)
    with plain_box() as box:
        box.cell("kept = 1")
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with raises(KeyboardInterrupt):
            box.cell("import time\ntime.sleep(30)\nprint('old')")
        assert box.cell("print('new')").stdout == b"new\n"
        assert len(box._groups) == 1, "the interrupted one was ended"
        assert b"NameError" in box.cell("kept").stderr


def case_a_runner_that_lies_is_ended():
    find = "import os, stat\nfd = [n for n in range(3, 64) if os.path.exists(f'/proc/self/fd/{n}')"
    find += " and stat.S_ISSOCK(os.fstat(n).st_mode)][0]\n"
    with plain_box() as box:
        for lie in ("b'x' * 100", "b'\\xff\\xff\\xff\\xff'", "b'ab'", "os.urandom(64)"):
            result = box.cell(f"{find}os.write(fd, {lie})\nimport time; time.sleep(1)")
            assert result.state_lost, (lie, result)
            assert box.cell("print(1)").stdout == b"1\n"


def case_what_it_cannot_do_is_unsupported():
    with plain_box() as box:
        for call in (box.snapshot, box.fork, box.fork_kernel, lambda: box.shell("true")):
            with raises(Unsupported):
                call()


def main():
    for name, case in list(globals().items()):
        if name.startswith("case_"):
            try:
                case()
                outcome = "ok"
            except BaseException:
                outcome = " | ".join(traceback.format_exc().splitlines()[-4:])
            print(f"{name}: {outcome}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
