"""Defects that were found in other gyms, one test each: what such a system does, ours does not.

Comments say which kind of system shows the defect.
"""

from __future__ import annotations

import contextlib
import math
import random
import socket
import subprocess
import sys
import threading
import time

import gymnasium
import numpy as np
import pytest
from boxes import need_bubblewrap
from fakes import Guess, Parrot
from toys import Fault, Faulty, Walks, crash

from turnwise.agents.policy import ScriptedPolicy, expert, noop
from turnwise.agents.replay import execute
from turnwise.agents.rollout import Settings, jobs_for, play
from turnwise.agents.score import summarise
from turnwise.envs.base import Response, TextEnv
from turnwise.envs.code_env import CodeEnv
from turnwise.envs.fuzz import MALFORMED
from turnwise.envs.pool import EnvPool, StepTimeout
from turnwise.envs.registry import DuplicateEnv, UnknownEnv, make, register
from turnwise.envs.tool_env import ToolEnv
from turnwise.envs.tools import reward, tool
from turnwise.envs.types import Outcome, Stop, Task
from turnwise.envs.vector import make_vec
from turnwise.envs.wrappers import TimeLimit
from turnwise.sandboxes.base import Limits, SandboxDied


def rolled_out(make_env, tasks=4, policy=expert, replicas=1, **settings):
    """Episodes in the order of their tasks."""
    jobs = jobs_for(make_env().tasks("train")[:tasks], replicas, run_seed=0, split="train")
    done = {e.id: e for e in play(jobs, make_env, ScriptedPolicy(policy), Settings(**settings))}
    return [done[job.id] for job in jobs]


def started(env, seed=0):
    env.reset(seed=seed)
    return env


def said(env, *actions):
    """What the last of these actions is answered with."""
    return [env.step(action)[0] for action in actions][-1]


# ---------------------------------------------------------------- randomness


def test_seeding_an_environment_leaves_the_global_generators_alone():
    # Gyms of text games call random.seed(seed) in reset, and so make a trainer's draws repeat.
    before = random.getstate(), np.random.get_state()[1].tolist()
    for env in (Guess(), make("turnwise/FileHunt-v1"), make("turnwise/Craft-v1")):
        env.reset(seed=7)
        env.step("x")
        env.close()
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before


def test_the_same_seed_gives_the_same_episode_while_a_second_environment_is_alive():
    # Where the state is drawn from a global generator, a neighbour's draws change the board.
    def observations(crowded):
        # Half of its calls fail by a draw of the episode's own.
        env, other = (make("turnwise/FileHunt-v1", tool_failure=0.5) for _ in range(2))
        seen = [env.reset(seed=3)[0]]
        for turn in range(8):
            if crowded:
                other.reset(seed=turn)
                other.step(other.expert())
            seen.append(env.step(env.expert())[0])
        env.close(), other.close()
        return seen

    assert observations(crowded=False) == observations(crowded=True)


def test_a_seed_is_never_accepted_and_dropped():
    # Services take a seed in reset and do not pass it on, so the attempts of a group differ.
    first, again, other = (started(Guess(), seed).secret for seed in (5, 5, 6))
    assert first == again != other


def test_all_attempts_of_a_group_start_from_the_same_state():
    episodes = rolled_out(Guess, tasks=3, replicas=4, concurrency=5)
    starts = {}
    for episode in episodes:
        first = episode.turns[0]
        starts.setdefault(episode.group, set()).add((first.observation, first.state_before))
    assert [len(states) for states in starts.values()] == [1, 1, 1]


# ---------------------------------------------------------------- many environments at once


def test_a_vector_keeps_the_last_observation_and_info_of_an_episode_that_ended():
    # Vectors that reset at once return the next opening, and drop what the episode ended with.
    vec = make_vec(Walks, 2, length=1)
    vec.reset(seed=0)
    _, _, terminations, _, infos = vec.step(["a step", "x"])
    vec.close()
    assert terminations.all()
    assert all("is at mile 1" in last for last in infos["final_obs"])
    assert list(infos["final_info"]["success"]) == [True, False]


