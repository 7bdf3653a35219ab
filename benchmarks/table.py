"""One way to print what a benchmark found: a table for people, `--json` for programs."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import Any


def show(title: str, rows: Sequence[dict[str, Any]], **facts: Any) -> None:
    """Print rows with the same keys, then the facts that follow from them."""
    facts = {"load": round(os.getloadavg()[0], 1), "cores": os.cpu_count(), **facts}
    if "--json" in sys.argv[1:]:
        print(json.dumps({"title": title, "rows": list(rows), **facts}))
        return
    print(title)
    lines = [list(map(str, line)) for line in (rows[0], *(row.values() for row in rows))]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
