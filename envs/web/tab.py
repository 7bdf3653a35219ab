"""One browser tab, in two ways that an agent cannot tell apart: see `Tab`."""

from __future__ import annotations

import re
from math import isfinite
from typing import Protocol

from turnwise.envs.web.dom import Node, choose, options_of, parse_html
from turnwise.envs.web.forms import form_of, resolve, submission
from turnwise.envs.web.page import Page
from turnwise.envs.web.site import Session, SiteError

MAX_REDIRECTS = 10
Between = tuple[int | None, int | None]
"""The elements next above and next below, from 0; None is the top and the end of the page."""


class Tab(Protocol):
    """Shows one page of a site at a time; every call returns the page as it then is.

    Raises:
        SandboxError: the box or the browser failed.
        SiteError: the site's code raised.
    """

    between: Between
    """What of the page is in view; a picture shows no less."""

    def visit(self, target: str) -> Page:
        """Open a path of the site."""

    def click(self, number: int) -> Page:
        """Press element `number`, from 0."""

    def type(self, number: int, text: str) -> Page:
        """Put `text` into a field in place of what it holds."""

    def select(self, number: int, option: int) -> Page:
        """Choose an option of a combobox."""

    def look(self, number: int | None) -> None:
        """Scroll so that element `number` is at the top; None is the top of the page."""

    def picture(self) -> bytes | None:
        """A JPEG of what is in view; None where nothing is drawn."""

    def close(self) -> None:
        """Give it up. Safe to call twice; never raises."""


class TextTab:
    """Requests and an HTML parser: links are followed, forms sent, nothing is drawn.

    There are no styles and no scripts: a site for both ways works without scripts.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.between: Between = (None, None)
        self.root = Node("document")
        self.url = "/"
        self.cookies: dict[str, str] = {}
        self.loads = 0
        self._elements: list[Node] = []

    def visit(self, target: str) -> Page:
        """See `Tab`."""
        return self._go("GET", resolve("/", target))

    def click(self, number: int) -> Page:
        """See `Tab`."""
        node = self._elements[number]
        kind = node.attrs.get("type", "").lower()
        if node.tag == "a":
            href = node.attrs["href"]
            return (
                self._page() if href.startswith("#") else self._go("GET", resolve(self.url, href))
            )
        if node.tag == "input" and kind in ("checkbox", "radio"):
            self._toggle(node, kind)
        elif _submits(node, kind) and (form := form_of(self.root, node)) is not None:
            sent = submission(form, node, self.url)
            return self._go(sent.method, sent.target, sent.body)
        return self._page()

    def type(self, number: int, text: str) -> Page:
        """See `Tab`."""
        self._elements[number].attrs["value"] = text
        return self._page()

    def select(self, number: int, option: int) -> Page:
        """See `Tab`."""
        node = self._elements[number]
        choose(node, options_of(node)[option])
        return self._page()

    def look(self, number: int | None) -> None:
        """See `Tab`."""

    def picture(self) -> bytes | None:
        """See `Tab`."""
        return None

    def close(self) -> None:
        """See `Tab`."""

    def _toggle(self, node: Node, kind: str) -> None:
        if kind == "checkbox" and "checked" in node.attrs:
            del node.attrs["checked"]
            return
        if kind == "radio":
            within = form_of(self.root, node) or self.root
            for other in within.walk():
                if all(other.attrs.get(a) == node.attrs.get(a) for a in ("type", "name")):
                    other.attrs.pop("checked", None)
        node.attrs["checked"] = ""

    def _go(self, method: str, target: str, body: str = "") -> Page:
        for _ in range(MAX_REDIRECTS):
            jar = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
            reply = self.session.request(method, target, body, jar)
            self._keep(reply.headers.get("Set-Cookie", ""))
            if not 300 <= reply.status < 400:
                break
            method, target, body = "GET", resolve(target, reply.headers["Location"]), ""
        else:
            raise SiteError(f"{target} was redirected more than {MAX_REDIRECTS} times")
        self.root, self.url = parse_html(reply.body), target
        self.loads += 1
        return self._page()

    def _keep(self, cookie: str) -> None:
        name, equals, value = cookie.partition(";")[0].partition("=")
        if equals:
            self.cookies[name.strip()] = value.strip()

    def _page(self) -> Page:
        page = Page(self.root, self.url, str(self.loads))
        self._elements = [element.node for element in page.elements]
        return page


def _submits(node: Node, kind: str) -> bool:
    return kind in ("submit", "image") or (node.tag == "button" and not kind)


MAX_TYPED = 2000
"""Characters. A site that was flooded would fail, and what fails there is taken for no doing of the
agent's."""
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_DATE = re.compile(r"\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])")
_NUMBER = re.compile(r"-?(\d+(\.\d+)?|\.\d+)([eE][-+]?\d+)?")


def typed(role: str, text: str, *, multiline: bool = False) -> str:
    """Return what a field of that role holds after `text` was typed into it.

    Raises:
        ValueError: a browser would not take it, or it is longer than any form of ours expects; the
            message says what it takes.
    """
    if len(text) > MAX_TYPED:
        raise ValueError(f"a field takes at most {MAX_TYPED} characters, got {len(text)}")
    text = _CONTROL.sub("", text).encode("utf-8", "replace").decode()
    if not multiline:
        text = text.replace("\n", "")
    if text and role == "number" and not (_NUMBER.fullmatch(text) and isfinite(float(text))):
        raise ValueError("this field takes a number")
    if text and role == "date" and not _is_date(text):
        raise ValueError("this field takes a date as YYYY-MM-DD")
    return text


def _is_date(text: str) -> bool:
    if not _DATE.fullmatch(text):
        return False
    year, month, day = map(int, text.split("-"))
    leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    days = (31, 29 if leap else 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
    return year > 0 and day <= days[month - 1]
