#!/usr/bin/env python3
"""What GraphGPO takes for a state on household: the text of an observation, or the world's key.

A policy of four numbers plays: with these probabilities a turn does what the expert would, something admissible,
something that is not admissible now, or it looks around. The first table holds each turn's A_S beside what the turn
gained, in turns of the expert that knows the state. The second trains the four numbers with an algorithm's advantages.

python benchmarks/graph_states.py       some 40 CPU seconds
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from turnwise.algorithms.registry import build, resolve
from turnwise.envs.alfworld.knowing import next_command
from turnwise.envs.alfworld.simulator import Simulator
from turnwise.envs.household.env import HouseholdEnv
from turnwise.envs.interface import state_key_of
from turnwise.learning.parts import Samples, Stream
from turnwise.learning.rewards import RewardTable
from turnwise.learning.settings import RunInfo
from turnwise.replay.batch import layout
from turnwise.trajectory import Group, Task, Trajectory, Turn

START = np.array([0.45, 0.2, 0.25, 0.1])  # expert's, admissible, not admissible, idle
IDLE = ("look", "inventory", "help")
TASKS, ATTEMPTS, UPDATES, RATE = 8, 8, 25, 0.7
ARMS: Sequence[tuple[str, Mapping[str, Any]]] = (
    ("grpo", {}),
    ("graphgpo", {"states": "anchor"}),
    ("graphgpo", {"states": "key"}),
)


@dataclass(frozen=True)
class Played:
    """An episode with the kind of each turn [N], and what the turn gained [N], in turns."""

    trajectory: Trajectory
    kinds: Sequence[int]
    gains: Sequence[int]


def turns_left(world: Any, state: Any) -> int:
    """The turns that the knowing expert needs from a state on."""
    simulator, turns = Simulator(world), 0
    simulator.restore(state)
    while not simulator.won and turns < 30:
        simulator.step(next_command(simulator))
        turns += 1
    return turns


def play(
    env: HouseholdEnv, task: Task, sample: int, shares: np.ndarray, rng: np.random.Generator, gain: bool
) -> Played:
    observation, info = env.reset(seed=0, options={"split": task.split, "task": task.index})
    expert = env.expert("searching", seed=int(rng.integers(1 << 30)))
    expert.begin(observation, info)
    turns, kinds, gains = list[Turn](), list[int](), list[int]()
    known, one, ended, won = dict[str, None](), np.zeros(1, np.float32), False, False
    while not ended:
        present, before = info["admissible_actions"], env._playing().snapshot()
        stale = [action for action in known if action not in present] or ["go nowhere"]
        known.update(dict.fromkeys(present))
        kind, wanted = int(rng.choice(4, p=shares)), expert.act(observation, info)
        action = (wanted, *(choices[rng.integers(len(choices))] for choices in (present, stale, IDLE)))[kind]
        if kind:
            expert.overrule(action)  # type: ignore[attr-defined]
        key = state_key_of(info)
        after, reward, won, cut, info = env.step(action)
        ids = np.array([1], np.int32)
        valid = bool(info["valid"])
        turns.append(Turn(observation, ids, bool(turns), ids, one, one, action, action, valid, reward, state_key=key))
        kinds.append(kind)
        if gain:
            world = env._playing().world
            gains.append(turns_left(world, before) - turns_left(world, env._playing().snapshot()))
        observation, ended = after, won or cut
    made = Trajectory(
        f"{task.index}-{sample}", task, 0, sample, tuple(turns), "terminated" if won else "truncated", won, None,
        last_anchor=observation, last_state_key=state_key_of(info),
    )  # fmt: skip
    return Played(made, kinds, gains)


def played(
    env: HouseholdEnv, tasks: Sequence[Task], shares: np.ndarray, rng: np.random.Generator, gain: bool = False
) -> list[Played]:
    return [play(env, task, sample, shares, rng, gain) for task in tasks for sample in range(ATTEMPTS)]


def credit(
    algorithm: str, settings: Mapping[str, Any], episodes: Sequence[Played], penalty: float
) -> tuple[np.ndarray, dict[str, float]]:
    """The advantage of every turn, and what the algorithm's modifiers counted."""
    every = [each.trajectory for each in episodes]
    groups = tuple(Group(every[n].task, tuple(every[n : n + ATTEMPTS])) for n in range(0, len(every), ATTEMPTS))
    own = tuple(tuple(-penalty * (not turn.valid) for turn in t.turns) for t in every)
    rewards = RewardTable(tuple(tuple(t.rewards) for t in every), own)
    stream = Stream(Samples(groups, rewards), layout(groups, rewards=[rewards.turns(n) for n in range(len(every))]))
    recipe, counted = build(resolve(algorithm).config.model_validate(settings), RunInfo(UPDATES, ATTEMPTS))["fresh"], {}
    assert recipe.estimator is not None
    stream = stream.with_columns(advantages=recipe.estimator.estimate(stream))
    for modifier in recipe.modifiers:
        stream = stream.with_columns(advantages=modifier.modify(stream))
        counted.update(modifier.acted())
    assert stream.batch.advantages is not None
    return stream.batch.advantages[stream.batch.action_mask].numpy().astype(float), counted


