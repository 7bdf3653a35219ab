"""What an environment's expert shows, how much room that needs, and what became of the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from turnwise.agents.policy import Seat, expert
from turnwise.envs.base import Env
from turnwise.envs.types import Episode, Stop
from turnwise.sandboxes.base import SandboxError

MARGIN = 1.25
"""Room above the longest that was seen: other tasks, and a student's detours, are longer."""


class ExpertFailed(RuntimeError):
    """An environment's `expert()` raised; the message says which, and what."""


class NoDemonstrations(ValueError):
    """No episode of the expert can be imitated; the message says what became of them."""


def has_expert(env: Env) -> bool:
    """Whether an environment can demonstrate."""
    return callable(getattr(env, "expert", None))


def demonstrate(seat: Seat) -> str:
    """Do what the environment's own expert does.

    Raises:
        ExpertFailed: it raised something; but an error of a sandbox is raised as it is.
        TypeError: the environment has no expert.
    """
    if not has_expert(seat.env):
        return expert(seat)  # says so
    try:
        return expert(seat)
    except SandboxError:
        raise
    except Exception as error:
        raise ExpertFailed(
            f"the expert() of {type(seat.env).__name__} raised {type(error).__name__}: {error}, "
            f"in turn {seat.turn}; mend it: `turnwise check` tries it on many tasks"
        ) from error


@dataclass(frozen=True)
class Needs:
    """Tokens of the longest that an expert showed."""

    max_tokens: int
    """Of a solved episode."""
    max_new_tokens: int
    """Of one action of the expert in it."""

    def limit(self, name: str, usual: int, positions: int | None = None) -> int:
        """Return `usual` if it holds what was seen, else what does, with a margin.

        Args:
            name: a field of this class.
            positions: most tokens that the model holds; None is no bound.
        """
        seen, step = getattr(self, name), 64 if name == "max_tokens" else 4
        room = usual if seen <= usual else ceil(MARGIN * seen / step) * step
        return room if positions is None else max(min(room, positions), usual)


def needs_of(episodes: Sequence[Episode]) -> Needs:
    """Return what solved episodes need; turns that stumble count as a part of their episode alone.

    Raises:
        NoDemonstrations: none was solved.
    """
    shown = solved(episodes)
    rows = [len(segment.ids) for episode in shown for segment in episode.segments]
    turns = [turn for episode in shown for turn in episode.turns if turn.executor == "expert"]
    return Needs(max(rows), max(len(turn.action_ids) for turn in turns))


def solved(episodes: Sequence[Episode], max_tokens: int | None = None) -> list[Episode]:
    """Return the solved ones, which can be imitated.

    Raises:
        NoDemonstrations: there is none.
    """
    if shown := [episode for episode in episodes if episode.success]:
        return shown
    short = [episode for episode in episodes if _cut(episode)]
    lost = [episode for episode in episodes if episode.error]
    unsolved = len(episodes) - len(short) - len(lost)
    became = [f"{unsolved} ended unsolved"] if unsolved else []
    if short:
        became.append(f"{len(short)} were cut at max_tokens {max_tokens}: raise it")
    if lost:
        became.append(f"{len(lost)} were lost to errors, as {lost[0].error}")
    raise NoDemonstrations(
        f"there are no demonstrations to imitate: of {len(episodes)} episodes of the expert "
        f"{'; '.join(became) or 'none is there'}"
    )


def cut_short(episodes: Sequence[Episode], max_tokens: int) -> str:
    """Return one line on how many were cut, empty if none was."""
    cut = sum(map(_cut, episodes))
    said = f"{cut} of {len(episodes)} demonstrations were cut at max_tokens {max_tokens}"
    return f"{said} and are not shown" if cut else ""


def _cut(episode: Episode) -> bool:
    return episode.stop is Stop.MAX_TOKENS
