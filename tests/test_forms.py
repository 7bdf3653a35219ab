"""Forms: one submission that is right in every field, whatever the way to it."""

from __future__ import annotations

import random
from contextlib import closing

import pytest
from boxes import need_bubblewrap
from browsers import need_browser, play_both, wandering
from hypothesis import given, settings
from hypothesis import strategies as st

from turnwise.envs.builtin.forms import Brief, Forms, task_world
from turnwise.envs.builtin.forms_world import KINDS, make_world
from turnwise.envs.names import UnknownName
from turnwise.envs.web.chromium import close_idle


@pytest.fixture(scope="module", autouse=True)
def _a_box():
    need_bubblewrap()
    yield
    close_idle()


@pytest.fixture
def forms():
    """Make a `Forms` that is closed afterwards."""
    made = []

    def make(**options):
        made.append(Forms(actions="command", **options))
        return made[-1]

    yield make
    for env in made:
        env.close()


def begin(env, index=0, split="test"):
    env.reset(seed=index, options={"task": env.tasks(split)[index]})
    return env


def finish(env):
    while True:
        step = env.step(env.expert())
        if step[2] or step[3]:
            return step


def follow(env, name):
    """Follow the expert until it would click `name`."""
    while True:
        action = env.expert()
        words = action.split()
        if words[0] == "click" and env.page.elements[int(words[1]) - 1].name == name:
            return env
        env.step(action)


def press(env, role, name):
    return env.step(env.click_on(env.page.find(role, name)))


@pytest.mark.parametrize("split", Forms.splits)
def test_the_expert_succeeds_on_two_hundred_briefs_of_each_split(forms, split):
    env = forms()
    for index in range(200):
        step = finish(begin(env, index, split))
        assert (step[1], step[4]["success"]) == (1.0, True), (index, env.episode.actions)
        assert env.turn <= env.max_turns - env.slack


@pytest.mark.parametrize(
    "options",
    [
        {"pages": 1, "fields": 1, "distractors": 0, "optional": 0, "strict": False},
        {"pages": 6, "fields": 6, "distractors": 12, "optional": 3, "view_lines": 6, "slack": 60},
        {"pages": 2, "fields": 1},
        {"strict": False},
    ],
)
def test_the_expert_succeeds_whatever_the_knobs(forms, options):
    env = forms(**options)
    for index in range(12):
        assert finish(begin(env, index))[1] == 1.0, (index, env.episode.actions)


def test_the_expert_finds_back_from_wherever_one_has_wandered(forms):
    env = forms(slack=150)
    for index in range(20):
        begin(env, index, "dev")
        rng = random.Random(index)
        for _ in range(40):
            strayed = wandering(env, rng, ("Submit",))
            action = env.expert() if rng.random() < 0.5 else strayed
            words = action.split()
            name = env.page.elements[int(words[1]) - 1].name if words[0] == "click" else words[0]
            if name not in ("Submit", "done"):
                env.step(action)
        assert finish(env)[1] == 1.0, env.episode.actions


def test_the_expert_leaves_a_page_that_should_not_be_there(forms):
    env = forms(pages=4, fields=2, optional=0, slack=60)
    indices = [i for i in range(40) if task_world(env.tasks("test")[i]).answers["car"] == "no"]
    for index in indices[:6]:
        follow(begin(env, index), "Continue")
        press(env, "radio", "yes")
        press(env, "button", "Continue")
        for _ in range(8):
            if env.page.title == "Car":
                break
            env.step(_filled_or_on(env))
        assert env.page.title == "Car"
        assert env.expert() == env.click_on(env.page.find("link", "Previous"))
        assert finish(env)[1] == 1.0, env.episode.actions


def test_any_wrong_answer_spoils_the_submission(forms):
    env, spoilt = forms(slack=40, pages=2, fields=4, strict=False, optional=1), set()
    for index in range(12):
        follow(begin(env, index), "Continue")
        rng = random.Random(index)
        fields = [e for e in env.page.elements if e.role not in ("link", "button")]
        element = rng.choice([e for e in fields if not (e.role == "radio" and e.checked)])
        env.step(_changed(env, element))
        spoilt.add(element.role)
        press(env, "button", "Continue")
        while env.page.find("button", "Submit") is None:
            env.step(_filled_or_on(env))
        press(env, "button", "Submit")
        assert env.db["submitted"] and env.step("done")[1] == 0.0, (index, element)
    assert len(spoilt) >= 3


def _changed(env, element):
    if element.role == "combobox":
        others = [o for o in element.options if o not in (element.value, "choose")]
        return env.select_in(element, others[0])
    if element.role == "number":
        return env.type_into(element, str(int(element.value) + (-1 if _is_high(element) else 1)))
    if element.role == "date":
        return env.type_into(element, "1999-12-31")
    return env.type_into(element, "other") if element.role == "textbox" else env.click_on(element)


