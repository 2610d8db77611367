"""IGPO against numbers of its official implementation: beliefs, what turns are paid, and both of its advantages.

The released code compares token by token. Here every token of its vectors is a turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.golden.builders import credit_of, recipe_of, stream_of
from tests.golden.test_credit_more import near
from tests.golden.vectors import cases, tensor
from turnwise.algorithms.gains import gains_of
from turnwise.algorithms.igpo import IGPOConfig
from turnwise.learning.answers import Target, beliefs
from turnwise.learning.parts import Stream
from turnwise.replay.batch import TokenBatch

RELEASED: dict[str, Any] = {"baseline": "turn", "normalize_std": False}
UNUSED: dict[str, Any] = {"baseline": "episode", "gamma": 0.5}


def of_one_token(
    rewards: Sequence[Sequence[float]], group: Sequence[Any], nats: Sequence[float] | None = None
) -> Stream:
    """Episodes whose turns have one token each, with the rewards of these turns; a row for every turn."""
    owner = [number for number, row in enumerate(rewards) for _ in row]
    stream = stream_of(
        torch.ones((len(owner), 1), dtype=torch.bool),
        [group[number] for number in owner],
        owner,
        earned=[reward for row in rewards for reward in row],
    )
    return replace(stream, beliefs=tensor([0.0] * len(owner) if nats is None else nats, torch.float64))


def in_rows(found: Tensor, lengths: Sequence[int]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(found.squeeze(1).split(lengths)), batch_first=True)


@pytest.mark.parametrize("case", cases("igpo_advantage"))
def test_advantages(case: dict[str, Any]) -> None:
    """Of the function that is used, and of the one that is not."""
    hp, given = case["hp"], case["inputs"]
    settings = RELEASED if hp["function"] == "compute_grpo_outcome_advantage" else UNUSED
    config = IGPOConfig(**{**settings, "gamma": hp["gamma"], "normalize_std": hp["std_norm"]})
    mask = tensor(given["response_mask"]).bool()
    lengths = mask.sum(1).tolist()
    rewards = [row[:length] for row, length in zip(given["token_level_rewards"], lengths, strict=True)]
    found = in_rows(credit_of(recipe_of(config), of_one_token(rewards, given["index"])), lengths)
    near(found, (tensor(case["outputs"]["advantages"]) * mask)[:, : max(lengths)].tolist())


@pytest.mark.parametrize("case", cases("igpo_turn_rewards", lambda case: "rollouts" in case["inputs"]))
def test_groups(case: dict[str, Any]) -> None:
    """A group's token rewards, observations among them, and what each token is credited with."""
    mask = tensor(case["inputs"]["response_mask"]).bool()
    lengths = mask.sum(1).tolist()
    rewards = [row[:length] for row, length in zip(case["outputs"]["token_scores"], lengths, strict=True)]
    config = IGPOConfig(**{**RELEASED, "gamma": case["hp"]["gamma"]})
    found = in_rows(credit_of(recipe_of(config), of_one_token(rewards, [0] * len(rewards))), lengths)
    near(found, (tensor(case["outputs"]["advantages"]) * mask).tolist())


@pytest.mark.parametrize("case", cases("igpo_turn_rewards", lambda case: "gains" in case["inputs"]))
def test_what_turns_are_paid(case: dict[str, Any]) -> None:
    """Returns to go of each turn. Where there are too few gains, or too many, the outcome alone counts."""
    given, expected = case["inputs"], case["outputs"]
    counts, gains = given["chat_token_counts"], expected["gains_after"]
    agree = len(gains) == len(counts) - 1
    rewards = [*[0.0] * (len(counts) - 1), given["outcome"]]
    nats = [*accumulate(gains, initial=0.0)] if agree else [0.0] * len(counts)
    config = IGPOConfig(**RELEASED, belief="log", gain_coef=case["hp"]["alpha"])
    # An attempt without any reward halves what the group's mean leaves.
    stream = of_one_token([rewards, [0.0]], [0, 0], [*nats, 0.0])
    found = 2 * credit_of(recipe_of(config), stream).squeeze(1)[:-1]
    starts = [n * given["separator_tokens"] + sum(counts[:n]) for n in range(len(counts))]
    released = [sum(expected["token_scores"][start:]) for start in starts]
    if "equal_turns" not in given:
        near(found, released)
        return
    near(found, [sum([*gains, given["outcome"]][n:]) for n in range(len(counts))])
    assert abs(float(found[0]) - released[0]) > 0.1, "a repeated turn takes the other one's place"


@pytest.mark.parametrize("case", cases("igpo_turn_rewards", lambda case: "answer_log_probs" in case["inputs"]))
def test_beliefs_and_gains(case: dict[str, Any]) -> None:
    asked = [[turn for turn in rollout if turn is not None] for rollout in case["inputs"]["answer_log_probs"]]
    stream = of_one_token([[0.0] * len(rollout) for rollout in asked], [0] * len(asked))
    sizes = {t.episode: len(rollout[0]) for t, rollout in zip(stream.samples.trajectories, asked, strict=True)}
    references = SimpleNamespace(targets=lambda t: [Target(np.ones(1 + sizes[t.episode], np.int32), 1)])
    told = tensor([value for rollout in asked for turn in rollout for value in turn])

    def logprobs(batch: TokenBatch) -> Tensor:
        return torch.zeros(batch.tokens.shape).masked_scatter(batch.action_mask, told)

    found = beliefs(stream.samples.groups, references, logprobs)
    near(found.exp(), [belief for rollout in case["outputs"]["beliefs"] for belief in rollout])
    lengths = torch.tensor([len(rollout) for rollout in asked])
    gains, followed = gains_of(found, torch.arange(int(lengths.max())) < lengths.unsqueeze(1), log=False)
    near(gains[followed], [gain for rollout in case["outputs"]["gains"] for gain in rollout])
    assert (gains[~followed] == 0).all()
