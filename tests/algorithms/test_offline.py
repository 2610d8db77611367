"""Stored episodes as the stream, weighted cloning, and OREO's losses over rows and minibatches."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.algorithms.fakes import TEN, BigramPolicy, Sampler, buffer_of, episode, groups, learner, task
from tests.learning.test_learner import gradient
from turnwise.algorithms.bellman import SoftBellman
from turnwise.algorithms.composing import ComposerAround
from turnwise.algorithms.offline import StoredGroups
from turnwise.algorithms.oreo import OREOConfig
from turnwise.algorithms.registry import build
from turnwise.algorithms.weighted_cloning import WeightedCloningConfig
from turnwise.learning.parts import Samples
from turnwise.learning.planning import NoRollouts
from turnwise.learning.rewards import RewardTable
from turnwise.learning.settings import RunInfo
from turnwise.replay.buffer import TrajectoryBuffer
from turnwise.replay.store import TrajectoryWriter
from turnwise.replay.stored import FILE
from turnwise.trajectory import Fork, Group, Trajectory

RUN = RunInfo(num_updates=10, group_size=4, rewards=TEN, vocabulary=9)
NOTHING = Samples((), RewardTable((), ()))


def stored(path: Path) -> list[Trajectory]:
    """Twelve episodes in a file of three updates, and three that are no use."""
    made = groups(BigramPolicy(), num_turns=3)
    sampler = Sampler.of(BigramPolicy(), np.random.default_rng(0))
    useless = [
        replace(episode(sampler, index=7), end="error"),
        replace(episode(sampler, index=8), sample=-1),
        episode(sampler, index=9, num_actions=0),
    ]
    writer = TrajectoryWriter(path)
    for update, group in enumerate(made):
        writer.append(update, [*group.trajectories, useless[update]])
    return [t for group in made for t in group.trajectories]


def offline(path: Path, **settings: Any) -> tuple[StoredGroups, list[Trajectory]]:
    whole = stored(path / FILE)
    made = build(WeightedCloningConfig(episodes=str(path), **settings), RUN)
    assert made.planner == NoRollouts()
    assert isinstance(made.composer, StoredGroups)
    return made.composer, whole


def test_every_stored_episode_comes_once_before_any_comes_again(tmp_path: Path) -> None:
    composer, whole = offline(tmp_path, batch=5)
    names = Counter(t.episode for update in range(12) for t in composer.chosen(update))
    assert names == Counter({t.episode: 5 for t in whole})
    first = [t.episode for update in range(3) for t in composer.chosen(update)][:12]
    assert sorted(first) == sorted(t.episode for t in whole)
    assert first != [t.episode for t in whole]

    def anew(batch: int, seed: int = 0) -> list[list[str]]:
        made = build(WeightedCloningConfig(episodes=str(tmp_path / FILE), batch=batch), replace(RUN, seed=seed))
        assert isinstance(made.composer, StoredGroups)
        return [[t.episode for t in made.composer.chosen(update)] for update in (7, 3)]

    assert anew(5)[0] == [t.episode for t in composer.chosen(7)]
    assert anew(5, seed=1) != anew(5)
    assert [len(set(names)) for names in anew(100)] == [12, 12]


def test_a_file_that_has_grown_gives_a_resumed_run_the_same_episodes(tmp_path: Path) -> None:
    composer, whole = offline(tmp_path, batch=5)
    assert composer.state_dict() == {}, "nothing was learned yet"
    before = [[t.episode for t in composer.chosen(update)] for update in range(6)]
    state = json.loads(json.dumps(composer.state_dict()))
    sampler = Sampler.of(BigramPolicy(), np.random.default_rng(1))
    TrajectoryWriter(tmp_path / FILE).append(3, [episode(sampler, index=n, num_turns=2) for n in range(20, 25)])

    def anew(state: dict[str, Any]) -> StoredGroups:
        made = build(WeightedCloningConfig(episodes=str(tmp_path), batch=5), RUN).composer
        assert isinstance(made, StoredGroups)
        made.load_state_dict(state)
        return made

    resumed = anew(state)
    assert [[t.episode for t in resumed.chosen(update)] for update in range(6)] == before
    assert resumed.state_dict() == state
    assert {t.episode for update in range(4) for t in anew({}).chosen(update)} > {t.episode for t in whole}
    composer.load_state_dict(state)
    assert [[t.episode for t in composer.chosen(update)] for update in range(6)] == before
    (tmp_path / FILE).unlink()
    TrajectoryWriter(tmp_path / FILE).append(0, [episode(sampler, index=n, num_turns=2) for n in range(30)])
    with pytest.raises(ValueError, match="no longer begins with the 12 episodes that this run learns from"):
        anew(state).chosen(6)


def test_the_stream_has_shaped_rewards_and_is_old(tmp_path: Path) -> None:
    composer, whole = offline(tmp_path)
    (stream,) = composer.compose(2, NOTHING, TrajectoryBuffer()).streams
    played = {t.episode: t for t in whole}
    assert len(stream.samples.trajectories) == 12
    for place, trajectory in enumerate(stream.samples.trajectories):
        turns = played[trajectory.episode].turns
        expected = sum(10.0 * turn.reward - 0.1 * (not turn.valid) for turn in turns)
        assert stream.samples.rewards.total(place) == pytest.approx(expected)
    assert (stream.batch.staleness == 1).all()
    assert {len(g.trajectories) for g in stream.samples.groups} == {4}


def test_what_an_episode_was_given_to_start_from_is_not_learned(tmp_path: Path) -> None:
    (group,) = groups(BigramPolicy(), num_groups=1, num_turns=3)
    fork = Fork("an earlier one", 2, stored=True)
    TrajectoryWriter(tmp_path / FILE).append(0, [replace(t, fork=fork) for t in group.trajectories])
    composer = build(OREOConfig(episodes=str(tmp_path)), RUN).composer
    assert isinstance(composer, StoredGroups)
    assert [len(t.turns) for t in composer.chosen(0)] == [1] * 4


def test_files_that_teach_nothing_are_refused(tmp_path: Path) -> None:
    nowhere = build(OREOConfig(episodes=str(tmp_path / "nowhere")), RUN).composer
    assert isinstance(nowhere, StoredGroups)
    for asked in (ComposerAround(nowhere).check_sources, lambda: nowhere.chosen(0)):
        with pytest.raises(ValueError, match=r"is not there; expected the folder of a run, or its trajectories.jsonl"):
            asked()
    sampler = Sampler.of(BigramPolicy(), np.random.default_rng(0))
    TrajectoryWriter(tmp_path / FILE).append(0, [episode(sampler, num_actions=0)])
    empty = build(OREOConfig(episodes=str(tmp_path)), RUN).composer
    assert isinstance(empty, StoredGroups)
    with pytest.raises(ValueError, match="holds no sound episode with a reply of a model"):
        empty.chosen(0)
    other = tmp_path / "other"
    other.mkdir()
    TrajectoryWriter(other / FILE).append(0, [episode(sampler)])
    composer = build(OREOConfig(episodes=str(other)), replace(RUN, vocabulary=2)).composer
    assert isinstance(composer, StoredGroups)
    with pytest.raises(ValueError, match=r"and the model knows 2 tokens: these episodes are of another tokenizer"):
        composer.chosen(0)
    for wrong in ({"prompt_ids": np.array([1, 9], np.int32)}, {"action_ids": np.array([-1], np.int32)}):
        place = tmp_path / next(iter(wrong))
        place.mkdir()
        sound = episode(sampler)
        odd = replace(sound, turns=(*sound.turns[:-1], replace(sound.turns[-1], **wrong)))
        TrajectoryWriter(place / FILE).append(0, [sound, odd])
        made = build(OREOConfig(episodes=str(place)), RUN).composer
        assert isinstance(made, StoredGroups)
        with pytest.raises(ValueError, match=r"holds token (9|-1), and the model knows 9 tokens"):
            made.chosen(0)
    with pytest.raises(ValueError, match="batch counts stored episodes"):
        OREOConfig(batch=3)


def likelihood(policy: BigramPolicy, made: Trajectory) -> float:
    """Mean log-prob of an episode's action tokens."""
    table, found = policy.table.detach().log_softmax(-1), []
    for turn in made.turns:
        context = [int(turn.prompt_ids[-1]), *turn.action_ids[:-1].tolist()]
        found += table[context, torch.from_numpy(turn.action_ids).long()].tolist()
    return float(np.mean(found))


