"""Attempts at another temperature: who is played, which are kept, and that they are scored under what drew them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.algorithms.fakes import BigramPolicy, Sampler, buffer_of, episode, learner, task
from tests.faults.runs import config, trainer
from tests.learning.test_learner import RUN
from turnwise.agents.wishes import Wishes
from turnwise.algorithms.aepo_arbitrary import ArbitraryAEPOConfig
from turnwise.algorithms.dapo import DAPOConfig
from turnwise.algorithms.drgrpo import DrGRPOConfig
from turnwise.algorithms.grpo import GRPOConfig
from turnwise.algorithms.heated import STREAM, HeatedAttempts, Thermostat
from turnwise.algorithms.registry import build
from turnwise.clock import Clock
from turnwise.replay.batch import layout
from turnwise.shards.messages import Start
from turnwise.shards.rollouts import ShardedRollouts
from turnwise.trajectory import Group, RolloutFinished, Task, Trajectory

PLAIN = GRPOConfig(kl_coef=0.0, drop_uniform_groups=False)


class Recorded:
    """Rollouts that end at once."""

    def __init__(self) -> None:
        self.started: list[tuple[str, int, float | None]] = []

    def start(self, task: Task, sample: int, temperature: float | None = None) -> int:
        self.started.append((task.key, sample, temperature))
        return len(self.started) - 1

    def events(self) -> Iterator[RolloutFinished]:
        for number, (key, sample, _) in reversed(list(enumerate(self.started))):
            made = Trajectory(f"{key}-{sample}", Task("fake", "train", 0, key), 0, sample, (), "terminated", True, 1.0)
            yield RolloutFinished(number, made)


def heated(**settings: Any) -> HeatedAttempts:
    made = build(ArbitraryAEPOConfig(base=PLAIN, **settings), RUN).composer
    assert isinstance(made, HeatedAttempts)
    return made


@pytest.mark.parametrize(("entropy", "expected"), [(0.0, 1.2), (0.5, 1.2), (0.51, 0.8)])
def test_a_quarter_of_the_tasks_is_played_again_at_the_thermostats_temperature(entropy: float, expected: float) -> None:
    part, rollouts = heated(), Recorded()
    part.entropy = entropy
    found = part.plan([task(n) for n in range(9)], rollouts)  # type: ignore[arg-type]
    usual, again = rollouts.started[:36], rollouts.started[36:]
    assert {heat for _, _, heat in usual} == {None}
    assert again == [(f"task-{n}", sample, expected) for n in range(2) for sample in range(4, 8)]
    assert [(t.task.key, t.sample) for t in found] == [(key, sample) for key, sample, _ in rollouts.started]
    few = Recorded()
    part.plan([task(0)], few)  # type: ignore[arg-type]
    assert len(few.started) == 8, "one task at least"


def played(wins: list[list[int]], hot: list[list[int]]) -> list[Group]:
    """Groups of four attempts with these returns, and after them heated ones."""
    sampler = Sampler.of(BigramPolicy(), np.random.default_rng(0))
    groups = []
    for place, returns in enumerate(wins):
        members = []
        for sample, earned in enumerate(returns + (hot[place] if place < len(hot) else [])):
            made = episode(sampler, index=place, sample=sample, num_turns=1)
            turns = tuple(replace(turn, reward=float(earned)) for turn in made.turns)
            members.append(replace(made, turns=turns))
        groups.append(Group(task(place), tuple(members)))
    return groups


@pytest.mark.parametrize("mix", ["replace", "append"])
def test_the_best_of_the_heated_are_learned_from(mix: Any) -> None:
    policy = BigramPolicy()
    made = learner(build(ArbitraryAEPOConfig(base=PLAIN, mix=mix), RUN), policy)
    groups = played([[1, 0, 0, 0], [1, 1, 0, 0]], [[0, 1, 0, 0]])
    metrics = made.update(buffer_of(groups), 0)
    assert metrics.stream_rows == {"fresh": 8 - (mix == "replace"), STREAM: 1}
    assert metrics.mechanisms["HeatedAttempts/kept_share"] == 0.25
    assert metrics.mechanisms["HeatedAttempts/temperature"] == 1.2
    part = made.recipe.composer
    assert isinstance(part, HeatedAttempts)
    first = layout([Group(group.task, group.trajectories[:4]) for group in groups])
    usual = first.behaviour_entropies[first.action_mask]
    assert part.entropy == pytest.approx(float(usual.mean()), rel=1e-5), "of all attempts at the run's temperature"
    state, tensors = made.state_dict()
    again = learner(build(ArbitraryAEPOConfig(base=PLAIN, mix=mix), RUN), BigramPolicy())
    again.load_state_dict(state, tensors)
    assert again.recipe.composer.entropy == part.entropy  # type: ignore[attr-defined]


def test_the_thermostat_turns_where_nothing_is_learned_from() -> None:
    """Every group is uniform and left out. The update itself is still at the entropy of the one before."""
    policy = BigramPolicy()
    made = learner(build(ArbitraryAEPOConfig(base=GRPOConfig(kl_coef=0.0), target=0.01), RUN), policy)
    groups = played([[0, 0, 0, 0], [1, 1, 1, 1]], [[0, 0, 0, 0]])
    failed = replace(groups[1].trajectories[0], end="error")
    groups[1] = replace(groups[1], trajectories=(failed, *groups[1].trajectories[1:]))
    metrics = made.update(buffer_of(groups), 0)
    assert metrics.mechanisms["HeatedAttempts/temperature"] == 1.2
    part = made.recipe.composer
    assert isinstance(part, HeatedAttempts)
    sound = [t for group in groups for t in group.trajectories[:4] if t is not failed]
    entropies = np.concatenate([turn.entropies for t in sound for turn in t.turns])
    assert part.entropy == pytest.approx(float(entropies.mean()), rel=1e-5)
    assert made.update(buffer_of(groups), 1).mechanisms["HeatedAttempts/temperature"] == 0.8
    assert made.update(buffer_of([]), 2).mechanisms["HeatedAttempts/temperature"] == 0.8
    assert part.entropy == pytest.approx(float(entropies.mean()), rel=1e-5), "nothing was played"


def test_above_the_target_half_as_many_are_kept() -> None:
    groups = played([[1, 0, 0, 0]], [[1, 1, 1, 0]])
    found = {}
    for entropy in (0.0, 9.0):
        policy = BigramPolicy()
        made = learner(build(ArbitraryAEPOConfig(base=PLAIN, mix="append"), RUN), policy)
        made.recipe.composer.entropy = entropy  # type: ignore[attr-defined]
        found[entropy] = made.update(buffer_of(groups), 0).stream_rows[STREAM]
    assert found == {0.0: 3, 9.0: 1}


def test_bases_that_cannot_be_mixed_are_refused() -> None:
    with pytest.raises(ValueError, match="decides what is played, and so does dapo"):
        build(ArbitraryAEPOConfig(base=DAPOConfig(max_tries=3)), RUN)
    with pytest.raises(ValueError, match="needs aggregation=token-mean"):
        build(ArbitraryAEPOConfig(base=DrGRPOConfig()), RUN)
    build(ArbitraryAEPOConfig(base=DrGRPOConfig(), mix="append"), RUN)
    assert Thermostat(0.5, 1.2, 0.8).temperature(0.5) == 1.2


def test_heated_tokens_are_scored_under_their_temperature(model: Path, tmp_path: Path) -> None:
    """A run's episodes, and the proof of its update."""
    made = trainer(config(model, "algorithm={type: aepo_arbitrary, high: 1.5, target: 99}"), tmp_path / "run")
    side, seen = made.sides[0], []
    verify = side.verify
    side.verify = lambda agreement: (seen.append(agreement), verify(agreement))[1]  # type: ignore[method-assign, func-returns-value]
    take = side.take

    def spy(groups: Any, update: int) -> None:
        batch = layout(groups, version=update)
        hot = torch.tensor([t.sample >= 4 for group in groups for t in group.trajectories])[batch.trajectory]
        assert hot.any()
        assert batch.temperatures is not None
        mask = batch.action_mask
        assert (batch.temperatures[hot][mask[hot]] == 1.5).all()
        assert not batch.temperatures[~hot].any()
        with torch.no_grad():
            scored = side.policy.score(batch).logprobs
        torch.testing.assert_close(scored[mask], batch.behaviour_logprobs[mask], atol=1e-4, rtol=0)
        take(groups, update)

    side.take = spy  # type: ignore[method-assign]
    made.step()
    assert seen[0].num_tokens
    assert seen[0].max_abs < 1e-4


def test_a_shard_is_told_the_temperature() -> None:
    shards = SimpleNamespace(connections=[object()])
    collector = SimpleNamespace(shards=shards, clock=Clock(), grader=None)
    rollouts = ShardedRollouts(collector, 3, None)  # type: ignore[arg-type]
    rollouts.start(task(0), 4, 1.5)
    rollouts.start(task(0), 5)
    told = [command.job for command in rollouts._commands[0] if isinstance(command, Start)]
    assert [(job.sample, job.key, job.temperature) for job in told] == [(4, 3, 1.5), (5, 3, None)]


def test_a_worlds_own_wish_comes_first() -> None:
    assert Wishes.of({"sampling": {"temperature": 0.3}}, 1.2).temperature == 0.3
    assert Wishes.of({"sampling": {"max_tokens": 3}}, 1.2) == Wishes(1.2, 3)
    assert Wishes.of({}).temperature is None
