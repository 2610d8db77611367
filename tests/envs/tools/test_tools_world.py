"""A world of your own tools: calls are made in order, errors are observations, the reward function judges the end."""

from __future__ import annotations

import asyncio
import json
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from turnwise.commands.shorthands import world_of
from turnwise.config.files import load_config
from turnwise.envs.check import check
from turnwise.envs.interface import speaks_in_roles
from turnwise.envs.said import said
from turnwise.envs.tasks import make_env, panel
from turnwise.envs.tools.world import ToolsEnv

ROWS = [{"question": f"add {n} and 1", "answer": n + 1} for n in range(40)]


class Sums:
    """Counts its calls; each episode has an instance."""

    def __init__(self, task: dict[str, Any]) -> None:
        self.calls, self.task = 0, task

    def add(self, a: int, b: int = 1) -> int:
        """Add two numbers."""
        self.calls += 1
        return a + b

    async def divide(self, a: int, b: int) -> float:
        """Divide."""
        await asyncio.sleep(0)
        return a / b


def judge(task: dict[str, Any], tools: Sums, reply: str) -> float:
    return float(str(task["answer"]) in reply and tools.calls > 0)


class TwoNeeded:
    """Needs more than the task."""

    def __init__(self, task: Any, stock: int) -> None:
        pass


class Unhinted:
    """Has a tool whose argument may be anything."""

    def find(self, word) -> str:  # type: ignore[no-untyped-def]
        return str(word)


def twice(x: int) -> int:
    return 2 * x


def world(**more: Any) -> ToolsEnv:
    return ToolsEnv(**{"tools": Sums, "tasks": ROWS, "reward": judge, **more})


def begun(env: ToolsEnv, index: int = 0) -> dict[str, Any]:
    _, info = env.reset(options={"split": "train", "task": index})
    return info


def test_an_episode() -> None:
    env = world(system="Use the tools.")
    info = begun(env)
    row = env._row
    assert speaks_in_roles(env)
    assert [message["role"] for message in info["messages"]] == ["system", "user"]
    assert [tool["function"]["name"] for tool in info["tools"]] == ["add", "divide"]
    calls = [{"name": "divide", "arguments": {"a": 1, "b": 0}}, {"name": "add", "arguments": {"a": row["answer"] - 1}}]
    observation, reward, terminated, _, info = env.step(said("I add.", calls))
    assert [message["content"] for message in info["messages"]] == [
        "Error: ZeroDivisionError: division by zero",
        str(row["answer"]),
    ]
    assert [message["tool_call_id"] for message in info["messages"]] == ["call00000", "call00001"]
    assert (info["after"], info["valid"], reward, terminated) == (0, True, 0.0, False)
    assert observation.splitlines()[1] == str(row["answer"])
    _, reward, terminated, _, info = env.step(f"It is {row['answer']}.")
    assert (reward, terminated, info["success"], info["score"]) == (1.0, True, True, 1.0)
    begun(env)
    assert env._instance.calls == 0


def test_a_row_may_hold_the_conversation_so_far() -> None:
    told = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Yes?"}]
    brief = {"role": "system", "content": "Be brief."}
    for row, system in ((told, "Use the tools."), ([brief, *told], "Use the tools.\n\nBe brief.")):
        info = begun(world(system="Use the tools.", tasks={"train": [{"messages": row}]}))
        assert info["messages"] == [{"role": "system", "content": system}, *told]
    assert begun(world(tasks={"train": [{"messages": told}]}))["messages"] == told


def test_what_was_not_understood_is_an_observation() -> None:
    env = world()
    begun(env)
    _, _, terminated, _, info = env.step(said("", [{"name": "add", "arguments": {"a": 1}}], fault="it is no JSON"))
    assert [message["content"] for message in info["messages"]] == [
        "2",
        "Error: the call could not be read: it is no JSON. Calls before and after it were made.",
    ]
    assert not info["valid"]
    assert not terminated
    _, _, _, _, info = env.step(said(calls=[{"name": "subtract", "arguments": {}}]))
    assert not info["valid"]
    assert info["after"] == 1
    _, reward, terminated, _, info = env.step("")
    assert (reward, terminated, info["valid"], info["success"]) == (0.0, True, False, False)


