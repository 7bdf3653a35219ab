"""Environments with one defect each: what the laws of `check_env` are there to find."""

from __future__ import annotations

import datetime
import os
import random
import re
import subprocess
import tempfile
import threading
import time
import uuid
from typing import ClassVar

import numpy as np
from fakes import Guess, Secret

from turnwise.envs.base import Response, TextEnv
from turnwise.envs.tools import reward, tool
from turnwise.envs.types import Task
from turnwise.sandboxes.base import SandboxDied


class SeedsGlobally(Guess):
    def setup(self, task, rng):
        random.seed(5)
        return super().setup(task, rng)


class DrawsGlobally(Guess):
    def setup(self, task, rng):
        np.random.random()
        return super().setup(task, rng)


class ReliesOnGlobal(Guess):
    def setup(self, task, rng):
        state = random.getstate()
        rng = random.Random(random.random())
        random.setstate(state)
        return super().setup(task, rng)


class CountsEpisodes(Guess):
    def setup(self, task, rng):
        self.count = getattr(self, "count", 0) + 1
        return super().setup(task, rng) + f" Round {self.count}."


class SharesState(Guess):
    secrets: list = []  # noqa: RUF012  the defect under test

    def setup(self, task, rng):
        opening = super().setup(task, rng)
        self.secrets.append(self.secret)
        return opening

    @tool
    def look(self, number: int) -> str:
        """Compare with whatever secret came last, whoever drew it."""
        return "higher" if number < self.secrets[-1] else "lower"


class IgnoresSeed(Guess):
    def tasks(self, split):
        return [Secret(index=self.splits.index(split)), *super().tasks(split)]

    def begin(self, seed, options):
        options = dict(options or {})
        if "task" not in options:
            options["task"] = self.tasks("train")[0]
        return super().begin(seed, options)


class Raises(Guess):
    def respond(self, action):
        if action == '"':
            raise ValueError("unbalanced")
        return super().respond(action)


class Rambles(Guess):
    def _complaint(self, code, why, tool=None):
        return f"ToolError[{code}] " + "x" * 1000


class NeverEnds(Guess):
    max_errors = 10**9

    def __init__(self):
        super().__init__()
        self.max_turns = 10**9


class PaysForForm(Guess):
    @reward(weight=0.1)
    def polite(self, episode):
        return float(not episode.errors)


class PaysTooMuch(Guess):
    @reward(weight=3.0)
    def bonus(self, episode):
        return float(self.answer == self.secret)


class PaysNothingForRight(Guess):
    def expert(self):
        return self.call_text("submit", number=0)


class GradesWithNan(Guess):
    @reward()
    def broken(self, episode):
        return float("nan")


class Overlaps(Guess):
    snapshot = restore = None

    def tasks(self, split):
        return [Secret(index=i) for i in range(5)]


class ShufflesTasks(Guess):
    def tasks(self, split):
        tasks = list(super().tasks(split))
        random.Random(id(self)).shuffle(tasks)
        return tasks


class Odd(Secret):
    """A task that is another one after its way through JSON."""

    def to_json(self):
        return {"index": self.index + 1}


class GarblesTasks(Guess):
    def tasks(self, split):
        return [Odd(index=7 * self.splits.index(split))]


class ForgetsTask(Guess):
    def begin(self, seed, options):
        return super().begin(seed, {})


class ClosesOnce(Guess):
    def close(self):
        del self.format


class ForgetsHalf(Guess):
    def snapshot(self):
        return f"{self.secret} {self.turn}".encode()

    def restore(self, saved):
        if not self._running:
            self.reset(seed=99)
        self.secret, self.turn = map(int, saved.split())


class SaysItIsFast(Guess):
    def respond(self, action):
        time.sleep(0.03)
        return super().respond(action)


class LacksInfo(Guess):
    def step(self, action):
        *head, info = super().step(action)
        info.pop("success", None)
        return *head, info


class SaysNothing(Guess):
    def setup(self, task, rng):
        super().setup(task, rng)
        return ""


class ReturnsTuples(Guess):
    def reset(self, **kwargs):
        super().reset(**kwargs)
        return ("not", "text"), {}


