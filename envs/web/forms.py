"""How a browser sends a form: which fields, in which order, how encoded."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote_plus, urljoin, urlsplit

from turnwise.envs.web.dom import Node, options_of

_UNSENT = frozenset(("submit", "button", "reset", "image", "file"))


@dataclass(frozen=True, slots=True)
class Submission:
    """One request that a form makes."""

    method: str
    target: str
    body: str = ""


def form_of(root: Node, control: Node) -> Node | None:
    """Return the form in which a control stands."""
    return next((n for n in root.walk() if n.tag == "form" and _holds(n, control)), None)


def _holds(node: Node, control: Node) -> bool:
    return any(below is control for below in node.walk())


def submission(form: Node, button: Node, url: str) -> Submission:
    """Return what is sent when `button` of `form` is pressed on the page `url`."""
    pairs = [pair for node in form.walk() if (pair := _pair(node, button)) is not None]
    encoded = "&".join(f"{_encoded(name)}={_encoded(value)}" for name, value in pairs)
    target = resolve(url, form.attrs.get("action", "") or url)
    if form.attrs.get("method", "get").lower() == "post":
        return Submission("POST", target, encoded)
    return Submission("GET", f"{target.partition('?')[0]}?{encoded}")


def resolve(url: str, href: str) -> str:
    """Return path and query of a link on the page `url`."""
    parts = urlsplit(urljoin(url, href))
    return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


def _pair(node: Node, button: Node) -> tuple[str, str] | None:
    attrs = node.attrs
    if not (name := attrs.get("name")) or "disabled" in attrs:
        return None
    if node is button:
        return name, attrs.get("value", "")
    if node.tag == "select":
        return _selected(name, node)
    if node.tag == "textarea":
        return name, attrs.get("value", "")
    kind = attrs.get("type", "").lower()
    if node.tag != "input" or kind in _UNSENT:
        return None
    if kind in ("checkbox", "radio"):
        return (name, attrs.get("value", "on")) if "checked" in attrs else None
    return name, attrs.get("value", "")


def _selected(name: str, select: Node) -> tuple[str, str] | None:
    for option in options_of(select):
        if "selected" in option.attrs:
            return name, option.attrs.get("value", " ".join(option.text().split()))
    return None


def _encoded(text: str) -> str:
    """Encode as `application/x-www-form-urlencoded`, in which browsers differ from `quote_plus`."""
    lines = text.replace("\r\n", "\n").replace("\n", "\r\n")
    return quote_plus(lines, safe="*").replace("~", "%7E")
