"""What a person sees while a run goes on: a calm line per stage, a plain summary at the end."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.markup import escape

SHOWN = ("success", "reward", "turns", "entropy", "loss")


class Progress:
    """A line that is redrawn on a terminal; on anything else a line now and then.

    Args:
        console: where to write.
        title: what is going on.
        every_s: seconds between lines where nothing can be redrawn.
    """

    def __init__(self, console: Console, title: str, *, every_s: float = 15.0) -> None:
        self.console, self.title, self.every_s = console, title, every_s
        self.start = self.last = monotonic()
        self.note = ""
        self.status = console.status(escape(title)) if console.is_terminal else None

    def show(self, row: dict[str, Any], *, total: int | None = None) -> dict[str, Any]:
        """Show the metrics of one step and return them."""
        of = f"/{total}" if total else ""
        numbers = [f"{name} {row[name]:.3f}" for name in SHOWN if name in row]
        for alarm in row.get("alarms", ()):
            self.console.print(f"  [yellow]alarm[/yellow] {escape(alarm)}")
        self.say(", ".join([f"step {int(row.get('step', 0))}{of}", *numbers]))
        return row

    def say(self, note: str) -> None:
        """Show how far it is."""
        self.note, text = note, f"{self.title}: {note}"
        if self.status is not None:
            self.status.update(escape(text))
        elif monotonic() - self.last > self.every_s:
            self.last = monotonic()
            self.console.print(f"  {escape(text)}", highlight=False, soft_wrap=True)

    def __enter__(self) -> Self:
        if self.status is not None:
            self.status.start()
        else:
            self.console.print(f"  {escape(self.title)} ...", highlight=False)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.status is not None:
            self.status.stop()
        if kind is None:
            seconds = f"{monotonic() - self.start:5.0f} s"
            note = f"[dim]{escape(self.note)}[/dim]"
            self.console.print(
                f"[green]done[/green] {seconds}  {escape(self.title)}  {note}", highlight=False
            )


def say_before(console: Console, title: str, out: Path, seed: int, moved: Path | None) -> None:
    """Say what is about to happen."""
    console.print(
        f"[bold]{escape(title)}[/bold]\n"
        f"A model of 0.2 M parameters from nothing, seed {seed}. Everything goes to "
        f"{escape(str(out))}.",
        highlight=False,
        soft_wrap=True,
    )
    if moved is not None:
        console.print(f"The run that was there is now in {escape(str(moved))}.", highlight=False)
    console.print()


def say_result(console: Console, summary: dict[str, Any], out: Path, env: str) -> None:
    """Say in plain language what came out, and what to try next."""
    before, after = summary["before"]["success"], summary["after"]["success"]
    floors = [f.get("value", 0.0) for f in summary["before"]["floors"].values()]
    replay = summary["replay"]
    verdict = "without a divergence" if not replay["divergences"] else "WITH DIVERGENCES"
    command = spelled()
    console.print(
        f"\nAfter imitation the agent solved {_rate(before)} of {before['n']} tasks that it had "
        f"never seen; after learning from its own attempts, {_rate(after)}.\n"
        f"Random calls solve {100 * max(floors, default=0.0):.1f} %. All {replay['episodes']} "
        f"evaluated episodes were re-executed {verdict}.\n\n"
        f"  Look at it      open {out}/report.html\n"
        f"  Read one        {command} replay {out}/eval/after.jsonl --mode view | less\n"
        f"  Run them again  {command} replay {out}/eval/after.jsonl --mode execute\n"
        f"  Evaluate more   {command} eval {env} --policy {out}/rl/model\n"
        f"  Train your own  {command} train --help",
        highlight=False,
        soft_wrap=True,
    )


def spelled() -> str:
    """Return how the command is called here: by its name if on the PATH, else by its path."""
    if shutil.which("turnwise"):
        return "turnwise"
    return f"{Path(sys.executable).parent}/turnwise".removeprefix(f"{Path.cwd()}/")


def _rate(interval: dict[str, float]) -> str:
    if "value" not in interval:
        return "none (all were lost to errors)"
    low, high = 100 * interval["low"], 100 * interval["high"]
    return f"{100 * interval['value']:.0f} % (95 % interval {low:.0f} to {high:.0f})"
