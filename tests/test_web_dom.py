"""Laws of how pages are read: as Python's own reader does, and odd ones as browsers do."""

from __future__ import annotations

import time
from html import escape
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from turnwise.envs.web.dom import parse_html

TEXTS = st.text("ab <&\"'>é\n", min_size=1, max_size=6)
PAGES = st.recursive(
    TEXTS.map(lambda text: escape(text, quote=False)),
    lambda inside: st.builds(
        lambda tag, value, parts: f'<{tag} title="{escape(value)}">{"".join(parts)}</{tag}>',
        st.sampled_from(("div", "b", "SPAN", "em")),
        st.text("ab <&\"'>=/", max_size=5),
        st.lists(inside, max_size=3),
    ),
    max_leaves=12,
)


class Reference(HTMLParser):
    """What Python's own reader makes of well-formed HTML, as nested lists."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.open = [[]]
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        node = [tag, dict(attrs), []]
        self.open[-1].append(node)
        self.open.append(node[2])

    def handle_endtag(self, tag):
        self.open.pop()

    def handle_data(self, data):
        self.open[-1].append(data)


def nested(children):
    """Nested lists of nodes or of the reference; texts that touch are one."""
    found = []
    for child in children:
        if not isinstance(child, str):
            tag, attrs, below = (
                child if isinstance(child, list) else (child.tag, child.attrs, child.children)
            )
            found.append([tag, attrs, nested(below)])
        elif found and isinstance(found[-1], str):
            found[-1] += child
        else:
            found.append(child)
    return found


@settings(deadline=None, max_examples=200)
@given(PAGES)
def test_a_page_is_read_as_python_reads_it(html):
    assert nested(parse_html(html).children) == nested(Reference(html).open[0])


@pytest.mark.parametrize(
    ("html", "tree"),
    [
        ("a < b <3 <", ["a < b <3 <"]),
        ("<!doctype html><!-- <p> -->x<!-- open", ["x"]),
        ("<p a b=1 c='2>' a=3>x", [["p", {"a": "", "b": "1", "c": "2>"}, ["x"]]]),
        ("<title>a <b> &amp;</TITLE>x", [["title", {}, ["a <b> &"]], "x"]),
        ("<script>'<p>' &amp;</script>", [["script", {}, ["'<p>' &amp;"]]]),
        ("<br/><i>x</b></i>", [["br", {}, []], ["i", {}, ["x"]]]),
        ("<style>open", [["style", {}, ["open"]]]),
    ],
)
def test_odd_html_is_read_as_browsers_read_it(html, tree):
    assert nested(parse_html(html).children) == tree


@pytest.mark.parametrize("piece", ["<", "<a ", "<a b='", '<a "', "</", "<!--", "&", "<a b=c "])
def test_no_page_takes_longer_than_its_length_allows(piece):
    def seconds(count):
        began = time.thread_time()
        parse_html(piece * count)
        return time.thread_time() - began

    assert seconds(8000) < 30 * max(seconds(1000), 0.001)
