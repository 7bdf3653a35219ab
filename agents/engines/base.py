"""What every engine promises: token ids in, token ids out, and one log-probability convention.

    logprob = log_softmax(logits.float() / T)[token]        over the full vocabulary, in nats

At T = 0 (greedy) the convention is T = 1. Nothing else may shape the distribution that is trained
on: no top-p, no top-k, no penalties; an engine that is told otherwise says so in `exact`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

Finish = Literal["stop", "length", "abort"]
"""Why a generation ended."""


class EngineError(RuntimeError):
    """The engine failed, not the agent: the episode is masked and retried."""

    sessions: frozenset[str] | None = None
    """Whose requests are lost; None where all in flight are."""


class ServerUnfit(ValueError):
    """A server cannot be trained with as it is; the message says what to change."""


class PromptTooLong(ValueError):
    """A request does not fit the engine's context, or is empty. Nothing was generated."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to draw tokens. Anything but `temperature` would change what the trainer must score."""

    max_tokens: int = 64
    temperature: float = 1.0
    """0 is greedy; logprobs are then those of T = 1."""
    stop_ids: tuple[int, ...] = ()
    """Generation ends after the first of these; it is part of the output, with its logprob."""

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, got {self.max_tokens}")
        if self.temperature < 0:
            raise ValueError(f"temperature must be >= 0 (0 is greedy), got {self.temperature}")


@dataclass(frozen=True, slots=True)
class GenRequest:
    """Sample a continuation of `token_ids`. The session keeps its KV cache between requests.

    The cache is matched by token ids, never by the session's name alone, so a session whose
    history was rewritten is simply prefilled from the first token that differs.
    """

    session: str
    token_ids: Sequence[int]
    sampling: Sampling
    seed: int = 0
    """Draw t uses the uniform number f(seed, t): the same tokens in any batch, at any time."""


@dataclass(frozen=True, slots=True)
class GenOutput:
    """What was sampled, in the order of sampling."""

    session: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    """One per token, nats, the stop token included."""
    finish: Finish
    versions: tuple[tuple[int, int, int], ...] = ()
    """(policy version, start, end) spans that cover [0, len(token_ids)) without gaps."""
    exact: bool = True
    """False when the tokens were not drawn from log_softmax(logits / T) alone."""


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """Log-probabilities of `token_ids[start:]` given what precedes each of them."""

    token_ids: Sequence[int]
    start: int = 1
    topk: int = 0
    """Also return the k likeliest tokens at each position."""
    temperature: float = 1.0


@dataclass(frozen=True, slots=True)
class ScoreOutput:
    """Row i is about token `start + i`."""

    logprobs: tuple[float, ...]
    topk_ids: tuple[tuple[int, ...], ...] = ()
    topk_logprobs: tuple[tuple[float, ...], ...] = ()


@runtime_checkable
class Engine(Protocol):
    """Samples and scores tokens. `submit` and `poll` never wait for an environment."""

    capabilities: frozenset[str]
    max_len: int

    @property
    def version(self) -> int:
        """Of the weights that it samples with."""

    def submit(self, request: GenRequest) -> None:
        """Queue a request; its output comes from a later `poll`.

        Raises:
            PromptTooLong: the prompt is empty, or longer than `max_len` - 1 tokens.
        """

    def poll(self) -> list[GenOutput]:
        """Do a bounded piece of work and return what finished, possibly nothing.

        Raises:
            EngineError: requests in flight are lost: those of its `sessions`, or all of them.
        """

    def score(self, requests: Sequence[ScoreRequest]) -> list[ScoreOutput]:
        """Score given tokens in one pass each."""

    def update_weights(self, source: Any, version: int) -> None:
        """Take new weights, invalidate every cached key and value, stamp the version."""

    def end_session(self, session: str) -> None:
        """Free what the session holds. Unknown sessions are ignored."""


@dataclass(slots=True)
class EngineStats:
    """What an engine did since it was made; `prefilled / unique` shows work done twice."""

    prefilled_tokens: int = 0
    shared_tokens: int = 0
    decoded_tokens: int = 0
    decode_steps: int = 0
    prefill_steps: int = 0
    evictions: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
