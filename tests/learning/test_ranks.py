"""Several ranks as one learner: who computes what, in which order it is added, and that the numbers stay the same."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.algorithms.fakes import TEN, BigramPolicy, groups, learner
from tests.algorithms.variants import VARIANTS
from tests.learning.ranks import at_once, thread_ranks
from tests.learning.test_learner import drifted
from turnwise.algorithms.grpo import GRPOConfig
from turnwise.algorithms.registry import build
from turnwise.learning.learner import Learner
from turnwise.learning.metrics import Agreement, Metrics
from turnwise.learning.ranks import Alone, Ranks, deal, divided, sum_gradients, summed, together
from turnwise.learning.settings import RunInfo, Settings
from turnwise.replay.batch import layout, microbatches
from turnwise.replay.buffer import TrajectoryBuffer

RUN = RunInfo(num_updates=10, group_size=4, rewards=TEN)
PARTS = [torch.tensor(rows) for rows in ([0, 1, 2], [3, 4], [5], [6, 7], [8, 9])]


@pytest.mark.parametrize("world", [1, 2, 3, 7])
@pytest.mark.parametrize("lockstep", [False, True])
def test_every_part_is_computed_once_and_in_lockstep_all_ranks_pass_as_often(world: int, lockstep: bool) -> None:
    dealt = [list(deal(PARTS, rank)) for rank in thread_ranks(world, lockstep=lockstep)]
    counted = [part.tolist() for own in dealt for part, counts in own if counts]
    assert sorted(counted) == [part.tolist() for part in PARTS]
    passes = {len(own) for own in dealt}
    assert passes == ({-(-5 // world)} if lockstep else {len(PARTS[r::world]) for r in range(world)})
    assert all(part.tolist() == [5] for own in dealt for part, counts in own if not counts)


def test_microbatches_are_made_smaller_until_each_rank_has_one() -> None:
    batch = layout(groups(BigramPolicy()))
    assert len(microbatches(batch, 8192)) == 1
    parts = divided(batch, 8192, thread_ranks(5)[0])
    assert len(parts) >= 5
    assert sorted(row for part in parts for row in part.tolist()) == list(range(len(batch)))
    assert len(divided(batch.select(torch.tensor([0, 1])), 8192, thread_ranks(5)[0])) == 2  # no more than rows
    assert [part.tolist() for part in divided(batch, 10, Alone())] == [p.tolist() for p in microbatches(batch, 10)]


def test_gradients_are_added_in_the_order_of_the_ranks() -> None:
    """(1e8 - 1e8) + 1 is 1, and 1 - 1e8 + 1e8 is 0 in float32. A weight that nobody moved has no gradient."""
    ranks, own = thread_ranks(3), [torch.tensor([value]) for value in (1e8, -1e8, 1.0)]
    weights = [
        [nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.ones(1))] for _ in own
    ]
    for rank, (weight, matrix, _) in enumerate(weights):
        weight.grad = own[rank].clone()
        matrix.grad = torch.eye(2) if rank == 1 else None
    at_once([partial(sum_gradients, *pair) for pair in zip(ranks, weights, strict=True)])
    for weight, matrix, still in weights:
        assert weight.grad.tolist() == [1.0]
        assert torch.equal(matrix.grad, torch.eye(2))
        assert still.grad is None


def test_what_each_rank_has_is_joined_in_their_order() -> None:
    own = [[torch.tensor([1.0, 2.0])], list[Tensor](), [torch.tensor([3.0]), torch.tensor([4.0])]]
    found = at_once([partial(together, *pair) for pair in zip(thread_ranks(3), own, strict=True)])
    assert [each.tolist() for each in found] == 3 * [[1.0, 2.0, 3.0, 4.0]]
    assert together(Alone(), own[0]).tolist() == [1.0, 2.0]
    assert summed([{"a": 1.0}, {"b": 2.0, "a": 0.5}]) == {"a": 1.5, "b": 2.0}


class Run:
    """Some updates of a bigram policy that has drifted, by one of several ranks."""

    def __init__(self, config: Settings, ranks: Ranks, **optimizer: Any) -> None:
        self.policy = drifted(BigramPolicy())
        plain = learner(build(config, RUN), self.policy, **{"grad_clip": None, "num_minibatches": 2, **optimizer})
        self.learner = Learner(plain.recipe, self.policy, plain.config, RUN, ranks, plain.teacher, plain.references)
        self.buffer = TrajectoryBuffer(self.learner.recipe.keep_updates)
        self.agreements = list[Agreement]()

    def updates(self, num: int = 2) -> list[Metrics]:
        found = []
        for update in range(num):
            self.buffer.add(groups(BigramPolicy(), seed=update, version=update), update)
            found.append(self.learner.update(self.buffer, update, verify=self.agreements.append))
        return found


QUICK = {"grpo", "ppo", "epo", "spear", "sac", "clip_cov", "dpo", "bapo", "echo", "pear"}
"""Those that differ in what is dealt out: critic, replay, a temperature in training, columns, passes before a step."""


@pytest.mark.parametrize(
    ("config", "lockstep"),
    [
        pytest.param(*v.values, lockstep, id=f"{v.id}-{lockstep}", marks=() if v.id in QUICK else pytest.mark.slow)
        for v in VARIANTS
        for lockstep in (False, True)
    ],
)
def test_two_ranks_learn_what_one_process_does(config: Settings, lockstep: bool) -> None:
    """Of every algorithm: weights, metrics, agreement, state and how often its mechanisms acted, over two updates."""
    one = Run(config, Alone(), microbatch_tokens=10)
    alone = one.updates()
    pair = [Run(config, ranks, microbatch_tokens=10) for ranks in thread_ranks(2, lockstep=lockstep)]
    both = at_once([run.updates for run in pair])
    assert torch.equal(pair[0].policy.table, pair[1].policy.table)
    torch.testing.assert_close(pair[0].policy.table, one.policy.table, rtol=2e-6, atol=1e-6)
    assert pair[0].learner.state_dict()[0] == pair[1].learner.state_dict()[0]
    for mine, yours, single in zip(*both, alone, strict=True):
        assert mine == replace(yours, mechanisms=mine.mechanisms)
        for name, value in single.as_dict().items():
            assert mine.as_dict()[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    assert [a.num_tokens for a in pair[0].agreements] == [a.num_tokens for a in one.agreements]
    assert pair[0].learner.clock.take().tokens == one.learner.clock.take().tokens


def test_a_minibatch_is_summed_as_one_process_sums_it_in_rank_order() -> None:
    """One process adds each rank's microbatches, then the ranks' sums: the same bits as the ranks' own."""
    config = GRPOConfig(kl_coef=0.1)

    class Share(Alone):  # one rank's share of the work, which nobody adds to
        def __init__(self, rank: int) -> None:
            self.rank, self.world = rank, 3

        def gather(self, own: Any) -> list[Any]:
            return [own]

    def share(rank: int) -> Tensor:
        run = Run(config, Share(rank), microbatch_tokens=10, num_minibatches=1)
        found = list[Tensor]()
        step = run.learner.optimizer.step
        run.learner.optimizer.step = lambda *_: found.append(run.policy.table.grad.clone()) or step()
        run.updates(1)
        return found[0]

    first, second, third = (share(rank) for rank in range(3))
    run, *others = (Run(config, ranks, microbatch_tokens=10, num_minibatches=1) for ranks in thread_ranks(3))
    before = run.policy.table.detach().clone()
    by_hand = nn.Parameter(before)
    captured = list[Tensor]()
    step = run.learner.optimizer.step
    run.learner.optimizer.step = lambda *_: captured.append(run.policy.table.grad.clone()) or step()
    at_once([partial(each.updates, 1) for each in (run, *others)])
    by_hand.grad = first + second + third
    assert torch.equal(captured[0], by_hand.grad)
    assert not torch.equal(first + second + third, first + (second + third))  # so the order is seen
