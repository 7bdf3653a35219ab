"""The stand-in's `/v1/chat/completions`: text in, text and tool calls out.

Calls between `<tool_call>` tags become `tool_calls`, as with vLLM's `--tool-call-parser hermes`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from turnwise.agents.engines.standin_generate import Refusal, generate
from turnwise.agents.renderer import Renderer
from turnwise.envs.formats.hermes import HERMES, OPEN

if TYPE_CHECKING:
    from turnwise.agents.engines.standin import StandIn


async def chat(app: StandIn, body: Mapping[str, Any]) -> dict[str, Any]:
    """Answer a conversation with one message."""
    if app.tokenizer is None:
        raise Refusal(400, "the stand-in has no tokenizer, so it cannot chat")
    renderer = Renderer(app.tokenizer)
    messages = [{"role": m["role"], "content": m.get("content") or ""} for m in body["messages"]]
    ids = renderer.open(messages, body.get("tools"))  # type: ignore[arg-type]
    if len(ids) >= app.settings.max_model_len:
        raise Refusal(400, f"maximum context length is {app.settings.max_model_len} tokens")
    asked = {**body, "logprobs": None, "stop_token_ids": list(renderer.stop_ids)}
    output, _ = await generate(app, app.weights(body), ids, asked, "chat")
    text = renderer.action_text(output.token_ids)
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if body.get("tools") and (calls := _calls(text)):
        message = {"role": "assistant", "content": text.partition(OPEN)[0], "tool_calls": calls}
    choice = {"index": 0, "message": message, "finish_reason": output.finish}
    return {"object": "chat.completion", "model": body.get("model"), "choices": [choice]}


def _calls(text: str) -> list[dict[str, Any]]:
    found = [call for call in HERMES.parse(text).calls if call.error is None]
    return [
        {
            "id": f"call-{i}",
            "type": "function",
            "function": {"name": call.name, "arguments": json.dumps(call.args)},
        }
        for i, call in enumerate(found)
    ]
