"""The default engine: the trainer's own weights, one KV slot per live episode, no server.

A group's prompt is prefilled once, an episode's history never again. Requests are drawn with their
own counter-based uniforms, so the tokens of a request depend on its seed and history and on nothing
else that happens to be in the batch.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from turnwise.agents.engines import functional
from turnwise.agents.engines.base import (
    EngineStats,
    Finish,
    GenOutput,
    GenRequest,
    PromptTooLong,
    ScoreOutput,
    ScoreRequest,
)
from turnwise.agents.engines.recompute import Recompute
from turnwise.agents.engines.sampling import sample
from turnwise.agents.engines.slab import Slab


@dataclass(slots=True, eq=False)
class _Session:
    """One episode's place in the engine."""

    slot: int = -1
    ids: list[int] = field(default_factory=list)
    """Tokens whose keys and values the slot holds."""
    request: GenRequest | None = None
    pending: list[int] = field(default_factory=list)
    """Tokens still to be fed before the next one can be drawn."""
    out: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    spans: list[tuple[int, int, int]] = field(default_factory=list)

    @property
    def asked(self) -> GenRequest:
        """The request in flight."""
        assert self.request is not None
        return self.request


class EmbeddedEngine:
    """Continuous batching over a KV slab; see `turnwise.agents.engines.base.Engine`.

    Args:
        model: a Hugging Face causal model. Known architectures run on the functional forward once
            it has proved itself equal to the model; others run on the model, without a cache.
        slots: episodes that keep their cache at once. More sessions than slots work, and the least
            recently used idle ones are prefilled again.
        max_len: longest history in tokens, prompt and actions together.
        prefill_share: waiting sessions are prefilled once they are this share of all busy ones.

    Raises:
        ValueError: the model reads the beginning of sequences of `max_len` otherwise than of short
            ones.
    """

    capabilities = frozenset({"kv_sessions", "score_topk", "score_temperature"})

    def __init__(
        self, model: nn.Module, *, slots: int = 64, max_len: int = 1024, prefill_share: float = 0.25
    ) -> None:
        functional.require_fixed_positions(model, max_len)
        self.model, self.max_len, self.version = model, max_len, 0
        self.stats = EngineStats()
        self.cache = _make_cache(model, slots, max_len)
        self.prefill_share = prefill_share
        self._free = list(range(slots))  # a heap: low slots first, whatever was freed before
        self._sessions: OrderedDict[str, _Session] = OrderedDict()
        self._waiting: list[_Session] = []
        self._decoding: list[_Session] = []
        self._unclaimed: list[GenOutput] = []

    def submit(self, request: GenRequest) -> None:
        """Queue a request. Raises PromptTooLong when nothing could be sampled after the prompt."""
        length = len(request.token_ids)
        if not 0 < length < self.max_len:
            raise PromptTooLong(
                f"a prompt of {length} tokens does not fit: 1 to {self.max_len - 1} tokens are "
                "possible; raise max_len or shorten the history"
            )
        session = self._sessions.setdefault(request.session, _Session())
        if session.request is not None:
            raise ValueError(f"session {request.session!r} has a request in flight already")
        session.request = request
        session.out, session.logprobs, session.spans = [], [], []
        self._waiting.append(session)

    def poll(self) -> list[GenOutput]:
        """Prefill what waits if that is worth a step, else draw one token for every live row."""
        unclaimed, self._unclaimed = self._unclaimed, []
        return unclaimed + self._advance()

    def _advance(self) -> list[GenOutput]:
        ready = self._admissible()
        if ready and ready >= self.prefill_share * (ready + len(self._decoding)):
            return self._prefill()
        return self._decode() if self._decoding else []

    def generate(self, requests: Sequence[GenRequest]) -> list[GenOutput]:
        """Run requests to their end, whatever else is in flight, and return them in order."""
        for request in requests:
            self.submit(request)
        wanted = {request.session for request in requests}
        done: dict[str, GenOutput] = {}
        while len(done) < len(wanted):
            for output in self._advance():
                if output.session in wanted:
                    done[output.session] = output
                else:
                    self._unclaimed.append(output)
        return [done[request.session] for request in requests]

    @torch.no_grad()
    def score(self, requests: Sequence[ScoreRequest]) -> list[ScoreOutput]:
        """Score one request per forward pass of the Hugging Face model itself."""
        return [self._score(request) for request in requests]

    def update_weights(self, source: Any, version: int) -> None:
        """Stamp `version` and forget every key and value, those of requests in flight included.

        The weights are the trainer's own, so `source` is None; a state dict is loaded if given.
        Requests in flight are prefilled again and go on under the new weights.
        """
        if source is not None:
            functional.base_model(self.model).load_state_dict(source)
        self.version = version
        for session in self._sessions.values():
            self._release(session)
        self._waiting += self._decoding
        self._decoding = []

    def end_session(self, session: str) -> None:
        """Free the slot; a request in flight is dropped."""
        state = self._sessions.pop(session, None)
        if state is None:
            return
        self._release(state)
        for queue in (self._waiting, self._decoding):
            if state in queue:
                queue.remove(state)

    # -- prefill -------------------------------------------------------------------------------

    def _admissible(self) -> int:
        """How many waiting sessions a prefill could take: those with a slot, or a slot to get."""
        if len(self._sessions) <= len(self._free) + self._held():
            return len(self._waiting)
        seated = sum(session.slot >= 0 for session in self._waiting)
        idle = sum(s.slot >= 0 and s.request is None for s in self._sessions.values())
        return seated + min(len(self._waiting) - seated, len(self._free) + idle)

    def _held(self) -> int:
        return len(self.cache.lengths) - len(self._free)

    def _prefill(self) -> list[GenOutput]:
        admitted = [session for session in self._waiting if self._admit(session)]
        self._waiting = [session for session in self._waiting if session not in admitted]
        finished: list[GenOutput] = []
        for batch in _similar_lengths(self._share_prompts(admitted)):
            leaders = [twins[0] for twins in batch]
            logits = self.cache.extend([s.slot for s in leaders], [s.pending for s in leaders])
            self.stats.prefill_steps += 1
            self.stats.prefilled_tokens += sum(len(s.pending) for s in leaders)
            rows = [i for i, twins in enumerate(batch) for _ in twins]
            for twins in batch:
                self._settle(twins)
            members = [session for twins in batch for session in twins]
            finished += self._draw(members, logits[rows] if len(rows) > len(leaders) else logits)
        return finished

    def _admit(self, session: _Session) -> bool:
        """Give the session a slot and find which of its tokens are new."""
        if session.slot < 0:
            if not self._free and not self._evict():
                return False
            session.slot, session.ids = heapq.heappop(self._free), []
        assert session.request is not None
        ids = [*session.request.token_ids, *session.out]
        keep = _common_prefix(session.ids, ids[:-1])
        self.cache.lengths[session.slot] = keep
        session.ids, session.pending = ids[:keep], ids[keep:]
        return True

    def _share_prompts(self, sessions: list[_Session]) -> list[list[_Session]]:
        """Group sessions that start from nothing with the same tokens; each group pays once."""
        groups: dict[object, list[_Session]] = {}
        for session in sessions:
            key = session.slot if session.ids else tuple(session.pending)
            groups.setdefault(key, []).append(session)
        return list(groups.values())

    def _settle(self, twins: list[_Session]) -> None:
        leader, others = twins[0], twins[1:]
        length = len(leader.ids) + len(leader.pending)
        if others:
            self.cache.copy_prefix(leader.slot, [s.slot for s in others], length)
            self.stats.shared_tokens += length * len(others)
        for session in twins:
            session.ids += session.pending
            session.pending = []

    def _evict(self) -> bool:
        idle = next((s for s in self._sessions.values() if s.slot >= 0 and s.request is None), None)
        if idle is None:
            return False
        self._release(idle)
        self.stats.evictions += 1
        return True

    def _release(self, session: _Session) -> None:
        if session.slot >= 0:
            heapq.heappush(self._free, session.slot)
        session.slot, session.ids = -1, []

    # -- decode --------------------------------------------------------------------------------

    def _decode(self) -> list[GenOutput]:
        live = sorted(self._decoding, key=lambda session: session.slot)
        self._decoding = []
        logits = self.cache.extend([s.slot for s in live], [s.pending for s in live])
        self.stats.decode_steps += 1
        self.stats.decoded_tokens += len(live)
        for session in live:
            session.ids += session.pending
            session.pending = []
        return self._draw(live, logits)

    def _draw(self, sessions: list[_Session], logits: Tensor) -> list[GenOutput]:
        """Sample one token per session, then finish it or leave it to the next decode."""
        tokens, logprobs = sample(
            logits,
            [s.asked.sampling.temperature for s in sessions],
            [s.asked.seed for s in sessions],
            [len(s.out) for s in sessions],
        )
        finished = []
        for session, token, logprob in zip(sessions, tokens, logprobs, strict=True):
            session.out.append(token)
            session.logprobs.append(logprob)
            _stamp(session.spans, self.version)
            finish = _finish(session, token, self.max_len)
            if finish is None:
                session.pending = [token]
                self._decoding.append(session)
            else:
                finished.append(self._output(session, finish))
        return finished

    def _output(self, session: _Session, finish: Finish) -> GenOutput:
        request, session.request = session.asked, None
        self._sessions.move_to_end(request.session)
        return GenOutput(
            request.session,
            tuple(session.out),
            tuple(session.logprobs),
            finish,
            tuple(session.spans),
        )

    def _score(self, request: ScoreRequest) -> ScoreOutput:
        if not 0 < request.start < len(request.token_ids):
            raise PromptTooLong(
                f"start must lie in 1..{len(request.token_ids) - 1}, got {request.start}: the "
                "first token has no predecessor to be scored from"
            )
        device = next(self.model.parameters()).device
        ids = torch.tensor([list(request.token_ids)], device=device)
        logits = self.model(input_ids=ids).logits[0, request.start - 1 : -1].float()
        logprobs = torch.log_softmax(logits / request.temperature, -1)
        chosen = logprobs.gather(-1, ids[0, request.start :, None])[:, 0]
        if not request.topk:
            return ScoreOutput(tuple(chosen.tolist()))
        top = logprobs.topk(request.topk, -1)
        return ScoreOutput(
            tuple(chosen.tolist()),
            tuple(map(tuple, top.indices.tolist())),
            tuple(map(tuple, top.values.tolist())),
        )


