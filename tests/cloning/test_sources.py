"""Won episodes of a run and chats, as what is cloned."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.models import scratch_folder, tokenizer
from turnwise.agents.chat import ChatFormat
from turnwise.agents.prompts import AgentConfig
from turnwise.assembly.run import Assembly
from turnwise.assembly.sources import won
from turnwise.cloning.chats import Chat, read_chats
from turnwise.cloning.losses import OBSERVATION
from turnwise.cloning.rows import chat_rows, chats_as_rows, episode_rows, repeated
from turnwise.cloning.settings import WarmstartConfig
from turnwise.config.files import load_config
from turnwise.config.schema import RunConfig
from turnwise.evaluation.overlap import overlap_with
from turnwise.jobs import warmstart
from turnwise.replay.store import TrajectoryWriter
from turnwise.runs.directory import RunDirectory
from turnwise.trajectory import Processing, Task, Trajectory, Turn

AGENT = AgentConfig()
CONFIG = WarmstartConfig(observation_weight=0.0)


def turns(chat: ChatFormat, *said: str, valid: bool = True) -> tuple[Turn, ...]:
    """Turns as an agent with a full context would have played them."""
    made: list[Turn] = []
    for n, text in enumerate(said):
        observation = f"You see a mug {n}."
        prompt = chat.extend(made[-1].action_ids, observation) if made else chat.open(observation)
        reply, zeros = chat.reply(text), np.zeros(len(chat.reply(text)), np.float32)
        made.append(Turn(observation, prompt, n > 0, reply, zeros, zeros, text, text, valid, 0.0))
    return tuple(made)


def episode(task: int = 0, sample: int = 0, success: bool | None = True, split: str = "train") -> Trajectory:
    chat = ChatFormat(tokenizer())
    of = Task("env", split, task, f"key-{split}-{task}")
    return Trajectory(f"e{task}.{sample}", of, 0, sample, turns(chat, "look", f"go to drawer {sample}"), "terminated",
                      success, 1.0)  # fmt: skip


def test_won_episodes_of_the_training_split_are_kept_a_few_of_each_task() -> None:
    played = [episode(task, sample, success=task != 2) for task in range(4) for sample in range(3)]
    played += [episode(5, 0, split="validation"), episode(6, 0, success=None), replace(episode(7), turns=())]
    kept = won(played, "train", 2, seed=0)
    assert {each.task.index for each in kept} == {0, 1, 3}
    assert len(kept) == 6
    assert won(played, "train", 2, seed=0) == kept
    assert any(won(played, "train", 2, seed) != kept for seed in range(1, 6))
    assert len(won(played, "train", 9, 0)) == 9


def test_tokens_are_those_that_were_sampled() -> None:
    chat, played = ChatFormat(tokenizer()), episode()
    odd = replace(played.turns[0], action_ids=np.array([*tokenizer()("lo", add_special_tokens=False)["input_ids"],
                  *tokenizer()("ok", add_special_tokens=False)["input_ids"]], np.int32))  # fmt: skip
    cut = replace(played, turns=(odd, replace(played.turns[1], valid=False)))
    (row,) = episode_rows(cut, chat, AGENT, "", CONFIG, as_is=True)
    assert row.ids.tolist() == [int(i) for turn in cut.turns for i in (*turn.prompt_ids, *turn.action_ids)]
    assert row.ids[row.weights > 0].tolist() == odd.action_ids.tolist(), "and replies without an action are not learned"
    again = replace(played.turns[1], continues=False)
    assert len(episode_rows(replace(played, turns=(odd, again)), chat, AGENT, "", CONFIG, as_is=True)) == 2


def test_texts_are_put_into_the_agent_s_own_prompts() -> None:
    chat, played = ChatFormat(tokenizer()), episode()
    (same,) = episode_rows(played, chat, AGENT, "", CONFIG, as_is=False)
    (as_is,) = episode_rows(played, chat, AGENT, "", CONFIG, as_is=True)
    assert same.ids.tolist() == as_is.ids.tolist()
    assert same.weights.tolist() == as_is.weights.tolist()
    windowed = AgentConfig(context="window", instructions=True)
    rows = episode_rows(played, chat, windowed, "Tidy up.", CONFIG, as_is=False)
    assert [tokenizer().decode(row.ids[row.weights > 0]) for row in rows] == ["look<|end|>", "go to drawer 0<|end|>"]
    assert all("Tidy up." in tokenizer().decode(row.ids) for row in rows)


def test_a_pass_repeats_everything_in_a_new_order() -> None:
    stream = list(islice(repeated(range(10), 3), 30))
    passes = [stream[start : start + 10] for start in (0, 10, 20)]
    assert all(sorted(each) == list(range(10)) for each in passes)
    assert passes[0] != passes[1] != passes[2]
    assert list(islice(repeated(range(10), 3), 30)) == stream


# --- chats ---


def written(path: Path, *lines: object) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def messages(*pairs: tuple[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in pairs], "more": 1}


GOOD = messages(("user", "You see a mug."), ("assistant", "look"), ("user", "ok"), ("assistant", "go to drawer 1"))


def test_chats_are_rows_whose_replies_are_learned(tmp_path: Path) -> None:
    named = messages(("system", "Be brief."), ("user", "hi"), ("assistant", "look"), ("user", "and then nothing"))
    talks = read_chats(written(tmp_path / "a.jsonl", GOOD, "", named))
    assert talks[1] == Chat((("hi", "look"),), "Be brief.")
    chat = ChatFormat(tokenizer())
    (row,) = chat_rows(talks[0], chat, AGENT, CONFIG)
    assert tokenizer().decode(row.ids[row.weights > 0]) == "look<|end|>go to drawer 1<|end|>"
    assert row.ids.tolist() == [i for turn in _as_turns(chat) for i in turn]
    assert set(row.kinds[row.weights == 0]) == {OBSERVATION}
    shown = list(islice(chats_as_rows(talks, tokenizer(), AGENT, CONFIG, 0), 4))
    assert sum("Be brief." in tokenizer().decode(rows[0].ids) for rows in shown) == 2
    long = Chat((("You see a mug. " * 20, "look"),))
    assert chat_rows(long, chat, AgentConfig(max_context_tokens=32, max_reply_tokens=2), CONFIG) == []


def _as_turns(chat: ChatFormat) -> list[list[int]]:
    first = chat.reply("look")
    parts = [chat.open("You see a mug."), first, chat.extend(first, "ok"), chat.reply("go to drawer 1")]
    return [part.tolist() for part in parts]


BAD: list[tuple[object, str]] = [
    ("{", "line 2: .*; expected"),
    ({"prompt": "x"}, "line 2: it has no list of `messages`"),
    (messages(("user", "x")), "line 2: the assistant says nothing"),
    (messages(("assistant", "x"), ("user", "y")), "message 1 is the assistant's, where the user has the turn"),
    (messages(("system", "s"), ("user", "x"), ("user", "y")), "message 3 is the user's, where the assistant has"),
    (
        messages(("user", "x"), ("robot", "y")),
        "message 2 has the role 'robot'; known are system, user, assistant, tool",
    ),
    (messages(("user", "x"), ("assistant", None)), "message 2 has no text as its `content`"),
    (messages(("user", "x"), ("system", "s"), ("assistant", "y")), "message 2 is the system's"),
]


@pytest.mark.parametrize(("line", "told"), BAD, ids=[str(n) for n in range(len(BAD))])
def test_a_line_that_is_no_chat_is_named(line: object, told: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=told):
        read_chats(written(tmp_path / "a.jsonl", GOOD, line))


def test_a_file_without_chats_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no chats"):
        read_chats(written(tmp_path / "a.jsonl", ""))
    (tmp_path / "b.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="no chats can be read"):
        read_chats(tmp_path / "b.jsonl")


# --- in a warm start ---


@pytest.fixture
def brought(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., RunConfig]:
    monkeypatch.setenv("TURNWISE_CACHE", str(tmp_path / "cache"))
    folder = scratch_folder(tmp_path / "model")
    given = ["env.id=tests.levers:test/Levers-v0", "agent.action_format=plain", "agent.show_admissible=false"]
    given += ["agent.max_context_tokens=256", "agent.max_reply_tokens=8", "warmstart.max_tokens=300"]
    given += ["eval.every=0", "eval.test_tasks=4", "rollout.num_tasks=2", "agent.instructions=false"]

    def make(*settings: str) -> RunConfig:
        return load_config("smoke", [f"model.path={folder}", *given, *settings])

    return make


def test_a_run_s_own_wins_are_cloned(brought: Callable[..., RunConfig], tmp_path: Path) -> None:
    source = RunDirectory.create(tmp_path / "source", brought("warmstart=null"), {})
    config = brought(f"warmstart.from={source.path}")
    assert config.warmstart is not None
    assert config.warmstart.source == str(source.path)
    with pytest.raises(ValueError, match="holds no episodes yet"):
        warmstart(config)
    writer = TrajectoryWriter(source.trajectories_path)
    writer.append(0, [episode(success=False)])
    with pytest.raises(ValueError, match="holds no won episode"):
        warmstart(config)
    writer.append(1, [episode(n) for n in range(3)])
    with closing(Assembly(config)) as assembly:
        key = assembly.warmstart.cloning.key
        folder = assembly.warmstart.make()
        tasks = assembly.panels.test
    assert json.loads((folder / "warmstart.json").read_text())["tasks"] == [f"key-train-{n}" for n in range(3)]
    run = RunDirectory.create(tmp_path / "run", config, {})
    run.model_path.symlink_to(folder)
    assert "cloned on" not in (overlap_with(run, tasks, "last") or {})
    known = replace(tasks[0], key="key-train-1")
    assert (overlap_with(run, [known, *tasks], "last") or {})["cloned on"] == 1
    writer.append(2, [replace(episode(9), task=replace(tasks[0], split="train"))])
    with closing(Assembly(config)) as assembly:
        assert assembly.warmstart.cloning.key != key, "other episodes, another clone"
        with pytest.raises(ValueError, match=f"evaluation task {tasks[0].key} is also a training task"):
            assembly.warmstart.make()


def test_prompts_that_cannot_be_made_again_are_refused(brought: Callable[..., RunConfig], tmp_path: Path) -> None:
    source = RunDirectory.create(tmp_path / "source", brought("warmstart=null"), {})
    TrajectoryWriter(source.trajectories_path).append(0, [episode(n) for n in range(3)])
    chosen = f"warmstart.from={source.path}"
    with pytest.raises(ValueError, match=r"other settings of the agent \(show_admissible\).* lists of admissible"):
        warmstart(brought(chosen, "agent.show_admissible=true"))
    assert warmstart(brought(chosen, "agent.instructions=true")).is_dir()
    with pytest.raises(ValueError, match=r"are of tests\.levers:test/Levers-v0, and this run's world is"):
        warmstart(load_config("household", [f"model.path={tmp_path / 'model'}", chosen]))


def test_chats_are_cloned_and_cannot_be_checked(brought: Callable[..., RunConfig], tmp_path: Path) -> None:
    file = written(tmp_path / "chats.jsonl", GOOD)
    config = brought(f"warmstart.from={file}")
    folder = warmstart(config)
    assert json.loads((folder / "warmstart.json").read_text())["tasks"] is None
    run = RunDirectory.create(tmp_path / "run", config, {})
    run.model_path.symlink_to(folder)
    with closing(Assembly(config)) as assembly:
        tasks = assembly.panels.test
    assert overlap_with(run, tasks, "last") == {"in what was cloned, which cannot be checked": len(tasks)}
    written(file, GOOD, GOOD)
    assert warmstart(config) != folder


def test_what_is_no_source_is_one_error(brought: Callable[..., RunConfig], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"warmstart\.from='nowhere' is not there: expected expert, the folder"):
        warmstart(brought("warmstart.from=nowhere"))
    with pytest.raises(ValueError, match=r"warmstart\.noise: for an expert's demonstrations, not for nowhere"):
        brought("warmstart.from=nowhere", "warmstart.noise=0.1")
    with pytest.raises(ValueError, match="takes its words from an expert's demonstrations"):
        load_config("smoke", ["warmstart.from=nowhere"])
    with pytest.raises(ValueError, match=r"warmstart\.(from|source)"):
        brought("warmstart.from=[1, 2]")


def test_tokens_that_nobody_chose_are_not_learned() -> None:
    chat, played = ChatFormat(tokenizer()), episode()
    first, *rest = played.turns
    forced = np.zeros(len(first.action_ids), np.bool_)
    forced[:2] = True
    done = Processing(forced.astype(np.int32), first.action_ids[:2], forced)
    cut = replace(played, turns=(replace(first, processing=done), *rest))
    (row,) = episode_rows(cut, chat, AGENT, "", CONFIG, as_is=True)
    (whole,) = episode_rows(played, chat, AGENT, "", CONFIG, as_is=True)
    left_out = (whole.weights > 0) & (row.weights == 0)
    assert row.ids[left_out].tolist() == first.action_ids[:2].tolist()