def show_credit() -> None:
    env, rng = HouseholdEnv("easy"), np.random.default_rng(0)
    episodes = played(env, [env.tasks("train")[n] for n in range(2 * TASKS)], START, rng, gain=True)
    gains = np.concatenate([each.gains for each in episodes])
    valid = np.array([turn.valid for each in episodes for turn in each.trajectory.turns])
    won = np.concatenate([np.full(len(each.gains), bool(each.trajectory.success)) for each in episodes])
    idle = np.array([turn.action in IDLE for each in episodes for turn in each.trajectory.turns])
    sets = {"nearer": valid & (gains > 0), "further": gains < 0, "idle": valid & idle, "invalid": ~valid}
    print(f"{len(gains)} turns, {np.mean(won[valid | ~valid]):.2f} in won episodes, invalid {np.mean(~valid):.2f}")
    for algorithm, settings in ARMS:
        found, counted = credit(algorithm, {**settings, **({"episode_coef": 0.0} if settings else {})}, episodes, 0.0)
        means = {name: f"{found[chosen].mean():+.2f}" for name, chosen in {"won": won, "lost": ~won, **sets}.items()}
        print(algorithm, dict(settings), means, f"correlation {np.corrcoef(found, gains)[0, 1]:+.2f}", counted)


def trained(algorithm: str, settings: Mapping[str, Any], penalty: float, seed: int) -> tuple[float, float, float]:
    """Success at first, and success and invalid share over the last five updates."""
    env, rng, logits, course = HouseholdEnv("easy"), np.random.default_rng(seed), np.log(START), []
    panel = env.tasks("train")
    for update in range(UPDATES):
        shares = np.exp(logits) / np.exp(logits).sum()
        tasks = [panel[TASKS * (update + 100 * seed) + n] for n in range(TASKS)]
        episodes = played(env, tasks, shares, rng)
        advantages, _ = credit(algorithm, settings, episodes, penalty)
        chosen = np.eye(4)[np.concatenate([each.kinds for each in episodes])]
        logits = logits + RATE * (advantages[:, None] * (chosen - shares)).mean(0)
        turns = [turn for each in episodes for turn in each.trajectory.turns]
        course.append((np.mean([bool(e.trajectory.success) for e in episodes]), np.mean([not t.valid for t in turns])))
    success, invalid = np.mean(course[-5:], 0)
    return float(course[0][0]), float(success), float(invalid)


def main() -> None:
    show_credit()
    for penalty in (0.0, 0.03):
        for algorithm, settings in ARMS:
            found = np.array([trained(algorithm, settings, penalty, seed) for seed in range(3)])
            first, success, invalid = (np.round(column, 2).tolist() for column in found.T)
            print(
                f"penalty {penalty} {algorithm} {dict(settings)}: {first} -> {success}, invalid {invalid}", flush=True
            )


if __name__ == "__main__":
    main()
