"""Boxes by a docker engine of this machine: a hardened container and our guest as its PID 1.

The container has no network, no capability, a read-only root and our own seccomp filter. What it
shares with the host is one read-only folder with the guest's source and a socket on which the
host listens; the guest connects to it, and then the folder is emptied. When the host hangs up,
or is killed, the guest ends and the engine removes the container.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import select
import shutil
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from turnwise.sandboxes import docker_config, proxy
from turnwise.sandboxes.base import (
    NoSafeSandbox,
    SandboxError,
    SandboxSpec,
    StartFailed,
    Unsupported,
)
from turnwise.sandboxes.channel import Channel, GuestBox
from turnwise.sandboxes.docker_config import DOOR, SOCKET, START_TIMEOUT_S, Start
from turnwise.sandboxes.docker_engine import (
    CALL_TIMEOUT_S,
    Engine,
    connect,
    failures,
    quietly,
    status_of,
)
from turnwise.sandboxes.docker_image import BASE_IMAGE, BUILD
from turnwise.sandboxes.guest_files import FILE
from turnwise.sandboxes.host_files import HostFiles
from turnwise.sandboxes.inside import (
    HOME_OF_GUEST,
    MARKER,
    check_workdir,
    max_body,
    uid_of_the_moment,
)
from turnwise.sandboxes.owner import own_folder

NAME = "docker"
END_TIMEOUT_S = 10.0
_starting = threading.BoundedSemaphore(max(2, os.cpu_count() or 1))


@dataclass
class _Parts:
    """What a start has made so far, and how to unmake it."""

    engine: Engine
    name: str
    """The container's, chosen here: one that an unanswered call made can be removed, too."""
    folder: Path
    owner: int = field(default_factory=os.getpid)
    asked_for: bool = False
    words: socket.socket | None = None
    """What the guest writes to its standard error, as the engine frames it."""
    channel: Channel | None = None
    pid: int = 0
    began: str = field(default_factory=lambda: f"{time.time():.9f}")
    proxy: proxy.Proxy | None = None

    def guest(self) -> int:
        """The number of the box's PID 1, as the engine counts; another process may have it by now.

        Raises:
            OSError: there is no such container.
        """
        if not self.pid:
            try:
                with self.engine.client(CALL_TIMEOUT_S) as api, failures(self.engine.url):
                    self.pid = api.inspect_container(self.name)["State"]["Pid"]
            except SandboxError as error:
                raise OSError(errno.ESRCH, str(error)) from None
        return self.pid

    def starved(self) -> int:
        """How often the engine saw the kernel end a process of it for want of memory."""
        asked = {"container": [self.name], "event": ["oom"]}
        try:
            with self.engine.client(CALL_TIMEOUT_S) as api, failures(self.engine.url):
                now = f"{time.time():.9f}"
                return sum(1 for _ in api.events(self.began, now, filters=asked, decode=True))
        except SandboxError:
            return 0

    def end(self) -> str:
        """End the container and wait until the engine has removed it; its last words.

        Takes at most twice `END_TIMEOUT_S`, and never raises.
        """
        if os.getpid() != self.owner:  # a forked child must not end its parent's boxes
            return ""
        if self.proxy:
            self.proxy.close()
        if self.channel:
            self.channel.hang_up()
        trouble = self._remove() if self.asked_for else ""
        shutil.rmtree(self.folder, ignore_errors=True)
        words = _last_words(self.words)
        return "; ".join(part for part in (trouble, words) if part)

    def _remove(self) -> str:
        with self.engine.client(END_TIMEOUT_S) as api:
            error = quietly(lambda: api.remove_container(self.name, force=True, v=True))
            if error is not None and status_of(error) == 409:
                # The engine is at it already, since the guest has ended.
                error = quietly(
                    lambda: api.wait(self.name, timeout=END_TIMEOUT_S, condition="removed")
                )
        if error is None or status_of(error) == 404:
            return ""
        return f"the engine did not remove {self.name}: {error}"


def open_box(spec: SandboxSpec) -> GuestBox:
    """A started box.

    Raises:
        NoSafeSandbox: no engine answers here, or the image is not there.
        Unsupported: the engine is on another machine, or the spec asks for more than
            a proxy.
        StartFailed: the engine could not start it, or the guest did not answer.
    """
    _refuse(spec)
    engine = connect()
    image = find_image(engine, spec.image)
    with _starting:
        name = f"turnwise-{secrets.token_hex(6)}"
        parts = _Parts(engine, name, own_folder() / name)
        try:
            return _start(spec, image, parts)
        except SandboxError as error:
            words = parts.end()
            raise type(error)(f"{error} ({words})" if words else str(error)) from None
        except OSError as error:
            parts.end()
            raise StartFailed(f"{NAME}: {error}") from error
        except BaseException:
            parts.end()
            raise


def _refuse(spec: SandboxSpec) -> None:
    if spec.net.mode == "proxy":
        proxy.parse_allow(spec.net.allow)
    elif spec.net.mode != "none":
        raise Unsupported(f"{NAME} has no network mode {spec.net.mode!r}; use 'none' or 'proxy'")
    check_workdir(spec)


def identity(spec: SandboxSpec) -> str:
    """The engine and the image that would run `spec`, for the verdict on whether they isolate.

    Raises:
        NoSafeSandbox, StartFailed, Unsupported: as `open_box`.
    """
    engine = connect()
    return f"{engine.url} {engine.id} {find_image(engine, spec.image)['Id']}"


