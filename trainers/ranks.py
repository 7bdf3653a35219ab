"""The processes of one run: who they are, how they share what is played, how they fail together.

Every rank goes through the same steps with the same numbers: it plays its share of the groups, all
episodes are told to all, and each computes its share of the gradient. With one process nothing here
does anything.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import pickle
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator

from turnwise.agents.jobs import Job
from turnwise.envs.types import Episode

T = TypeVar("T")
RENDEZVOUS = "TURNWISE_RENDEZVOUS"
"""Environment variable: where the processes of a local run meet, a URL of torch.distributed."""
PLAYING_S = 86_400.0
"""How long one process waits for what another one plays. Who dies is missed at once, and who hangs
in a call gives that up itself; what is left is slow."""
_SIGNS = ("Connection closed", "Connection reset", "Broken pipe", "Timed out", "timed out", "NCCL")
"""What the errors of a collective speak of when another process is gone."""
_LINE: ContextVar[dist.ProcessGroup | None] = ContextVar("line", default=None)
"""Over which a thread talks to its like in the other processes; None is the line of the run."""


class RankFailed(RuntimeError):
    """Another process of the run failed, and said why."""


class RankLost(RuntimeError):
    """Another process of the run is gone, or did not answer in time."""

    machine = True


def asked() -> int:
    """Return how many processes whoever started this one has started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def join(processes: int, timeout_s: float) -> None:
    """Meet the other processes of the run, if there are any.

    Args:
        processes: as the run's config has it; 1 takes as many as were started.
        timeout_s: how long a rank waits for the others at one place.

    Raises:
        ValueError: other than `processes` were started.
    """
    if processes not in (1, asked()):
        raise ValueError(
            f"processes={processes} was asked for, and {asked()} started: use `turnwise train "
            f"--processes {processes}` or `accelerate launch --num_processes {processes}`"
        )
    if asked() == 1 or dist.is_initialized():
        return
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    with named():
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo",
            init_method=os.environ.get(RENDEZVOUS, "env://"),
            rank=int(os.environ["RANK"]),
            world_size=asked(),
            timeout=timedelta(seconds=timeout_s),
        )


def accelerator() -> Accelerator:
    """Return Accelerate's view of this process. Without a GPU it must be told to use the CPU."""
    return Accelerator(cpu=True) if count() > 1 and not torch.cuda.is_available() else Accelerator()


def leave(code: int) -> NoReturn:
    """End this process after what is registered for its end, without taking the interpreter down.

    A thread may still be in a call of gloo, and gloo's own threads may hold tensors: torch then
    dies of a signal (SIGABRT, where it was tried) in an interpreter that is being taken down.
    Threads are not waited for, whatever they do.
    """
    try:
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):  # nobody reads it any more
                stream.flush()
    finally:
        os._exit(code)


def count() -> int:
    """Return how many processes the run has."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return this one's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    """Whether this is the one that writes."""
    return rank() == 0


@contextlib.contextmanager
def named() -> Iterator[None]:
    """Turn a collective's error into one line.

    Raises:
        RankLost: another process is gone, or did not answer in time.
    """
    try:
        yield
    except (RankFailed, RankLost):
        raise
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or any(sign in str(error) for sign in _SIGNS):
            raise RankLost(
                "another process of the run is gone: it died, or did not answer within "
                "rank_timeout_s; go on from the newest checkpoint with --resume"
            ) from error
        raise


def new_line() -> dist.ProcessGroup | None:
    """Return a further line, for one thread of each process at a time; all call this alike.

    It stays as long as the process: who ends one cannot know that the others are through with it.
    """
    if count() == 1:
        return None
    with named():
        return dist.new_group(backend="gloo", timeout=timedelta(seconds=PLAYING_S))


@contextlib.contextmanager
def on_line(line: dist.ProcessGroup | None) -> Iterator[None]:
    """Talk over `line`, on this thread: the order of calls must be the same in each process."""
    before = _LINE.set(line)
    try:
        yield
    finally:
        _LINE.reset(before)


def gather(value: T) -> list[T]:
    """Return what every rank gave, by rank; on all of them."""
    if count() == 1:
        return [value]
    found: list[Any] = [None] * count()
    with named():
        dist.all_gather_object(found, value, group=_LINE.get())
    return found


def tell(value: T) -> T:
    """Return what rank 0 gave, on all ranks."""
    if count() == 1:
        return value
    box: list[Any] = [value]
    with named():
        dist.broadcast_object_list(box, src=0, group=_LINE.get())
    return box[0]


def anywhere(flag: bool) -> bool:
    """Return whether any rank gave True."""
    return any(gather(flag))


def on_main(act: Callable[[], T]) -> T | None:
    """Return what `act` returns, on rank 0 alone; None on the others.

    Raises:
        Whatever `act` raised, on every rank; `RankFailed` on the others for what ends a process.
    """
    result: T | None = None
    error: BaseException | None = None
    if is_main():
        try:
            result = act()
        except BaseException as raised:
            error = raised
    if count() > 1:
        theirs = tell(portable(error))
        error = error or theirs
    if error is not None:
        raise error
    return result


def portable(error: BaseException | None) -> Exception | None:
    """Return `error` as another process can read it; what ends this one does not end that."""
    if error is None:
        return None
    with contextlib.suppress(Exception):
        if isinstance(error, Exception):
            return pickle.loads(pickle.dumps(error))
    return RankFailed(f"rank {rank()}: {_said(error)}")


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def each(act: Callable[[], T]) -> list[T]:
    """Return what `act` returned on every rank, by rank; on all of them.

    Raises:
        RankFailed: it failed on another rank. Where it failed, that very error is raised.
    """
    value: T | None = None
    own: BaseException | None = None
    try:
        value = act()
    except BaseException as raised:  # also what ends this process: the others would wait for it
        own = raised
    found = gather((value, None if own is None else _said(own)))
    if own is not None:
        raise own
    for number, (_, line) in enumerate(found):
        if line is not None:
            raise RankFailed(f"rank {number}: {line}")
    return [part for part, _ in found]  # type: ignore[misc]


def share_out(
    jobs: Sequence[Job], run: Callable[[Sequence[Job]], Iterable[Episode]]
) -> list[Episode]:
    """Return the episodes of all `jobs`, of which every rank has run whole groups.

    The seeds of a job are its own, so that the episodes are those of a single process.

    Raises:
        RankFailed: `run` failed on another rank.
    """
    names = list(dict.fromkeys(job.group for job in jobs))
    mine = set(names[rank() :: count()])
    parts = each(lambda: list(run([job for job in jobs if job.group in mine])))
    return [episode for part in parts for episode in part]