def test_weights_grow_with_the_return() -> None:
    """Returns of 0 and 1 success around 0.25, with a temperature of 0.5: exp(-0.5) and exp(1.5); the cap is 4."""
    sampler = Sampler.of(BigramPolicy(), np.random.default_rng(3))
    members = [
        replace(t, turns=(replace(t.turns[0], reward=float(n == 0), valid=True),))
        for n, t in enumerate(episode(sampler, sample=n, num_turns=1) for n in range(4))
    ]
    group = Group(task(), tuple(members))
    seen: list[torch.Tensor] = []
    policy = BigramPolicy()
    made = learner(build(WeightedCloningConfig(cap=4.0), RUN), policy, RUN)
    part = made.recipe["fresh"].objectives[0][0]
    before = [likelihood(policy, t) for t in members]
    original = part.loss
    part.loss = lambda ctx: (seen.append(original(ctx)), seen[-1])[1]  # type: ignore[method-assign]
    metrics = made.update(buffer_of([group]), 0)
    weights = [4.0, *[float(np.exp(-0.5))] * 3]
    assert seen[0].item() == pytest.approx(-sum(w * x for w, x in zip(weights, before, strict=True)) / 4, rel=1e-4)
    assert metrics.mechanisms["WeightedLikelihood/capped_share"] == 0.25
    gains = [likelihood(policy, t) - x for t, x in zip(members, before, strict=True)]
    assert gains[0] > 0


