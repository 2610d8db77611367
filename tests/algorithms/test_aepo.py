"""AEPO's and ARPO's update: the balanced clip, entropy-aware credit, shared trunks, and what composes with them."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from tests.algorithms.fakes import TEN, BigramPolicy, buffer_of, groups, learner
from tests.algorithms.trees import ScriptedRollouts, task
from tests.golden.vectors import batch_of, context_of
from tests.learning.test_learner import drifted, gradient
from turnwise.algorithms.aepo import AEPOConfig, BalancedClip, EntropyAdvantage, entropy_factor
from turnwise.algorithms.arpo import ARPOConfig
from turnwise.algorithms.common import FreshGroups, PPOClip
from turnwise.algorithms.dapo import DAPOConfig
from turnwise.algorithms.dynamic_sampling import DynamicSampling
from turnwise.algorithms.epo import EntropyCorridor
from turnwise.algorithms.gigpo import GiGPOConfig, StepAdvantage
from turnwise.algorithms.grpo import GRPOConfig
from turnwise.algorithms.gspo import GSPOConfig
from turnwise.algorithms.kl_cov import KLCovConfig
from turnwise.algorithms.ppo import PPOConfig
from turnwise.algorithms.registry import build, resolve
from turnwise.algorithms.selfimitation import STREAM, SelfImitation, units
from turnwise.algorithms.spear import SPEARConfig
from turnwise.algorithms.tree import MONITOR, TreePlanner
from turnwise.algorithms.trunks import SharedTrunks, turn_owners
from turnwise.learning.learner import stream_loss
from turnwise.learning.metrics import Tally
from turnwise.learning.parts import Aggregation, Samples, Stream
from turnwise.learning.rewards import raw_rewards
from turnwise.learning.settings import RunInfo, Settings
from turnwise.replay.batch import layout
from turnwise.replay.buffer import TrajectoryBuffer
from turnwise.trajectory import Fork, Group, Trajectory, group_by_task

RUN = RunInfo(num_updates=10, group_size=4, rewards=TEN)
PLAIN = GRPOConfig(drop_uniform_groups=False)


@pytest.mark.parametrize("base", [PLAIN, DAPOConfig(), GiGPOConfig(), PPOConfig(), GSPOConfig()])
def test_neutral_settings_are_the_base(base: Settings) -> None:
    made = groups(BigramPolicy())
    expected = gradient(base, made)
    neutral = AEPOConfig(base=base, balanced_clip=False, entropy_advantage=0.0)
    torch.testing.assert_close(gradient(neutral, made), expected, rtol=1e-6, atol=1e-6)
    for shared in ("soft", "hard", "once"):  # nothing is shared here
        found = gradient(ARPOConfig(base=base, shared=shared), made)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def losses(advantage: float, log_ratios: list[float], clip: Any) -> tuple[Tensor, Tensor]:
    """Loss of each token, and its derivative by the token's log-prob."""
    logprobs = torch.tensor([log_ratios]).requires_grad_()
    mask = torch.ones(1, len(log_ratios), dtype=torch.bool)
    batch = batch_of(mask, advantages=torch.full(mask.shape, advantage))
    ctx, view = context_of(batch, logprobs, Aggregation("seq-mean-token-sum"))
    clip.prepare(view)
    recipe = replace(build(PLAIN, RUN)["fresh"], clip=clip, regularizers=(), aggregation=ctx.aggregation)
    total = stream_loss(recipe, ctx, Tally())
    return total.detach(), torch.autograd.grad(total, logprobs)[0][0]


