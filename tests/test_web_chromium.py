"""Laws of the browser that environments share: ending one keeps nobody else waiting."""

from __future__ import annotations

import threading

import pytest

from turnwise.envs.extras import MissingExtra
from turnwise.envs.web import chromium


class Slow:
    """A browser whose end takes until somebody allows it."""

    made = 0

    def __init__(self):
        type(self).made += 1
        self.alive, self.users = True, 0
        self.closing, self.may_end = threading.Event(), threading.Event()

    def close(self):
        self.closing.set()
        assert self.may_end.wait(10)


@pytest.fixture
def shared(monkeypatch):
    """Stand a slow browser in for the one of this process."""
    monkeypatch.setattr(chromium, "Chromium", Slow)
    monkeypatch.setattr(chromium, "_lock", threading.Lock())
    monkeypatch.setattr(chromium, "_linger", None)
    first = Slow()
    monkeypatch.setattr(chromium, "_chromium", first)
    return first


def leased_meanwhile(browser: Slow, ending: threading.Thread) -> Slow | None:
    """Lease a browser while `ending` closes another; None if it had to wait."""
    found: list[Slow] = []
    ending.start()
    assert browser.closing.wait(5)
    other = threading.Thread(target=lambda: found.append(chromium.lease_chromium()), daemon=True)
    other.start()
    other.join(5)
    in_time = list(found)
    browser.may_end.set()
    ending.join(5)
    other.join(5)
    return in_time[0] if in_time else None


def test_who_leases_does_not_wait_for_an_idle_browser_to_end(shared):
    ending = threading.Thread(target=chromium.close_idle, daemon=True)
    fresh = leased_meanwhile(shared, ending)
    assert fresh is not None and fresh.users == 1
    assert not chromium._lock.locked()


@pytest.mark.parametrize("alive", [True, False])
def test_a_browser_is_closed_while_the_lock_is_free(shared, alive, monkeypatch):
    free = []
    monkeypatch.setattr(Slow, "close", lambda self: free.append(not chromium._lock.locked()))
    shared.alive = alive
    chromium.close_idle() if alive else chromium.lease_chromium()
    assert free == [True]


def test_the_headless_shell_is_taken_where_both_are_there(tmp_path, monkeypatch):
    monkeypatch.delenv(chromium.PROGRAM_VARIABLE, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("chromium", "chromium-headless-shell"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
        assert chromium.find_program() == str(tmp_path / name)


def test_a_machine_without_a_browser_is_told_which_one_to_install(tmp_path, monkeypatch):
    monkeypatch.delenv(chromium.PROGRAM_VARIABLE, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingExtra, match="apt-get install chromium-headless-shell"):
        chromium.find_program()


def test_a_browser_that_is_used_is_not_ended(shared):
    chromium.lease_chromium()
    chromium.close_idle()
    assert chromium._chromium is shared and not shared.closing.is_set()
