"""A stand-in for vLLM: its routes, its answers and its quirks over the embedded engine.

An ASGI application without a framework. Fast tests talk to it in this process
(`httpx.ASGITransport`) or on a loopback port (`served`); the same contract runs against a real
vLLM, which keeps the two from drifting apart. Same seed, same tokens as the embedded engine.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from torch import nn

from turnwise.agents.engines import standin_generate, standin_sleep, standin_weights
from turnwise.agents.engines.standin_chat import chat
from turnwise.agents.engines.standin_generate import Refusal
from turnwise.agents.engines.standin_model import Load, ServedModel, Weights, load_files

Route = Callable[["StandIn", Mapping[str, Any]], Awaitable[dict[str, Any] | str]]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What vLLM takes as flags and environment."""

    served: str = "policy"
    root: str = "standin-model"
    """Names the weights that it was started with, as a folder would."""
    version: str = "0.32.0"
    api_key: str = ""
    max_model_len: int = 512
    max_logprobs: int = 20
    max_num_seqs: int = 64
    max_lora_rank: int = 8
    """`--enable-lora --max-lora-rank`; 0 leaves the routes for adapters out."""
    processed: bool = True
    """`--logprobs-mode processed_logprobs`; off is vLLM's default, raw."""
    scale_out: bool = True
    dev_mode: bool = True
    sleep_mode: bool = True
    """`--enable-sleep-mode`; off, a server says that it sleeps and frees nothing."""
    device: str = "cuda"
    """As it says; on a "cpu" there is no sleep mode."""
    logits: bool = False
    """`--logprobs-mode raw_logits`: what is called a log-probability is none."""
    defaults: Mapping[str, float] = field(default_factory=dict)
    """As a model's generation_config.json may set them, for requests that do not: see `Shape`."""


class StandIn:
    """The application.

    Args:
        model: a Hugging Face causal model of its own: updates load into it.
        tokenizer: for text; None leaves text empty.
        load: how files get into the model.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any = None,
        settings: Settings | None = None,
        *,
        load: Load = load_files,
    ) -> None:
        self.settings = settings or Settings()
        most, slots = self.settings.max_model_len, self.settings.max_num_seqs
        self.served = ServedModel(model, max_len=most, slots=slots, load=load)
        self.tokenizer, self.updating = tokenizer, False
        self.own = {k: v.clone() for k, v in model.state_dict().items()}
        self.asleep: set[str] = set()
        self.root: Path | None = None
        config: Any = model.config
        eos = config.eos_token_id
        self.eos: int | None = eos[0] if isinstance(eos, list) else eos

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one HTTP request."""
        if scope["type"] != "http":
            return
        try:
            status = 200
            answer: dict[str, Any] | str = await self._answer(scope, await _body(receive))
        except Refusal as refusal:
            status = refusal.status
            error = {"message": str(refusal), "type": "Error", "param": None, "code": status}
            answer = {"error": error}
        except (KeyError, TypeError, ValueError, OSError) as error:
            status, answer = 500, {"error": {"message": repr(error), "code": 500}}
        await _reply(send, status, answer)

    async def _answer(self, scope: Any, raw: bytes) -> dict[str, Any] | str:
        self._authorise(scope)
        known = ROUTES | (DEV_ROUTES if self.settings.dev_mode else {})
        route = known.get((scope["method"], scope["path"]))
        if route is None:
            raise Refusal(404, "Not Found")
        try:
            body = json.loads(raw or b"{}")
        except ValueError:
            raise Refusal(400, "the body is not JSON") from None
        return await route(self, {**dict(parse_qsl(scope["query_string"].decode())), **body})

    def _authorise(self, scope: Any) -> None:
        """The key covers what vLLM's does: inference, not the development routes."""
        key = self.settings.api_key
        guarded = scope["path"].startswith(("/v1", "/inference"))
        given = dict(scope["headers"]).get(b"authorization", b"")
        if key and guarded and given != f"Bearer {key}".encode():
            raise Refusal(401, "Unauthorized")

    def weights(self, body: Mapping[str, Any]) -> Weights:
        """Return what a request's model is."""
        name = body.get("model", self.settings.served)
        if name not in (self.settings.served, *self.served.adapters):
            raise Refusal(404, f"The model `{name}` does not exist.")
        return self.served.of(name)

    def prompt(self, body: Mapping[str, Any], field: str) -> list[int]:
        """Return the prompt's ids, checked."""
        ids = body[field]
        if not isinstance(ids, list) or not all(isinstance(i, int) for i in ids) or not ids:
            raise Refusal(400, f"the stand-in takes one list of token ids as {field}")
        if not all(0 <= i < self.served.vocab for i in ids):
            raise Refusal(400, f"Token id {max(ids)} is out of vocabulary")
        if len(ids) >= self.settings.max_model_len:
            raise Refusal(
                400,
                f"This model's maximum context length is {self.settings.max_model_len} tokens. "
                f"However, your request has {len(ids)} input tokens.",
            )
        return ids

    def text(self, ids: Sequence[int]) -> str:
        """Return ids as text."""
        return self.tokenizer.decode(list(ids)) if self.tokenizer is not None else ""


