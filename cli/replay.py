"""`turnwise replay`: play recorded episodes again and compare."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from rich.text import Text
from tyro.conf import Positional, arg

from turnwise.agents import replay
from turnwise.agents.blobs import picture_faults
from turnwise.agents.episode_json import TaskChanged
from turnwise.cli.display import console, print_json, table, verdict
from turnwise.cli.failures import DIVERGED
from turnwise.cli.options import UsageError
from turnwise.cli.records import episodes_of
from turnwise.envs.types import Episode


@dataclass(frozen=True)
class Options:
    """Play recorded episodes again; exit 3 if one of them no longer goes as it was recorded.

    modes:
      execute   compare all that the agent read, in a fresh environment, to the first difference;
                and prove the pictures that were kept
      rescore   compare today's rewards with the recorded ones
      tokens    compare the token ids with what the tokenizer of --model makes of the texts
      view      only show the episodes; needs neither environment nor model

    example:
      turnwise replay runs/demo/eval/after.jsonl --failed --mode view
    """

    path: Annotated[Positional[Path], arg(metavar="PATH")]
    """A record (*.jsonl), or a run folder with episodes.jsonl."""
    mode: Literal["execute", "rescore", "tokens", "view"] = "execute"
    """What is compared."""
    episode: str = ""
    """Only the episode of this id, as `33.0`."""
    failed: bool = False
    """Only episodes that were not solved."""
    model: str = ""
    """Folder or name of the model whose tokenizer made the tokens; for mode `tokens`."""
    json: bool = False
    """Print a JSON object."""


@dataclass(frozen=True)
class Finding:
    """What replaying one episode showed."""

    episode: str
    same: bool | None
    """None where there was nothing to compare."""
    what: str


def run(options: Options) -> int:
    """Replay, print the findings, and return the exit code."""
    chosen = episodes_of(options.path, id=options.episode, failed=options.failed)
    if options.mode == "view":
        return _view(chosen, options.json)
    look = _LOOKS[options.mode](options)
    findings = [look(episode) for episode in chosen]
    bad = [finding for finding in findings if finding.same is False]
    if options.json:
        counts = {"episodes": len(findings), "diverged": len(bad)}
        print_json({"mode": options.mode, **counts, "findings": [asdict(f) for f in findings]})
    else:
        _show(options, findings, bad)
    return DIVERGED if bad else 0


def _view(chosen: Iterator[Episode], as_json: bool) -> int:
    if as_json:
        from turnwise.agents.episode_json import episode_to_json

        episodes = [(episode_to_json(episode), picture_faults(episode)) for episode in chosen]
        faults = [fault for _, found in episodes for fault in found]
        print_json({"episodes": [shown for shown, _ in episodes], "picture_faults": faults})
        return 0
    out = console()
    for episode in chosen:
        out.print(Text.from_ansi(replay.view(episode, width=out.width, color=out.is_terminal)))
    return 0


def _execute(options: Options) -> Callable[[Episode], Finding]:
    def look(episode: Episode) -> Finding:
        divergence, faults = replay.execute(episode), picture_faults(episode)
        what = [str(divergence or "exact"), *faults[:1]]
        if len(faults) > 1:
            what.append(f"{len(faults)} pictures are not as recorded")
        return Finding(episode.id, divergence is None and not faults, "; ".join(what))

    return look


def _rescore(options: Options) -> Callable[[Episode], Finding]:
    def look(episode: Episode) -> Finding:
        try:
            found = replay.rescore(episode)
        except TaskChanged as error:
            return Finding(episode.id, False, str(error))
        what = f"reward {found.recorded:g} is now {found.now:g}"
        if found.recorded_success != found.success:
            what += f", solved {found.recorded_success} is now {found.success}"
        if not found.complete:
            what += "; the environment ended early"
        return Finding(episode.id, not found.changed and found.complete, what)

    return look


def _tokens(options: Options) -> Callable[[Episode], Finding]:
    if not options.model:
        raise UsageError("mode tokens needs --model: the tokenizer that made the tokens")
    from turnwise.agents.renderer import Renderer
    from turnwise.trainers.model import load_tokenizer

    renderer = Renderer(load_tokenizer(options.model))

    def look(episode: Episode) -> Finding:
        found = replay.tokens(episode, renderer)
        if not found.count:
            return Finding(episode.id, None, "no tokens were recorded")
        drift = ", ".join(dict.fromkeys(verdict.value for verdict in found.drift))
        exact = f"{found.count} tokens; rendered anew: {drift}"
        return Finding(episode.id, found.proven, str(found.mismatch or exact))

    return look


_LOOKS: dict[str, Callable[[Options], Callable[[Episode], Finding]]] = {
    "execute": _execute,
    "rescore": _rescore,
    "tokens": _tokens,
}


def _show(options: Options, findings: list[Finding], bad: list[Finding], most: int = 20) -> None:
    out = console()
    shown = findings if len(findings) <= most else bad[:most]
    rows: list[list[Any]] = [[f.episode, verdict(f.same), f.what] for f in shown]
    if rows:
        out.print(table("episode", "", options.mode, rows=rows))
    compared = sum(finding.same is not None for finding in findings)
    good = f"{compared - len(bad)} of {len(findings)} episodes as recorded"
    out.print(Text(good, style="green" if not bad else "bold"))
    if len(bad) > most:
        out.print(Text(f"{len(bad)} diverged; the first {most} are shown", style="yellow"))
