"""One headless Chromium of this process, shared by all environments that browse.

It belongs to one thread with an event loop; environments on any thread hand it coroutines. It
starts at the first use, stays while somebody uses it and some seconds longer, and ends with the
process. It reaches the relay and nothing else: names are not resolved, and every request goes to
the relay as its proxy.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import os
import shutil
import signal
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from turnwise.envs.extras import MissingExtra, need
from turnwise.envs.web.relay import Relay
from turnwise.sandboxes.base import SandboxError

T = TypeVar("T")
START_S, CALL_S, END_S = 60.0, 30.0, 10.0
PLACES = 2 * (os.cpu_count() or 1)
"""So many tabs work at once; the others wait for a place, and their deadline begins only there:
a machine with more tabs than processors is slow, which is no reason to give a browser up."""
LINGER_S = 10.0
"""How long a browser that nobody uses stays, for whoever comes next."""
PROGRAMS = (
    *("chromium-headless-shell", "chromium", "chromium-browser"),
    *("google-chrome", "google-chrome-stable"),
)
"""Of those on the PATH the first is taken. The headless shell is a Chromium without windows: a step
in it takes about half of the processor time of one in a whole browser."""
PROGRAM_VARIABLE = "TURNWISE_CHROMIUM"
"""Environment variable with the path of a Chromium that is not on the PATH."""
FLAGS = (
    *("--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-extensions", "--mute-audio"),
    # No upgrades to https, and no processes or pages kept that an episode never comes back to.
    "--disable-features=HttpsUpgrades,HttpsFirstBalancedModeAutoEnable,Translate,MediaRouter,"
    "SpareRendererForSitePerProcess,BackForwardCache,RenderDocument,PaintHolding",
    "--force-webrtc-ip-handling-policy=disable_non_proxied_udp",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)


class BrowserDied(SandboxError):
    """The browser crashed, hung or did not start; a fresh one may do better."""


class Chromium:
    """A running browser.

    Raises:
        MissingExtra: playwright or a Chromium is not installed.
        BrowserDied: it did not start.
    """

    def __init__(self) -> None:
        need("playwright.async_api", extra="browser")
        self.program = find_program()
        self.users = 0
        self.relay = Relay()
        self._gone = False
        self._places = threading.BoundedSemaphore(PLACES)
        self._pid = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="turnwise-browser", daemon=True
        )
        self._thread.start()
        try:
            self.run(self._start(), timeout_s=START_S)
        except BaseException:
            self.close()
            raise

    @property
    def alive(self) -> bool:
        """Whether it can still be used."""
        return not self._gone and self.browser.is_connected()

    def run(self, work: Coroutine[Any, Any, T], *, timeout_s: float = CALL_S) -> T:
        """Run a coroutine on the browser's thread, once there is a place, and return its result.

        Args:
            work: What to run; it is closed if it cannot be.
            timeout_s: From its start; waiting for a place is not counted, and comes to an end,
                since whoever has one is held to a deadline.

        Raises:
            BrowserDied: the browser crashed or did not do it in time.
        """
        with self._places:
            if self._gone:
                work.close()
                raise BrowserDied("the browser was closed")
            return self._result(asyncio.run_coroutine_threadsafe(work, self._loop), timeout_s)

    def _result(self, future: concurrent.futures.Future[T], timeout_s: float) -> T:
        try:
            return future.result(timeout_s)
        except concurrent.futures.TimeoutError:
            future.cancel()
            self._gone = True
            raise BrowserDied(f"the browser did not answer within {timeout_s:g} s") from None
        except concurrent.futures.CancelledError:
            raise BrowserDied("the browser was closed") from None
        except self.error as error:
            raise BrowserDied(f"the browser failed: {str(error).splitlines()[0]}") from error

    def close(self) -> None:
        """End the browser, its relay and its thread. Safe to call twice; never raises."""
        self._gone = True
        if self._loop.is_closed():
            return
        ending = asyncio.run_coroutine_threadsafe(self._end(), self._loop)
        try:
            ending.result(END_S)
        except BaseException:
            self._kill()
        self.relay.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(END_S)
        if not self._thread.is_alive():
            self._loop.close()

    @property
    def error(self) -> type[Exception]:
        """What playwright raises."""
        return need("playwright.async_api", extra="browser").Error

    async def _start(self) -> None:
        api = need("playwright.async_api", extra="browser")
        self._playwright = await api.async_playwright().start()
        self.browser = await self._playwright.chromium.launch(
            executable_path=self.program,
            headless=True,
            args=[*FLAGS, *(["--no-sandbox"] if os.geteuid() == 0 else [])],
            proxy={"server": f"http://127.0.0.1:{self.relay.port}", "bypass": "<-loopback>"},
            handle_sigint=False,
            handle_sigterm=False,
            handle_sighup=False,
        )
        session = await self.browser.new_browser_cdp_session()
        processes = (await session.send("SystemInfo.getProcessInfo"))["processInfo"]
        self._pid = next(int(p["id"]) for p in processes if p["type"] == "browser")
        await session.detach()

    async def _end(self) -> None:
        with contextlib.suppress(Exception):
            await asyncio.wait_for(self.browser.close(), END_S / 2)
            self._pid = 0
        self._kill()  # before its driver ends, which then removes the browser's folders
        with contextlib.suppress(Exception):
            await asyncio.wait_for(self._playwright.stop(), END_S / 4)

    def _kill(self) -> None:
        """End a browser that does not close: the very process that was started here."""
        pid, self._pid = self._pid, 0
        if pid:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)


def find_program() -> str:
    """Return the path of a Chromium on this machine.

    Raises:
        MissingExtra: there is none; the message holds the command that installs one.
    """
    if (told := os.environ.get(PROGRAM_VARIABLE)) is not None:
        if not os.access(told, os.X_OK):
            raise MissingExtra(f"{PROGRAM_VARIABLE}={told} is no program", name="chromium")
        return told
    for name in PROGRAMS:
        if (found := shutil.which(name)) is not None:
            return found
    raise MissingExtra(
        "no Chromium on the PATH; run `sudo apt-get install chromium-headless-shell`, or set "
        f"{PROGRAM_VARIABLE} to one",
        name="chromium",
    )


_lock = threading.Lock()
_chromium: Chromium | None = None
_linger: threading.Timer | None = None


def lease_chromium() -> Chromium:
    """Return the browser of this process, started if need be; give it back with `release`.

    Raises:
        MissingExtra, BrowserDied: see `Chromium`.
    """
    global _chromium
    dead = None
    try:
        with _lock:
            if _chromium is not None and not _chromium.alive:
                dead, _chromium = _chromium, None
            if _chromium is None:
                _chromium = Chromium()
            _chromium.users += 1
            return _chromium
    finally:
        if dead is not None:
            dead.close()  # may take seconds, which nobody else has to wait for


def release_chromium(chromium: Chromium) -> None:
    """Give a leased browser back; the last one out ends it after a while."""
    global _linger
    with _lock:
        chromium.users -= 1
        if chromium.users == 0 and chromium is _chromium:
            if _linger is not None:
                _linger.cancel()
            _linger = threading.Timer(LINGER_S, close_idle)
            _linger.daemon = True
            _linger.start()


def close_idle() -> None:
    """End the browser of this process unless somebody uses it."""
    global _chromium
    unused = None
    with _lock:
        if _chromium is not None and _chromium.users == 0:
            unused, _chromium = _chromium, None
    if unused is not None:
        unused.close()


def _at_exit() -> None:
    global _chromium
    with _lock:
        last, _chromium = _chromium, None
    if last is not None:
        last.close()


def _forget_in_child() -> None:
    # A forked child has neither the browser's thread nor its pipe.
    global _lock, _chromium, _linger
    _lock, _chromium, _linger = threading.Lock(), None, None


atexit.register(_at_exit)
os.register_at_fork(after_in_child=_forget_in_child)