def _is_high(element):
    return int(element.value) in (9, 40, 210, 120, 6, 2024)


def _filled_or_on(env):
    """Fill in what the sheet wants, without setting right what is wrong before it."""
    for element in env.page.elements:
        key = element.node.attrs.get("name", "")
        if key not in env.world.answers and key and element.role != "button":
            if (action := _any_answer(env, element)) is not None:
                return action
        elif (action := env._mended(element)) is not None:
            return action
    return env.click_on(env.page.find("button", "Continue"))


def _any_answer(env, element):
    """What answers a field of a sheet that should not be there."""
    if element.role == "combobox" and element.value == "choose":
        return env.select_in(element, element.options[1])
    if element.role in ("textbox", "number") and not element.value:
        return env.type_into(element, "2000" if element.role == "number" else "AB123")
    group = [e for e in env.page.elements if e.node.attrs.get("name") == element.node.attrs["name"]]
    if element.role == "radio" and not any(e.checked for e in group):
        return env.click_on(element)
    return None


def test_a_second_submission_spoils_the_first(forms):
    env = begin(forms(slack=40))
    while env.expert() != "done":
        env.step(env.expert())
    env._act(env._open_tab.visit("/review"))
    press(env, "button", "Submit")
    assert len(env.db["submitted"]) == 2 and env.step("done")[1] == 0.0


def test_stopping_before_the_submission_pays_nothing(forms):
    assert begin(forms()).step("done")[1] == 0.0
    assert follow(begin(forms(), 1), "Submit").step("done")[1] == 0.0


def test_errors_come_back_with_what_was_filled_in(forms):
    env = forms(pages=1, fields=6, strict=True, optional=0, slack=60)
    index = next(i for i in range(50) if _asks(env, i, "born"))
    follow(begin(env, index), "Continue")
    number = next(e for e in env.page.elements if e.role == "number")
    born = next(e for e in env.page.elements if e.role == "date")
    env.step(env.type_into(number, "7000"))
    env.step(env.type_into(born, ""))
    shown = press(env, "button", "Continue")[0]
    assert "! Birth date: is missing." in shown and "! Height in cm: must be 120 to 210." in shown
    assert "'7000'" in shown and env.db["draft"] == {}
    assert finish(env)[1] == 1.0


def _asks(env, index, key):
    world = task_world(env.tasks("test")[index])
    return key in world.answers


def test_a_strict_form_refuses_what_the_brief_says_word_for_word(forms):
    env = forms(pages=1, fields=6, strict=True, optional=0, slack=60)
    index = next(i for i in range(50) if _asks(env, i, "phone"))
    follow(begin(env, index), "Continue")
    told = dict(env.world.facts)
    env.step(env.type_into(env.page.find("textbox", "Phone"), told["Phone"]))
    env.step(env.type_into(env.page.find("textbox", "Postcode"), told["Postcode"]))
    shown = press(env, "button", "Continue")[0]
    assert "! Phone: must be seven digits." in shown
    assert "! Postcode: must be two capital letters and three digits." in shown


def test_a_lenient_form_takes_what_the_brief_says_word_for_word(forms):
    env = forms(strict=False, distractors=0)
    for index in range(20):
        world = task_world(env.tasks("dev")[index])
        told = dict(world.facts)
        asked = [f for sheet in world.shown() for f in sheet.fields if not f.optional]
        assert {f.key: told[f.label] for f in asked} == {
            key: value for key, value in world.answers.items() if value
        }


def test_a_page_is_left_out_unless_the_answer_that_leads_to_it_is_given(forms):
    env = forms(pages=3, slack=60)
    index = next(i for i in range(50) if task_world(env.tasks("test")[i]).answers["car"] == "no")
    titles = _titles(begin(env, index))
    assert "Car" not in titles and not set(env.db["submitted"][0]) & {"plate", "fuel", "gear"}
    index = next(i for i in range(50) if task_world(env.tasks("test")[i]).answers["car"] == "yes")
    assert "Car" in _titles(begin(env, index))


def _titles(env):
    """The pages that the expert sees."""
    seen = []
    while env.expert() != "done":
        seen.append(env.page.title)
        env.step(env.expert())
    return seen


