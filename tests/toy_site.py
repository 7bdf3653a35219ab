"""A site of the tests: runs in the sandbox."""

import os

from turnwise.envs.web.kit import Answer, Request, escape, not_found, page, redirect

ZOO = """
<h1>Zoo &amp; <em>more</em></h1><p>One<p>Two &nbsp; &eacute; &lt;b&gt;
<ul><li>first<li>second <a href="/zoo?x=1&amp;y=2">li  nk</a></ul>
<table><tr><th>head</th><td>cell</td></tr><tr><td>a</td><td><b>b</b></td></tr></table>
<dl><div><dt>term</dt> <dd>meaning</dd></div></dl>
<div hidden>not this</div><div aria-hidden="true">nor this</div>
<p role="alert">Look out</p><img src="data:," alt="a picture"><svg><title>no</title></svg>
<form action="/echo" method="get"><label for="a">Alpha</label> <input id="a" name="a" value="1">
<label>Beta <select name="b"><option value="x">ex<option>why</select></label>
<input type="checkbox" name="c" aria-label="Gamma" checked> <input type="hidden" name="h" value="s">
<label><input type="radio" name="d" value="1"> one</label>
<label><input type="radio" name="d" value="2" checked> two</label>
<textarea name="e" placeholder="Epsilon">
 first
second</textarea> <input type="number" name="n"> <input type="date" name="t" title="When">
<input name="off" disabled value="no"><button disabled>Never</button><input type="reset">
<button name="go" value="1">Go</button> <input type="submit" value="Other">
<button formaction="/x" type="button">Nothing</button></form>
<a name="anchor">no link</a> <a href="#top">up</a> <button>outside</button>
<script>var hidden = "text";</script><noscript>none</noscript>
"""
POST = """<form method="post" action="/echo"><label>Text <input name="text"></label>
<label>Area <textarea name="area"></textarea></label><label>Number <input type="number" name="n">
</label><label>Date <input type="date" name="t"></label><button>Send</button></form>"""
LONG = "".join(f'<p>line {i} <a href="/long?at={i}">go {i}</a></p>' for i in range(1, 101))
STORED = """<p id="out">nothing</p><script>
document.getElementById("out").textContent = "kept " + localStorage.getItem("x");
localStorage.setItem("x", "from before");</script>"""
REACHING = """<p id="out">waiting</p><script>
const seen = [];
const tries = TRIES.map((to) => fetch(to, {mode: "no-cors"}).then(
  (answer) => seen.push(to + " " + answer.type + answer.status), () => seen.push(to + " failed")));
tries.push(new Promise((go) => { const s = new WebSocket("ws://127.0.0.1:PORT/");
  s.onopen = () => { seen.push("socket open"); go(); }; s.onerror = go; }));
Promise.all(tries).then(() => {
  document.getElementById("out").textContent = seen.sort().join("; ");
  document.title = "tried"; });</script>"""


def respond(request: Request) -> Answer:
    """Answer one request."""
    names = request.db.setdefault("names", [])
    pages = {"/zoo": ZOO, "/post": POST, "/long": LONG, "/stored": STORED}
    if request.path == "/":
        return guests(request, names)
    if request.path in pages:
        return page(request.path[1:], pages[request.path])
    if request.path == "/echo":
        got = [request.method, sorted(request.query.items()), sorted(request.form.items())]
        return page("echo", f"<pre>{escape(ascii(got))}</pre>")
    if request.path == "/cookie":
        had = request.cookies.get("seen", "none")
        answer = page("cookie", f"<p>cookie {escape(had)}</p>")
        return Answer(answer.body, 200, {"Set-Cookie": "seen=before; Path=/"})
    if request.path == "/reach":
        tries = repr(request.data["tries"])
        return page("reach", REACHING.replace("TRIES", tries).replace("PORT", request.data["port"]))
    if request.path == "/covered":
        lid = '<div style="position:fixed;inset:0;background:#fff"></div>'
        return page("covered", f'<a href="/">under</a>{lid}')
    if request.path == "/raise":
        raise RuntimeError("this site is broken")
    if request.path == "/exit":
        os._exit(1)
    if request.path == "/hang":
        while True:
            pass
    if request.path == "/round":
        return redirect("/round")
    return not_found()


def guests(request: Request, names: list) -> Answer:
    """The guest book."""
    if request.method == "POST":
        names.append(request.form["name"])
        return redirect("/")
    rows = "".join(f"<li>{escape(name)}</li>" for name in names)
    links = " ".join(f'<a href="/{name}">{name}</a>' for name in request.data.get("links", ()))
    field = '<label>Name <input name="name"></label> <button>Sign</button>'
    form = f'<form method="post">{field}</form>'
    return page("Guests", f"<h1>Guests</h1><ul>{rows}</ul>{form}<p>{links}</p>")
