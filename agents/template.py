"""One tokenizer's chat template as a function from messages to text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from turnwise.envs.types import Message


class TemplateError(ValueError):
    """The chat template cannot render these messages, or not in a way that an agent can use."""


class Template:
    """Renders messages as text, in roles that the template knows.

    Attributes:
        roles: Roles that the template drops or refuses, to the role they are rendered as. A
            `tool` message becomes the user's; a `system` text joins the first user's message.

    Raises:
        TemplateError: The tokenizer has no chat template.
    """

    def __init__(self, tokenizer: Any, variables: Mapping[str, Any]) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise TemplateError("the tokenizer has no chat template: set tokenizer.chat_template")
        self._tokenizer = tokenizer
        self._variables = dict(variables)
        self.roles: Mapping[str, str] = {}
        self.roles = {role: "user" for role in ("system", "tool") if not self._knows(role)}

    def text(self, messages: Sequence[Message], tools: Any = None, *, prompt: bool = True) -> str:
        """Return the conversation as text; with `prompt`, up to where the agent would speak.

        Raises:
            TemplateError: The template raised.
        """
        fitted = _fit(messages, self.roles)
        try:
            text: str = self._tokenizer.apply_chat_template(
                fitted, tools=tools, add_generation_prompt=prompt, tokenize=False, **self._variables
            )
        except Exception as error:  # a template is a program: it raises what it likes
            roles = [message["role"] for message in fitted]
            raise TemplateError(f"the chat template cannot render {roles}: {error}") from error
        return text

    def suffix(self, messages: Sequence[Message], *, prompt: bool = True) -> str:
        """Return what the template puts behind an action, from its closing token on.

        Raises:
            TemplateError: The template raised, or left the action out.
        """
        talk: list[Message] = [USER, {"role": "assistant", "content": SPOKEN}, *messages]
        _, found, suffix = self.text(talk, prompt=prompt).rpartition(SPOKEN)
        if not found:
            raise TemplateError("the chat template drops the assistant's last message")
        return suffix

    def _knows(self, role: str) -> bool:
        """Return whether the template renders this role with its content, and does not raise."""
        message: Message = {"role": role, "content": "new text"}  # type: ignore[typeddict-item]
        spoken: Message = {"role": "assistant", "content": SPOKEN}
        talk = [message, USER, spoken, USER] if role == "system" else [USER, spoken, message]
        try:
            return self.text(talk).count("new text") == 1
        except TemplateError:
            return False


USER: Message = {"role": "user", "content": "go"}
SPOKEN = "\ue002spoken\ue003"
"""Stands for an action, where only what follows it is of interest."""


def said(roles: Sequence[str], contents: Sequence[str]) -> list[Message]:
    """Return messages of these roles and contents."""
    return [
        {"role": role, "content": content}  # type: ignore[typeddict-item]
        for role, content in zip(roles, contents, strict=True)
    ]


def unused(value: Any) -> str:
    """Return a character of the private use area that occurs nowhere in `value`."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return next(c for c in map(chr, range(0xE100, 0xF8FF)) if c not in text)


def _fit(messages: Sequence[Message], roles: Mapping[str, str]) -> list[Message]:
    if not roles:
        return list(messages)
    fitted: list[Message] = []
    for message in messages:
        role = roles.get(message["role"], message["role"])
        # Templates that know two roles want them to alternate.
        if fitted and fitted[-1]["role"] == role == "user":
            content = f"{fitted[-1]['content']}\n\n{message['content']}"
            fitted[-1] = {"role": "user", "content": content}
        else:
            fitted.append({**message, "role": role})  # type: ignore[typeddict-item]
    return fitted