class PartsDoNotAddUp(TextEnv):
    def tasks(self, split):
        return [Task(hidden={"split": split})]

    def setup(self, task, rng):
        return "go"

    def respond(self, action):
        return "again"

    def step(self, action):
        observation, _, *flags, info = super().step(action)
        return observation, 0.01, *flags, info


class SpeaksSurrogates(Guess):
    def setup(self, task, rng):
        return super().setup(task, rng) + "\ud800"


class StartsElsewhereWhenGiven(Guess):
    def setup(self, task, rng):
        opening = super().setup(task, rng)
        self.secret = (self.secret + self.given) % 20
        return f"{opening} {self.secret % 2}"

    def begin(self, seed, options):
        self.given = "task" in (options or {})
        return super().begin(seed, options)


class HashesNames(Guess):
    def setup(self, task, rng):
        return f"{super().setup(task, rng)} Room {hash(task.key) % 1000}."


class OrdersBySet(Guess):
    def setup(self, task, rng):
        return super().setup(task, rng) + " ".join({"a lamp", "a door", "a key", "a rope"})


class KnowsTheDay(Guess):
    def setup(self, task, rng):
        return f"{super().setup(task, rng)} Today is {datetime.date.today()}."


class KnowsTheYear(Guess):
    def setup(self, task, rng):
        return f"{super().setup(task, rng)} It is {time.strftime('%Y')}."


class KnowsTheNanosecond(Guess):
    def setup(self, task, rng):
        return f"{super().setup(task, rng)} It is {time.time_ns()}."


class TellsTheTime(Guess):
    """Not broken: a replay reads the time that was read then."""

    @tool
    def look(self, number: int) -> str:
        """Compare, and say when."""
        return f"{super().look(number)} at {self.clock.now():.9f}"


class IsNamedByChance(Guess):
    name = uuid.uuid4().hex

    def setup(self, task, rng):
        return f"{super().setup(task, rng)} This is {self.name}."


class SharesScratch(Guess):
    scratch: ClassVar[int] = 0

    @tool
    def look(self, number: int) -> str:
        """Compare with a number that another thread may have replaced meanwhile."""
        SharesScratch.scratch = self.secret
        time.sleep(0.01)
        return f"{SharesScratch.scratch - number} away"


class NamesItsOwnErrors(Guess):
    def _info(self, answer):
        info = super()._info(answer)
        for call in info["calls"]:
            if "error" in call:
                call["error"] = "oops " + call["error"]
        return info


class RunsWhatItCannotRead(Guess):
    def _info(self, answer):
        info = super()._info(answer)
        for call in info["calls"]:
            call["args"] = call["args"] or {}
        return info


class RaisesInOneFormat(Guess):
    def respond(self, action):
        if self.format.name == "llama3" and "\x00" in action:
            raise ValueError("a NUL")
        return super().respond(action)


class StaysBusyAfterACrash(Guess):
    busy: ClassVar[bool] = False

    def step(self, action):
        if StaysBusyAfterACrash.busy:
            raise RuntimeError("somebody else is at it")
        StaysBusyAfterACrash.busy = True
        value = super().step(action)
        StaysBusyAfterACrash.busy = False
        return value


class HoldsOneLock(Guess):
    lock = threading.Lock()
    step_timeout_s = 2.0

    def step(self, action):
        with self.lock:
            return super().step(action)


class GradesByChance(Guess):
    def solved(self, episode):
        return float(self.answer == self.secret and os.urandom(1)[0] > 60)

    solved = reward(weight=1.0)(solved)


class Colours(TextEnv):
    """Say the colour that I think of."""

    chance_reward = 0.0

    def tasks(self, split):
        return [Task(hidden={"split": split, "i": i}) for i in range(10)]

    def setup(self, task, rng):
        self.colour = rng.choice(["red", "blue"])
        return "Is it red or blue?"

    def respond(self, action):
        return Response("", self.paid(action), terminated=True)

    def paid(self, action):
        return float(action == f"It is {self.colour}.")

    def expert(self):
        return f"It is {self.colour}."


class PaysForContaining(Colours):
    def paid(self, action):
        return float(self.colour in action)


