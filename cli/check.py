"""`turnwise check`: is an environment sound?"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Annotated, Any

from rich.text import Text
from tyro.conf import Positional, arg

from turnwise.cli.check_apart import Refused, checked_apart
from turnwise.cli.display import console, print_json, table, title, verdict
from turnwise.cli.failures import FAILED, INFRASTRUCTURE
from turnwise.cli.options import json_object
from turnwise.envs.check import Check, Report
from turnwise.sandboxes.reaper import end_at_sigterm


@dataclass(frozen=True)
class Options:
    """Run the laws that every environment must keep; exit 2 if one is broken.

    Seeds are honoured, mistakes are answered, an expert is paid, and who does not try is not.

    example:
      turnwise check turnwise/FileHunt-v1 --adversary --concurrency 32
    """

    env: Annotated[Positional[str], arg(metavar="ENV")]
    """An id that `turnwise list` shows, or `module:Class`."""
    env_kwargs: str = "{}"
    """JSON object of the environment's arguments, as '{"depth": 3}'."""
    adversary: bool = False
    """Also play agents that want the reward and not the task: hedging, spam, tag injection, ..."""
    concurrency: int = 8
    """Environments that are alive at once."""
    seeds: int = 8
    """Episodes that each law plays, each with a seed of its own; fewer where they are slow."""
    law: tuple[str, ...] = ()
    """Try these alone, as 'seeds are honoured'; all without any."""
    deadline: float = 120.0
    """Seconds that one law may take; one that takes longer is broken."""
    json: bool = False
    """Print the report as a JSON object."""


def run(options: Options) -> int:
    """Print the report and return the exit code."""
    end_at_sigterm()
    try:
        with console(stderr=True).status("starting") as status:
            report = checked_apart(_order(options), lambda law: status.update(law))
    except Refused as why:
        print(f"turnwise check: {why}", file=sys.stderr)
        return why.code
    if options.json:
        print_json(report.to_json())
    else:
        _show(report)
    return FAILED if report.failures else INFRASTRUCTURE if report.lost else 0


def _order(options: Options) -> dict[str, Any]:
    """Return what is to be checked, as JSON values."""
    how: dict[str, Any] = {
        "seeds": options.seeds,
        "concurrency": options.concurrency,
        "deadline_s": options.deadline,
        **json_object(options.env_kwargs, "--env-kwargs"),
    }
    laws = list(options.law)
    return {"env": options.env, "adversary": options.adversary, "laws": laws, "how": how}


def _show(report: Report) -> None:
    out = console()
    out.print(title(report.env, report.verdict))
    rows = [(check.name, _mark(check), check.detail) for check in report.checks]
    out.print(table("law", "", "what was seen", rows=rows))
    mends: dict[str, list[str]] = {}
    for check in report.failures:
        mends.setdefault(check.mend, []).append(check.name)
    for mend, names in mends.items():
        out.print(Text.assemble(("\nmend ", "dim"), (", ".join(names), "bold"), f": {mend}"))


def _mark(check: Check) -> Text:
    return verdict(None if check.status == "skip" else check.status == "pass")
