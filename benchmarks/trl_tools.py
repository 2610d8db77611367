"""A world of tools of turnwise as an environment of TRL's ``environment_factory`` (TRL 1.16).

TRL plays: it reads a reply's calls, calls the environment's methods, and shows what they return. The schemas are ours,
written into the chat template, since TRL lists an environment's methods by the alphabet: so prompts are those of our
world, token for token. Calls, results and errors of tools are ours too. What differs: a reply with a call that cannot
be read is no call for TRL, and ends the episode, and a tool that does not exist is answered in TRL's words.

``tools=`` alone cannot express such a world: its functions are shared by all episodes and are told the arguments of
the call alone, so that they cannot know whose folder is meant.
"""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any

from turnwise.config.schema import RunConfig
from turnwise.envs.interface import Info
from turnwise.envs.said import Call
from turnwise.envs.tasks import start
from turnwise.envs.tools.generated import GeneratedToolsEnv
from turnwise.envs.tools.tool import call, tools_of
from turnwise.models.scratch import TOOL_TEMPLATE
from turnwise.trajectory import Task

RESPONSES = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|assistant|>",
    "fields": {
        "tool_calls": {
            "open": "<tool_call>",
            "close_pattern": r"</tool_call>\s*",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"close_pattern": r"<\|end\|>", "content": "text"},
    },
}
"""How TRL reads a reply: calls as Hermes writes them."""


def template(info: Info) -> str:
    """The chat template of our small models, with the tools of a world."""
    return "{% set tools = " + json.dumps(info["tools"]) + " %}" + TOOL_TEMPLATE


def worlds(config: RunConfig, tasks: Mapping[str, Task]) -> tuple[Callable[[], Any], str]:
    """What makes TRL's environments, and the chat template that shows their tools."""
    env = _made(config)
    _, info = start(env, next(iter(tasks.values())), config.seed)
    functions = [
        (tool.name, getattr(type(env.open(env.problem)), tool.name)) for tool in tools_of(env.open(env.problem))
    ]
    kind = type("ToolWorld", (_World,), {name: _method(name, function) for name, function in functions})
    return lambda: kind(config, tasks), template(info)


class _World:
    """An episode. The subclass that ``worlds`` makes has a method for each tool."""

    def __init__(self, config: RunConfig, tasks: Mapping[str, Task]) -> None:
        self._config, self._tasks, self._env = config, tasks, _made(config)

    def reset(self, key: str, **_: Any) -> str:
        question, _info = start(self._env, self._tasks[key], self._config.seed)
        self._tools = {tool.name: tool for tool in tools_of(self._env.open(self._env.problem))}
        return question

    def _earned(self, completion: list[dict[str, Any]]) -> float:
        """The reward of an episode: that of its last message, where it is an answer."""
        last = completion[-1] if completion else {}
        answered = last.get("role") == "assistant" and not last.get("tool_calls")
        return float(answered and self._env.solved(last.get("content") or ""))


def _made(config: RunConfig) -> GeneratedToolsEnv[Any]:
    env: Any = config.env.make()
    return env.unwrapped  # type: ignore[no-any-return]


def _method(name: str, function: Callable[..., Any]) -> Callable[..., str]:
    """A tool as TRL wants it: a function with type hints, whose docstring tells of every argument."""

    @functools.wraps(function)
    def method(self: _World, **arguments: Any) -> str:
        return call(self._tools, Call(name, arguments)).text

    names = [each for each in inspect.signature(function).parameters if each != "self"]
    told = "".join(f"\n    {each}: the {each}" for each in names)
    method.__doc__ = f"{inspect.getdoc(function)}\n\nArgs:{told}\n\nReturns:\n    What the tool says."
    return method
