"""Which stage the seconds of shards count in, and how long one is waited for."""

from __future__ import annotations

import os
import signal
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.shards.hosts import Here
from tests.shards.plays import SAMPLING, collector_in_shards, config, planner_of
from tests.shards.test_ahead import Counts, Turns
from turnwise.clock import Clock
from turnwise.shards.children import Children
from turnwise.shards.connection import Place, ShardLostError
from turnwise.training import ahead
from turnwise.trajectory import Task

LATE_S = 1000.0


class Timed(Here):
    """Shards whose answers take a second by ``now``. The second one is lost ``LATE_S`` after it was told ``at``."""

    def __init__(self, at: str = "") -> None:
        self.now, self.at = 0.0, at

    def place(self, number: int, seconds: float) -> Place:
        place: Any = super().place(number, seconds)
        tell, told, said = place.tell, place.told, [""]

        def telling(name: str, *arguments: Any) -> None:
            said[0] = name
            tell(name, *arguments)

        def late(seconds: float) -> Any:
            if (number, said[0]) == (1, self.at):
                self.now, self.at = self.now + LATE_S, ""
                raise ShardLostError("it gave no answer in time")
            self.now += 1.0
            return told(seconds)

        place.tell, place.told = telling, late
        return place  # type: ignore[no-any-return]


def spent(model: Path, host: Timed) -> tuple[dict[str, float], float]:
    """The seconds by stage of a session of two shards, and how many messages were said again."""
    made = config(model, "algorithm=grpo", "rollout.shards=2")
    tasks = [Task("tests/Lottery-v0", "train", index, str(index)) for index in range(3)]
    with closing(collector_in_shards(made, model, host)) as collector:
        collector.clock = Clock(lambda: host.now)
        planner_of(made).plan(tasks, collector.rollouts(SAMPLING, 0))
        return dict(collector.clock.take().seconds), collector.numbers()["shards/messages_repeated"]


@pytest.mark.parametrize("at", ["hold", "go"])
def test_what_a_loss_took_is_recovery_and_no_other_stage(model: Path, at: str) -> None:
    """The answer that was lost is among those that were said again."""
    whole, _ = spent(model, Timed())
    assert "recovery" not in whole
    assert whole["hold"] == 2.0
    played = sum(whole.values()) - whole["hold"]
    with pytest.warns(UserWarning, match="shard 1 was lost"):
        found, repeated = spent(model, Timed(at))
    assert found.pop("recovery") == LATE_S + repeated
    assert found.pop("hold") == whole["hold"] - (at == "hold")
    assert sum(found.values()) == pytest.approx(played - (at == "go"))


def test_shards_that_are_measured_with_are_not_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(ahead, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    order = type("Order", (), {"tasks": lambda self, update: [], "spare": lambda self, update: []})()
    turns = Turns()
    turns.second.set()  # no session waits
    given: dict[str, Any] = {"collector": turns, "planner": Counts(), "order": order}
    with closing(ahead.Ahead(1, sampling=SAMPLING, weights=lambda version: {}, last=2, **given)) as made:
        made.take(0)
        made._futures[1].result()
        now[0] += 5.0
        with made.paused():
            now[0] += 100.0
        now[0] += 2.0
        assert made.take(1).idle_s == 0.0
        assert made.take(2).idle_s == 7.0


def test_a_shard_that_reads_no_message_is_lost_in_time() -> None:
    """A process that was stopped between two messages, and more of the second one than a pipe holds."""
    place: Any = Children().place(0, 30.0)
    place._seconds = 1.0
    os.kill(place.child._process.pid, signal.SIGSTOP)
    with pytest.raises(
        ShardLostError, match=r"call\(\) took longer than rollout\.shard_timeout_s = 1 s: .* was killed$"
    ):
        place.tell("hold", b"0" * (1 << 24))
    assert not place.child._process.is_alive()
    with pytest.raises(ShardLostError, match=r"^its process has ended$"):
        place.tell("hold", b"")
