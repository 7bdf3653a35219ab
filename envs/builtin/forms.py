"""Forms: fill in a form of several pages from a brief, as text or in a real browser.

    Fill in the form, submit it, then call done. Leave blank what is not given.
    Start date: 3 March 2004
    Former team: sales
    Team: law

The form runs in a sandbox: text, numbers, dates, choices and ticks; a page that only a certain
answer leads to; errors that come back; a review and a receipt. Some facts are asked for nowhere.

Reward: 1 if the form's database holds one submission and every answer in it is right, else 0.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from turnwise.envs.builtin import forms_world
from turnwise.envs.builtin.forms_world import KINDS, Sheet, World, make_world
from turnwise.envs.knobs import count, span
from turnwise.envs.names import known_names
from turnwise.envs.seeds import derive
from turnwise.envs.split_shares import drawn_for
from turnwise.envs.task_range import TaskRange, check_drawn
from turnwise.envs.tool_env import EpisodeView
from turnwise.envs.tools import metric, reward
from turnwise.envs.types import Task
from turnwise.envs.web.env import WebEnv
from turnwise.envs.web.page import Element

SIZES = {"train": 1_000_000, "dev": 10_000, "test": 10_000}


@dataclass(frozen=True, kw_only=True)
class Brief(Task):
    """One form and one brief; both follow from these fields alone."""

    split: str = "train"
    index: int = 0
    pages: int = 3
    fields: int = 3
    distractors: int = 3
    strict: bool = True
    optional: int = 1
    kinds: tuple[str, ...] = KINDS

    def __post_init__(self) -> None:
        kinds = known_names("kind of field", self.kinds, KINDS) or KINDS  # JSON makes a list of it
        object.__setattr__(self, "kinds", kinds)
        check_drawn(self, pages=(1, 6), fields=(1, 6), distractors=(0, 12), optional=(0, 3))


class Forms(WebEnv):
    """Fill in a form of several pages from a brief.

    Args:
        pages: Pages of a form, or (least, most), 1 to 6; tasks take turns. From two on, one of
            them is left out unless a certain answer was given.
        fields: On each page, 1 to 6.
        distractors: Facts that no field asks for, 0 to 12.
        strict: The brief writes dates and codes otherwise than the form accepts them.
        optional: Fields to be left blank, 0 to 3.
        kinds: Of fields, names in `forms_world.KINDS`: all by default. Neither what is asked about
            a car nor optional fields are narrowed. With few fields of few values, as ticks alone,
            a split asks for what no other one ever shows, or has no brief at all.
        slack: Turns beyond what the expert needs.
        options: See `WebEnv`: `mode`, `view_lines`, `remind`, `pictures`, `actions`.

    Raises:
        ValueError: a number lies outside its range.
        UnknownName: there is no such kind of field.
        RuntimeError: by `tasks`, where a split has no brief of these kinds.

    Example:
        `make("turnwise/Forms-v1", pages=1, fields=2, strict=False, actions="command")`
    """

    Task: ClassVar[type[Task]] = Brief
    site: ClassVar[str] = ".forms_site"
    static: ClassVar[tuple[str, ...]] = ("forms.css",)
    words: ClassVar[tuple[str, ...]] = (
        *(*forms_world.FIRST, *forms_world.LAST, *forms_world.TOWNS, *forms_world.THINGS),
        *(option for fields in forms_world.SHEETS.values() for f in fields for option in f.options),
    )
    """What a tokenizer made for this environment should hold as single tokens."""

    def __init__(
        self,
        *,
        pages: int | Sequence[int] = (2, 4),
        fields: int = 3,
        distractors: int = 3,
        strict: bool = True,
        optional: int = 1,
        kinds: Sequence[str] = KINDS,
        slack: int = 12,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.pages, self.slack = span("pages", pages, 1, 6), count("slack", slack, 0, 1000)
        count("fields", fields, 1, 6)
        count("distractors", distractors, 0, 12)
        count("optional", optional, 0, 3)
        self._fields: dict[str, Any] = {"fields": fields, "distractors": distractors}
        self._fields |= {"strict": strict, "optional": optional}
        self._fields["kinds"] = known_names("kind of field", kinds, KINDS) or KINDS

    def tasks(self, split: str) -> Sequence[Brief]:
        """Return the briefs of a split, made on demand; numbers of pages take turns."""
        self.known_split(split)
        if self._fields["kinds"] != KINDS:
            task_world(self._brief(split, 0))  # refuses a split that has none such
        return TaskRange(lambda index: self._brief(split, index), SIZES[split])

    def _brief(self, split: str, index: int) -> Brief:
        least, most = self.pages
        pages = least + index % (most - least + 1)
        return Brief(split=split, index=index, pages=pages, **self._fields)

    def setup(self, task: Brief, rng: random.Random) -> str:
        """Open the form and return the brief and the first page."""
        self.world: World = task_world(task)
        shown = self.world.shown()
        self.max_turns = sum(len(s.fields) + 1 for s in shown) + 3 + self.slack
        sheets = [sheet.to_json() for sheet in self.world.sheets]
        return self.open_site(self.world.text, {"sheets": sheets, "strict": task.strict})

    @reward()
    def submitted(self, episode: EpisodeView) -> float:
        """Pay for one submission that is right in every field, once the agent is done."""
        return float(episode.terminated and self.db.get("submitted") == [dict(self.world.answers)])

    @metric
    def submissions(self, episode: EpisodeView) -> float:
        """How often the form was submitted."""
        return float(len(self.db.get("submitted", [])))

    def expert(self) -> str:
        """Return the right action now, whatever was done before."""
        db, page = self.db, self.page
        if db.get("submitted"):
            return self.call_text("done")
        if page.title == "Review":
            return self._after_review(db["draft"])
        if self._strayed(db.get("draft", {})):
            return self.click_on(self._there("link", "Previous"))
        for element in page.elements:
            if (action := self._mended(element)) is not None:
                return action
        onward = page.find("button", "Continue") or page.find("link", "Start")
        return self.click_on(onward or page.elements[0])

    def _strayed(self, draft: dict[str, dict[str, str]]) -> bool:
        """Whether this page should not be there, or one before it was filled in wrongly."""
        titles = [sheet.title for sheet in self.world.sheets]
        if self.page.title not in titles:
            return False
        place = titles.index(self.page.title)
        earlier = enumerate(self.world.sheets[:place], 1)
        wrong = any(self._is_wrong(sheet, draft.get(str(number))) for number, sheet in earlier)
        return wrong or self.world.sheets[place] not in self.world.shown()

    def _mended(self, element: Element) -> str | None:
        """Return what sets a field right, or None if it is."""
        wanted = self.world.answers.get(element.node.attrs.get("name", ""))
        if wanted is None:
            return None
        if element.role == "checkbox":
            return None if element.checked == (wanted == "yes") else self.click_on(element)
        if element.role == "radio":
            chosen = element.name == wanted and not element.checked
            return self.click_on(element) if chosen else None
        if element.role == "combobox":
            return None if element.value == wanted else self.select_in(element, wanted)
        return None if element.value == wanted else self.type_into(element, wanted)

    def _after_review(self, draft: dict[str, dict[str, str]]) -> str:
        for number, sheet in enumerate(self.world.sheets, 1):
            if self._is_wrong(sheet, draft.get(str(number))):
                return self.click_on(self._there("link", f"Edit {sheet.title}"))
        return self.click_on(self._there("button", "Submit"))

    def _there(self, role: str, name: str) -> Element:
        found = self.page.find(role, name)
        assert found is not None, f"the form's page {self.page.title!r} has no {role} {name!r}"
        return found

    def _is_wrong(self, sheet: Sheet, filled: dict[str, str] | None) -> bool:
        answers = self.world.answers
        return filled is not None and any(
            field.key in answers and filled[field.key] != answers[field.key]
            for field in sheet.fields
        )


def task_world(task: Brief) -> World:
    """Return the form and the brief of a task."""
    fields = task.to_json()
    if task.kinds == KINDS:  # the tasks of before there was a choice stay what they were
        del fields["kinds"]
    rng = random.Random(derive("forms", fields))
    for name in ("hidden", "split", "index"):
        del fields[name]
    return drawn_for(task.split, lambda: make_world(rng, **fields), lambda world: world.text)
