"""Laws of the report: whatever was recorded is shown, nothing of it runs, nothing is fetched."""

from __future__ import annotations

import html
import json
import math
import re
import subprocess
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from browsers import need_browser
from hypothesis import given, settings
from hypothesis import strategies as st

from turnwise.agents import charts
from turnwise.agents.statistics import EMPTY, Interval, mean_t, wilson
from turnwise.agents.viewer import Exhibit, Headline, Table, write_report
from turnwise.envs.types import Episode, Outcome, Segment, Task, Turn
from turnwise.envs.web.chromium import find_program

HOSTILE = [
    "</script><script>document.title='owned'</script>",
    "<!--<script>",
    "]]> &lt; & \" ' {{data}} {{title}}",
    "<img src=x onerror=\"document.title='owned'\">",
    "\u2028\u2029\x00\x1b[31m\ud800é",
]


def episode(text: str, **fields) -> Episode:
    turn = Turn(
        context_ids=(1, 2),
        action_ids=(7, 8),
        logprobs=(-0.25, -2.5),
        observation=text,
        action=text,
        reward=0.5,
        rewards={text: 0.5},
        state_before="a" * 16,
        state_after="b" * 16,
        calls=({"id": "c0", "error": text},),
    )
    fields = {"id": "e0", "env_id": "toy/Toy-v1", "task": Task(hidden={"answer": "42"}), **fields}
    return Episode(segments=(Segment(turns=(turn,)),), success=True, **fields)


def report(path, text="plain", **more) -> str:
    defaults = {
        "title": text,
        "text": text,
        "facts": {text: text},
        "headline": [Headline(text, wilson(3, 4), note=text, floor=0.1, lead=True)],
        "curve": [{"step": k, text or "x": k / 9} for k in range(10)],
        "floors": {text: 0.1},
        "tables": [Table(text, ["depth", text], [[2, wilson(1, 2)], [text, text]], note=text)],
        "episodes": [Exhibit(episode(text, error=text, final_observation=text), text, text)],
        "decode": lambda ids: text,
    }
    return write_report(path, **{**defaults, **more}).read_text(encoding="utf-8")