def test_an_environment_that_raises_costs_nobody_else_a_step_and_the_vector_lives_on():
    # One exception loses the step of all environments, although the others have advanced.
    task = Faulty().tasks("train")[0]
    broken = Faulty({0: Fault(2, crash, left=1)})
    made = iter([broken, *(Faulty() for _ in range(9))])
    vec = make_vec(lambda: next(made), 3)
    vec.reset(seed=0, options={"task": task})
    vec.step(["a step"] * 3)
    observations, rewards, _, truncations, infos = vec.step(["a step"] * 3)
    assert [math.isnan(r) for r in rewards] == [True, False, False] == truncations.tolist()
    assert all("is at mile 2 ok" in text for text in observations[1:])
    assert infos["final_info"]["outcome"][0] == "env_error"
    observations, rewards, *_ = vec.step(["a step"] * 3)
    vec.close()
    assert np.isfinite(rewards).all() and "is at mile 1 ok" in observations[0]


def test_a_slow_environment_holds_nobody_up():
    # A lockstep vector is as slow as its slowest member.
    gate = threading.Event()
    slow, quick = Fault(1, gate.wait, left=1), 5
    with EnvPool(lambda: Faulty({0: slow}, fast=False, length=9), 2) as pool:
        tasks = Faulty().tasks("train")
        for index in (0, 1):
            pool.send(index, "reset", seed=0, options={"task": tasks[index]})
        answered, turns = [0, 0], 0
        while turns < quick:
            for answer in pool.recv(1.0):
                turns += answer.index and answered[1] > 0
                answered[answer.index] += 1
                pool.send(answer.index, "step", "a step")
        gate.set()
    assert answered[0] <= 2 and answered[1] > quick


def test_after_a_timeout_no_reply_is_taken_for_the_next_one():
    # A client that gives up on one request reads its late reply as the answer to the next, and
    # every observation from then on is the one before.
    gate = threading.Event()
    task = Faulty().tasks("train")[0]
    fault = Fault(2, gate.wait, left=1)
    with EnvPool(lambda: Faulty({0: fault}, fast=False), 1, step_timeout_s=0.3) as pool:

        def call(method, *args, **kwargs):
            pool.send(0, method, *args, **kwargs)
            while not (answers := pool.recv(1.0)):
                pass
            return answers[0]

        call("reset", seed=0, options={"task": task})
        assert "mile 1" in call("step", "a step").value[0]
        assert isinstance(call("step", "a step").error, StepTimeout)
        call("reset", seed=0, options={"task": task})
        gate.set()
        time.sleep(0.05)
        for mile in (1, 2, 3):
            assert f"mile {mile}" in call("step", "a step").value[0]


def test_one_bad_rollout_does_not_end_the_others():
    # Trainers gather a batch of rollouts, and one exception aborts the whole step.
    faults = {1: Fault(1, crash), 2: Fault(0, crash)}
    episodes = rolled_out(lambda: Faulty(faults), concurrency=4)
    assert [e.outcome for e in episodes] == [
        *(Outcome.OK, Outcome.ENV_ERROR, Outcome.ENV_ERROR, Outcome.OK)
    ]


def test_a_grader_that_hangs_does_not_hold_the_job_up():
    gate = threading.Event()

    class Waits(Guess):
        fast = False
        step_timeout_s = 0.3

        @reward()
        def solved(self, episode):
            gate.wait()
            return 1.0

    began = time.monotonic()
    episodes = rolled_out(Waits, tasks=2, retries=0)
    gate.set()
    assert time.monotonic() - began < 10
    assert {e.outcome for e in episodes} == {Outcome.INFRA_ERROR}
    assert {e.stop for e in episodes} == {Stop.DEADLINE}


def test_environments_that_are_done_with_are_closed():
    # Sessions that nobody closes fill a server until it takes no more.
    made = []
    with EnvPool(lambda: Faulty(made=made), 5) as pool:
        for index in range(5):
            pool.send(index, "reset", seed=index)
        pool.recv()
    assert [env.closed for env in made] == [1] * 5


# ---------------------------------------------------------------- text


def test_an_observation_may_hold_any_character():
    # gymnasium's own Text space lists its characters, and 'é' kills the vector environment.
    vec = make_vec(Parrot, 2)
    observations, _ = vec.reset(seed=[0, 1])
    for text in (*observations, "é日本👋"):
        assert vec.single_observation_space.contains(text)
    vec.step(["é", "👋"])
    vec.close()
    assert "Café" in Guess().reset(seed=0)[0]