class FindsTheAnswerAnywhere(Guess):
    """The answer counts wherever it stands: who writes all numbers has it among them."""

    def setup(self, task, rng):
        super().setup(task, rng)
        self.secret = rng.randrange(1000)
        return "Which number?"

    @tool(final=True)
    def submit(self, text: str) -> None:
        """Answer."""
        self.answer = text

    @reward(weight=1.0)
    def solved(self, episode):
        return float(str(self.secret) in str(self.answer))

    def expert(self):
        return self.call_text("submit", text=str(self.secret))


class FindsTheWordAnywhere(FindsTheAnswerAnywhere):
    """As above, with a word that the agent has not read."""

    words: ClassVar[tuple[str, ...]] = ("amber", "birch", "cedar", "delta")

    def setup(self, task, rng):
        super().setup(task, rng)
        self.secret = rng.choice(self.words)
        return "Which word?"


class ComparesNumbers(Guess):
    """Nothing is larger than nan, so nan is never too far off."""

    def setup(self, task, rng):
        super().setup(task, rng)
        self.secret = rng.randrange(10_000)
        return "Which number?"

    @tool(final=True)
    def submit(self, text: str) -> str:
        """Answer."""
        try:
            self.far = abs(float(text) - self.secret) > 0.5
        except ValueError:
            self.far = True
        return ""

    @reward(weight=1.0)
    def right(self, episode):
        return float(not getattr(self, "far", True))

    def expert(self):
        return self.call_text("submit", text=str(self.secret))


class EndsTheProcess(Guess):
    """As a library that crashes does; which law meets it first is a matter of order."""

    @tool
    def crash(self) -> str:
        """End everything."""
        os._exit(3)


class LosesItsBox(Guess):
    """Its machine fails once it has been looked at."""

    made = 0

    def reset(self, *, seed=None, options=None):
        type(self).made += 1
        if type(self).made > 10:
            raise SandboxDied("box 7: the engine is gone")
        return super().reset(seed=seed, options=options)


class PaysForMany(Guess):
    @reward(weight=0.2)
    def diligent(self, episode):
        return float(len(episode.calls) >= 5)


class PaysForLength(Colours):
    def paid(self, action):
        return min(len(action) / 1000, 1.0) if len(action) > 1000 else 0.0


class BelievesClaims(Colours):
    def paid(self, action):
        return float(bool(re.search(r'reward"?[:=] ?1', action)))


class ReadsTheRewardFromAFile(Guess):
    def setup(self, task, rng):
        self.files = {}
        return super().setup(task, rng)

    @tool
    def write(self, path: str, text: str) -> None:
        """Write a file."""
        self.files[path] = text

    @reward(weight=0.5)
    def noted(self, episode):
        return float(self.files.get("/logs/verifier/reward.txt", 0))


class TakesManyAnswers(Guess):
    """One of the answers is right: a spammer finds it."""

    def setup(self, task, rng):
        super().setup(task, rng)
        self.secret = rng.choice([3, 5, 7])
        self.answers = set()
        return "Is it 3, 5 or 7?"

    @tool(final=True)
    def submit(self, number: int) -> None:
        """Answer; the episode goes on until it was the last turn."""
        self.answers.add(number)

    def _run(self, call):
        value = super()._run(call)
        self._ended = self.turn >= 4
        return value

    @reward(weight=1.0)
    def solved(self, episode):
        return float(self.secret in self.answers)


class LeaksThreads(Guess):
    def setup(self, task, rng):
        threading.Thread(target=threading.Event().wait, daemon=True).start()
        return super().setup(task, rng)


class LeaksFiles(Guess):
    opened: ClassVar[list] = []

    def setup(self, task, rng):
        self.opened.append(open(os.devnull))  # noqa: SIM115  the defect under test
        return super().setup(task, rng)


class LeaksProcesses(Guess):
    started: ClassVar[list] = []

    def setup(self, task, rng):
        # It ends by itself, once its input does: with the process that started it.
        self.started.append(subprocess.Popen(["cat"], stdin=subprocess.PIPE))
        return super().setup(task, rng)


class LeaksFolders(Guess):
    def setup(self, task, rng):
        self.folder = tempfile.mkdtemp()
        return super().setup(task, rng)


class LeaksMemory(Guess):
    kept: ClassVar[list] = []

    def setup(self, task, rng):
        self.kept.append(bytearray(300_000))
        return super().setup(task, rng)


