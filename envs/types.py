"""The nouns. A trajectory travels Task -> Turn -> Segment -> Episode -> Group -> Batch -> loss.

Standard library only: a record can be read, and an episode understood, without numpy or torch.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, NotRequired, Self, TypedDict


class Message(TypedDict):
    """One chat message, in the form that every Hugging Face chat template takes."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str
    tool_calls: NotRequired[list[dict[str, Any]]]


class Outcome(StrEnum):
    """How an episode ended. Only `OK`, `TRUNCATED` and `AGENT_ERROR` are trained on."""

    OK = "ok"
    """The environment ended it: solved, failed or submitted."""
    TRUNCATED = "truncated"
    """A turn, token or time budget ran out."""
    AGENT_ERROR = "agent_error"
    """The agent used up its budget of malformed calls."""
    ENV_ERROR = "env_error"
    """The environment raised. Masked, never a reward of zero."""
    INFRA_ERROR = "infra_error"
    """A sandbox, server or deadline failed. Masked, never a reward of zero."""
    JUDGE_ERROR = "judge_error"
    """The grader failed or returned a number that is not finite. Masked."""

    @property
    def trainable(self) -> bool:
        """Whether the episode's reward says something about the agent."""
        return self in (Outcome.OK, Outcome.TRUNCATED, Outcome.AGENT_ERROR)


class Stop(StrEnum):
    """Why no further turn was played."""

    TERMINATED = "terminated"
    TRUNCATED = "truncated"
    MAX_TURNS = "max_turns"
    MAX_TOKENS = "max_tokens"
    DEADLINE = "deadline"
    ERROR = "error"


def canonical_json(value: Any) -> str:
    """Return the one JSON text of `value`: sorted keys, no spaces, no NaN.

    Raises:
        ValueError: `value` holds NaN or an infinity.
        TypeError: `value` holds something that JSON cannot hold.
    """
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def digest(value: Any, length: int = 16) -> str:
    """Return the first `length` hex digits of the SHA-256 of `value`'s canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:length]


@dataclass(frozen=True, kw_only=True)
class Task:
    """What to solve. Subclass it with typed fields; identity is a hash of them all.

    Example:
        `@dataclass(frozen=True, kw_only=True) class Hunt(Task): seed: int; depth: int`
    """

    hidden: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """For the grader alone; never rendered to the agent."""

    def __new__(cls, *_: Any, **__: Any) -> Self:
        """Refuse a subclass whose fields are none because it is no dataclass."""
        if "__dataclass_fields__" not in vars(cls) and (names := _annotated(cls)):
            raise TypeError(
                f"{cls.__name__} declares {', '.join(names)} and is no dataclass; "
                "write @dataclass(frozen=True, kw_only=True) above it"
            )
        return object.__new__(cls)

    @property
    def key(self) -> str:
        """16 hex digits that name this task, the same in every process.

        Raises:
            TypeError: a field holds what JSON cannot give back; the message names it.
        """
        if (key := vars(self).get("_key")) is None:
            fields = self.to_json()
            for name, value in fields.items():
                given = getattr(self, name, value)
                _require_json(f"{type(self).__name__}.{name}", value, given)
            key = digest([type(self).__name__, fields])
            object.__setattr__(self, "_key", key)
        return str(key)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain JSON values; `type(task)(**task.to_json())` gives it back."""
        return dataclasses.asdict(self)


def _annotated(cls: type) -> list[str]:
    own = vars(cls).get("__annotations__", {})
    return [name for name, kind in own.items() if "ClassVar" not in str(kind)]


def _require_json(where: str, value: Any, given: Any = None) -> None:
    """Refuse what does not come back equal from JSON, tuples aside: `Task` classes restore them."""
    if dataclasses.is_dataclass(given):
        value = given  # which JSON would give back as a dict
    if isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _require_json(f"{where}[{index}]", item)
    elif isinstance(value, Mapping):
        for name, item in value.items():
            if not isinstance(name, str):
                raise TypeError(f"{where} has the key {name!r}; JSON has keys of type str only")
            _require_json(f"{where}[{name!r}]", item)
    elif not isinstance(value, str | int | None) and not _is_finite(value):
        raise TypeError(
            f"{where} holds {value!r:.60}, a {type(value).__name__} that JSON cannot give back; "
            "a task holds str, bool, None, int, finite float, and lists, tuples and dicts of them"
        )


