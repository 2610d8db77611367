"""Stored chats with roles: shown, exported with their calls, and played again."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.envs.tools.test_tools_world import ROWS, shown
from tests.models import TEXTS, TINY
from turnwise.agents.dialogue import action_text, conversations, lines
from turnwise.agents.episode import SuccessRule
from turnwise.agents.jobs import jobs_for
from turnwise.agents.scripted import play_episode, scripted
from turnwise.agents.seating import Seating
from turnwise.config.files import load_config
from turnwise.envs.tasks import panel
from turnwise.models.loading import save_model
from turnwise.models.scratch import new_model, train_tokenizer
from turnwise.replay.store import TrajectoryReader, TrajectoryWriter
from turnwise.runs.directory import RunDirectory
from turnwise.runs.exporting import export_trajectories
from turnwise.runs.reproducing import reproduce
from turnwise.runs.trajectories import Selection, find
from turnwise.runs.trajectory_tables import episode_page
from turnwise.view.episodes import _turn

TESTS = "tests.envs.tools.test_tools_world"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """Two episodes of the rows' demonstrations, with a system message of the agent's."""
    folder = tmp_path_factory.mktemp("roles")
    (folder / "rows.jsonl").write_text("".join(json.dumps(shown(row)) + "\n" for row in ROWS))
    kwargs = f"{{tools: '{TESTS}:Sums', reward: '{TESTS}:judge', tasks: '{folder}/rows.jsonl', system: Use the tools.}}"
    config = load_config(None, [f"env.kwargs={kwargs}", "agent.system=Be brief."], env="turnwise/Tools-v0")
    made = RunDirectory.create(folder / "run", config, {})
    tokenizer = train_tokenizer(TEXTS, TINY.vocab_size, tools=True)
    save_model(new_model(TINY, tokenizer, seed=0), tokenizer, made.model_path)
    expert, env = scripted("expert"), config.env.make()
    assert expert is not None
    jobs = jobs_for(panel(env, "train")[:2], 1, 0)
    played = [t for job in jobs for t in play_episode(env, Seating({"": expert}), job, success=SuccessRule())]
    TrajectoryWriter(made.trajectories_path).append(0, played)
    return made


def test_they_are_read_as_they_were_written(run: RunDirectory) -> None:
    first, _ = TrajectoryReader(run.trajectories_path)
    assert [turn.action for turn in first.turns] == [turn.reply for turn in first.turns]
    whole = conversations(first.turns)[-1]
    assert [message["role"] for message in whole] == ["system", "user", "assistant", "tool"]
    assert whole[2]["tool_calls"][0]["id"] == whole[3]["tool_call_id"]
    assert lines(first.turns[0]) == [("system", "Use the tools."), ("user", first.turns[0].observation)]
    assert lines(first.turns[1])[0][0] == "add"
    assert action_text(first.turns[0]).startswith("I add.\nadd(a=")


def test_they_are_shown_with_their_roles(run: RunDirectory) -> None:
    console = Console(width=200, file=io.StringIO())
    console.print(episode_page(find(run.path, TrajectoryReader(run.trajectories_path).__iter__().__next__().episode)))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for part in ("system: Use the tools.", "user: add ", "> I add.", "add(a=", "add: "):
        assert part in text
    turn = _turn(next(iter(TrajectoryReader(run.trajectories_path))).turns[0], None)
    assert turn["asked"][0] == ("system", "Use the tools.")
    assert turn["action"].startswith("I add.")


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_they_are_exported_as_chats_with_calls(run: RunDirectory, tmp_path: Path) -> None:
    assert export_trajectories(run.path, Selection(), tmp_path / "sft.jsonl", "sft") == 2
    row = read(tmp_path / "sft.jsonl")[0]
    roles = [message["role"] for message in row["messages"]]
    assert roles == ["system", "user", "assistant", "tool", "assistant"]
    assert row["messages"][0]["content"] == "Be brief.\n\nUse the tools."
    call = row["messages"][2]["tool_calls"][0]
    assert (call["type"], call["function"]["name"], list(call["function"]["arguments"])) == ("function", "add", ["a"])
    assert [tool["function"]["name"] for tool in row["tools"]] == ["add", "divide"]
    own = train_tokenizer(TEXTS, TINY.vocab_size, tools=True)
    text = own.apply_chat_template(row["messages"], tools=row["tools"], tokenize=False)
    assert '<tool_call>\n{"name": "add"' in text
    with pytest.raises(ValueError, match=r"write chats with tools as \.jsonl"):
        export_trajectories(run.path, Selection(), tmp_path / "sft.parquet", "sft")
    assert export_trajectories(run.path, Selection(), tmp_path / "all.jsonl") == 2
    assert "request" in read(tmp_path / "all.jsonl")[0]["turns"][0]


def test_they_are_played_again(run: RunDirectory) -> None:
    episode = next(iter(TrajectoryReader(run.trajectories_path))).episode
    found = reproduce(run.path, episode)
    assert (found.difference, found.num_turns) == (None, 2)
