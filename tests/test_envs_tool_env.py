"""Laws of `ToolEnv`: the agent's mistakes are answered, the machine's and ours are not hidden."""

from contextlib import closing

import gymnasium
import pytest
from boxes import need_bubblewrap
from fakes import Guess, Parrot
from gymnasium.error import ResetNeeded

from turnwise.envs.check import check_env
from turnwise.envs.extras import MissingExtra
from turnwise.envs.names import UnknownName
from turnwise.envs.registry import list_envs, make
from turnwise.envs.sandbox_env import SandboxEnv
from turnwise.envs.signatures import ToolSchemaError
from turnwise.envs.tool_env import CODES, ToolEnv
from turnwise.envs.tools import ToolFailed, metric, reward, tool
from turnwise.envs.types import Task
from turnwise.sandboxes.base import SandboxDied


def started(env=None, **kwargs):
    env = env or Guess(**kwargs)
    env.reset(seed=3)
    return env


class Flaky(Guess):
    """A guess whose tools fail in every way there is."""

    value = 0.0

    @tool
    def fail(self, how: str) -> str:
        """Fail."""
        if how == "agent":
            raise ToolFailed("no such file: /a/b")
        if how == "slow":
            raise ToolFailed("took longer than 5 s", code="timeout")
        raise {"machine": SandboxDied("gone"), "ours": KeyError("typo")}[how]

    @tool
    def tell(self, size: int) -> object:
        """Say much."""
        return {"é" * size: [1]} if size else None

    @reward(weight=0.5)
    def odd(self, episode) -> float:
        if isinstance(self.value, Exception):
            raise self.value
        return self.value


@pytest.mark.parametrize(
    ("action", "code", "words"),
    [
        ('<tool_call>{"name": "look", "arguments": {"number": 1,}}</tool_call>', "bad_json", "col"),
        ("I do not know.", "no_call", "look(number: int)"),
        ('<tool_call>{"name": "lok", "arguments": {}}</tool_call>', "unknown_tool", "'look'"),
        (
            '<tool_call>{"name": "look", "arguments": {"number": "7"}}</tool_call>',
            "bad_args",
            'number must be int, got "7"',
        ),
        (
            '<tool_call>{"name": "look", "arguments": {"number": 99}}</tool_call>',
            "tool_raised",
            "out of range: 99",
        ),
    ],
)
def test_a_mistake_of_the_agent_is_a_short_coded_observation(action, code, words):
    observation, paid, terminated, truncated, info = started().step(action)
    assert observation.startswith(f"ToolError[{code}] ") and words in observation
    assert len(observation) <= 400 and info["error"] == code and code in CODES
    assert (paid, terminated, truncated) == (0.0, False, False)
    assert info["calls"][0]["error"].startswith(code)
    assert info["messages"] == [{"role": "tool", "content": observation}]


def test_an_error_never_runs_the_tool_with_made_up_arguments():
    env = started()
    before = env.state_hash()
    env.step('<tool_call>{"name": "look", "arguments": {}}</tool_call>')
    env.step('<tool_call>{"name": "look"}</tool_call>')
    assert env.state_hash() == before


def test_hints_can_be_left_out_to_save_tokens():
    env = started()
    env.hints = False
    assert env.step("hm")[0] == "ToolError[no_call] line 1 col 3: expected <tool_call>"


def test_too_many_malformed_turns_in_a_row_end_the_episode_as_the_agents_error():
    env = started()
    ends = [env.step("hm")[2:4] for _ in range(env.max_errors - 1)]
    _, paid, terminated, truncated, info = env.step("hm")
    assert ends == [(False, False)] * (env.max_errors - 1)
    assert (paid, terminated, truncated) == (0.0, False, True)
    assert info["outcome"] == "agent_error" and info["success"] is False


def test_one_good_turn_forgives_the_malformed_ones():
    env = started()
    for action in ["hm", "hm", env.call_text("look", number=1), "hm", "hm"]:
        assert env.step(action)[2:4] == (False, False)


def test_a_tool_that_says_no_is_not_a_malformed_turn():
    env = started()
    for _ in range(env.max_turns - 1):
        assert env.step(env.call_text("look", number=99))[2:4] == (False, False)


@pytest.mark.parametrize(("how", "error"), [("machine", SandboxDied), ("ours", KeyError)])
def test_what_is_not_the_agents_fault_leaves_step_as_it_is(how, error):
    env = started(Flaky())
    with pytest.raises(error):
        env.step(env.call_text("fail", how=how))


def test_a_tool_chooses_the_code_of_its_failure():
    env = started(Flaky())
    assert (
        env.step(env.call_text("fail", how="slow"))[0] == "ToolError[timeout] took longer than 5 s"
    )


def test_results_that_are_not_text_are_json_and_long_ones_say_what_is_left_out():
    env = started(Flaky())
    assert env.step(env.call_text("tell", size=0))[0] == "ok"
    assert env.step(env.call_text("tell", size=1))[0] == '{"é": [1]}'
    env.max_observation_chars = 10
    assert "characters left out" in env.step(env.call_text("tell", size=50))[0]


