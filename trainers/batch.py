"""Episodes to tensors: one append-only row per segment, the prompt of a group held once.

Nothing is padded here. All tokens of a micro-batch lie in one flat row of N; the prompts come
first, each once, then what follows them in every attempt. The losses see only the M trained tokens.

Shape suffixes: N tokens of a micro-batch, G distinct prompts, B rows, M trained tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from turnwise.envs.types import Episode, Segment, Turn, digest
from turnwise.trainers.objective import TokenBatch
from turnwise.trainers.surrogates import Aggregate, Totals


class LedgerMismatch(RuntimeError):
    """The tokens about to be trained on are not the tokens that were sampled."""


@dataclass(frozen=True, slots=True)
class Row:
    """One segment: a prompt that others may share, and what follows it."""

    prompt: tuple[int, ...]
    rest: list[int]
    trained: list[int]
    """Indices into `rest` of the tokens that the loss is about."""
    old: list[float]
    """log pi_sampler of each trained token, nats."""
    turn: list[int]
    """Row of the turn table to which each trained token belongs."""
    temperature: list[float]
    traj: int
    prox: list[float] | None = None
    """The trainer's own log-probabilities before its first step, where they were asked for."""
    advantage: list[float] | None = None
    """Of each trained token, where a teacher has a say in it; else its turn's."""
    direct: list[float] | None = None
    """Factor of the direct loss of each trained token."""
    teacher: list[float] | None = None
    """log T of each trained token, NaN where it is missing."""
    hint: tuple[int, ...] = ()
    """Ids that the teacher alone reads."""
    hint_at: int = 0
    """Where in the prompt they go."""
    version: list[int] = field(default_factory=list)
    """Policy version that sampled each trained token."""
    seen: int | None = None
    """How much of `prompt` precedes `rest`; None is all. Rows that branch off one history at
    different places share it as their prompt, and it is computed once."""

    def __post_init__(self) -> None:
        if self.seen is not None and not 1 <= self.seen <= len(self.prompt):
            raise ValueError(
                f"a row sees 1 to {len(self.prompt)} ids of its prompt, got {self.seen}"
            )
        if self.hint and not 0 <= self.hint_at <= len(self.prompt):
            raise ValueError(
                f"a hint goes to a place from 0 to {len(self.prompt)} of its prompt, got "
                f"{self.hint_at}"
            )

    @property
    def start(self) -> int:
        """Position of the first token of `rest` in its own sequence."""
        return len(self.prompt) if self.seen is None else self.seen

    @property
    def ids(self) -> list[int]:
        """The sequence that the row stands for."""
        return [*self.prompt[: self.start], *self.rest]

    def __len__(self) -> int:
        return len(self.rest)

    def hinted(self) -> Row:
        """Return the row as the teacher reads it: a longer prompt, the same tokens behind it."""
        if not self.hint:
            return self
        if self.seen is not None:
            raise ValueError("a row that branches off a shared history takes no hint")
        front, back = self.prompt[: self.hint_at], self.prompt[self.hint_at :]
        return replace(self, prompt=(*front, *self.hint, *back), hint=(), hint_at=0)


@dataclass(frozen=True, eq=False)
class Packed:
    """A micro-batch as flat tensors; see `turnwise.trainers.scorer.Scorer`."""

    ids_N: Tensor
    """int64: every prompt once, then the rest of every row."""
    positions_N: Tensor
    """int64: position in the token's own sequence."""
    prompt_lengths: list[int]
    rest_lengths: list[int]
    prompt_of_B: Tensor
    """int64 [B]: which prompt a row continues."""
    seen_of_B: list[int]
    """How many tokens of it the row sees."""
    at_M: Tensor
    """int64: index into N of the token *before* each trained one."""
    target_M: Tensor
    temperature_M: Tensor
    tokens: TokenBatch
    rows: Sequence[Row] = field(repr=False)


def student(turn: Turn) -> bool:
    """Train on what the model itself sampled: policy gradients."""
    return turn.executor == "student"


def taught(turn: Turn) -> bool:
    """Train on what somebody else showed: imitation."""
    return turn.executor != "student"


def rows_of(episodes: Iterable[Episode], trained: Callable[[Turn], bool] = student) -> list[Row]:
    """Return a row per segment, in order; turns are numbered through all of them.

    Raises:
        LedgerMismatch: a row's ids or loss mask do not have the hash of the segment, or a segment
            has no prompt.
    """
    rows, turn_index = [], 0
    for traj, episode in enumerate(episodes):
        for segment in episode.segments:
            rows.append(_row(segment, traj, turn_index, trained))
            turn_index += len(segment.turns)
    return rows


def _row(segment: Segment, traj: int, first_turn: int, trained: Callable[[Turn], bool]) -> Row:
    prompt = (*segment.inherited_ids, *segment.turns[0].context_ids)
    if not prompt:
        raise LedgerMismatch("a segment without a prompt: nothing precedes its first action")
    row = Row(prompt, [], [], [], [], [], traj)
    mask = [0] * len(prompt)
    for i, turn in enumerate(segment.turns):
        context = turn.context_ids if i else ()
        row.rest.extend(context)
        if trained(turn):
            start = len(row.rest)
            row.trained.extend(range(start, start + len(turn.action_ids)))
            row.old.extend(turn.logprobs)
            row.turn.extend([first_turn + i] * len(turn.action_ids))
            row.temperature.extend([turn.temperature] * len(turn.action_ids))
            row.version.extend(turn.token_versions)
        row.rest.extend(turn.action_ids)
        mask += [0] * len(context) + [1] * len(turn.action_ids)
    if digest([[*prompt, *row.rest], mask]) != (segment.sealed or segment.sha):
        raise LedgerMismatch("a training row differs from the ledger of its episode")
    return row


