"""The laws of a run on a Ray cluster: it is the run of one process, also where nodes are lost."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import clusters
import pytest
import torch
from clusters import Told, need_ray, once_there, start_node
from toy_runs import config_of, fresh
from toys import Walks

from turnwise.agents.engines import standin, standin_sleep
from turnwise.agents.record import read_records
from turnwise.agents.rollout import jobs_for
from turnwise.agents.watchdog import given_up
from turnwise.cli.failures import INFRASTRUCTURE, USAGE, describe
from turnwise.envs.types import Outcome
from turnwise.trainers import ray_rollouts
from turnwise.trainers.config import TrainConfig
from turnwise.trainers.learner import Learner
from turnwise.trainers.loop import train
from turnwise.trainers.model import save_model
from turnwise.trainers.ray_attempts import RayPlayer
from turnwise.trainers.ray_cluster import ClusterLost
from turnwise.trainers.ray_rollouts import Round
from turnwise.trainers.trainee import Trainee

torch.set_num_threads(1)
pytestmark = pytest.mark.timeout(600)

NUMBERS = ("loss", "grad_norm", "entropy", "approx_kl", "reward", "success", "trained_tokens")
STEPS = 3
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def cluster():
    """Two nodes on the loopback; whoever starts a run is on the first one."""
    need_ray()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in clusters.VARIABLES.items():
            patch.setenv(name, value)
        patch.delenv("RAY_ADDRESS", raising=False)
        from ray.cluster_utils import Cluster

        made = Cluster()
        try:
            start_node(made)
            start_node(made)
            yield made
        finally:
            made.shutdown()


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The run without Ray: its folder, and the metrics of each step."""
    out = tmp_path_factory.mktemp("plain") / "run"
    return out, run(config_of(out, steps=STEPS, learning_rate=1e-3))


def run(config, make_env=Walks):
    return list(train(config, model=fresh(), make_env=make_env))


def over(cluster, out, **more) -> TrainConfig:
    """The same run on two workers of `cluster`."""
    usual = {"steps": STEPS, "learning_rate": 1e-3, "ray_address": cluster.address}
    return config_of(out, ray=True, **{**usual, **more})


def episodes(out):
    return [found.episode for found in read_records(Path(out) / "episodes.jsonl")]


def sampled(out):
    """Every episode in the order of its record: its name, and its turns as they were trained on."""
    return [
        (e.id, [(t.action_ids, t.policy_version, t.reward) for t in e.turns]) for e in episodes(out)
    ]


def assert_same(found, wanted):
    """Two runs are one run: out and metrics of each."""
    (out, rows), (other, others) = found, wanted
    assert sampled(out) == sampled(other)
    for row, same in zip(rows, others, strict=True):
        for name in NUMBERS:
            assert row[name] == pytest.approx(same[name], rel=1e-5, abs=1e-5), name


def told(out, what):
    """By group, in which processes, or on which nodes, it was played."""
    found: dict[str, set[float]] = {}
    for episode in episodes(out):
        found.setdefault(episode.group, set()).add(episode.metrics[what])
    return found


# On a cluster


@pytest.fixture(scope="module")
def spread(cluster, tmp_path_factory):
    folder = tmp_path_factory.mktemp("spread")
    make_env = partial(Told, folder=str(folder), meet=2)
    return folder / "run", run(over(cluster, folder / "run"), make_env)


def test_the_run_on_a_cluster_is_the_run_without_to_the_last_token(plain, spread):
    assert len(sampled(plain[0])) == STEPS * 12
    assert max(row["grad_norm"] for row in plain[1]) > 1e-3
    assert_same(spread, plain)