def test_what_was_filled_in_on_a_page_that_is_left_out_later_is_not_submitted(forms):
    env = forms(pages=2, fields=2, optional=0, slack=60)
    index = next(i for i in range(50) if task_world(env.tasks("test")[i]).answers["car"] == "no")
    follow(begin(env, index), "Continue")
    press(env, "radio", "yes")
    press(env, "button", "Continue")
    while env.page.title == "Car":
        env.step(_filled_or_on(env))
    assert len(env.db["draft"]) == 2
    assert finish(env)[1] == 1.0


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    pages=st.integers(1, 6),
    fields=st.integers(1, 6),
    distractors=st.integers(0, 12),
    strict=st.booleans(),
    optional=st.integers(0, 3),
    kinds=st.sampled_from((KINDS, ("date", "number", "text"), ("radio", "select", "checkbox"))),
)
def test_a_brief_tells_each_answer_once_and_its_distractors_are_asked_nowhere(
    seed, pages, fields, distractors, strict, optional, kinds
):
    world = make_world(
        random.Random(seed),
        pages=pages,
        fields=fields,
        distractors=distractors,
        strict=strict,
        optional=optional,
        kinds=kinds,
    )
    plain = [f for s in world.sheets if s.title != "Car" for f in s.fields if f.key != "car"]
    assert {f.kind for f in plain if not f.optional} <= set(kinds)
    assert len(world.sheets) == pages and len(world.shown()) in (pages, pages - 1, 1)
    shown = [f for sheet in world.shown() for f in sheet.fields]
    keys = [f.key for sheet in world.sheets for f in sheet.fields]
    assert len(set(keys)) == len(keys) and set(world.answers) == {f.key for f in shown}
    labels = [label for label, _ in world.facts]
    asked = [f.label for f in shown if not f.optional]
    assert len(set(labels)) == len(labels) and set(asked) <= set(labels)
    assert len(labels) - len(asked) <= distractors
    assert all(world.answers[f.key] == "" for f in shown if f.optional)


def test_each_kind_of_field_fills_as_many_pages_as_there_can_be():
    for kind in KINDS:
        world = make_world(
            random.Random(1),
            pages=6,
            fields=1,
            distractors=0,
            strict=False,
            optional=0,
            kinds=[kind],
        )
        assert len(world.sheets) == 6 and kind in {f.kind for f in world.sheets[-1].fields}
    with pytest.raises(UnknownName, match="did you mean 'date'"):
        Forms(kinds=("dates",))


@pytest.mark.parametrize(("kinds", "error"), [(("dates",), UnknownName), ("date", TypeError)])
def test_kinds_of_a_brief_made_by_hand_are_checked_and_none_are_all(kinds, error):
    with pytest.raises(error):
        Brief(kinds=kinds)
    assert Brief(kinds=()) == Brief() and Brief(kinds=["date"]).kinds == ("date",)


def test_a_split_without_a_brief_of_these_kinds_is_refused_before_an_episode():
    narrow = {"pages": 1, "fields": 1, "distractors": 0, "optional": 0, "strict": False}
    with pytest.raises(RuntimeError, match="none of 2000 problems belongs to split 'test'"):
        Forms(kinds=("select",), **narrow).tasks("test")


def test_default_tasks_are_those_of_before_there_were_kinds():
    assert "Moved in on: 18 June 1962" in task_world(Forms().tasks("test")[0]).text


def test_the_brief_follows_from_the_task_alone():
    task = Forms().tasks("train")[777]
    assert task_world(task) == task_world(Brief(**task.to_json()))
    assert task_world(task) != task_world(Forms().tasks("train")[778])


@pytest.mark.parametrize("rest", [["?"] * 3, ["scroll up"] * 50])
def test_a_submission_pays_only_once_the_agent_is_done(rest, forms):
    env = begin(forms())
    while not env.db.get("submitted"):
        env.step(env.expert())
    saved = env.fork()
    steps = (env.step(action) for action in rest)
    _, reward, terminated, truncated, info = next(s for s in steps if s[2] or s[3])
    assert truncated and not terminated
    assert reward == 0.0 and not info["success"]
    assert saved.step("done")[1] == 1.0
    saved.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pages": 7}, "pages must lie in 1..6"),
        ({"pages": (3, 2)}, "least before most"),
        ({"fields": 0}, "fields must lie in 1..6, got 0"),
        ({"distractors": 13}, "distractors must lie in 0..12, got 13"),
        ({"optional": 4}, "optional must lie in 0..3, got 4"),
    ],
)
def test_a_knob_out_of_range_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Forms(**options)


def test_briefs_read_the_same_in_both_modes():
    need_browser()
    seen = set()
    text, browser = (closing(Forms(actions="command", mode=mode)) for mode in ("text", "browser"))
    with text as text, browser as browser:
        for seed in range(3):
            seen.update(play_both(text, browser, seed, lambda env: env.expert()))
            assert browser.db["submitted"] == [dict(browser.world.answers)]
        rng = random.Random(0)
        play_both(text, browser, 7, lambda env: wandering(env, rng))
    assert {"Start", "Review", "Received"} < seen
