"""`WebEnv`: an environment whose agent uses a web site, as text or in a real browser.

Example, in two files. `guest_site.py`, which runs in the sandbox:

    from turnwise.envs.web.kit import Answer, Request, escape, page, redirect

    def respond(request: Request) -> Answer:
        names = request.db.setdefault("names", [])
        if request.method == "POST":
            names.append(request.form["name"])
            return redirect("/")
        rows = "".join(f"<li>{escape(name)}</li>" for name in names)
        field = '<label>Name <input name="name"></label> <button>Sign</button>'
        return page("Guests", f'<h1>Guests</h1><ul>{rows}</ul><form method="post">{field}</form>')

and the environment, which sends the agent there and reads the site's database:

    class GuestBook(WebEnv):
        Task = Guest
        site = ".guest_site"

        def tasks(self, split):
            first = 100 * self.splits.index(self.known_split(split))
            return [Guest(name=f"guest{first + i}") for i in range(100)]

        def setup(self, task, rng):
            return self.open_site(f"Sign the guest book as {task.name}, then call done.")

        @reward()
        def signed(self, episode) -> float:
            return float(self.db == {"names": [self.task.name]})

        def expert(self):
            if self.db.get("names"):
                return self.call_text("done")
            field = self.page.find("textbox", "Name")
            if field.value != self.task.name:
                return self.type_into(field, self.task.name)
            return self.click_on(self.page.find("button", "Sign"))

`mode="browser"` plays the same tasks in headless Chromium, with the same actions, observations and
rewards. What the agent reads is `turnwise.envs.web.page`'s text either way.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from turnwise.envs.base import Response
from turnwise.envs.knobs import count
from turnwise.envs.sandbox_env import SandboxEnv
from turnwise.envs.tools import ToolFailed, tool
from turnwise.envs.types import Message, Task, digest
from turnwise.envs.web.modes import MODES
from turnwise.envs.web.page import Element, Page
from turnwise.envs.web.site import Session, Site
from turnwise.envs.web.tab import Tab, typed
from turnwise.envs.web.window import Window
from turnwise.sandboxes.base import Limits, Sandbox
from turnwise.sandboxes.shared import SHARED_LIMITS, shared_sandbox

STYLE = Path(__file__).with_name("style.css")


class WebEnv(SandboxEnv):
    """A `SandboxEnv` with a site and a tab: write `site`, `tasks`, `setup`, rewards and `expert`.

    The site runs in a box of this process; the agent only clicks, so environments share the box
    and each has a database of its own there. No page reaches any network.

    Args:
        mode: `text` (requests and an HTML parser) or `browser` (headless Chromium; needs
            `pip install 'turnwise[browser]'` and a Chromium).
        view_lines: So many lines of a page are shown at once; `scroll` shows the others.
        remind: Repeat the goal above every page, so that an agent may forget all but the last.
        pictures: Let `browser` mode take a picture after each action. It goes into
            `info["picture"]`, a JPEG, and from there beside the record.
        options: See `SandboxEnv`.

    Raises:
        UnknownName: there is no such mode.
        ValueError: `view_lines` is no whole number from 5.
        TypeError: `pictures` is neither True nor False.
    """

    site: ClassVar[str | tuple[str, ...]] = ""
    """The module with `respond`; `.name` stands beside the environment's own. Of several, each may
    import those before it and the last one responds."""
    static: ClassVar[tuple[str, ...]] = ()
    """Files beside the environment's module that the site serves: style sheets, SVG pictures."""
    limits: Limits = SHARED_LIMITS
    hints = False

    page: Page
    """What the tab shows now."""

    def __init__(
        self,
        *,
        mode: str = "text",
        view_lines: int = 60,
        remind: bool = False,
        pictures: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        count("view_lines", view_lines, 5)
        self.mode, self.remind = MODES[mode], remind
        self.window = Window(view_lines)
        self.fast = self.mode.fast  # type: ignore[misc]
        if not isinstance(pictures, bool):
            raise TypeError(
                f"pictures is True or False, got {pictures!r}; a record keeps them beside itself"
            )
        self.pictures = pictures
        self._session: Session | None = None
        self._tab: Tab | None = None
        self._db_text = "{}"

    def open_site(self, goal: str, data: Mapping[str, Any] | None = None, start: str = "/") -> str:
        """Start this episode's site and return the opening: the goal and the first page.

        Args:
            goal: What the agent is to do, in words.
            data: JSON values that the site reads as `request.data`.
            start: The page on which the agent begins.

        Raises:
            SandboxError: the box or the browser could not be started.
            SiteError: the site's code cannot be loaded, or raised.
        """
        self._goal, self.window.top = goal, 0
        self._session = Session(self.box, self._site(), data or {})
        self._tab = self.mode.open(self._session)
        self._show(self._tab.visit(start))
        self._history = [self.page.url]
        return f"{goal}\n\n{self._view()}"

    @property
    def db(self) -> dict[str, Any]:
        """A copy of the site's database, as it was after the last action; for graders."""
        return json.loads(self._db_text)

    @tool
    def click(self, id: int) -> str:
        """Click a link, button, checkbox or radio button.

        Args:
            id: Its number in brackets.
        """
        element = self._element(id)
        return self._act(self._open_tab.click(element.id - 1))

    @tool
    def type(self, id: int, text: str) -> str:
        """Fill a field; what it held is replaced.

        Args:
            id: Its number in brackets.
            text: What it is to hold.
        """
        element = self._element(id, "textbox", "number", "date")
        try:
            held = typed(element.role, text, multiline=element.node.tag == "textarea")
        except ValueError as error:
            raise ToolFailed(f"[{id}]: {error}") from None
        return self._act(self._open_tab.type(element.id - 1, held))

    @tool
    def select(self, id: int, option: str) -> str:
        """Choose an option of a combobox.

        Args:
            id: Its number in brackets.
            option: The option as it is written.
        """
        element = self._element(id, "combobox")
        if option not in element.options:
            raise ToolFailed(f"[{id}] has no option {option[:40]!r}")
        return self._act(self._open_tab.select(element.id - 1, element.options.index(option)))

    @tool
    def scroll(self, direction: Literal["down", "up"]) -> str:
        """Show the next or the previous lines of the page.

        Args:
            direction: down or up.
        """
        if not self.window.scroll(direction, self.page):
            raise ToolFailed(f"nothing further {direction}")
        self._open_tab.look(self.window.first(self.page))
        self._open_tab.between = self.window.between(self.page)
        return self._view()

    @tool
    def back(self) -> str:
        """Go back to the page before this one; it is loaded anew."""
        if len(self._history) < 2:
            raise ToolFailed("this is the first page")
        self._history.pop()
        return self._act(self._open_tab.visit(self._history.pop()))

    @tool(final=True)
    def done(self) -> str:
        """Say that the task is done; ends the episode."""
        return "done"

    def click_on(self, element: Element) -> str:
        """Return the action that clicks `element`, or else one that brings it into view."""
        return self._reach(element) or self.call_text("click", id=element.id)

    def type_into(self, element: Element, text: str) -> str:
        """Return the action that fills `element`, or else one that brings it into view."""
        return self._reach(element) or self.call_text("type", id=element.id, text=text)

    def select_in(self, element: Element, option: str) -> str:
        """Return the action that chooses `option`, or else one that brings it into view."""
        return self._reach(element) or self.call_text("select", id=element.id, option=option)

    def system(self) -> str:
        """Return what the agent is told before the goal."""
        if self.format.name == "command":
            return f"tools: {' '.join(self.parts.tools)}"
        return super().system()

    def respond(self, action: str) -> Response:
        """Answer a turn; a reminded agent reads the page again after a mistake, too."""
        answer = super().respond(action)
        if self.remind and "error" in answer.info:
            answer.observation = f"{answer.observation}\n{self._reminded()}"
            answer.messages = [Message(role=self.role, content=answer.observation)]
        answer.info |= self._seen()
        return answer

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Start an episode."""
        opening, info = super().reset(seed=seed, options=options)
        return opening, info | self._seen()

    def _seen(self) -> dict[str, bytes]:
        """Return the entry of `info` that holds a picture of the tab, if there is to be one."""
        picture = self._open_tab.picture() if self.pictures else None
        return {} if picture is None else {"picture": picture}

    def begin(self, seed: int | None, *args: Any, **kwargs: Any) -> Task:
        """Start the books of an episode; tab and database of the last one are given up."""
        task = super().begin(seed, *args, **kwargs)
        self._db_text = "{}"
        return task

    def state_hash(self) -> str:
        """Hash what the site knows, what the tab shows and where back leads."""
        seen = [self.page.url, self.window.top, self.page.lines, self._history]
        return digest([self.task.key, *seen, self._db_text, self._ended])

    @property
    def box(self) -> Sandbox:
        """The box of this process in which sites run.

        Raises:
            SandboxError: it could not be started.
        """
        box = shared_sandbox("web", **self._how())
        self._used = box.backend
        return box

    def release(self) -> None:
        """Close the tab and forget the episode in the box. Safe to call twice; never raises."""
        tab, session = self._tab, self._session
        self._tab = self._session = None
        if tab is not None:
            tab.close()
        if session is not None:
            session.close()
        super().release()

    @property
    def _open_tab(self) -> Tab:
        assert self._tab is not None, "setup must call open_site"
        return self._tab

    def _element(self, id: int, *roles: str) -> Element:
        """Return an element that is in view, enabled and of one of `roles`."""
        elements = self.page.elements
        if not 1 <= id <= len(elements):
            raise ToolFailed(f"no element [{id}]; there are 1 to {len(elements)}")
        element = elements[id - 1]
        if not self.window.holds(element):
            raise ToolFailed(f"[{id}] is not in view; scroll")
        if element.disabled:
            raise ToolFailed(f"[{id}] is disabled")
        if roles and element.role not in roles:
            raise ToolFailed(f"[{id}] is a {element.role}")
        return element

    def _reach(self, element: Element) -> str:
        towards = self.window.towards(element)
        return self.call_text("scroll", direction=towards) if towards else ""

    def _act(self, page: Page) -> str:
        """Take over the page after an action and return what the agent reads."""
        if page.document != self.page.document:
            self.window.top = 0
            if self._history[-1:] != [page.url]:
                self._history.append(page.url)
        self._show(page)
        return self._reminded() if self.remind else self._view()

    def _show(self, page: Page) -> None:
        assert self._session is not None and self._tab is not None
        self.page, self._db_text = page, self._session.db_text
        self.window.fit(page)
        self._tab.between = self.window.between(page)

    def _view(self) -> str:
        return self.window.text(self.page)

    def _reminded(self) -> str:
        return f"{self._goal}\n{self._view()}"

    def _site(self) -> Site:
        """The code of the site: modules by their full names, and files beside them."""
        names = (self.site,) if isinstance(self.site, str) else self.site
        home = type(self).__module__
        package = home.rpartition(".")[0]
        modules = tuple(
            f"{package}{name}".lstrip(".") if name.startswith(".") else name for name in names
        )
        folder = Path(sys.modules[home].__file__ or ".").parent
        return Site(modules, (STYLE, *(folder / name for name in self.static)))
