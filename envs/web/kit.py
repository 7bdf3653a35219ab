"""What a site is written with. This file runs in the box, beside the site, without turnwise.

A site is a module with one function, `respond(request)`, which returns a page:

    from turnwise.envs.web.kit import Answer, Request, escape, page, redirect

    def respond(request: Request) -> Answer:
        if request.method == "POST":
            request.db.setdefault("names", []).append(request.form["name"])
            return redirect("/")
        rows = "".join(f"<li>{escape(name)}</li>" for name in request.db.get("names", []))
        field = '<label>Name <input name="name"></label> <button>Sign</button>'
        return page("Guests", f'<ul>{rows}</ul><form method="post">{field}</form>')

`request.data` is what the environment gave the site to start with; `request.db` is this episode's
database, a dict of JSON values that starts empty and that the environment's graders read.
"""

from __future__ import annotations

import html
from dataclasses import dataclass, field

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

escape = html.escape
"""Text as it may stand in HTML, also within quotes."""


@dataclass(frozen=True)
class Request:
    """One request of the browser."""

    method: str
    """`GET` or `POST`."""
    path: str
    """Without host and query: `/cart`."""
    query: Mapping[str, str]
    """What follows the `?`, decoded; of several values of one name the last."""
    form: Mapping[str, str]
    """The fields of a form that was posted. A checkbox that is not ticked is not among them."""
    data: Mapping[str, Any]
    """What `WebEnv.open_site` was given. For reading only."""
    db: dict[str, Any]
    """What this episode has changed: JSON values alone. Change it in place."""
    cookies: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """What the browser gets."""

    body: str = ""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


def page(title: str, body: str, *, status: int = 200, header: str = "", style: str = "") -> Answer:
    """Return a whole HTML page.

    Args:
        title: Of the page; the agent reads it, too. Plain text.
        body: HTML of the page's main part.
        status: 422 for a form that was not accepted, 404 for what is not there.
        header: HTML above the main part, the same on all pages.
        style: A style sheet of the environment's `static` files, over the usual one.
    """
    more = f'<link rel="stylesheet" href="{style}">' if style else ""
    top = f"<header>{header}</header>" if header else ""
    return Answer(
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f"<title>{escape(title)}</title>"
        '<meta name="viewport" content="width=device-width">'
        '<link rel="stylesheet" href="/style.css">'
        f"{more}</head>"
        f"<body>{top}<main>{body}</main></body></html>",
        status,
    )


def redirect(to: str, headers: Mapping[str, str] | None = None) -> Answer:
    """Send the browser to another path of the site, after a form was accepted."""
    return Answer("", 303, {"Location": to, **(headers or {})})


def not_found() -> Answer:
    """Return the page for a path that is not there."""
    return page("Not found", '<h1>Not found</h1><p><a href="/">Home</a></p>', status=404)
