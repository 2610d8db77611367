"""What shards do not do: go on with other weights, repeat themselves wrongly, or be made again for ever."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.models import tiny_model, tokenizer
from tests.shards.hosts import Here, Mortal
from tests.shards.plays import TREE, collector_here, config, planner_of, policy_of, sharded
from tests.shards.worlds import Idle
from turnwise import childprocess
from turnwise.agents.jobs import Job
from turnwise.assembly.collecting import TRAIN
from turnwise.assembly.shards import Blueprint, shards_of
from turnwise.errors import AgentError
from turnwise.models.drawing import Sampling
from turnwise.models.loading import save_model
from turnwise.shards.children import Children
from turnwise.shards.connection import Connection, Patience, ShardError, differing
from turnwise.shards.messages import Described, ForkFrom
from turnwise.shards.rollouts import ShardedCollector, ShardedRollouts, Shards
from turnwise.shards.shard import Shard
from turnwise.training.proof import DisagreementError
from turnwise.trajectory import RolloutFinished, Task, Trajectory, TurnFinished

TWO = "rollout.shards=2"
GRPO = "algorithm=grpo"


def session(model: Path, host: Any, *settings: str) -> tuple[ShardedRollouts, list[Task]]:
    made = config(model, TWO, *settings)
    shards = shards_of(made.model_dump(mode="json"), str(model), (), {"": policy_of(made, model)}, host)
    tasks = [Task("tests/Lottery-v0", "train", index, str(index)) for index in range(3)]
    return ShardedCollector(shards, TRAIN).rollouts(Sampling(max_tokens=4), 0), tasks


@pytest.mark.parametrize("said", ["build", "hold", "go"])
def test_a_shard_that_is_lost_again_and_again_stops_the_run(model: Path, said: str) -> None:
    host = Mortal(Here(), lambda number, name, place: "during" if (number, name) == (1, said) else None)
    with (
        pytest.warns(UserWarning, match="with every world in a process of its own"),
        pytest.raises(ShardError, match=r"shard 1 was lost 4 times in one update, .*rollout\.shard_losses"),
    ):
        sharded(config(model, TWO, "rollout.shard_losses=3"), model, host)
    assert len(host.killed) == 4


def test_a_shard_that_is_lost_twice_while_it_is_made_is_made(model: Path) -> None:
    host = Mortal(
        Here(), lambda number, name, place: "during" if (number, name) == (1, "build") and place < 2 else None
    )
    with pytest.warns(UserWarning, match="with every world in a process of its own"):
        (played,) = sharded(config(model, TWO), model, host)
    assert len(host.killed) == 2
    assert len(played.trajectories) == 3 * 4


def test_episodes_that_differ_the_second_time_stop_the_run(model: Path) -> None:
    """A world that never repeats itself; its first batch was heard."""
    host = Mortal(Here(), lambda *at: "before" if at == (1, "go", 6) else None)
    with (
        pytest.warns(UserWarning, match="shard 1 was lost"),
        pytest.raises(ShardError, match=r"rollout \d+ differs in observation: the world does not repeat itself"),
    ):
        sharded(config(model, TWO, "env.id=tests.shards.worlds:tests/Restless-v0", "rollout.num_slots=2"), model, host)


class Unlike:
    """A host whose shards have something done to them after they have got their weights."""

    def __init__(self, change: Any) -> None:
        self.change = change

    def __getattr__(self, name: str) -> Any:
        return getattr(Here(), name)

    def place(self, number: int, seconds: float) -> Any:
        place, change = Here().place(number, seconds), self.change
        tell = place.tell

        def told(name: str, *arguments: Any) -> None:
            if name == "begin" and number == 1:
                change(place.served._shard)  # type: ignore[attr-defined]
            tell(name, *arguments)

        place.tell = told  # type: ignore[method-assign]
        return place


def _other_adapters(shard: Shard) -> None:
    policy = shard.players[""].policy
    with torch.no_grad():
        next(policy.parameters()).add_(1e-6)


def _other_merge(shard: Shard) -> None:
    for name, weight in shard.players[""].policy.sampler.named_parameters():
        if "q_proj" in name:
            weight.data.mul_(1.001)


def _other_name(shard: Shard) -> None:
    shard.players[""].agent.adapter_hash = "0" * 16


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_other_adapters, "shard 1 does not hold one policy: sync: the learner holds weights"),
        (_other_merge, "shard 1 does not hold one policy: merge: .* is not the learner's"),
        (_other_name, "shard 1 plays with weights 0000000000000000, the learner holds"),
    ],
)
def test_a_shard_with_other_weights_is_found_when_a_session_begins(model: Path, change: Any, told: str) -> None:
    with pytest.raises(DisagreementError, match=told):
        sharded(config(model, TWO), model, Unlike(change))


def test_the_weights_of_each_update_are_held(model: Path) -> None:
    made = config(model, TWO)
    policy = policy_of(made, model)
    shards = shards_of(made.model_dump(mode="json"), str(model), (), {"": policy}, Here())
    collector, planner = ShardedCollector(shards, TRAIN), planner_of(made)
    tasks = [Task("tests/Lottery-v0", "train", index, str(index)) for index in range(3)]
    for update in range(2):
        played = planner.plan(tasks, collector.rollouts(Sampling(max_tokens=4), update))
        assert {(t.adapter_hash, t.policy_version) for t in played} == {(policy.adapter_hash, update)}
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter.add_(0.01)
        policy.sync(update + 1)


def test_another_model_or_version_is_refused(model: Path, tmp_path: Path) -> None:
    made = config(model, TWO)
    save_model(tiny_model(seed=1), tokenizer(), tmp_path / "other")
    with pytest.raises(ShardError, match=r"shard 0 has loaded another model .* the same model folder on every machine"):
        shards_of(made.model_dump(mode="json"), str(tmp_path / "other"), (), {"": policy_of(made, model)}, Here())
    drawn = Blueprint(0, config(model).model_dump(mode="json"), str(model), ())
    with pytest.raises(ShardError, match=r"shard 0 runs turnwise .*, and this process 9\.9: install the same version"):
        Shards(Here(), [(drawn, drawn)], Described("9.9", {}), {}, Patience(1.0, 0), 2)


def test_another_opponent_is_refused(model: Path, tmp_path: Path) -> None:
    """The folder has other weights where the second shard is."""
    opponent = tmp_path / "opponent"
    save_model(tiny_model(), tokenizer(), opponent)
    nim = ("env.id=tests.worlds:tests/Nim-v0", "env.success_threshold=null", f"game.eval_opponent={opponent}")
    made = config(model, TWO, *nim)

    class Elsewhere(Here):
        def place(self, number: int, seconds: float) -> Any:
            save_model(tiny_model(seed=number), tokenizer(), opponent)
            return super().place(number, seconds)

    given = made.model_dump(mode="json"), str(model), (), {"": policy_of(made, model)}
    shards_of(*given, Here()).close()
    with pytest.raises(ShardError, match=r"shard 1 has loaded other opponents .*\{'measure/': '\w{16}'\}, elsewhere"):
        shards_of(*given, Elsewhere())


def test_what_a_shard_raises_is_raised_here(model: Path) -> None:
    def broken(shard: Shard) -> None:
        with torch.no_grad():
            shard.players[""].policy.sampler.model.norm.weight.fill_(torch.nan)

    made = config(model, TWO)
    host = Unlike(broken)
    with pytest.raises(AgentError, match=r"the policy \(update 0\) cannot continue in episode train-1-0-0, turn 1"):
        sharded(made, model, host)


def test_what_cannot_be_forked(model: Path) -> None:
    rollouts, tasks = session(model, Here(), TREE)
    first = rollouts.start(tasks[0], 0)
    with pytest.raises(ValueError, match="rollout 0 cannot be forked after 1 turns: expected 0 to 0"):
        rollouts.fork(first, 1)
    for event in rollouts.events():
        if isinstance(event, TurnFinished) and event.turn == 0 and event.rollout == first:
            assert rollouts.fork(first, 1) == 1
    with pytest.raises(ValueError, match="rollout 0 cannot be forked after 3 turns: expected 0 to 2"):
        rollouts.fork(first, 3)


def test_a_copy_of_what_has_not_begun_plays_from_the_start(model: Path) -> None:
    """As where the parent's world has failed since its last event: the shard finds it queued again."""
    rollouts, tasks = session(model, Here(), TREE)
    first = rollouts.start(tasks[0], 7)
    copy = rollouts.fork(first, 0)
    found = {event.rollout: event.trajectory for event in rollouts.events() if isinstance(event, RolloutFinished)}
    assert found.keys() == {first, copy}
    assert (found[first].sample, found[copy].sample) == (7, copy)
    assert found[copy].fork is None
    assert len(found[copy].turns) == 3