def test_the_balanced_clip_keeps_the_gradient_above() -> None:
    """ln ratio -1, 0, 1, 2 with [0.8, 1.2] and c = 3; the value is PPO's in every case."""
    ratios = [-1.0, 0.0, 1.0, 2.0]
    plain = PPOClip(0.2, 0.2, 3.0)
    for advantage in (1.0, -2.0):
        value, expected = losses(advantage, ratios, plain)
        balanced, found = losses(advantage, ratios, BalancedClip(plain))
        torch.testing.assert_close(balanced, value)
        if advantage > 0:
            assert found.tolist() == pytest.approx([-math.exp(-1.0), -1.0, -1.2, -1.2])  # plain: 0 for the last two
            assert expected.tolist() == pytest.approx([-math.exp(-1.0), -1.0, 0.0, 0.0])
        else:
            torch.testing.assert_close(found, expected)
            assert found.tolist() == pytest.approx([0.0, 2.0, 2.0 * math.e, 0.0])


def test_the_clip_is_balanced_where_entropy_is_high() -> None:
    logprobs = torch.full((1, 4), 1.0).requires_grad_()
    mask = torch.ones(1, 4, dtype=torch.bool)
    batch = batch_of(mask, advantages=torch.ones(1, 4), behaviour_entropies=torch.tensor([[0.1, 0.4, 0.3, 0.2]]))
    ctx, view = context_of(batch, logprobs, Aggregation())
    clip = BalancedClip(PPOClip(0.2, 0.2, None), share=0.5)
    clip.prepare(view)
    recipe = replace(build(PLAIN, RUN)["fresh"], clip=clip, regularizers=())
    (found,) = torch.autograd.grad(stream_loss(recipe, ctx, Tally()), logprobs)
    assert found[0].tolist() == pytest.approx([0.0, -0.3, -0.3, 0.0])


def test_the_balanced_clip_matters_in_an_update() -> None:
    made = groups(BigramPolicy())
    on, off = (AEPOConfig(base=PLAIN, entropy_advantage=0.0, balanced_clip=flag) for flag in (True, False))
    assert (gradient(on, made) - gradient(off, made)).abs().max() > 1e-4
    one, two = (learner(build(config, RUN), drifted(BigramPolicy())) for config in (on, off))
    assert one.update(buffer_of(made), 0).policy_loss == pytest.approx(two.update(buffer_of(made), 0).policy_loss)


def test_unsure_tokens_answer_for_more() -> None:
    mask = torch.tensor([[True, True, True, False]])
    entropy = torch.tensor([[1.0, 2.0, 3.0, 99.0]])
    assert entropy_factor(entropy, mask, 0.2)[0, :3].tolist() == pytest.approx([0.8, 1.0, 1.2])  # std of 1, 2, 3: 1
    assert entropy_factor(entropy, mask, 0.0)[0, :3].tolist() == [1.0] * 3
    equal = torch.full((1, 4), 0.7)
    assert entropy_factor(equal, mask, 0.2).tolist() == [[1.0] * 4]
    lone = torch.tensor([[False, True, False, False]])
    assert entropy_factor(entropy, lone, 0.2)[0, 1] == 1.0
    assert torch.isfinite(entropy_factor(entropy, torch.zeros_like(mask), 0.2)).all()
    batch = batch_of(mask, advantages=torch.tensor([[-1.0, 2.0, 3.0, 0.0]]), behaviour_entropies=entropy)
    found = EntropyAdvantage(0.2).modify(Stream(Samples((), raw_rewards([])), batch))
    assert found[0].tolist() == pytest.approx([-0.8, 2.0, 3.6, 0.0])


def forked(windowed: bool) -> list[Trajectory]:
    """A root of four turns; a child that left it after two, its own child after three, and a stranger."""
    (group,) = groups(BigramPolicy(), num_groups=1, size=4, num_turns=4, windowed=windowed)
    rewarded = (
        replace(t, turns=(*t.turns[:-1], replace(t.turns[-1], reward=n * n / 2)))
        for n, t in enumerate(group.trajectories)
    )
    root, child, grandchild, stranger = rewarded
    child = replace(child, turns=(*root.turns[:2], *child.turns[2:]), fork=Fork(root.episode, 2))
    turns = (*child.turns[:3], *grandchild.turns[3:])
    return [root, child, replace(grandchild, turns=turns, fork=Fork(child.episode, 3)), stranger]


