"""`turnwise check`: is an environment sound?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from rich.text import Text
from tyro.conf import Positional, arg

from turnwise.cli.display import console, print_json, table, title, verdict
from turnwise.cli.failures import FAILED
from turnwise.cli.options import json_object
from turnwise.envs.check import Check, Report, check_env


@dataclass(frozen=True)
class Options:
    """Run the laws that every environment must keep; exit 2 if one is broken.

    Seeds are honoured, mistakes are answered, an expert is paid, and who does not try is not.

    example:
      turnwise check turnwise/FileHunt-v1 --concurrency 32
    """

    env: Annotated[Positional[str], arg(metavar="ENV")]
    """An id that `turnwise list` shows, or `module:Class`."""
    env_kwargs: str = "{}"
    """JSON object of the environment's arguments, as '{"depth": 3}'."""
    concurrency: int = 8
    """Environments that are alive at once."""
    seeds: int = 8
    """Episodes that each law plays, each with a seed of its own."""
    json: bool = False
    """Print the report as a JSON object."""


def run(options: Options) -> int:
    """Print the report and return the exit code."""
    report = check_env(
        options.env,
        seeds=range(options.seeds),
        concurrency=options.concurrency,
        **json_object(options.env_kwargs, "--env-kwargs"),
    )
    if options.json:
        print_json(report.to_json())
    else:
        _show(report)
    return 0 if report.ok else FAILED


def _show(report: Report) -> None:
    out = console()
    broken = len(report.failures)
    out.print(title(report.env, "sound" if report.ok else f"{broken} broken"))
    rows = [(check.name, _mark(check), check.detail) for check in report.checks]
    out.print(table("law", "", "what was seen", rows=rows))
    for check in report.failures:
        out.print(Text.assemble(("\nmend ", "dim"), (check.name, "bold"), f": {check.mend}"))


def _mark(check: Check) -> Text:
    return verdict(None if check.status == "skip" else check.status == "pass")
