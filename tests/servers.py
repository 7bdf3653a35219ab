"""Servers to hold an engine against: the stand-in, in this process or on a port, or a real vLLM."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from toys import Walks

from turnwise.agents.engines.base import GenOutput, GenRequest, Sampling
from turnwise.agents.engines.client import Server
from turnwise.agents.engines.standin import Settings, StandIn, served
from turnwise.agents.engines.vllm import VllmEngine
from turnwise.agents.engines.vllm_start import Needs
from turnwise.agents.engines.vllm_weights import SavedWeights
from turnwise.trainers.engines import own_logprobs
from turnwise.trainers.model import load_model, save_model, tiny_from_env

SHAPE = {"hidden": 64, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 32, "ffn": 128}
MAX_LEN = 512
PROMPT = [7, 50, 31, 30, 77, 40, 5, 9]


def small(seed: int = 0):
    """The model that every server here starts with, and its tokenizer; made by `make test-vllm`."""
    return tiny_from_env(Walks, tasks=10, max_len=MAX_LEN, init_std=0.3, seed=seed, **SHAPE)


def standin(**settings: Any) -> StandIn:
    """A stand-in with a model of its own."""
    return StandIn(*small(), Settings(max_model_len=MAX_LEN, max_logprobs=64, **settings))


@dataclass
class Place:
    """A server, and the trainer's model that it holds."""

    name: str
    server: Callable[[], Server]
    model: Any
    tokenizer: Any
    folder: Path

    def engine(self, **more: Any) -> VllmEngine:
        """An engine that holds the trainer's weights."""
        needs = Needs(updates=True, tokenizer=self.tokenizer)
        engine = VllmEngine([self.server()], needs=needs, **more)
        self.sync(engine, 1)
        return engine

    def sync(self, engine: VllmEngine, version: int, model: Any = None) -> None:
        """Publish the trainer's weights, by way of the folder."""
        engine.update_weights(self.saved(model), version)

    def saved(self, model: Any = None) -> SavedWeights:
        model = model or self.model
        save_model(model, self.tokenizer, self.folder)
        vocab = model.get_input_embeddings().weight.shape[0]
        return SavedWeights(self.folder, partial(own_logprobs, model), vocab)


def saved(model, tokenizer, folder) -> SavedWeights:
    vocab = model.get_input_embeddings().weight.shape[0]
    score = lambda ids: own_logprobs(model, ids)  # noqa: E731
    return SavedWeights(save_model(model, tokenizer, folder), score, vocab)


def places() -> list[Any]:
    """Parameters for a fixture: each is (name, context manager of a server's maker)."""
    real = pytest.param(("vllm", real_server), marks=pytest.mark.vllm, id="vllm")
    inside = pytest.param(("in process", in_process), id="in-process")
    return [inside, pytest.param(("loopback", on_loopback), id="loopback"), real]


@contextmanager
def in_process() -> Iterator[tuple[Callable[[], Server], Any]]:
    app = standin()
    yield lambda: Server("http://standin", transport=httpx.ASGITransport(app=app)), small()


@contextmanager
def on_loopback() -> Iterator[tuple[Callable[[], Server], Any]]:
    with served(standin()) as url:
        yield partial(Server, url), small()


@contextmanager
def real_server() -> Iterator[tuple[Callable[[], Server], Any]]:
    yield (
        partial(Server, real_url(), deadline_s=120.0),
        load_model(os.environ["TURNWISE_VLLM_MODEL"]),
    )


def inside(app: Any, **more: Any) -> Server:
    """A server in this process."""
    return Server("http://standin", transport=httpx.ASGITransport(app=app), **more)


def engine_on(stack: ExitStack, *servers: Any, **more: Any) -> VllmEngine:
    """An engine that is closed with `stack`."""
    engine = VllmEngine(servers, **more)
    stack.callback(engine.close)
    return engine


def real_url() -> str:
    url = os.environ.get("TURNWISE_VLLM_URL", "")
    if not url:
        pytest.skip("TURNWISE_VLLM_URL names no vLLM server; `make test-vllm` starts one")
    return url


def draw(engine: Any, ids=PROMPT, *, count=8, at=1.0, stop=(), seed=3, session="a") -> GenOutput:
    """One request to its end."""
    engine.submit(GenRequest(session, ids, Sampling(count, at, tuple(stop)), seed))
    return wait_for(engine, 1)[session]


def wait_for(engine: Any, count: int, limit_s: float = 120.0) -> dict[str, GenOutput]:
    done: dict[str, GenOutput] = {}
    end = time.monotonic() + limit_s
    while len(done) < count:
        assert time.monotonic() < end, f"{len(done)} of {count} answers in {limit_s} s"
        done |= {output.session: output for output in engine.poll()}
    return done


class Proxy:
    """Stands before a server and breaks connections on purpose.

    Args:
        breaks: how many requests are answered with a reset, from the first one on.
        path: break only requests whose first line holds this.
    """

    def __init__(self, url: str, *, breaks: int = 0, path: str = "") -> None:
        self.target = url.removeprefix("http://").split(":")
        self.breaks, self.path, self.seen = breaks, path.encode(), 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self.listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        """One request per connection, so that every request is seen."""
        request = client.recv(1 << 20)
        head, _, body = request.partition(b"\r\n\r\n")
        length = next(
            (int(x[15:]) for x in head.split(b"\r\n") if x.lower().startswith(b"content-length:")),
            0,
        )
        while len(body) < length:
            body += client.recv(1 << 20)
        if self.path in head.split(b"\r\n")[0]:
            self.seen += 1
            if self.seen <= self.breaks:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.close()
                return
        with socket.create_connection((self.target[0], int(self.target[1]))) as upstream:
            upstream.sendall(head + b"\r\nconnection: close\r\n\r\n" + body)
            while part := upstream.recv(1 << 20):
                client.sendall(part)
        client.close()


def altered(app: Any, change: Callable[[str, Any], Any], *, asked: bool = False) -> Any:
    """An application whose answers (or, with `asked`, requests) are changed on their way.

    `change` gets (path, JSON) and returns the JSON; what it awaits in between is its own affair.
    """
    import json

    async def wrapped(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        events: list[Any] = []

        async def keep(event: Any) -> None:
            events.append(event)

        async def reading() -> Any:
            event = await receive()
            if asked and event.get("body"):
                event = {
                    **event,
                    "body": json.dumps(change(scope["path"], json.loads(event["body"]))).encode(),
                }
            return event

        await app(scope, reading, keep)
        start, body = events
        if not asked and start["status"] == 200:
            raw = json.dumps(change(scope["path"], json.loads(body["body"]))).encode()
            kept = [(k, v) for k, v in start["headers"] if k != b"content-length"]
            start = {**start, "headers": [*kept, (b"content-length", str(len(raw)).encode())]}
            body = {**body, "body": raw}
        await send(start)
        await send(body)

    return wrapped
