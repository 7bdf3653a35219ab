"""Laws of the stateful shell: what outlives a command, what ends one, and what cannot fake it."""

import statistics
import time

import pytest
from boxes import need_bubblewrap

from turnwise.sandboxes import (
    Limits,
    SandboxDied,
    bubblewrap,
    guest_shell,
    inside,
    open_sandbox,
)

SMALL = Limits(memory_mb=96, pids=32, disk_mb=4, output_bytes=2000, wall_s=10.0)


@pytest.fixture(scope="module")
def box():
    need_bubblewrap()
    with open_sandbox("bubblewrap", limits=SMALL) as box:
        yield box


@pytest.fixture(scope="module")
def plain_box():
    """One in which there is no bash: the guest takes sh."""
    need_bubblewrap()
    files = dict(inside.guest_files())
    path = "/opt/turnwise/sandboxes/guest_shell.py"
    files[path] = files[path].replace(b'BASH = ["bash"', b'BASH = ["no-bash"')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bubblewrap, "compiled_guest", lambda python: files)
        opened = open_sandbox("bubblewrap", limits=SMALL)
    with opened as box:  # the patch is gone: whatever opens next has bash
        yield box


@pytest.fixture(params=["box", "plain_box"])
def either(request):
    return request.getfixturevalue(request.param)


def running(box):
    """The command lines of the live processes in the box."""
    return box.exec(["sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"]).text


# ---------------------------------------------------------------- state


def test_folder_variables_and_functions_outlive_a_command(either):
    assert either.shell("mkdir -p d; cd d; a='x  y'; f() { echo \"in $1\"; }").exit_code == 0
    result = either.shell('pwd; echo "$a"; f z')
    assert result.stdout == b"/workspace/d\nx  y\nin z\n" and result.stderr == b""
    assert not result.state_lost and not result.timed_out


def test_shells_of_other_names_share_files_and_nothing_else(either):
    either.shell("b=1; cd /tmp; echo hi > /tmp/f", name="one")
    assert either.shell("echo $b; pwd; cat /tmp/f", name="two").stdout == b"\n/workspace\nhi\n"


@pytest.mark.parametrize(
    ("command", "code"), [("true", 0), ("false", 1), ("(exit 77)", 77), ("no-such-program", 127)]
)
def test_the_exit_code_is_that_of_the_last_command(either, command, code):
    assert either.shell(f"echo out; {command}").exit_code == code
    assert either.shell("echo $?").stdout in (b"0\n", b"%d\n" % code)


def test_streams_are_kept_apart_and_may_hold_any_byte(box):
    result = box.shell("printf '\\000\\377\\n1 0\\n'; printf 'e\\200' >&2")
    assert (result.stdout, result.stderr) == (b"\0\xff\n1 0\n", b"e\x80")


@pytest.mark.parametrize(
    "command",
    [
        "echo 'open",
        'echo "open',
        "echo $(open",
        "if true; then",
        "f() {",
        "cat <<END\nx",
        ")",
        "a\\",
    ],
)
def test_a_command_that_is_cut_short_is_an_error_and_not_the_start_of_the_next(either, command):
    either.shell("kept=7", name="cut")
    began = time.monotonic()
    result = either.shell(command, name="cut")
    assert not result.timed_out and not result.state_lost and time.monotonic() - began < 2
    assert either.shell("echo $kept", name="cut").stdout == b"7\n"


def test_quotes_newlines_and_here_documents_arrive_as_they_were_written(either):
    command = "cat <<'END'\nit's \"$HOME\" `x` \\ ;\nEND\nprintf '%s|' 'a\nb' \"c'd\""
    assert either.shell(command).stdout == b"it's \"$HOME\" `x` \\ ;\na\nb|c'd|"


def test_a_long_command_is_run_whole(either):
    result = either.shell(f"x='{'y' * 300_000}'; echo ${{#x}}")
    assert result.stdout == b"300000\n"


# ---------------------------------------------------------------- what it prints is not the end


def test_nothing_that_a_command_prints_ends_it(either):
    fakes = "; ".join(f"echo '{number} 0'; echo '{number} 0' >&2" for number in range(40))
    result = either.shell(f"{fakes}; sleep 0.05; echo real; false")
    assert result.exit_code == 1 and result.stdout.endswith(b"real\n")


def test_a_command_inherits_no_descriptor_but_the_three(either):
    listed = either.shell("ls /proc/self/fd").stdout.split()
    assert set(listed) <= {b"0", b"1", b"2", b"3"}, "3 is the folder that ls reads"
    assert either.shell("readlink /proc/self/fd/0").stdout == b"/dev/null\n"


def test_a_report_forged_by_digging_up_the_pipe_spoils_no_later_command(box):
    forged = "for fd in /proc/$$/fd/*; do echo '1 0' > $fd; echo junk > $fd; done 2>/dev/null"
    box.shell(forged, name="forger")
    for word in (b"one", b"two"):
        result = box.shell(f"echo {word.decode()}; false", name="forger")
        if not result.state_lost:
            assert (result.exit_code, result.stdout.split()[-1]) == (1, word)


def test_output_over_the_limit_keeps_head_and_tail(box):
    result = box.shell("echo first; head -c 1000000 /dev/zero | tr '\\0' x; echo last")
    assert result.stdout.startswith(b"first\n") and result.stdout.endswith(b"last\n")
    assert result.truncated == 6 + 1_000_000 + 5 - SMALL.output_bytes


