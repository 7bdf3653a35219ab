"""`turnwise sandbox serve`: lend boxes of this machine over HTTP."""

from __future__ import annotations

import os
import secrets
import socket
import sys
from typing import TYPE_CHECKING

from turnwise.cli.display import print_json
from turnwise.cli.options import UsageError

if TYPE_CHECKING:
    from turnwise.cli.sandbox import Serve


def serve(options: Serve, *, json: bool) -> int:
    """Serve until Ctrl-C or SIGTERM, destroy what was lent, and return the exit code."""
    from turnwise.sandboxes.reaper import end_at_sigterm
    from turnwise.sandboxes.remote_server import Lender, is_loopback, run
    from turnwise.sandboxes.remote_wire import TOKEN_VARIABLE

    token = os.environ.get(TOKEN_VARIABLE, "")
    if not token and not is_loopback(options.host):
        raise UsageError(
            f"--host {options.host} is reached from other machines: set {TOKEN_VARIABLE} to a"
            " secret that its clients know, or serve 127.0.0.1"
        )
    made = "" if token else secrets.token_urlsafe(24)
    most, allow = options.max_live, options.allow
    with Lender(options.backend, token=token or made, max_live=most, allow=allow) as lender:
        listener = _listen(options.host, options.port)
        _announce(listener, made, json)
        end_at_sigterm()  # here, since boxes are opened on other threads
        run(lender, listener)
    return 0


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family)


def _announce(listener: socket.socket, made: str, json: bool) -> None:
    host, port = listener.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    if json:
        print_json({"url": url, "token": made or None})
    else:
        print(f"export TURNWISE_SANDBOX_URL={url}")
        if made:
            print(f"export TURNWISE_SANDBOX_TOKEN={made}")
    sys.stdout.flush()