def test_a_copy_of_a_parent_that_begins_again_plays_from_the_start(model: Path, tmp_path: Path) -> None:
    """Its world has failed, and it has not come as far again."""
    moody = f"env={{id: 'tests.worlds:tests/Moody-v0', kwargs: {{way: raise, marks: {tmp_path}, times: 1}}}}"
    made = config(model, GRPO, moody)
    rollouts = collector_here(made, model).rollouts(Sampling(max_tokens=4), 0)
    task = Task("tests/Moody-v0", "train", 0, "0")
    first = rollouts.start(task, 0)
    fork = ForkFrom(1, first, 1, Job(task, 1, 0, 0))
    while not list(tmp_path.iterdir()):
        list(rollouts.advance())
    list(rollouts.advance())  # the world is reset
    with pytest.raises(ValueError, match="cannot be forked after 1 turns"):
        rollouts.fork(first, 1, number=9)
    Shard._obey(rollouts, fork)
    found = {event.rollout: event.trajectory for event in rollouts.events() if isinstance(event, RolloutFinished)}
    assert found[1].fork is None
    assert (found[1].sample, len(found[1].turns)) == (1, 3)


def test_a_copy_that_cannot_be_made_of_a_sound_parent_is_an_error(model: Path) -> None:
    """The last turn was heard of, and the end is in the same batch: no other episode is played in the place of it."""
    rollouts, tasks = session(model, Here(), TREE)
    first = rollouts.start(tasks[0], 0)

    def play() -> None:
        for event in rollouts.events():
            if isinstance(event, TurnFinished) and (event.rollout, event.turn) == (first, 2):
                rollouts.fork(first, 3)

    with pytest.raises(ValueError, match="the episode cannot be forked after 3 turns: expected 0 to 2"):
        play()


