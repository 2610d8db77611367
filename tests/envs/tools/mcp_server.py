"""A server of the Model Context Protocol for tests: on stdio, or with a port as its argument on HTTP."""

from __future__ import annotations

import os
import sys
from pathlib import Path

try:
    from mcp.server import MCPServer as Server  # version 2
except ImportError:
    from mcp.server.fastmcp import FastMCP as Server  # type: ignore[assignment]

server = Server("sums")


@server.tool()
def add(a: int, b: int = 1) -> str:
    """Add two numbers."""
    return str(a + b)


@server.tool()
def fail() -> str:
    """Fail."""
    raise KeyError("mug")


@server.tool()
def leave() -> str:
    """The server dies."""
    os._exit(3)


@server.tool()
def leave_once(mark: str) -> str:
    """The server dies at the first call, and writes the file ``mark`` for the next one to see."""
    if Path(mark).exists():
        return "3"
    Path(mark).touch()
    os._exit(3)


if __name__ == "__main__":
    if sys.argv[1:] and Server.__name__ == "MCPServer":
        server.run("streamable-http", port=int(sys.argv[1]))  # type: ignore[call-arg]
    elif sys.argv[1:]:
        server.settings.port = int(sys.argv[1])
        server.run("streamable-http")
    else:
        server.run()
