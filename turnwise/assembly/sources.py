"""What a warm start clones: the world's expert, won episodes of a stored run, or chats in a file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from turnwise.agents.chat import ChatFormat
from turnwise.agents.opening import Example
from turnwise.agents.prompts import AgentConfig
from turnwise.assembly.policies import open_run
from turnwise.cloning.chats import read_chats
from turnwise.cloning.rows import Rows, Stored, chats_as_rows, episode_rows, repeated
from turnwise.cloning.settings import EXPERT, WarmstartConfig
from turnwise.envs.interface import instructions_of
from turnwise.envs.settings import EnvConfig
from turnwise.envs.tasks import TextEnv
from turnwise.models.loading import load_tokenizer
from turnwise.replay.store import TrajectoryReader
from turnwise.runs.directory import RunDirectory
from turnwise.seeds import mix
from turnwise.trajectory import Trajectory

_NOT_SHOWN = {
    *("max_reply_tokens", "max_context_tokens", "max_turns", "on_overflow", "action_format"),
    *("constrained", "thought_tokens", "decoding"),
}
"""Settings of an agent that change no token of a prompt."""


def stored_source(clone: WarmstartConfig, env: EnvConfig, agent: AgentConfig, seed: int) -> Stored | None:
    """The source that ``warmstart.from`` names; None for the expert. Raises ValueError where there is no such one."""
    if clone.source == EXPERT:
        return None
    if (run := open_run(clone.source)) is not None:
        return _of_run(run, clone, env, agent, seed)
    if not Path(clone.source).expanduser().is_file():
        raise ValueError(
            f"warmstart.from={clone.source!r} is not there: expected expert, the folder of a run (its won episodes), "
            "or a JSONL file of chats"
        )
    talks, place = read_chats(clone.source), Path(clone.source).expanduser()

    def rows(tokenizer: Any, world: TextEnv, examples: Sequence[Example]) -> Rows:
        return chats_as_rows(talks, tokenizer, agent, clone, seed)

    return Stored(_hash(place), None, rows)


def _of_run(run: RunDirectory, clone: WarmstartConfig, env: EnvConfig, agent: AgentConfig, seed: int) -> Stored:
    theirs = run.config()
    if theirs.env.id != env.id:
        raise ValueError(f"the episodes of {run.path} are of {theirs.env.id}, and this run's world is {env.id}")
    if not run.trajectories_path.is_file():
        raise ValueError(f"{run.path} holds no episodes yet: nothing to clone")
    episodes = won(TrajectoryReader(run.trajectories_path), theirs.env.split, clone.max_per_task, seed)
    if not episodes:
        raise ValueError(f"{run.path} holds no won episode: nothing to clone")
    shown = _shown_differently(theirs.agent, agent)

    def rows(tokenizer: Any, world: TextEnv, examples: Sequence[Example]) -> Rows:
        as_is = not shown and _same(tokenizer, load_tokenizer(_model_of(run)))
        if not as_is and agent.show_admissible:
            told = f"other settings of the agent ({', '.join(shown)})" if shown else "another tokenizer"
            raise ValueError(
                f"{run.path} was played with {told}, and its episodes do not hold the lists of admissible actions: "
                "give this run the same, or agent.show_admissible=false"
            )
        chat = ChatFormat.of(tokenizer, agent)
        instructions = instructions_of(world)
        again = repeated(episodes, seed)
        return (episode_rows(each, chat, agent, instructions, clone, as_is, examples) for each in again)

    tasks = {episode.task.key: episode.task for episode in episodes}
    return Stored(_hash(run.trajectories_path), tuple(tasks.values()), rows)


def won(episodes: Iterable[Trajectory], split: str, max_per_task: int, seed: int) -> list[Trajectory]:
    """The won episodes of a split's tasks, at most so many of each task, which are drawn by ``seed``."""
    by_task: dict[str, list[Trajectory]] = {}
    for episode in episodes:
        if episode.success and episode.turns and episode.task.split == split and not episode.only_looked_at:
            by_task.setdefault(episode.task.key, []).append(episode)
    kept = []
    for key, found in by_task.items():
        order = np.random.default_rng(mix("won", seed, key)).permutation(len(found))
        kept += [found[int(place)] for place in sorted(order[:max_per_task])]
    return kept


def _shown_differently(theirs: AgentConfig, ours: AgentConfig) -> list[str]:
    before, now = (each.model_dump(exclude=_NOT_SHOWN) for each in (theirs, ours))
    before["examples"] = theirs.examples or 0  # earlier runs had none, and did not say so
    return [name for name in now if now[name] != before[name]]


def _model_of(run: RunDirectory) -> str | Path:
    return run.model_path if run.model_path.exists() else str(getattr(run.config().model, "path", run.model_path))


def _same(ours: Any, theirs: Any) -> bool:
    """Whether two tokenizers give the same tokens for the same conversation."""
    templates = ours.chat_template == theirs.chat_template
    return bool(templates and ours.backend_tokenizer.to_str() == theirs.backend_tokenizer.to_str())


def _hash(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()[:16]