def test_functions_need_no_class_and_rewards_may_say_more() -> None:
    env = world(tools=[twice], reward=lambda task, reply: {"reward": 2, "success": False, "score": 0.5})
    begun(env)
    assert env.step(said(calls=[{"name": "twice", "arguments": {"x": 4}}]))[0] == "8"
    _, reward, _, _, info = env.step("8")
    assert (reward, info["success"], info["score"]) == (2.0, False, 0.5)


def _tolerant(task: dict[str, Any], reply: str, tolerance: float = 0.5) -> float:
    return float(abs(float(reply) - task["answer"]) <= tolerance)


def _turned(reply: str, task: dict[str, Any]) -> float:
    return float(reply) == task["answer"]


def _by_name(*, tools: Sums, reply: str, task: dict[str, Any]) -> float:
    return float(tools.calls == 0 and float(reply) == task["answer"])


def _by_number(row: dict[str, Any], shop: Sums, answer: str, more: int = 1) -> float:
    return float(shop.calls == 0 and float(answer) == row["answer"])


@pytest.mark.parametrize("reward", [_tolerant, _turned, _by_name, _by_number, partial(_tolerant, tolerance=0.1)])
def test_a_reward_function_gets_what_it_names_or_needs(reward: Any) -> None:
    env = world(reward=reward)
    begun(env)
    assert env.step(str(env._row["answer"]))[1] == 1.0


class Stock:
    """Needs nothing of the task."""

    def __init__(self, stock: int = 10) -> None:
        self.stock = stock

    def left(self) -> int:
        """What is left."""
        return self.stock


class Asking(Stock):
    """May know the task."""

    def __init__(self, stock: int = 5, task: Any = None) -> None:
        super().__init__(stock + len(task))


@pytest.mark.parametrize(("tools", "left"), [(Stock, "10"), (Asking, "7")])
def test_a_class_gets_the_task_where_it_needs_it_or_names_it(tools: type, left: str) -> None:
    env = world(tools=tools, reward=_turned)
    begun(env)
    assert env.step(said(calls=[{"name": "left", "arguments": {}}]))[0] == left


@pytest.mark.parametrize("found", [None, "1", float("nan"), {"score": 1}, {"reward": 1, "points": 2}])
def test_a_reward_is_a_number(found: Any) -> None:
    env = world(reward=lambda task, reply: found)
    begun(env)
    with pytest.raises(ValueError, match="the reward function returned"):
        env.step("done")


@pytest.mark.parametrize("found", [np.float32(0.5), np.int64(1), np.bool_(True), {"reward": np.float32(1.0)}])
def test_it_may_be_one_of_numpy(found: Any) -> None:
    env = world(reward=lambda task, reply: found)
    begun(env)
    _, reward, _, _, info = env.step("done")
    assert (reward, info["success"]) == ((0.5, False) if found == np.float32(0.5) else (1.0, True))
    assert type(reward) is float


class Cached(Stock):
    """Has a value that is worked out once, which is no tool."""

    @cached_property
    def prices(self) -> dict[str, int]:
        return {"mug": self.stock}


def test_a_cached_value_is_no_tool() -> None:
    assert [tool["function"]["name"] for tool in begun(world(tools=Cached))["tools"]] == ["left"]


async def _later(task: dict[str, Any], reply: str) -> int:
    return 1


def test_a_reward_function_may_be_asynchronous() -> None:
    env = world(reward=_later)
    begun(env)
    assert env.step("done")[1] == 1.0


def test_long_results_are_cut_and_say_so() -> None:
    env = world(tools=[lambda_text], max_result_chars=20)
    begun(env)
    assert (
        env.step(said(calls=[{"name": "lambda_text", "arguments": {}}]))[0] == "x" * 20 + " ... (cut: 1,000 characters)"
    )


