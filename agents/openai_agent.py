"""A model behind an OpenAI-compatible server: text in, text out, tools as the server knows them.

    policy = ChatPolicy(Chat("gpt-x", "https://host/v1", api_key=key))      # evaluate it
    teacher = TextTeacher(text_of(chat), renderer=renderer, workers=16)     # or learn from it

Nothing is known of its tokens, so its episodes have none: they can be measured, replayed and
imitated, not trained on by their log-probabilities. Tool calls in an answer are written as the
environment reads them; a call that is no JSON is passed on as it is, for the environment to refuse.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any

from turnwise.agents.engines.background import Background
from turnwise.agents.engines.base import EngineError
from turnwise.agents.engines.client import ProtocolError, Server, ServerRefused
from turnwise.agents.policy import Executor, Reply, Seat
from turnwise.envs.calls import ActionFormat
from turnwise.envs.formats.hermes import HERMES
from turnwise.envs.types import Message

BUSY = (429, 500, 502, 503, 504)
"""Answers after which asking again may help."""
TRIES, PAUSE_S, WAIT_S = 4, 0.5, 0.005
TOO_LONG = "context length"


class PromptFull(ValueError):
    """The conversation is longer than the model reads."""


class Chat:
    """One model on one server.

    Args:
        model: its name there.
        url: up to `/v1`, which may be left out.
        api_key: empty sends none.
        temperature, max_new_tokens: of an answer.
        deadline_s: of an answer, all tries together.
        transport: an `httpx` transport instead of a socket.
    """

    def __init__(
        self,
        model: str,
        url: str,
        *,
        api_key: str = "",
        temperature: float = 1.0,
        max_new_tokens: int = 512,
        deadline_s: float = 120.0,
        pause_s: float = PAUSE_S,
        transport: Any = None,
    ) -> None:
        self.server = Server(url, api_key=api_key, deadline_s=deadline_s, transport=transport)
        self.model, self.pause_s, self.deadline_s = model, pause_s, deadline_s
        self.fixed = {"model": model, "temperature": temperature, "max_tokens": max_new_tokens}

    async def answer(
        self,
        messages: Sequence[Message],
        tools: Sequence[Any] = (),
        *,
        seed: int = 0,
        form: ActionFormat = HERMES,
    ) -> str:
        """Return the next action of a conversation, as the environment reads it.

        Raises:
            PromptFull: the server says that the conversation is too long.
            EngineError: no answer in time, or none that can be read.
        """
        body = {**self.fixed, "messages": conversation(messages, form, calls=bool(tools))}
        body |= {"seed": seed, **({"tools": list(tools)} if tools else {})}
        try:
            async with asyncio.timeout(self.deadline_s):
                answer = await self._patiently(body)
        except TimeoutError:
            raise EngineError(
                f"{self.server.url}: no answer in {self.deadline_s:g} s, all tries together"
            ) from None
        return _action(answer, form)

    async def _patiently(self, body: dict[str, Any]) -> Any:
        for left in reversed(range(TRIES)):
            try:
                return await self.server.post("/v1/chat/completions", body)
            except ServerRefused as error:
                if error.status == 400 and TOO_LONG in str(error):
                    raise PromptFull(str(error)) from error
                if error.status not in BUSY or not left:
                    raise
                await asyncio.sleep(self.pause_s * 2 ** (TRIES - 1 - left))
        raise AssertionError("unreachable")


def chat_named(name: str, **options: Any) -> Chat:
    """Return the model that `openai:MODEL@URL` names, with the key in OPENAI_API_KEY if any.

    Raises:
        ValueError: the name has another form.
    """
    model, _, url = name.removeprefix("openai:").rpartition("@")
    if not model or not url.startswith(("http://", "https://")):
        raise ValueError(
            f"a served model is openai:MODEL@URL, as openai:qwen3@http://127.0.0.1:8000, got {name}"
        )
    return Chat(model, url, api_key=os.environ.get("OPENAI_API_KEY", ""), **options)


def conversation(
    messages: Sequence[Message], form: ActionFormat, *, calls: bool
) -> list[dict[str, Any]]:
    """Return messages as the server wants them: each tool's answer behind the call that it answers.

    Where an action and what was read after it do not pair up call by call, both are plain text.
    """
    said: list[dict[str, Any]] = []
    at = 0
    while at < len(messages):
        message, answers = messages[at], _answers(messages, at + 1)
        paired = _paired(message, answers, form, at) if calls else None
        if paired:
            said += paired
            at += len(answers)
        else:
            role = "user" if message["role"] == "tool" else message["role"]
            said.append({"role": role, "content": message["content"]})
        at += 1
    return said


def _answers(messages: Sequence[Message], start: int) -> list[Message]:
    end = start
    while end < len(messages) and messages[end]["role"] == "tool":
        end += 1
    return list(messages[start:end])


def _paired(
    message: Message, answers: Sequence[Message], form: ActionFormat, at: int
) -> list[dict[str, Any]] | None:
    """Return an action's calls and their answers; None if they are not one to one."""
    if message["role"] != "assistant" or not answers:
        return None
    text, found = message["content"], form.parse(message["content"]).calls
    if len(found) != len(answers) or any(c.error is not None or c.args is None for c in found):
        return None
    for call in found:
        text = text.replace(call.raw, "", 1)
    made = [
        {
            "id": f"call_{at}_{i}",
            "type": "function",
            "function": {"name": call.name, "arguments": json.dumps(call.args)},
        }
        for i, call in enumerate(found)
    ]
    asked = {"role": "assistant", "content": text.strip() or None, "tool_calls": made}
    read = [
        {"role": "tool", "tool_call_id": call["id"], "content": answer["content"]}
        for call, answer in zip(made, answers, strict=True)
    ]
    return [asked, *read]


