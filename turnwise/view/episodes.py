"""A run's trajectories for a browser: an index of all of them, and blocks that it unpacks when one is opened.

The trajectory file is read once, update by update. Numbers are rounded to 1e-4 (nats, advantage units); nothing else is
lost.
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from turnwise.agents.actions import unsent
from turnwise.agents.dialogue import action_text, lines
from turnwise.algorithms.registry import build
from turnwise.algorithms.tree import MONITOR
from turnwise.replay.store import TrajectoryReader
from turnwise.runs.directory import RunDirectory
from turnwise.runs.trajectory_tables import grade_lines
from turnwise.statistics import Estimate, bootstrap_mean, wilson
from turnwise.trajectory import Group, Trajectory, Turn, counted, group_by_task
from turnwise.view.credit import Credited, Recipes, Trained, name_of
from turnwise.view.index import DIGITS, Update, ages, index_of, short
from turnwise.view.tokens import open_tokenizer, token_texts, vocabulary_of
from turnwise.view.tree import Branching, Tree, tree_planner

_BLOCK = 600_000  # characters of JSON: some ten milliseconds to unpack
_LABEL = 140  # characters


@dataclass(frozen=True, slots=True)
class Episodes:
    """The trajectories of a run that the page shows.

    ``index`` describes each trajectory in columns, ``blocks`` hold the rest, and ``notes`` say what is missing.
    ``outcomes`` are the mean success (return where that is unknown) of each update, with its interval over tasks.
    """

    index: dict[str, Any]
    blocks: list[str]
    outcomes: dict[int, Estimate]
    notes: list[str]


def read_episodes(run: RunDirectory, metrics: Sequence[Mapping[str, Any]], limit: int) -> Episodes:
    """All of a run's trajectories; of a longer run about ``limit``, from updates spread evenly over it."""
    config, notes = run.config(), list[str]()
    logged = {int(line["update"]): line for line in metrics}
    recipes = Recipes(run)
    vocabulary = vocabulary_of(run)
    info = replace(config.run_info, vocabulary=vocabulary)
    planner = tree_planner(build(config.algorithm, info).planner)
    if planner is not None and planner.settings.log_vocabulary is None and vocabulary is None:
        notes.append(
            "The model of this run is not on this machine: the entropies of its branch trees are over "
            f"{planner.log_vocabulary}, not over ln of its own vocabulary."
        )
    updates: list[Update] = []
    disagreed: list[int] = []
    if not run.trajectories_path.exists():
        return Episodes(index_of([], {}, planner), [], {}, ["This run has no trajectories yet."])
    reader = TrajectoryReader(run.trajectories_path)
    for flush in reader.flushes():
        credited = recipes.credit(flush.update, flush.trajectories, logged.get(flush.update, {}))
        groups = group_by_task(flush.trajectories)
        trees = [Tree(planner, group.trajectories) if planner else None for group in groups]
        updates.append(_update(flush.update, groups, trees, credited))
        disagreed += [flush.update] if credited.agrees is False else []
    total = sum(len(update.rows) for update in updates)
    shown = _spread(updates, total, limit)
    if len(shown) < len(updates):
        held = sum(len(update.rows) for update in shown)
        notes.append(
            f"Shown are {held:,} of {total:,} trajectories, those of {len(shown)} of {len(updates)} updates; "
            "--trajectories N shows more."
        )
    if reader.torn_bytes:
        notes.append(f"The last {reader.torn_bytes:,} bytes of the trajectory file are incomplete and left out.")
    if recipes.why_not:
        notes.append(f"Advantages are not available: {recipes.why_not}.")
    if disagreed:
        notes.append(
            f"In {len(disagreed)} of {len(updates)} updates (the first: {disagreed[0]}) recomputed advantages are not "
            "those that the run logged: do not trust them there. Was it trained with another version?"
        )
    tokenizer = open_tokenizer(run)
    if tokenizer is None and shown:
        notes.append("The tokenizer of this run is not on this machine: tokens are shown by their numbers.")
    texts = token_texts(tokenizer, sorted(set[int]().union(*(update.ids for update in shown))))
    index = index_of(shown, texts, planner)
    index["replay"] = ages(updates)
    blocks = [packed for update in shown for _, packed in update.blocks]
    return Episodes(index, blocks, {u.number: u.outcome for u in updates if u.outcome is not None}, notes)


def _spread(updates: Sequence[Update], total: int, limit: int) -> Sequence[Update]:
    """All updates, or as many as hold about ``limit`` trajectories, with the first and the last among them."""
    if total <= limit:
        return updates
    number = max(int(len(updates) * limit / total), 1)
    places = np.linspace(0, len(updates) - 1, number).round().astype(int) if number > 1 else [len(updates) - 1]
    return [updates[place] for place in places]


def _update(number: int, groups: Sequence[Group], trees: Sequence[Tree | None], credited: Credited) -> Update:
    made = Update(number, outcome=outcome(groups), replayed=credited.replayed)
    texts: list[str] = []
    first = size = 0
    for place, (group, tree) in enumerate(zip(groups, trees, strict=True)):
        for trajectory in group.trajectories:
            trained = credited.trained.get(name_of(trajectory))
            branching = tree.branching(trajectory) if tree else None
            made.rows.append(_row(trajectory, number, place, trained, credited))
            made.ids.update(_ids(trajectory))
            texts.append(json.dumps(_detail(trajectory, tree, trained, branching), allow_nan=False))
            size += len(texts[-1])
            if size > _BLOCK:
                made.blocks.append((first, pack(f"[{','.join(texts)}]")))
                texts, first, size = [], len(made.rows), 0
    if texts:
        made.blocks.append((first, pack(f"[{','.join(texts)}]")))
    return made


