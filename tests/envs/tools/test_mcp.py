"""Servers of the Model Context Protocol as tools: real ones, on stdio and HTTP, and one that dies."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from turnwise.agents.collector import Collector
from turnwise.agents.jobs import Job
from turnwise.agents.seating import Scripted, Seating
from turnwise.commands.shorthands import world_of
from turnwise.envs.interface import Info
from turnwise.envs.said import Call, said
from turnwise.envs.tasks import panel
from turnwise.envs.tools.mcp import Server, tools_of_servers
from turnwise.envs.tools.tool import WorldBrokenError, call
from turnwise.envs.tools.world import ToolsEnv
from turnwise.models.engine import Sampling

pytest.importorskip("mcp")

COMMAND = f"{sys.executable} {Path(__file__).with_name('mcp_server.py')}"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    made = Server(COMMAND)
    yield made
    made.close()


def test_its_tools_are_called(server: Server) -> None:
    tools = {tool.name: tool for tool in tools_of_servers([server])}
    assert list(tools) == ["add", "fail", "leave", "leave_once"]
    assert tools["add"].described["function"]["description"] == "Add two numbers."
    assert list(tools["add"].schema["properties"]) == ["a", "b"]
    assert call(tools, Call("add", {"a": 2})).text == "3"
    assert "fail" in call(tools, Call("fail")).text  # version 2 tells clients no more of what a tool raised
    assert call(tools, Call("add", {"a": "x"})).text.startswith("Error: ")
    assert tools_of_servers([server], ["add"])[0].name == "server1_add"
    assert len({t.name for t in tools_of_servers([server, server])}) == 8
    with pytest.raises(ValueError, match="two tools are called 'server1_add'"):
        tools_of_servers([server], ["add", "server1_add"])


def judge(task: dict[str, str], reply: str) -> float:
    return float(reply == "3")


def test_a_world_of_a_server_and_its_death() -> None:
    env = ToolsEnv(mcp=COMMAND, tasks=[{"question": f"{n}"} for n in range(30)], reward=judge)
    _, info = env.reset(seed=0)
    assert [tool["function"]["name"] for tool in info["tools"]] == ["add", "fail", "leave", "leave_once"]
    assert env.step(said(calls=[{"name": "add", "arguments": {"a": 2}}]))[0] == "3"
    assert env.step("3")[1] == 1.0
    env.reset(seed=1)
    with pytest.raises(WorldBrokenError, match="is gone"):
        env.step(said(calls=[{"name": "leave", "arguments": {}}]))
    env.close()
    env.reset(seed=1)
    assert env.step(said(calls=[{"name": "add", "arguments": {"a": 2}}]))[0] == "3"
    env.close()
    env.close()


def test_an_episode_whose_server_dies_is_played_again_with_a_new_one(tmp_path: Path) -> None:
    leaves = said(calls=[{"name": "leave_once", "arguments": {"mark": str(tmp_path / "mark")}}])

    class Leaves:
        def begin(self, observation: str, info: Info) -> None:
            pass

        def act(self, observation: str, info: Info) -> str:
            return "3" if observation == "3" else leaves

    rows = [{"question": f"question {n}"} for n in range(30)]
    envs: list[ToolsEnv] = []

    def make() -> ToolsEnv:
        envs.append(ToolsEnv(mcp=COMMAND, tasks=rows, reward=judge))
        return envs[-1]

    collector = Collector(make, Seating({"": Scripted("leaves", lambda env, seed: Leaves())}))
    tasks = panel(make(), "train")
    (found,) = collector.collect([Job(tasks[0])], Sampling(max_tokens=8))
    collector.close()
    assert (collector.failures, found.end, found.total_reward) == (1, "terminated", 1.0)
    assert [turn.action for turn in found.turns] == [leaves, "3"]
    for env in envs:
        env.close()


def test_a_server_over_http() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([*COMMAND.split(), str(port)], stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.2)
        server = Server(f"http://127.0.0.1:{port}/mcp")
        tools = {tool.name: tool for tool in tools_of_servers([server])}
        assert call(tools, Call("add", {"a": 2, "b": 5})).text == "7"
        server.close()
    finally:
        process.kill()
        process.wait()


def test_what_is_no_server_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="did not start"):
        Server("no-such-command-anywhere")
    with pytest.raises(RuntimeError, match="did not start"):
        Server(f"{sys.executable} -c pass")
    with pytest.raises(ValueError, match="expected a command line"):
        Server("")
    assert world_of(None, mcp=["python x.py"], tasks="hf:x", reward="a:b")[1][0] == 'env.kwargs.mcp=["python x.py"]'
    monkeypatch.setitem(sys.modules, "mcp", None)
    with pytest.raises(ValueError, match="need the package mcp"):
        Server(COMMAND)