def test_turns_know_whose_they_are() -> None:
    root, child, grandchild, stranger = forked(False)
    assert turn_owners([root, child, grandchild, stranger]) == [
        [0, 1, 2, 3],
        [0, 1, 4, 5],
        [0, 1, 4, 6],
        [7, 8, 9, 10],
    ]
    assert turn_owners([grandchild, root])[0][:3] != turn_owners([grandchild, root])[1][:3]  # its parent is unknown
    assert [t.num_sampled_tokens for t in (root, child, grandchild, stranger)] == [8, 4, 2, 8]


@pytest.mark.parametrize("windowed", [False, True])
def test_shared_tokens_share_their_credit(windowed: bool) -> None:
    members = forked(windowed)
    group = Group(members[0].task, tuple(members))
    batch = layout([group])
    own = torch.tensor([1.0, 4.0, -2.0, 8.0])
    batch = batch.with_columns(advantages=own[batch.trajectory].unsqueeze(1) * batch.action_mask)
    stream = Stream(Samples((group,), raw_rewards(members)), batch)
    for credit, first, third in (("hard", 1.0, 1.0), ("once", 1.0 / 3, 0.5)):
        found = SharedTrunks(credit).modify(stream)  # type: ignore[arg-type]
        assert (found[~batch.action_mask] == 0).all()
        for trajectory, turn, expected in [
            (0, 0, first), (1, 1, first), (2, 0, first),  # (1 + 4 - 2) / 3
            (1, 2, third), (2, 2, third),  # (4 - 2) / 2
            (0, 2, 1.0), (1, 3, 4.0), (2, 3, -2.0), (3, 0, 8.0),
        ]:  # fmt: skip
            place = batch.action_mask & (batch.turn_index == turn) & (batch.trajectory == trajectory).unsqueeze(1)
            assert found[place].tolist() == pytest.approx([expected, expected])
    every = SharedTrunks("hard").modify(stream)
    torch.testing.assert_close(every.sum(), batch.advantages.sum() if batch.advantages is not None else None)


def test_soft_and_hard_credit_have_the_same_gradient_on_policy() -> None:
    """Copies of a token have the same log-prob: only their sum counts, as long as no clip decides by sign."""
    members = forked(False)
    made = [Group(members[0].task, tuple(members))]

    def found(shared: str) -> Tensor:
        config = ARPOConfig(base=PLAIN, shared=shared)
        return gradient(config, made, BigramPolicy())

    torch.testing.assert_close(found("hard"), found("soft"), rtol=1e-5, atol=1e-6)
    assert (found("once") - found("soft")).abs().max() > 1e-3


COMPOSED = {
    "type": "epo",
    "base": {
        "type": "spear",
        "fresh_clip": None,
        "base": {"type": "aepo", "log_vocabulary": 1.0, "base": {"type": "gigpo"}},
    },
}


def test_aepo_feeds_spear_under_epo_on_gigpo_from_configuration_alone() -> None:
    config = resolve("epo").config.model_validate(COMPOSED)
    recipe = build(config, RUN)
    fresh, replay = recipe["fresh"], recipe[STREAM]
    assert isinstance(recipe.planner, TreePlanner)
    assert isinstance(recipe.composer, SelfImitation)
    assert isinstance(recipe.composer.inner, FreshGroups)
    assert [type(part) for part in fresh.modifiers] == [StepAdvantage, EntropyAdvantage]
    assert isinstance(fresh.clip, BalancedClip)
    assert isinstance(replay.clip, BalancedClip)
    assert replay.clip is not fresh.clip
    assert EntropyCorridor in [type(part) for part, _ in fresh.regularizers]
    assert replay.regularizers == ()

    policy = BigramPolicy()
    made, buffer = learner(recipe, policy), TrajectoryBuffer(recipe.keep_updates)
    for update in range(3):
        rollouts = ScriptedRollouts(lengths=(3, 5, 4))
        played = recipe.planner.plan([task(i) for i in range(4)], rollouts)
        played = [replace(t, policy_version=update, episode=f"{t.episode}-{update}") for t in played]
        assert any(t.fork for t in played)
        assert any(t.sample == MONITOR for t in played)
        buffer.add(group_by_task(played), update)
        metrics = made.update(buffer, update)
        assert all(math.isfinite(value) for value in metrics.as_dict().values())
        assert update or STREAM not in metrics.stream_rows
    assert metrics.stream_rows[STREAM] > 0
    assert all(unit.trajectory.sample != MONITOR for unit in units(buffer))


