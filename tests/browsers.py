"""What the tests of web environments share: whether there is a browser, and who wanders."""

from __future__ import annotations

import os
import random

import pytest

from turnwise.envs.extras import MissingExtra, need
from turnwise.envs.web.chromium import find_program

TYPED = ("a b~*&=+é%", "12", "2001-02-03", "", "<b>x</b>", 'it\'s "q"', " x  y ")


def need_browser():
    """Skip where playwright or Chromium is missing; fail there under CI, which must have them."""
    try:
        need("playwright.async_api", extra="browser")
        find_program()
    except MissingExtra as error:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(str(error))


def wandering(env, rng: random.Random, keep_off=()) -> str:
    """An action that somebody who is lost might take; nothing named in `keep_off` is clicked."""
    draw = rng.random()
    if draw < 0.08:
        return env.call_text("back")
    if draw < 0.12:
        return env.call_text("scroll", direction=rng.choice(("up", "down")))
    elements = [e for e in env.page.elements if env.window.holds(e) and e.name not in keep_off]
    if not elements:
        return env.call_text("back")
    return use(env, rng.choice(elements), rng)


def use(env, element, rng: random.Random) -> str:
    """An action on `element`, whatever it is."""
    if element.role in ("textbox", "number", "date"):
        text = rng.choice((*TYPED, rng.choice(" ".join(env.page.lines).split())))
        return env.call_text("type", id=element.id, text=text)
    if element.role == "combobox":
        return env.call_text("select", id=element.id, option=rng.choice(element.options))
    return env.call_text("click", id=element.id)


def play_both(text, browser, seed: int, act) -> list[str]:
    """Play one episode in both modes at once and show that nothing tells them apart.

    Returns:
        The titles of the pages that were seen.
    """
    first, second = text.reset(seed=seed), browser.reset(seed=seed)
    assert first[0] == second[0] and first[1]["state"] == second[1]["state"]
    titles, ended = [], False
    while not ended:
        titles.append(text.page.title)
        action = act(text)
        one, other = text.step(action), browser.step(action)
        assert one[:4] == other[:4], action
        assert one[4]["state"] == other[4]["state"], (action, text.page.url, browser.page.url)
        ended = one[2] or one[3]
    return titles
