"""Collecting: what is recorded is what was sampled, in an order and with results that depend on the jobs alone."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch

from tests.models import tiny_model, tokenizer
from tests.worlds import Faults
from turnwise.agents.chat import ChatFormat
from turnwise.agents.collector import Collector
from turnwise.agents.episode import SuccessRule
from turnwise.agents.jobs import jobs_for
from turnwise.agents.prompts import AgentConfig
from turnwise.agents.rollouts import Rollouts
from turnwise.agents.seating import ModelAgent
from turnwise.agents.worldwork import WorldThreads
from turnwise.envs.interface import state_key_of
from turnwise.envs.tasks import make_env, maker, panel, start, step
from turnwise.errors import AgentError
from turnwise.learning.planning import GroupPlanner
from turnwise.models.engine import Sampling, SlotEngine
from turnwise.replay.batch import layout
from turnwise.trajectory import Group, RolloutFinished, Trajectory, TurnFinished, group_by_task

SAMPLING = Sampling(max_tokens=6)
HOUSE = "turnwise/Household-v0"


def collector(
    env_id: str = "tests.worlds:tests/Echo-v0",
    slots: int = 4,
    rule: SuccessRule | None = None,
    env: dict[str, Any] | None = None,
    seed: int = 0,
    **settings: Any,
) -> Collector:
    chat = ChatFormat(tokenizer())
    config = AgentConfig(**{"max_reply_tokens": 6, "max_context_tokens": 512, **settings})
    engine = SlotEngine(tiny_model(), num_slots=slots, max_length=config.max_context_tokens, end_ids=chat.end_ids)
    return Collector(maker(env_id, **(env or {})), ModelAgent(engine, chat, config), seed=seed, success=rule)


def tasks(num: int, env_id: str = "tests.worlds:tests/Echo-v0", split: str = "train") -> list[Any]:
    whole = panel(make_env(env_id), split)
    return [whole[i] for i in range(num)]


def same(first: list[Trajectory], second: list[Trajectory]) -> bool:
    return all(
        a.episode == b.episode
        and [t.action_ids.tolist() for t in a.turns] == [t.action_ids.tolist() for t in b.turns]
        and [t.observation for t in a.turns] == [t.observation for t in b.turns]
        for a, b in zip(first, second, strict=True)
    )


def test_logits_that_are_not_finite_end_it_by_model_episode_and_turn() -> None:
    """No episode is blamed for them, and none is counted as lost."""
    made = collector()
    (agent,) = made.seating.models
    agent.name, agent.version = "runs/mine", 12
    turns = [0]
    submit = agent.engine.submit

    def broken_later(*given: Any, **more: Any) -> None:
        turns[0] += 1
        if turns[0] == 2:
            with torch.no_grad():
                agent.engine.model.model.norm.weight.fill_(torch.nan)  # type: ignore[attr-defined]
        submit(*given, **more)

    agent.engine.submit = broken_later  # type: ignore[method-assign]
    told = r"runs/mine \(update 12\) cannot continue in episode train-0-5-0, turn 2: .* logits are nan or infinite"
    with pytest.raises(AgentError, match=told):
        made.collect(jobs_for(tasks(1), samples=1, key=5), SAMPLING)
    assert agent.engine.num_free == agent.engine.num_slots


@pytest.mark.parametrize("settings", [{}, {"context": "window"}])
@pytest.mark.parametrize("env_id", ["tests.worlds:tests/Echo-v0", HOUSE])
def test_results_do_not_depend_on_the_number_of_slots(env_id: str, settings: dict[str, Any]) -> None:
    jobs = jobs_for(tasks(3, env_id), samples=2, key=5)
    few = collector(env_id, slots=1, **settings).collect(jobs, SAMPLING)
    many = collector(env_id, slots=6, **settings).collect(jobs, SAMPLING)
    assert same(few, many)
    assert [t.episode for t in few] == [job.episode for job in jobs]
    reseeded = collector(env_id, slots=6, seed=1, **settings).collect(jobs, SAMPLING)
    assert [t.turns[0].action_ids.tolist() for t in reseeded] != [t.turns[0].action_ids.tolist() for t in many]
    other = collector(env_id, slots=6, **settings).collect(jobs_for(tasks(3, env_id), 2, key=6), SAMPLING)
    assert [t.turns[0].action_ids.tolist() for t in other] != [t.turns[0].action_ids.tolist() for t in many]


@pytest.mark.parametrize(("context", "rows"), [("full", 4), ("window", 12)])
def test_recorded_tokens_give_the_recorded_logprobs(context: str, rows: int) -> None:
    played = collector(context=context).collect(jobs_for(tasks(2), 2, 0), SAMPLING)
    batch = layout(group_by_task(played))
    assert len(batch) == rows
    model = tiny_model()
    with torch.no_grad():
        for row, length in enumerate(batch.lengths.tolist()):
            ids = batch.tokens[row, :length]
            full = torch.log_softmax(model(ids[None]).logits[0], -1)[:-1].gather(-1, ids[1:, None])[:, 0]
            mask = batch.action_mask[row, 1:length]
            torch.testing.assert_close(full[mask], batch.behaviour_logprobs[row, 1:length][mask], atol=1e-4, rtol=0)


def test_replies_are_decoded_and_sampled_ids_are_kept() -> None:
    (played,) = collector().collect(jobs_for(tasks(1), 1, 0), SAMPLING)
    chat = ChatFormat(tokenizer())
    for turn in played.turns:
        assert chat.decode(turn.action_ids) == turn.reply
        assert len(turn.action_ids) == len(turn.logprobs) == len(turn.entropies) <= 6
    assert [turn.continues for turn in played.turns] == [False, True, True]
    assert played.rewards == [0.0, 0.0, 1.0]
    assert played.end == "terminated"


def test_success_is_never_guessed() -> None:
    jobs = jobs_for(tasks(1), 1, 0)
    assert collector().collect(jobs, SAMPLING)[0].success is None
    assert collector(rule=SuccessRule(0.5)).collect(jobs, SAMPLING)[0].success is True
    assert collector(rule=SuccessRule(1.5)).collect(jobs, SAMPLING)[0].success is False
    (house,) = collector(HOUSE, max_context_tokens=2048).collect(jobs_for(tasks(1, HOUSE), 1, 0), SAMPLING)
    assert house.success is False
    assert house.end_reason == "turns"


def test_the_state_after_the_last_action_is_kept() -> None:
    (played,) = collector(HOUSE, max_context_tokens=2048).collect(jobs_for(tasks(1, HOUSE), 1, 0), SAMPLING)
    env = make_env(HOUSE)
    observation, info = start(env, played.task, played.seed)
    for turn in played.turns:
        assert (turn.observation, turn.anchor) == (observation, info.get("anchor", ""))
        assert turn.state_key == state_key_of(info) != ""
        observation, _, _, _, info = step(env, turn.action)
    assert played.last_anchor == info.get("anchor", observation)
    assert played.last_state_key == state_key_of(info)
    (echoed,) = collector().collect(jobs_for(tasks(1), 1, 0), SAMPLING)
    assert echoed.last_anchor not in {"", echoed.turns[-1].observation}
    assert {echoed.last_state_key, *(turn.state_key for turn in echoed.turns)} == {""}  # this world tells none


def test_a_full_context_ends_the_episode_or_opens_a_fresh_one() -> None:
    jobs = jobs_for(tasks(1), 1, 0)
    (ended,) = collector(max_context_tokens=40).collect(jobs, SAMPLING)
    assert (ended.end, ended.end_reason) == ("truncated", "context")
    assert len(ended.turns) < 3
    (restarted,) = collector(max_context_tokens=40, on_overflow="restart").collect(jobs, SAMPLING)
    assert restarted.end == "terminated"
    assert [turn.continues for turn in restarted.turns].count(False) > 1
    (never,) = collector(HOUSE, max_context_tokens=32).collect(jobs_for(tasks(1, HOUSE), 1, 0), SAMPLING)
    assert (len(never.turns), never.end_reason) == (0, "context")


def test_a_failing_world_is_retried_once_and_then_recorded_as_an_error() -> None:
    jobs = jobs_for(tasks(2), 2, 0)
    sound = collector().collect(jobs, SAMPLING)
    Faults.left = 1
    assert same(sound, collector(env={"fail_at": 1}).collect(jobs, SAMPLING)), "the retry has the same seed"
    Faults.left = 2
    played = collector(env={"fail_at": 1}, slots=1).collect(jobs, SAMPLING)
    assert [t.end for t in played] == ["error", "terminated", "terminated", "terminated"]
    assert re.fullmatch(r"RuntimeError \(worlds\.py, line \d+\): the simulator died", played[0].end_reason)
    assert played[0].success is None
    assert same(sound[1:], played[1:])


@pytest.mark.parametrize("env_id", ["tests.worlds:tests/Echo-v0", HOUSE])
@pytest.mark.parametrize("context", ["full", "window"])
def test_a_fork_shares_its_past_and_goes_its_own_way(env_id: str, context: str) -> None:
    made = Rollouts(collector(env_id, context=context), SAMPLING, key=3)
    first = made.start(tasks(1, env_id)[0], 0)
    copies, finished = [], {}
    for event in made.events():
        if isinstance(event, TurnFinished) and event.rollout == first and event.turn == 1:
            copies.append(made.fork(first, 2))
        if isinstance(event, RolloutFinished):
            finished[event.rollout] = event.trajectory
    parent, child = finished[first], finished[copies[0]]
    assert child.fork is not None
    assert (child.fork.parent, child.fork.turn) == (parent.episode, 2)
    assert [t.action_ids.tolist() for t in child.turns[:2]] == [t.action_ids.tolist() for t in parent.turns[:2]]
    assert child.turns[2].observation == parent.turns[2].observation
    assert child.turns[2].prompt_ids.tolist() == parent.turns[2].prompt_ids.tolist()
    assert child.turns[2].action_ids.tolist() != parent.turns[2].action_ids.tolist()
    batch, model = layout([Group(child.task, (child,))]), tiny_model()
    with torch.no_grad():
        row = batch.tokens[:1, : int(batch.lengths[0])]
        full = torch.log_softmax(model(row).logits[0], -1)[:-1].gather(-1, row[0, 1:, None])[:, 0]
    mask = batch.action_mask[0, 1 : row.shape[1]]
    np.testing.assert_allclose(full[mask], batch.behaviour_logprobs[0, 1 : row.shape[1]][mask], atol=1e-4)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("context", ["full", "window"])
@pytest.mark.parametrize("env_id", ["tests.worlds:tests/Cue-v0", HOUSE])
def test_a_fork_continues_exactly_as_the_original(env_id: str, context: str, late: bool) -> None:
    """Greedily: by snapshot (Household) and by replay (Cue); at once, and after the parent has ended."""
    source = collector(env_id, slots=1 if late else 4, context=context, max_context_tokens=1024)
    made = Rollouts(source, Sampling(temperature=0, max_tokens=6))
    first, finished = made.start(tasks(1, env_id)[0], 0), {}
    for event in made.events():
        if isinstance(event, TurnFinished) and event.rollout == first and event.turn in (0, 1):
            made.fork(first, event.turn + 1)
        if isinstance(event, RolloutFinished):
            finished[event.rollout] = event.trajectory
    parent = finished.pop(first)
    assert len(finished) == 2
    for child in finished.values():
        assert [t.action_ids.tolist() for t in child.turns] == [t.action_ids.tolist() for t in parent.turns]
        assert [t.observation for t in child.turns] == [t.observation for t in parent.turns]
        assert (child.end, child.success, child.rewards) == (parent.end, parent.success, parent.rewards)
        for ours, theirs in zip(child.turns, parent.turns, strict=True):
            np.testing.assert_allclose(ours.logprobs, theirs.logprobs, atol=1e-4)


def test_a_world_that_leaves_is_a_world_that_failed() -> None:
    for threads in (0, 2):
        playing = collector("tests.worlds:tests/Leaving-v0")
        playing.threads = WorldThreads(threads)
        first, second = playing.collect(jobs_for(tasks(2), 1, 0), SAMPLING)
        assert first.end == second.end == "error"
        assert "tests/Leaving-v0 called sys.exit(3) in step: SystemExit" in first.end_reason
        assert playing.failures == 4, "each was tried twice"
        playing.close()


def test_a_type_that_the_world_tells_is_the_trajectorys_and_a_forks() -> None:
    playing = collector("tests.worlds:tests/Typed-v0")
    rollouts = Rollouts(playing, SAMPLING)
    (task,) = tasks(1, "tests.worlds:tests/Typed-v0")
    rollouts.start(task, 0)
    found = []
    for event in rollouts.events():
        if isinstance(event, TurnFinished) and (event.rollout, event.turn) == (0, 0):
            rollouts.fork(0, 1)
        if isinstance(event, RolloutFinished):
            found.append(event.trajectory)
    assert {t.task.type for t in found} in ({"high"}, {"low"})
    assert len(found) == 2
    assert all(t.task == task for t in found), "the type is no part of what a task is"


def test_a_fork_of_a_running_episode_computes_nothing_twice() -> None:
    source = collector(HOUSE)
    made = Rollouts(source, SAMPLING)
    first, finished = made.start(tasks(1, HOUSE)[0], 0), {}
    for event in made.events():
        if isinstance(event, TurnFinished) and event.rollout == first and event.turn == 4:
            made.fork(first, 5)
        if isinstance(event, RolloutFinished):
            finished[event.rollout] = event.trajectory
    parent, child = finished[first], finished[first + 1]
    own = [*parent.turns, *child.turns[5:]]  # a prompt and the token sampled last before it
    engine = source.engines[0]
    assert isinstance(engine, SlotEngine)
    assert engine.counts.prefill_tokens <= sum(len(turn.prompt_ids) + 1 for turn in own)


def test_a_world_that_does_not_repeat_itself_cannot_be_forked() -> None:
    made = Rollouts(collector("tests.worlds:tests/Drifting-v0"), SAMPLING)
    first = made.start(tasks(1, "tests.worlds:tests/Drifting-v0")[0], 0)
    ends = {}
    for event in made.events():
        if isinstance(event, TurnFinished) and event.rollout == first and event.turn == 1:
            made.fork(first, 2)
        if isinstance(event, RolloutFinished):
            ends[event.rollout] = event.trajectory
    assert ends[first].end == "terminated"
    assert "did not repeat itself" in ends[1].end_reason


def test_a_stopped_rollout_gives_no_trajectory_and_frees_its_slot() -> None:
    source = collector(slots=1)
    made = Rollouts(source, SAMPLING)
    numbers = [made.start(task, 0) for task in tasks(3)]
    finished = []
    for event in made.events():
        if isinstance(event, TurnFinished) and event.rollout == numbers[0]:
            made.stop(numbers[0])
        if isinstance(event, RolloutFinished):
            finished.append(event.rollout)
    assert finished == numbers[1:]
    assert source.engines[0].num_free == 1


def test_a_forgotten_rollout_leaves_nothing_and_the_count_goes_on() -> None:
    made = Rollouts(collector(slots=1), SAMPLING)
    first = made.start(tasks(1)[0], 0)
    for event in made.events():
        if isinstance(event, RolloutFinished):
            made.forget(event.rollout)
    assert made._all == {}
    with pytest.raises(ValueError, match="rollout 0 cannot be forked: there is none, or it was forgotten"):
        made.fork(first, 1)
    assert made.start(tasks(1)[0], 0) == 1


def test_walking_away_frees_every_slot() -> None:
    source = collector(slots=3)
    made = Rollouts(source, SAMPLING)
    for task in tasks(5):
        made.start(task, 0)
    events = made.events()
    next(events)
    events.close()
    assert source.engines[0].num_free == 3


def test_group_planner_drives_it() -> None:
    played = GroupPlanner(3).plan(tasks(2), Rollouts(collector(), SAMPLING, key=1))
    assert [(t.task.index, t.sample) for t in played] == [(i, s) for i in (0, 1) for s in range(3)]
