"""How long the calls of a sandbox take, each backend beside the others and beside its target.

    python benchmarks/sandbox_latency.py [--json]

Not a test: the numbers depend on the machine and on what else it does; the load is printed, too.
`docker exec` is one `exec` of the engine per call, by the SDK and without the command's own start.
A fork is measured with its start, from an empty workdir and from one of 500 files and 10 MB: as the
backend does it here, and by an archive, which is how it does it where no layer can be had.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any
from unittest import mock

from table import show

from turnwise.sandboxes import (
    Limits,
    Sandbox,
    SandboxError,
    WarmPool,
    layers,
    open_sandbox,
    warm_pool,
)

LIMITS = Limits(disk_mb=64)
SMALL = Limits(memory_mb=64, pids=16, disk_mb=8)
BACKENDS = ("bubblewrap", "docker")
BOXES, THREADS, CELLS = 24, 8, 100
TARGETS: dict[str, Any] = {
    "cell": 0.3,
    "shell": 5,
    "warm lease": 2,
    "cold start": {"bubblewrap": 250, "docker": 700},
    "kernel fork": 10,
    "fork": 50,
    "fork, 500 files": 50,
    "fork into a warm box, 500 files": 50,
}
"""Milliseconds at p50 on two quiet cores."""
CELLS_PER_S, TIMES_DOCKER_EXEC = 800, 100
Times = list[float]


def measure(work: Callable[[], object], count: int) -> Times:
    """Sorted seconds of `count` calls, after a tenth as many to warm up."""
    for _ in range(max(1, count // 10)):
        work()
    return sorted(_timed(work) for _ in range(count))


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def p50(times: Times) -> float:
    """The median in milliseconds."""
    return times[len(times) // 2] * 1e3


def operations(backend: str) -> Iterator[tuple[str, Times]]:
    """(name, sorted seconds) of each operation, measured one after another."""
    open_sandbox(backend).close()  # the probe, once per boot
    yield "cold start", sorted(_start_s(backend) for _ in range(10))
    yield "close", sorted(_close_s(backend) for _ in range(5))
    with open_sandbox(backend, limits=LIMITS) as box:
        yield "cell", measure(lambda: box.cell("pass"), 3000)
        yield "cell with output", measure(lambda: box.cell("print(1)"), 3000)
        yield "shell", measure(lambda: box.shell("true"), 500)
        yield "shell, a program", measure(lambda: box.shell("/bin/true"), 200)
        yield "exec", measure(lambda: box.exec(["true"]), 200)
        data = os.urandom(1 << 20)
        yield "put 1 MiB", measure(lambda: box.put("file", data), 50)
        yield "get 1 MiB", measure(lambda: box.get("file"), 50)
        yield "kernel fork", _kernel_forks(box)
        box.exec(["rm", "file"])
        yield from _forks(box, "fork")
        _lay_files(box)
        yield from _forks(box, "fork, 500 files")
        yield "fork into 4, 500 files, each", sorted(_fork_s(box, 4) for _ in range(5))
        with warm_pool(backend, limits=LIMITS, target=2, max_starting=1) as pool:
            yield "warm lease", _leases(pool)
            yield "fork into a warm box, 500 files", _warm_forks(box, pool)
        if backend == "docker":
            yield "docker exec per call", _engine_execs(box)


def _start_s(backend: str) -> float:
    began = time.perf_counter()
    with open_sandbox(backend, limits=LIMITS):
        return time.perf_counter() - began


def _close_s(backend: str) -> float:
    return _timed(open_sandbox(backend, limits=LIMITS).close)


def _kernel_forks(box: Sandbox) -> Times:
    box.cell("held = bytearray(1 << 20)")
    names = iter(range(1000))
    times = []
    for _ in range(20):
        name = f"branch-{next(names)}"
        times.append(_timed(lambda name=name: box.fork_kernel(into=name)))
        box.cell("import os; os._exit(0)", kernel=name)
    return sorted(times)


def _lay_files(box: Sandbox) -> None:
    code = """
