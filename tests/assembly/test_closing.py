"""Every environment that training, warm start, evaluation and check-env make is closed, also where they fail."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import pytest
import torch

from tests.worlds import Cue, Nim
from turnwise.agents.collector import Collector
from turnwise.agents.jobs import jobs_for
from turnwise.agents.prompts import AgentConfig
from turnwise.assembly.players import model_agent
from turnwise.config.files import load_config
from turnwise.envs.check import check
from turnwise.envs.tasks import panel
from turnwise.evaluation.evaluate import evaluate
from turnwise.jobs import export, train, warmstart
from turnwise.models.engine import Sampling
from turnwise.models.policy import Policy
from turnwise.training.observing import Callback
from turnwise.training.trainer import CollectionError

torch.set_num_threads(1)


class Counted(Cue):
    """Knows which of its instances are open; fails where it is told to."""

    opened: ClassVar[int] = 0
    open_ones: ClassVar[set[int]] = set()
    fails_in: ClassVar[str] = ""

    def __init__(self) -> None:
        Counted.opened += 1
        self.number = Counted.opened
        Counted.open_ones.add(Counted.opened)
        self.id = Counted.opened

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        if Counted.fails_in == "step":
            raise RuntimeError("the simulator died")
        return super().step(action)

    def close(self) -> None:
        Counted.open_ones.discard(self.id)
        if Counted.fails_in == "close":
            raise RuntimeError("the door is stuck")


class CountedGame(Nim):
    def __init__(self) -> None:
        Counted.opened += 1
        self.id = Counted.opened
        Counted.open_ones.add(self.id)

    def close(self) -> None:
        Counted.open_ones.discard(self.id)


for _id, _entry in {"closing/Counted-v0": Counted, "closing/CountedGame-v0": CountedGame}.items():
    if _id not in gymnasium.registry:
        gymnasium.register(_id, _entry, disable_env_checker=True)
WORLD, GAME = "closing/Counted-v0", "closing/CountedGame-v0"
TINY = [
    *("model.hidden_size=32", "model.head_dim=16", "model.ffn_size=48", "warmstart.max_tokens=4000"),
    *("warmstart.tokenizer_episodes=20", "warmstart.split=train", "warmstart.stop_tasks=4"),
    *("warmstart.stop_success=0.9", "warmstart.check_every=1000", "agent.max_reply_tokens=8"),
    *("rollout.num_tasks=2", "rollout.group_size=2", "eval.every=1", "eval.tasks=2", "eval.test_tasks=2"),
    *("num_updates=1", "checkpoint_every=1", "eval.greedy=false"),
]


@pytest.fixture(autouse=True)
def _counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TURNWISE_CACHE", str(tmp_path / "cache"))
    Counted.opened, Counted.fails_in = 0, ""
    Counted.open_ones.clear()
    yield
    Counted.fails_in = ""


def all_closed() -> bool:
    assert Counted.opened > 0
    return not Counted.open_ones


@pytest.mark.parametrize("world", [WORLD, GAME])
def test_training_closes_what_it_opens(tmp_path: Path, world: str) -> None:
    train(load_config("smoke", [f"env.id={world}", *TINY]), tmp_path / "run")
    assert all_closed()
    evaluate(tmp_path / "run", tasks=2)
    assert all_closed()
    export(tmp_path / "run", tmp_path / "model")
    assert all_closed()


class Crash(Callback):
    """The world breaks when a stage begins."""

    def __init__(self, at: str) -> None:
        self.at = at

    def stage(self, name: str) -> None:
        if name == self.at:
            Counted.fails_in = "step"


def test_training_that_fails_closes_them_too(tmp_path: Path) -> None:
    config = load_config("smoke", [f"env.id={WORLD}", *TINY])
    with pytest.raises(CollectionError, match="4 of 4 episodes of update 0 failed twice in their environment"):
        train(config, tmp_path / "run", Crash("train"))
    assert all_closed()
    Counted.fails_in = ""
    with pytest.raises(
        CollectionError, match=r"sampled on .*2 of 2 episodes failed.*: RuntimeError \(.*\): the simulator"
    ):
        train(config, tmp_path / "measured", Crash("measure"))
    assert all_closed()
    Counted.fails_in = ""
    with pytest.raises(ValueError, match="unknown split 'nowhere'"):
        train(load_config("smoke", [f"env.id={WORLD}", *TINY, "eval.test_split=nowhere"]), tmp_path / "other")
    assert all_closed()


def test_a_world_that_cannot_be_closed_does_not_keep_the_others_open(
    model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    policy = Policy.load(model, lora=None)
    player = model_agent(policy, AgentConfig(max_reply_tokens=4), num_slots=2, threads=1)
    collector = Collector(lambda: gymnasium.make(WORLD), player)
    collector.collect(jobs_for(panel(gymnasium.make(WORLD), "train")[:1], 2, 0), Sampling(max_tokens=4))
    assert len(Counted.open_ones) == 3
    Counted.fails_in = "close"
    collector.close()
    assert len(Counted.open_ones) == 1  # the panel's, which is this test's own
    assert "closing closing/Counted-v0 raised RuntimeError: the door is stuck" in caplog.text


def test_a_warm_start_that_fails_closes_them(tmp_path: Path) -> None:
    Counted.fails_in = "step"
    with pytest.raises(ValueError, match="the simulator died"):
        warmstart(load_config("smoke", [f"env.id={WORLD}", *TINY]))
    assert all_closed()


@pytest.mark.parametrize("left", [RuntimeError("the door is stuck"), SystemExit(9)])
def test_a_world_that_cannot_be_closed_is_measured(
    left: BaseException, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def close(self: Counted) -> None:
        raise left

    monkeypatch.setattr(Counted, "close", close)
    evaluate("expert", env=WORLD, tasks=2)
    assert f"closing {WORLD} raised {type(left).__name__}" in caplog.text


@pytest.mark.parametrize("who", ["model", "random", "expert"])
@pytest.mark.parametrize("fails_in", ["", "step"])
def test_an_evaluation_closes_what_it_opens(model: Path, who: str, fails_in: str) -> None:
    target = str(model) if who == "model" else who
    Counted.fails_in = fails_in
    agent = {"max_reply_tokens": 4} if who == "model" else {}
    if fails_in:
        with pytest.raises(ValueError, match=r"3 of 3 episodes failed, .*the simulator died"):
            evaluate(target, env=WORLD, tasks=3, agent=agent)
    else:
        evaluate(target, env=WORLD, tasks=3, agent=agent)
    assert all_closed()


@pytest.mark.parametrize("fails_in", ["", "step"])
def test_check_env_closes_what_it_opens(fails_in: str) -> None:
    Counted.fails_in = fails_in
    check(WORLD, seconds=4)
    assert all_closed()