def lambda_text() -> str:
    return "x" * 1000


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"tools": "shop"}, "expected module:NAME, such as shop:TOOLS"),
        ({"tools": "tests.envs.tools.test_tools_world:Sum"}, "Did you mean 'Sums'"),
        ({"tools": "tests.nowhere:Sums"}, "cannot import 'tests.nowhere'"),
        ({"reward": 3}, "is no function"),
        ({"reward": lambda: 1}, r"reward=<lambda> cannot be called with \(task, tools, reply\) or \(task, reply\)"),
        ({"reward": lambda task, shop, reply, truth: 1}, "missing a required argument"),
        ({"reward": lambda task, reply, truth: 1}, "'reply' would be the tools"),
        ({"reward": lambda task, *, truth: 1}, "reward=<lambda> cannot be called"),
        ({"tools": TwoNeeded}, r"tools=TwoNeeded cannot be called with \(task\) or \(\): missing a required"),
        ({"tools": Unhinted}, "tool find.* say of which type 'word' is"),
        ({"tools": type("Empty", (), {})}, "Empty has no tools"),
        ({"tasks": [{"question": 3}]}, 'the "question" of a task is a text; one row has 3'),
        ({"tasks": [{"messages": ["x"]}]}, '"messages" of a task are'),
        ({"tasks": [{"messages": [{"role": "user", "content": None}]}]}, '"messages" of a task are'),
        ({"tasks": [{"prompt": "x"}]}, r"this row has prompt: name its column with env\.kwargs\.fields"),
        ({"tasks": [{"question": "x", "demonstration": [{"calls": [3]}]}]}, "the demonstration of"),
    ],
)
def test_mistakes_are_named(more: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        world(**more)


def shown(row: dict[str, Any]) -> dict[str, Any]:
    call = {"name": "add", "arguments": {"a": row["answer"] - 1}}
    return {**row, "demonstration": [{"content": "I add.", "calls": [call]}, f"It is {row['answer']}."]}


def test_rows_may_demonstrate_how_they_are_solved() -> None:
    assert world().expert is None
    report = check("turnwise/Tools-v0", seconds=20, tools=Sums, tasks=[*map(shown, ROWS)], reward=judge, step_limit=4)
    wrong = [finding for finding in report.findings if finding.outcome == "failed"]
    assert not [finding for finding in wrong if "fresh process" not in finding.name], wrong
    assert next(finding for finding in report.findings if finding.name == "expert succeeds").outcome == "passed"


def test_worlds_share_the_tasks_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "sums.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    assert world(tasks=str(path))._rows is world(tasks=str(path))._rows


def test_options_stand_for_the_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert world_of("my:World-v0") == ("my:World-v0", [])
    monkeypatch.chdir(tmp_path)
    env, settings = world_of(None, tools="shop:TOOLS", tasks="shop.jsonl", reward="shop:score")
    config = load_config(None, settings, env=env)
    assert config.env.kwargs == {"tools": "shop:TOOLS", "tasks": str(tmp_path / "shop.jsonl"), "reward": "shop:score"}
    assert (config.agent.context, config.agent.action_format) == ("roles", "calls")
    assert world_of(None, tools="a:b", tasks="hf:x", reward="c:d")[1][1] == 'env.kwargs.tasks="hf:x"'
    with pytest.raises(ValueError, match="--tasks needs --tools module:NAME, --mcp SERVER or --program"):
        world_of(None, tasks="x.jsonl")
    with pytest.raises(ValueError, match="--tools needs --tasks and --reward too"):
        world_of(None, tools="a:b")
    with pytest.raises(ValueError, match="--tools stands for --env"):
        world_of("my:World-v0", tools="a:b", tasks="x", reward="c:d")


def test_the_example_is_what_it_says() -> None:
    folder = Path(__file__).parents[3] / "examples"
    import sys

    sys.path.insert(0, str(folder))
    try:
        env = make_env("turnwise/Tools-v0", tools="shop:TOOLS", tasks=str(folder / "shop.jsonl"), reward="shop:score")
        assert {split: len(panel(env, split)) > 30 for split in ("train", "validation", "test")} == {
            "train": True,
            "validation": True,
            "test": True,
        }
        observation, info = env.reset(seed=0)
        expert = env.unwrapped.expert()  # type: ignore[attr-defined]
        expert.begin(observation, info)
        terminated = False
        while not terminated:
            observation, reward, terminated, _, info = env.step(expert.act(observation, info))
        assert reward == 1.0
    finally:
        sys.path.remove(str(folder))
