"""The docker engine of this machine: found, spoken to with deadlines, its failures typed."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from turnwise.sandboxes.base import NoSafeSandbox, StartFailed, Unsupported

DEFAULT_URL = "unix:///var/run/docker.sock"
INSTALL = "apt-get install -y docker.io"
INSTALL_SDK = "pip install 'turnwise[docker]'"
CALL_TIMEOUT_S = 30.0
_NEEDED = {"MemoryLimit": "memory", "PidsLimit": "process", "CpuCfsQuota": "CPU"}


@dataclass
class Engine:
    """An engine that has answered and can hold every limit."""

    url: str
    api: Any
    """A `docker.APIClient`; its calls end within `CALL_TIMEOUT_S`."""
    id: str
    cores: int
    owner: int = field(default_factory=os.getpid)

    @property
    def socket_path(self) -> str:
        """Where it listens."""
        return self.url.partition("://")[2]

    @contextlib.contextmanager
    def client(self, timeout_s: float) -> Iterator[Any]:
        """A client whose connections end with it; for calls that take longer, too."""
        api = _client(self.url, timeout_s, self.api.api_version)
        try:
            yield api
        finally:
            api.close()


_lock = threading.Lock()
_engines: dict[str, Engine] = {}


def engine_url() -> str:
    """`DOCKER_HOST`, or where an engine listens by default."""
    return os.environ.get("DOCKER_HOST") or DEFAULT_URL


def connect() -> Engine:
    """The engine at `engine_url()`; found and looked at once per process.

    Raises:
        NoSafeSandbox: none answers there, or it cannot hold the limits, or the SDK is missing.
        StartFailed: it answered before and does not now.
        Unsupported: it is on another machine.
    """
    url = engine_url()
    with _lock:
        known = _engines.get(url)
        _knock(url, known is not None)
        if known is None:
            known = _engines[url] = _look(url)
        return known


def _knock(url: str, known: bool) -> None:
    """Fail at once where nobody listens: cheaper than the SDK, which takes a fifth of a second."""
    scheme, _, path = url.partition("://")
    if scheme != "unix":
        raise Unsupported(
            f"the docker engine at {url} is not on this machine: a box talks over a unix socket of"
            " this host. Set DOCKER_HOST to a unix:// address, or use the backend 'remote'"
        )
    with socket.socket(socket.AF_UNIX) as door:
        door.settimeout(CALL_TIMEOUT_S)
        try:
            door.connect(path)
        except PermissionError:
            raise NoSafeSandbox(
                f"this user may not talk to the docker engine at {url};"
                ' run: sudo usermod -aG docker "$USER", and log in again'
            ) from None
        except OSError as error:
            message = f"no docker engine answers at {url} ({error.strerror or error})"
            if known:
                raise StartFailed(f"{message}; it did before") from None
            raise NoSafeSandbox(
                f"{message}; start one (to install it: {INSTALL}) or set DOCKER_HOST"
            ) from None


def _look(url: str) -> Engine:
    if importlib.util.find_spec("docker") is None:
        raise NoSafeSandbox(f"the docker SDK is not installed; run: {INSTALL_SDK}")
    with failures(url, first=True):
        api = _client(url, CALL_TIMEOUT_S, "auto")
        info = api.info()
    _refuse(url, info)
    return Engine(url, api, str(info["ID"]), int(info["NCPU"]))


def _client(url: str, timeout_s: float, version: str) -> Any:
    import docker

    return docker.APIClient(base_url=url, version=version, timeout=timeout_s)


def _refuse(url: str, info: dict[str, Any]) -> None:
    if info["OSType"] != "linux":
        raise NoSafeSandbox(f"the docker engine at {url} runs {info['OSType']}, not linux")
    for name, what in _NEEDED.items():
        if not info.get(name):
            raise NoSafeSandbox(
                f"the docker engine at {url} cannot hold a {what} limit; if it is rootless,"
                " delegate the cgroup controllers to it (systemd: Delegate=yes)"
            )
    if not any(option.startswith("name=seccomp") for option in info["SecurityOptions"]):
        raise NoSafeSandbox(f"the docker engine at {url} was built without seccomp")


@contextlib.contextmanager
def failures(url: str, first: bool = False) -> Iterator[None]:
    """Turn what the SDK raises into our errors.

    Raises:
        StartFailed: the engine went away, took too long or refused.
        NoSafeSandbox: as well, at the `first` contact.
    """
    import docker.errors

    try:
        yield
    except (
        docker.errors.DockerException,
        OSError,
    ) as error:  # what `requests` raises is an OSError
        words = " ".join(str(getattr(error, "explanation", None) or error).split())
        kind = NoSafeSandbox if first else StartFailed
        raise kind(f"the docker engine at {url}: {words[:600]}") from None


def status_of(error: Exception) -> int | None:
    """The HTTP status behind an error of the SDK: 404 where there is no such thing."""
    return getattr(getattr(error, "response", None), "status_code", None)


def quietly(call: Callable[[], object]) -> Exception | None:
    """What `call` failed with, or None; for the ways out, which must not raise."""
    try:
        call()
    except Exception as error:  # the SDK lets urllib3's and the socket's own errors through
        return error
    return None


def _forget_in_child() -> None:
    # Two processes must not talk over one connection.
    global _lock
    _lock = threading.Lock()
    _engines.clear()


os.register_at_fork(after_in_child=_forget_in_child)
