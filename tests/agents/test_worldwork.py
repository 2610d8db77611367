"""Worlds that work in threads while others generate: the same episodes, in an order that time does not decide."""

from __future__ import annotations

import random
import re
import threading
import time
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest

from tests.agents.test_collector import HOUSE, SAMPLING, collector, same, tasks
from tests.worlds import Faults
from turnwise.agents.collector import Collector
from turnwise.agents.rollouts import Rollouts
from turnwise.agents.worldwork import Order, WorldThreads, WorldWork
from turnwise.clock import Clock
from turnwise.envs.tasks import make_env
from turnwise.trajectory import RolloutFinished, Trajectory, TurnFinished

ECHO = "tests.worlds:tests/Echo-v0"
Log = list[tuple[str, int, list[float]]]


class Waiting(gymnasium.Wrapper[str, str, str, str]):
    """Waits before it answers, as a server would; ``wait`` is called in its thread."""

    def __init__(self, env: Any, wait: Callable[[], object]) -> None:
        super().__init__(env)
        self.wait = wait

    def step(self, action: str) -> Any:
        self.wait()
        return super().step(action)


def beside(
    env_id: str,
    wait: Callable[[], object],
    threads: int = 4,
    order: Order = "fixed",
    slots: int = 4,
    share: float = 0.5,
    **env: Any,
) -> Collector:
    plain = collector(env_id, slots=slots)
    return Collector(
        lambda: Waiting(make_env(env_id, **env), wait),
        plain.seating,
        threads=WorldThreads(threads, order, waiting_share=share),
    )


def unsteady() -> None:
    time.sleep(random.uniform(0, 0.02))  # its own generator: another wait every time


def played(source: Collector, env_id: str = ECHO) -> tuple[list[Trajectory], Log]:
    """Trajectories in the order of jobs, and every event in the order it came, with log-probs to the bit."""
    rollouts, log, found = Rollouts(source, SAMPLING, key=1), [], {}
    for task in tasks(4, env_id):
        for sample in range(3):
            rollouts.start(task, sample)
    for event in rollouts.events():
        if isinstance(event, RolloutFinished):
            found[event.rollout] = event.trajectory
            log.append(("end", event.rollout, [x for t in event.trajectory.turns for x in t.logprobs.tolist()]))
        else:
            log.append(("turn", event.rollout, []))
    source.close()
    return [found[number] for number in sorted(found)], log


@pytest.mark.parametrize("env_id", [ECHO, HOUSE])
def test_whatever_worlds_wait_for_runs_repeat_to_the_bit(env_id: str) -> None:
    first, second = (played(beside(env_id, unsteady), env_id) for _ in range(2))
    assert first[1] == second[1]
    alone, _ = played(collector(env_id), env_id)
    assert same(first[0], alone)


@pytest.mark.parametrize(("share", "generating"), [(0.5, 8), (0.25, 12), (1 / 8, 14)])
def test_the_share_says_how_many_generate_while_others_wait(share: float, generating: int) -> None:
    threads = WorldThreads(4, waiting_share=share)
    work: WorldWork[int] = WorldWork(threads, Clock())
    for number in range(16):
        work.begin(number, lambda: None)
    admitted: list[int] = []
    for number, error in work.admitted(lambda: len(admitted)):
        assert error is None
        admitted.append(number)
    threads.close()
    assert admitted == list(range(generating))
    assert len(work) == 16 - generating


def test_a_small_share_repeats_to_the_bit_and_gives_the_same_episodes() -> None:
    (first, log), (_, again) = (played(beside(ECHO, unsteady, share=1 / 8)) for _ in range(2))
    assert log == again
    assert same(first, played(collector())[0])


def test_answers_as_they_come_give_the_same_episodes() -> None:
    free, _ = played(beside(ECHO, unsteady, order="free"))
    assert same(free, played(collector())[0])


@pytest.mark.parametrize("order", ["fixed", "free"])
def test_worlds_wait_together(order: Order) -> None:
    counting, waiting, most = threading.Lock(), 0, 0

    def wait() -> None:
        nonlocal waiting, most
        with counting:
            waiting += 1
            most = max(most, waiting)
        time.sleep(0.02)
        with counting:
            waiting -= 1

    found, _ = played(beside(ECHO, wait, order=order))
    assert [t.end for t in found] == ["terminated"] * 12
    assert most >= 2


@pytest.mark.parametrize("order", ["fixed", "free"])
def test_the_model_generates_while_a_world_works(order: Order) -> None:
    """A world's answer waits for a step of the engine that comes after its question."""
    source = beside(ECHO, lambda: None, order=order)
    (engine,) = source.engines
    stepped = threading.Event()
    step, asked = engine.step, []

    def counted() -> Any:
        replies = step()
        stepped.set()
        return replies

    def wait() -> None:
        if not asked:  # the first question of all, while the others generate
            asked.append(stepped.clear())
            assert stepped.wait(timeout=30)

    engine.step = counted  # type: ignore[method-assign]
    for env in [source.take_env() for _ in range(4)]:
        env.wait = wait  # type: ignore[attr-defined]
        source.return_env(env)
    found, _ = played(source)
    assert asked
    assert [t.end for t in found] == ["terminated"] * 12


def test_a_failing_world_is_retried_once_and_then_recorded_as_an_error() -> None:
    sound, _ = played(beside(ECHO, unsteady))
    Faults.left = 1
    assert same(sound, played(beside(ECHO, unsteady, fail_at=1))[0])
    Faults.left = 2
    found, _ = played(beside(ECHO, unsteady, threads=1, slots=1, fail_at=1))
    assert [t.end for t in found] == ["error"] + ["terminated"] * 11


def test_a_world_that_cannot_begin_is_an_error_too() -> None:
    source = beside(ECHO, unsteady)
    source.make_env = lambda: (_ for _ in ()).throw(RuntimeError("no such simulator"))  # type: ignore[assignment]
    source._num_players = 1
    found, _ = played(source)
    assert {t.end for t in found} == {"error"}
    assert re.fullmatch(r"RuntimeError \(test_worldwork\.py, line \d+\): no such simulator", found[0].end_reason)
    assert source.engines[0].num_free == 4


@pytest.mark.parametrize("order", ["fixed", "free"])
def test_walking_away_waits_for_the_worlds_and_frees_every_slot(order: Order) -> None:
    working: list[int] = []

    def wait() -> None:
        working.append(1)
        time.sleep(0.05)
        working.pop()

    source = beside(ECHO, wait, order=order)
    rollouts = Rollouts(source, SAMPLING)
    for task in tasks(6):
        rollouts.start(task, 0)
    events = rollouts.events()
    for _ in range(3):
        next(events)
    events.close()
    assert not working
    assert source.engines[0].num_free == 4
    assert len(source._idle) >= 4
    source.close()


def test_a_fork_waits_for_its_parent_s_world() -> None:
    """Asked for while the parent's world works on the next turn: the copy has the same past."""
    source = beside(ECHO, unsteady)
    made = Rollouts(source, SAMPLING, key=3)
    first, other = (made.start(task, 0) for task in tasks(2))
    copies, found = [], {}
    for event in made.events():
        if isinstance(event, TurnFinished) and event.rollout == other and event.turn == 1:
            copies.append(made.fork(first, 1))
        if isinstance(event, RolloutFinished):
            found[event.rollout] = event.trajectory
    child, parent = found[copies[0]], found[first]
    assert child.end == parent.end == "terminated"
    np.testing.assert_array_equal(child.turns[0].action_ids, parent.turns[0].action_ids)
    source.close()