def _ids(trajectory: Trajectory) -> list[int]:
    parts = [ids for turn in trajectory.turns for ids in (turn.prompt_ids, turn.action_ids)]
    found: list[int] = np.unique(np.concatenate([np.empty(0, np.int32), *parts])).tolist()
    return found


def pack(text: str) -> str:
    """Text as gzip in base64, which unpack() of core.js reads."""
    import base64

    return base64.b64encode(gzip.compress(text.encode(), compresslevel=6, mtime=0)).decode("ascii")


def outcome(groups: Sequence[Group]) -> Estimate | None:
    """Mean success over tasks (mean return where success is unknown) with its 95 % interval.

    The interval is a bootstrap over tasks, since attempts at one task are not independent. It is Wilson's where each
    task was tried once, or where all outcomes are the same. The episodes are those of the run's own means.
    """
    every = [t for group in groups for t in group.trajectories]
    played = [every[n] for n in counted(every)]
    if not played:
        return None
    own = {id(t) for t in played}
    sound = [[t for t in group.trajectories if id(t) in own] for group in groups]
    known = all(t.success is not None for t in played)
    values = [[float(bool(t.success)) if known else t.total_reward for t in group] for group in sound if group]
    means = [float(np.mean(task)) for task in values]
    if known and (all(len(task) == 1 for task in values) or set(means) <= {0.0} or set(means) <= {1.0}):
        return wilson(int(sum(means)), len(means))
    return bootstrap_mean(means, resamples=2_000)


def _row(
    trajectory: Trajectory, update: int, group: int, trained: Trained | None, credited: Credited
) -> dict[str, Any]:
    entropies = np.concatenate([np.empty(0), *(turn.entropies[turn.action_mask] for turn in trajectory.turns)])
    status = "looked at" if trajectory.sample == MONITOR else "left out"
    if trained is not None:
        status = trained.stream
    elif credited.why_not:
        status = "unknown"
    return {
        "update": update,
        "group": group,
        "episode": trajectory.episode,
        "player": trajectory.player,
        "task": trajectory.task,
        "label": _label(trajectory),
        "sample": trajectory.sample,
        "seed": trajectory.seed,
        "success": None if trajectory.success is None else int(trajectory.success),
        "end": trajectory.end_reason or trajectory.end,
        "error": int(trajectory.end == "error"),
        "reward": short(trajectory.total_reward),
        "score": short(trajectory.score),
        "shaped": short(trained.shaped_return) if trained else None,
        "turns": len(trajectory.turns),
        "tokens": trajectory.num_action_tokens,
        "entropy": short(float(entropies.mean())) if entropies.size else None,
        "stream": status,
        "version": trajectory.policy_version,
        "adapter": trajectory.adapter_hash,
        "role": trajectory.role or trajectory.policy,
        "parent": trajectory.fork.parent if trajectory.fork else None,
        "fork": trajectory.fork.turn if trajectory.fork else None,
        "begun": trajectory.fork.tokens if trajectory.fork else None,
    }


def _label(trajectory: Trajectory) -> str:
    """The last line of the first observation, which states the task in most worlds."""
    lines = trajectory.turns[0].observation.split("\n") if trajectory.turns else []
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return last if len(last) <= _LABEL else last[: _LABEL - 1] + "…"


def _detail(
    trajectory: Trajectory, tree: Tree | None, trained: Trained | None, branching: Branching | None
) -> dict[str, Any]:
    advantages = trained.advantages if trained else None
    found: dict[str, Any] = {
        "turns": [_turn(turn, None if advantages is None else advantages[n]) for n, turn in enumerate(trajectory.turns)]
    }
    if tree is not None:
        found["segments"] = [short(tree.planner.entropy(turn.entropies)) for turn in trajectory.turns]
        found["initial"] = tree.planner.initial(trajectory) if _looked_at(tree, trajectory) else None
    if trajectory.grading is not None:
        found["grades"] = grade_lines(trajectory)
    if branching is not None:
        found["branching"] = {name: short(value) for name, value in asdict(branching).items()}
    return found


def _looked_at(tree: Tree, trajectory: Trajectory) -> bool:
    """Whether AEPO's pre-monitoring divided the group's budget by this trajectory's entropies."""
    monitoring = tree.planner.monitoring
    return monitoring is not None and trajectory.sample == (0 if monitoring.keep else MONITOR)


def _turn(turn: Turn, advantages: Sequence[float] | None) -> dict[str, Any]:
    """A turn as JSON values; its advantages are one number where all tokens have the same."""
    shared = advantages is not None and len(set(advantages)) == 1
    return {
        "observation": turn.observation,
        **({"asked": lines(turn)} if turn.request else {}),
        "prompt": turn.prompt_ids.tolist(),
        "continues": turn.continues,
        "tokens": turn.action_ids.tolist(),
        "logprobs": _rounded(turn.logprobs),
        "entropies": _rounded(turn.entropies),
        "advantages": None if advantages is None else short(advantages[0]) if shared else _rounded(advantages),
        "reply": turn.reply,
        "action": action_text(turn),
        "valid": turn.valid,
        "unsent": "" if turn.valid or turn.action else unsent(turn.reply),
        "reward": short(turn.reward),
    }


def _rounded(values: Any) -> list[float | None]:
    """The numbers rounded, with None in place of nan and infinity."""
    numbers = np.round(np.asarray(values, np.float64), DIGITS) + 0.0
    found: list[float | None] = numbers.tolist()
    return found if np.isfinite(numbers).all() else [x if x is not None and math.isfinite(x) else None for x in found]
