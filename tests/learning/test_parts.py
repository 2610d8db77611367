"""The data that parts receive."""

from __future__ import annotations

import numpy as np
import pytest

from tests.algorithms.fakes import BigramPolicy, Sampler, task
from tests.algorithms.test_epo_term import context, uneven
from turnwise.learning.parts import Streams
from turnwise.trajectory import Group


def test_one_turn_is_its_own_mean() -> None:
    policy = BigramPolicy()
    ctx = context(Group(task(), (uneven(Sampler.of(policy, np.random.default_rng(2)), (3,), 0),)), policy, 0)
    assert ctx.entropy is not None
    assert ctx.turn_mean(ctx.entropy).item() == pytest.approx(ctx.entropy[ctx.mask].mean().item())


def test_a_composer_that_drops_nothing_need_not_say_so() -> None:
    assert Streams(()).dropped_groups == 0