def test_a_high_temperature_clones_all_alike() -> None:
    made = groups(BigramPolicy())
    found = gradient(WeightedCloningConfig(temperature=1e9), made, BigramPolicy(), RUN)
    low = gradient(WeightedCloningConfig(temperature=0.2), made, BigramPolicy(), RUN)
    policy = BigramPolicy()
    tokens = [
        (int(before), int(token))
        for g in made
        for t in g.trajectories
        for turn in t.turns
        for before, token in zip([turn.prompt_ids[-1], *turn.action_ids[:-1]], turn.action_ids, strict=True)
    ]
    table = policy.table.log_softmax(-1)
    expected = -torch.stack([table[before, token] for before, token in tokens]).mean()
    (plain,) = torch.autograd.grad(expected, policy.table)
    torch.testing.assert_close(found, plain.flatten().reshape(found.shape), rtol=1e-4, atol=1e-6)
    assert not torch.allclose(low, found, rtol=0.1)


@pytest.mark.parametrize("level", ["turn", "token"])
@pytest.mark.parametrize("windowed", [False, True])
def test_sums_run_to_the_end_of_the_episode(level: str, windowed: bool) -> None:
    """The policy's gradient is that of the definition, computed episode by episode with V = 0 at the start."""
    made = groups(BigramPolicy(), windowed=windowed)
    config = OREOConfig(level=level, kl_coef=0.0, beta=0.3)  # type: ignore[arg-type]
    found = gradient(config, made, BigramPolicy(), RUN)
    policy, losses = BigramPolicy(), []
    table, reference = policy.table.log_softmax(-1), policy.frozen.log_softmax(-1)
    for t in (t for g in made for t in g.trajectories):
        ratios = [
            [
                table[int(b), int(a)] - reference[int(b), int(a)]
                for b, a in zip([turn.prompt_ids[-1], *turn.action_ids[:-1]], turn.action_ids, strict=True)
            ]
            for turn in t.turns
        ]
        steps = [sum(turn) for turn in ratios] if level == "turn" else [d for turn in ratios for d in turn]
        value = t.total_reward - 0.01 * sum(not turn.valid for turn in t.turns)
        rest = [sum(float(x.detach()) for x in steps[n + 1 :]) for n in range(len(steps))]
        losses.append(sum((0.3 * (d + after) - value) ** 2 for d, after in zip(steps, rest, strict=True)) / len(steps))
    (expected,) = torch.autograd.grad(sum(losses) / len(losses), policy.table)
    torch.testing.assert_close(found, expected.reshape(found.shape), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("microbatch", [8, 10_000])
def test_microbatches_share_the_losses(microbatch: int) -> None:
    made = groups(BigramPolicy(), windowed=True)
    policy = BigramPolicy()
    own = learner(build(OREOConfig(), RUN), policy, RUN, microbatch_tokens=microbatch)
    own.update(buffer_of(made), 0)
    other = BigramPolicy()
    learner(build(OREOConfig(), RUN), other, RUN).update(buffer_of(made), 0)
    torch.testing.assert_close(policy.table, other.table, rtol=1e-4, atol=1e-5)


def test_values_learn_what_episodes_return() -> None:
    made = groups(BigramPolicy(), num_turns=2)
    own = learner(build(OREOConfig(beta=1e-6, kl_coef=0.0, value_lr=0.01), RUN), BigramPolicy(), RUN, lr=1e-9)
    losses = [own.update(buffer_of(made), 0).regularizers["SoftBellman"] for _ in range(100)]
    assert losses[-1] < 0.9 * losses[0]
    part = own.recipe["fresh"].objectives[0][0]
    assert isinstance(part, SoftBellman)
    assert part.module is not None