def _action(answer: Any, form: ActionFormat) -> str:
    try:
        message = answer["choices"][0]["message"]
        parts = [message.get("content") or ""]
        functions = [call["function"] for call in message.get("tool_calls") or ()]
        parts += [_call_text(f["name"], f["arguments"], form) for f in functions]
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ProtocolError(
            f"/v1/chat/completions: no message in the answer ({error!r})"
        ) from error
    return "\n".join(part for part in parts if part)


def _call_text(name: str, arguments: str, form: ActionFormat) -> str:
    try:
        args = json.loads(arguments or "{}")
        if isinstance(args, Mapping):
            return form.render(name, args)
    except ValueError:
        pass
    return f"{name}({arguments})"


def format_of(seat: Seat) -> ActionFormat:
    """Return how the seat's environment reads calls."""
    return getattr(seat.env, "format", None) or HERMES


def text_of(chat: Chat, form: ActionFormat = HERMES) -> Callable[[Seat], str]:
    """Return a function from a seat to an action, for `TextTeacher(..., workers=n)`.

    Args:
        form: how the environment reads calls; a seat that is handed to a thread has none.
    """
    background = Background()

    def act(seat: Seat) -> str:
        work = chat.answer(seat.messages, seat.tools, seed=_seed(seat), form=form)
        return background.run(work)

    return act


class ChatPolicy:
    """Acts by what a server answers; see `turnwise.agents.policy.Policy`."""

    def __init__(self, chat: Chat, *, executor: Executor = "student") -> None:
        self.chat = chat
        self.executor: Executor = executor
        self._background = Background()
        self._asked: dict[str, tuple[Seat, Future[str]]] = {}
        self._done: SimpleQueue[tuple[Seat, Future[str]]] = SimpleQueue()
        self._ready: list[tuple[Seat, Reply]] = []

    def submit(self, seat: Seat, news: Sequence[Message]) -> None:
        """Send the conversation."""
        work = self.chat.answer(
            list(seat.messages), seat.tools, seed=_seed(seat), form=format_of(seat)
        )
        future = self._background.start(work)
        self._asked[seat.key] = seat, future
        future.add_done_callback(lambda done: self._done.put((seat, done)))

    def poll(self) -> list[tuple[Seat, Reply]]:
        """Return what was answered; waits a few milliseconds at most.

        Raises:
            EngineError: the episodes of its `sessions` have no answer.
        """
        error: EngineError | None = None
        lost: set[str] = set()
        for seat, future in self._answered():
            if self._asked.get(seat.key, (None,))[0] is not seat:
                continue
            del self._asked[seat.key]
            failure = future.exception()
            if failure is None:
                self._ready.append((seat, Reply(future.result(), self.executor)))
            elif isinstance(failure, PromptFull):
                self._ready.append((seat, Reply("", self.executor, full=True)))
            elif isinstance(failure, EngineError):
                error, lost = failure, lost | {seat.key}
            else:
                raise failure
        if error is not None:
            error.sessions = frozenset(lost)
            raise error
        ready, self._ready = self._ready, []
        return ready

    def _answered(self) -> list[tuple[Seat, Future[str]]]:
        found = []
        try:
            found.append(self._done.get(block=bool(self._asked), timeout=WAIT_S))
            while True:
                found.append(self._done.get_nowait())
        except Empty:
            return found

    def close(self, seat: Seat) -> None:
        """Drop what is asked for the seat."""
        asked = self._asked.pop(seat.key, None)
        if asked is not None:
            asked[1].cancel()


def _seed(seat: Seat) -> int:
    return (seat.seed * 4096 + seat.turn) % 2**31
