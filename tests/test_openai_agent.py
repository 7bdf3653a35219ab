"""A served model that acts and teaches in text: its conversation, its calls, and how it fails."""

from __future__ import annotations

import asyncio
import json
from contextlib import ExitStack

import httpx
import pytest
from fakes import Guess
from servers import standin
from toys import Walks

from turnwise.agents.engines.base import EngineError
from turnwise.agents.engines.client import ProtocolError, ServerRefused
from turnwise.agents.engines.standin import served
from turnwise.agents.executors import ByChance
from turnwise.agents.labels import FAILED, Labelling, play_labelled
from turnwise.agents.openai_agent import (
    Chat,
    ChatPolicy,
    PromptFull,
    chat_named,
    conversation,
    text_of,
)
from turnwise.agents.policy import ScriptedPolicy
from turnwise.agents.renderer import Renderer
from turnwise.agents.rollout import Settings, jobs_for, play
from turnwise.agents.teachers import TextTeacher
from turnwise.cli.main import main
from turnwise.envs.formats.hermes import HERMES
from turnwise.envs.types import Message, Outcome
from turnwise.trainers.model import tiny_from_env

TINY = {"hidden": 16, "layers": 1, "heads": 1, "kv_heads": 1, "head_dim": 16}


class Solver:
    """A server that guesses by bisection, from nothing but the conversation it is sent.

    Args:
        fail: called with the number of the request; a status to answer it with, or 0.
    """

    def __init__(self, fail=lambda count: 0, key="") -> None:
        self.fail, self.key, self.count, self.bodies = fail, key, 0, []

    async def __call__(self, scope, receive, send):
        body = json.loads((await receive())["body"])
        self.count += 1
        self.bodies.append(body)
        given = dict(scope["headers"]).get(b"authorization", b"").decode()
        status = 401 if self.key and given != f"Bearer {self.key}" else self.fail(self.count)
        if status == -1:
            await asyncio.sleep(60)
        answer = {"error": {"message": "no"}} if status else {"choices": [self.choice(body)]}
        raw = json.dumps(answer).encode()
        headers = [(b"content-length", str(len(raw)).encode())]
        await send({"type": "http.response.start", "status": status or 200, "headers": headers})
        await send({"type": "http.response.body", "body": raw})

    def choice(self, body):
        low, high, asked = 0, 19, {}
        for message in body["messages"]:
            for call in message.get("tool_calls") or ():
                asked[call["id"]] = json.loads(call["function"]["arguments"])["number"]
            if message["role"] == "tool":  # KeyError if it answers no call: a server refuses that
                number, said = asked.pop(message["tool_call_id"]), message["content"]
                low = {"higher": number + 1, "lower": low, "equal": number}[said]
                high = {"higher": high, "lower": number - 1, "equal": number}[said]
        name = "submit" if low == high else "look"
        call = {"name": name, "arguments": json.dumps({"number": (low + high) // 2})}
        calls = [{"id": "x1", "type": "function", "function": call}]
        return {"message": {"role": "assistant", "content": None, "tool_calls": calls}}


@pytest.fixture
def stack():
    with ExitStack() as stack:
        yield stack


def playing(app_or_url, count=12, **more):
    chat = Chat("m", app_or_url, pause_s=0.01, **more)
    jobs = list(jobs_for(Guess().tasks("test")[:count], run_seed=0, split="test"))
    return list(play(jobs, Guess, ChatPolicy(chat), Settings(concurrency=6)))


def ask(chat: Chat, *messages: Message, **more) -> str:
    return asyncio.run(chat.answer(messages, **more))


def fixed(message, status=200) -> Chat:
    """A model that always answers the same."""

    async def app(scope, receive, send):
        answer = {"choices": [{"message": message}]} if status == 200 else message
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps(answer).encode()})

    return Chat("m", "http://x", transport=httpx.ASGITransport(app=app), pause_s=0.0)


# Acting


def test_a_served_model_plays_with_the_servers_own_tool_calls(stack):
    solver = Solver()
    episodes = playing(stack.enter_context(served(solver)))
    assert all(e.success and e.outcome is Outcome.OK for e in episodes)
    assert all(turn.calls and not turn.calls[0].get("error") for e in episodes for turn in e.turns)
    assert not any(turn.action_ids for e in episodes for turn in e.turns)
    body = max(solver.bodies, key=lambda body: len(body["messages"]))
    assert {tool["function"]["name"] for tool in body["tools"]} == {"look", "submit"}
    roles = [message["role"] for message in body["messages"]]
    assert roles[:2] == ["system", "user"] and roles[-2:] == ["assistant", "tool"]


def test_eval_plays_a_served_model_by_name(stack, tmp_path, capsys):
    url = stack.enter_context(served(Solver()))
    command = ["eval", "fakes:Guess", "--policy", f"openai:m@{url}/v1", "--tasks", "8", "--json"]
    code = main([*command, "--record", str(tmp_path / "r.jsonl"), "--skip-floors"])
    said = json.loads(capsys.readouterr().out)
    assert code == 0 and said["success"]["value"] == 1.0


def test_the_stand_in_chats_too(stack):
    url = stack.enter_context(served(standin()))
    text = ask(
        Chat("policy", url, max_new_tokens=5), Message(role="user", content="walk 3"), seed=4
    )
    assert text and text == ask(
        Chat("policy", url, max_new_tokens=5), Message(role="user", content="walk 3"), seed=4
    )
    with pytest.raises(PromptFull):
        ask(Chat("policy", url), Message(role="user", content="é" * 600))


def test_a_name_says_which_model_and_where():
    chat = chat_named("openai:org/m@7b@http://h:1/v1", max_new_tokens=3)
    assert (chat.model, chat.server.url) == ("org/m@7b", "http://h:1")
    with pytest.raises(ValueError, match="openai:MODEL@URL"):
        chat_named("openai:m")


# Conversations


def call(name, **args) -> str:
    return HERMES.render(name, args)


TALK = [
    Message(role="system", content="s"),
    Message(role="user", content="u"),
    Message(role="assistant", content=f"hm {call('look', number=3)}\n{call('look', number=4)}"),
    Message(role="tool", content="higher"),
    Message(role="tool", content="lower"),
    Message(role="assistant", content="no call"),
    Message(role="tool", content="ToolError[no_call]"),
]


def test_every_answer_of_a_tool_stands_behind_the_call_that_it_answers():
    said = conversation(TALK, HERMES, calls=True)
    assert [message["role"] for message in said] == [
        *("system", "user", "assistant", "tool", "tool", "assistant", "user")
    ]
    made = said[2]["tool_calls"]
    assert [message["tool_call_id"] for message in said[3:5]] == [c["id"] for c in made]
    assert [json.loads(c["function"]["arguments"]) for c in made] == [{"number": 3}, {"number": 4}]
    assert said[2]["content"] == "hm"
    assert said[5] == {"role": "assistant", "content": "no call"}


def test_without_tools_a_conversation_is_plain_text():
    said = conversation(TALK, HERMES, calls=False)
    assert [message["content"] for message in said] == [m["content"] for m in TALK]
    assert "tool" not in {message["role"] for message in said}


def test_calls_and_text_become_one_action_and_what_is_no_json_is_left_to_the_environment():
    function = {"name": "look", "arguments": '{"number": 7}'}
    message = {"content": "I look.", "tool_calls": [{"function": function}]}
    assert ask(fixed(message)) == f"I look.\n{call('look', number=7)}"
    function["arguments"] = "{number: 7"
    assert ask(fixed(message)) == "I look.\nlook({number: 7)"
    assert ask(fixed({"content": None})) == ""


# Failures


def test_a_busy_server_is_asked_again_and_one_that_stays_busy_loses_only_its_episodes(stack):
    solver = Solver(lambda count: 503 if count <= 3 else 0)
    episodes = playing(stack.enter_context(served(solver)))
    assert all(e.success and e.attempts == 1 for e in episodes)
    never = playing(stack.enter_context(served(Solver(lambda count: 503))), count=2)
    assert {e.outcome for e in never} == {Outcome.INFRA_ERROR}
    assert all("503" in e.error and not e.outcome.trainable for e in never)


def test_a_hung_server_costs_the_deadline_and_masks_the_episode(stack):
    url = stack.enter_context(served(Solver(lambda count: -1 if count % 5 == 0 else 0)))
    episodes = playing(url, deadline_s=0.5)
    assert {e.outcome for e in episodes} <= {Outcome.OK, Outcome.INFRA_ERROR}
    assert sum(e.success for e in episodes) > 3
    assert all("no answer in 0.5 s" in e.error for e in episodes if not e.success)


def test_a_wrong_key_is_said_and_not_tried_again(stack):
    solver = Solver(key="right")
    url = stack.enter_context(served(solver))
    with pytest.raises(ServerRefused, match="401"):
        ask(Chat("m", url, api_key="wrong"), *TALK)
    assert solver.count == 1
    ask(Chat("m", url, api_key="right"), TALK[1])


def test_an_answer_without_a_message_is_an_error_of_the_machine():
    with pytest.raises(ProtocolError, match="no message"):
        ask(fixed("a text"))


def test_a_conversation_that_is_too_long_ends_the_episode_and_is_no_error():
    message = {"error": {"message": "maximum context length is 10"}}
    jobs = list(jobs_for(Guess().tasks("test")[:2], run_seed=0, split="test"))
    chat = fixed(message, status=400)
    episodes = list(play(jobs, Guess, ChatPolicy(chat), Settings(concurrency=2)))
    assert {e.outcome for e in episodes} == {Outcome.TRUNCATED}


# Teaching


def labelled_by(url, student, **more):
    renderer = Renderer(tiny_from_env(Guess, tasks=20, **TINY)[1])
    chat = Chat("m", url, pause_s=0.01, **more)
    teacher = TextTeacher(text_of(chat), renderer=renderer, executor="teacher", workers=4)
    doer = ScriptedPolicy(student, renderer=renderer, executor="student")
    jobs = list(jobs_for(Guess().tasks("train")[:6], run_seed=0, split="train"))
    policy = Labelling(doer, teacher, ByChance(0.0))
    return list(play_labelled(jobs, Guess, policy, Settings(concurrency=6)))


def lower_end(seat) -> str:
    """A student that looks at one number after another."""
    return seat.env.call_text("look", number=seat.turn)


def test_a_served_model_says_at_every_visited_state_what_it_would_have_done(stack):
    episodes = labelled_by(stack.enter_context(served(Solver())), lower_end)
    turns = [turn for e in episodes for turn in e.turns]
    assert turns and all(turn.has_label and not turn.label_error for turn in turns)
    assert {turn.label for e in episodes for turn in e.turns[:1]} == {call("look", number=9)}
    assert all(turn.label != turn.action for e in episodes for turn in e.turns[:3])


def test_a_teacher_that_fails_loses_labels_and_no_episode(stack):
    url = stack.enter_context(served(Solver(lambda count: 404 if count % 2 else 0)))
    episodes = labelled_by(url, lower_end)
    errors = [turn.label_error for e in episodes for turn in e.turns]
    assert len(episodes) == 6 and all(e.outcome.trainable for e in episodes)
    assert any(error.startswith(FAILED) for error in errors) and not all(errors)


def test_an_unreachable_teacher_is_an_error_of_the_machine():
    with pytest.raises(EngineError, match="is the server running"):
        ask(Chat("m", "http://127.0.0.1:9"), TALK[0])


def test_a_text_environment_without_tools_can_be_played(stack):
    url = stack.enter_context(served(standin()))
    jobs = list(jobs_for(Walks().tasks("test")[:3], run_seed=0, split="test"))
    policy = ChatPolicy(Chat("policy", url, max_new_tokens=3))
    episodes = list(play(jobs, Walks, policy, Settings(concurrency=3)))
    assert [e.outcome for e in episodes] == [Outcome.OK] * 3