import os
for n in range(500):
    os.makedirs(f"d{n % 20}", exist_ok=True)
    open(f"d{n % 20}/{n}", "wb").write(os.urandom(20000))
"""
    assert box.cell(code).exit_code == 0


def _forks(box: Sandbox, name: str) -> Iterator[tuple[str, Times]]:
    """Twice: as the backend does it, and by an archive."""
    yield name, sorted(_fork_s(box, 1) for _ in range(10))
    with mock.patch.object(layers, "usable", lambda: False):
        yield f"{name}, by an archive", sorted(_fork_s(box, 1) for _ in range(10))


def _warm_forks(box: Sandbox, pool: WarmPool) -> Times:
    """The files of now in a box that a pool has ready."""
    times = []
    for _ in range(10):
        _await_ready(pool)
        began = time.perf_counter()
        (branch,) = box.fork(fresh=pool.lease)
        times.append(time.perf_counter() - began)
        branch.close()
    return sorted(times)


def _fork_s(box: Sandbox, count: int) -> float:
    """Seconds per fork."""
    began = time.perf_counter()
    forks = box.fork(count)
    took = time.perf_counter() - began
    for fork in forks:
        fork.close()
    return took / count


def _await_ready(pool: WarmPool) -> None:
    while pool.stats().idle < pool.target:
        time.sleep(0.02)


def _engine_execs(box: Sandbox) -> Times:
    from turnwise.sandboxes.docker_engine import connect

    api = connect().api

    def call() -> None:
        api.exec_start(api.exec_create(box.id, ["python3", "-c", "pass"])["Id"])

    return measure(call, 20)


def _leases(pool: WarmPool) -> Times:
    times = []
    for _ in range(20):
        _await_ready(pool)
        began = time.perf_counter()
        box = pool.lease()
        times.append(time.perf_counter() - began)
        box.close()
    return sorted(times)


def cells_per_s(backend: str) -> float:
    """Cells that 8 threads run per second in 24 boxes."""
    with ExitStack() as stack, ThreadPoolExecutor(THREADS) as threads:
        boxes = [stack.enter_context(open_sandbox(backend, limits=SMALL)) for _ in range(BOXES)]

        def run(box: Sandbox) -> None:
            for _ in range(CELLS):
                box.cell("pass")

        for box in boxes:
            box.cell("pass")
        began = time.perf_counter()
        list(threads.map(run, boxes))
        return BOXES * CELLS / (time.perf_counter() - began)


def backends() -> list[str]:
    """Those that run here."""
    found = []
    for name in BACKENDS:
        try:
            open_sandbox(name).close()
            found.append(name)
        except SandboxError as error:
            print(f"{name}: left out, {error}")
    return found


def main() -> None:
    """Measure every backend that is here and print one table."""
    here = backends()
    found = {name: dict(operations(name)) for name in here}
    rows = []
    for name in dict.fromkeys(name for times in found.values() for name in times):
        row: dict[str, Any] = {"p50 ms": name}
        for backend in here:
            times = found[backend].get(name)
            target = TARGETS.get(name, "")
            row[backend] = f"{p50(times):.3f}" if times else "-"
            row[f"{backend} p99"] = f"{times[int(len(times) * 0.99)] * 1e3:.2f}" if times else "-"
            row[f"{backend} target"] = target[backend] if isinstance(target, dict) else target
        rows.append(row)
    facts = {f"{name} cells/s over {BOXES} boxes": round(cells_per_s(name)) for name in here}
    facts["cells/s target"] = CELLS_PER_S
    if "docker" in found:
        times = found["docker"]
        ratio = p50(times["docker exec per call"]) / p50(times["cell"])
        facts["docker exec / cell"] = f"{ratio:.0f} (target {TIMES_DOCKER_EXEC})"
    show("sandbox latency", rows, **facts)


if __name__ == "__main__":
    main()
