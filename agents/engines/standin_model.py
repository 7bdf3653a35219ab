"""The model inside the stand-in: the embedded engine, with the habits of vLLM around it.

A prefix is kept across requests that carry the same salt, and stays as it is when weights change
until the cache is reset. While paused, requests wait.
"""

from __future__ import annotations

import asyncio
import copy
import json
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from turnwise.agents.engines.base import GenOutput, GenRequest, Sampling
from turnwise.agents.engines.embedded import EmbeddedEngine
from turnwise.agents.engines.sampling import sample

Load = Callable[[nn.Module, Sequence[Path]], None]
"""Put the tensors of some files into a model."""


def load_files(model: nn.Module, files: Sequence[Path]) -> None:
    """Load safetensors files, tied tensors left out of them or not."""
    from safetensors.torch import load_file

    for path in files:
        model.load_state_dict(load_file(path), strict=False)


@dataclass(frozen=True)
class Shape:
    """What else than the temperature shapes the distribution."""

    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0

    @classmethod
    def of(cls, asked: Mapping[str, Any]) -> Shape:
        """Return what a request says of it."""
        return cls(**{f.name: asked[f.name] for f in fields(cls) if f.name in asked})

    @property
    def plain(self) -> bool:
        """Nothing does."""
        return replace(self, top_k=max(self.top_k, 0)) == Shape()

    def penalised(self, logits: Tensor, prompt: Sequence[int], drawn: Sequence[int]) -> Tensor:
        """Return `logits` [V] less what there already was."""
        seen = torch.zeros(len(logits), dtype=torch.bool)
        seen[[*prompt, *drawn]] = True
        factor = torch.where(logits > 0, 1 / self.repetition_penalty, self.repetition_penalty)
        counts = torch.bincount(torch.tensor(drawn, dtype=torch.int64), minlength=len(logits))
        less = self.presence_penalty * (counts > 0) + self.frequency_penalty * counts
        return torch.where(seen, logits * factor, logits) - less

    def kept(self, logits: Tensor) -> Tensor:
        """Return `logits` [V] with minus infinity where nothing may be drawn."""
        ordered, ids = logits.sort(descending=True)
        probs = ordered.softmax(-1)
        out = probs < self.min_p * probs[0]
        if self.top_p < 1:
            out |= probs.cumsum(-1) - probs >= self.top_p
        if self.top_k > 0:
            out |= torch.arange(len(ids)) >= self.top_k
        return logits.masked_fill(torch.zeros_like(out).scatter(0, ids, out), -math.inf)


@dataclass(eq=False)
class Weights:
    """One set of weights with its engine and prefix cache: the base model, or an adapted one."""

    model: nn.Module
    engine: EmbeddedEngine
    prefixes: OrderedDict[str, tuple[str, list[int]]] = field(default_factory=OrderedDict)
    """Idle session of the engine -> (salt, ids that it has seen); the oldest one first."""
    waiting: dict[str, asyncio.Future[GenOutput]] = field(default_factory=dict)
    again: Path | None = None
    """The folder of an adapter that was loaded in place."""