def test_losses_are_counted_from_the_end_of_the_session_before() -> None:
    """One loss is allowed: one in a session, and one while the weights of the next are taken, but not two there."""
    host = Mortal(Here(), lambda number, name, place: "during" if place in (1, 4, 7) else None)
    connection = Connection(0, host, Idle, Idle, Patience(1.0, 1))
    connection.build()
    connection.told()
    connection.tell("begin")
    with pytest.warns(UserWarning, match="shard 0 was lost"):
        connection.told()
    connection.hold("first", 0, b"")
    with pytest.warns(UserWarning, match="shard 0 was lost"):
        connection.told()
    connection.hold("second", 0, b"")
    with pytest.raises(ShardError, match="shard 0 was lost 2 times in one update"):
        connection.told()
    assert [name for _, name, _ in host.killed] == ["begin", "hold", "hold"]


def test_a_rollout_that_is_stopped_gives_no_trajectory(model: Path) -> None:
    rollouts, tasks = session(model, Here())
    numbers = [rollouts.start(task, 0) for task in tasks]
    finished = []
    for event in rollouts.events():
        if isinstance(event, TurnFinished) and event.rollout == numbers[1]:
            rollouts.stop(numbers[1])
        if isinstance(event, RolloutFinished):
            finished.append(event.rollout)
    assert sorted(finished) == [numbers[0], numbers[2]]


def test_rollouts_that_are_stopped_once_their_shards_have_played_on_give_no_trajectory(model: Path) -> None:
    """They are stopped as the first one ends. Most ends stand in the same batch, and in another shard's, under way."""
    rollouts, tasks = session(model, Here(), "rollout.num_slots=24")
    numbers = [rollouts.start(task, sample) for task in tasks for sample in range(4)]
    finished = []
    for event in rollouts.events():
        if isinstance(event, RolloutFinished):
            finished.append(event.rollout)
            for number in set(numbers) - {event.rollout} if len(finished) == 1 else ():
                rollouts.stop(number)
    assert len(finished) == 1


def test_a_session_that_was_left_does_not_disturb_the_next(model: Path) -> None:
    made = config(model, TWO)
    shards = shards_of(made.model_dump(mode="json"), str(model), (), {"": policy_of(made, model)}, Here())
    collector = ShardedCollector(shards, TRAIN)
    tasks = [Task("tests/Lottery-v0", "train", index, str(index)) for index in range(3)]
    whole = planner_of(made).plan(tasks, collector.rollouts(Sampling(max_tokens=4), 5))
    left = collector.rollouts(Sampling(max_tokens=4), 4)
    left.start(tasks[0], 0)
    left.start(tasks[1], 0)
    for _ in left.events():
        break
    again = planner_of(made).plan(tasks, collector.rollouts(Sampling(max_tokens=4), 5))
    assert all(differing(a, b) is None for a, b in zip(whole, again, strict=True))


def test_an_interrupt_while_a_shard_is_waited_for_leaves_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    shards = Shards(Children(), [(Idle, Idle)] * 2, Idle.described, {}, Patience(60.0, 0), 2)
    first, second = shards.connections
    processes = [connection._place.child._process for connection in shards.connections]  # type: ignore[union-attr]
    for connection in shards.connections:
        connection.tell("begin")

    def interrupted(*given: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(childprocess, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            first.told()
    shards.close()
    assert not any(process.is_alive() for process in processes)
    assert second._place is None


def test_a_shard_that_cannot_be_closed_leaves_none_of_the_others_open(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Here()
    shards = Shards(host, [(Idle, Idle)] * 3, Idle.described, {}, Patience(1.0, 0), 2)

    def stuck() -> None:
        raise OSError("stuck")

    closed = []
    monkeypatch.setattr(shards.connections[1], "close", stuck)
    monkeypatch.setattr(host, "close", lambda: closed.append([each._place for each in shards.connections]))
    with pytest.raises(OSError, match="stuck"):
        shards.close()
    ((first, _, last),) = closed
    assert first is last is None


def test_records_are_compared_field_by_field() -> None:
    task = Task("w", "train", 0, "k")
    first = RolloutFinished(3, Trajectory("a", task, 0, 0, (), "terminated", True, 1.0))
    assert differing(first, first) is None
    assert differing(first, RolloutFinished(3, replace(first.trajectory, score=0.5))) == "score"
    turn = TurnFinished(0, 0, np.zeros(2, np.float32))
    assert differing(turn, TurnFinished(0, 0, np.full(2, 1e-4, np.float32))) is None
    assert differing(turn, TurnFinished(0, 0, np.full(2, 1e-2, np.float32))) == "entropies"
    assert differing(turn, TurnFinished(0, 0, np.zeros(3, np.float32))) == "entropies"
    assert differing(turn, first) == "it"
