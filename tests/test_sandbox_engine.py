"""An engine that ends, is killed or freezes: typed failures, and a rollout that goes on.

These tests start an engine of their own, since it may be stopped.
"""

import contextlib
import os
import signal
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import ClassVar

import pytest
from boxes import need_docker, wait_until

from turnwise.agents.policy import ScriptedPolicy, expert
from turnwise.agents.rollout import Settings, jobs_for, play
from turnwise.envs.code_env import CodeEnv
from turnwise.envs.tools import tool
from turnwise.envs.types import Outcome, Task
from turnwise.sandboxes import (
    Limits,
    SandboxDied,
    SandboxError,
    StartFailed,
    docker,
    docker_engine,
    docker_image,
    open_sandbox,
)

pytestmark = [pytest.mark.docker, pytest.mark.slow]
SMALL = Limits(memory_mb=96, pids=24, disk_mb=4, inodes=500, output_bytes=2000, wall_s=10.0)


@pytest.fixture(scope="module")
def second_engine():
    """An engine of these tests alone, with a copy of the image: it may be stopped."""
    need_docker()
    if os.geteuid() != 0:
        pytest.skip("starting an engine needs root")
    image = docker_engine.connect().api.get_image(docker_image.BASE_IMAGE)
    with (
        tempfile.TemporaryDirectory(prefix="turnwise-engine-") as name,
        pytest.MonkeyPatch.context() as patch,
    ):
        engine = OwnEngine(Path(name))
        patch.setenv("DOCKER_HOST", engine.url)
        try:
            engine.start()
            with docker_engine.connect().client(60) as own:
                own.load_image(image)
            yield engine
        finally:
            engine.stop()


@pytest.fixture
def own_engine(second_engine, monkeypatch):
    monkeypatch.setenv("DOCKER_HOST", second_engine.url)
    return second_engine


class OwnEngine:
    def __init__(self, folder):
        self.folder, self.url = folder, f"unix://{folder}/s"
        self.cgroup = folder.name
        self.process = None

    def start(self):
        # What a killed engine left names processes that have ended, or are zombies of nobody here.
        for stale in ("pid", "exec/containerd/containerd.pid"):
            (self.folder / stale).unlink(missing_ok=True)
        argv = ["dockerd", "-H", self.url, "--data-root", self.folder / "data", "--exec-root"]
        argv += [self.folder / "exec", "-p", self.folder / "pid", "--storage-driver", "overlay2"]
        argv += ["--iptables=false", "--ip6tables=false", "--bridge=none"]
        argv += ["--cgroup-parent", f"/{self.cgroup}"]
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        assert wait_until(self.answers, 30.0), (self.folder / "log").read_text()[-2000:]

    def kill_and_start(self):
        """`kill -9`; the engine that comes next ends the boxes of the one before."""
        self.process.kill()
        self.process.wait()
        self.start()

    def answers(self):
        try:
            return bool(docker_engine.connect())
        except SandboxError:
            return False

    def stop(self):
        if self.process and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        for line in reversed(mounts_of(self.folder.name)):
            subprocess.run(["umount", "-l", line.split()[4]], check=False)
        for path in Path("/sys/fs/cgroup").glob(f"*/{self.cgroup}"):
            with contextlib.suppress(OSError):
                path.rmdir()


def test_an_engine_that_ends_in_a_call_is_a_typed_loss_and_its_return_is_noticed(own_engine):
    box = open_sandbox("docker", limits=SMALL)
    stop = threading.Timer(0.5, own_engine.stop)
    stop.start()
    with pytest.raises(SandboxDied) as caught:
        box.exec(["sleep", "77"], timeout_s=60.0)
    stop.join()
    assert caught.value.retryable
    began = time.monotonic()
    box.close()
    assert time.monotonic() - began < 2.0
    with pytest.raises(StartFailed, match="did before") as caught:
        open_sandbox("docker", limits=SMALL)
    assert caught.value.retryable
    own_engine.start()
    with open_sandbox("docker", limits=SMALL) as box:
        assert box.exec(["echo", "on"]).stdout == b"on\n"


def names():
    found = docker_engine.connect().api.containers(all=True)
    return {name.lstrip("/") for entry in found for name in entry["Names"]}


def mounts_of(name):
    return [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if name in line]


def test_a_frozen_engine_holds_neither_a_start_nor_an_end(own_engine, monkeypatch):
    box = open_sandbox("docker", limits=SMALL)
    monkeypatch.setattr(docker, "END_TIMEOUT_S", 0.5)
    monkeypatch.setattr(docker, "CALL_TIMEOUT_S", 0.5)
    docker_engine.connect().api.timeout = 0.5
    own_engine.process.send_signal(signal.SIGSTOP)
    try:
        assert box.exec(["echo", "on"]).stdout == b"on\n", "a call does not need the engine"
        began = time.monotonic()
        with pytest.raises(StartFailed, match="timed out"):
            open_sandbox("docker", limits=SMALL)
        box.close()
        assert time.monotonic() - began < 5.0
    finally:
        own_engine.process.send_signal(signal.SIGCONT)
    assert wait_until(lambda: box.id not in names(), 10.0)


# ---------------------------------------------------------------- a rollout goes on


class Sleepy(CodeEnv):
    """Each task sleeps in its box; the first try of some lasts long enough to lose the engine."""

    backend = "docker"
    limits = SMALL
    faults: ClassVar[dict[int, object]] = {}

    def tasks(self, split):
        return [Task(hidden={"number": n}) for n in range(3)]

    def setup(self, task, rng):
        self.fault = self.faults.pop(task.hidden["number"], None)
        self.slept = False
        return "Sleep, then stop."

    @tool(final=True)
    def stop(self) -> None:
        """End the episode."""

    def expert(self):
        if self.slept:
            return self.call_text("stop")
        self.slept = True
        if self.fault is None:
            return self.call_text("bash", command="echo slept")
        assert self.box.exec(["true"]).exit_code == 0  # however long it takes to start
        threading.Timer(0.7, self.fault).start()
        return self.call_text("bash", command="sleep 9")


def test_a_rollout_masks_or_retries_what_an_engine_took_with_it_and_goes_on(own_engine):
    assert own_engine.answers()
    Sleepy.faults = {0: own_engine.stop, 1: own_engine.kill_and_start}
    jobs = jobs_for(Sleepy().tasks("train"), 1, run_seed=0, split="train")
    seen = []
    for episode in play(jobs, Sleepy, ScriptedPolicy(expert), Settings(concurrency=1)):
        seen.append((episode.outcome, episode.attempts, episode.error.partition(":")[0]))
        if episode.outcome is Outcome.INFRA_ERROR:
            assert not episode.trainable and not own_engine.answers()
            own_engine.start()
    assert seen == [
        (Outcome.INFRA_ERROR, 2, "StartFailed"),  # it stopped, and was not back for the retry
        (Outcome.OK, 2, ""),  # it was killed, and came back
        (Outcome.OK, 1, ""),
    ]
