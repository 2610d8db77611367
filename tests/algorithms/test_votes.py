"""ETMR: its trees, and a vote among answers in the place of the world's reward."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.agents.test_collector import collector, tasks
from tests.algorithms.fakes import BigramPolicy, Sampler, episode
from tests.algorithms.test_starts import RAW, RUN, scripted
from tests.algorithms.test_within import attempt
from tests.algorithms.trees import ScriptedRollouts
from tests.worlds import Echo
from turnwise.agents.episode import Episode
from turnwise.agents.jobs import Job, jobs_for
from turnwise.agents.seating import Seat
from turnwise.algorithms.ares import ARESConfig
from turnwise.algorithms.dapo import DAPOConfig
from turnwise.algorithms.drpo import DRPOConfig
from turnwise.algorithms.ear import EARConfig
from turnwise.algorithms.empo import EMPOConfig
from turnwise.algorithms.etmr import ETMRConfig
from turnwise.algorithms.g2po import G2POConfig
from turnwise.algorithms.graphgpo import GraphGPOConfig
from turnwise.algorithms.grpo import GRPOConfig
from turnwise.algorithms.igpo import IGPOConfig
from turnwise.algorithms.pear import PEARConfig
from turnwise.algorithms.registry import build
from turnwise.algorithms.votes import AnswerVotes
from turnwise.algorithms.weighted_cloning import WeightedCloningConfig
from turnwise.algorithms.within import WithinReplies
from turnwise.envs.search.env import SearchEnv
from turnwise.learning.rewards import RewardTable, raw_rewards
from turnwise.learning.settings import Settings
from turnwise.models.engine import Sampling
from turnwise.replay.codec import from_record, to_record
from turnwise.replay.store import TrajectoryReader, TrajectoryWriter
from turnwise.trajectory import Task, Trajectory


def planner(group_size: int, **settings: Any) -> WithinReplies:
    made = build(ETMRConfig(**settings), replace(RUN, group_size=group_size)).planner
    assert isinstance(made, WithinReplies)
    return made


def test_a_tree_has_copies_at_each_of_its_least_certain_tokens() -> None:
    made = planner(14)
    tree = attempt([9.0, 1.0, 3.0], [5.0, 4.0, 8.0], [2.0, 6.0, 0.5])
    assert made.places(tree, 0) == [(1, 2)] * 2 + [(2, 1)] * 2 + [(1, 0)] * 2
    found = made.plan([scripted(0), scripted(1)], ScriptedRollouts(lengths=(5, 6)))
    for index in (0, 1):
        members = [t for t in found if t.task.index == index]
        places = Counter((t.fork.parent, t.fork.turn) for t in members if t.fork)
        assert (len(members), sum(t.fork is None for t in members)) == (14, 2)
        assert (len(places), set(places.values())) == (6, {2})
    assert planner(8).places(tree, 1) == [(1, 2), (1, 2), (2, 1)], "two trees share the room that is left"
    assert planner(14, forks=1, copies=6, among="turn").places(tree, 0) == [(1, 2)] * 6


def answered(*answers: str, index: int = 0) -> list[Trajectory]:
    sampler = Sampler.of(BigramPolicy(), np.random.default_rng(index))
    made = (episode(sampler, index=index, sample=n, num_turns=2) for n in range(len(answers)))
    return [replace(each, answer=answer, success=False) for each, answer in zip(made, answers, strict=True)]


def voted(vote: AnswerVotes, played: list[Trajectory]) -> RewardTable:
    return vote.shape(played, raw_rewards(played), BigramPolicy())  # type: ignore[arg-type]


def test_the_most_frequent_answer_of_a_task_pays() -> None:
    vote = AnswerVotes("majority", 10.0)
    played = [*answered("paris", "rome", "paris", ""), *answered("x", "y", index=1), *answered("", "", index=2)]
    order = [0, 4, 1, 5, 2, 3, 6, 7]  # tasks may be mixed
    table = voted(vote, [played[n] for n in order])
    totals = dict(zip(order, [sum(row) for row in table.earned], strict=True))
    assert [totals[n] for n in range(8)] == [10.0, 0.0, 10.0, 0.0, 10.0, 0.0, 0.0, 0.0], "of x and y the first"
    assert all(set(row[:-1]) == {0.0} for row in table.earned), "on the last turn"
    assert vote.acted() == {
        "answered_share": pytest.approx(5 / 8),
        "majority_share": pytest.approx(3 / 5),
        "right_share": 0.0,
    }


def test_nobody_learns_from_what_the_world_paid_and_penalties_stay() -> None:
    played = answered("paris", "rome", "paris")
    rich = [replace(t, success=True, turns=tuple(replace(u, reward=7.0) for u in t.turns)) for t in played]
    first, second = (voted(AnswerVotes("majority", 1.0), each).earned for each in (played, rich))
    assert first == second == ((0.0, 1.0), (0.0, 0.0), (0.0, 1.0))
    own = RewardTable(((3.0, 3.0),) * 3, ((-0.1, 0.0),) * 3, (0.5, 0.5, 0.5))
    table = AnswerVotes("majority", 1.0).shape(played, own, BigramPolicy())  # type: ignore[arg-type]
    assert (table.own, table.whole) == (own.own, own.whole)


def test_an_episode_that_failed_has_no_vote() -> None:
    played = answered("rome", "paris", "rome")
    lost = [played[0], played[1], replace(played[2], end="error")]
    first = ((0.0, 1.0), (0.0, 0.0), (0.0, 0.0))  # of one vote each
    assert voted(AnswerVotes("majority", 1.0), lost).earned == first
    nobody = [replace(each, turns=(), answer="x") for each in played]
    assert voted(AnswerVotes("majority", 1.0), nobody).earned == ((), (), ())


def test_a_vote_needs_answers_and_no_base_that_looks_at_the_worlds_rewards() -> None:
    assert not build(ETMRConfig(), RUN).compares_answers
    assert build(ETMRConfig(reward="vote"), RUN).compares_answers
    assert build(EARConfig(base=ETMRConfig(reward="vote")), RUN).compares_answers, "ETTRL"
    for base in (DAPOConfig(), DAPOConfig(max_tries=1), GRPOConfig(kl_coef=0.0, max_tries=3)):
        with pytest.raises(ValueError, match=r"take the place of the world's rewards, and (dapo|grpo) leaves"):
            build(ETMRConfig(base=base, reward="vote"), RUN)


LABELLED = {
    "pear": (PEARConfig(base=RAW), r"pear asks which attempts succeed \(ThoughtPenalty\)"),
    "ares": (ARESConfig(base=RAW), r"ares asks which attempts succeed \(EffortTargets\)"),
    "g2po": (G2POConfig(kl_coef=0.0), r"g2po asks which attempts succeed \(StateValues\)"),
    "graphgpo": (GraphGPOConfig(kl_coef=0.0), r"graphgpo asks which attempts succeed \(GoalDistance\)"),
    "drpo": (DRPOConfig(base=RAW), r"drpo asks which attempts succeed \(StoredStarts\)"),
    "igpo": (IGPOConfig(kl_coef=0.0), "igpo learns from the right answers"),
}


@pytest.mark.parametrize(("base", "said"), LABELLED.values(), ids=LABELLED)
def test_a_base_that_asks_for_labels_cannot_learn_from_votes(base: Settings, said: str) -> None:
    with pytest.raises(ValueError, match=f"take the place of the world's rewards, and {said}"):
        build(EMPOConfig(base=base), RUN)
    with pytest.raises(ValueError, match=said):
        build(ETMRConfig(base=base, reward="vote"), RUN)


@pytest.mark.parametrize("kind", [PEARConfig, ARESConfig, DRPOConfig])
def test_what_asks_for_labels_is_no_more_allowed_around_votes(kind: Any) -> None:
    with pytest.raises(ValueError, match=r"(pear|ares|drpo) asks which attempts succeed"):
        build(kind(base=EMPOConfig(base=RAW)), RUN)


def test_goals_by_reward_are_no_labels() -> None:
    assert build(EMPOConfig(base=GraphGPOConfig(kl_coef=0.0, goal="reward")), RUN).compares_answers


@pytest.mark.parametrize("kind", [EMPOConfig, ARESConfig, PEARConfig])
def test_a_base_of_stored_episodes_has_no_attempts_to_pay(kind: Any, tmp_path: Path) -> None:
    base = WeightedCloningConfig(episodes=str(tmp_path))
    with pytest.raises(ValueError, match=r"fresh attempts are paid, and weighted_cloning learns from stored episodes"):
        build(kind(base=base), RUN)


def searched() -> list[Trajectory]:
    source = collector("turnwise/Search-v0", constrained=True, max_reply_tokens=40, max_context_tokens=1024)
    return source.collect(jobs_for(tasks(2, "turnwise/Search-v0"), 3, 0), Sampling(max_tokens=40))


class Counting(Echo):
    """Its episodes answer with a number."""

    gives_answers = True

    def __init__(self, answer: int | None) -> None:
        super().__init__()
        self.answer = answer

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, _ = super().step(action)
        return observation, reward, terminated, truncated, {"answer": self.answer}


@pytest.mark.parametrize(("answer", "kept"), [(0, "0"), (7, "7"), (None, "")])
def test_zero_is_an_answer(answer: int | None, kept: str) -> None:
    job = Job(Task("counting", "train", 0, "key"), 0)
    played = Episode(Counting(answer), job, 0, [Seat()])
    played.step("look")
    assert [t.answer for t in played.trajectories("truncated")] == [kept]


def test_a_world_that_gives_answers_has_them_recorded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    played = searched()
    ended = [t for t in played if t.end == "terminated"]
    assert ended
    assert all(f"answer: {t.answer}" == t.turns[-1].action.lower() for t in ended)
    TrajectoryWriter(tmp_path / "file").append(0, played)
    assert [t.answer for t in TrajectoryReader(tmp_path / "file")] == [t.answer for t in played]
    silent = replace(ended[0], answer="")
    assert "answer" not in to_record(silent)
    assert from_record(to_record(silent)).answer == ""
    monkeypatch.setattr(SearchEnv, "gives_answers", False)
    assert {t.answer for t in searched()} == {""}, "elsewhere the key may mean anything, such as the right answer"