class ServedModel:
    """Generates and scores for several clients at once, on the loop that asks first."""

    def __init__(self, model: nn.Module, *, max_len: int, slots: int, load: Load) -> None:
        self.max_len, self.slots, self.load = max_len, slots, load
        self.vocab = int(model.get_input_embeddings().weight.shape[0])  # type: ignore[operator]
        self.base = self._weights(model.eval().requires_grad_(False))
        self.adapters: dict[str, Weights] = {}
        self.retired: list[Weights] = []
        self.versions = ["default"]
        self.resumed, self.admitting = threading.Event(), threading.Event()
        self.resume()
        self._count = 0
        self._ticking: asyncio.Task[None] | None = None

    def _weights(self, model: nn.Module) -> Weights:
        return Weights(model, EmbeddedEngine(model, slots=self.slots, max_len=self.max_len))

    async def draw(
        self, which: Weights, ids: list[int], sampling: Sampling, seed: int, salt: str
    ) -> GenOutput:
        """Return a continuation; as vLLM, start from whatever prefix is kept under `salt`."""
        await _until(self.admitting)
        session = self._session(which, ids, salt)
        request = GenRequest(session, ids, sampling, seed)
        which.engine.submit(request)
        future = which.waiting[session] = asyncio.get_running_loop().create_future()
        if self._ticking is None or self._ticking.done():
            self._ticking = asyncio.create_task(self._tick())
        output = await future
        which.prefixes[session] = salt, [*ids, *output.token_ids]
        return output

    async def _tick(self) -> None:
        while busy := [w for w in self._every() if w.waiting]:
            await _until(self.resumed)
            for which in busy:
                self._reread(which)
                for output in which.engine.poll():
                    which.waiting.pop(output.session).set_result(output)
            await asyncio.sleep(0)

    def _session(self, which: Weights, ids: list[int], salt: str) -> str:
        """Return the idle session with the longest common prefix, or a new one."""
        same = {name: seen for name, (salted, seen) in which.prefixes.items() if salted == salt}
        best = max(same, key=lambda name: _common(same[name], ids), default="")
        if best and _common(same[best], ids):
            del which.prefixes[best]
            return best
        if len(which.prefixes) >= self.slots:
            which.engine.end_session(which.prefixes.popitem(last=False)[0])
        self._count += 1
        return f"s{self._count}"

    async def draw_shaped(
        self, which: Weights, ids: list[int], sampling: Sampling, seed: int, shape: Shape
    ) -> GenOutput:
        """Draw from a distribution that `shape` has cut; its log-probabilities are renormalised."""
        await _until(self.admitting)
        await _until(self.resumed)
        drawn: list[int] = []
        logprobs: list[float] = []
        while len(drawn) < sampling.max_tokens and not {*drawn[-1:]} & {*sampling.stop_ids}:
            scale = sampling.temperature or 1.0
            row = shape.penalised(self.logits(which, [*ids, *drawn])[-1], ids, drawn)
            row = shape.kept(row / scale)
            (token,), (logprob,) = sample(row[None], [1.0], [seed], [len(drawn)])
            drawn.append(token)
            logprobs.append(logprob)
        finish: Any = "stop" if drawn[-1] in sampling.stop_ids else "length"
        spans = ((which.engine.version, 0, len(drawn)),)
        return GenOutput("", tuple(drawn), tuple(logprobs), finish, spans, exact=False)

    @torch.no_grad()
    def logits(self, which: Weights, ids: Sequence[int]) -> Tensor:
        """Return float32 [len(ids), V] by a whole forward pass: no cache is read."""
        self._reread(which)
        return which.model(input_ids=torch.tensor([list(ids)])).logits[0].float()

    def chosen(
        self, which: Weights, ids: list[int], drawn: Sequence[int], *, normed: bool
    ) -> tuple[float, ...]:
        """Return what vLLM's raw modes say of drawn tokens: T = 1, whatever they were drawn at."""
        rows = self.logits(which, [*ids, *drawn])[len(ids) - 1 : -1]
        rows = rows.log_softmax(-1) if normed else rows
        return tuple(rows.gather(-1, torch.tensor(drawn)[:, None])[:, 0].tolist())

    def change(self, files: Sequence[Path]) -> None:
        """Load weights, and leave every cached key and value as it is."""
        self.load(self.base.model, files)

    async def drain(self) -> None:
        """Admit nothing new and end what was begun; then draw nothing."""
        self.admitting.clear()
        self.resumed.set()
        while any(which.waiting for which in self._every()):
            await asyncio.sleep(0)
        self.resumed.clear()

    def resume(self) -> None:
        """Draw, and admit, again."""
        self.admitting.set()
        self.resumed.set()

    @torch.no_grad()
    def lose(self) -> None:
        """Lose all weights; buffers are kept elsewhere."""
        for weight in self.base.model.parameters():
            weight.zero_()

    def stamp(self, version: str) -> None:
        """Name the weights; tokens that are drawn from now on carry it."""
        self.versions.append(version)
        for which in self._every():
            which.engine.version = len(self.versions) - 1

    def reset(self) -> None:
        """Forget the prefix cache; what is being generated is prefilled again."""
        for which in self._every():
            which.prefixes.clear()
            which.engine.update_weights(None, which.engine.version)

    def adapt(self, name: str, folder: Path, *, again: bool) -> None:
        """Load an adapter beside the base model, in place of one with the same name.

        Args:
            again: read the folder again before every forward pass.
        """
        if name not in self.adapters:
            self.adapters[name] = self._weights(copy.deepcopy(self.base.model))
            self.adapters[name].engine.version = len(self.versions) - 1
        self._merge(self.adapters[name], folder)
        self.adapters[name].again = folder if again else None

    def retire(self, name: str) -> None:
        """Forget an adapter's name, and itself once nothing is drawn by it any more."""
        busy = [*self.retired, self.adapters.pop(name)]
        self.retired = [which for which in busy if which.waiting]

    def _every(self) -> list[Weights]:
        return [self.base, *self.adapters.values(), *self.retired]

    def _merge(self, which: Weights, folder: Path) -> None:
        which.model.load_state_dict(self.base.model.state_dict())
        merge_lora(which.model, folder)

    def _reread(self, which: Weights) -> None:
        if which.again is not None:
            self._merge(which, which.again)

    def of(self, name: str) -> Weights:
        """Return the weights behind a model's name."""
        return self.adapters.get(name, self.base)


async def _until(event: threading.Event) -> None:
    """Wait for what another loop may set."""
    while not event.is_set():
        await asyncio.sleep(0.002)


@torch.no_grad()
def merge_lora(model: nn.Module, folder: Path) -> None:
    """Add an adapter that peft saved: W <- W + (alpha / r) B A."""
    from safetensors.torch import load_file

    config = json.loads((folder / "adapter_config.json").read_text())
    scale = config["lora_alpha"] / config["r"]
    tensors = load_file(folder / "adapter_model.safetensors")
    for name, a in tensors.items():
        if name.endswith(".lora_A.weight"):
            layer = name.removesuffix(".lora_A.weight")
            b = tensors[f"{layer}.lora_B.weight"]
            weight: Any = model.get_submodule(layer.removeprefix("base_model.model.")).weight
            weight += scale * (b @ a)


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    return next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )
