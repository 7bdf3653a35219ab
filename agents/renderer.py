"""Messages to token ids: the chat template once, then only what is new.

Rendering the whole history again each turn is slow, and wrong: text that is tokenized a second
time need not give the ids that were sampled. So the template is applied to the opening, and after
each sampled action `delta` gives the ids of what the template puts *behind* it. That this is the
same is proved when the renderer is made; where it is not (a template that drops earlier
reasoning), the renderer says so and the caller renders all of it again as an explicit branch.

    ids = renderer.open(messages)                    # turn 1: the engine samples `action` after ids
    ids += action + renderer.delta(news, finish)     # turn 2: what is new, and nothing else

An agent may also be made to forget: with `recall` its prompt holds the system message and the last
turns alone, each prompt a branch. That bounds the context of long episodes, and where an
observation says all that matters a small model learns faster without its past (docs/log.md).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from turnwise.agents.codec import Codec
from turnwise.agents.suffix_plan import SuffixPlan, cut
from turnwise.agents.template import USER, Template, TemplateError, said, unused
from turnwise.envs.types import Message

Finish = Literal["stop", "length", "abort"]


class NotAppendOnly(ValueError):
    """The template rewrites the history before such messages: `rewrite` and branch instead."""


@dataclass(frozen=True)
class Proof:
    """What `Renderer.prove` found.

    Example:
        `Proof(breaks={"user": "after '<think>...' the history is rendered anew"})`
    """

    breaks: Mapping[str, str] = field(default_factory=dict)
    """Role of a new message to the first counter-example; empty if the template only appends."""


class Renderer:
    """Renders conversations for one tokenizer and its chat template.

    Attributes:
        stop_ids: Tokens that end an action: first the one with which the template closes an
            assistant's message, then the tokenizer's `eos_token_id` if it is another one.
        codec: Text to ids and back for this tokenizer.
        proof: What `prove` found at construction.
        recall: Past turns that a prompt shows besides the present observation; None is all.

    Args:
        tokenizer: A fast Hugging Face tokenizer with a chat template, or what behaves like one.
        add_tools: Pass the tools given to `open` on to the template. Leave it off where the
            environment's system message describes them.
        template_kwargs: Variables for the template, as `{"enable_thinking": False}`.
        recall: None takes what `remember` noted in the tokenizer, so that a model is always shown
            what it was trained on.

    Raises:
        TemplateError: There is no chat template; it does not close an assistant's message with a
            special token; it ignores tools although `add_tools`; or the ids of a rendered text
            differ from those that the tokenizer itself gives.
        TypeError: The tokenizer is a slow one.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        add_tools: bool = False,
        template_kwargs: Mapping[str, Any] | None = None,
        recall: int | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self.recall = noted_recall(tokenizer) if recall is None else checked_recall(recall)
        self._add_tools = add_tools
        self._template = Template(tokenizer, template_kwargs or {})
        self.codec = Codec(tokenizer, str(tokenizer.chat_template))
        self.stop_ids = self._find_stops()
        self._thought = _opened_thought(self._template.text([USER]))
        self._plans: dict[tuple[str, ...], SuffixPlan | None] = {}
        self.proof = self.prove()

    @property
    def append_only(self) -> bool:
        """Whether `delta` is right whatever the role of the new messages."""
        return not self.proof.breaks

    def extends(self, messages: Sequence[Message]) -> bool:
        """Return whether `delta` is right for these new messages; otherwise `rewrite`."""
        if self.recall is not None:
            return False
        return not any(message["role"] in self.proof.breaks for message in messages)

    def open(self, messages: Sequence[Message], tools: Sequence[Any] | None = None) -> list[int]:
        """Return the ids of an opening, up to where the agent's first action begins.

        Raises:
            TemplateError: The template cannot render the messages.
        """
        given = tools if self._add_tools else None
        blank = unused([messages, given])
        marked = self._mark(given, blank, trusted=True)
        talk = self._marked(self._thinking(messages), blank)
        return self.codec.encode(self._template.text(talk, marked), blank)

    def rewrite(self, messages: Sequence[Message], tools: Sequence[Any] | None = None) -> list[int]:
        """Return the ids of a history rendered anew, for `Ledger.branch`: what `recall` leaves."""
        if self.recall is not None:
            messages = recent(messages, self.recall)
        return self.open(messages, tools)

    def delta(self, messages: Sequence[Message], finish: Finish) -> list[int]:
        """Return the ids that follow a sampled action: its closing, `messages`, the next prompt.

        Args:
            messages: Only the new ones; none of them the assistant's.
            finish: "stop" if the action ends with a stop token; otherwise the closing token is
                part of the result, as context that is never trained on.

        Raises:
            NotAppendOnly: The template changes the history before such messages.
            TemplateError: The template cannot render them.
        """
        self._check_new(messages)
        plan = self._plan(tuple([message["role"] for message in messages]))
        if plan is None or any(len(message) != 2 for message in messages):
            ids = self._suffix_ids(messages)
            return ids[ids.index(self.stop_ids[0]) + 1 :] if finish == "stop" else ids
        contents = [message["content"] for message in messages]
        return plan.fill(self.codec, contents, ended=finish == "stop")

    def action_text(self, ids: Sequence[int]) -> str:
        """Return an action as text, without the stop token that ended it."""
        ended = len(ids) > 0 and ids[-1] in self.stop_ids
        return self.codec.decode(ids[:-1] if ended else ids)

    def action_ids(self, text: str, finish: Finish = "stop") -> list[int]:
        """Return the ids of an action that was not sampled: a demonstration, an expert's label."""
        blank = unused(text)
        ids = self.codec.encode(self.codec.mark(text, blank, trusted=True), blank)
        return [*ids, self.stop_ids[0]] if finish == "stop" else ids

    def prove(self) -> Proof:
        """Render probe conversations whole and in parts, and compare.

        For each base, action and new message: template(base + action + new) must start with
        template(base) and the action, and go on with what `delta` gives after *any* base.

        Raises:
            TemplateError: See the class.
        """
        self._check_tools()
        breaks: dict[str, str] = {}
        for role in ("user", "tool"):
            for base in _BASES:
                for action in _probe_actions(self._template.text(base)):
                    if why := self._difference(base, action, role):
                        breaks.setdefault(role, why)
        return Proof(breaks)

    def _difference(self, base: Sequence[Message], action: str, role: str) -> str:
        """Return why `delta` is wrong here, or nothing."""
        tools = _TOOLS if self._add_tools else None
        new = said([role], ["new text"])
        before = self._template.text(base, tools)
        talk = self._thinking([*base, *said(["assistant"], [action]), *new])
        whole = self._template.text(talk, tools)
        self._check_ids(whole)
        after = whole.removeprefix(before)
        if noted := _NO_THOUGHT.match(after):  # an action edited afterwards, not what it followed
            after = after[noted.end() :]
        if not whole.startswith(before) or not after.startswith(action):
            return f"after {action!r} the history is rendered anew"
        if after[len(action) :] != self._template.suffix(new):
            return f"what follows {action!r} depends on the history"
        return ""

    def _thinking(self, messages: Sequence[Message]) -> Sequence[Message]:
        """Give back to each action the `<think>` that the prompt wrote for it.

        Such an action begins within a thought; a template that looks for the pair of tags would
        take the thought for an answer.
        """
        if not self._thought:
            return messages
        return [
            {**message, "content": self._thought + message["content"]}
            if message["role"] == "assistant" and _is_cut_thought(message["content"])
            else message
            for message in messages
        ]

    def _check_ids(self, text: str) -> None:
        expected = list(self._tokenizer.encode(text, add_special_tokens=False))
        if (ids := self.codec.encode(text)) != expected:
            raise TemplateError(
                f"the tokenizer gives {expected} for {text!r}, its parts between special tokens "
                f"give {ids}: this tokenizer cannot be rendered in parts"
            )

    def _check_tools(self) -> None:
        if self._add_tools and self._template.text([USER], _TOOLS) == self._template.text([USER]):
            raise TemplateError("add_tools is set, but the chat template ignores `tools`")

    def _check_new(self, messages: Sequence[Message]) -> None:
        for message in messages:
            if why := self.proof.breaks.get(message["role"]):
                raise NotAppendOnly(
                    f"a new {message['role']!r} message makes this template rewrite the history "
                    f"({why}): use `rewrite` and `Ledger.branch`"
                )
            if message["role"] == "assistant":
                raise TemplateError(
                    "delta takes what follows an action, not an assistant's message"
                )

    def _plan(self, roles: tuple[str, ...]) -> SuffixPlan | None:
        if roles not in self._plans:
            self._plans[roles] = self._make_plan(roles)
        return self._plans[roles]

    def _make_plan(self, roles: tuple[str, ...]) -> SuffixPlan | None:
        """Return the plan for new messages of `roles`; None if the template looks into contents."""
        slots = [f"\ue000{i}\ue001" for i in range(len(roles))]
        text = self._template.suffix(said(roles, slots))
        plan = cut(self.codec, text, slots, self.stop_ids[0])
        for content in _CONTENTS:
            contents = [content] * len(roles)
            by_template = self._suffix_ids(said(roles, contents))
            if plan is None or plan.fill(self.codec, contents, ended=False) != by_template:
                return None
        return plan

    def _suffix_ids(self, messages: Sequence[Message]) -> list[int]:
        blank = unused(messages)
        return self.codec.encode(self._template.suffix(self._marked(messages, blank)), blank)

    def _find_stops(self) -> tuple[int, ...]:
        parts = self.codec.split(self._template.suffix([], prompt=False))
        stop = next((part for part in parts if isinstance(part, int)), None)
        if stop is None:
            raise TemplateError(
                "the chat template closes an assistant's message with no special token, so the "
                "end of an action cannot be seen; add one (as <|im_end|>) to the template"
            )
        eos = self._tokenizer.eos_token_id
        return (stop,) if eos in (stop, None) else (stop, eos)

    def _marked(self, messages: Sequence[Message], blank: str) -> list[Message]:
        return [
            self._mark(message, blank, trusted=message["role"] in ("system", "assistant"))
            for message in messages
        ]

    def _mark(self, value: Any, blank: str, *, trusted: bool) -> Any:
        if isinstance(value, str):
            return self.codec.mark(value, blank, trusted=trusted)
        if isinstance(value, Mapping):
            return {k: self._mark(v, blank, trusted=trusted) for k, v in value.items()}
        if isinstance(value, Sequence):
            return [self._mark(item, blank, trusted=trusted) for item in value]
        return value


def recent(messages: Sequence[Message], turns: int) -> list[Message]:
    """Return the system messages, the last `turns` turns and what was read after them.

    A turn is what was read and the action on it.
    """
    system = [message for message in messages if message["role"] == "system"]
    talk = [message for message in messages if message["role"] != "system"]
    ends = [i + 1 for i, message in enumerate(talk[:-1]) if message["role"] == "assistant"]
    return system + talk[([0, *ends])[-turns - 1 :][0] :]


def remember(tokenizer: Any, recall: int | None) -> None:
    """Note in the tokenizer, and so in the folder it is saved to, how many turns a prompt shows."""
    if recall is not None:
        tokenizer.init_kwargs[_RECALL] = checked_recall(recall)


def noted_recall(tokenizer: Any) -> int | None:
    """Return what `remember` noted."""
    return getattr(tokenizer, "init_kwargs", {}).get(_RECALL)


def checked_recall(recall: int) -> int:
    """Return `recall`. Raises ValueError: it is less than nothing."""
    if recall < 0:
        raise ValueError(f"recall is a number of past turns, 0 or more, got {recall}")
    return recall


_RECALL = "turnwise_recall"
_THOUGHT = "<think>\nfirst\n</think>\n\nls"
_NO_THOUGHT = re.compile(r"<think>\s*</think>\s*")


