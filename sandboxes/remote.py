"""Boxes of another machine, which `turnwise sandbox serve` lends there.

A request that got no answer is sent again, with the same number: the server runs nothing twice. A
thread tells the server that this process lives; when it stops, the server destroys the boxes.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from turnwise.sandboxes.base import (
    ProtocolError,
    SandboxDied,
    SandboxError,
    SandboxSpec,
    StartFailed,
    Unsupported,
)
from turnwise.sandboxes.remote_box import START_TIMEOUT_S, RemoteBox
from turnwise.sandboxes.remote_wire import (
    CONTENT_TYPE,
    EXTRA_BYTES,
    TOKEN_RULE,
    TOKEN_VARIABLE,
    URL_VARIABLE,
    is_token,
    pack,
    pack_spec,
    unpack,
    unpack_error,
)

if TYPE_CHECKING:
    pass

TRIES = 4
FIRST_PAUSE_S = 0.1
CONNECT_TIMEOUT_S = 5.0
_lock = threading.Lock()
_servers: dict[tuple[str, str], Server] = {}


def url_is_set() -> bool:
    """Whether the environment names a server."""
    return bool(os.environ.get(URL_VARIABLE))


def open_box(spec: SandboxSpec) -> RemoteBox:
    """A box of the server that the environment names.

    Raises:
        Unsupported: none is named, or it cannot do what was asked.
        StartFailed: it does not answer, or could not start a box.
    """
    return connect().open_box(spec)


def list_leases() -> list[dict[str, Any]]:
    """What the server that the environment names has lent."""
    return connect().leases()


def connect(url: str | None = None, token: str | None = None) -> Server:
    """The server at `url`; one object per address, shared by all threads.

    Args:
        url: such as `http://127.0.0.1:8337`; TURNWISE_SANDBOX_URL by default.
        token: what it asks for; TURNWISE_SANDBOX_TOKEN by default.

    Raises:
        Unsupported: no address or no token is given, or httpx is not installed.
    """
    url = (url or os.environ.get(URL_VARIABLE, "")).rstrip("/")
    token = token if token is not None else os.environ.get(TOKEN_VARIABLE, "")
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        raise Unsupported(
            f"{URL_VARIABLE} must name a sandbox server, such as http://127.0.0.1:8337, got"
            f" {url!r}; run one: turnwise sandbox serve"
        )
    if not is_token(token):
        raise Unsupported(f"{TOKEN_VARIABLE} must hold the token of {url}, {TOKEN_RULE}")
    with _lock:
        if (url, token) not in _servers:
            _servers[url, token] = Server(url, token)
        return _servers[url, token]


def _client(url: str, token: str) -> Any:
    try:
        import httpx
    except ModuleNotFoundError:
        raise Unsupported("httpx is not installed; run: pip install 'turnwise[remote]'") from None
    from turnwise.sandboxes.remote_server import is_loopback

    return httpx.Client(
        base_url=url,
        headers={"authorization": f"Bearer {token}", "content-type": CONTENT_TYPE},
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
        # A proxy of this machine's environment does not reach this machine's loopback.
        trust_env=not is_loopback(urlsplit(url).hostname or ""),
    )


class _Silent(SandboxDied):
    """The server does not answer."""


class Server:
    """A server that lends boxes, and the boxes that this process has of it."""

    def __init__(self, url: str, token: str) -> None:
        self.url = url
        self._http = _client(url, token)
        self._boxes: weakref.WeakValueDictionary[str, RemoteBox] = weakref.WeakValueDictionary()
        self._beating = False
        self._is_silent = False
        self._lock = threading.Lock()

    def open_box(self, spec: SandboxSpec) -> RemoteBox:
        """A started box.

        Raises:
            StartFailed: the server does not answer, or could not start it.
            SandboxError: what starting it raised there.
        """
        message = pack({"create": secrets.token_hex(16), "spec": pack_spec(spec)})
        about, _ = self.ask(
            "POST", "/v1/sandboxes", message, timeout_s=START_TIMEOUT_S, lost=StartFailed
        )
        return self.lend(about, spec)

    def leases(self) -> list[dict[str, Any]]:
        """What it has lent, to this process and to others."""
        found, _ = self.ask("GET", "/v1/sandboxes", timeout_s=CONNECT_TIMEOUT_S)
        return cast("list[dict[str, Any]]", found["leases"])

    def lend(self, about: dict[str, Any], spec: SandboxSpec) -> RemoteBox:
        """The box that `about` describes, kept alive from now on."""
        try:
            id, capabilities = str(about["id"]), frozenset(map(str, about["capabilities"]))
            ttl_s = float(about.get("ttl_s", 60.0))
        except (KeyError, TypeError, ValueError) as error:
            raise StartFailed(f"{self.url} described a box without {error}") from None
        box = RemoteBox(self, id, spec, capabilities)
        with self._lock:
            self._boxes[id] = box
            if not self._beating:
                self._beating = True
                args = (ttl_s / 4,)
                threading.Thread(target=self._beat, args=args, daemon=True, name="beat").start()
        return box

    def _beat(self, period_s: float) -> None:
        while True:
            time.sleep(period_s)
            with self._lock:
                ids = list(self._boxes)
                self._beating = bool(ids)
                if not ids:
                    return
            with contextlib.suppress(SandboxError, OSError):
                heard, _ = self.ask("POST", "/v1/heartbeats", pack({"ids": ids}), timeout_s=10.0)
                for id in heard.get("gone", ()):
                    if box := self._boxes.get(str(id)):
                        box.gone("the server has ended it")

    def delete(self, id: str, owner: int) -> None:
        """End a box; never raises."""
        self._boxes.pop(id, None)
        # A forked child must not end its parent's boxes. A server that is gone would make many of
        # them wait one after another, and ends them by itself.
        if os.getpid() != owner or self._is_silent:
            return
        try:
            self.ask("DELETE", f"/v1/sandboxes/{id}", timeout_s=10.0, tries=2, lost=_Silent)
        except _Silent:
            self._is_silent = True
        except Exception:
            return

    def ask(
        self,
        method: str,
        path: str,
        message: bytes = b"",
        *,
        timeout_s: float,
        most: int = EXTRA_BYTES,
        tries: int = TRIES,
        lost: type[SandboxError] = SandboxDied,
    ) -> tuple[dict[str, Any], bytes]:
        """The answer to a request, which is sent again if none arrives.

        Raises:
            lost: none arrived, or what answers is no server of ours.
            ProtocolError: the answer is over `most` bytes.
            SandboxError, OSError, ValueError: what the server raised.
        """
        import httpx

        for attempt in range(tries):
            if attempt:
                time.sleep(FIRST_PAUSE_S * 4 ** (attempt - 1))
            try:
                status, kind, answer = self._send(method, path, message, timeout_s, most)
            except httpx.TransportError as error:
                why = f"{self.url} does not answer: {error or type(error).__name__}"
                continue
            if kind != CONTENT_TYPE:
                why = f"{self.url} answered with status {status} and is no sandbox server"
                if status in (502, 503, 504):  # something between here and there
                    continue
                break
            self._is_silent = False
            head, body = unpack(answer)
            if status >= 400:
                raise unpack_error(head, status)
            return head, body
        raise lost(why)

    def _send(
        self, method: str, path: str, message: bytes, timeout_s: float, most: int
    ) -> tuple[int, str, bytes]:
        import httpx

        timeout = httpx.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S)
        request = self._http.build_request(method, path, content=message, timeout=timeout)
        response = self._http.send(request, stream=True)
        try:
            parts, size = [], 0
            for part in response.iter_raw():
                parts.append(part)
                size += len(part)
                if size > most:
                    raise ProtocolError(f"{self.url} sent more than {most} bytes")
        finally:
            response.close()
        return response.status_code, response.headers.get("content-type", ""), b"".join(parts)


def _forget_in_child() -> None:
    # Two processes must not talk over one connection.
    global _lock
    _lock = threading.Lock()
    _servers.clear()


os.register_at_fork(after_in_child=_forget_in_child)