async def _version(app: StandIn, body: Mapping[str, Any]) -> dict[str, Any]:
    return {"version": app.settings.version}


async def _models(app: StandIn, body: Mapping[str, Any]) -> dict[str, Any]:
    base = {"id": app.settings.served, "root": app.settings.root, "parent": None}
    data = [{**base, "object": "model", "max_model_len": app.settings.max_model_len}]
    for name in app.served.adapters:
        more = {"id": name, "root": name, "parent": app.settings.served}
        data.append({**more, "object": "model", "max_model_len": None})
    return {"object": "list", "data": data}


async def _tokenize(app: StandIn, body: Mapping[str, Any]) -> dict[str, Any]:
    if app.tokenizer is None:
        raise Refusal(404, "the stand-in has no tokenizer")
    special = body.get("add_special_tokens", True)
    ids = app.tokenizer.encode(body["prompt"], add_special_tokens=special)
    return {"count": len(ids), "max_model_len": app.settings.max_model_len, "tokens": list(ids)}


ROUTES: dict[tuple[str, str], Route] = {
    ("GET", "/version"): _version,
    ("GET", "/v1/models"): _models,
    ("POST", "/tokenize"): _tokenize,
    ("POST", "/v1/completions"): standin_generate.completions,
    ("POST", "/inference/v1/generate"): standin_generate.scale_out,
    ("POST", "/v1/chat/completions"): chat,
    ("POST", "/v1/load_lora_adapter"): standin_weights.load_lora,
    ("POST", "/v1/unload_lora_adapter"): standin_weights.unload_lora,
}
DEV_ROUTES: dict[tuple[str, str], Route] = {
    ("POST", "/pause"): standin_weights.pause,
    ("POST", "/resume"): standin_weights.resume,
    ("GET", "/is_paused"): standin_weights.is_paused,
    ("POST", "/sleep"): standin_sleep.sleep,
    ("POST", "/wake_up"): standin_sleep.wake_up,
    ("GET", "/is_sleeping"): standin_sleep.is_sleeping,
    ("GET", "/server_info"): standin_sleep.server_info,
    ("POST", "/init_weight_transfer_engine"): standin_weights.initialise,
    ("POST", "/start_weight_update"): standin_weights.start,
    ("POST", "/update_weights"): standin_weights.update,
    ("POST", "/finish_weight_update"): standin_weights.finish,
    ("POST", "/collective_rpc"): standin_weights.collective_rpc,
    ("POST", "/update_weight_version"): standin_weights.name_version,
    ("GET", "/weight_info"): standin_weights.weight_info,
    ("POST", "/reset_prefix_cache"): standin_weights.reset_prefix_cache,
}


async def _body(receive: Any) -> bytes:
    parts, more = [], True
    while more:
        event = await receive()
        parts.append(event.get("body", b""))
        more = event.get("more_body", False)
    return b"".join(parts)


async def _reply(send: Any, status: int, answer: Mapping[str, Any] | str) -> None:
    """Send JSON, or words, which vLLM sends without a content type."""
    words = isinstance(answer, str)
    raw = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
    headers = [] if words else [(b"content-type", b"application/json")]
    headers.append((b"content-length", str(len(raw)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": raw})


@contextlib.contextmanager
def served(app: Any) -> Iterator[str]:
    """Serve an ASGI application on a free loopback port while it lasts; yields its address."""
    import uvicorn

    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    config = uvicorn.Config(
        app, log_level="error", lifespan="off", ws="none", http="h11", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        while not server.started and thread.is_alive():
            time.sleep(0.005)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10.0)
        listener.close()