def _make_cache(model: nn.Module, slots: int, max_len: int) -> Slab | Recompute:
    if functional.supported(model):
        decoder = functional.Decoder(model, max_len)
        try:
            functional.prove(model, decoder)
        except functional.NotEquivalent:
            return Recompute(model, slots)
        return Slab(decoder, slots, max_len)
    return Recompute(model, slots)


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    if a == b[: len(a)]:
        return len(a)
    return next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )


def _similar_lengths(groups: list[list[_Session]]) -> list[list[list[_Session]]]:
    """Split so that padding at most doubles the work of a batch."""
    buckets: dict[int, list[list[_Session]]] = {}
    for twins in sorted(groups, key=lambda twins: twins[0].slot):
        buckets.setdefault(len(twins[0].pending).bit_length(), []).append(twins)
    return list(buckets.values())


def _finish(session: _Session, token: int, max_len: int) -> Finish | None:
    sampling = session.asked.sampling
    if token in sampling.stop_ids:
        return "stop"
    full = len(session.asked.token_ids) + len(session.out) >= max_len
    return "length" if full or len(session.out) >= sampling.max_tokens else None


def _stamp(spans: list[tuple[int, int, int]], version: int) -> None:
    if spans and spans[-1][0] == version:
        spans[-1] = (version, spans[-1][1], spans[-1][2] + 1)
    else:
        end = spans[-1][2] if spans else 0
        spans.append((version, end, end + 1))
