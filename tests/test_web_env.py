"""Web environments: two modes that cannot be told apart, and a browser that reaches no network."""

from __future__ import annotations

import asyncio
import http.client
import os
import random
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from boxes import need_bubblewrap
from browsers import need_browser, play_both, wandering

from turnwise.agents.blobs import picture_faults
from turnwise.agents.jobs import jobs_for
from turnwise.agents.pictures import Pictures
from turnwise.agents.policy import ScriptedPolicy, expert
from turnwise.agents.record import RecordWriter, read_records
from turnwise.agents.replay import execute
from turnwise.agents.rollout import Settings, play
from turnwise.envs.check import check_env
from turnwise.envs.names import UnknownName
from turnwise.envs.tools import reward
from turnwise.envs.types import Episode, Task
from turnwise.envs.web import chromium
from turnwise.envs.web.chrome import VIEWPORT
from turnwise.envs.web.chromium import BrowserDied, close_idle, lease_chromium, release_chromium
from turnwise.envs.web.dom import parse_html
from turnwise.envs.web.env import WebEnv
from turnwise.envs.web.page import Page
from turnwise.envs.web.relay import HEADER, HOST
from turnwise.envs.web.site import SiteError
from turnwise.envs.web.tab import typed
from turnwise.sandboxes.base import SandboxDied, SandboxError

BOTH = ("text", "browser")


@pytest.fixture(scope="module", autouse=True)
def _a_box():
    need_bubblewrap()
    yield
    close_idle()


@dataclass(frozen=True, kw_only=True)
class Guest(Task):
    name: str


class GuestBook(WebEnv):
    """Sign the guest book."""

    Task = Guest
    site = "toy_site"
    start = "/"
    data: dict = {}  # noqa: RUF012
    max_turns = 12

    def tasks(self, split):
        first = 100 * self.splits.index(self.known_split(split))
        return [Guest(name=f"guest{first + i}") for i in range(100)]

    def setup(self, task, rng):
        return self.open_site(f"Sign as {task.name}, then call done.", self.data, self.start)

    @reward()
    def signed(self, episode) -> float:
        return float(self.db.get("names") == [self.task.name])

    def expert(self):
        if self.db.get("names"):
            return self.call_text("done")
        field = self.page.find("textbox", "Name")
        if field.value != self.task.name:
            return self.type_into(field, self.task.name)
        return self.click_on(self.page.find("button", "Sign"))


def started(mode="text", start="/", data=None, seed=0, **options):
    """A `GuestBook` whose episode begins on the page `start`."""
    if mode == "browser":
        need_browser()
    env = GuestBook(mode=mode, actions="command", **options)
    env.start, env.data = start, data or {}
    try:
        env.reset(seed=seed)
    except BaseException:
        env.close()
        raise
    return closing(env)


# ---------------------------------------------------------------- both modes


@pytest.mark.parametrize("mode", BOTH)
def test_the_expert_signs_and_only_that_pays(mode):
    with started(mode) as env:
        assert env.step(env.expert())[1:4] == (0.0, False, False)
        shown = env.step(env.expert())[0]
        assert f"\n{env.task.name}\n" in shown
        _, paid, ended, _, info = env.step(env.expert())
        assert (paid, ended, info["success"]) == (1.0, True, True)
        env.reset(seed=0)
        assert env.step("done")[1] == 0.0


def test_a_page_reads_the_same_in_both_modes():
    with started("text") as text, started("browser") as browser:
        for path in ("/zoo", "/post", "/long", "/", "/echo?q=1&a=%20b", "/none"):
            one, other = (env._open_tab.visit(path) for env in (text, browser))
            assert (one.title, one.lines, one.url) == (other.title, other.lines, other.url)
            assert [str(e) for e in one.elements] == [str(e) for e in other.elements]