def test_all_that_an_agent_needs_is_in_what_it_reads():
    # Some games put the board into info alone; without their wrapper the agent plays blind.
    for id in ("turnwise/FileHunt-v1", "turnwise/Craft-v1", "turnwise/Sokoban-v1"):
        env = make(id)
        observation, info = env.reset(seed=0)
        assert info["messages"][-1]["content"] == observation and observation.strip()
        observation, *_, info = env.step(env.expert())
        env.close()
        assert "\n".join(m["content"] for m in info["messages"]) == observation


# ---------------------------------------------------------------- malformed calls


@pytest.mark.parametrize("actions", ["hermes", "command"])
def test_a_malformed_call_never_runs_with_empty_arguments(actions):
    # Parsers that fail fall back to {}, and the tool runs with its defaults.
    ran = []

    class Deletes(ToolEnv):
        def tasks(self, split):
            return [Task(hidden={"split": split})]

        def setup(self, task, rng):
            return "go"

        @tool
        def delete(self, path: str = "/") -> None:
            """Delete a tree."""
            ran.append(path)

    env = started(Deletes(actions=actions))
    broken = '<tool_call>{"name": "delete", "arguments": {"path": "/tmp/x"}'
    for action in (
        broken,
        '<tool_call>{"name": "delete", "arguments": "{}"}</tool_call>',
        *MALFORMED,
    ):
        env.reset(seed=0)
        *_, info = env.step(action)
        unread = [call for call in info["calls"] if call["error"].startswith(("bad_", "no_call"))]
        assert all(call["args"] is None for call in unread)
        assert info["error"]
    assert ran == []


def test_a_malformed_call_is_neither_dropped_nor_taken_for_an_answer():
    # A wrapper without a match hands the text to the game, which judges it as an answer.
    env = started(Guess())
    observation, paid, terminated, truncated, info = env.step('<tool_call>{"name": "submit", ')
    assert observation.startswith("ToolError[bad_json] line 1 col ")
    assert (paid, terminated, truncated, len(info["calls"])) == (0.0, False, False, 1)


def test_an_error_says_where_it_is_and_what_would_be_right():
    # The observation of an unknown tool is a bare name, or a KeyError.
    env = started(Guess())
    text = said(env, '<tool_call>\n{"name": "lock", "arguments": {"number": 3}}\n</tool_call>')
    assert text.startswith("ToolError[unknown_tool] no tool 'lock'; did you mean 'look'?")
    assert "look(number" in text and len(text) <= 400
    text = said(env, '<tool_call>\n{"name": "look", "arguments": {"nr": 3}}\n</tool_call>')
    assert text.startswith("ToolError[bad_args]") and "number" in text


def test_a_game_is_not_over_after_two_malformed_moves_but_at_the_budget_that_is_declared():
    # Some games end at the second move that they cannot read, and count it as lost.
    for budget in (3, 5):
        env = started(Guess())
        env.max_errors = budget
        for _ in range(budget - 1):
            *_, terminated, truncated, info = env.step("nonsense")
            assert not terminated and not truncated
        env.step(env.expert())  # one that makes sense begins the count anew
        for turn in range(1, budget + 1):
            *_, terminated, truncated, info = env.step("nonsense")
            assert (terminated, truncated) == (False, turn == budget)
        assert info["outcome"] == "agent_error" and info["success"] is False


# ---------------------------------------------------------------- what is paid for


class Sums(ToolEnv):
    """A sum, answered in one word."""

    def tasks(self, split):
        return [Task(hidden={"split": split, "i": i}) for i in range(50)]

    def setup(self, task, rng):
        self.terms, self.answer = [rng.randrange(10, 99) for _ in range(2)], ""
        return f"What is {self.terms[0]} + {self.terms[1]}?"

    @tool(final=True)
    def submit(self, answer: str) -> None:
        """Give the answer."""
        self.answer = answer

    @reward()
    def right(self, episode):
        return float(self.answer.strip() == str(sum(self.terms)))


