"""Arbitrary-entropy AEPO against runs of the released code: what is mixed in, the loss and its gradient."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.golden.builders import batch_of, context_of, loss_of
from tests.golden.vectors import cases, close, tensor
from turnwise.algorithms.aepo_arbitrary import ArbitraryAEPOConfig
from turnwise.algorithms.grpo import GRPOConfig
from turnwise.algorithms.heated import STREAM, HeatedAttempts
from turnwise.algorithms.registry import build
from turnwise.learning.parts import Samples, Stream
from turnwise.learning.recipe import Recipe
from turnwise.learning.rewards import RewardTable
from turnwise.learning.settings import RunInfo
from turnwise.replay.buffer import TrajectoryBuffer
from turnwise.trajectory import Group, Task, Trajectory, Turn


def attempt(name: str, group: int, sample: int, length: int) -> Trajectory:
    ids, zeros = np.zeros(length, np.int32), np.zeros(length, np.float32)
    turn = Turn("", np.array([1], np.int32), False, ids, zeros, zeros, "", "", True, 0.0)
    return Trajectory(name, Task("golden", "train", group, str(group)), 0, sample, (turn,), "terminated", None, None)


def samples_of(given: dict[str, Any], size: int) -> Samples:
    """The first attempts at each task, and after them the heated ones."""
    groups: dict[int, list[tuple[Trajectory, float]]] = {}
    for kind, first in (("main", 0), ("extra", size)):
        part = given[kind]
        for row, group in enumerate(part["group"]):
            length = int(sum(part["response_mask"][row]))
            made = attempt(f"{kind} {row}", group, first + row % size, length)
            groups.setdefault(group, []).append((made, part["reward"][row]))
    every = [each for members in groups.values() for each in members]
    table = RewardTable(tuple((reward,) for _, reward in every), ((0.0,),) * len(every))
    return Samples(tuple(Group(m[0][0].task, tuple(t for t, _ in m)) for m in groups.values()), table)


def recipe_for(hp: dict[str, Any]) -> Recipe:
    base = GRPOConfig(
        clip_low=hp["clip_low"],
        clip_high=hp["clip_high"],
        dual_clip=hp["dual_clip"],
        kl_coef=0.0,
        drop_uniform_groups=False,
    )
    config = ArbitraryAEPOConfig(
        base=base,
        target=hp["entropy_target"],
        high=hp["temperature_high"],
        low=hp["temperature_low"],
        most=hp["max_rows"],
        threshold=hp["keep_threshold"],
    )
    return build(config, RunInfo(10, hp["samples_per_prompt"]))


def credited(recipe: Recipe, stream: Stream) -> tuple[list[str], Tensor]:
    """The attempts of a stream's rows, and each row's advantage."""
    estimator = recipe[stream.name].estimator
    assert estimator is not None
    names = [stream.samples.trajectories[n].episode for n in stream.batch.trajectory.tolist()]
    found, mask = estimator.estimate(stream), stream.batch.action_mask
    return names, (found * mask).sum(1) / mask.sum(1).clamp(min=1)


@pytest.mark.parametrize("case", cases("aepo_arbitrary_batch"))
def test_aepo_arbitrary(case: dict[str, Any]) -> None:
    hp = case["hp"]
    recipe = recipe_for(hp)
    heated = recipe.composer
    assert isinstance(heated, HeatedAttempts)
    assert recipe.planner is heated
    for step in case["steps"]:
        events, outputs = {event["event"]: event for event in step["outputs"]["events"]}, step["outputs"]
        heated.entropy = step["inputs"]["entropy_before"]
        assert heated.thermostat.temperature(heated.entropy) == events["sample_again"]["temperature"]
        assert max(1, int(heated.share * hp["prompts"])) == events["sample_again"]["prompts"]
        streams = heated.compose(0, samples_of(step["inputs"], hp["samples_per_prompt"]), TrajectoryBuffer())
        (hot, ones), (fresh, advantages) = (credited(recipe, streams[name]) for name in (STREAM, "fresh"))
        mixed = events.get("mixed")
        if mixed is None:  # the released code stops there
            assert hot == []
            assert len(fresh) == len(step["inputs"]["main"]["reward"])
            assert (streams["fresh"].coef, streams[STREAM].coef) == (1.0, 0.0)
            continue
        assert [*hot, *fresh] == mixed["rows"]
        assert len(hot) == mixed["count"]
        given = outputs["update"]
        mask, per_row = tensor(given["response_mask"]).bool(), torch.cat([ones, advantages])
        close(per_row.unsqueeze(1) * mask, (tensor(outputs["advantages"]) * mask).tolist())
        logprobs, total = tensor(given["log_probs"]).requires_grad_(), torch.zeros(())
        for name, rows in ((STREAM, slice(0, len(hot))), ("fresh", slice(len(hot), None))):
            batch = batch_of(
                mask[rows],
                behaviour_logprobs=tensor(given["old_log_probs"])[rows],
                advantages=per_row[rows].unsqueeze(1) * mask[rows],
            )
            ctx, view = context_of(batch, logprobs[rows], recipe[name].aggregation)
            loss, _ = loss_of(replace(recipe[name], modifiers=()), ctx, view)
            total = total + streams[name].coef * loss
        close(total, given["loss"])
        close(torch.autograd.grad(total, logprobs)[0], given["grad_log_prob"], gradient=True)