def test_what_a_page_says_is_said_once_and_nothing_hidden_is():
    with started("text", "/zoo") as env:
        said = "\n".join(env.page.lines)
    assert said.startswith("page: zoo\n# Zoo & more\nOne\nTwo \xa0 é <b>\nfirst\nsecond [1] link")
    for hidden in ("not this", "nor this", "var hidden", "no\n", "'h'"):
        assert hidden not in said
    assert "! Look out" in said and "head cell\na b\nterm meaning" in said
    assert said.count("Alpha") == said.count("Beta") == 1
    assert "[2] textbox 'Alpha' = '1' [3] combobox 'Beta' = 'ex' (ex, why)" in said
    assert "checkbox 'Gamma' on" in said and "radio 'one' off" in said and "radio 'two' on" in said
    assert "textbox 'Epsilon' = 'first second'" in said and "date 'When' = ''" in said
    assert "button 'Never' disabled" in said and "no link" in said


def test_a_form_sends_the_same_in_both_modes():
    with started("text", "/zoo") as text, started("browser", "/zoo") as browser:
        for env in (text, browser):
            find = env.page.find
            env.step(env.type_into(find("textbox", "Alpha"), "a b~*&=+é%\"'<"))
            env.step(env.select_in(find("combobox", "Beta"), "why"))
            env.step(env.click_on(find("checkbox", "Gamma")))
            env.step(env.click_on(find("radio", "one")))
            env.step(env.click_on(find("button", "Go")))
        assert text.page.lines == browser.page.lines and text.page.url == browser.page.url
        assert "'a b~*&=+\\xe9%" in text.page.lines[1] and "('d', '1')" in text.page.lines[1]
        assert "'c'" not in text.page.lines[1] and "('go', '1')" in text.page.lines[1]


GIVEN = {
    "Text": ("", " x ", "a\nb", "\x00\x1b[31m", "👋é\u0301", "</textarea>"),
    "Area": ("a\nb\n", "\n\nx", "\t"),
    "Number": ("3", "-0.5", "1e3", ".5", "1.", "+1", "abc", "1 2", "", "1e999", "-0", "007"),
    "Date": ("2024-02-29", "2023-02-29", "3 May 2001", "0001-01-01", "20240-1-1", ""),
}


def test_a_field_holds_and_sends_the_same_in_both_modes():
    with started("text", max_turns=99) as text, started("browser", max_turns=99) as browser:
        for field, texts in GIVEN.items():
            for given in texts:
                one, other = (_filled(env, field, given) for env in (text, browser))
                assert one == other, (field, given)


def _filled(env, field, given):
    """What one reads after typing into a field, and after sending the form."""
    env._act(env._open_tab.visit("/post"))
    element = next(e for e in env.page.elements if e.name == field)
    held = env.step(env.call_text("type", id=element.id, text=given))[0]
    return held, env.step(env.click_on(env.page.find("button", "Send")))[0]


def test_wandering_reads_the_same_in_both_modes():
    need_browser()
    text, browser = (GuestBook(mode=mode, actions="command", max_turns=25) for mode in BOTH)
    text.data = browser.data = {"links": ["zoo", "post", "long", "none", "cookie"]}
    with closing(text), closing(browser):
        for seed in range(3):
            rng = random.Random(seed)
            play_both(text, browser, seed, lambda env, rng=rng: wandering(env, rng))


@pytest.mark.parametrize("mode", BOTH)
def test_back_loads_the_page_before_anew(mode):
    with started(mode, data={"links": ["zoo"]}) as env:
        first = env.page.lines
        assert env.step("back")[0].startswith("ToolError[tool_raised] this is the first page")
        env.step(env.type_into(env.page.find("textbox", "Name"), "x"))
        env.step(env.click_on(env.page.find("link", "zoo")))
        env.step("back")
        assert env.page.lines == first and env.page.url == "/"


@pytest.mark.parametrize("mode", BOTH)
def test_what_is_not_in_view_must_be_scrolled_to(mode):
    with started(mode, "/long", view_lines=10) as env:
        far = env.page.find("link", "go 35")
        assert "not in view" in env.step(f"click {far.id}")[0]
        opening = env._view()
        assert opening.endswith("(lines 1 to 10 of 100)") and "line 11 " not in opening
        assert "nothing further up" in env.step("scroll up")[0]
        for _ in range(3):
            assert env.click_on(far) == "scroll down"
            shown = env.step(env.click_on(far))[0]
        assert "line 31 " in shown and "line 41 " not in shown and "line 30 " not in shown
        assert env.click_on(env.page.find("link", "go 1")) == "scroll up"
        env.step(env.click_on(far))
        assert env.page.url == "/long?at=35" and env.window.top == 0


