"""The laws of a run of several processes: it is the run of one, and one that fails ends all."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import ranked
import torch

from turnwise.cli.launch import launch
from turnwise.trainers.batch import Row, totals_of
from turnwise.trainers.model import load_model
from turnwise.trainers.ranks import share_out
from turnwise.trainers.shares import share_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

HERE = Path(__file__).parent
ENV = {"OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
ENV["PYTHONPATH"] = os.pathsep.join((str(HERE), os.environ.get("PYTHONPATH", str(HERE))))
ALIKE = ["plain", "plain-shard", "sod", "kl-shard", "dropped", "one_group", "one_group-shard"]
ALIKE += ["other-shard", "adapters-shard", "dagger"]
ALIKE += ["paced", "paced-shard", "paced_deep", "paced_b2f"]
RUNS = dict.fromkeys(name.partition("-")[0] for name in ALIKE)
NUMBERS = ("loss", "grad_norm", "entropy", "approx_kl", "nll", "teacher_drift", "reward", "turns")
NUMBERS += ("success", "lost", "tied_groups", "kept_groups", "trained_tokens", "learning_rate")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with the models that all runs start from."""
    folder = tmp_path_factory.mktemp("ranks")
    ranked.models(folder)
    return folder


@pytest.fixture(scope="module")
def killed(home):
    """`turnwise train --processes 2` of which rank 1 is killed at the tasks of the third step."""
    return {name: is_killed(home / "two", name) for name in ("killed", "paced_killed")}