def test_every_call_of_an_action_is_run_in_order_and_answered_by_its_own_message():
    env = started()
    text = "\n".join(env.call_text("look", number=n) for n in (0, 19)) + "<tool_call>{</tool_call>"
    observation, *_, info = env.step(text)
    assert observation == "\n".join(message["content"] for message in info["messages"])
    assert [call["args"] for call in info["calls"]] == [{"number": 0}, {"number": 19}, None]
    assert info["messages"][0]["content"] == "higher"


def test_nothing_runs_after_a_final_tool():
    env = started()
    text = env.call_text("submit", number=0) + env.call_text("look", number=0)
    *_, terminated, _, info = env.step(text)
    assert terminated and len(info["calls"]) == 1


def test_more_calls_than_the_budget_are_refused():
    env = started()
    observation, *_, info = env.step(env.call_text("look", number=0) * 50)
    assert len(info["calls"]) == env.max_calls + 1
    assert "ToolError[budget_exhausted] at most 8 calls per turn" in observation


def test_a_turn_limit_truncates_and_is_still_graded():
    env = started(max_turns=2)
    env.step(env.call_text("look", number=0))
    *_, terminated, truncated, info = env.step(env.call_text("look", number=0))
    assert (terminated, truncated, info["outcome"]) == (False, True, "truncated")
    assert info["rewards"] == {"solved": 0.0} and "width" in info["metrics"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), ValueError("oops")])
def test_a_grader_that_fails_spoils_the_episode_rather_than_scoring_it(value):
    env = started(Flaky())
    env.value = value
    _, paid, _, _, info = env.step(env.call_text("submit", number=env.secret))
    assert (paid, info["outcome"], info["success"]) == (0.0, "judge_error", False)
    assert "odd" in info["detail"]
    with pytest.raises(ResetNeeded):
        env.step("")


def test_a_grader_whose_sandbox_died_says_so():
    env = started(Flaky())
    env.value = SandboxDied("gone")
    with pytest.raises(SandboxDied):
        env.step(env.call_text("submit", number=0))


class Paid(ToolEnv):
    """Pays per turn and at the end."""

    max_turns = 3

    def tasks(self, split):
        return [Task(hidden={"split": split})]

    def setup(self, task, rng):
        return [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]

    def system(self):
        return ""

    @tool
    def wait(self) -> str:
        """Wait."""
        return "waited"

    @reward(weight=0.1, turn=True)
    def patience(self, episode) -> float:
        return 1.0 if episode.n_turns < 3 else float(self.bad)

    @reward(weight=0.5)
    def length(self, episode) -> float:
        return float(episode.n_turns)

    bad = 1.0


def test_turn_rewards_are_paid_each_turn_and_end_rewards_at_the_end():
    env = started(Paid(actions="command"))
    steps = [env.step("wait") for _ in range(3)]
    assert [step[1] for step in steps] == pytest.approx([0.1, 0.1, 1.6])
    assert steps[-1][4]["rewards"] == pytest.approx({"patience": 0.1, "length": 1.5})
    assert steps[0][4]["rewards"] == {"patience": 0.1}
    assert steps[-1][4]["success"] is True


def test_a_turn_reward_that_is_not_finite_spoils_the_episode_at_once():
    env = started(Paid(actions="command"))
    env.bad = float("nan")
    *_, (_, paid, _, truncated, info) = [env.step("wait") for _ in range(3)]
    assert (paid, truncated, info["outcome"]) == (0.0, True, "judge_error")


class Rubric(Guess):
    """Solved, cheap and short: one decides, one costs, one is style."""

    reward_range = (-1.0, 1.5)

    @reward
    def solved(self, episode) -> float:
        return float(self.answer == self.secret)

    @reward(weight=-0.1)
    def cost(self, episode) -> float:
        return len(episode.calls)

    @reward(weight=0.5, shaping=True)
    def style(self, episode) -> float:
        return 0.4 * self.solved(episode)


def test_success_depends_on_no_cost_and_on_no_shaping_and_both_are_paid():
    env = started(Rubric())
    _, paid, _, _, info = env.step(env.call_text("submit", number=env.secret))
    assert info["rewards"] == pytest.approx({"solved": 1.0, "cost": -0.1, "style": 0.2})
    assert paid == pytest.approx(1.1) and info["success"] is True
    env = started(Rubric())
    _, paid, _, _, info = env.step(env.call_text("submit", number=-1))
    assert paid == pytest.approx(-0.1) and info["success"] is False


def test_an_environment_of_costs_alone_has_no_success():
    class Costs(Guess):
        solved = None

        @reward(weight=-1.0)
        def cost(self, episode) -> float:
            return 1.0

    env = started(Costs())
    _, paid, _, _, info = env.step(env.call_text("submit", number=env.secret))
    assert (paid, info["success"]) == (-1.0, False)


