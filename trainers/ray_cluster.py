"""A Ray cluster to play on: joined, or started for the run; what it is to keep for whom.

A cluster runs what it is sent. One that is started here listens on the loopback alone, and none is
asked to tell Ray's makers that it is used.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from turnwise.agents.engines.base import EngineError
from turnwise.agents.faults import in_one_line
from turnwise.envs.extras import need
from turnwise.trainers.config import TrainConfig

LOCAL = "local"
CONNECT_S = 5.0
END_S = 10.0
"""How long leaving may take."""
_NAMED = ("num_cpus", "num_gpus", "memory")
_VARIABLES = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_AUTO_CONNECT": "0"}
"""The latter: a thread left behind by a run that is over must not start a cluster of its own."""
_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""On Windows and macOS a cluster of Ray stays on the loopback. So does ours anywhere, and one whose
address is there is looked for there: Ray would take this machine's name in the network instead."""
_ELSEWHERE = {"RAY_gcs_rpc_server_reconnect_timeout_s": "100000"}
"""Ray ends a process that has missed the head for a minute, and with it what the learner has not
saved. Here the run ends itself, saved."""


class ClusterLost(EngineError):
    """The Ray cluster is not there, is gone, or has no place for a worker."""


def actor_options(resources: Mapping[str, float]) -> dict[str, Any]:
    """Return the options of an actor that holds `resources`: Ray's own by name, others apart."""
    own = {name: amount for name, amount in resources.items() if name in _NAMED}
    others = {name: amount for name, amount in resources.items() if name not in _NAMED}
    if "memory" in own:
        own["memory"] = int(own["memory"])
    return {"num_cpus": 0, **own, "resources": others}


class Cluster:
    """The cluster that a run plays on.

    Args:
        config: where it is, and what it is to keep for the learner.

    Raises:
        MissingExtra: Ray is not installed.
        ClusterLost: it does not answer, or cannot keep that.
    """

    def __init__(self, config: TrainConfig) -> None:
        address = config.ray_address or os.environ.get("RAY_ADDRESS", "") or LOCAL
        for name, value in _variables(address).items():
            os.environ.setdefault(name, value)  # before Ray is imported
        self.ray: Any = need("ray", extra="ray")
        self.address, self._ours = address, False
        self._place: Any = None
        if not self.ray.is_initialized():
            self._join(config)
            self._ours = True
        context = self.ray.get_runtime_context()
        self.address, self.node = context.gcs_address, context.get_node_id()
        self._answered = time.monotonic()
        """When its head last did."""
        try:
            self._keep(config.learner_resources(), config.ray_timeout_s)
        except BaseException:
            self.close()
            raise

    def _join(self, config: TrainConfig) -> None:
        started: dict[str, Any] = {}
        if self.address == LOCAL:
            started = {"num_cpus": _cores(config), "include_dashboard": False}
        elif self.address != "auto" and (why := silent(self.address)):
            raise ClusterLost(
                f"no Ray cluster answers at {self.address}: {why}; start one with `ray start "
                "--head`, or leave ray_address out"
            )
        try:
            self.ray.init(self.address, log_to_driver=False, logging_level=logging.ERROR, **started)
        except Exception as error:
            raise ClusterLost(
                f"cannot join the Ray cluster {self.address!r}: {in_one_line(error)}; the run is "
                "to be started on one of its nodes"
            ) from error

    def _keep(self, resources: Mapping[str, float], timeout_s: float) -> None:
        """Let Ray give nobody else what the learner uses on this node."""
        if not resources:
            return
        pinned = need("ray.util.scheduling_strategies", extra="ray")
        here = pinned.NodeAffinitySchedulingStrategy(self.node, soft=False)
        options = actor_options(resources) | {"scheduling_strategy": here}
        self._place = self.ray.remote(_Place).options(**options).remote()
        try:
            self.ray.get(self._place.opened.remote(), timeout=timeout_s)
        except self.ray.exceptions.RayError as error:
            raise ClusterLost(
                f"this node has no room for ray_learner_resources {dict(resources)}: "
                f"{self.offers()}; start it with more, or lower them"
            ) from error

    def offers(self) -> str:
        """Return in words what the cluster has, as far as it tells."""
        try:
            nodes = [node for node in self.ray.nodes() if node["Alive"]]
            amounts = self.ray.cluster_resources()
        except Exception:
            return f"the cluster at {self.address} does not tell what it has"
        plain = {name: n for name, n in sorted(amounts.items()) if ":" not in name}
        return f"the {len(nodes)} nodes of the cluster at {self.address} have {plain}"

    def answers(self, patience_s: float) -> bool:
        """Return whether the head answers; whatever asks it anything waits for as long as it
        does not.

        Raises:
            ClusterLost: it has been silent for `patience_s`.
        """
        why, now = silent(self.address), time.monotonic()
        if not why:
            self._answered = now
        elif (seconds := now - self._answered) > patience_s:
            raise ClusterLost(
                f"the head of the Ray cluster at {self.address} has not answered for "
                f"{seconds:.0f} s: {why}; go on from the newest checkpoint with --resume"
            )
        return not why

    @contextlib.contextmanager
    def named(self) -> Iterator[None]:
        """Turn what Ray raises of itself into one line.

        Raises:
            ClusterLost: Ray has failed.
        """
        try:
            yield
        except self.ray.exceptions.RayError as error:
            raise ClusterLost(
                f"the Ray cluster at {self.address} failed: {in_one_line(error)}; go on from the "
                "newest checkpoint with --resume"
            ) from error

    def end(self, actor: Any) -> None:
        """Let an actor go, if it is still there."""
        _briefly(lambda: self.ray.kill(actor))

    def close(self) -> None:
        """Leave the cluster; one that was started here ends. Safe to call twice."""
        if self._place is not None:
            self.end(self._place)
        if self._ours:
            _briefly(self.ray.shutdown)
        self._place, self._ours = None, False


class _Place:
    """Holds what Ray keeps for the learner."""

    def opened(self) -> None:
        """Return once it is there."""


def _briefly(act: Callable[[], Any]) -> None:
    """Call `act`, and leave it behind after a while: without a head, Ray would wait for one."""

    def call() -> None:
        with contextlib.suppress(Exception):
            act()

    calling = threading.Thread(target=call, daemon=True)
    calling.start()
    calling.join(END_S)


def _variables(address: str) -> dict[str, str]:
    """Return the environment variables that Ray is to be imported under."""
    loopback = address == LOCAL or address.startswith(("127.", "localhost:"))
    here = _LOOPBACK if loopback else {}
    return _VARIABLES | here | ({} if address == LOCAL else _ELSEWHERE)


def silent(address: str) -> str:
    """Return why nobody listens at HOST:PORT, or an empty text."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=CONNECT_S):
            return ""
    except (OSError, ValueError) as error:
        return str(error)


def _cores(config: TrainConfig) -> int:
    """Return how many a cluster of this machine claims to have: as many as its workers ask for."""
    each = config.worker_resources().get("num_cpus", 0)
    wanted = config.ray_workers * each + config.learner_resources().get("num_cpus", 0)
    return max(os.cpu_count() or 1, math.ceil(wanted))
