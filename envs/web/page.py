"""A page as an agent reads it: numbered elements and text, line by line, as a screen reader would.

page: Cart
[1] link 'Home' [2] textbox 'Search' = '' [3] button 'Search'
# Cart
[4] link 'Oak lamp' $20.00
[5] combobox 'Quantity' = '1' (1, 2, 3)
[6] button 'Checkout'
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from turnwise.envs.web.dom import SKIPPED, Node, options_of

INLINE = frozenset(
    (
        *("a", "abbr", "b", "button", "cite", "code", "dd", "dt", "em", "i", "img", "input"),
        *("label", "mark", "q", "s", "select", "small", "span", "strong", "sub", "sup", "td"),
        *("textarea", "th", "time", "u"),
    )
)
"""Elements that begin no line of their own."""
CONTROLS = {"input": "", "button": "button", "select": "combobox", "textarea": "textbox"}
"""Roles by element; of an `input` its type decides."""
HEADINGS = frozenset(("h1", "h2", "h3", "h4", "h5", "h6"))
TEXTUAL = frozenset(("", "text", "search", "email", "tel", "url", "password"))
_SPACES = re.compile(r"[ \t\n\r\f]+")


@dataclass(frozen=True, slots=True)
class Element:
    """Something that one can click, type into or choose from."""

    id: int
    """As the agent names it: its place in the page, from 1."""
    role: str
    """link, button, textbox, number, date, combobox, checkbox or radio."""
    name: str
    node: Node = field(repr=False)
    line: int = 0
    """The line of the page on which it stands."""

    @property
    def value(self) -> str:
        """What a field holds, or the option that is selected."""
        if self.role == "combobox":
            return next((o for o in self.options if self._selected(o)), "")
        return self.node.attrs.get("value", "")

    @property
    def checked(self) -> bool:
        """Whether a checkbox or radio button is on."""
        return "checked" in self.node.attrs

    @property
    def disabled(self) -> bool:
        """Whether it does nothing."""
        return "disabled" in self.node.attrs

    @property
    def href(self) -> str:
        """Where a link leads."""
        return self.node.attrs.get("href", "")

    @property
    def options(self) -> list[str]:
        """The labels of what can be selected."""
        return [_collapsed(option.text()) for option in options_of(self.node)]

    def _selected(self, label: str) -> bool:
        return any(
            "selected" in option.attrs and _collapsed(option.text()) == label
            for option in options_of(self.node)
        )

    def __str__(self) -> str:
        text = f"[{self.id}] {self.role} '{self.name}'"
        if self.role in ("checkbox", "radio"):
            text += " on" if self.checked else " off"
        elif self.role not in ("link", "button"):
            text += f" = '{_collapsed(self.value)}'"
        if self.role == "combobox":
            text += f" ({', '.join(self.options)})"
        return f"{text} disabled" if self.disabled else text


class Page:
    """One page as it is now.

    Args:
        root: The tree of its document.
        url: Path and query.
        document: Another one after each load; for telling a load from a change.
    """

    def __init__(self, root: Node, url: str, document: str = "") -> None:
        self.root, self.url, self.document = root, url, document
        self.title = ""
        self.elements: list[Element] = []
        self.lines: list[str] = []
        self._pieces: list[str] = []
        self._prefix = ""
        self._labels = _Labels(root)
        self._visit(root)
        self._end_line()
        self.lines.insert(0, f"page: {self.title}")

    def find(self, role: str, name: str) -> Element | None:
        """Return the first element of that role and exact name, or None."""
        return next((e for e in self.elements if e.role == role and e.name == name), None)

    def says(self, text: str) -> bool:
        """Whether `text` stands in some line."""
        return any(text in line for line in self.lines)

    def _visit(self, node: Node) -> None:
        attrs = node.attrs
        if node.tag in SKIPPED:
            self._read_title(node)
        elif "hidden" in attrs or attrs.get("aria-hidden") == "true":
            return
        elif (role := _role(node)) is not None:
            self._add(node, role)
        elif node.tag == "img":
            self._say(attrs.get("alt", ""))
        elif node.tag in INLINE:
            self._go_on(node)
        else:
            self._end_line()
            self._prefix = _prefix(node) or self._prefix
            self._go_on(node)
            self._end_line()

    def _go_on(self, node: Node) -> None:
        said = node.tag == "label" and node in self._labels  # it stands in its control's name
        for child in node.children:
            if not isinstance(child, str):
                self._visit(child)
            elif not said:
                self._say(child)

    def _say(self, text: str) -> None:
        if text := _collapsed(text):
            self._pieces.append(text)

    def _add(self, node: Node, role: str) -> None:
        name = self._labels.name(node)
        # The line's number counts the title, which is put above all others at the end.
        element = Element(len(self.elements) + 1, role, name, node, len(self.lines) + 1)
        self.elements.append(element)
        self._pieces.append(str(element))

    def _end_line(self) -> None:
        if self._pieces:
            self.lines.append(self._prefix + " ".join(self._pieces))
            self._pieces, self._prefix = [], ""

    def _read_title(self, node: Node) -> None:
        for below in node.walk() if node.tag == "head" else ():
            if below.tag == "title":
                self.title = _collapsed(below.text())


def _prefix(node: Node) -> str:
    if node.tag in HEADINGS:
        return "# "
    return "! " if node.attrs.get("role") == "alert" else ""


def _collapsed(text: str) -> str:
    if text.isascii() and text.isprintable() and "  " not in text:  # as nearly all texts are
        return text.strip(" ")
    return _SPACES.sub(" ", text).strip(" ")


def _role(node: Node) -> str | None:
    if node.tag == "a":
        return "link" if "href" in node.attrs else None
    if node.tag not in CONTROLS:
        return None
    if (kind := node.attrs.get("type", "").lower()) == "reset":
        return None
    if node.tag == "input":
        return _role_of_input(kind)
    return CONTROLS[node.tag]


def _role_of_input(kind: str) -> str | None:
    if kind in ("submit", "button", "image"):
        return "button"
    if kind in ("checkbox", "radio", "number", "date"):
        return kind
    return None if kind == "hidden" else "textbox"


class _Labels:
    """Which label names which control: by `for`, or by standing around it."""

    def __init__(self, root: Node) -> None:
        self.by_id: dict[str, Node] = {}
        self.around: dict[int, Node] = {}
        controls = set()
        for node in root.walk():
            if node.tag != "label":
                if "id" in node.attrs and _role(node) is not None:
                    controls.add(node.attrs["id"])
            elif "for" in node.attrs:
                self.by_id[node.attrs["for"]] = node
            else:
                self.around |= {id(below): node for below in node.walk() if _role(below)}
        named = [label for control, label in self.by_id.items() if control in controls]
        self.in_use = {id(label) for label in (*named, *self.around.values())}

    def __contains__(self, label: Node) -> bool:
        return id(label) in self.in_use

    def name(self, node: Node) -> str:
        """Return the accessible name of a link, button or field."""
        attrs = node.attrs
        if told := _collapsed(attrs.get("aria-label", "")):
            return told
        if node.tag in ("a", "button"):
            return _collapsed(_text_outside_controls(node)) or _collapsed(attrs.get("title", ""))
        label = self.around.get(id(node)) or self.by_id.get(attrs.get("id", ""))
        if label is not None and (text := _collapsed(_text_outside_controls(label))):
            return text
        if node.tag == "input" and _role(node) == "button":
            return _collapsed(attrs.get("value", "")) or "Submit"
        return _collapsed(attrs.get("placeholder") or attrs.get("title") or attrs.get("name", ""))


def _text_outside_controls(node: Node) -> str:
    parts = []
    for child in node.children:
        if isinstance(child, str):
            parts.append(child)
        elif child.tag == "img":
            parts.append(child.attrs.get("alt", ""))
        elif child.tag not in ("select", "textarea", *SKIPPED):
            parts.append(_text_outside_controls(child))
    return " ".join(parts)
