"""Tools of servers that speak the Model Context Protocol: a command line (stdio), or an address (streamable HTTP).

    turnwise train --mcp "python my_server.py" --tasks tasks.jsonl --reward my_rewards:score model.path=...

Each instance of a world has its own client, and of a command line its own server, which live as long as the instance.
What a server keeps from one call to the next it keeps from one episode to the next. Needs the extra ``mcp``.
"""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

from turnwise.envs.tools.tool import Result, Tool, WorldBrokenError, loop_of_tools, wait_for

START_S, CALL_S = 60.0, 60.0
"""Seconds that a server may take to start, and for a call."""


class Server:
    """A running server, and the client that is connected to it. ``where`` is a command line, or an address.

    Raises ValueError where the package is missing, and RuntimeError where the server does not start.
    """

    def __init__(self, where: str) -> None:
        self.where = where
        self._open = _opener(where)
        self._ready: Future[Any] = Future()
        self._end: asyncio.Event | None = None
        self._session: Any = None
        self._life = asyncio.run_coroutine_threadsafe(self._live(), loop_of_tools())
        try:
            self.described = self._ready.result(START_S)
        except Exception as error:
            self.close()
            raise RuntimeError(f"the server {where!r} did not start ({_told(error)})") from error

    async def _live(self) -> None:
        """Connect, wait for the end, disconnect: all in one task, as the package asks."""
        from mcp import ClientSession

        self._end = asyncio.Event()
        try:
            async with AsyncExitStack() as stack:
                streams = await stack.enter_async_context(self._open())
                session = await stack.enter_async_context(ClientSession(*streams[:2]))
                await session.initialize()
                found = (await session.list_tools()).tools
                self._session = session
                self._ready.set_result(found)
                await self._end.wait()
        except BaseException as error:
            if not self._ready.done():
                self._ready.set_exception(RuntimeError(_told(error)))
        finally:
            self._session = None

    def call(self, name: str, arguments: Mapping[str, Any]) -> Result:
        """A call. Raises WorldBrokenError where the server is gone: then the episode fails, and not the call."""
        session = self._session
        if session is None:
            raise WorldBrokenError(f"the server {self.where!r} is gone")
        try:
            given = wait_for(asyncio.wait_for(session.call_tool(name, dict(arguments)), CALL_S))
        except TimeoutError:
            return Result(f"Error: no answer in {CALL_S:g} s")
        except Exception as error:
            if self._session is None or "closed" in _told(error).lower():
                raise WorldBrokenError(f"the server {self.where!r} is gone ({_told(error)})") from error
            return Result(f"Error: {_told(error)}", understood=False)
        text = "\n".join(map(_text, given.content))
        return Result(f"Error: {text}" if _either(given, "is_error", "isError") else text)

    def close(self) -> None:
        """End the connection, and a server that was started."""
        if self._end is not None:
            loop_of_tools().call_soon_threadsafe(self._end.set)
        try:
            self._life.result(5.0)
        except Exception:  # it is over, however it ended
            self._life.cancel()


def tools_of_servers(servers: Sequence[Server], taken: Sequence[str] = ()) -> list[Tool]:
    """The tools of all servers. One whose name is ``taken``, or another server's too, is called ``server1_NAME``.

    Raises ValueError where that is a name of another tool again.
    """
    named = [(number, each) for number, server in enumerate(servers, start=1) for each in server.described]
    names = [*taken, *(each.name for _, each in named)]
    found = []
    for number, each in named:
        name = each.name if names.count(each.name) == 1 else f"server{number}_{each.name}"
        schema = _either(each, "input_schema", "inputSchema") or {"type": "object", "properties": {}}
        call = partial(servers[number - 1].call, each.name)
        found.append(Tool(name, each.description or "", schema, call, lambda given: given))
    called = [*taken, *(tool.name for tool in found)]
    if doubled := {name for name in called if called.count(name) > 1}:
        raise ValueError(f"two tools are called {min(doubled)!r}: give each a name of its own")
    return found


def _opener(where: str) -> Callable[[], Any]:
    """What opens the streams to a server."""
    try:
        from mcp import StdioServerParameters, stdio_client
        from mcp.client import streamable_http as http
    except ImportError:
        raise ValueError('servers of tools need the package mcp: pip install -e ".[mcp]"') from None
    if where.startswith(("http://", "https://")):
        return lambda: http.streamable_http_client(where)
    try:
        command, *arguments = shlex.split(where)
    except ValueError as error:
        raise ValueError(f"mcp={where!r}: expected a command line or an address ({error or 'it is empty'})") from None
    return lambda: stdio_client(StdioServerParameters(command=command, args=arguments))


def _text(content: Any) -> str:
    """A part of a result: its text; of anything else its kind."""
    return str(content.text) if getattr(content, "type", "") == "text" else f"({getattr(content, 'type', 'unknown')})"


def _either(found: Any, new: str, old: str) -> Any:
    """An attribute by its name in version 2 of the package, or in version 1."""
    return getattr(found, new) if hasattr(found, new) else getattr(found, old)


def _told(error: BaseException) -> str:
    """An error in a line; of a group of errors the first one."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
