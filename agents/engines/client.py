"""JSON over HTTP to one model server: deadlines, one retry on a reset connection, typed failures.

EngineError
├── ServerLost       no connection, or it broke twice
├── ServerLate       no answer before the deadline
├── ServerRefused    an answer with an error status
└── ProtocolError    an answer that is not what was agreed
"""

from __future__ import annotations

import asyncio
import math
from time import monotonic
from typing import Any

import httpx

from turnwise.agents.engines.base import EngineError
from turnwise.agents.faults import log

BROKEN = (httpx.ReadError, httpx.WriteError, httpx.CloseError, httpx.RemoteProtocolError)
"""A connection that was there and broke. vLLM resets a kept one after an answer of status 500."""

PATIENCE_S = 60.0
"""Changes of weights and scores that take longer are told in the log."""


class ServerLost(EngineError):
    """The server cannot be reached."""


class ServerLate(EngineError):
    """The server did not answer in time; it may still be working."""


class ServerRefused(EngineError):
    """The server answered with an error."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class ProtocolError(EngineError):
    """An answer does not keep to the contract: nothing in it is to be trusted."""


class Server:
    """One server.

    Args:
        url: as `http://127.0.0.1:8000`; a trailing `/v1` is left out.
        api_key: sent as a bearer token; empty sends none.
        deadline_s: for an answer as a whole, unless a call names its own.
        transport: an `httpx` transport instead of a socket: a server in this process.
    """

    def __init__(
        self, url: str, *, api_key: str = "", deadline_s: float = 600.0, transport: Any = None
    ) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"a server's address begins with http:// or https://, got {url!r}")
        self.deadline_s = deadline_s
        self._told = -math.inf
        self._client = httpx.AsyncClient(
            base_url=self.url,
            headers={"authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx.Timeout(None, connect=10.0),
            limits=httpx.Limits(max_connections=512, max_keepalive_connections=64),
            transport=transport,
        )

    async def get(self, path: str, *, deadline_s: float | None = None) -> Any:
        """Return the JSON at `path`; raises as `post`."""
        return await self._ask("GET", path, None, deadline_s, tries=2)

    async def post(
        self,
        path: str,
        body: Any = None,
        *,
        once: bool = False,
        text: bool = False,
        told: bool = False,
        deadline_s: float | None = None,
    ) -> Any:
        """Return the JSON with which the server answers.

        Args:
            once: do not ask again on a reset connection: for what changes the server.
            text: the route answers in words, which are returned as they are.
            told: say in the log when it takes long; what changes the server always is.

        Raises:
            ServerLost, ServerLate, ServerRefused, ProtocolError: see the module.
        """
        tries = 1 if once else 2
        return await self._ask(
            "POST", path, body, deadline_s, tries=tries, text=text, told=told or once
        )

    async def close(self) -> None:
        """Close every connection."""
        await self._client.aclose()

    async def _ask(
        self,
        method: str,
        path: str,
        body: Any,
        deadline_s: float | None,
        *,
        tries: int,
        text: bool = False,
        told: bool = False,
    ) -> Any:
        limit = self.deadline_s if deadline_s is None else deadline_s
        slow = asyncio.get_running_loop().call_later(PATIENCE_S, self._tell, path, limit)
        if not told:
            slow.cancel()
        try:
            async with asyncio.timeout(limit):
                response = await self._send(method, path, body, tries)
        except TimeoutError:
            raise ServerLate(f"{self.url}{path}: no answer in {limit:g} s") from None
        finally:
            slow.cancel()
        return self._read(path, response, text)

    def _tell(self, path: str, limit: float) -> None:
        """Say that an answer is waited for, once for all that wait side by side."""
        if monotonic() - self._told >= PATIENCE_S:
            self._told = monotonic()
            text = "%s%s has not answered for %g s; it is given up after %g s"
            log.warning(text, self.url, path, PATIENCE_S, limit)

    async def _send(self, method: str, path: str, body: Any, tries: int) -> httpx.Response:
        for left in reversed(range(tries)):
            try:
                return await self._client.request(method, path, json=body)
            except BROKEN as error:
                if not left:
                    raise self._lost(path, error, f" (tried {tries}x)") from error
            except httpx.TransportError as error:
                raise self._lost(path, error, "") from error
        raise AssertionError("unreachable")

    def _lost(self, path: str, error: Exception, how_often: str) -> ServerLost:
        what = str(error) or type(error).__name__
        return ServerLost(f"{self.url}{path}: {what}{how_often}; is the server running?")

    def _read(self, path: str, response: httpx.Response, text: bool) -> Any:
        if response.status_code >= 400:
            why = _complaint(response)
            raise ServerRefused(
                f"{self.url}{path} answered {response.status_code}: {why}", response.status_code
            )
        if text:
            return response.text
        if not response.content:
            return {}
        try:
            return response.json()
        except ValueError:
            raise ProtocolError(
                f"{self.url}{path} answered with what is not JSON: {response.text[:80]!r}"
            ) from None


def _complaint(response: httpx.Response) -> str:
    """Return the message inside an error answer of any of the usual shapes."""
    try:
        found = response.json()
    except ValueError:
        return response.text[:300]
    for name in ("error", "message", "detail"):
        found = found.get(name, found) if isinstance(found, dict) else found
    return str(found)[:300]
