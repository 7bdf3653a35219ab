"""Which method helps in which regime: every comparison of docs/results.md.

    python scripts/compare_methods.py                  all of it; goes on where it was stopped
    python scripts/compare_methods.py --only tcod_phased sod_clean --seeds 3 --budget 0.5
    python scripts/compare_methods.py --page-only      docs/results.md again, from docs/results

    python scripts/compare_methods.py --results runs/again --page runs/again.md    from nothing

Tiny transformers and their larger teachers are made on the spot; nothing is downloaded. A run is
not made again if its row, by the hash of its settings, is in `--results`, or its file in `--out`.
The hash knows nothing of the code: after a change of what methods do, begin from nothing.
"""

from dataclasses import dataclass
from pathlib import Path

from compared import credit, imitation, pipelines, sod, tcod

from turnwise.cli.options import UsageError
from turnwise.cli.script import run_script
from turnwise.trainers.results_page import write_page
from turnwise.trainers.suite import Suite, run_suite, scaled

EXPERIMENTS = (
    *tcod.EXPERIMENTS,
    *sod.EXPERIMENTS,
    *pipelines.EXPERIMENTS,
    *credit.EXPERIMENTS,
    *imitation.EXPERIMENTS,
)


@dataclass(frozen=True)
class Choice:
    """Which part of the comparison to run."""

    out: Path = Path("runs/compare")
    """Models and results by key."""
    only: tuple[str, ...] = ()
    """Names of experiments; by default all."""
    seeds: int = 6
    """Test seeds."""
    dev_seeds: int = 2
    """Seeds on which learning rates are chosen."""
    budget: float = 1.0
    """Factor of every budget."""
    jobs: int = 2
    """Processes at once."""
    results: Path = Path("docs/results")
    page: Path = Path("docs/results.md")
    page_only: bool = False
    """Write the page from the results that are there."""


def main(choice: Choice) -> None:
    """Run what was chosen, then write the page from all results that are there."""
    names = {each.name for each in EXPERIMENTS}
    if unknown := set(choice.only) - names:
        raise UsageError(f"no experiment {sorted(unknown)}; there are: {', '.join(sorted(names))}")
    chosen = [each for each in EXPERIMENTS if not choice.only or each.name in choice.only]
    if choice.budget != 1.0:
        chosen = [scaled(each, choice.budget) for each in chosen]
    if not choice.page_only:
        suite = Suite(
            out=choice.out,
            results=choice.results,
            seeds=range(choice.seeds),
            dev_seeds=range(100, 100 + choice.dev_seeds),
            jobs=choice.jobs,
        )
        run_suite(chosen, suite)
    write_page(EXPERIMENTS, choice.results, choice.page)


if __name__ == "__main__":
    raise SystemExit(run_script(lambda read: main(read(Choice))))
