"""A rank that trains nothing: it waits until it is asked to stop, and says so in a file."""

import signal
import sys
from pathlib import Path
from threading import Event

from turnwise.cli.launch import launch, stop_with_launcher


def wait(folder: Path, rank: str) -> int:
    asked = Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: asked.set())
    stop_with_launcher()
    (folder / f"ready-{rank}").touch()
    while not asked.wait(0.1):
        pass
    (folder / f"stopped-{rank}").touch()
    return 130


if __name__ == "__main__":
    import os

    folder = Path(sys.argv[1])
    if "RANK" in os.environ:
        sys.exit(wait(folder, os.environ["RANK"]))
    code, line = launch([sys.executable, __file__, str(folder)], 2, logs=folder / "logs")
    print(line)
    sys.exit(code)