def test_a_sum_below_the_declared_range_is_found_by_the_check():
    class Undeclared(Rubric):
        reward_range = (0.0, 1.5)

    broken = {check.name: check.detail for check in check_env(Undeclared, seeds=[0]).failures}
    assert "outside reward_range [0, 1.5]" in broken.pop("rewards stay in range") and not broken
    assert check_env(Rubric, seeds=[0]).ok


@pytest.mark.parametrize("mark", [reward, reward(), metric])
def test_a_grader_that_is_a_coroutine_is_refused_where_it_is_written(mark):
    with pytest.raises(ToolSchemaError, match=r"judged: a (reward|metric) is a plain method"):

        @mark
        async def judged(self, episode) -> float:
            return 1.0


@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_refused_where_it_is_written(weight):
    with pytest.raises(ToolSchemaError, match="judged: a weight is finite"):

        @reward(weight)
        def judged(self, episode) -> float:
            return 1.0


def test_an_opening_of_messages_is_taken_as_it_is():
    observation, info = Paid(actions="command").reset(seed=0)
    assert observation == "u" and [m["role"] for m in info["messages"]] == ["system", "user"]


def test_a_step_before_reset_and_after_the_end_is_refused():
    for env in (Guess(), Parrot()):
        with pytest.raises(ResetNeeded, match="call reset"):
            env.step("")
    env = started()
    env.step(env.call_text("submit", number=0))
    with pytest.raises(ResetNeeded):
        env.step("")


def test_the_task_comes_from_the_options_and_the_rest_from_the_seed():
    env = Guess()
    _, drawn = env.reset(seed=11)
    secret = env.secret
    _, given = Guess().reset(seed=11, options={"task": drawn["task"]})
    assert given["task"] == drawn["task"]
    env.reset(seed=11, options={"task": env.tasks("test")[0]})
    assert env.secret == secret and env.task.index >= 200


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"split": "tset"}, UnknownName, "did you mean 'test'"),
        ({"taks": None}, UnknownName, "did you mean 'task'"),
        ({"task": Task()}, TypeError, "takes tasks of class Secret, got Task"),
    ],
)
def test_a_wrong_option_is_answered_with_the_way_out(options, error, message):
    with pytest.raises(error, match=message):
        Guess().reset(seed=0, options=options)


def test_two_live_environments_with_one_seed_do_not_touch_each_other():
    one, other = started(), started()
    for number in (3, 9, 12):
        action = one.call_text("look", number=number)
        first = one.step(action)
        started(), Guess().reset(seed=8)
        assert other.step(action)[:4] == first[:4]


def test_gymnasium_vectors_carry_an_accent_and_the_final_observation():
    env = gymnasium.vector.SyncVectorEnv([Guess, Guess])
    observations, _ = env.reset(seed=1)
    assert all("Café" in observation for observation in observations)
    env.step((env.envs[0].call_text("submit", number=0),) * 2)
    env.close()


def test_the_system_prompt_explains_the_tools_in_either_format():
    for actions, words in (("hermes", '"name": "look"'), ("command", "look NUMBER : Compare")):
        _, info = Guess(actions=actions).reset(seed=0)
        assert info["messages"][0]["role"] == "system" and words in info["messages"][0]["content"]
        assert [tool["function"]["name"] for tool in info["tools"]] == ["look", "submit"]


def test_an_unknown_format_of_actions_is_refused():
    with pytest.raises(UnknownName, match="did you mean 'command'"):
        Guess(actions="comand")


# ---------------------------------------------------------------- limits of turns

LIMITED = [
    spec.id
    for spec in list_envs()
    if spec.id.startswith("turnwise/") and not spec.id.startswith("turnwise/BabyAI")
]


@pytest.mark.parametrize("id", [*LIMITED, "turnwise/BabyAI-GoToLocal-v1"])
def test_a_limit_of_turns_that_is_asked_for_wins_over_that_of_setup(id):
    try:
        env = make(id, max_turns=2)
    except TypeError as error:
        pytest.skip(str(error))
    except MissingExtra as error:
        pytest.skip(str(error))
    if isinstance(env.unwrapped, SandboxEnv):
        need_bubblewrap()
    with closing(env):
        for seed in (0, 1):
            env.reset(seed=seed)
            assert env.max_turns == 2
            ended = [any(env.step("")[2:4]) for _ in range(2) if env.unwrapped._running]
            assert ended[-1]


class Generous(Guess):
    """Its setup gives each episode a limit, as long ones need."""

    def setup(self, task, rng):
        self.max_turns = 7
        return super().setup(task, rng)


def test_without_one_the_limit_is_that_of_setup():
    env = started(Generous())
    assert env.max_turns == 7 and started(Generous(max_turns=3)).max_turns == 3
    fork = started(Generous(max_turns=3)).fork()
    assert fork.max_turns == 3
    fork.reset(seed=1)
    assert fork.max_turns == 3


@pytest.mark.parametrize("turns", [0, -1, 1.5, True, "3"])
def test_a_limit_below_one_turn_is_refused(turns):
    with pytest.raises(ValueError, match="max_turns must be"):
        Guess(max_turns=turns)