def test_no_part_sees_what_was_only_looked_at() -> None:
    """Dr.BoT keeps the group whose returns differ most: a look that won would make a group of failures the widest."""
    first, second = groups(BigramPolicy(), num_groups=2, size=5)

    def earning(group: Group, *rewards: float) -> Group:
        made = (
            replace(t, sample=n - 1, turns=tuple(replace(turn, reward=reward / len(t.turns)) for turn in t.turns))
            for n, (t, reward) in enumerate(zip(group.trajectories, rewards, strict=True))
        )
        return Group(group.task, tuple(made))

    played = [earning(first, 9.0, 0.0, 0.0, 0.0, 0.0), earning(second, 0.0, 0.0, 1.0, 0.0, 0.0)]
    assert played[0].trajectories[0].sample == MONITOR
    config = resolve("drbot").config.model_validate({"base": {"type": "aepo"}, "group_share": 0.5})
    without = [Group(group.task, group.trajectories[1:]) for group in played]
    metrics, expected = (
        learner(build(config, RUN), BigramPolicy()).update(buffer_of(made), 0) for made in (played, without)
    )
    assert metrics == expected
    assert metrics.num_trajectories == 8
    assert metrics.advantage_std > 0.1


def test_the_order_of_modifiers_is_free() -> None:
    for config in (
        AEPOConfig(base=SPEARConfig(fresh_clip=None)),
        SPEARConfig(base=AEPOConfig()),
        ARPOConfig(base=DAPOConfig()),
    ):
        made = build(config, RUN)
        assert made.planner is not None
        assert isinstance(made.planner, TreePlanner | DynamicSampling)
    remembering: dict[str, Any] = {"balance": False, "pace": "lockstep", "origin": "own", "forget": False}
    state = build(AEPOConfig(base=SPEARConfig(), **remembering), RUN).composer.state_dict()
    assert set(state["inner"]) == {"own", "inner"}


def test_bases_without_an_upper_clip_are_refused() -> None:
    for base in (GSPOConfig(), KLCovConfig()):
        with pytest.raises(ValueError, match="upper bound of PPO's clip"):
            build(AEPOConfig(base=base), RUN)
        assert build(AEPOConfig(base=base, balanced_clip=False), RUN).name == "aepo"


def in_docs(name: str) -> list[dict[str, Any]]:
    """The settings that a page of docs/algorithms writes out."""
    page = (Path(__file__).parents[2] / "docs" / "algorithms" / f"{name}.md").read_text()
    return [yaml.safe_load(block) for block in re.findall(r"^```yaml\n(\{type.*?)```", page, re.DOTALL | re.MULTILINE)]


def test_released_forms_are_as_the_docs_write_them() -> None:
    (spear,) = in_docs("spear")
    composed, aepo = in_docs("aepo")
    for settings in (spear, composed, aepo):
        made = build(resolve(settings["type"]).config.model_validate(settings), RUN)
        assert made.name == settings["type"]
    released = resolve("aepo").config.model_validate(aepo)
    assert isinstance(released, AEPOConfig)
    assert (released.form, released.forget, released.entropy_advantage) == ("released", False, 0.0)
    assert build(resolve("spear").config.model_validate(spear), RUN).phases == "sequential"


