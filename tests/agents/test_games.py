"""Episodes of several players: a seat each, rewards to everyone, self-play and frozen opponents."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.models import tiny_model, tokenizer
from turnwise.agents.chat import ChatFormat
from turnwise.agents.collector import Collector
from turnwise.agents.decoding import DecodingConfig, FloorConfig
from turnwise.agents.guiding import Guides
from turnwise.agents.jobs import jobs_for
from turnwise.agents.prompts import AgentConfig
from turnwise.agents.rollouts import Rollouts
from turnwise.agents.scripted import play_episode, scripted
from turnwise.agents.seating import ModelAgent, Seating
from turnwise.envs.tasks import make_env, maker, panel
from turnwise.evaluation.playing import evaluate_policy, evaluate_scripted
from turnwise.heat import Heat, Spread
from turnwise.learning.planning import GroupPlanner
from turnwise.models.engine import Sampling, SlotEngine
from turnwise.trajectory import RolloutFinished, Trajectory, TurnFinished, group_by_task

NIM = "tests.worlds:tests/Nim-v0"
SAMPLING = Sampling(max_tokens=6)
EXPERT, RANDOM = scripted("expert"), scripted("random")
assert EXPERT is not None
assert RANDOM is not None


def model(slots: int = 8, name: str = "") -> ModelAgent:
    chat = ChatFormat(tokenizer())
    engine = SlotEngine(tiny_model(), num_slots=slots, max_length=512, end_ids=chat.end_ids)
    return ModelAgent(engine, chat, AgentConfig(max_reply_tokens=6, max_context_tokens=512), name)


def tasks(num: int) -> list[Any]:
    return list(panel(make_env(NIM), "train")[:num])


def collect(seating: Seating, num: int = 4, samples: int = 2) -> list[Trajectory]:
    return Collector(maker(NIM), seating).collect(jobs_for(tasks(num), samples, 0), SAMPLING)


def test_self_play_gives_every_player_its_own_trajectory() -> None:
    played = collect(Seating({"": model()}))
    assert len(played) == 16
    for first, second in zip(played[::2], played[1::2], strict=True):
        assert (first.player, first.role, second.player) == ("first", "first", "second")
        assert first.total_reward == -second.total_reward != 0, "a loss arrives after the loser's last turn"
        assert first.success is not second.success
        assert len(first.turns) - len(second.turns) in (0, 1)
        assert [turn.continues for turn in first.turns] == [False] + [True] * (len(first.turns) - 1)
        assert first.turns[0].observation != second.turns[0].observation
    groups = group_by_task(played)
    assert {g.trajectories[0].role for g in groups} == {"first", "second"}
    assert all(len({t.role for t in g.trajectories}) == 1 and len(g.trajectories) == 2 for g in groups)


def test_self_play_does_not_depend_on_the_number_of_slots() -> None:
    few, many = collect(Seating({"": model(2)})), collect(Seating({"": model(16)}))
    assert [t.episode for t in few] == [t.episode for t in many]
    for a, b in zip(few, many, strict=True):
        assert [t.action_ids.tolist() for t in a.turns] == [t.action_ids.tolist() for t in b.turns]
    with pytest.raises(ValueError, match="needs as many slots"):
        collect(Seating({"": model(1)}))


def test_against_an_opponent_only_the_learner_is_recorded_and_it_changes_seats() -> None:
    played = collect(Seating({"": model()}, {"": EXPERT}), num=6, samples=2)
    assert len(played) == 12
    assert [t.player for t in played] == [("first", "second")[(t.task.index + t.sample) % 2] for t in played]
    trained = GroupPlanner(3).plan(
        tasks(4), Rollouts(Collector(maker(NIM), Seating({"": model()}, {"": RANDOM})), SAMPLING)
    )
    assert all(len({t.player for t in g.trajectories}) == 1 for g in group_by_task(trained)), "a group has one seat"


def test_an_opponent_is_not_heated_by_the_algorithm_and_its_decoding_is_not_reported() -> None:
    learner, frozen, floored = model(), model(name="frozen"), model(name="floored")
    heated = replace(SAMPLING, heat=Heat(Spread(0.0, 1.0, 1.0), 0.4))
    played = Collector(maker(NIM), Seating({"": learner}, {"": frozen})).collect(jobs_for(tasks(4), 2, 0), heated)
    assert all(turn.processing is not None for t in played for turn in t.turns)
    assert frozen.guides.acted.take() == {}
    assert learner.guides.acted.take()["heat_share"] > 0
    floored.guides = Guides(floored.chat, AgentConfig(decoding=DecodingConfig(floor=FloorConfig(temperature=1.2))))
    made = Collector(maker(NIM), Seating({"": learner}, {"": floored}))
    played = made.collect(jobs_for(tasks(4), 2, 0), heated)
    found = made.numbers()
    assert found["decoding/tokens"] == sum(t.num_sampled_tokens for t in played)
    assert "decoding/floor_share" not in found
    assert floored.guides.acted.take()["floor_share"] > 0


def sampled(learner: ModelAgent, frozen: ModelAgent, temperature: float | None = None) -> list[set[Sampling]]:
    """How the learner's replies were sampled in one attempt, and how the opponent's."""
    heard = list[set[Sampling]]()
    for engine in (learner.engine, frozen.engine):
        own, submit = set[Sampling](), engine.submit
        heard.append(own)

        def hear(*given: Any, own: set[Sampling] = own, submit: Any = submit, **named: Any) -> None:
            own.add(named["sampling"])
            submit(*given, **named)

        engine.submit = hear  # type: ignore[method-assign]
    rollouts = Rollouts(Collector(maker(NIM), Seating({"": learner}, {"": frozen})), SAMPLING)
    rollouts.start(tasks(1)[0], 0, temperature)
    assert any(isinstance(event, RolloutFinished) for event in rollouts.events())
    return heard


def test_an_opponent_is_not_heated_by_the_temperature_of_an_attempt() -> None:
    assert sampled(model(), model(name="frozen"), 0.25) == [{replace(SAMPLING, temperature=0.25)}, {SAMPLING}]


def test_an_opponent_says_as_much_as_its_own_settings_allow() -> None:
    frozen = model(name="frozen")
    frozen.config = AgentConfig(max_reply_tokens=9, max_context_tokens=512)
    assert sampled(model(), frozen) == [{SAMPLING}, {replace(SAMPLING, max_tokens=9)}]
    assert Seating({"": model()}, {"": frozen}).max_reply_tokens == 6, "and who is measured, no more than its own"
    assert Seating({"": RANDOM}, {"": frozen}).max_reply_tokens == 9


def test_roles_may_have_their_own_models_and_a_model_may_be_the_opponent() -> None:
    first, second = model(name="first"), model(name="second")
    first.adapter_hash, second.adapter_hash = "a", "b"
    played = collect(Seating({"first": first, "second": second}))
    assert {(t.role, t.policy, t.adapter_hash) for t in played} == {("first", "first", "a"), ("second", "second", "b")}
    assert first.engine.num_free == second.engine.num_free == 8
    against = collect(Seating({"": first}, {"": second}))
    assert {t.adapter_hash for t in against} == {"a"}
    np.testing.assert_array_equal(
        against[0].turns[0].action_ids, next(t for t in played if t.episode == against[0].episode).turns[0].action_ids
    )


def test_win_rates_by_role_with_intervals() -> None:
    report, played = evaluate_scripted(
        maker(NIM), Seating({"": EXPERT}, {"": RANDOM}), panel(make_env(NIM), "test")[:100], name="expert", samples=2
    )
    assert report.success is not None
    assert report.success.low > 0.7
    assert set(report.per_player) == {"first", "second"}
    assert sum(e.num for e in report.per_player.values()) == len(played) == 200
    assert report.draw_share == 0
    assert report.score is not None
    assert report.score.value == report.success.value
    policy, _ = evaluate_policy(
        Collector(maker(NIM), Seating({"": model()}, {"": EXPERT})), tasks(10), name="tiny", samples=2, max_tokens=6
    )
    assert policy.success is not None
    assert policy.success.num == 10


def test_a_game_cannot_be_forked_and_scripted_players_can_play_alone() -> None:
    rollouts = Rollouts(Collector(maker(NIM), model()), SAMPLING)
    number = rollouts.start(tasks(1)[0], 0)
    event = next(e for e in rollouts.events() if isinstance(e, TurnFinished))
    assert event.rollout == number
    with pytest.raises(ValueError, match="one player"):
        rollouts.fork(number, 1)
    played = play_episode(make_env(NIM), Seating({"": EXPERT}), jobs_for(tasks(1), 1, 0)[0])
    assert [t.player for t in played] == ["first", "second"]
