"""``--program`` stands for a world and its settings."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.test_docs import commands, parse
from turnwise.commands.shorthands import world_of
from turnwise.config.files import load_config

PAGE = (Path(__file__).parents[2] / "docs" / "cookbook" / "programs.md").read_text()


def test_a_program_is_a_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    env, settings = world_of(None, program='python "my cli.py"', tasks="q.jsonl")
    config = load_config(None, [*settings, "model.path=x"], env=env, algorithm="grpo")
    assert config.env.kwargs == {"run": 'python "my cli.py"', "tasks": str(tmp_path / "q.jsonl")}
    assert (config.agent.context, config.agent.action_format, config.rollout.env_threads) == ("roles", "calls", 16)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"tasks": None}, "--program needs --tasks too"),
        ({"tools": "a:b"}, "leave --tools out"),
        ({"reward": "a:b"}, "leave --reward out"),
    ],
)
def test_what_does_not_belong_to_it_is_named(options: dict[str, str], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        world_of(None, **{"program": "a:b", "tasks": "x", **options})
    with pytest.raises(ValueError, match="leave --env out"):
        world_of("my:World-v0", program="a:b", tasks="x")


@pytest.mark.parametrize("line", commands(PAGE))
def test_the_pages_commands_parse(line: str) -> None:
    assert parse(shlex.split(line)[1:])


def test_the_pages_program_compiles() -> None:
    (source,) = re.findall(r"```python my_agent.py\n(.*?)```", PAGE, re.DOTALL)
    assert "async def agent(task, model)" in source
    compile(source, "my_agent.py", "exec")
