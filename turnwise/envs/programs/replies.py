"""Replies in the form of the chat completions API, whole or as a stream of events.

A reply is sampled to its end before any of it is sent, so that a stream has the same content: the role, then the
thought and the text, then all calls at once, then why it ended.
"""

from __future__ import annotations

import json
import time
from typing import Any

from turnwise.envs.programs.session import Answer


def completion(answer: Answer, model: str) -> bytes:
    """The whole reply as one JSON object."""
    message = {**_message(answer, numbered=False), "refusal": None}
    choice: dict[str, Any] = {"index": 0, "message": message, "finish_reason": _reason(answer), "logprobs": None}
    return json.dumps(_frame(answer, model, "chat.completion", [choice]) | {"usage": _usage(answer)}).encode()


def events(answer: Answer, model: str, with_usage: bool) -> bytes:
    """The same reply as server-sent events."""
    message = _message(answer, numbered=True)
    role, content, calls = message.pop("role"), message.pop("content"), message.pop("tool_calls", None)
    deltas: list[dict[str, Any]] = [{"role": role, "content": ""}]
    deltas += [{name: value} for name, value in message.items()]
    deltas += [{"content": content}] if content else []
    deltas += [{"tool_calls": calls}] if calls else []
    choices: list[dict[str, Any]] = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
    choices.append({"index": 0, "delta": {}, "finish_reason": _reason(answer)})
    chunks = [_frame(answer, model, "chat.completion.chunk", [choice]) for choice in choices]
    if with_usage:
        chunks.append(_frame(answer, model, "chat.completion.chunk", []) | {"usage": _usage(answer)})
    return b"".join(b"data: %s\n\n" % json.dumps(chunk).encode() for chunk in chunks) + b"data: [DONE]\n\n"


def _frame(answer: Answer, model: str, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
    return {"id": answer.id, "object": kind, "created": int(time.time()), "model": model, "choices": choices}


def _message(answer: Answer, numbered: bool) -> dict[str, Any]:
    """The message as clients read it. In streams calls are ``numbered``."""
    said = answer.message
    made: dict[str, Any] = {"role": "assistant", "content": said["content"]}
    if "tool_calls" in said:
        made["content"] = said["content"] or None
        made["tool_calls"] = [
            {"index": number, **_call(call)} if numbered else _call(call)
            for number, call in enumerate(said["tool_calls"])
        ]
    if "reasoning" in said:
        made["reasoning_content"] = said["reasoning"]
    return made


def _call(call: dict[str, Any]) -> dict[str, Any]:
    about = {"name": call["name"], "arguments": json.dumps(call["arguments"], ensure_ascii=False)}
    return {"id": call["id"], "type": "function", "function": about}


def _reason(answer: Answer) -> str:
    if not answer.ended:
        return "length"
    return "tool_calls" if "tool_calls" in answer.message else "stop"


def _usage(answer: Answer) -> dict[str, int]:
    prompt, reply = answer.usage.prompt_tokens, answer.usage.completion_tokens
    return {"prompt_tokens": prompt, "completion_tokens": reply, "total_tokens": prompt + reply}
