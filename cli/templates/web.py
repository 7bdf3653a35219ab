"""MyEnv: sign the guest book of a small web site."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from turnwise.envs import EpisodeView, Task, WebEnv, register, reward


@dataclass(frozen=True, kw_only=True)
class Guest(Task):
    """What to solve: the fields decide the world, and equal fields are the same task."""

    name: str


@register("my-env/MyEnv-v1", tags=("web",))
class MyEnv(WebEnv):
    """Sign a guest book with one's name and nothing else; that pays 1.

    The site is `my_env_site.py`. The agent reads its pages as text
    and calls click, type, select, scroll, back and done. `mode="browser"` plays the same in
    headless Chromium.
    """

    Task: ClassVar[type[Task]] = Guest
    task: Guest
    site = ".my_env_site"
    max_turns = 8

    def tasks(self, split: str) -> Sequence[Guest]:
        """Return the tasks of a split; no two splits share one."""
        first = 100 * self.splits.index(self.known_split(split))
        return [Guest(name=f"guest{first + i}") for i in range(100)]

    def setup(self, task: Guest, rng: random.Random) -> str:
        """Start the site and return what the agent reads first."""
        return self.open_site(f"Sign the guest book as {task.name}, once. Then call done.")

    @reward()
    def signed(self, episode: EpisodeView) -> float:
        """Pay if the site's database holds this name and no other."""
        return float(self.db.get("names") == [self.task.name])

    def expert(self) -> str:
        """Return the right action now: the proof that it can be done, and a teacher."""
        if self.db.get("names"):
            return self.call_text("done")
        field, button = self.page.find("textbox", "Name"), self.page.find("button", "Sign")
        if field is None or button is None:
            return self.call_text("back")
        if field.value != self.task.name:
            return self.type_into(field, self.task.name)
        return self.click_on(button)
