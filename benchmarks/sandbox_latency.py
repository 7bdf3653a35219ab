"""How long the calls of a sandbox take: `python benchmarks/sandbox_latency.py`.

Prints one row per operation. Not a test: the numbers depend on the machine and what else it does.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from turnwise.sandboxes import Limits, lease_workspace, open_sandbox


def measure(work: Callable[[], object], count: int) -> list[float]:
    """Sorted seconds of `count` calls, after a tenth as many to warm up."""
    for _ in range(max(1, count // 10)):
        work()
    times = []
    for _ in range(count):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return sorted(times)


def row(name: str, times: list[float]) -> str:
    """A line of the table, in milliseconds."""
    p50, p99 = times[len(times) // 2], times[min(len(times) - 1, int(len(times) * 0.99))]
    return f"{name:<34} {len(times):>6} {p50 * 1e3:>9.3f} {p99 * 1e3:>9.3f} {1 / p50:>9.0f}"


def main() -> None:
    """Measure start, close, cells, programs and files of one box each."""
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    print(f"{'operation':<34} {'calls':>6} {'p50 ms':>9} {'p99 ms':>9} {'per s':>9}")
    open_sandbox().close()  # the probe, once per boot
    print(row("start and close", measure(lambda: open_sandbox().close(), 20)))
    with open_sandbox(limits=Limits(disk_mb=64)) as box:
        print(row("first cell (starts the kernel)", measure(_fresh_kernel(box), 30)))
        print(row("cell: pass", measure(lambda: box.cell("pass"), 5000)))
        print(row("cell: print(1)", measure(lambda: box.cell("print(1)"), 5000)))
        print(row("exec: true", measure(lambda: box.exec(["true"]), 200)))
        print(row("exec: sh, 3 programs", measure(lambda: box.exec(["sh", "-c", "ls|wc"]), 100)))
        for size, label in ((100, "100 B"), (1 << 20, "1 MiB")):
            data = os.urandom(size)
            print(row(f"put {label}", measure(lambda d=data: box.put("a/file", d), 200)))
            print(row(f"get {label}", measure(lambda: box.get("a/file"), 200)))
    print(row("lease and close a workspace", measure(lambda: lease_workspace().close(), 500)))


def _fresh_kernel(box: object) -> Callable[[], object]:
    def work() -> None:
        box.cell("import os; os._exit(0)")

    return work


if __name__ == "__main__":
    main()
