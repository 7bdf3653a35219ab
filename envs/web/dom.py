"""A page as a tree: the same one from its HTML as from the live document of a browser."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from html import unescape
from typing import Any

VOID = frozenset(
    ("area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "wbr")
)
SKIPPED = frozenset(("head", "script", "style", "template", "noscript", "svg"))
"""What a reader does not see; of the head only the title is kept."""
CLOSED_BY = {
    "li": ("li",),
    "option": ("option",),
    "tr": ("tr", "td", "th"),
    "td": ("td", "th"),
    "th": ("td", "th"),
    "dt": ("dt", "dd"),
    "dd": ("dt", "dd"),
    "p": ("p",),
}
"""An element that begins ends an open one of these, as in browsers."""


@dataclass(slots=True)
class Node:
    """An element; its children are elements and texts.

    Of a control, `attrs` hold what it shows *now*: `value`, `checked`, `selected`.
    """

    tag: str
    attrs: dict[str, str] = field(default_factory=dict)
    children: list[Node | str] = field(default_factory=list)

    def walk(self) -> list[Node]:
        """Return this element and all below it, in the order of the page."""
        found = [self]
        for child in self.children:
            if child.__class__ is Node:
                found += child.walk() if child.children else (child,)
        return found

    def text(self) -> str:
        """Return all text below, white space collapsed."""
        return " ".join("".join(self._texts()).split(" "))

    def _texts(self) -> Iterator[str]:
        for child in self.children:
            if isinstance(child, str):
                yield child
            else:
                yield from child._texts()


_TOKEN = re.compile(
    r"<(?:/([a-zA-Z][^\s/>]*+)[^>]*+>"
    r"|([a-zA-Z][^\s/>]*+)((?:[^>\"']++|\"[^\"]*+\"|'[^']*+')*+)>"
    r"|!--.*?-->|[!?][^>]*+>)",
    re.DOTALL,
)
"""An end tag, a start tag, a comment or a declaration; all else is text."""
_ATTRIBUTE = re.compile(
    r"([^\s/>=][^\s/>=]*+)(?:\s*+=\s*+(?:\"([^\"]*+)\"|'([^']*+)'|([^\s>]*+)))?"
)
_UNCLOSED = re.compile("<[!?]")
_RAW = frozenset(("script", "style", "textarea", "title"))
"""Elements in which no tag begins before their own end."""


class _Builder:
    """Builds the tree of HTML whose elements are closed, or left open as browsers allow.

    Two expressions take the text apart: a page is read some three times as fast as by
    `html.parser`, and much of the time of a step was spent there.
    """

    def __init__(self) -> None:
        self.root = Node("document")
        self.open = [self.root]
        self.fields: list[Node] = []

    def feed(self, html: str) -> None:
        """Read a whole page."""
        place, end_of_tags = 0, html.rfind(">") + 1  # what is not closed is not searched for
        while (found := _TOKEN.search(html, place, end_of_tags)) is not None:
            if found.start() > place:
                self.say(html[place : found.start()])
            place = found.end()
            end, tag, attrs = found.groups()
            if tag:
                self.begin(tag.lower(), attrs)
                if self.open[-1].tag in _RAW:
                    place = self.skip(html, place)
            elif end:
                self.end(end.lower())
        self.say(_UNCLOSED.split(html[place:], maxsplit=1)[0])

    def begin(self, tag: str, attrs: str) -> None:
        """Start an element."""
        if tag in CLOSED_BY and self.open[-1].tag in CLOSED_BY[tag]:
            self._close_before(tag)
        node = Node(tag, _attributes(attrs) if attrs else {})
        self.open[-1].children.append(node)
        if tag in ("select", "textarea"):
            self.fields.append(node)
        if tag not in VOID:
            self.open.append(node)

    def _close_before(self, tag: str) -> None:
        for ended in CLOSED_BY[tag]:
            if self.open[-1].tag == ended:
                self.open.pop()

    def end(self, tag: str) -> None:
        """End the innermost open element of that name, and all that is open in it."""
        for depth in range(len(self.open) - 1, 0, -1):
            if self.open[depth].tag == tag:
                del self.open[depth:]
                return

    def say(self, text: str) -> None:
        """Add text, its character references resolved."""
        if text:
            self.open[-1].children.append(unescape(text) if "&" in text else text)

    def skip(self, html: str, place: int) -> int:
        """Take what follows as text, up to the end tag of the element; return where that is."""
        tag = self.open[-1].tag
        found = re.compile(rf"</{tag}(?=[\s/>])", re.IGNORECASE).search(html, place)
        end = found.start() if found else len(html)
        if tag in ("script", "style"):
            self.open[-1].children.append(html[place:end])
        else:
            self.say(html[place:end])
        return end


def _attributes(text: str) -> dict[str, str]:
    """Return names and values; of two of one name the first counts."""
    found: dict[str, str] = {}
    for name, double, single, bare in _ATTRIBUTE.findall(text):
        value = double or single or bare
        found.setdefault(name.lower(), unescape(value) if "&" in value else value)
    return found


def parse_html(html: str) -> Node:
    """Return the tree of a page, its controls as a browser shows them at first."""
    builder = _Builder()
    builder.feed(html)
    for node in builder.fields:
        _begin(node)
    return builder.root


def _begin(node: Node) -> None:
    if node.tag == "textarea":
        node.attrs["value"] = "".join(t for t in node.children if isinstance(t, str))
        node.attrs["value"] = node.attrs["value"].removeprefix("\n")
    elif node.tag == "select":
        options = options_of(node)
        chosen = [option for option in options if "selected" in option.attrs]
        choose(node, (chosen or options[:1])[-1] if options else None)


def options_of(select: Node) -> list[Node]:
    """Return the options of a `select` element."""
    children = select.children
    if all(child.__class__ is Node and child.tag == "option" for child in children):
        return children  # type: ignore[return-value]
    return [node for node in select.walk() if node.tag == "option"]


def choose(select: Node, option: Node | None) -> None:
    """Make `option` the only one that is selected."""
    for other in options_of(select):
        other.attrs.pop("selected", None)
    if option is not None:
        option.attrs["selected"] = ""


def from_json(value: Any) -> Node:
    """Return the tree that a browser sent as `[tag, attrs, children]`."""
    tag, attrs, children = value
    return Node(tag, attrs, [c if isinstance(c, str) else from_json(c) for c in children])
