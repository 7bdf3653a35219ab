"""Every format drives real environments, or says at once which tool it cannot call."""

import json
from contextlib import closing, suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from turnwise.envs.actions import FORMATS, FormatMisfit, ToolCall, fitting
from turnwise.envs.builtin.filehunt import FileHunt
from turnwise.envs.extras import MissingExtra
from turnwise.envs.fuzz import junk
from turnwise.envs.registry import list_envs, make
from turnwise.envs.tool_env import ToolEnv
from turnwise.envs.tools import reward, tool
from turnwise.envs.types import Task

FITTING = [name for name in FORMATS if name != "boxed"]


class Sums(ToolEnv):
    """One tool of one argument: what a box can write."""

    def tasks(self, split):
        return [Task(hidden={"split": split, "i": i}) for i in range(20)]

    def setup(self, task, rng):
        self.numbers = rng.randrange(100), rng.randrange(100)
        self.said = None
        return f"{self.numbers[0]} + {self.numbers[1]} ="

    @tool(final=True)
    def answer(self, total: int) -> None:
        """Give the sum."""
        self.said = total

    @reward
    def right(self, episode) -> float:
        return float(self.said == sum(self.numbers))

    def expert(self):
        said = "" if self.format.name == "command" else "Let me see.\n"
        return said + self.call_text("answer", total=sum(self.numbers))


class Coder(Sums):
    """Tools as a coding agent has them."""

    @tool
    def python(self, code: str) -> str:
        """Run code."""
        return code

    @tool
    def reset_all(self) -> None:
        """Begin anew."""


def play(env, seed):
    env.reset(seed=seed)
    for _ in range(64):
        *_, terminated, truncated, info = env.step(env.expert())
        if terminated or truncated:
            return info
    raise AssertionError("the expert does not end")


@pytest.fixture(scope="module", params=FITTING)
def hunt(request):
    with closing(FileHunt(actions=request.param)) as env:
        yield env


@given(seed=st.integers(0, 2**31 - 1))
@settings(max_examples=10, deadline=None)
def test_the_expert_of_a_file_hunt_succeeds_in_every_format_that_can_call_its_tools(hunt, seed):
    info = play(hunt, seed)
    assert info["success"] and info["metrics"]["n_errors"] == 0


def test_a_format_that_cannot_call_a_tool_says_which_and_why_and_what_can_when_it_is_made():
    with pytest.raises(FormatMisfit) as refusal:
        FileHunt(actions="boxed")
    for part in (
        "'boxed' cannot call ls(path: str), ",
        "one argument of an environment's one tool",
    ):
        assert part in str(refusal.value)
    assert "submit" not in str(refusal.value) and "use actions='fenced'" in str(refusal.value)

    class Two(Sums):
        @tool
        def move(self, source: str, target: str) -> None:
            """Move."""

    with pytest.raises(
        FormatMisfit, match=r"'fenced' cannot call move\(source: str, target: str\)"
    ):
        Two(actions="fenced")
    for name in FITTING:
        if name != "fenced":
            assert Two(actions=name).format.name == name


@pytest.mark.parametrize("name", FORMATS)
def test_an_answer_succeeds_in_every_format_or_the_environment_is_refused(name):
    env = Sums(actions=name)
    for seed in range(5):
        info = play(env, seed)
        assert info["success"] and info["calls"][0]["args"] == {"total": sum(env.numbers)}


@pytest.mark.parametrize("name", FITTING)
def test_tools_of_no_argument_and_of_code_are_called_in_every_format(name):
    env = Coder(actions=name)
    env.reset(seed=0)
    code = "if True:\n    print('a', \"b\")\n"
    assert env.step(env.call_text("python", code=code))[0] == code
    assert env.step(env.call_text("reset_all"))[0] == "ok"
    calls = [call.to_json() for call in env.episode.calls]
    assert [call["args"] for call in calls] == [{"code": code}, {}]
    assert all(not call.keys() & {"words", "texts", "error"} for call in calls)


@pytest.mark.parametrize("name", FORMATS)
def test_a_mistake_is_answered_with_a_stable_code_and_the_nearest_name(name):
    env = Sums(actions=name) if name == "boxed" else Coder(actions=name)
    env.reset(seed=0)
    wanted = "ToolError[unknown_tool] no tool 'pyton'; did you mean 'python'?"
    if name == "boxed":
        wanted = 'ToolError[bad_args] total must be int, got "three" Write \\boxed{TOTAL}'
    wrong = "\\boxed{three}" if name == "boxed" else env.format.render("pyton", {})
    assert env.step(wrong)[0].startswith(wanted)
    broken = "a 'b" if name == "command" else env.format.render("python", {"code": "x"})[:-2]
    code = "bad_json" if name in ("hermes", "llama3", "mistral") else "bad_command"
    assert env.step(broken)[0].startswith(f"ToolError[{code}] line ")


@pytest.mark.parametrize("id", [spec.id for spec in list_envs()])
def test_every_tool_of_every_environment_is_called_in_every_format_that_fits(id):
    if not issubclass(type(one := made(id)), ToolEnv):
        pytest.skip("has no tools")
    one.close()
    for name, format in FORMATS.items():
        with suppress(FormatMisfit), closing(made(id, actions=name)) as env:
            assert env.format.name == name and isinstance(env.system(), str)
            for tool_of in env.parts.tools.values():
                args = {p.name: junk(p.kind.schema) for p in tool_of.parameters}
                (call,) = env.format.parse(env.call_text(tool_of.name, **args)).calls
                assert call.name == tool_of.name and tool_of.bind(call) == args
            continue
        assert format.fit is not None


def made(id, **kwargs):
    try:
        return make(id, **kwargs)
    except MissingExtra as error:
        pytest.skip(str(error))


class Loud(Coder):
    max_observation_chars = 20


def test_an_answer_that_is_too_long_says_so_with_a_code_and_is_no_mistake():
    env = Loud()
    env.reset(seed=0)
    code = "a" * 15 + "b" * 100 + "c" * 15
    observation, *_, info = env.step(env.call_text("python", code=code))
    assert observation == f"{'a' * 10}\n[output_truncated] 110 characters left out\n{'c' * 10}"
    (call,) = info["calls"]
    assert call["left_out"] == 110 and "error" not in call and "error" not in info
    assert ToolCall.from_json(json.loads(json.dumps(call))) == env.episode.calls[0]
    for _ in range(env.max_errors):
        *_, truncated, info = env.step(env.call_text("python", code=code))
        assert not truncated
    *_, info = env.step(env.call_text("answer", total=sum(env.numbers)))
    assert info["metrics"] == {"n_calls": 5, "n_errors": 0, "n_truncated": 4} and info["success"]


@pytest.mark.parametrize("limit", [0, 1, 2, 3])
def test_however_short_the_limit_no_character_is_shown_that_is_said_to_be_left_out(limit):
    env = Loud()
    env.max_observation_chars = limit
    env.reset(seed=0)
    observation = env.step(env.call_text("python", code="abcd"))[0]
    half = limit // 2
    note = f"[output_truncated] {4 - 2 * half} characters left out"
    assert observation == f"{'abcd'[:half]}\n{note}\n{'abcd'[4 - half :]}"


def test_the_formats_that_fit_an_environment_are_listed():
    assert fitting(tuple(Sums().parts.tools.values())) == list(FORMATS)
    assert fitting(tuple(FileHunt().parts.tools.values())) == FITTING
    assert "fenced" not in fitting(tuple(made("turnwise/RefundDesk-v1").parts.tools.values()))
