"""The laws of stopping: a first signal is answered at once, in a line of its own."""

from __future__ import annotations

import io
import re
import signal
import sys
import threading
import time

import pytest
from rich.console import Console

from turnwise.trainers.interrupt import PROMISE, Interrupt
from turnwise.trainers.progress import Progress

SIGNALS = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])


@SIGNALS
def test_the_first_signal_says_once_what_will_happen_and_the_second_says_nothing(number, capsys):
    with pytest.raises(KeyboardInterrupt), Interrupt() as interrupt:
        assert not interrupt.requested
        signal.raise_signal(number)
        assert interrupt.requested
        signal.raise_signal(number)
    assert capsys.readouterr() == ("", f"{PROMISE}\n")


def test_a_run_that_nobody_stops_says_nothing(capsys):
    with Interrupt():
        pass
    assert capsys.readouterr() == ("", "")


@SIGNALS
def test_the_line_stands_alone_above_a_progress_bar_that_goes_on(number):
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100)
    with Progress(console, "turn_rloo on Walks") as progress, Interrupt():
        progress.show({"step": 1})
        time.sleep(0.2)  # the bar is drawn a few times a second
        signal.raise_signal(number)
        time.sleep(0.3)
    lines = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.getvalue()).replace("\r", "\n").split("\n")
    assert [line for line in lines if PROMISE[:20] in line] == [PROMISE]
    assert any("step 1" in line for line in lines[lines.index(PROMISE) :])


class Guarded(io.StringIO):
    """A stream that is signalled amid a write and refuses another one by the same thread then."""

    writer = 0

    def write(self, text: str) -> int:
        if threading.get_ident() == self.writer:
            raise RuntimeError("reentrant call inside a buffered writer")
        if threading.current_thread() is threading.main_thread():
            self.writer = threading.get_ident()
            signal.raise_signal(signal.SIGINT)
            self.writer = 0
        return super().write(text)


def test_a_signal_amid_a_write_does_not_write_into_it(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Guarded())
    with Interrupt():
        sys.stderr.write("a line of the run\n")
    assert sorted(sys.stderr.getvalue().splitlines()) == ["a line of the run", PROMISE]
