"""Methods that compare the answers of a task's attempts: SEED-GRPO's weights, EMPO's votes, where they are refused."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest

from tests.algorithms.fakes import TEN, BigramPolicy, Sampler, buffer_of, episode, task
from turnwise.algorithms.consistency import AnswerKind, group_entropy
from turnwise.algorithms.dapo import DAPOConfig
from turnwise.algorithms.empo import EMPOConfig, Vote, votes
from turnwise.algorithms.registry import build
from turnwise.algorithms.seed_grpo import AgreementScale, SEEDConfig
from turnwise.assembly.run import Assembly
from turnwise.config.files import load_config
from turnwise.learning.learner import shaped_rewards
from turnwise.learning.parts import Samples, Stream
from turnwise.learning.planning import Scorer
from turnwise.learning.rewards import RewardTable, raw_rewards
from turnwise.learning.settings import RewardSettings, RunInfo
from turnwise.replay.batch import layout
from turnwise.trajectory import Group

RUN = RunInfo(num_updates=10, group_size=4, rewards=TEN)
SAMPLER = Sampler.of(BigramPolicy(), np.random.default_rng(0))


def answering(*answers: str, index: int = 0) -> Group:
    """Attempts of two turns that end with these actions, seen in the same state."""
    made = []
    for sample, answer in enumerate(answers):
        played = episode(SAMPLER, index=index, sample=sample, num_turns=2)
        last = replace(played.turns[-1], action=answer, anchor="asked")
        made.append(replace(played, turns=(*played.turns[:-1], last)))
    return Group(task(index), tuple(made))


def scaled(config: SEEDConfig, *groups: Group) -> tuple[list[float], dict[str, float]]:
    """What advantages of 1 become, by trajectory; and what was counted."""
    members = tuple(t for each in groups for t in each.trajectories)
    batch = layout(groups)
    stream = Stream(Samples(groups, raw_rewards(members)), batch.with_columns(advantages=batch.action_mask.float()))
    part = AgreementScale(config)
    found = part.modify(stream)
    assert (found[~batch.action_mask] == 0).all()
    return [float(found[batch.trajectory == n].max()) for n in range(len(members))], dict(part.acted())


AGREE, HALVES, DIFFER = ("a", "a", "a", "a"), ("a", "a", "b", "b"), ("a", "b", "c", "d")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, (1.0, 0.75, 0.5)),
        ({"alpha": 1.0}, (1.0, 0.5, 0.0)),
        ({"alpha": 3.0}, (1.0, 0.0, 0.0)),
        ({"form": "exponential", "alpha": 1.0}, (1.0, math.exp(-0.5), math.exp(-1))),
    ],
)
def test_the_more_answers_differ_the_less_an_attempt_counts(settings: dict[str, Any], expected: tuple[float]) -> None:
    """H / ln 4 of four alike, two and two, all different: 0, 1/2, 1."""
    groups = [answering(*answers, index=n) for n, answers in enumerate((AGREE, HALVES, DIFFER))]
    found, acted = scaled(SEEDConfig(**settings), *groups)
    assert found == pytest.approx([value for value in expected for _ in range(4)])
    assert acted == pytest.approx({"mean_scale": sum(expected) / 3, "damped_share": 2 / 3})


def test_a_lone_attempt_counts_in_full() -> None:
    assert scaled(SEEDConfig(), answering("a"))[0] == [1.0]


@pytest.mark.parametrize(("kind", "bits"), [("last", 0.0), ("ending", 1.0), ("actions", 2.0)])
def test_what_an_answer_is(kind: AnswerKind, bits: float) -> None:
    """Four attempts that answer alike, in two states, each after another first action."""
    made = answering(*AGREE)
    members = []
    for n, trajectory in enumerate(made.trajectories):
        first, last = trajectory.turns
        turns = (replace(first, action=f"search {n}"), replace(last, anchor=f"state {n % 2}"))
        members.append(replace(trajectory, turns=turns))
    _, found = group_entropy([replace(made, trajectories=tuple(members))], kind)
    assert found.tolist() == pytest.approx([bits] * 4)


@pytest.mark.parametrize(
    ("answers", "kind", "paid"),
    [
        ("aaab", "share", [0.75, 0.75, 0.75, 0.25]),
        ("aaab", "majority", [1, 1, 1, 0]),
        ("baab", "majority", [1, 0, 0, 1]),  # as often: the first
        ("abcd", "share", [0, 0, 0, 0]),
        ("abcd", "majority", [0, 0, 0, 0]),
        ("aa  ", "share", [0.5, 0.5, 0, 0]),
        ("a   ", "share", [0, 0, 0, 0]),
        ("    ", "majority", [0, 0, 0, 0]),
        ("a", "share", [0]),
    ],
)
def test_votes(answers: str, kind: Vote, paid: list[float]) -> None:
    assert votes([answer.strip() for answer in answers], kind) == paid


def paid(groups: tuple[Group, ...], **settings: Any) -> tuple[RewardTable, dict[str, float]]:
    """The shaped rewards, with a penalty of 0.1 on every first turn, and what was counted."""
    recipe = build(EMPOConfig(**settings), RUN)
    members = [t for each in groups for t in each.trajectories]
    rewards = replace(raw_rewards(members), own=tuple((-0.1, 0.0) for _ in members))
    (shaper,) = recipe.shapers
    return shaper.shape(members, rewards, cast(Scorer, None)), dict(recipe.acted())


def test_votes_take_the_place_of_rewards_and_penalties_stay() -> None:
    """Case and spaces are no matter; one attempt was cut off and has no answer, and one failed and is not counted."""
    made = answering("Paris", " paris  ", "paris", "Rome", "rome")
    members = list(made.trajectories)
    members[2] = replace(members[2], end="truncated")
    members[4] = replace(members[4], end="error")
    groups = (replace(made, trajectories=tuple(members)), answering("x", "y", index=1))
    rewards, acted = paid(groups)
    assert list(rewards.earned) == [(0.0, 10 * share) for share in (0.5, 0.5, 0, 0.25, 0, 0, 0)]
    assert [rewards.total(n) for n in range(4)] == pytest.approx([10 * share - 0.1 for share in (0.5, 0.5, 0, 0.25)])
    assert acted == pytest.approx({"Votes/answered_share": 5 / 6, "Votes/mean_vote": 1.25 / 6})
    majority, _ = paid(groups, vote="majority")
    assert [row[-1] for row in majority.earned] == [10.0, 10.0, 0, 0, 0, 0, 0]


def test_an_episode_without_turns_is_paid_nothing() -> None:
    made = answering("a", "a")
    silent = tuple(replace(t, turns=()) for t in made.trajectories)
    (shaper,) = build(EMPOConfig(), RUN).shapers
    assert shaper.shape(silent, raw_rewards(silent), cast(Scorer, None)).earned == ((), ())


def test_groups_that_all_agree_or_all_differ_teach_nothing() -> None:
    some = (AGREE, DIFFER, HALVES, ("a", "a", "b", "c"))
    groups = tuple(answering(*answers, index=n) for n, answers in enumerate(some))
    run = replace(RUN, rewards=RewardSettings(invalid_action_penalty=0.0))
    recipe, members = build(EMPOConfig(), run), tuple(t for g in groups for t in g.trajectories)
    rewards = shaped_rewards(recipe, run, members, cast(Scorer, None), 0)
    kept = recipe.composer.compose(0, Samples(groups, rewards), buffer_of(list(groups)))
    assert [group.task.index for group in kept["fresh"].samples.groups] == [3]


def test_a_base_that_looks_at_rewards_is_refused() -> None:
    with pytest.raises(ValueError, match="empo looks at no reward of the world"):
        build(EMPOConfig(base=DAPOConfig(max_tries=3)), RUN)


def test_votes_are_refused_by_name_where_episodes_do_not_end_with_an_answer() -> None:
    for algorithm in ("empo", "epo"):
        settings = ["algorithm.base=empo"] if algorithm == "epo" else []
        assembly = Assembly(load_config("household", settings, algorithm=algorithm))
        with pytest.raises(
            ValueError, match=rf"{algorithm} pays by a vote among answers, and the episodes of turnwise/Household-v0"
        ):
            assembly.check_sources()
        assembly.close()
    for config, algorithm in (("search", "empo"), ("household", "epo")):
        assembly = Assembly(load_config(config, algorithm=algorithm))
        assembly.check_sources()
        assembly.close()