def totals_of(rows: Sequence[Row]) -> Totals:
    """Count trained tokens, turns and trajectories: the denominators of the batch."""
    return Totals(
        tokens=sum(len(row.trained) for row in rows),
        turns=len({turn for row in rows for turn in row.turn}),
        trajs=len({row.traj for row in rows if row.trained}),
    )


def micro_batches(rows: Sequence[Row], budget: int) -> Iterator[list[Row]]:
    """Split rows into runs of about `budget` tokens, in their order.

    The rows of one episode stay together, because a loss may look at a whole trajectory. Attempts
    at one task usually do, and then share their prompt.
    """
    batch: list[Row] = []
    prompts: set[tuple[int, ...]] = set()
    size = 0
    for unit in units(rows):
        new = {row.prompt for row in unit} - prompts
        if batch and size + _tokens_in(unit, new) > budget:
            yield batch
            batch, prompts, size = [], set(), 0
            new = {row.prompt for row in unit}
        batch, prompts, size = batch + unit, prompts | new, size + _tokens_in(unit, new)
    if batch:
        yield batch


def _tokens_in(unit: Sequence[Row], prompts: Iterable[tuple[int, ...]]) -> int:
    return sum(map(len, unit)) + sum(map(len, prompts))


def units(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """Yield the rows of each episode."""
    unit: list[Row] = []
    for row in rows:
        if unit and row.traj != unit[-1].traj:
            yield unit
            unit = []
        unit.append(row)
    if unit:
        yield unit


def pack(
    rows: Sequence[Row],
    *,
    advantages: np.ndarray | None = None,
    aggregate: Aggregate,
    totals: Totals,
    share_prompts: bool = True,
    device: torch.device | str = "cpu",
) -> Packed:
    """Lay rows out flat.

    Args:
        advantages: float64 [turns], indexed by `Row.turn`; None gives zeros (imitation).
        aggregate: weight of a token in the mean of the whole batch.
        totals: of the whole batch, not of these rows.
        share_prompts: hold equal prompts once. Off, the same loss costs more: the naive way.
    """
    prompts: dict[object, tuple[int, tuple[int, ...]]] = {}
    keys = [row.prompt if share_prompts else i for i, row in enumerate(rows)]
    for key, row in zip(keys, rows, strict=True):
        prompts.setdefault(key, (len(prompts), row.prompt))
    starts = np.cumsum([0, *(len(prompt) for _, prompt in prompts.values())])
    ids = [i for _, prompt in prompts.values() for i in prompt]
    positions = [p for _, prompt in prompts.values() for p in range(len(prompt))]
    at: list[int] = []
    for key, row in zip(keys, rows, strict=True):
        g, first = prompts[key][0], len(ids)
        at += [first + i - 1 if i else int(starts[g]) + row.start - 1 for i in row.trained]
        ids += row.rest
        positions += range(row.start, row.start + len(row.rest))
    tensor = _maker(device)
    return Packed(
        ids_N=tensor(ids),
        positions_N=tensor(positions),
        prompt_lengths=[len(prompt) for _, prompt in prompts.values()],
        rest_lengths=list(map(len, rows)),
        prompt_of_B=tensor([prompts[key][0] for key in keys]),
        seen_of_B=[row.start for row in rows],
        at_M=tensor(at),
        target_M=tensor([row.rest[i] for row in rows for i in row.trained]),
        temperature_M=tensor([t for row in rows for t in row.temperature], torch.float32),
        tokens=_tokens(rows, advantages, aggregate, totals, device),
        rows=rows,
    )


def _tokens(
    rows: Sequence[Row],
    advantages: np.ndarray | None,
    aggregate: Aggregate,
    totals: Totals,
    device: torch.device | str,
) -> TokenBatch:
    tensor = _maker(device)
    turn_M = tensor([turn for row in rows for turn in row.turn])
    traj_M = tensor([row.traj for row in rows for _ in row.turn])
    old_M = tensor([logprob for row in rows for logprob in row.old], torch.float32)
    advantages_M = _column(rows, "advantage", device)
    if advantages_M is None:
        advantages_M = torch.zeros_like(old_M)
        if advantages is not None:
            advantages_M = torch.from_numpy(advantages).to(old_M)[turn_M]
    return TokenBatch(
        prox_M=_column(rows, "prox", device),
        direct_M=_column(rows, "direct", device),
        teacher_M=_column(rows, "teacher", device),
        old_M=old_M,
        advantages_M=advantages_M,
        weight_M=aggregate(traj_M, turn_M, totals).to(torch.float32),
        turn_M=turn_M,
        traj_M=traj_M,
    )


def _column(rows: Sequence[Row], name: str, device: torch.device | str) -> Tensor | None:
    """A number per trained token, where every row has them; float32 [M]."""
    columns = [getattr(row, name) for row in rows]
    if not columns or any(column is None for column in columns):
        return None
    return _maker(device)([value for column in columns for value in column], torch.float32)


def _maker(device: torch.device | str) -> Callable[..., Tensor]:
    return lambda values, dtype=torch.int64: torch.tensor(values, dtype=dtype, device=device)