def _opened_thought(prompt: str) -> str:
    """Return the `<think>` that `prompt` ends with, or nothing."""
    found = re.search(r"<think>\s*$", prompt)
    return found[0] if found else ""


def _is_cut_thought(content: Any) -> bool:
    return isinstance(content, str) and "</think>" in content and "<think>" not in content


def _probe_actions(prompt: str) -> tuple[str, ...]:
    """Return actions as a model would begin them behind `prompt`."""
    if opened := _opened_thought(prompt):
        return (_THOUGHT.removeprefix(opened),)
    return ("ls",) if prompt.rstrip().endswith("</think>") else ("ls", _THOUGHT)


_BASES = (
    [USER],
    said(["system", "user"], ["be brief", "go"]),
    said(["user", "assistant", "tool"], ["go", _THOUGHT, "a b"]),
    said(["user", "assistant", "user"], ["go", "ls", "more"]),
)
_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "probe",
            "description": "Probe.",
            "parameters": {"type": "object", "properties": {"x": {"type": "string"}}},
        },
    }
]
# A plan is used only if the template treats these like any other text.
_CONTENTS = (
    "",
    " \n x \n ",
    "</think>\n\ny",
    "<tool_response>\nz\n</tool_response>",
    '{"a": 1}',
    "é",
)