def _is_finite(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One exchange: what the agent newly read, and what it did.

    `context_ids` holds only the tokens *added* since the last turn, so that the token stream of
    an episode is append-only and nothing is ever tokenized twice.

    Raises:
        ValueError: lengths of `action_ids` and `logprobs` differ, or a logprob or the reward is
            not finite. A turn that cannot be trained on is refused where it is made.
    """

    context_ids: tuple[int, ...] = ()
    action_ids: tuple[int, ...] = ()
    """Exactly what the engine sampled, the stop token included if it was sampled."""
    logprobs: tuple[float, ...] = ()
    """log pi_sampler of each action token, nats: log_softmax(logits / T), full vocabulary."""
    observation: str = ""
    """What the agent read before it acted."""
    action: str = ""
    """The action as text, as the environment received it."""
    calls: tuple[dict[str, Any], ...] = ()
    """Parsed tool calls as plain dicts (`ToolCall.to_json`)."""
    token_calls: tuple[dict[str, Any], ...] = ()
    """The calls as they were sampled, where the text alone would be read as others: a tag that was
    spelled out, and not sampled as its token, is no tag. What a replay runs."""
    reward: float = 0.0
    rewards: Mapping[str, float] = field(default_factory=dict)
    policy_version: int = 0
    """Of the weights that sampled its last token."""
    versions: tuple[tuple[int, int, int], ...] = ()
    """(policy version, start, end) of runs of action tokens, where the weights changed amid the
    turn; empty where `policy_version` sampled them all."""
    executor: Literal["student", "teacher", "expert"] = "student"
    temperature: float = 1.0
    finish: Literal["stop", "length", "abort"] = "stop"
    state_before: str = ""
    """Canonical state hash when the agent acted: the anchor of GiGPO and turn-RLOO."""
    state_after: str = ""
    kind: str = ""
    """The situation that the agent acted in, where the environment says (`info["kind"]`): a word
    to split metrics by."""
    env_s: float = 0.0
    policy_s: float = 0.0
    nondet: tuple[Mapping[str, Any], ...] = ()
    """What the environment read from outside while it answered: time, a network (clock.py)."""
    picture: str = ""
    """SHA-256 of what the agent saw before it acted, where a browser drew it; see `blobs`."""
    label: str = ""
    """What the teacher would have done here, as text; where it acted, the action itself."""
    label_ids: tuple[int, ...] = ()
    """Its tokens, by the student's tokenizer."""
    label_error: str = ""
    """Why nothing is to be learnt from the label, or why there is none: `cut`, `no_call`, ..."""

    @property
    def has_label(self) -> bool:
        """Whether there is a label to be learnt from."""
        return bool(self.label_ids) and not self.label_error

    def __post_init__(self) -> None:
        if len(self.action_ids) != len(self.logprobs):
            raise ValueError(
                f"a turn needs one logprob per action token, got {len(self.logprobs)} "
                f"for {len(self.action_ids)} tokens"
            )
        if not all(map(math.isfinite, self.logprobs)):
            raise ValueError(
                "the sampler returned a non-finite logprob; the turn cannot be used: are the "
                "weights of the model that acts finite?"
            )
        if not math.isfinite(self.reward):
            raise ValueError(f"the reward of a turn must be finite, got {self.reward!r}")
        bounds = [0, *(end for _, _, end in self.versions)]
        if self.versions and (
            [start for _, start, _ in self.versions] != bounds[:-1]
            or bounds[-1] != len(self.action_ids)
        ):
            raise ValueError(
                f"versions must cover the {len(self.action_ids)} action tokens in order, without "
                f"gaps, got {self.versions}"
            )

    @property
    def token_versions(self) -> list[int]:
        """The policy version that sampled each action token."""
        spans = self.versions or ((self.policy_version, 0, len(self.action_ids)),)
        return [version for version, start, end in spans for _ in range(start, end)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One append-only row of tokens. A history rewrite starts another one of the same episode."""

    turns: tuple[Turn, ...]
    inherited_ids: tuple[int, ...] = ()
    """After a rewrite: the rewritten history that this segment starts from, never trained on."""
    sealed: str = field(default="", compare=False, repr=False)
    """`sha` as the ledger computed it while the tokens were sampled; empty without a ledger."""

    @property
    def ids(self) -> list[int]:
        """All tokens in order, context and action interleaved."""
        ids = list(self.inherited_ids)
        for turn in self.turns:
            ids += turn.context_ids
            ids += turn.action_ids
        return ids

    @property
    def sha(self) -> str:
        """16 hex digits over ids and the loss mask; the trainer proves it before each step."""
        mask = [0] * len(self.inherited_ids)
        for turn in self.turns:
            mask += [0] * len(turn.context_ids) + [1] * len(turn.action_ids)
        return digest([self.ids, mask])


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """One finished attempt at one task; also what a failed attempt becomes."""

    id: str
    env_id: str
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)
    task: Task
    group: str = ""
    replica: int = 0
    env_seed: int = 0
    policy_seed: int = 0
    nondet: tuple[Mapping[str, Any], ...] = ()
    """What the environment read from outside while it was reset; those of a turn are its own."""
    segments: tuple[Segment, ...] = ()
    outcome: Outcome = Outcome.OK
    stop: Stop = Stop.TERMINATED
    success: bool = False
    error: str = ""
    """One line on what failed; empty unless the outcome is an error."""
    final_observation: str = ""
    final_picture: str = ""
    """SHA-256 of what was seen at the end, where a browser drew it."""
    blobs: Mapping[str, bytes] = field(default_factory=dict, compare=False, repr=False)
    """The pictures by their digests. A record keeps them beside itself, and finds them there."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    attempts: int = 1
    wall_s: float = 0.0
    sandbox: str = ""
    """The backend that ran its commands: `unsafe` is said, too; empty where no box was used."""

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The turns of all segments in the order in which they were played."""
        return tuple(turn for segment in self.segments for turn in segment.turns)

    @property
    def reward(self) -> float:
        """The undiscounted sum of turn rewards."""
        return math.fsum(turn.reward for turn in self.turns)

    @property
    def trainable(self) -> bool:
        """Whether advantages may use this episode: a trainable outcome and at least one turn."""
        return self.outcome.trainable and any(turn.action_ids for turn in self.turns)


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Attempts at one task from the same initial state; their returns are each other's baseline."""

    task: Task
    episodes: tuple[Episode, ...]

    @property
    def trainable(self) -> tuple[Episode, ...]:
        """The episodes that advantages may use: a crashed attempt leaves the group shorter."""
        return tuple(episode for episode in self.episodes if episode.trainable)