def test_workers_play_under_the_weights_of_the_step(spread):
    versions = [{t.policy_version for t in e.turns} for e in episodes(spread[0])]
    assert versions == [{2 * (n // 12)} for n in range(STEPS * 12)]
    assert max(row["engine_gap"] for row in spread[1]) < 1e-4


def test_a_group_is_played_by_one_worker_and_none_by_the_learner(spread):
    found = told(spread[0], "process")
    assert [len(processes) for processes in found.values()] == [1] * STEPS * 3
    assert len(set.union(*found.values())) == 2
    assert os.getpid() not in set.union(*found.values())
    assert len(set.union(*told(spread[0], "node").values())) == 2


def test_workers_that_share_the_learners_servers_make_the_same_run(cluster, plain, tmp_path):
    model, tokenizer = fresh()
    held = standin.Settings(max_model_len=model.config.max_position_embeddings)
    with standin.served(standin.StandIn(model, tokenizer, held)) as url:
        rows = run(over(cluster, tmp_path / "run", engine=url))
    assert_same((tmp_path / "run", rows), plain)
    assert max(row["engine_gap"] for row in rows) < 1e-4


def test_servers_that_workers_share_sleep_while_the_learner_learns(
    cluster, plain, tmp_path, monkeypatch
):
    model, tokenizer = fresh()
    held = standin.Settings(max_model_len=model.config.max_position_embeddings)
    app, asleep, asked = standin.StandIn(model, tokenizer, held), [], []

    async def listening(scope, receive, send):
        asked.append((scope.get("path"), bool(app.asleep)))
        await app(scope, receive, send)

    def improve(self, *given, whole=Learner.improve, **named):
        asleep.append(set(app.asleep))
        return whole(self, *given, **named)

    monkeypatch.setattr(Learner, "improve", improve)
    make_env = partial(Told, folder=str(tmp_path), ends=4, times=1)
    with standin.served(listening) as url:
        rows = run(over(cluster, tmp_path / "run", engine=url, engine_sleep=2), make_env)
    assert_same((tmp_path / "run", rows), plain)
    assert asleep == [standin_sleep.PARTS] * 2 * STEPS and not app.asleep
    assert [path for path, _ in asked].count("/sleep") == STEPS
    assert not {path for path, slept in asked if slept} & {"/version", "/v1/completions"}
    assert (tmp_path / "end-0").exists(), "no worker died"
    assert os.getpid() not in set.union(*told(tmp_path / "run", "process").values())


@pytest.fixture(scope="module")
def paced(tmp_path_factory):
    """The runs without Ray that play while they learn, by their depth."""
    folder = tmp_path_factory.mktemp("paced")
    outs = {depth: folder / str(depth) for depth in (1, 2)}
    return {
        depth: (out, run(config_of(out, steps=STEPS, learning_rate=1e-3, pipeline_depth=depth)))
        for depth, out in outs.items()
    }


@pytest.mark.parametrize("depth", [1, 2])
def test_batches_in_flight_are_those_of_the_run_without(cluster, paced, tmp_path, depth):
    make_env = partial(Told, folder=str(tmp_path), ends=4, times=1)
    rows = run(over(cluster, tmp_path / "run", pipeline_depth=depth), make_env)
    assert_same((tmp_path / "run", rows), paced[depth])
    assert [row["max_staleness"] for row in rows] == [2 * min(n, depth) for n in range(STEPS)]
    assert (tmp_path / "end-0").exists(), "no worker died"
    who = told(tmp_path / "run", "process")
    first, second = (set.union(*(who[f"s{n}-{g}"] for g in range(3))) for n in (0, 1))
    assert os.getpid() not in first | second
    assert depth == 1 or not first & second, "a batch in flight has workers of its own"


def test_batches_in_flight_go_on_without_ray_where_they_were_left(cluster, paced, tmp_path):
    config = over(cluster, tmp_path / "run", pipeline_depth=1)
    steps = train(config, model=fresh(), make_env=Walks)
    rows = [next(steps), next(steps)]  # checkpoints come every other step
    steps.close()
    rows += run(replace(config, ray=False, ray_address="", resume=True))
    assert_same((tmp_path / "run", rows), paced[1])


def test_batches_in_flight_have_the_weights_that_servers_hold(cluster, paced, tmp_path):
    model, tokenizer = fresh()
    held = standin.Settings(max_model_len=model.config.max_position_embeddings)
    with standin.served(standin.StandIn(model, tokenizer, held)) as url:
        rows = run(over(cluster, tmp_path / "run", engine=url, pipeline_depth=1))
    assert_same((tmp_path / "run", rows), paced[1])


@pytest.mark.parametrize("depth", [0, 1])
def test_several_processes_learn_what_the_workers_of_the_first_one_play(
    cluster, plain, paced, tmp_path, depth
):
    save_model(*fresh(), tmp_path / "model")
    where = {"env": "clusters:Told", "model": str(tmp_path / "model"), "processes": 2}
    where |= {"ray_workers": 1}
    where["env_kwargs"] = json.dumps({"folder": str(tmp_path)})
    config = over(cluster, tmp_path / "run", **where, pipeline_depth=depth)
    done = subprocess.run(command(config), cwd=HERE, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    wanted = plain if depth == 0 else paced[1]
    assert_same((tmp_path / "run", [json.loads(line) for line in lines]), wanted)
    assert len(set.union(*told(tmp_path / "run", "process").values())) == 1
    assert set.union(*told(tmp_path / "run", "rank").values()) == {-1.0}, "a rank has played"


def test_a_worker_that_dies_is_replaced_and_its_groups_are_played_again(
    cluster, plain, tmp_path, caplog
):
    make_env = partial(Told, folder=str(tmp_path), ends=4, times=1)
    rows = run(over(cluster, tmp_path / "run", ray_workers=1), make_env)
    assert_same((tmp_path / "run", rows), plain)
    assert len(set.union(*told(tmp_path / "run", "process").values())) == 2
    assert "worker 1 on node" in caplog.text and "s1-1" in caplog.text


def test_a_group_that_costs_every_worker_is_lost_to_the_machine_and_masked(
    cluster, tmp_path, monkeypatch
):
    monkeypatch.setattr(ray_rollouts, "TRIES", 2)
    make_env = partial(Told, folder=str(tmp_path), ends=2, times=99)
    adapters = {"lora_rank": 2, "learning_rate": 1e-2, "updates_per_step": 1}
    config = over(cluster, tmp_path / "run", ray_workers=1, max_failed=1.0, steps=2, **adapters)
    rows = run(config, make_env)
    found = {e.id: e for e in episodes(tmp_path / "run")}
    lost = {name for name, e in found.items() if e.outcome is Outcome.INFRA_ERROR}
    assert lost == {f"s0-2.{n}" for n in range(4)} and len(found) == 24
    assert "lost with 2 workers" in found["s0-2.0"].error
    assert len(list(tmp_path.glob("end-*"))) == 2
    assert max(row["engine_gap"] for row in rows) < 1e-4


def test_what_no_node_has_is_asked_for_in_vain_and_named(cluster, tmp_path):
    wanted = {"ray_worker_resources": '{"moon": 1}', "ray_timeout_s": 1.0}
    with pytest.raises(ClusterLost, match=r"placed within 1 s: .*'moon': 1.*2 nodes") as raised:
        run(over(cluster, tmp_path / "worker", **wanted))
    assert describe(raised.value)[0] == INFRASTRUCTURE
    wanted = {"ray_learner_resources": '{"moon": 1}', "ray_timeout_s": 1.0}
    with pytest.raises(ClusterLost, match=r"no room for ray_learner_resources .*'moon': 1"):
        run(over(cluster, tmp_path / "learner", **wanted))


def test_what_is_kept_for_the_learner_is_given_to_no_worker(cluster, tmp_path):
    wanted = {"ray_learner_resources": '{"num_cpus": 1}', "steps": 1}
    run(over(cluster, tmp_path / "run", **wanted), partial(Told, folder=str(tmp_path)))
    nodes = set.union(*told(tmp_path / "run", "node").values())
    (other,) = cluster.worker_nodes
    assert nodes == {float(int(other.node_id[:8], 16))}


# Losing it: these tests take the cluster apart, in this order


def test_a_node_that_is_lost_in_mid_run_costs_nothing_and_repeats_nothing(cluster, plain, tmp_path):
    head, node = cluster.head_node, next(iter(cluster.worker_nodes))
    loses = once_there(tmp_path / "hurt", partial(cluster.remove_node, node, allow_graceful=False))
    make_env = partial(Told, folder=str(tmp_path), meet=2, head=head.node_id)
    rows = run(over(cluster, tmp_path / "run"), make_env)
    loses.join(60)
    assert (tmp_path / "hurt").exists() and node not in cluster.worker_nodes
    assert set(Counter(e.id for e in episodes(tmp_path / "run")).values()) == {1}
    assert_same((tmp_path / "run", rows), plain)


def test_a_dead_cluster_ends_the_command_with_one_line_and_the_run_goes_on_without_it(
    cluster, plain, tmp_path
):
    out, address, head = tmp_path / "run", cluster.address, cluster.head_node
    save_model(*fresh(), tmp_path / "model")
    where = {"env": "clusters:Told", "model": str(tmp_path / "model"), "ray_workers": 1}
    where["env_kwargs"] = json.dumps({"folder": str(tmp_path), "head": ""})
    config = over(cluster, out, **where)
    kill = partial(head.kill_all_processes, check_alive=False, allow_graceful=False)
    dies = once_there(tmp_path / "hurt", kill)
    done = subprocess.run(command(config), cwd=HERE, capture_output=True, text=True, timeout=400)
    dies.join(60)
    *_, line = done.stderr.strip().splitlines()
    assert done.returncode == INFRASTRUCTURE and "Traceback" not in done.stderr
    assert line.startswith(f"turnwise train: the head of the Ray cluster at {address} has not")
    assert "--resume" in line
    rows = run(replace(config, ray=False, resume=True, ray_address="", ray_workers=2))
    assert len(rows) == STEPS - 1
    logged = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert_same((out, logged), plain)


def command(config):
    """The command line of a run."""
    usual, flags = TrainConfig(), []
    for name, value in config.to_json().items():
        if value != usual.to_json()[name]:
            flag = f"--{name.replace('_', '-')}"
            flags.append(flag if value is True else f"{flag}={value}")
    return [sys.executable, "-m", "turnwise.cli.main", "train", *flags]


# Without one


def jobs_of(groups):
    tasks = Walks().tasks("train")[:groups]
    return jobs_for(tasks, 2, run_seed=0, split="train", prefix="s0-")


def lost(job):
    return given_up(job, "no matter")


def test_a_group_is_taken_once_whoever_gives_it():
    jobs = jobs_of(2)
    round = Round(jobs)
    for _ in range(2):
        round.take([lost(job) for job in jobs[:2]])
    assert [episode.id for episode in round.over] == [job.id for job in jobs[:2]]
    assert round.left == {jobs[2].group}


def test_a_group_that_has_cost_a_worker_is_played_alone():
    round = Round(jobs_of(4))
    held = round.share(2)
    assert list(held) == ["s0-0", "s0-1"], "half of what is to be played"
    round.again({"s0-1": held["s0-1"]}, "it died")
    assert [list(round.share(1)) for _ in range(2)] == [["s0-2", "s0-3"], ["s0-1"]]
    round.again({"s0-1": held["s0-1"]}, "it died")
    round.todo.append(("s0-0", held["s0-0"]))
    assert [list(round.share(1)) for _ in range(2)] == [["s0-1"], ["s0-0"]]


def test_a_group_is_given_up_once_it_has_cost_so_many_workers():
    jobs = jobs_of(1)
    round = Round(jobs)
    for left in range(ray_rollouts.TRIES - 1, -1, -1):
        round.again(round.share(1), "it died")
        assert bool(round.left) is (left > 0) and len(round.todo) == (left > 0)
    assert [episode.outcome for episode in round.over] == [Outcome.INFRA_ERROR] * 2


def test_a_process_that_has_no_workers_keeps_no_weights_for_them(tmp_path):
    config = config_of(tmp_path / "run", ray=True, pipeline_depth=1)
    trainee = Trainee.of(*fresh(), config)
    crew = SimpleNamespace(trainee=trainee, config=config, rollouts=lambda number: None)
    player = RayPlayer(crew, 0)
    assert player.take_weights() == 0
    here, there = (dict(model.named_parameters()) for model in (player.model, trainee.model))
    assert all(here[name] is there[name] and there[name].requires_grad for name in there)
    player.put({}, 5)
    assert player.sampler.engine.version == 5, "it takes part in what all of them do"


def test_an_address_at_which_nobody_listens_is_one_line_at_once(tmp_path):
    need_ray()
    (port,) = clusters.free_ports(1)
    with pytest.raises(ClusterLost, match=f"no Ray cluster answers at 127.0.0.1:{port}") as raised:
        run(config_of(tmp_path / "run", ray=True, ray_address=f"127.0.0.1:{port}"))
    assert describe(raised.value)[0] == INFRASTRUCTURE
    assert not (tmp_path / "run").exists()


def test_without_ray_installed_one_line_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError) as raised:
        run(config_of(tmp_path / "run", ray=True))
    code, line = describe(raised.value)
    assert code == USAGE and "pip install 'turnwise[ray]'" in line
    gc.collect()


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"ray": True, "pipeline_depth": 3}, "ray_workers is 2: set it to at least 3"),
        ({"ray_workers": 4}, "ray_workers 4 is for workers of Ray: set ray"),
        ({"ray": True, "ray_workers": 0}, "ray_workers must be at least 1"),
        ({"ray": True, "ray_address": "ray://host:1"}, "ray_address is HOST:PORT"),
        ({"ray": True, "ray_worker_resources": "[1]"}, "must be a JSON object"),
        ({"ray": True, "ray_worker_resources": '{"num_gpus": "1"}'}, "num_gpus='1'"),
    ],
)
def test_what_does_not_go_with_workers_is_refused_with_a_way_out(wrong, why):
    with pytest.raises(ValueError, match=why):
        TrainConfig(**wrong)


def test_a_recipe_that_plays_rounds_with_a_teacher_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'dagger' plays rounds with a teacher"):
        run(config_of(tmp_path / "run", ray=True, recipe="dagger"))
