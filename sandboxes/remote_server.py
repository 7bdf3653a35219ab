"""Lends boxes of this machine over HTTP; `remote.py` is the other side.

A lease ends when its client closes it, or when nothing was heard of the client for `ttl_s`: what a
client that was killed had open is destroyed here. The boxes live and die with this process.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import socket
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Any

from turnwise.sandboxes.base import Unsupported
from turnwise.sandboxes.remote_calls import CALLS, Answer
from turnwise.sandboxes.remote_leases import Leases
from turnwise.sandboxes.remote_wire import (
    CONTENT_TYPE,
    EXTRA_BYTES,
    MAX_HEAD_BYTES,
    pack,
    pack_error,
    unpack,
    unpack_spec,
)

PATH = "/v1/sandboxes"
GOODBYE_S = 5
"""How long calls in progress may take when the server is told to end."""
Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class Refused(Exception):
    """The request is not one of ours; `status` is the HTTP status that says why."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class Lender(Leases):
    """An ASGI application that lends boxes; see `Leases` for its arguments."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, as ASGI asks for it."""
        if scope["type"] != "http":
            raise NotImplementedError(scope["type"])
        try:
            self._admit(scope)
            status, message = 200, pack(*await self._answer(scope, receive))
        except Refused as refused:
            name = "Unsupported" if refused.status == 401 else "ProtocolError"
            head = {"error": name, "message": str(refused), "retryable": False}
            status, message = refused.status, pack(head)
        except Exception as error:
            status, message = pack_error(error)
        await _reply(send, status, message)

    def _admit(self, scope: Scope) -> None:
        given = dict(scope["headers"]).get(b"authorization", b"")
        if not hmac.compare_digest(given, self._secret):
            raise Refused(401, "the token is missing or wrong; set TURNWISE_SANDBOX_TOKEN")

    async def _answer(self, scope: Scope, receive: Receive) -> Answer:
        method, path = scope["method"], scope["path"]
        if path == "/v1/heartbeats" and method == "POST":
            head, _ = await _read(scope, receive, MAX_HEAD_BYTES)
            return {"gone": self._hear(head.get("ids"))}, b""
        if path == PATH and method == "POST":
            return await self._create(*await _read(scope, receive, MAX_HEAD_BYTES))
        if path == PATH and method == "GET":
            return {"leases": [lease.about() for lease in self.leases()]}, b""
        if not path.startswith(f"{PATH}/"):
            raise Refused(404, f"there is no {path}")
        lease = self.lease_of(path.split("/")[3])
        match method, path.split("/")[4:]:
            case "GET", []:
                return lease.about(), b""
            case "DELETE", []:
                await self._in_thread(self._end, lease)
                return {}, b""
            case "POST", ["calls", op] if op in CALLS:
                limit = lease.spec.limits.file_bytes + EXTRA_BYTES
                head, body = await _read(scope, receive, limit)
                return await _result(self.call(lease, op, head, body))
        raise Refused(404, f"there is no {method} {path}")

    def _hear(self, ids: Any) -> list[str]:
        if not isinstance(ids, list):
            raise Refused(400, f"ids must be a list, got {ids!r:.100}")
        known = {lease.box.result().id: lease for lease in self.leases()}
        for id in ids:
            if id in known:
                known[id].heard = time.monotonic()
        return [id for id in ids if id not in known]

    async def _create(self, head: dict[str, Any], body: bytes) -> Answer:
        create = head.get("create")
        if not isinstance(create, str) or not 16 <= len(create) <= 64:
            raise Refused(400, f"create must be 16 to 64 characters, got {create!r:.100}")
        lease = self.create(create, unpack_spec(head.get("spec")))
        await _result(lease.box)
        return lease.about() | {"ttl_s": self.ttl_s}, b""

    async def _in_thread(self, work: Callable[..., object], *args: object) -> None:
        await asyncio.get_running_loop().run_in_executor(self._threads, work, *args)


async def _result(future: Future[Any]) -> Any:
    # Shielded: a client that hangs up must not cancel what its next try will ask for again.
    return await asyncio.shield(asyncio.wrap_future(future))


async def _read(scope: Scope, receive: Receive, limit: int) -> Answer:
    """The message in a request of at most `limit` bytes."""
    announced = dict(scope["headers"]).get(b"content-length", b"0")
    parts, size, more = [], int(announced) if announced.isdigit() else 0, True
    if size > limit:
        raise Refused(413, f"a request of {size} bytes is over the limit of {limit}")
    size = 0
    while more:
        event = await receive()
        if event["type"] == "http.disconnect":
            raise Refused(400, "the client hung up")
        parts.append(event.get("body", b""))
        size, more = size + len(parts[-1]), event.get("more_body", False)
        if size > limit:
            raise Refused(413, f"a request is over the limit of {limit} bytes")
    return unpack(b"".join(parts))


async def _reply(send: Send, status: int, message: bytes) -> None:
    headers = [
        (b"content-type", CONTENT_TYPE.encode()),
        (b"content-length", str(len(message)).encode()),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": message})


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`; a name other than `localhost` is not trusted."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def run(lender: Lender, listener: socket.socket) -> None:
    """Serve on `listener` until SIGINT or SIGTERM.

    Raises:
        Unsupported: uvicorn is not installed.
    """
    server(lender, listener).run(sockets=[listener])


def server(lender: Lender, listener: socket.socket) -> Any:
    """A `uvicorn.Server` for a caller that wants to stop it by itself.

    Raises:
        Unsupported: uvicorn is not installed.
    """
    try:
        import uvicorn
    except ModuleNotFoundError:
        raise Unsupported("uvicorn is not installed; run: pip install 'turnwise[remote]'") from None
    # An answer is written in two pieces; the kernel would hold the second one back for 40 ms.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    config = uvicorn.Config(
        lender,
        log_level="warning",
        lifespan="off",
        ws="none",
        http="h11",
        timeout_graceful_shutdown=GOODBYE_S,
    )
    return uvicorn.Server(config)