@pytest.mark.slow
def test_a_composed_run_resumes_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trees, replay and EPO on GiGPO in Household: six updates are four, a crash, and two."""
    from tests.training.tiny import StopAfter, StopError, timeless
    from turnwise.config.files import load_config
    from turnwise.jobs import resume, train

    monkeypatch.setenv("TURNWISE_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "composed.yaml"
    file.write_text(yaml.safe_dump({"extends": "smoke", "checkpoint_every": 1, "algorithm": COMPOSED}))
    train(load_config(str(file), []), tmp_path / "whole")
    with pytest.raises(StopError):
        train(load_config(str(file), []), tmp_path / "broken", StopAfter(4))
    resume(tmp_path / "broken")
    whole = timeless(tmp_path / "whole")
    assert timeless(tmp_path / "broken") == whole
    assert sum(line.get("stream_rows/replay", 0) for line in whole) > 0


def test_the_smallest_share_is_one_token() -> None:
    batch = batch_of(torch.ones(1, 6, dtype=torch.bool))
    entropies = torch.tensor([[0.1, 0.5, 0.3, 0.9, 0.2, 0.4]])
    batch = batch.with_columns(behaviour_entropies=entropies)
    part = BalancedClip(PPOClip(0.2, 0.2, None), share=0.01)
    part.prepare(context_of(batch, torch.zeros(1, 6))[1])
    assert part.chosen.tolist() == [[False, False, False, True, False, False]]


def test_tokens_that_are_not_chosen_keep_the_plain_bound() -> None:
    """Ratio 1.5 everywhere, bound 1.2, advantage 1: the loss is -1.2 on each token, chosen or not."""
    batch = batch_of(torch.ones(1, 2, dtype=torch.bool), advantages=torch.ones(1, 2))
    batch = batch.with_columns(behaviour_entropies=torch.tensor([[0.1, 0.5]]))
    logprobs = torch.full((1, 2), math.log(1.5)).requires_grad_()
    ctx, view = context_of(batch, logprobs)
    part = BalancedClip(PPOClip(0.2, 0.2, None), share=0.5)
    part.prepare(view)
    found = part.surrogate(ctx)
    assert torch.as_tensor(found.high).tolist() == [pytest.approx([1.2, 1.2])]


def test_changed_signs_are_counted() -> None:
    """Entropies 0, 1, 1, 2: z is -1.22, 0, 0, 1.22, so that a weight of 5 flips the first of four."""
    batch = batch_of(torch.ones(1, 4, dtype=torch.bool), advantages=torch.ones(1, 4))
    batch = batch.with_columns(behaviour_entropies=torch.tensor([[0.0, 1.0, 1.0, 2.0]]))
    part = EntropyAdvantage(5.0)
    part.modify(Stream(Samples((), raw_rewards(())), batch))
    assert part.acted() == {"flipped_share": 0.25}


def test_trunks_of_unequal_episodes_are_shared() -> None:
    """The child left after one of the parent's three turns and took one more."""
    (group,) = groups(BigramPolicy(), num_groups=1, size=2, num_turns=3)
    parent, other = group.trajectories
    child = replace(other, turns=(parent.turns[0], other.turns[1]), fork=Fork(parent.episode, 1))
    made = Group(group.task, (child, parent))
    batch = layout((made,))
    own = torch.tensor([3.0, -1.0])
    batch = batch.with_columns(advantages=own[batch.trajectory].unsqueeze(1) * batch.action_mask)
    found = SharedTrunks("hard").modify(Stream(Samples((made,), raw_rewards(made.trajectories)), batch))
    per_turn = [
        [float(found[row][batch.turn_index[row] == turn].unique()) for turn in range(turns)]
        for row, turns in enumerate((2, 3))
    ]
    assert per_turn == [[1.0, 3.0], [1.0, -1.0, -1.0]]
