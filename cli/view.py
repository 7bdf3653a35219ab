"""`turnwise view`: recorded episodes as one HTML page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from rich.text import Text
from tyro.conf import Positional, arg

from turnwise.agents.blobs import picture_faults
from turnwise.agents.record import read_header
from turnwise.agents.replay import execute
from turnwise.agents.score import Report, summarise
from turnwise.agents.viewer import Exhibit, Headline, Table, write_report
from turnwise.cli.display import console, print_json
from turnwise.cli.policies import decoder
from turnwise.cli.records import episodes_of, metrics_of, record_file
from turnwise.envs.types import Episode

CURVES = ("success", "reward", "turns", "action_tokens", "entropy", "loss")


@dataclass(frozen=True)
class Options:
    """Write one HTML page with the scores and every episode to click through.

    The page needs nothing else: no network and no other file.

    example:
      turnwise view runs/demo/eval/after.jsonl --model runs/demo/rl/model -o report.html
    """

    path: Annotated[Positional[Path], arg(metavar="PATH")]
    """A record (*.jsonl), or a run folder with episodes.jsonl."""
    out: Annotated[Path, arg(aliases=["-o"])] = Path("report.html")
    """The file to write."""
    model: str = ""
    """Folder or name of the model, to show sampled tokens as text rather than as ids."""
    failed: bool = False
    """Only episodes that were not solved."""
    most: int = 400
    """Show at most so many episodes, the last ones; the scores are of all."""
    replay: bool = False
    """Execute each shown episode again, and mark where it diverges."""
    json: bool = False
    """Print a JSON object."""


def run(options: Options) -> int:
    """Write the page and return the exit code."""
    episodes = list(episodes_of(options.path, failed=options.failed))
    report = summarise(episodes, by=_by(episodes))
    shown = episodes[-options.most :]
    header = read_header(record_file(options.path))
    page = write_report(
        options.out,
        title=_title(episodes),
        facts={"record": str(options.path), "written": header["created"], **_run(header["run"])},
        headline=_headline(report),
        curve=list(_curve(options.path)),
        tables=list(_tables(report)),
        episodes=[_exhibit(episode, options.replay) for episode in shown],
        decode=decoder(options.model),
    )
    faults = [fault for episode in shown for fault in picture_faults(episode)]
    facts = {"page": str(page), "episodes": len(episodes), "shown": len(shown)}
    if options.json:
        print_json({**facts, "picture_faults": faults, **report.to_json()})
    else:
        console().print(Text(f"{page}: {len(shown)} of {len(episodes)} episodes"))
        for fault in faults:
            console().print(Text(fault, style="yellow"))
    return 0


def _title(episodes: Sequence[Episode]) -> str:
    return ", ".join(dict.fromkeys(e.env_id for e in episodes)) or "no episodes"


def _run(run: dict[str, Any]) -> dict[str, str]:
    config = run.get("config", run)
    who = ("env", "env_kwargs", "policy", "model", "recipe")
    names = (*who, "recall", "run_seed", "seed", "temperature")
    return {name: str(config[name]) for name in names if config.get(name) not in (None, "", {})}


def _by(episodes: Sequence[Episode]) -> tuple[str, ...]:
    return ("depth",) if episodes and "depth" in episodes[0].task.to_json() else ()


def _headline(report: Report) -> list[Headline]:
    return [
        Headline("Success", report.success, lead=True),
        Headline("Reward", report.reward.value, "mean return of an episode"),
        Headline("Turns", report.turns, "per episode"),
        Headline("Episodes", report.episodes, f"{report.masked} masked"),
    ]


def _curve(path: Path) -> Iterator[dict[str, float]]:
    for row in metrics_of(path):
        yield {name: row[name] for name in ("step", *CURVES) if name in row}


def _tables(report: Report) -> Iterator[Table]:
    for name, rates in report.by.items():
        rows = [(str(value), rate) for value, rate in rates.items()]
        yield Table(f"Success by {name}", (name, "success"), rows, lead="success")


def _exhibit(episode: Episode, replay: bool) -> Exhibit:
    return Exhibit(episode, replay=str(execute(episode) or "exact") if replay else "")