@pytest.mark.parametrize("mode", BOTH)
def test_what_cannot_be_done_is_said(mode):
    with started(mode, "/zoo", max_turns=40) as env:
        find = env.page.find
        wrong = {
            "click 0": "no element [0]",
            "click 99": "no element [99]",
            f"click {find('button', 'Never').id}": "is disabled",
            f"type {find('button', 'Go').id} x": "is a button",
            f"select {find('combobox', 'Beta').id} zed": "has no option 'zed'",
        }
        before = env.state_hash()
        for action, why in wrong.items():
            assert why in env.step(action)[0], action
            assert env.state_hash() == before
        for still in ("Nothing", "outside"):
            env.step(env.click_on(find("button", still)))
        assert env.page.url == "/zoo"


def test_something_that_is_covered_cannot_be_clicked_in_a_browser():
    with started("browser", "/covered") as env:
        assert "something lies over it" in env.step("click 1")[0]


def test_a_reminded_agent_reads_the_goal_above_every_page_and_after_a_mistake():
    with started(remind=True) as env:
        goal = f"Sign as {env.task.name}, then call done."
        for action in (env.expert(), "click 77", "back"):
            observation, *_, info = env.step(action)
            assert f"{goal}\npage: Guests\n" in observation
            assert [m["content"] for m in info["messages"]] == [observation]


@pytest.mark.parametrize("mode", BOTH)
def test_no_cookie_of_one_episode_reaches_another(mode):
    with started(mode, "/cookie") as env, started(mode, "/cookie") as beside:
        assert env.page.says("cookie none") and beside.page.says("cookie none")
        env._act(env._open_tab.visit("/cookie"))
        assert env.page.says("cookie before"), "and within one it is kept"
        env.reset(seed=1)
        assert env.page.says("cookie none")


def test_no_storage_of_one_episode_reaches_another():
    with started("browser", "/stored") as env, started("browser", "/stored") as beside:
        assert env.page.says("kept null") and beside.page.says("kept null")
        env._act(env._open_tab.visit("/stored"))
        assert env.page.says("kept from before")
        env.reset(seed=1)
        assert env.page.says("kept null")


@pytest.mark.parametrize("mode", BOTH)
def test_each_episode_has_a_database_of_its_own(mode):
    with started(mode) as env, started(mode, seed=5) as beside:
        for _ in range(2):
            env.step(env.expert())
        assert env.db == {"names": [env.task.name]} and beside.db == {"names": []}
        assert env.state_hash() != beside.state_hash()


def test_the_state_hash_tells_what_is_typed_where_one_is_and_what_the_site_knows():
    with started(data={"links": ["zoo"]}) as env:
        hashes = [env.state_hash()]
        for action in ("type 1 x", "type 1 y", "type 1 x", "click 3", "back"):
            env.step(action)
            hashes.append(env.state_hash())
        assert hashes[1] == hashes[3] and hashes[0] == hashes[5]
        assert len(set(hashes)) == 4


@pytest.mark.parametrize("mode", BOTH)
def test_a_snapshot_goes_on_alike(mode):
    with started(mode) as env:
        env.step(env.expert())
        saved, state = env.snapshot(), env.state_hash()
        env.step(env.expert())
        env.restore(saved)
        assert env.state_hash() == state
        env.step(env.expert())
        assert env.db["names"] == [env.task.name]


def test_a_wrong_argument_is_refused_with_the_way_out():
    with pytest.raises(UnknownName, match="did you mean 'browser'"):
        GuestBook(mode="brwser")
    with pytest.raises(ValueError, match="view_lines must be at least 5, got 1"):
        GuestBook(view_lines=1)


def test_typing_keeps_what_a_field_can_hold():
    assert typed("textbox", "a\nb\x00c") == "abc"
    assert typed("textbox", "a\nb", multiline=True) == "a\nb"
    assert typed("textbox", "\ud800") == "?"
    with pytest.raises(ValueError, match="YYYY-MM-DD"):
        typed("date", "2023-02-30")


