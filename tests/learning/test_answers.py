"""A policy's belief in an answer before each turn: it is what the policy says of these tokens, one after another."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from tests.algorithms.fakes import BigramPolicy, buffer_of, groups, learner
from turnwise.algorithms.epo import EPOConfig
from turnwise.algorithms.grpo import GRPOConfig
from turnwise.algorithms.igpo import IGPOConfig
from turnwise.algorithms.registry import build
from turnwise.learning.answers import Target, beliefs
from turnwise.learning.learner import Learner
from turnwise.learning.parts import Stream
from turnwise.learning.settings import RunInfo
from turnwise.replay.batch import TokenBatch
from turnwise.trajectory import Group, Trajectory


class Asked(BigramPolicy):
    """A bigram policy that keeps what it was asked, and whether gradients were wanted."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[list[int], int]] = []
        self.asking, self.graded = True, False  # until credit is given

    def score(self, batch: TokenBatch, **asked: Any) -> Any:
        for row, length, mask in zip(batch.tokens, batch.lengths, batch.action_mask, strict=True):
            if self.asking:
                self.rows.append((row[:length].tolist(), int(mask.sum())))
                self.graded |= torch.is_grad_enabled()
        return super().score(batch, **asked)

    def says(self, tokens: list[int], start: int) -> float:
        """The mean log-prob of the tokens from ``start`` on, one step at a time."""
        table = self.table.detach().log_softmax(-1)
        return float(np.mean([float(table[a, b]) for a, b in list(pairwise(tokens))[start - 1 :]]))


def asked_of(learned: Learner, policy: Asked, played: list[Group]) -> torch.Tensor:
    """The beliefs that the estimator gets in an update."""
    seen: list[Stream] = []
    part = learned.recipe["fresh"].estimator
    assert part is not None
    estimate = part.estimate

    def spy(stream: Stream) -> torch.Tensor:
        seen.append(stream)
        policy.asking = False
        return estimate(stream)

    part.estimate = spy  # type: ignore[method-assign]
    learned.update(buffer_of(played), 0)
    assert seen[0].beliefs is not None
    return seen[0].beliefs


def contexts(trajectory: Trajectory) -> list[list[int]]:
    """What stands before each reply, written down turn by turn."""
    found, context = [], list[int]()
    for turn in trajectory.turns:
        context = [*(context if turn.continues else []), *turn.prompt_ids.tolist()]
        found.append(list(context))
        context += turn.action_ids.tolist()
    return found


@pytest.mark.parametrize("windowed", [False, True])
@pytest.mark.parametrize("microbatch_tokens", [7, 8192])
def test_beliefs_are_the_policys_own_numbers(windowed: bool, microbatch_tokens: int) -> None:
    """Before each turn, of the likelier of two answers; no reply and no gradient takes part in it."""
    policy, before = Asked(), Asked()
    played = groups(policy, windowed=windowed)
    learned = learner(build(IGPOConfig(kl_coef=0.0), RunInfo(10, 4)), policy, microbatch_tokens=microbatch_tokens)
    found = asked_of(learned, policy, played)
    expected = [
        max(before.says([*context, 8, 4], len(context) + 1), before.says([*context, 5, 6], len(context)))
        for group in played
        for trajectory in group.trajectories
        for context in contexts(trajectory)
    ]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-6)
    assert len(set(expected)) > 3
    assert not policy.graded
    every = [context for group in played for t in group.trajectories for context in contexts(t)]
    wanted = [answer for context in every for answer in (([*context, 8, 4], 1), ([*context, 5, 6], 2))]
    assert sorted(policy.rows) == sorted(wanted)


def test_a_part_of_an_episode_has_the_context_that_the_whole_one_had() -> None:
    """Also where a reply holds tokens that nobody chose."""
    trajectory = groups(BigramPolicy(), num_turns=4)[0].trajectories[0]
    rest = trajectory.rest(2)
    assert [trajectory.context(n).tolist() for n in range(4)] == contexts(trajectory)
    assert [rest.context(n).tolist() for n in range(2)] == contexts(trajectory)[2:]


def test_nobody_is_asked_about_an_episode_without_turns() -> None:
    class Nothing:
        def targets(self, episode: Trajectory) -> list[Target]:
            raise ValueError("asked")

    group = groups(BigramPolicy(), num_groups=1)[0]
    empty = replace(group, trajectories=tuple(replace(t, turns=()) for t in group.trajectories))
    assert beliefs([empty], Nothing(), lambda batch: batch.behaviour_logprobs).shape == (0,)
    with pytest.raises(ValueError, match="asked"):
        beliefs([group], Nothing(), lambda batch: batch.behaviour_logprobs)


def test_nobody_is_asked_where_no_part_needs_answers() -> None:
    policy = Asked()
    plain = learner(build(GRPOConfig(kl_coef=0.0), RunInfo(10, 4)), policy)
    assert plain.references is not None
    assert not plain.recipe.needs_answers
    assert build(EPOConfig(base=IGPOConfig()), RunInfo(10, 4)).needs_answers
    played = groups(policy)
    plain.update(buffer_of(played), 0)
    assert len(policy.rows) <= sum(len(group.trajectories) for group in played)
