"""The decoupled objective for episodes that earlier weights played: values, gradients, and what it reduces to."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.algorithms.fakes import BigramPolicy
from turnwise.algorithms.aepo_arbitrary import ArbitraryAEPOConfig
from turnwise.algorithms.arpo import ARPOConfig
from turnwise.algorithms.common import TruncatedImportance
from turnwise.algorithms.counterfactual import CounterfactualConfig
from turnwise.algorithms.dynamic_sampling import DynamicSampling
from turnwise.algorithms.grpo import GRPOConfig
from turnwise.algorithms.gspo import GSPOConfig
from turnwise.algorithms.registry import build
from turnwise.algorithms.spear import SPEARConfig
from turnwise.algorithms.stale import ready_for_stale
from turnwise.learning.learner import shaped_rewards, stream_loss
from turnwise.learning.metrics import Tally
from turnwise.learning.parts import UpdateContext
from turnwise.learning.planning import GroupPlanner
from turnwise.learning.primitives import Counts
from turnwise.learning.recipe import Recipe
from turnwise.learning.settings import RunInfo, StaleSettings
from turnwise.replay.batch import TokenBatch, layout
from turnwise.trajectory import Group, Task, Trajectory, Turn

MASK = torch.tensor([[False, True, True, True, False], [False, False, True, True, True]])
SAMPLED = torch.tensor([[0.0, -1.2, -0.3, -2.0, 0.0], [0.0, 0.0, -0.7, -1.1, -0.4]])  # nats
START = torch.tensor([[0.0, -0.3, -0.5, -2.1, 0.0], [0.0, 0.0, -0.2, -3.0, -0.5]])
NOW = torch.tensor([[0.0, -0.2, -0.1, -2.4, 0.0], [0.0, 0.0, -0.6, -2.9, -0.5]])
ADVANTAGES = torch.tensor([[0.0, 1.0, 1.0, 1.0, 0.0], [0.0, 0.0, -0.5, -0.5, -0.5]])


def info(**stale: Any) -> RunInfo:
    return RunInfo(10, 4, ahead=1, stale=StaleSettings(**{"correction": "decoupled", **stale}))


def batch(sampled: Tensor = SAMPLED, start: Tensor | None = START) -> TokenBatch:
    turns = torch.where(MASK, 0, -1)
    one = torch.ones(2, dtype=torch.int64)
    return TokenBatch(
        tokens=torch.ones(2, 5, dtype=torch.int64),
        action_mask=MASK,
        turn_index=turns,
        lengths=5 * one,
        trajectory=torch.arange(2),
        group=0 * one,
        first_turn=0 * one,
        num_turns=one,
        behaviour_logprobs=sampled,
        behaviour_entropies=torch.zeros(2, 5),
        staleness=one,
        weight=torch.ones(2),
        proximal_logprobs=start,
        advantages=ADVANTAGES,
    )


def loss_of(recipe: Recipe, rows: TokenBatch, now: Tensor = NOW) -> tuple[float, Tensor]:
    """The loss of the fresh stream and its gradient by the log-probs, [2, 5]."""
    logprobs = now.clone().requires_grad_()
    counts = Counts.of(MASK, rows.turn_index)
    ctx = UpdateContext(0, rows, logprobs, None, counts, recipe["fresh"].aggregation)
    loss = stream_loss(recipe["fresh"], ctx, Tally())
    loss.backward()  # type: ignore[no-untyped-call]
    assert logprobs.grad is not None
    return float(loss.detach()), logprobs.grad


def written_out(weights: Tensor) -> tuple[float, Tensor]:
    """Equation 5 of AReaL with these weights: minus the mean of w * min(r A, clip(r, 0.8, 1.2) A) over tokens."""
    now = NOW.clone().requires_grad_()
    ratio = torch.exp(now - START)
    kept = torch.minimum(ratio * ADVANTAGES, torch.clamp(ratio, 0.8, 1.2) * ADVANTAGES)
    loss = -(weights * kept)[MASK].sum() / 6
    loss.backward()  # type: ignore[no-untyped-call]
    assert now.grad is not None
    return float(loss.detach()), now.grad


@pytest.mark.parametrize(
    ("stale", "change"),
    [
        ({}, lambda w: w.clamp(max=2.0)),
        ({"cap": 1.0}, lambda w: w.clamp(max=1.0)),
        ({"cap": None}, lambda w: w),
        ({"beyond": "drop"}, lambda w: torch.where(w > 2.0, 0.0, w)),
    ],
)
def test_loss_and_gradient_are_those_of_the_equation(stale: dict[str, Any], change: Any) -> None:
    weights = torch.exp(START - SAMPLED)  # e^0.9 = 2.46 is above 2
    assert (weights[MASK] > 2.0).sum() == 1
    recipe = build(GRPOConfig(kl_coef=0.0, dual_clip=None), info(**stale))
    loss, gradient = loss_of(recipe, batch())
    expected, its_gradient = written_out(change(weights))
    assert loss == pytest.approx(expected, abs=1e-6)
    torch.testing.assert_close(gradient, its_gradient)
    assert gradient[~MASK].eq(0).all()


def test_a_token_is_worked_out_by_hand() -> None:
    """Row 0, token 1: w = e^0.9 = 2.4596, capped at 2; r = e^0.1 = 1.1052; its gradient is -2 * 1.1052 * 1 / 6."""
    _, gradient = loss_of(build(GRPOConfig(kl_coef=0.0), info()), batch())
    assert float(gradient[0, 1]) == pytest.approx(-2 * 1.10517 / 6, rel=1e-5)
    assert float(gradient[0, 2]) == 0.0  # r = e^0.4 is clipped


@pytest.mark.parametrize(
    "config",
    [GRPOConfig(), GRPOConfig(clip_high=0.3), GSPOConfig(clip_low=0.9, clip_high=9.0), SPEARConfig(fresh_clip=None)],
)
def test_where_nothing_is_stale_it_is_the_recipe_itself(config: Any) -> None:
    """Proximal and sampler are one policy: loss and gradient are those without the correction, to the bit."""
    plain, ready = (build(config.model_copy(), replace(info(), ahead=ahead)) for ahead in (0, 1))
    plain, ready = (_without_terms(recipe) for recipe in (plain, ready))
    corrected = loss_of(ready, batch(sampled=START))
    assert corrected[0] == loss_of(plain, batch(sampled=START, start=None))[0]
    assert torch.equal(corrected[1], loss_of(plain, batch(sampled=START, start=None))[1])
    assert not torch.equal(loss_of(ready, batch())[1], loss_of(plain, batch(start=None))[1])


def _without_terms(recipe: Recipe) -> Recipe:
    fresh = replace(recipe["fresh"], regularizers=())
    return replace(recipe, streams=(fresh, *recipe.streams[1:]))


def test_without_a_run_ahead_nothing_is_added() -> None:
    for config in (GRPOConfig(), SPEARConfig()):
        plain = build(config, replace(info(), ahead=0))
        assert not any("proximal" in stream.needs for stream in plain.streams)
        ready = build(config, info())
        assert [type(part).__name__ for part in ready["fresh"].weighters].count("TruncatedImportance") == 1
        assert all("proximal" not in stream.needs for stream in ready.streams if stream.name != "fresh")
    capped = build(SPEARConfig(), info(cap=3.0))["fresh"].weighters
    assert [part.cap for part in capped if isinstance(part, TruncatedImportance)] == [3.0], "once, on the whole"
    assert "proximal" not in build(GRPOConfig(), info(correction="none"))["fresh"].needs


class Own:
    """A planner from elsewhere."""

    inner: Any = None

    def plan(self, tasks: Any, rollouts: Any, spare: Any = ()) -> list[Trajectory]:
        return []


def test_only_planners_that_say_so_play_ahead() -> None:
    """Also inside or around another one; a part always keeps something."""
    made = build(GRPOConfig(), replace(info(), ahead=0))
    for remembers, error in ((None, r"\(Own\) does not say .*remembers = False"), (True, r"\(Own\) keeps something")):
        planner, around = Own(), Own()
        around.inner, around.remembers = planner, False  # type: ignore[attr-defined]
        if remembers is not None:
            planner.remembers = remembers  # type: ignore[attr-defined]
        for each in (planner, around, DynamicSampling(planner, 2)):
            with pytest.raises(ValueError, match=error):
                ready_for_stale(replace(made, planner=each), info(), GRPOConfig())
        planner.remembers = False  # type: ignore[attr-defined]
        ready_for_stale(replace(made, planner=DynamicSampling(around, 2)), info(), GRPOConfig())
    ready_for_stale(replace(made, planner=DynamicSampling(GroupPlanner(4), 2)), info(), GRPOConfig())
    for config in (CounterfactualConfig(), ARPOConfig()):
        build(config, replace(info(), group_size=8))
    with pytest.raises(ValueError, match="HeatedAttempts"):
        build(ArbitraryAEPOConfig(), info())


def test_capped_and_dropped_tokens_are_counted() -> None:
    for stale, name in (({}, "capped_share"), ({"beyond": "drop"}, "dropped_share")):
        recipe = build(GRPOConfig(kl_coef=0.0), info(**stale))
        loss_of(recipe, batch())
        assert recipe.acted()[f"TruncatedImportance/{name}"] == pytest.approx(1 / 6)


def test_a_bonus_is_of_the_update_that_learns() -> None:
    """Not of the version that played: under it the course would lag behind."""
    recipe = build(SPEARConfig(bonus_updates=4, bonus_per_turn=1.0), info())
    turn = Turn("", torch.tensor([4]).numpy(), False, torch.tensor([1]).numpy(), *_floats(), "", "", True, 0.0)
    task = Task("fake", "train", 0, "task")
    stale = Trajectory("e", task, 0, 0, (turn,), "terminated", None, 0.0, policy_version=1)
    bonuses = [
        shaped_rewards(recipe, info(), (stale,), BigramPolicy(), update).total(0)
        for update in (1, 2, 4)  # type: ignore[arg-type]
    ]
    assert bonuses[0] > bonuses[1] > bonuses[2] == 0.0
    assert int(layout([Group(task, (stale,))], version=2).staleness[0]) == 1


def _floats() -> tuple[Any, Any]:
    return torch.zeros(1).numpy(), torch.zeros(1).numpy()