def test_five_wrong_answers_in_the_right_format_pay_nothing():
    # Where each well-formed answer earns a little, five wrong ones earn a fifth of the task.
    class Attempts(Sums):
        """Six attempts; the last answer counts."""

        @tool
        def attempt(self, answer: str) -> str:
            """Try an answer."""
            self.answer = answer
            return "right" if self.right(None) else "wrong"

    env = started(Attempts())
    wrong = str(sum(env.terms) + 1)
    said = [env.step(env.call_text("attempt", answer=wrong)) for _ in range(5)]
    assert ["wrong" in answer[0] for answer in said] == [True] * 5
    last = env.step(env.call_text("submit", answer=wrong))
    assert [answer[1] for answer in (*said, last)] == [0.0] * 6 and last[2]
    env.reset(seed=3)
    right = str(sum(env.terms))
    assert env.step(env.call_text("attempt", answer=right))[1] == 0.0
    assert env.step(env.call_text("submit", answer=right))[1] == 1.0


def test_an_answer_that_hedges_pays_nothing():
    # A scorer that looks whether the answer is contained pays for `maybe 41 or 42`.
    env = Sums()
    for answer, paid in (("{}", 1.0), ("maybe {} or 0", 0.0), ("{} {}", 0.0), ("not {}", 0.0)):
        started(env, 3)
        right = sum(env.terms)
        assert env.step(env.call_text("submit", answer=answer.format(right, right)))[1] == paid


def test_terminated_and_truncated_are_two_things():
    # With one flag `done`, or truncated = not success, a cut episode counts as a failure.
    env = started(Guess(max_turns=2))
    env.step("")
    *_, terminated, truncated, info = env.step(env.call_text("look", number=3))
    assert (terminated, truncated, info["outcome"]) == (False, True, "truncated")
    started(env)
    *_, terminated, truncated, info = env.step(env.call_text("submit", number=99))
    assert (terminated, truncated, info["success"]) == (True, False, False)


def test_a_step_after_the_end_is_refused_and_does_not_begin_an_episode_in_silence():
    env = started(Guess())
    env.step(env.call_text("submit", number=1))
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(env.call_text("look", number=1))


def test_the_reward_of_a_turn_is_kept_at_that_turn():
    # Generators that sum up turn rewards, or keep the last, leave credit nothing to work with.
    (episode,) = rolled_out(lambda: Walks(length=4), tasks=1)
    assert [turn.reward for turn in episode.turns] == [0.25] * 4


def lose():
    raise SandboxDied("the box is gone")


def test_a_failure_of_the_machine_is_never_a_reward_of_zero():
    # In one user's run 92 % of the rollouts failed in reset, and all were trained on as 0.
    faults = {i: Fault(0, lose) for i in range(3)}
    episodes = rolled_out(lambda: Faulty(faults), retries=1)
    assert [e.outcome for e in episodes] == [Outcome.INFRA_ERROR] * 3 + [Outcome.OK]
    assert [e.outcome.trainable for e in episodes] == [False] * 3 + [True]
    report = summarise(episodes)
    assert (report.masked, report.reward.value, report.success.value) == (3, 1.0, 1.0)


def test_a_grader_that_fails_is_not_a_reward_of_zero():
    # A reward file that is missing reads as 0, and a solved task as failed.
    class Lost(Guess):
        @reward()
        def solved(self, episode):
            raise FileNotFoundError("reward.txt")

    (episode,) = rolled_out(Lost, tasks=1)
    assert episode.outcome is Outcome.JUDGE_ERROR and not episode.outcome.trainable
    env = started(Lost())
    assert "FileNotFoundError" in env.step(env.call_text("submit", number=0))[-1]["detail"]


# ---------------------------------------------------------------- sandboxes


class Lab(CodeEnv):
    """Code in a box, and a file that some graders would read."""

    backend = "bubblewrap"
    limits = Limits(memory_mb=96, pids=24, disk_mb=4, wall_s=5.0)

    def tasks(self, split):
        return [Task(hidden={"split": split, "oracle": "xyzzy-plugh"})]

    def setup(self, task, rng):
        return "Do what you like."

    @tool(final=True)
    def stop(self) -> None:
        """End the episode."""

    @reward()
    def solved(self, episode):
        with self.fresh_box(self.taken("solution.py")) as box:
            return float(box.exec(["python3", "solution.py"]).stdout == b"42\n")


@pytest.fixture
def lab():
    need_bubblewrap()
    env = started(Lab())
    yield env
    env.close()


