"""All that a browser of ours can reach: a proxy that hands requests over to sites in boxes.

It listens on this machine's loopback alone, answers for one host name, and only for episodes that
are open: each browser context sends the name of its episode in a header that pages cannot read.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from turnwise.envs.web.site import MAX_BODY_BYTES, Session

HOST = "site.test"
"""What pages take for the site's host; `.test` exists nowhere."""
ORIGIN = f"http://{HOST}"
HEADER = "X-Turnwise-Episode"
MAX_CONNECTIONS = 256
IDLE_S = 60.0


class Relay:
    """The proxy of one browser. `port` is where it listens; close it."""

    def __init__(self) -> None:
        self._sessions: dict[str, Session] = {}
        relay = self

        class Handler(_Handler):
            sessions = relay._sessions

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), name="turnwise-relay", daemon=True
        )
        self._thread.start()

    def admit(self, session: Session) -> str:
        """Let requests that carry the returned token reach `session`."""
        token = secrets.token_hex(16)
        self._sessions[token] = session
        return token

    def refuse(self, token: str) -> None:
        """Answer no more requests that carry `token`."""
        self._sessions.pop(token, None)

    def close(self) -> None:
        """Stop listening. Safe to call twice."""
        self._sessions.clear()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5.0)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = False

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._room = threading.BoundedSemaphore(MAX_CONNECTIONS)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._room.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that hangs up is nothing to report."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = IDLE_S
    sessions: dict[str, Session]

    def do_GET(self) -> None:
        self._relay("GET", "")

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not length.isascii() or not length.isdigit() or int(length) > MAX_BODY_BYTES:
            self._answer(413, {}, "")
            self.close_connection = True
            return
        self._relay("POST", self.rfile.read(int(length)).decode("utf-8", "replace"))

    def _relay(self, method: str, body: str) -> None:
        place = urlsplit(self.path)
        session = self.sessions.get(self.headers.get(HEADER, ""))
        if place.scheme != "http" or place.netloc != HOST or session is None:
            self._answer(403, {}, "not reachable")
            return
        target = (place.path or "/") + (f"?{place.query}" if place.query else "")
        try:
            reply = session.request(method, target, body, self.headers.get("Cookie", ""))
        except Exception as error:  # the environment raises it in its own thread
            session.failure = error
            self._answer(500, {}, "the site failed")
            return
        self._answer(reply.status, reply.headers, reply.body)

    def _answer(self, status: int, headers: Any, body: str) -> None:
        data = body.encode("utf-8", "replace")
        self.send_response_only(status)
        kept = {"Content-Type": "text/html; charset=utf-8", "Cache-Control": "no-store", **headers}
        for name, value in {**kept, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""
