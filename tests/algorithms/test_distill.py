"""On-policy distillation on a bigram policy: it comes nearer to its teacher, whatever the rewards."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.algorithms.fakes import BigramPolicy, buffer_of, groups, learner
from tests.golden.builders import batch_of, context_of, loss_of, recipe_of
from tests.learning.test_learner import RUN
from turnwise.algorithms.distill import DistillConfig
from turnwise.algorithms.registry import build


def distance(policy: BigramPolicy, teacher: BigramPolicy) -> float:
    """Mean reverse KL of the next token, over the tokens before it."""
    ours, theirs = (each.table.detach().log_softmax(-1) for each in (policy, teacher))
    return float((ours.exp() * (ours - theirs)).sum(-1).mean())


def test_a_student_comes_nearer_to_its_teacher() -> None:
    policy, teacher = BigramPolicy(), BigramPolicy(77)
    made = learner(build(DistillConfig(), RUN), policy, lr=0.1)
    assert torch.equal(made.teacher.table, teacher.table)  # type: ignore[union-attr]
    before, told = distance(policy, teacher), []
    for update in range(12):
        fresh = groups(policy, version=update, num_groups=6, size=8)
        metrics = made.update(buffer_of(fresh, update), update)
        told.append(metrics.mechanisms["ReverseKL/reverse_kl"])
    assert distance(policy, teacher) < 0.4 * before
    assert told[-1] < 0.6 * told[0]


def test_only_the_fallen_are_dropped_and_the_square_holds_them_too() -> None:
    now = torch.tensor([[0.5, 0.29, 0.9]]).log().requires_grad_()
    batch = batch_of(
        torch.ones(1, 3, dtype=torch.bool),
        behaviour_logprobs=torch.tensor([[0.5, 0.5, 0.5]]).log(),
        teacher_logprobs=torch.tensor([[0.25, 0.9, 0.9]]).log(),
    )

    def gradient(square: float) -> Tensor:
        recipe = recipe_of(DistillConfig(square_coef=square))
        ctx, view = context_of(batch, now)
        loss, _ = loss_of(recipe, ctx, view)
        return torch.autograd.grad(loss, now)[0]

    falls = -torch.log(torch.tensor(0.5)) / 3  # twice as probable as the teacher has it: the gradient lowers it
    torch.testing.assert_close(gradient(0.0), torch.tensor([[float(falls), 0.0, 0.0]]))
    squares = 2 * (now.detach() - batch.behaviour_logprobs) / 3
    torch.testing.assert_close(gradient(0.5) - gradient(0.0), 0.5 * squares)
