"""Small runs on disk, made by hand: what is in them is known to the last digit."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from tests.models import scratch_folder, tokenizer
from turnwise.config.files import load_config
from turnwise.evaluation.report import Report
from turnwise.replay.store import TrajectoryWriter
from turnwise.runs.directory import RunDirectory
from turnwise.statistics import wilson
from turnwise.trajectory import Fork, Task, Trajectory, Turn

EVIL = "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>"
EVENT = {
    **{"name": "entropy_collapse", "diagnosis": "The policy is nearly deterministic.", "advice": "Raise entropy_coef."},
    **{"value": 0.01, "threshold": 0.05, "level": "error"},
}


def turn(
    observation: str, reply: str, *, entropy: float = 0.5, reward: float = 0.0, first: bool = False, valid: bool = True
) -> Turn:
    """A turn of real tokens, all of the same entropy."""
    encode = tokenizer().encode
    ids = np.array(encode(reply), np.int32)
    return Turn(
        observation=observation,
        prompt_ids=np.array(encode(observation or " "), np.int32),
        continues=not first,
        action_ids=ids,
        logprobs=np.full(len(ids), -entropy, np.float32),
        entropies=np.full(len(ids), entropy, np.float32),
        reply=reply,
        action=reply.strip(),
        valid=valid,
        reward=reward,
    )


def task(index: int, kind: str = "fetch") -> Task:
    return Task("turnwise/Household-v0", "train", index, f"key{index:04d}", kind)


def episode(update: int, of: Task, sample: int, turns: Sequence[Turn], *, fork: Fork | None = None) -> Trajectory:
    success = bool(turns[-1].reward > 0)
    return Trajectory(
        episode=f"train-{of.index}-{update}-{sample}",
        task=of,
        seed=0,
        sample=sample,
        turns=tuple(turns),
        end="terminated" if success else "truncated",
        success=success,
        score=float(success),
        policy_version=update,
        adapter_hash="abcdef0123456789",
        fork=fork,
    )


def attempt(update: int, of: Task, sample: int, success: bool, text: str = "go to drawer 1") -> Trajectory:
    """Two turns; success earns 1 at the end."""
    turns = [
        turn(f"You arrive.\nYour task is to: find mug {of.index}.", text, first=True),
        turn("On the cabinet 1, you see a mug 1.", "go to cabinet 2", reward=float(success)),
    ]
    return episode(update, of, sample, turns)


def report(outcomes: Sequence[int], panel: str = "aaaa") -> dict[str, Any]:
    rate = wilson(sum(outcomes), len(outcomes))
    made = Report(
        *("agent", "turnwise/Household-v0", "test", panel, len(outcomes), 1, 1.0, rate),
        *({"fetch": rate}, {1: rate.value}, rate.value, 5.0, 10.0, 0.1, 0.2, 0.0, 0),
        tuple((float(x),) for x in outcomes),
    )
    return asdict(made)


def make_run(
    folder: Path,
    updates: Sequence[Sequence[Trajectory]],
    *settings: str,
    algorithm: str = "grpo",
    panel: str = "aaaa",
    seed: int = 0,
    **logged: Any,
) -> Path:
    """``logged`` goes into every update's record."""
    config = load_config(
        "smoke", [f"algorithm={algorithm}", f"seed={seed}", f"num_updates={max(len(updates), 1)}", *settings]
    )
    run = RunDirectory.create(folder, config, {"train": "t", "test": panel})
    scratch_folder(run.model_path)
    writer = TrajectoryWriter(run.trajectories_path)
    for update, trajectories in enumerate(updates):
        writer.append(update, trajectories)
        known = [t.success for t in trajectories]
        record = {
            **{"update": update, "success": float(np.mean([bool(x) for x in known])), "reward": 0.5, "turns": 2.0},
            **{"invalid_share": 0.1, "episodes": len(trajectories), "sampled_tokens": 100, "entropy": 0.5},
            **{"grad_norm": 0.1, "seconds": {"collect": 2.0, "update": 1.0, "evaluate": 0.5}, **logged},
        }
        run.log(record)
    measured = {
        when: {"sampled": report(row, panel)} for when, row in (("before", [0, 0, 1, 0]), ("after", [1, 1, 1, 0]))
    }
    run.evaluation_path.write_text(json.dumps(measured))
    return folder


def forked_group(update: int = 0) -> list[Trajectory]:
    """#0 from the root; #1 draws its third turn anew, #2 draws #1's fourth anew, so that its streak is 1.

    Entropies of the turns: 0.1, 0.1, then 1.0, then 2.0.
    """
    of = task(7, "tree")
    levels = [0.1, 0.1, 1.0, 2.0]

    def path(replies: Sequence[str], reward: float) -> list[Turn]:
        turns = [
            turn("You see a mug 1." if n else "Your task is to: grow.", reply, entropy=level, first=n == 0)
            for n, (reply, level) in enumerate(zip(replies, levels, strict=True))
        ]
        return [*turns[:-1], turn("You see a plate 1.", replies[-1], entropy=levels[-1], reward=reward)]

    root = episode(update, of, 0, path(["go to drawer 1", "go to drawer 2", "go to drawer 3", "go to drawer 4"], 0.0))
    second = path(["go to drawer 1", "go to drawer 2", "go to cabinet 3", "go to cabinet 4"], 1.0)
    child = episode(update, of, 1, second, fork=Fork(root.episode, 2))
    third = path(["go to drawer 1", "go to drawer 2", "go to cabinet 3", "go to cabinet 1"], 0.0)
    return [root, child, episode(update, of, 2, third, fork=Fork(child.episode, 3))]