def run(env, tool, **args):
    return env.step(env.call_text(tool, **args))[0]


def test_code_that_hides_its_words_does_not_leave_the_sandbox(lab, tmp_path):
    # A filter that looks for `os.system` is passed by "sys" + "tem", and the code runs on the host.
    trap = tmp_path / "escaped"
    code = f"""
import importlib
o = importlib.import_module("o" + "s")
getattr(o, "sys" + "tem")("id -un; touch {trap}")
"""
    text = run(lab, "python", code=code)
    assert not trap.exists()
    assert "root" not in text.split() or "No such file" in text or "Read-only" in text


def test_code_reaches_no_network_by_default(lab):
    # Servers that answer the host, so that it does not depend on the machine's wires.
    addresses = [("127.0.0.1", 0)]
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing; says which of our addresses it would use
        addresses.append((probe.getsockname()[0], 0))
    for address in addresses:
        with socket.create_server(address) as server:
            at = server.getsockname()[:2]
            socket.create_connection(at, timeout=2).close()
            code = f"import socket; socket.create_connection({at!r}, timeout=2); print('reached')"
            said = run(lab, "python", code=code)
        assert "Error" in said and "reached" not in said.splitlines()[-1]


def test_a_reward_file_that_the_agent_can_write_pays_nothing(lab):
    # A grader that reads /logs/verifier/reward.txt in the agent's own box pays whoever writes it.
    for path in ("reward.txt", "logs/verifier/reward.txt", "/tmp/reward.txt"):
        run(lab, "write", path=path, text="1.0")
    run(lab, "bash", command="echo 1.0 > ~/reward.txt; echo PASSED; exit 0")
    *_, paid, _, _, info = lab.step(lab.call_text("stop"))
    assert (paid, info["success"]) == (0.0, False)


def test_what_the_grader_knows_is_not_in_the_box(lab):
    # Images that hold the solution or its history are read rather than solved.
    _, info = lab.reset(seed=0)
    assert "xyzzy-plugh" not in str(info["messages"]) + str(info["tools"]) + repr(info["task"])
    found = run(
        lab, "bash", command="grep -rh xyzzy-plugh . /tmp /etc /home /root 2>/dev/null; env"
    )
    assert "xyzzy-plugh" not in found


def test_an_agent_cannot_fool_the_grader_by_what_its_processes_do_later(lab):
    serve = "import socket\nwith socket.create_server(('127.0.0.1', 4242)) as server:\n"
    serve += "    while True: server.accept()[0].sendall(b'42')\n"
    ask = "import socket\nprint(socket.create_connection(('127.0.0.1', 4242)).recv(9).decode())\n"
    run(lab, "write", path="serve.py", text=serve)
    run(lab, "write", path="solution.py", text=ask)
    run(lab, "bash", command="python3 serve.py >/dev/null 2>&1 & sleep 0.5")
    assert run(lab, "bash", command="python3 solution.py") == "42", "in the agent's box it does"
    *_, paid, _, _, info = lab.step(lab.call_text("stop"))
    assert (paid, info["success"]) == (0.0, False)


# ---------------------------------------------------------------- replay, wrappers, names


def test_replay_executes_again_even_where_a_tool_told_the_time():
    # Elsewhere replay means to score again; where it re-executes, tools that read a clock break it.
    class Asks(ToolEnv):
        def tasks(self, split):
            return [Task(hidden={"split": split, "i": i}) for i in range(3)]

        def setup(self, task, rng):
            return "What time is it?"

        @tool(final=True)
        def ask(self) -> str:
            """Ask for the time."""
            return f"{self.clock.now():.9f}"

    def ask(seat):
        return seat.env.call_text("ask")

    first, second = rolled_out(Asks, tasks=2, policy=ask)
    assert first.final_observation != second.final_observation
    assert execute(first, Asks) is execute(second, Asks) is None


def test_replay_finds_the_first_turn_that_differs():
    episode = max(rolled_out(Guess, tasks=9), key=lambda episode: len(episode.turns))

    class Changed(Guess):
        @tool
        def look(self, number: int) -> str:
            """Compare, and be loud about it after the first turn."""
            answer = super().look(number)
            return answer.upper() if self.turn > 1 else answer

    divergence = execute(episode, Changed)
    assert divergence is not None
    assert (divergence.turn, divergence.field) == (1, "observation")