def find_image(engine: Engine, image: str | None) -> dict[str, Any]:
    """What the engine knows about `image`, or about our base image.

    Raises:
        NoSafeSandbox: it is not there; the message holds the command that gets it.
    """
    import docker.errors

    name = image or BASE_IMAGE
    with failures(engine.url):
        try:
            found: dict[str, Any] = engine.api.inspect_image(name)
        except docker.errors.ImageNotFound:
            cure = f"{BUILD} --image {image}" if image else BUILD
            raise NoSafeSandbox(f"the docker engine has no image {name!r}; run: {cure}") from None
        return found


def _start(spec: SandboxSpec, image: dict[str, Any], parts: _Parts) -> GuestBox:
    start = Start(
        token=secrets.token_hex(16),
        uid=uid_of_the_moment(),
        shared=parts.folder / "box",
        cores=parts.engine.cores,
    )
    _lay_out(start.shared, docker_config.files(spec, start))
    with _listening(start.shared / SOCKET) as listener, _listening(start.shared / DOOR) as door:
        deadline = time.monotonic() + START_TIMEOUT_S
        _run(docker_config.container(spec, image, start), parts)
        parts.channel = Channel(_accept(listener, parts, deadline), max_body(spec))
        _hello(spec, image, parts.channel)
        if spec.net.mode == "proxy":
            parts.proxy = proxy.Proxy(spec.net.allow, _accept(door, parts, deadline))
    shutil.rmtree(parts.folder, ignore_errors=True)  # the box keeps what is bound over a file
    user = start.uid if os.geteuid() == 0 else None
    host = HostFiles(spec, lambda: _root_of(parts, start.token), user)
    return GuestBox(parts.name, NAME, spec, parts.channel, parts.end, host, parts.starved)


def _root_of(parts: _Parts, token: str) -> int:
    """A descriptor of the root folder of the box.

    Raises:
        OSError: it has ended, or the engine runs where its processes are none of ours.
    """
    root = os.open(f"/proc/{parts.guest()}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, root)
        with open(os.open(MARKER.lstrip("/"), os.O_RDONLY | FILE, dir_fd=root), "rb") as marker:
            if marker.read() != token.encode():
                raise OSError(errno.ESRCH, "another process has its number")
        stack.pop_all()
    return root


def _lay_out(shared: Path, files: dict[str, bytes]) -> None:
    """Make the folder that the box sees, inside one that no other user of the host may enter."""
    shared.parent.mkdir(mode=0o700)
    shared.mkdir()
    shared.chmod(0o755)
    for name, data in files.items():
        (shared / name).write_bytes(data)
        (shared / name).chmod(0o444)


@contextlib.contextmanager
def _listening(path: Path) -> Iterator[socket.socket]:
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    with socket.socket(socket.AF_UNIX) as listener:
        try:
            # The address of a unix socket may have 107 bytes; the path to the folder may have more.
            listener.bind(f"/proc/self/fd/{folder}/{path.name}")
        finally:
            os.close(folder)
        path.chmod(0o666)
        listener.listen(1)
        yield listener


def _run(config: dict[str, Any], parts: _Parts) -> None:
    # A client of its own: the SDK keeps a connection open for each container that it spoke of.
    with parts.engine.client(CALL_TIMEOUT_S) as api, failures(parts.engine.url):
        parts.asked_for = True
        api.create_container_from_config(config, name=parts.name)
        stream = api.attach_socket(parts.name, {"stderr": 1, "stream": 1})
        parts.words = socket.socket(fileno=os.dup(stream.fileno()))
        # The SDK's own descriptor is in a reference cycle, and would stay open until it is found.
        getattr(stream, "_response", stream).close()
        api.start(parts.name)


def _accept(listener: socket.socket, parts: _Parts, deadline: float) -> socket.socket:
    """The guest's connection. It is the first, since no user code runs before it."""
    assert parts.words is not None
    left = max(0.0, deadline - time.monotonic())
    ready = select.select([listener, parts.words], [], [], left)[0]
    if listener in ready:
        return listener.accept()[0]
    if ready:
        raise StartFailed("the guest ended before it connected")
    raise StartFailed(f"the guest did not connect within {START_TIMEOUT_S:.0f} s")


def _hello(spec: SandboxSpec, image: dict[str, Any], channel: Channel) -> None:
    # Processes are counted by the container's cgroup, not per user of the host.
    limits = asdict(spec.limits) | {"rlimit_pids": False}
    environment = docker_config.environment(spec, image)
    fields = {"limits": limits, "env": environment, "workdir": spec.workdir}
    if spec.net.mode == "proxy":
        fields["relay"] = {"at": f"{HOME_OF_GUEST}/{DOOR}", "port": proxy.PORT}
    try:
        channel.call("hello", fields, timeout_s=START_TIMEOUT_S)
    except (SandboxError, OSError) as error:
        raise StartFailed(f"the guest did not start: {error}") from None


def _last_words(stream: socket.socket | None) -> str:
    """The end of what the guest wrote, from the engine's frames of 8 bytes and a payload."""
    if stream is None:
        return ""
    data = b""
    with contextlib.suppress(OSError), stream:
        stream.settimeout(0.2)
        while len(data) < 1 << 16 and (part := stream.recv(1 << 14)):
            data += part
    text = b""
    while len(data) > 8:
        size = struct.unpack(">xxxxI", data[:8])[0]
        text, data = text + data[8 : 8 + size], data[8 + size :]
    return text.decode("utf-8", "replace").strip()[-2000:]


def _forget_in_child() -> None:
    # The thread that held a place does not exist in the child, and would never give it back.
    global _starting
    _starting = threading.BoundedSemaphore(max(2, os.cpu_count() or 1))


os.register_at_fork(after_in_child=_forget_in_child)
