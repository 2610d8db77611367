"""A world of your own tools: functions, or a class of which each episode has an instance (``turnwise/Tools-v0``).

    turnwise train --tools shop:TOOLS --tasks shop.jsonl --reward shop:score model.path=Qwen/Qwen3-0.6B

A task is a row (``turnwise.envs.rows``). Its "question" is the user's message (or "messages" is the conversation so
far). The agent calls tools as often as it likes, and ends the episode by answering without a call. Then the reward
function judges: ``score(task, tools, reply)`` gets the row, the instance (None for functions) and the answer; or
``score(task, reply)``. Parameters of these names get these values in any order. Others are filled in this order, where
two or three have no default. It returns a number, or {"reward": ..., "success": ..., "score": ...}. An episode that is
cut short has no answer to judge, and no reward.

Rows may have a "demonstration", the replies of an episode that solves them: text, or {"content": ..., "calls":
[{"name": ..., "arguments": {...}}]}. Where all have one, the world has an expert, and a model can be cloned from it.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from turnwise.envs.interface import Expert, Info, Panel
from turnwise.envs.programs.results import is_number
from turnwise.envs.rows import Row, Source, shared_rows
from turnwise.envs.said import heard, said
from turnwise.envs.tools.chatting import Talk
from turnwise.envs.tools.mcp import Server, tools_of_servers
from turnwise.envs.tools.tool import Tool, check_class, tools_of, wait_for
from turnwise.envs.world import TaskEnv
from turnwise.errors import unknown

ENV_ID = "turnwise/Tools-v0"

_JUDGING = (("task", "reply"), ("task", "tools", "reply"))
_MAKING = ((), ("task",))


class ToolsEnv(TaskEnv):
    """The reward is that of the reward function, at the end of the episode, else 0.

    ``tools``: functions, a class, or what ``module:NAME`` names of these. A class is made with the task's row, where
    its constructor needs an argument, or has one of the name task. ``mcp``: command lines and addresses of servers,
    whose tools come after these (``turnwise.envs.tools.mcp``); they start with the first episode. ``tasks`` and
    ``fields``: as ``turnwise.envs.rows.Rows`` takes them. ``reward``: the reward function, or ``module:NAME``.
    ``system``: a system message; one of a row's "messages" is joined to it. ``step_limit``: replies an episode may
    have. ``max_result_chars``: where the result of a call is cut.

    ``info``: what is asked in roles (``messages``, ``after``, ``tools``), ``task`` (the row), ``valid`` (whether every
    call named a tool and fitted its schema), and at the end ``success`` (what the function says, else whether the
    reward is at least 1) and ``score`` (what it says, else the reward where that is in [0, 1]).
    """

    in_roles = True

    def __init__(
        self,
        *,
        tasks: Source | Mapping[str, Source],
        reward: str | Callable[..., Any],
        tools: Any = (),
        mcp: str | Sequence[str] = (),
        fields: Mapping[str, str] | None = None,
        system: str = "",
        split: str = "train",
        step_limit: int = 20,
        max_result_chars: int = 8_000,
    ) -> None:
        super().__init__(split, step_limit)
        self._source = _named(tools, "tools")
        self._judge = _named(reward, "reward")
        if not callable(self._judge):
            raise ValueError(f"reward={reward!r} is no function: expected score(task, tools, reply)")
        _fitted(self._judge, _JUDGING, dict.fromkeys(_JUDGING[-1]), "reward")
        self._rows = shared_rows(ENV_ID, tasks, fields)
        self._system, self._max_chars = system, max_result_chars
        for row in self._rows:
            _check_asks(row)
        self._mcp = [mcp] if isinstance(mcp, str) else list(mcp)
        self._servers: list[Server] = []
        self._functions: Sequence[Tool] | None = None
        if inspect.isclass(self._source):
            _fitted(self._source, _MAKING, dict.fromkeys(_MAKING[-1]), "tools")
            check_class(self._source)
        else:
            self._functions = [] if self._mcp and self._source == () else tools_of(self._source)
        self._row: Row = {}
        self._instance: Any = None
        self._talk = Talk(())

    @property
    def splits(self) -> tuple[str, ...]:
        return self._rows.splits

    def tasks(self, split: str) -> Panel:
        """The tasks of a split. Raises ValueError for an unknown one."""
        return self._rows.panel(split)

    def begin(self, split: str, index: int) -> tuple[str, Info]:
        self._row = self._rows.row(split, index)
        self._instance, tools = self._made()
        self._talk = Talk(tools, self._max_chars)
        given = self._row.get("messages")
        if given is not None:
            return _shown(given), {**self._talk.open_with(given, self._system), "task": self._row}
        observation, info = self._talk.open(self._row["question"], self._system)
        return observation, {**info, "task": self._row}

    def act(self, action: str) -> tuple[str, float, bool, Info]:
        reply = heard(action)
        if reply.calls or reply.fault is not None:
            observation, info, _ = self._talk.answer(reply)
            return observation, 0.0, False, {**info, "success": False}
        reward, info = self._judged(reply.content)
        return "", reward, True, {"valid": bool(reply.content), **info}

    @property
    def expert(self) -> Callable[..., Expert] | None:
        """The expert that plays the rows' demonstrations; None where rows have none."""
        if not all("demonstration" in row for row in self._rows):
            return None

        def made(kind: str = "searching", *, seed: int = 0) -> Expert:
            return Demonstrator(self)

        return made

    @property
    def demonstration(self) -> list[str]:
        """The actions that the present task's row shows."""
        return [said(**reply) if isinstance(reply, dict) else said(reply) for reply in self._row["demonstration"]]

    def _made(self) -> tuple[Any, Sequence[Tool]]:
        """The episode's instance of the class (None without one), and all tools."""
        made, own = None, self._functions
        if own is None:
            given = _fitted(self._source, _MAKING, {"task": self._row}, "tools")
            made = self._source(*given.args, **given.kwargs)
            own = tools_of(made)
        if not self._servers:
            self._servers = [Server(where) for where in self._mcp]
        return made, [*own, *tools_of_servers(self._servers, [tool.name for tool in own])]

    def close(self) -> None:
        """End the servers."""
        while self._servers:
            self._servers.pop().close()

    def _judged(self, reply: str) -> tuple[float, Info]:
        """The reward of an answer, and its ``info``. Raises ValueError where the function returns something else."""
        values = {"task": self._row, "tools": self._instance, "reply": reply}
        given = _fitted(self._judge, _JUDGING, values, "reward")
        found = self._judge(*given.args, **given.kwargs)
        found = wait_for(found) if inspect.iscoroutine(found) else found
        parts = dict(found) if isinstance(found, Mapping) else {"reward": found}
        reward = parts.pop("reward", None)
        if is_number(reward) and set(parts) <= {"success", "score"}:
            earned = float(reward)
            score = {"score": earned} if 0 <= earned <= 1 else {}
            return earned, {"success": earned >= 1, **score, **parts}
        raise ValueError(
            f"the reward function returned {found!r}"[:200]
            + '; expected a finite number, or {"reward": number, "success": bool, "score": number in [0, 1]}'
        )