def test_html_that_leaves_elements_open_is_read_as_browsers_read_it():
    page = Page(parse_html("<ul><li>a<li>b</ul><p>c<p>d<table><tr><td>e<td>f</table>"), "/")
    assert page.lines[1:] == ["a", "b", "c", "d", "e f"]


# ---------------------------------------------------------------- failures


@pytest.mark.parametrize("mode", BOTH)
def test_a_site_that_raises_is_a_bug_and_no_mistake_of_the_agent(mode):
    with started(mode, data={"links": ["raise"]}) as env:
        with pytest.raises(SiteError, match="RuntimeError: this site is broken"):
            env.step(env.click_on(env.page.find("link", "raise")))
        env.reset(seed=1)
        assert env.page.title == "Guests"


def test_a_site_that_cannot_be_loaded_is_named():
    class Lost(GuestBook):
        site = "no_such_site"

    with closing(Lost()) as env, pytest.raises(SiteError, match="no_such_site"):
        env.reset(seed=0)


def test_redirects_that_never_end_are_a_bug():
    with started(data={"links": ["round"]}) as env, pytest.raises(SiteError, match="more than 10"):
        env.step(env.click_on(env.page.find("link", "round")))


class Hasty(GuestBook):
    limits = replace(GuestBook.limits, wall_s=0.5)


@pytest.mark.parametrize(("path", "kind"), [("exit", SandboxDied), ("hang", SandboxError)])
def test_a_site_that_dies_or_hangs_is_a_failure_of_the_machine(path, kind):
    env = Hasty(actions="command")
    env.data = {"links": [path]}
    with closing(env):
        env.reset(seed=0)
        with pytest.raises(kind) as raised:
            env.step(env.click_on(env.page.find("link", path)))
        assert raised.value.retryable
        env.reset(seed=1)
        assert env.page.title == "Guests"


def test_a_browser_that_is_killed_is_a_failure_of_the_machine_and_the_next_episode_has_a_new_one():
    with started("browser") as env:
        browser = env._tab._chromium
        os.kill(browser._pid, signal.SIGKILL)
        with pytest.raises(BrowserDied) as raised:
            env.step(env.expert())
            env.step(env.expert())
        assert raised.value.retryable and isinstance(raised.value, SandboxError)
        env.reset(seed=1)
        assert env._tab._chromium is not browser and env.page.title == "Guests"


def test_a_browser_that_hangs_is_one_too_and_is_ended(monkeypatch):
    with started("browser") as env:
        browser = env._tab._chromium
        pid = browser._pid
        os.kill(pid, signal.SIGSTOP)
        monkeypatch.setattr(chromium, "END_S", 2.0)
        with pytest.raises(BrowserDied, match="did not answer"):
            browser.run(env._tab._page.title(), timeout_s=0.5)
        env.reset(seed=1)
        assert env.page.title == "Guests" and env._tab._chromium is not browser
        assert not _is_alive(pid)


def _is_alive(pid):
    for _ in range(100):
        try:
            with open(f"/proc/{pid}/stat") as stat:
                if stat.read().rpartition(")")[2].split()[0] == "Z":
                    return False
        except FileNotFoundError:
            return False
        time.sleep(0.05)
    return True


def test_a_rollout_masks_a_browser_that_dies():
    need_browser()

    class Mortal(GuestBook):
        def respond(self, action):
            os.kill(self._tab._chromium._pid, signal.SIGKILL)
            return super().respond(action)

    jobs = jobs_for(Mortal().tasks("train")[:1], run_seed=0, split="train")
    policy = ScriptedPolicy(expert)
    (episode,) = play(jobs, lambda: Mortal(mode="browser"), policy, Settings(concurrency=1))
    assert episode.outcome.value == "infra_error" and not episode.trainable


# ---------------------------------------------------------------- the browser


def test_all_episodes_share_one_browser_which_ends_when_nobody_uses_it():
    with started("browser") as env, started("browser") as other:
        pid = env._tab._chromium._pid
        env.reset(seed=3)
        assert {env._tab._chromium._pid, other._tab._chromium._pid} == {pid}
        close_idle()
        assert _running(pid), "it is in use"
    close_idle()
    assert not _is_alive(pid)