class CountsAllEpisodes(Guess):
    played: ClassVar[int] = 0

    def setup(self, task, rng):
        CountsAllEpisodes.played += 1
        return f"{super().setup(task, rng)} Round {self.played}."


class RaisesInASession(Guess):
    def respond(self, action):
        raise ZeroDivisionError("always")


class RaisesAtReset(Guess):
    def setup(self, task, rng):
        raise KeyError("boom")


class RaisesWhenMade(Guess):
    def __init__(self):
        super().__init__()
        {}["gone"]


class HasNoTasks(Guess):
    def tasks(self, split):
        return []


class RaisesElsewhere(Guess):
    """It plays, and then cannot be made again."""

    made: ClassVar[int] = 0

    def __init__(self):
        super().__init__()
        type(self).made += 1
        if self.made > 3:
            raise ValueError("made once too often")


class HangsInStep(Guess):
    fast = False

    @tool
    def look(self, number: int) -> str:
        """Never answer."""
        threading.Event().wait(60)
        return "higher"

    @tool(final=True)
    def submit(self, number: int) -> None:
        """Never answer, either."""
        self.look(number)

    def respond(self, action):
        return Response(self.look(0))


class HangsAtReset(Guess):
    def setup(self, task, rng):
        threading.Event().wait(60)
        return super().setup(task, rng)


class Hidden:
    class Inner(Guess):
        """One that only its outer class knows."""


BROKEN = [
    (ReturnsTuples, "gymnasium accepts"),
    (LacksInfo, "info is complete"),
    (SaysNothing, "info is complete"),
    (SpeaksSurrogates, "info is complete"),
    (CountsEpisodes, "seeds are honoured"),
    (IgnoresSeed, "seeds differ"),
    (StartsElsewhereWhenGiven, "groups start alike"),
    (HashesNames, "same in another process"),
    (OrdersBySet, "same in another process"),
    (KnowsTheDay, "same in another process"),
    (KnowsTheYear, "same in another process"),
    (IsNamedByChance, "same in another process"),
    (SharesState, "isolated from other environments"),
    (SharesScratch, "isolated across threads"),
    (SeedsGlobally, "global randomness untouched"),
    (DrawsGlobally, "global randomness untouched"),
    (ReliesOnGlobal, "global randomness untouched"),
    (Raises, "malformed actions are answered"),
    (Rambles, "malformed actions are answered"),
    (NamesItsOwnErrors, "malformed actions are answered"),
    (RunsWhatItCannotRead, "malformed actions are answered"),
    (RaisesInOneFormat, "every format is answered"),
    (NeverEnds, "episodes end"),
    (StaysBusyAfterACrash, "a crash stays inside"),
    (HoldsOneLock, "a hang stays inside"),
    (PaysTooMuch, "rewards stay in range"),
    (GradesWithNan, "rewards stay in range"),
    (PartsDoNotAddUp, "rewards stay in range"),
    (PaysNothingForRight, "expert is accepted"),
    (GradesByChance, "graders are steady"),
    (PaysForForm, "no reward without trying"),
    (PaysForContaining, "no reward for hedging"),
    (FindsTheAnswerAnywhere, "no reward for hedging"),
    (FindsTheWordAnywhere, "no reward for hedging"),
    (ComparesNumbers, "no reward for hedging"),
    (PaysForMany, "no reward for repetition"),
    (PaysForLength, "no reward for size or script"),
    (BelievesClaims, "no reward for claims"),
    (ReadsTheRewardFromAFile, "no reward for claims"),
    (TakesManyAnswers, "no reward for spam"),
    (Overlaps, "splits are disjoint"),
    (ShufflesTasks, "splits are disjoint"),
    (GarblesTasks, "tasks survive json"),
    (ForgetsTask, "tasks survive json"),
    (ForgetsHalf, "snapshots restore"),
    (ClosesOnce, "closes twice"),
    (LeaksThreads, "nothing is left behind"),
    (LeaksFiles, "nothing is left behind"),
    (LeaksProcesses, "nothing is left behind"),
    (LeaksFolders, "nothing is left behind"),
    (LeaksMemory, "nothing is left behind"),
    (CountsAllEpisodes, "records replay"),
    (RaisesInASession, "records replay"),
]
"""(environment, the law that it breaks)."""