def test_a_wrapper_shows_the_present_state_of_what_it_wraps():
    # A wrapper that copies attributes when it is made goes on to show those of then.
    env = TimeLimit(Guess(), turns=5)
    env.reset(seed=0)
    env.step(env.unwrapped.expert())
    assert env.turn == env.unwrapped.turn == 1
    assert env.secret == env.unwrapped.secret


def test_an_id_that_is_taken_is_refused_and_a_wrong_one_finds_the_nearest():
    # Registries that only warn let one environment stand in for another.
    register("defects/Once-v1", "fakes:Guess")
    with pytest.raises(DuplicateEnv):
        register("defects/Once-v1", "fakes:Parrot")
    with pytest.raises(UnknownEnv, match="did you mean 'defects/Once-v1'"):
        make("defects/Onec-v1")


def test_the_names_that_an_environment_is_written_with_are_in_the_root_module():
    # A release that empties its root module breaks every environment that was written before.
    import turnwise.envs

    names = "Task ToolEnv TextEnv SandboxEnv Response ToolFailed tool reward metric register make"
    for name in (*names.split(), "check_env", "list_envs", "spec", "Outcome"):
        assert name in turnwise.envs.__all__ and hasattr(turnwise.envs, name)


def test_everything_works_offline():
    # An evaluation with a mock model fails where a tokenizer cannot be downloaded.
    code = """
import socket
def refuse(*args, **kwargs): raise OSError("there is no network")
socket.getaddrinfo = socket.create_connection = refuse
class Offline(socket.socket):
    def connect(self, address):
        if self.family != socket.AF_UNIX: refuse()
        return super().connect(address)
socket.socket = Offline
from turnwise.agents.policy import ScriptedPolicy, expert
from turnwise.agents.rollout import jobs_for, play
from turnwise.envs import make
for id in ("turnwise/Craft-v1", "turnwise/Sokoban-v1", "turnwise/Calculator-v1"):
    tasks = make(id).tasks("test")[:3]
    jobs = jobs_for(tasks, run_seed=0, split="test")
    assert all(e.success for e in play(jobs, lambda: make(id), ScriptedPolicy(expert))), id

import tempfile
from turnwise.agents.engines.embedded import EmbeddedEngine
from turnwise.agents.policy import LLMPolicy
from turnwise.agents.renderer import Renderer
from turnwise.trainers.model import load_model, save_model, tiny_from_env
env = make("turnwise/Craft-v1", actions="command")
model, tokenizer = tiny_from_env(lambda: env, tasks=5, hidden=16, heads=1, kv_heads=1, ffn=16)
with tempfile.TemporaryDirectory() as folder:
    save_model(model, tokenizer, folder)
    model, tokenizer = load_model(folder)
engine = EmbeddedEngine(model, slots=2, max_len=512)
policy = LLMPolicy(engine, Renderer(tokenizer), max_new_tokens=4)
jobs = jobs_for(env.tasks("test")[:2], run_seed=0, split="test")
episodes = list(play(jobs, lambda: make("turnwise/Craft-v1", actions="command"), policy))
assert len(episodes) == 2 and all(e.turns[0].action_ids for e in episodes)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_agent_that_says_nothing_is_answered_and_recorded_like_any_other():
    episodes = rolled_out(Guess, tasks=2, policy=noop)
    assert {e.outcome for e in episodes} == {Outcome.AGENT_ERROR}
    assert all("ToolError[no_call]" in e.final_observation for e in episodes)


def test_the_observation_that_follows_a_text_environment_s_answer_is_its_own():
    # State that is kept per class or per client mixes two sessions.
    class Says(TextEnv):
        def tasks(self, split):
            return [Task(hidden={"split": split, "i": i}) for i in range(2)]

        def setup(self, task, rng):
            return f"I am {task.hidden['i']}."

        def respond(self, action):
            return Response(f"{self.task.hidden['i']} heard {action}", terminated=True)

    envs = [Says(), Says()]
    for i, env in enumerate(envs):
        env.reset(seed=0, options={"task": env.tasks("train")[i]})
    assert [said(env, f"hello {i}") for i, env in enumerate(envs)] == [
        *("0 heard hello 0", "1 heard hello 1")
    ]
