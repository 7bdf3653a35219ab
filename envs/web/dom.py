"""A page as a tree: the same one from its HTML as from the live document of a browser."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
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

    def walk(self) -> Iterator[Node]:
        """Yield this element and all below it, in the order of the page."""
        waiting = [self]
        while waiting:
            node = waiting.pop()
            yield node
            for child in reversed(node.children):
                if child.__class__ is Node:
                    waiting.append(child)

    def text(self) -> str:
        """Return all text below, white space collapsed."""
        return " ".join("".join(self._texts()).split(" "))

    def _texts(self) -> Iterator[str]:
        for child in self.children:
            if isinstance(child, str):
                yield child
            else:
                yield from child._texts()


class _Builder(HTMLParser):
    """Builds the tree of HTML whose elements are closed, or left open as browsers allow."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Node("document")
        self.open = [self.root]
        self.fields: list[Node] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for ended in CLOSED_BY.get(tag, ()):
            if self.open[-1].tag == ended:
                self.open.pop()
        node = Node(tag, {name: value or "" for name, value in reversed(attrs)})
        self.open[-1].children.append(node)
        if tag in ("select", "textarea"):
            self.fields.append(node)
        if tag not in VOID:
            self.open.append(node)

    def handle_endtag(self, tag: str) -> None:
        for depth in range(len(self.open) - 1, 0, -1):
            if self.open[depth].tag == tag:
                del self.open[depth:]
                return

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def parse_html(html: str) -> Node:
    """Return the tree of a page, its controls as a browser shows them at first."""
    builder = _Builder()
    builder.feed(html)
    builder.close()
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
