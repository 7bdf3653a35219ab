"""Laws of the demo, on a miniature of it that is run twice into the same folder."""

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest
from boxes import need_bubblewrap

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SCRIPT = Path(__file__).parents[1] / "scripts" / "demo.py"
TASKS = 6
MINIATURE = f"""
    --test-tasks {TASKS} --warm-up.demos 24 --warm-up.steps 2 --warm-up.batch 4
    --warm-up.check-every 2 --warm-up.check-tasks 2
    --train.steps 2 --train.tasks-per-step 2 --train.group-size 2
""".split()
EVALUATIONS = ("before", "before_greedy", "after", "after_greedy")
STAGES = ("model", "demonstrations", "SFT", "evaluation", "RL", "replay")


def run(out):
    argv = [sys.executable, str(SCRIPT), "--out", str(out), *MINIATURE]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return subprocess.run(argv, env=env, text=True, capture_output=True, stdin=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def twice(tmp_path_factory):
    """Two runs into one folder: what each printed, its folder now, its summary and its report."""
    need_bubblewrap()
    parent = tmp_path_factory.mktemp("demo")
    done = [run(parent / "demo") for _ in range(2)]
    for process in done:
        assert process.returncode == 0, process.stdout + process.stderr
    aside = [folder for folder in parent.iterdir() if folder.name != "demo"]
    return [
        SimpleNamespace(
            said=process.stdout,
            folder=folder,
            summary=json.loads((folder / "summary.json").read_text()),
            report=(folder / "report.html").read_text(),
        )
        for process, folder in zip(done, [*aside, parent / "demo"], strict=True)
    ]


def test_a_second_run_moves_the_first_aside_whole_and_says_where(twice):
    first, second = twice
    names = [{str(p.relative_to(r.folder)) for p in r.folder.iterdir()} for r in twice]
    assert names[0] == names[1] == {"sft", "rl", "eval", "summary.json", "report.html"}
    assert str(first.folder) in second.said.replace("\n", "")
    assert str(first.folder) not in first.said, "the first had nothing to move"


def test_the_summary_has_success_before_and_after_with_intervals_and_floors(twice):
    for summary in (run.summary for run in twice):
        for name in EVALUATIONS:
            success = summary[name]["success"]
            assert 0 <= success["low"] <= success["value"] <= success["high"] <= 1
            assert (
                success["n"] == summary[name]["episodes"] == TASKS and not summary[name]["masked"]
            )
            assert sorted(summary[name]["by"]["depth"], key=int) == ["2", "3", "4", "5", "6", "7"]
        floors = summary["before"]["floors"]
        assert {"noop", "random"} <= floors.keys()
        assert all(f["low"] <= f["value"] <= f["high"] and f["n"] == TASKS for f in floors.values())


def test_every_evaluated_episode_was_replayed_without_a_divergence(twice):
    for run in twice:
        recorded = [row for path in run.folder.glob("eval/*.jsonl") for row in episodes(path)]
        replay = run.summary["replay"]
        assert replay["divergences"] == 0 and replay["first"] == []
        assert replay["episodes"] == len(recorded) == TASKS * (len(EVALUATIONS) + 2)


def test_the_summary_has_the_seconds_of_every_stage_and_their_sum(twice):
    for seconds in (run.summary["seconds"] for run in twice):
        stages = {name: value for name, value in seconds.items() if name != "all"}
        assert all(any(name.startswith(stage) for name in stages) for stage in STAGES)
        assert seconds["all"] == pytest.approx(sum(stages.values()), abs=0.06) and seconds["RL"] > 0


def episodes(path):
    """The episodes of a record file; its head has no environment."""
    return [row for row in map(json.loads, path.read_text().splitlines()) if "env_id" in row]


def told(run):
    """What happened in a run, the clock left out: every action of every episode, and the sums."""
    paths = [*sorted(run.folder.glob("eval/*.jsonl")), run.folder / "rl/episodes.jsonl"]
    actions = {
        (path.name, row["id"]): [turn["action"] for turn in row["turns"]]
        for path in paths
        for row in episodes(path)
    }
    return actions, {name: part for name, part in run.summary.items() if name != "seconds"}


def test_one_seed_tells_one_story(twice):
    first, second = map(told, twice)
    assert first == second and len(first[0]) == TASKS * 6 + 2 * 2 * 2
    assert first[1]["steps"] == 2 and first[1]["seed"] == 0


class Page(HTMLParser):
    """What is to be read on a page, and what it would fetch."""

    def __init__(self, text):
        super().__init__()
        self.tag, self.words, self.fetched = "", [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tag = tag
        asks = {"src", "srcset", "href", "data", "action", "poster", "xlink:href"}
        self.fetched += [v for name, v in attributes if name in asks and v and v[0] != "#"]

    def handle_data(self, data):
        if self.tag not in ("script", "style"):
            self.words.append(data)


def test_the_report_holds_the_numbers_of_the_summary(twice):
    for run in twice:
        text = " ".join(Page(run.report).words)
        before, after = (run.summary[name]["success"] for name in ("before", "after"))
        assert f"from {100 * before['value']:.1f} % to {100 * after['value']:.1f} %" in text
        bounds = f"{100 * after['low']:.1f} – {100 * after['high']:.1f} · n = {TASKS}"
        assert bounds in text and f"of {run.summary['replay']['episodes']} episodes" in text
        for name, seconds in run.summary["seconds"].items():
            assert re.search(rf"{re.escape(name)}\s+{seconds:.0f} s", text), name


def test_the_report_holds_the_episodes_and_is_self_contained(twice):
    for report in (run.report for run in twice):
        data = re.search(r'<script type="application/json" id="data">(.*?)</script>', report, re.S)
        assert len(json.loads(data[1])["episodes"]) == TASKS * (len(EVALUATIONS) + 2)
        assert Page(report).fetched == [] and not re.search(r"https?://|@import|url\(", report)


def test_it_ends_with_a_plain_sentence_and_commands_that_name_the_folder(twice):
    said = twice[1].said
    assert f"of {TASKS} tasks that it had never seen" in said
    for name in ("report.html", "eval/after.jsonl"):
        assert str(twice[1].folder / name) in said and (twice[1].folder / name).exists()
