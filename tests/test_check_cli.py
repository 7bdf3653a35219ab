"""`turnwise check` as a command: what it prints, how it exits, and that it always does exit."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from turnwise.cli.check_apart import Refused
from turnwise.cli.main import main
from turnwise.envs.probes import ADVERSARY, LAWS, name_of


def checked(capsys, *arguments):
    code = main(["check", *arguments])
    return code, capsys.readouterr().out


def test_all_laws_are_tried_that_of_replay_included(capsys):
    code, out = checked(capsys, "fakes:Guess", "--adversary", "--concurrency", "32", "--json")
    report = json.loads(out)
    assert (code, report["ok"], report["env"]) == (0, True, "fakes:Guess")
    names = [check["name"] for check in report["checks"]]
    assert names == [*(name_of(law) for law in (*LAWS, *ADVERSARY)), "records replay"]


def test_what_is_broken_is_named_with_what_mends_it_once(capsys):
    lines = ("seeds are honoured", "global randomness untouched", "seeds differ")
    code, out = checked(capsys, "broken_envs:CountsEpisodes", "--law", *lines)
    text = " ".join(out.split())
    assert code == 2 and "1 broken" in text
    assert "mend seeds are honoured: take every random choice from self.rng" in text


def test_laws_that_rest_on_a_broken_one_are_not_reported_as_broken_too(capsys):
    code, out = checked(capsys, "broken_envs:CountsEpisodes", "--json")
    status = {check["name"]: check["status"] for check in json.loads(out)["checks"]}
    assert code == 2 and status["seeds are honoured"] == "fail"
    assert status["isolated across threads"] == status["snapshots restore"] == "skip"
    assert "records replay" not in status


def test_debug_shows_where_the_process_that_tries_the_laws_was_refused(capfd, monkeypatch):
    monkeypatch.delenv("TURNWISE_DEBUG", raising=False)
    with contextlib.suppress(Refused):
        main(["check", "no_such_module:World", "--debug"])
    said = capfd.readouterr().err
    assert "Traceback" in said and "registry.py" in said and "no_such_module" in said
    assert main(["check", "no_such_module:World"]) == 1
    assert "Traceback" not in capfd.readouterr().err


def test_one_law_can_be_tried_again_and_so_can_that_of_replay(capsys):
    for law, code in (("records replay", 2), ("episodes end", 0)):
        found, out = checked(capsys, "broken_envs:CountsAllEpisodes", "--law", law, "--json")
        assert (found, [c["name"] for c in json.loads(out)["checks"]]) == (code, [law])


def test_a_users_bug_is_a_broken_law_and_never_looks_like_one_of_ours(capsys):
    for arguments in ((), ("--law", "records replay")):
        code, out = checked(capsys, "broken_envs:RaisesAtReset", *arguments, "--json")
        (check,) = json.loads(out)["checks"]
        assert code == 2 and check["status"] == "fail"
        assert "KeyError: 'boom'" in check["detail"] and "broken_envs.py:" in check["detail"]


def test_checking_an_environment_that_hangs_ends_by_itself_and_says_where_it_hung():
    command = [sys.executable, "-m", "turnwise.cli.main", "check", "broken_envs:HangsInStep"]
    began = time.monotonic()
    done = subprocess.run(
        [*command, "--deadline", "1", "--json"],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parent,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
    )
    assert time.monotonic() - began < 30
    late = [check for check in json.loads(done.stdout)["checks"] if check["overdue"]]
    assert done.returncode == 2 and len(late) == 2
    assert all("not done after 1 s in broken_envs.py:" in check["detail"] for check in late[1:])


def test_an_environment_that_ends_the_process_costs_only_the_law_that_met_it(capsys):
    code, out = checked(capsys, "broken_envs:EndsTheProcess", "--json")
    *before, last = json.loads(out)["checks"]
    assert code == 2 and [check["status"] for check in before].count("fail") == 0
    assert before and last["status"] == "fail" and "os._exit" in last["mend"]
    assert "the process ended with code 3" in last["detail"]


def test_where_the_machine_fails_nothing_is_said_of_the_environment(capsys):
    code, out = checked(capsys, "broken_envs:LosesItsBox", "--json")
    report = json.loads(out)
    lost = [check for check in report["checks"] if check["lost"]]
    assert code == 4 and report["ok"] and len(lost) >= 2
    assert all("the engine is gone" in check["detail"] for check in lost)
    assert any("the machine failed at two laws" in check["detail"] for check in report["checks"])
    code, out = checked(capsys, "broken_envs:LosesItsBox")
    assert "not tried, the machine failed" in out


def test_who_is_interrupted_leaves_no_process_behind(tmp_path):
    path = os.pathsep.join([str(Path(__file__).parent), str(tmp_path)])
    checking = subprocess.Popen(
        [sys.executable, "-m", "turnwise.cli.main", "check", "broken_envs:HangsInStep"],
        env={**os.environ, "PYTHONPATH": path, "TURNWISE_MARK": tmp_path.name},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # What runs in the background may have been told to ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        assert wait_until(lambda: len(marked(tmp_path.name)) == 2)
        checking.send_signal(signal.SIGINT)
        checking.communicate(timeout=60)
        assert checking.returncode == 130
        assert wait_until(lambda: not marked(tmp_path.name))
    finally:
        checking.kill()
        checking.communicate()


def marked(word):
    """The processes that have `word` in their environment."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            environ = Path("/proc", name, "environ").read_bytes()
        except OSError:
            continue
        found += [name] if f"TURNWISE_MARK={word}".encode() in environ else []
    return found


def wait_until(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not (done := condition()) and time.monotonic() < end:
        time.sleep(0.05)
    return done