def _running(pid):
    return os.path.exists(f"/proc/{pid}")


def test_a_browser_that_is_leased_again_within_its_linger_is_the_same():
    need_browser()
    first = lease_chromium()
    release_chromium(first)
    second = lease_chromium()
    release_chromium(second)
    assert first is second and second.alive


def test_who_waits_for_a_place_in_the_browser_is_not_held_to_its_deadline(monkeypatch):
    need_browser()
    browser, working, most = lease_chromium(), [], []
    monkeypatch.setattr(browser, "_places", threading.BoundedSemaphore(2))

    async def work(number):
        working.append(number)
        most.append(len(working))
        await asyncio.sleep(0.7)
        working.remove(number)
        return number

    try:
        with ThreadPoolExecutor(8) as pool:
            done = pool.map(lambda number: browser.run(work(number), timeout_s=2.0), range(8))
            assert list(done) == list(range(8))  # after 2.8 s of waiting and working
        assert max(most) == 2 and browser.alive
    finally:
        release_chromium(browser)


def test_many_environments_at_once_do_not_hold_each_other_up():
    need_browser()

    def one(seed):
        with started("browser", seed=seed) as env:
            ended = False
            while not ended:
                *_, ended, _, info = env.step(env.expert())
            return info["success"]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(one, range(16)))


LAWS = (
    *("info is complete", "seeds are honoured", "isolated from other environments"),
    *("isolated across threads", "expert is accepted", "snapshots restore", "closes twice"),
)


def test_browser_mode_keeps_the_contract():
    need_browser()
    how = {"seeds": [0], "concurrency": 3, "laws": LAWS}
    report = check_env(lambda: GuestBook(mode="browser"), **how)
    assert report.ok and len(report.checks) == len(LAWS), str(report)


@pytest.fixture
def neighbour():
    """A server of this machine, and the requests that reached it."""
    reached = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            reached.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server.server_address[1], reached
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_page_reaches_its_own_site_and_nothing_else(neighbour):
    port, reached = neighbour
    tries = [f"http://127.0.0.1:{port}/a", f"http://localhost:{port}/b", f"http://[::1]:{port}/c"]
    tries += ["http://example.com/", "https://example.com/", "https://site.test/", "/echo"]
    with started("browser", "/reach", {"tries": tries, "port": str(port)}) as env:
        tab = env._open_tab
        for _ in range(100):
            page = tab._read(tab._call("read"))
            if page.title == "tried":
                break
            time.sleep(0.05)
    said = dict(part.rsplit(" ", 1) for part in page.lines[1].split("; "))
    assert said.pop("/echo") == "basic200"
    # Refused by the proxy (an opaque answer without content) or never sent.
    assert set(said.values()) <= {"opaque0", "failed"} and len(said) == 6
    assert reached == [], "no request arrived anywhere"


def test_the_relay_serves_only_open_episodes_of_one_host():
    with started("browser") as env:
        relay, token = env._tab._chromium.relay, env._tab._token
        assert _asked(relay, f"http://{HOST}/", token) == 200
        assert _asked(relay, f"http://{HOST}/", "") == 403
        assert _asked(relay, f"http://{HOST}/", "0" * 32) == 403
        assert _asked(relay, "http://example.com/", token) == 403
        assert _asked(relay, "/", token) == 403
        assert _asked(relay, "example.com:443", token, "CONNECT") in (403, 501)
        assert _asked(relay, f"http://{HOST}/", token, "POST", "9" * 9) == 413
        env.reset(seed=1)
        assert _asked(relay, f"http://{HOST}/", token) == 403


def _asked(relay, target, token, method="GET", length="0"):
    connection = http.client.HTTPConnection("127.0.0.1", relay.port, timeout=5)
    connection.putrequest(method, target, skip_host=True)
    for name, value in {HEADER: token, "Host": HOST, "Content-Length": length}.items():
        connection.putheader(name, value)
    connection.endheaders()
    status = connection.getresponse().status
    connection.close()
    return status


