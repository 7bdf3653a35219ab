"""`turnwise check`: is an environment sound?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from rich.text import Text
from tyro.conf import Positional, arg

from turnwise.agents import check_replay
from turnwise.cli.display import console, print_json, table, title, verdict
from turnwise.cli.failures import FAILED
from turnwise.cli.options import json_object
from turnwise.envs.check import STARTS, Check, Report, check_env
from turnwise.sandboxes.reaper import end_at_sigterm

SEEDS = "seeds are honoured"
"""Where this law is broken, one ran out of time, or it does not start, a replay tells no more."""


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
    end_at_sigterm()  # laws run on threads, which cannot arrange for it
    with console(stderr=True).status("starting") as status:
        report = _checked(options, lambda law: status.update(law))
    if options.json:
        print_json(report.to_json())
    else:
        _show(report)
    return 0 if report.ok else FAILED


def _checked(options: Options, watch: Callable[[str], None]) -> Report:
    """Return the report over all laws that were asked for, that of replay included."""
    how: dict[str, Any] = {
        "seeds": range(options.seeds),
        "concurrency": options.concurrency,
        "deadline_s": options.deadline,
        **json_object(options.env_kwargs, "--env-kwargs"),
    }
    replay = check_replay.NAME
    laws = [law for law in options.law if law != replay]
    if options.law and not laws:
        return Report(options.env, (check_replay.check_replay(options.env, **how),))
    report = check_env(options.env, adversary=options.adversary, laws=laws, watch=watch, **how)
    hopeless = any(check.overdue or check.name in (SEEDS, STARTS) for check in report.failures)
    if (options.law and replay not in options.law) or hopeless:
        return report
    watch(replay)
    return report.with_check(check_replay.check_replay(options.env, **how))


def _show(report: Report) -> None:
    out = console()
    broken = len(report.failures)
    out.print(title(report.env, "sound" if report.ok else f"{broken} broken"))
    rows = [(check.name, _mark(check), check.detail) for check in report.checks]
    out.print(table("law", "", "what was seen", rows=rows))
    mends: dict[str, list[str]] = {}
    for check in report.failures:
        mends.setdefault(check.mend, []).append(check.name)
    for mend, names in mends.items():
        out.print(Text.assemble(("\nmend ", "dim"), (", ".join(names), "bold"), f": {mend}"))


def _mark(check: Check) -> Text:
    return verdict(None if check.status == "skip" else check.status == "pass")
