"""A Ray cluster of several nodes on this machine, and environments that hurt it."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from toys import Walks

VARIABLES = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
VARIABLES |= {"PYTHONPATH": str(Path(__file__).parent)}
PORTS = ("metrics_agent_port", "metrics_export_port", "runtime_env_agent_port")
MEMORY_BYTES = 80 * 2**20


def need_ray() -> None:
    """Skip unless `make test-ray` runs the tests; fail there where Ray is not installed."""
    if not os.environ.get("TURNWISE_RAY_TESTS"):
        pytest.skip("a cluster of Ray takes minutes to test: make test-ray")
    if find_spec("ray") is None:  # not imported: it reads its environment then
        pytest.fail("Ray is not installed: pip install 'turnwise[ray]'")


def start_node(cluster, **more):
    """Start a node of `cluster`; on a busy machine Ray needs more than one try."""
    for left in (3, 2, 1, 0):
        ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
        try:
            return cluster.add_node(
                num_cpus=1,
                object_store_memory=MEMORY_BYTES,
                include_dashboard=False,
                node_ip_address="127.0.0.1",
                **{**ports, **more},
            )
        except Exception:
            if not left:
                raise
    return None


def free_ports(count: int) -> list[int]:
    """Ports of the loopback that nobody listens at."""
    found = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in found]
    for one in found:
        one.close()
    return ports


def once_there(file: Path, act: Callable[[], object]) -> threading.Thread:
    """Call `act` from a thread as soon as `file` exists, within two minutes."""

    def wait() -> None:
        until = time.monotonic() + 120
        while not file.exists() and time.monotonic() < until:
            time.sleep(0.05)
        if file.exists():
            act()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


class Told(Walks):
    """Walks that tell in which process and on which node they were played.

    Args:
        folder: for what processes leave for each other.
        meet: so many of them wait for each other in their first walk.
        head: the node on which nobody waits to be hurt. On any other one the first walk of the
            second step makes the file `hurt` and waits; None lets nobody wait.
        ends: index of the task whose process ends at once, as many times as `times` says.
    """

    def __init__(self, *, folder=".", meet=0, head=None, ends=-1, times=0):
        super().__init__()
        self.folder, self.meet, self.head = Path(folder), meet, head
        self.ends, self.times = ends, times

    def setup(self, task, rng):
        if task.index < 3 and self.meet:
            self._meet()
        if task.index >= 3 and self.head not in (None, node()):
            self._wait_where_it_hurts()
        if task.index == self.ends:
            self._end()
        return super().setup(task, rng)

    def _meet(self):
        (self.folder / f"here-{os.getpid()}").touch()
        until = time.monotonic() + 120
        while len(list(self.folder.glob("here-*"))) < self.meet and time.monotonic() < until:
            time.sleep(0.05)

    def _wait_where_it_hurts(self):
        if not (self.folder / "hurt").exists():
            (self.folder / "hurt").touch()
            time.sleep(120)

    def _end(self):
        before = len(list(self.folder.glob("end-*")))
        if before < self.times:
            (self.folder / f"end-{before}").touch()
            os._exit(1)

    def respond(self, action):
        where = {"process": float(os.getpid()), "node": float(int(node()[:8], 16))}
        where["rank"] = float(os.environ.get("RANK", -1))  # a worker has none
        return replace(super().respond(action), metrics=where)


def node() -> str:
    """The id of the node that this process is on."""
    import ray

    return ray.get_runtime_context().get_node_id()