def is_killed(folder, name):
    wanted = ranked.settings(folder, name)
    flags = [
        f"--{key.replace('_', '-')}={value}" for key, value in wanted.items() if key != "shard"
    ]
    command = [sys.executable, "-m", "turnwise.cli.main", "train", *flags, "--processes=2"]
    env = {**os.environ, **ENV, "TURNWISE_TEST_DIES": "1"}
    return subprocess.run(command, cwd=HERE, env=env, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def one(home):
    """The metrics of every run, made by one process."""
    return {name: ranked.go(home / "one", name) for name in (*RUNS, "all_on")} | {
        "longer": ranked.go(home / "one", "longer", steps=4),
        "paced_longer": ranked.go(home / "one", "paced_longer", steps=4),
        "gradients": ranked.gradients(home / "one"),
    }


@pytest.fixture(scope="module")
def two(home, one, killed):
    """The same by two processes, which also go on with what others have begun."""
    for name in ("from_one", "from_one-shard"):
        shutil.copytree(home / "one" / "plain", home / "two" / name)
    shutil.copytree(home / "one" / "paced", home / "two" / "paced_from_one")
    names = [*ALIKE, "all_on-shard", "killed+3", "from_one+4", "from_one-shard+4"]
    names += ["paced_killed+3", "paced_from_one+4", "paced_hangs", "paced_slow"]
    command = [sys.executable, str(HERE / "ranked.py"), str(home / "two"), *names]
    code, line = launch(command, 2, logs=home / "logs", env=ENV)
    assert (code, line) == (0, ""), (home / "logs" / "rank-1.log").read_text()[-2000:]
    return json.loads((home / "two" / "found.json").read_text())


def numbers(rows):
    """The rows of a run's metrics as an array, and the names of its columns."""
    names = [name for name in NUMBERS if name in rows[0]]
    return np.array([[row[name] for name in names] for row in rows]), names


def weights(out):
    return dict(load_model(str(out / "model"))[0].named_parameters())


# Failures


def test_a_killed_rank_ends_the_run_with_one_line_that_names_it(home, killed):
    for child in killed.values():
        assert child.returncode == 4
        lines = child.stderr.strip().splitlines()
        assert lines[-1].startswith("turnwise train: rank 1: was killed by SIGKILL")
        assert "--resume" in lines[-1] and "Traceback" not in child.stderr
        assert sum("rank " in line for line in lines) == 1
    checkpoints = home / "two" / "killed" / "checkpoints"
    assert sorted(path.name for path in checkpoints.glob("step-*")) == [
        "step-000001",
        "step-000002",
    ]


def failing(tmp_path, body, **more):
    """Launch two ranks that run `body` in place of training."""
    code = f"""
import os, runpy, signal, sys, threading, time
from turnwise.cli import train
from turnwise.trainers import ranks
def body(options):
    {body}
train._train = body
runpy.run_module("turnwise.cli.rank", run_name="__main__")
"""
    (tmp_path / "options.json").write_text('{"out": "run"}')
    command = [sys.executable, "-c", code, str(tmp_path / "options.json")]
    return launch(command, 2, logs=tmp_path / "logs", env=ENV, **more)


def test_what_fails_on_one_rank_is_told_once_and_is_that_rank_s(tmp_path, capfd):
    code, line = failing(
        tmp_path, "ranks.join(2, 60); ranks.each(lambda: 1 // (1 - ranks.rank())); return 0"
    )
    assert code == 1 and line.startswith("rank 1: unexpected ZeroDivisionError")
    assert capfd.readouterr().err == ""


ENDS = {"sys.exit(3)": (1, "ended itself with sys.exit(3); go on from")}
ENDS["signal.default_int_handler(2, None)"] = (130, "was stopped amid a step; go on from")


@pytest.mark.parametrize(("call", "rank"), [("each", 1), ("on_main", 0)])
@pytest.mark.parametrize("ends", ENDS)
def test_what_ends_one_rank_alone_is_told_to_the_others_and_named(tmp_path, call, rank, ends):
    body = f"""ranks.join(2, 60)
    try:
        ranks.{call}(lambda: ranks.rank() != {rank} or {ends})
    except ranks.RankFailed as error:
        open({str(tmp_path / "heard")!r}, "w").write(str(error))
        raise
    finally:
        time.sleep(2 * (ranks.rank() == {rank}))"""
    code, line = failing(tmp_path, body)
    assert code == ENDS[ends][0] and line.startswith(f"rank {rank}: {ENDS[ends][1]}")
    heard = (tmp_path / "heard").read_text()
    assert heard.startswith(f"rank {rank}: {'SystemExit: 3' if code == 1 else 'Keyboard'}")


@pytest.mark.parametrize("first", [0, 1])
def test_a_rank_that_missed_one_that_was_done_is_named_and_the_run_has_failed(tmp_path, first):
    """Rank 0 ends well, or is the one that reports: what is well is not what has stopped."""
    lines = (
        "import os, sys; from turnwise.cli.launch import report; rank = int(os.environ['RANK'])",
        f"rank != {first} and report(3, 'missed another', lost=True)",
        f"sys.exit(3 * (rank != {first}))",
    )
    code, line = launch([sys.executable, "-c", "; ".join(lines)], 2, logs=tmp_path)
    assert (code, line) == (3, f"rank {1 - first}: missed another")


def test_after_a_second_signal_a_rank_that_hears_none_is_killed(tmp_path):
    deaf = "import signal, time; [signal.signal(n, 1) for n in (2, 15)]; print(flush=True); "
    lines = (
        "import sys; from pathlib import Path; from turnwise.cli.launch import launch",
        f"command = [sys.executable, '-c', {deaf + 'time.sleep(60)'!r}]",
        f"print(*launch(command, 2, logs=Path({str(tmp_path)!r}), grace_s=1.0))",
    )
    run = subprocess.Popen([sys.executable, "-c", "; ".join(lines)], stdout=subprocess.PIPE)
    assert run.stdout is not None and run.stdout.readline() == b"\n"
    while not (tmp_path / "rank-1.log").read_bytes():
        time.sleep(0.05)
    for _ in range(2):
        run.send_signal(signal.SIGINT)
        time.sleep(0.5)
    said = run.communicate(timeout=30)[0].decode()
    assert "did not answer, and was killed" in said and not said.startswith("0")


def test_a_rank_ends_in_peace_while_a_thread_of_it_waits_for_the_others(tmp_path):
    """A thread that is in a call of gloo as the interpreter is taken down ends that by SIGABRT."""
    body = """ranks.join(2, 60)
    line = ranks.new_line()
    def talk():
        with ranks.on_line(line):
            while ranks.gather(1):
                time.sleep(0.02 * ranks.rank())
    threading.Thread(target=talk, daemon=True).start()
    time.sleep(0.5)
    return 0"""
    assert failing(tmp_path, body) == (0, "")


def test_a_rank_that_hangs_is_given_up_after_the_deadline(tmp_path):
    start = time.monotonic()
    body = "ranks.join(2, 5); ranks.rank() and time.sleep(600); ranks.gather(1)"
    code, line = failing(tmp_path, body, grace_s=1.0)
    assert code == 4 and line.startswith("rank 1: did not answer, and was killed")
    assert time.monotonic() - start < 120


def test_one_process_may_not_stand_for_two(monkeypatch, home):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(ValueError, match="processes=2 was asked for, and 1 started"):
        ranked.go(home / "alone", "plain", processes=2)


@pytest.mark.parametrize("how", ["interrupt", "launcher killed"])
def test_ranks_are_asked_to_stop_by_a_signal_and_by_the_end_of_their_launcher(tmp_path, how):
    child = subprocess.Popen(
        [sys.executable, str(HERE / "waiting_rank.py"), str(tmp_path)], stdout=subprocess.PIPE
    )
    both = [tmp_path / f"{word}-{rank}" for word in ("ready", "stopped") for rank in (0, 1)]
    wait_for(both[:2])
    child.send_signal(signal.SIGINT if how == "interrupt" else signal.SIGKILL)
    wait_for(both[2:])
    assert child.wait(60) == (130 if how == "interrupt" else -signal.SIGKILL)
    assert child.stdout.read().strip() == b""


def wait_for(paths):
    until = time.monotonic() + 60
    while not all(path.exists() for path in paths):
        assert time.monotonic() < until, paths
        time.sleep(0.05)


# The run of two is the run of one


@pytest.mark.parametrize("name", ALIKE)
def test_two_processes_make_the_run_of_one(home, one, two, name):
    mine, names = numbers(one[name.partition("-")[0]])
    theirs, same = numbers(two[name])
    assert names == same and "loss" in names
    np.testing.assert_allclose(theirs, mine, rtol=1e-4, atol=1e-5, err_msg=str(names))
    mine, theirs = (
        ranked.sampled(out) for out in (home / "one" / name.partition("-")[0], home / "two" / name)
    )
    assert [episode[:2] for episode in theirs] == [episode[:2] for episode in mine]
    assert sum(a == b for a, b in zip(mine, theirs, strict=True)) > 0.95 * len(mine)
    ours, others = weights(home / "one" / name.partition("-")[0]), weights(home / "two" / name)
    for key, value in ours.items():
        torch.testing.assert_close(others[key], value, rtol=1e-4, atol=2e-4)


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """A folder of runs by one process and by three, and the metrics of each."""
    home = tmp_path_factory.mktemp("three")
    ranked.models(home)
    command = [sys.executable, str(HERE / "ranked.py"), str(home / "many")]
    command += ["uneven", "uneven-shard", "few", "few-shard"]
    code, line = launch(command, 3, logs=home / "logs", env=ENV)
    assert (code, line) == (0, ""), (home / "logs" / "rank-2.log").read_text()[-2000:]
    alone = {name: ranked.go(home / "one", name) for name in ("uneven", "few")}
    alone["gradients"] = ranked.gradients(home / "one")
    return home, alone, json.loads((home / "many" / "found.json").read_text())


def test_three_processes_sum_a_gradient_also_where_two_of_them_have_no_row(three):
    _, alone, many = three
    assert many["gradients"] == pytest.approx(alone["gradients"], rel=1e-5)


@pytest.mark.parametrize("name", ["uneven", "uneven-shard", "few", "few-shard"])
def test_three_processes_with_unequal_shares_make_the_run_of_one(three, name):
    """Of four groups one of them plays two; of two groups one of them plays none."""
    home, alone, many = three
    kind = name.partition("-")[0]
    outs = (home / "one" / kind, home / "many" / name)
    first, other = ([e for e in ranked.sampled(out) if e[0].startswith("s0-")] for out in outs)
    assert first == other and len(first) == 8 * (4 if kind == "uneven" else 2)
    for row, same in zip(many[name], alone[kind], strict=True):
        for key in ("loss", "grad_norm", "entropy"):
            assert row[key] == pytest.approx(same[key], rel=1e-5, abs=1e-5), key
        assert row["grad_norm"] > 1e-3


def test_the_runs_that_are_compared_do_learn(one):
    largest = {name: max(row.get("grad_norm", 0.0) for row in one[name]) for name in RUNS}
    assert min(largest.values()) > 1e-3, largest
    assert all(row["tied_groups"] > 0.25 for row in one["dropped"]), "no group was dropped"


def test_the_first_step_is_the_same_to_the_last_token_and_digit(home, one, two):
    for name in ("plain", "plain-shard", "sod"):
        tokens = [
            [episode for episode in ranked.sampled(out) if episode[0].startswith("s0-")]
            for out in (home / "one" / name.partition("-")[0], home / "two" / name)
        ]
        assert tokens[0] == tokens[1] and len(tokens[0]) == 12
        mine, theirs = one[name.partition("-")[0]][0], two[name][0]
        for key in ("loss", "grad_norm", "entropy"):
            assert theirs[key] == pytest.approx(mine[key], rel=1e-5, abs=1e-6), (name, key)


def test_a_gradient_is_summed_over_ranks_also_where_one_of_them_has_no_row(one, two):
    for key, value in one["gradients"].items():
        assert two["gradients"][key] == pytest.approx(value, rel=1e-5), key
    assert one["gradients"]["whole 1 grad_norm"] != pytest.approx(
        one["gradients"]["whole 3 grad_norm"], rel=1e-3
    )


def test_with_all_options_on_the_gap_to_the_engine_is_bounded_and_seen(one, two):
    for row in (*one["all_on"], *two["all_on-shard"]):
        assert 1e-4 < row["engine_gap"] < 0.1
    assert two["all_on-shard"][0]["loss"] == pytest.approx(one["all_on"][0]["loss"], abs=1e-3)


# Going on


@pytest.mark.parametrize(("name", "undisturbed"), [("killed", "plain"), ("paced_killed", "paced")])
def test_a_killed_run_goes_on_to_what_it_would_have_been(home, two, name, undisturbed):
    assert two[f"{name}+3"][-1]["step"] == 3 and len(two[f"{name}+3"]) < 3
    killed, whole = home / "two" / name, home / "two" / undisturbed
    assert ranked.sampled(killed) == ranked.sampled(whole)
    ours, theirs = weights(killed), weights(whole)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize("name", ["from_one+4", "from_one-shard+4", "paced_from_one+4"])
def test_two_processes_go_on_with_the_checkpoint_of_one(one, two, name):
    mine, names = numbers(one["paced_longer" if name.startswith("paced") else "longer"][3:])
    theirs, _ = numbers(two[name])
    np.testing.assert_allclose(theirs, mine, rtol=1e-4, atol=1e-5, err_msg=str(names))


@pytest.mark.parametrize(("begun", "name"), [("plain", "from_two"), ("plain-shard", "from_shards")])
def test_one_process_goes_on_with_the_checkpoint_of_two(home, one, two, begun, name):
    shutil.copytree(home / "two" / begun, home / "one" / name)
    found = ranked.go(home / "one", name, resume=True, steps=4)
    mine, names = numbers(one["longer"][3:])
    theirs, _ = numbers(found)
    np.testing.assert_allclose(theirs, mine, rtol=1e-4, atol=1e-5, err_msg=str(names))
    shards = home / "two" / begun / "checkpoints" / "step-000003" / "shards"
    assert shards.exists() == (begun == "plain-shard")


# Playing while learning


def test_a_rank_that_hangs_in_a_call_loses_its_part_of_one_batch_and_all_go_on(home, two):
    rows = two["paced_hangs"]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert [row["lost"] for row in rows] == [0, pytest.approx(1 / 3), 0]
    found = [e for e in ranked.sampled(home / "two" / "paced_hangs") if e[0].startswith("s1r")]
    assert {e[0].partition("-")[0] for e in found} == {"s1r0"}, "no round follows a short one"
    assert [len(episode) > 2 for episode in found] == [n // 4 != 1 for n in range(12)]


def test_a_checkpoint_holds_what_every_rank_has_played_ahead(home, two):
    assert len(two["paced_slow"]) == 2
    step = home / "two" / "paced_slow" / "checkpoints" / "step-000001"
    lines = (step / "frontier" / "000001" / "episodes.jsonl").read_text().splitlines()
    wanted = {f"s1-{group}.{n}" for group in range(3) for n in range(4)}
    assert sorted(json.loads(line)["id"] for line in lines) == sorted(wanted)
    assert not (step / "frontier" / "000001" / "weights.pt").exists()


def test_batches_in_flight_are_shared_out_as_those_of_a_step_are(two):
    for name in ("paced", "paced-shard", "paced_deep"):
        found = [row["max_staleness"] for row in two[name]]
        assert found == [0, 2, 2 if name != "paced_deep" else 4], name


# Shares


def rows(lengths):
    return [Row((1, 2), [3] * n, [0], [0.0], [i], [1.0], i) for i, n in enumerate(lengths)]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_the_shares_of_all_ranks_are_the_batch_in_its_order(count):
    batch = rows([5, 1, 9, 9, 2, 30, 1])
    batch.insert(3, Row((1, 2), [4], [0], [0.0], [2], [1.0], 2))  # a second segment of the third
    shares = [share_of(batch, number, count) for number in range(count)]
    assert [row for share in shares for row in share] == batch
    trajs = [{row.traj for row in share} for share in shares]
    assert sum(map(len, trajs)) == 7, "no trajectory is split"
    counted = [totals_of(share).tokens for share in shares]
    assert sum(counted) == totals_of(batch).tokens


def test_shares_hold_about_as_many_tokens():
    sizes = [sum(map(len, share_of(rows([7] * 40), number, 4))) for number in range(4)]
    assert sizes == [70] * 4


def test_a_single_process_plays_everything_itself():
    assert share_out([], lambda jobs: []) == []
