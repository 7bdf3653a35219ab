"""A tab of headless Chromium: what `page.js` hands over, read by the same code as HTML is."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from pathlib import Path
from typing import Any

from turnwise.envs.tools import ToolFailed
from turnwise.envs.web.chromium import (
    CALL_S,
    BrowserDied,
    Chromium,
    lease_chromium,
    release_chromium,
)
from turnwise.envs.web.dom import from_json
from turnwise.envs.web.page import Page
from turnwise.envs.web.relay import HEADER, ORIGIN
from turnwise.envs.web.site import Session
from turnwise.envs.web.tab import Between

VIEWPORT = {"width": 1000, "height": 750}
JPEG_QUALITY = 60
MAX_HEIGHT = 16_000
"""Of a picture, in pixels; a JPEG holds no more than 65535."""
LOAD_S = 15.0
SCRIPT = Path(__file__).with_name("page.js")


class ChromeTab:
    """A tab in a context of its own: no cookie, cache or storage of another episode is in it.

    Raises:
        MissingExtra: playwright or a Chromium is not installed.
        BrowserDied: the browser did not start.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.between: Between = (None, None)
        self._chromium: Chromium | None = lease_chromium()
        self._context: Any = None
        self._token = self._chromium.relay.admit(session)
        try:
            self._chromium.run(self._open())
        except BaseException:
            self.close()
            raise

    def visit(self, target: str) -> Page:
        """See `Tab`."""
        return self._read(self._visit(target))

    def click(self, number: int) -> Page:
        """See `Tab`.

        Raises:
            ToolFailed: something lies over the element.
        """
        return self._read(self._click(number))

    def type(self, number: int, text: str) -> Page:
        """See `Tab`."""
        return self._read(self._call("type", number, text))

    def select(self, number: int, option: int) -> Page:
        """See `Tab`."""
        return self._read(self._call("select", number, option))

    def look(self, number: int | None) -> None:
        """See `Tab`."""
        self._run(self._call("look", number))

    def picture(self) -> bytes | None:
        """See `Tab`."""
        return self._run(self._picture())

    def close(self) -> None:
        """See `Tab`."""
        chromium, self._chromium = self._chromium, None
        if chromium is None:
            return
        chromium.relay.refuse(self._token)
        if self._context is not None and chromium.alive:
            with contextlib.suppress(BrowserDied):
                chromium.run(self._context.close())
        release_chromium(chromium)

    async def _open(self) -> None:
        assert self._chromium is not None
        self._context = await self._chromium.browser.new_context(
            viewport=VIEWPORT,
            extra_http_headers={HEADER: self._token},
            service_workers="block",
            accept_downloads=False,
            locale="en-US",
            timezone_id="UTC",
            reduced_motion="reduce",
        )
        await self._context.add_init_script(path=SCRIPT)
        self._page = await self._context.new_page()

    async def _visit(self, target: str) -> Any:
        await self._page.goto(ORIGIN + target, wait_until="load", timeout=LOAD_S * 1e3)
        return await self._call("read")

    async def _click(self, number: int) -> Any:
        place = await self._call("aim", number)
        if place is None:
            raise ToolFailed(f"[{number + 1}] cannot be clicked: something lies over it")
        await self._page.mouse.click(place["x"], place["y"])
        return await self._settled(place["id"])

    async def _picture(self) -> bytes:
        frame = await self._call("frame", *self.between)
        frame["height"] = min(frame["height"], MAX_HEIGHT)
        return await self._page.screenshot(
            type="jpeg",
            quality=JPEG_QUALITY,
            caret="hide",
            full_page=True,  # the frame may reach beyond the screen
            clip=frame,
            timeout=LOAD_S * 1e3,
        )

    async def _settled(self, before: str) -> Any:
        """Read the page once what a click began has ended: a load, or none was asked for."""
        deadline = time.monotonic() + LOAD_S
        while (left := deadline - time.monotonic()) > 0:
            try:
                return await asyncio.wait_for(self._call("settled", before), left)
            except TimeoutError:
                break
            except Exception as error:
                if not _is_between_pages(error):
                    raise
            await asyncio.sleep(0.003)
        raise BrowserDied(f"a page was not loaded within {LOAD_S:g} s")

    async def _call(self, name: str, *args: Any) -> Any:
        return await self._page.evaluate(f"args => window.__turnwise.{name}(...args)", list(args))

    def _run(self, work: Any) -> Any:
        if self._chromium is None:
            work.close()
            raise BrowserDied("the tab was closed")
        return self._chromium.run(work, timeout_s=CALL_S)

    def _read(self, work: Any) -> Page:
        """Run `work`, which returns what `page.js` read, and return it as a page."""
        try:
            seen = json.loads(self._run(work))
        finally:
            if (failure := self.session.failure) is not None:
                self.session.failure = None
                raise failure
        return Page(from_json(seen["tree"]), seen["url"], seen["id"])


def _is_between_pages(error: Exception) -> bool:
    return any(word in str(error) for word in ("context was destroyed", "navigat", "__turnwise"))