def test_the_header_that_names_an_episode_is_not_shown_to_its_site():
    with started("browser", "/echo") as env:
        assert env._tab._token not in "".join(env.page.lines)


# ---------------------------------------------------------------- pictures


@pytest.mark.parametrize("turns", [1, 3])
def test_a_browser_that_is_asked_to_takes_a_picture_of_every_observation(turns):
    with started("browser", pictures=True, seed=7) as env:
        _, info = env.reset(seed=7)
        seen = [info["picture"], *(env.step(env.expert())[4]["picture"] for _ in range(turns))]
    assert all(picture.startswith(b"\xff\xd8\xff") for picture in seen)


def test_no_picture_is_taken_unless_asked_for_and_none_without_a_browser():
    with started("browser") as env, started("text", pictures=True) as text:
        infos = [world.step(world.expert())[4] for world in (env, text)]
    assert not any("picture" in info for info in infos)
    with pytest.raises(TypeError, match="True or False, got 'shots'"):
        GuestBook(pictures="shots")


def camera() -> GuestBook:
    """Return an environment that takes pictures."""
    need_browser()
    return GuestBook(mode="browser", actions="command", pictures=True)


def recorded_in_a_browser(path) -> Episode:
    """Play an episode with pictures and record it."""
    jobs = jobs_for(GuestBook().tasks("train")[:1], run_seed=0, split="train")
    (episode,) = play(jobs, camera, ScriptedPolicy(expert), Settings(concurrency=1))
    with RecordWriter(path) as record:
        record.append(episode)
    return episode


PLACES = """() => [...document.querySelectorAll('a[href], input, button, select, textarea')]
    .filter((e) => e.type !== 'hidden').map((e) => e.getBoundingClientRect())
    .map((box) => [box.top + scrollY, box.bottom + scrollY])"""


def seen_in_picture(env) -> tuple[float, float]:
    """From where to where on the page the picture goes, which has as many rows."""
    tab = env._tab
    frame = tab._run(tab._call("frame", *tab.between))
    data = tab.picture()
    at = next(i for i in range(2, len(data)) if data[i : i + 2] in (b"\xff\xc0", b"\xff\xc2"))
    assert int.from_bytes(data[at + 5 : at + 7], "big") == frame["height"] >= VIEWPORT["height"]
    return frame["y"], frame["y"] + frame["height"]


@pytest.mark.parametrize("view_lines", [7, 60])
def test_a_picture_holds_all_that_the_window_says_is_in_view(view_lines):
    with started("browser", "/long", view_lines=view_lines) as env:
        for _ in range(env.max_turns):
            tab = env._tab
            places = tab._run(tab._page.evaluate(PLACES))
            assert len(places) == len(env.page.elements)
            top, bottom = seen_in_picture(env)
            held = [
                p for e, p in zip(env.page.elements, places, strict=True) if env.window.holds(e)
            ]
            assert held and all(top <= a and b <= bottom for a, b in held)
            if env.step("scroll down")[2:4] != (False, False):
                break


def files_of(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "blobs").iterdir()}


def test_pictures_outlive_replay_and_move_and_one_that_was_changed_is_named(tmp_path):
    path = tmp_path / "one" / "episodes.jsonl"
    episode = recorded_in_a_browser(path)
    kept = files_of(path.parent)
    digests = [*(turn.picture for turn in episode.turns), episode.final_picture]
    assert {f"{digest}.jpg" for digest in digests} == set(kept) and len(digests) == 4
    moved = path.parent.rename(tmp_path / "two") / path.name
    (row,) = read_records(moved)
    assert row.episode.turns == episode.turns and picture_faults(row.episode) == []
    assert all(type(place) is int for place in Pictures().of(row.episode))
    with_one = moved.parent / "blobs" / f"{digests[1]}.jpg"
    with_one.write_bytes(kept[with_one.name] + b"!")
    assert picture_faults(row.episode) == [f"{with_one} was changed after it was recorded"]
    assert execute(row.episode, camera) is None
    assert files_of(moved.parent) == {**kept, with_one.name: kept[with_one.name] + b"!"}