class Demonstrator:
    """Plays what a task's row shows, reply by reply; then it ends the episode with an empty answer."""

    def __init__(self, env: ToolsEnv) -> None:
        self._env, self._left = env, list[str]()

    def begin(self, observation: str, info: Info) -> None:
        self._left = self._env.demonstration

    def act(self, observation: str, info: Info) -> str:
        return self._left.pop(0) if self._left else said()


def _named(given: Any, setting: str) -> Any:
    """What ``module:NAME`` names; anything but text is taken as it is."""
    if not isinstance(given, str):
        return given
    module, colon, attribute = given.partition(":")
    if not colon:
        raise ValueError(f"{setting}={given!r}: expected module:NAME, such as shop:{setting.upper()}")
    try:
        return getattr(importlib.import_module(module), attribute)
    except AttributeError:
        known = [name for name in vars(importlib.import_module(module)) if not name.startswith("_")]
        raise ValueError(f"{setting}={given!r}: {unknown('name', attribute, known, module)}") from None
    except Exception as error:  # a module of the user's: it may fail in any way
        raise ValueError(f"{setting}={given!r}: cannot import {module!r} ({type(error).__name__}: {error})") from error


def _check_asks(row: Row) -> None:
    """Raises ValueError for a row that holds no message of a user's."""
    if "messages" not in row and not isinstance(row.get("question", ""), str):
        raise ValueError(f'the "question" of a task is a text; one row has {str(row["question"])[:80]}')
    if not isinstance(row.get("question"), str) and not isinstance(row.get("messages"), list):
        raise ValueError(
            f'a task has "question", the user\'s message, or "messages"; this row has {", ".join(row)}: name its '
            "column with env.kwargs.fields={question: COLUMN}"
        )
    for message in row.get("messages") or ():
        if not isinstance(message, Mapping) or not all(isinstance(message.get(k), str) for k in ("role", "content")):
            raise ValueError(f'"messages" of a task are {{"role": ..., "content": text}}, not {str(message)[:80]}')
    try:
        [said(**reply) if isinstance(reply, dict) else said(reply) for reply in row.get("demonstration", ())]
    except (TypeError, LookupError) as error:
        raise ValueError(f"the demonstration of {str(row)[:80]}: {error}") from None


def _fitted(
    function: Callable[..., Any], ways: Sequence[Sequence[str]], values: Mapping[str, Any], setting: str
) -> inspect.BoundArguments:
    """The ``values``, by their names, as the arguments of a function of the user's.

    Where all that it needs has such names, they decide; else the way with as many values as it needs. Raises
    ValueError where no way fits, and where a value would come to a parameter that has another one's name.
    """
    expected = " or ".join(f"({', '.join(way)})" for way in reversed(ways))
    try:
        signature = inspect.signature(function)
        parameters = signature.parameters.values()
        by_name = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)} & set(values)
        needed = {
            p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        }
        if by_name and needed <= by_name:
            return signature.bind(**{name: values[name] for name in by_name})
        way = next((way for way in ways if len(way) == len(needed)), ways[0])
        bound = signature.bind(*(values[name] for name in way))
        places = signature.bind(*way).arguments
        if wrong := [name for name, value in places.items() if name in values and value != name]:
            raise TypeError(f"{wrong[0]!r} would be the {places[wrong[0]]}")
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{setting}={getattr(function, '__name__', function)} cannot be called with {expected}: {error}. Name its "
            "parameters so, and give all others a default"
        ) from None
    return bound


def _shown(messages: Sequence[Mapping[str, Any]]) -> str:
    return "\n".join(str(message.get("content", "")) for message in messages)
