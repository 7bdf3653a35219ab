"""One process of a run of several: `python -m turnwise.cli.rank OPTIONS.json`, from `train`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from turnwise.cli.launch import stop_with_launcher


def main() -> int:
    """Train as one rank and return the exit code."""
    from turnwise.cli.train import Options, run_rank

    stop_with_launcher()
    if os.getcwd() not in sys.path:  # `module:Class` of a file that lies here
        sys.path.append(os.getcwd())
    wanted = json.loads(Path(sys.argv[1]).read_text())
    return run_rank(Options(**{**wanted, "out": Path(wanted["out"])}))


if __name__ == "__main__":
    from turnwise.trainers.ranks import leave

    leave(main())