class Reader(HTMLParser):
    """Collects the elements of a page, and the text of its scripts."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] == "script":
            self.scripts.append(data)


def embedded(page: str) -> dict:
    return json.loads(Reader(page).scripts[0])


def skeleton(page: str) -> list:
    """The page's elements and attribute names: what markup there is, whatever the texts say."""
    return [(tag, sorted(attributes)) for tag, attributes in Reader(page).tags]


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_adds_an_element_or_an_attribute(tmp_path, text):
    page = report(tmp_path / "a.html", text)
    assert skeleton(page) == skeleton(report(tmp_path / "b.html", "x" * len(text)))
    (shown,) = embedded(page)["episodes"]
    assert shown["turns"][0]["read"] == text
    assert (shown["label"], shown["error"], shown["final"]) == (text, text, text)


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(exclude_categories=()), max_size=30))
def test_any_text_comes_through_the_embedded_data_unchanged(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("viewer") / "r.html"
    page = report(path, "plain", episodes=[Exhibit(episode(text), text)])
    assert skeleton(page) == skeleton(report(path))
    (shown,) = embedded(page)["episodes"]
    assert (shown["turns"][0]["act"], shown["label"]) == (text, text)


def test_the_page_fetches_nothing_and_forbids_it(tmp_path):
    page = report(tmp_path / "r.html")
    tags = Reader(page).tags
    assert not [a for _, attributes in tags for a in attributes if a in ("src", "href", "srcset")]
    assert not re.search(r"https?://|@import|url\(", page.replace("http-equiv", ""))
    (policy,) = [a["content"] for tag, a in tags if tag == "meta" and "http-equiv" in a]
    assert policy.startswith("default-src 'none'")
    assert "innerHTML" not in page


def test_what_is_for_the_grader_alone_is_not_shown(tmp_path):
    page = report(tmp_path / "r.html")
    assert embedded(page)["episodes"][0]["task"] == {}
    assert '"answer"' not in page


def test_tokens_and_their_logprobs_stand_side_by_side(tmp_path):
    names = {7: "cat", 8: "<|end|>"}
    page = report(tmp_path / "r.html", decode=lambda ids: names[ids[0]])
    data = embedded(page)
    (turn,) = data["episodes"][0]["turns"]
    assert [data["vocabulary"][place] for place in turn["tokens"]] == ["cat", "<|end|>"]
    assert turn["logprobs"] == [-0.25, -2.5]
    assert embedded(report(tmp_path / "r.html", decode=None))["vocabulary"] == ["#7", "#8"]


def test_numbers_are_shown_with_their_intervals_or_as_unknown(tmp_path):
    numbers = [wilson(348, 400), EMPTY, mean_t([0.5]), 12, 0.123456, math.nan, "0 of 400"]
    headline = [Headline(f"n{k}", value) for k, value in enumerate(numbers)]
    page = report(tmp_path / "r.html", headline=headline)
    values = [
        html.unescape(re.sub(r"<[^>]+>", "", v)) for v in re.findall(r'"value">(.*?)</p>', page)
    ]
    assert values == ["87.0%", "–", "50.0%", "12", "0.1235", "–", "0 of 400"]
    assert "83.3 – 89.9 · n = 400" in page


def test_an_episode_with_a_number_that_is_not_finite_is_still_shown(tmp_path):
    odd = episode("x", metrics={"loss": math.nan, "best": math.inf}, outcome=Outcome.JUDGE_ERROR)
    (shown,) = embedded(report(tmp_path / "r.html", episodes=[Exhibit(odd)]))["episodes"]
    assert shown["metrics"] == {"loss": None, "best": None}
    assert shown["masked"]


def test_a_report_without_anything_is_a_page_and_replaces_only_a_whole_one(tmp_path):
    path = tmp_path / "deep" / "r.html"
    before = write_report(path, title="empty").read_text()
    assert "<h2>Training" not in before
    with pytest.raises(ZeroDivisionError):
        write_report(path, title="new", episodes=(1 / 0 for _ in "x"))
    assert path.read_text() == before
    assert [p.name for p in path.parent.iterdir()] == ["r.html"]


def test_hundreds_of_episodes_fit(tmp_path):
    path = tmp_path / "r.html"
    turns = episode("observation " * 20).turns * 10
    many = [Exhibit(Episode(id=f"e{k}", env_id="t", task=Task(), segments=(Segment(turns=turns),)))
            for k in range(400)]  # fmt: skip
    write_report(path, title="many", episodes=many)
    assert path.stat().st_size < 5_000_000


def points(svg: str, tag: str) -> list[list[tuple[float, float]]]:
    found = re.findall(rf'<{tag} class="(?:line|band)" points="([^"]*)"', svg)
    return [[tuple(map(float, p.split(","))) for p in run.split()] for run in found]


def test_a_curve_rises_when_its_numbers_do_and_breaks_at_a_gap():
    rows = [{"step": k, "success": k / 10} for k in range(11)]
    (line,) = points(charts.curve(rows, "success"), "polyline")
    assert all(a[0] < b[0] and a[1] > b[1] for a, b in pairwise(line))
    rows[5]["success"] = math.nan
    assert [len(run) for run in points(charts.curve(rows, "success"), "polyline")] == [5, 5]
    assert points(charts.curve([], "success"), "polyline") == []
    assert len(points(charts.curve([{"step": 3, "x": 1.0}], "x"), "polyline")) == 1


def test_the_band_encloses_its_line_and_the_floors_lie_at_their_values():
    rows = [{"step": k, "s": 0.5, "s_low": 0.4, "s_high": 0.7} for k in range(3)]
    svg = charts.curve(rows, "s", floors={"random": 0.5, "no-op": 0.0})
    ((band,), (line,)) = points(svg, "polygon"), points(svg, "polyline")
    assert min(y for _, y in band) < line[0][1] < max(y for _, y in band)
    heights = [float(y) for y in re.findall(r'class="floorline".*? y1="([\d.]+)"', svg)]
    assert heights[0] == line[0][1] < heights[1]
    assert "random 50%" in svg
    assert charts.series_of(rows) == ["s"]


def axis(svg: str) -> list[float]:
    """The numbers on the y axis."""
    return [float(tick) for tick in re.findall(r'class="tick y"[^>]*>([^<]*)<', svg)]


@pytest.mark.parametrize("values", [[0, 0], [0.01, 0.02], [0, 1], [1, 1], [0.0]])
def test_success_is_always_drawn_from_zero_to_one(values):
    rows = [{"step": k, "success": value} for k, value in enumerate(values)]
    ticks = axis(charts.curve(rows, "success"))
    assert (ticks[0], ticks[-1]) == (0, 1)
    (line,) = points(charts.curve(rows, "success"), "polyline")
    bottom, top = 270, 12
    assert [y for _, y in line] == pytest.approx(
        [bottom - v * (bottom - top) for v in values], abs=0.1
    )


@settings(deadline=None)
@given(st.just(0.0) | st.floats(1e-9, 1e6) | st.floats(-1e6, -1e-9))
def test_a_series_of_one_value_lies_inside_an_axis_that_shows_it_and_no_other_sign(value):
    ticks = axis(charts.curve([{"step": k, "loss": value} for k in range(3)], "loss"))
    slack = 1e-3 * abs(value)  # ticks are written with four digits
    assert len(ticks) >= 2 and ticks[0] - slack <= value <= ticks[-1] + slack
    assert all(tick * value >= 0 for tick in ticks)


@settings(deadline=None)
@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.integers(2, 9))
def test_ticks_are_round_few_and_inside(low, span, count):
    found = charts.ticks(low, low + span, count)
    assert len(found) <= count + 1
    assert all(low - span * 1e-6 <= tick <= low + span * (1 + 1e-6) for tick in found)


@settings(deadline=None)
@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_a_range_bar_never_leaves_its_track(a, b, c):
    low, value, high = sorted((a, b, c))
    bar = charts.range_bar(Interval(value, low, high, 9), floor=a)
    assert all(0 <= float(share) <= 100 for share in re.findall(r":([\d.e-]+)%", bar))


def test_a_browser_shows_the_episodes_and_runs_nothing_of_them(tmp_path):
    need_browser()
    program = find_program()
    page = tmp_path / "r.html"
    shown = [Exhibit(episode(text, id=f"e{k}"), "after") for k, text in enumerate(HOSTILE)]
    write_report(page, title="safe", episodes=shown, decode=lambda ids: HOSTILE[ids[0] - 7])
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync"
    more = "--disable-background-networking --disable-component-update --dump-dom"
    command = [program, *flags.split(), *more.split(), f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run(
        [*command, f"{page.as_uri()}#episode-3"], capture_output=True, text=True, timeout=120
    )
    dom = done.stdout
    assert "<title>safe</title>" in dom
    assert len(re.findall('class="row"', dom)) == len(HOSTILE)
    assert "5 episodes, 5 solved" in dom
    assert "&lt;img src=x onerror" in dom
    assert "<img" not in dom