def test_prompts_and_traces_of_the_shell_itself_are_not_shown(box):
    box.shell("PS1='(venv) '; PROMPT_COMMAND='echo prompt'", name="noisy")
    result = box.shell("set -x; echo a", name="noisy")
    assert result.stdout.replace(b"prompt\n", b"") == b"a\n" and b"eval" not in result.stderr
    assert b"venv" not in box.shell("true", name="noisy").stderr


# ---------------------------------------------------------------- ends


@pytest.mark.parametrize("loop", ["sleep 77; echo after", "while :; do :; done"])
def test_a_late_command_is_interrupted_and_the_shell_keeps_its_state(either, loop):
    either.shell("kept=8")
    result = either.shell(f"echo begun; {loop}", timeout_s=0.2)
    assert (result.exit_code, result.timed_out, result.state_lost) == (130, True, False)
    assert result.stdout == b"begun\n" and 0.15 < result.wall_s < 2.0
    after = either.shell("sleep 0.05; echo $kept; false")
    assert (after.stdout, after.exit_code) == (b"8\n", 1), "no report of before is taken for it"


def test_a_command_deaf_to_interrupts_is_killed_with_all_it_started(box):
    box.shell("kept=9", name="deaf")
    result = box.shell("trap '' INT; setsid sleep 77 & sleep 77", name="deaf", timeout_s=0.2)
    assert result.timed_out and result.state_lost and 0.6 < result.wall_s < 3.0
    assert "sleep" not in running(box)
    assert box.shell("echo $kept", name="deaf").stdout == b"\n"


def test_a_late_command_takes_what_it_started_and_no_job_from_before(box):
    box.shell("setsid sleep 71 >/dev/null 2>&1 & sleep 72 &", name="jobs")
    result = box.shell("setsid sleep 77 & sleep 77", name="jobs", timeout_s=0.2)
    assert result.timed_out and not result.state_lost
    left = running(box)
    assert "sleep 71" in left and "sleep 72" in left and "sleep 77" not in left
    assert box.shell("kill %1; kill %2; echo on", name="jobs").stdout == b"on\n"


@pytest.mark.parametrize("command", ["exit 3", "exec sh -c 'exit 3'", "set -e; (exit 3)"])
def test_a_command_that_closes_the_shell_is_a_result_and_the_next_gets_a_fresh_one(either, command):
    result = either.shell(f"gone=1; echo last; {command}", name="closing")
    assert (result.exit_code, result.state_lost, result.timed_out) == (3, True, False)
    assert result.stdout == b"last\n"
    assert either.shell("echo ${gone:-fresh}", name="closing").stdout == b"fresh\n"
    assert b"history" not in either.exec(["ls", "-A"]).stdout, "it writes no file of its own"


def test_a_shell_that_ended_between_commands_does_not_run_the_next_one_in_silence(box):
    box.shell("(sleep 0.05; kill -9 $$) & :", name="killed")
    time.sleep(0.2)
    result = box.shell("echo ran", name="killed")
    assert result.state_lost and result.stdout == b"" and b"did not run" in result.stderr


def test_a_background_child_that_holds_the_output_does_not_hold_the_call(box):
    began = time.monotonic()
    assert box.shell("sleep 77 & echo done", name="held").stdout == b"done\n"
    assert time.monotonic() - began < 2.0
    assert box.shell("kill %1", name="held").exit_code == 0


def test_exec_and_late_cells_spare_shells_and_their_jobs(box):
    box.shell("kept=10; sleep 73 &", name="spared")
    box.exec(["sh", "-c", "setsid sleep 78 &"])
    box.cell("import time; time.sleep(77)", timeout_s=0.1)
    result = box.shell("echo $kept; kill %1; wait; jobs", name="spared")
    assert result.stdout.startswith(b"10\n") and result.exit_code == 0
    assert "sleep" not in running(box)


def test_a_shell_command_spares_the_kernels(box):
    box.cell("kept = 11", kernel="beside")
    box.shell("exit 1", name="beside")
    box.shell("sleep 77", name="beside", timeout_s=0.1)
    assert box.cell("print(kept)", kernel="beside").stdout == b"11\n"


# ---------------------------------------------------------------- bad input


def test_nul_and_no_time_are_refused_before_anything_runs(box):
    with pytest.raises(ValueError, match="NUL"):
        box.shell("echo \0")
    with pytest.raises(ValueError, match="timeout_s"):
        box.shell("echo", timeout_s=0)


def test_no_room_for_a_shell_is_a_result():
    need_bubblewrap()
    with open_sandbox("bubblewrap", limits=Limits(pids=6, wall_s=10.0)) as box:
        results = [box.shell("true", name=f"s{i}") for i in range(8)]
        assert results[0].exit_code == 0 and results[-1].exit_code == 126
        assert b"no process could be started" in results[-1].stderr


def test_a_shell_of_a_closed_box_is_refused():
    need_bubblewrap()
    box = open_sandbox("bubblewrap", limits=SMALL)
    box.close()
    with pytest.raises(SandboxDied, match="closed"):
        box.shell("true")


def test_a_command_takes_milliseconds(box):
    box.shell("true")
    seconds = []
    for _ in range(30):
        began = time.perf_counter()
        box.shell("true")
        seconds.append(time.perf_counter() - began)
    assert statistics.median(seconds) < 0.05, "far above the target of 5 ms: machines are busy"


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (b"12 0\n", 0),
        (b"11 0\n12 130\n12 0\n", 130),
        (b"11 0\n", None),
        (b"12 0", None),
        (b"12 256\n12 -1\n12 x\n12 0000\n12 \n12\n", None),
        (b"112 0\n 12 0\n\xff12 0\n", None),
        (b"", None),
    ],
)
def test_only_a_whole_report_for_this_very_call_is_one(reply, code):
    assert guest_shell.reported(reply, 12) == code
