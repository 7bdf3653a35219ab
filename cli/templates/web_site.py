"""The site of MyEnv; it runs in a box."""

from turnwise.envs.web.kit import Answer, Request, escape, page, redirect


def respond(request: Request) -> Answer:
    """Return the page for one request; `request.db` is the database of this episode."""
    names = request.db.setdefault("names", [])
    if request.method == "POST":
        names.append(request.form.get("name", "")[:100])
        return redirect("/")
    rows = "".join(f"<li>{escape(name)}</li>" for name in names)
    form = '<label>Name <input name="name"></label> <button>Sign</button>'
    return page("Guests", f'<h1>Guests</h1><ul>{rows}</ul><form method="post">{form}</form>')
