"""Runs whose episodes are played ahead of the learner."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from tests.faults.runs import assert_same
from tests.shards.hosts import Here, Mortal
from tests.shards.plays import TREE, config
from turnwise.assembly.run import Assembly
from turnwise.clock import Clock
from turnwise.commands.display import ahead_text
from turnwise.config.schema import RunConfig
from turnwise.models.drawing import Sampling
from turnwise.models.policy import Policy
from turnwise.replay.store import TrajectoryReader
from turnwise.runs.directory import RunDirectory
from turnwise.shards import rollouts
from turnwise.shards.connection import Host, Place
from turnwise.training import ahead
from turnwise.training.proof import DisagreementError
from turnwise.training.trainer import Trainer

GRPO, TWO, DECOUPLED = "algorithm=grpo", "rollout.ahead=2", "stale.correction=decoupled"


class Late(Here):
    """Shards that answer late, now and then, by a pattern that differs from host to host."""

    def __init__(self, every: int) -> None:
        self.every, self.calls = every, 0

    def place(self, number: int, seconds: float) -> Place:
        place: Any = super().place(number, seconds)
        told = place.told

        def later(seconds: float) -> Any:
            self.calls += 1
            time.sleep(0.02 * (self.calls % self.every == 0))
            return told(seconds)

        place.told = later
        return place  # type: ignore[no-any-return]


def run(made: RunConfig, path: Path, host: Host | None, updates: int = 4) -> RunDirectory:
    """So many updates of a new run, or of the one that is there from its newest checkpoint on; saved at the end."""
    fresh = not (path / "config.yaml").exists()
    found = RunDirectory.create(path, made, {}) if fresh else RunDirectory.open(path)
    with closing(Assembly(made, host=host)) as assembly, closing(assembly.trainer(found)) as trainer:
        if not fresh:
            trainer.rewind()
        while trainer.finished < updates:
            trainer.step()
        trainer.save()
    return found


def hashes(found: RunDirectory) -> list[str]:
    """By version, those of the weights that the learner had; the first from the first episodes."""
    first = next(iter(TrajectoryReader(found.trajectories_path))).adapter_hash
    return [first, *(line["adapter_hash"] for line in found.metrics())]


@pytest.mark.parametrize("algorithm", [GRPO, TREE, "algorithm={type: spear, warmup_updates: 1}"])
def test_which_weights_play_an_update_follows_from_its_number(model: Path, tmp_path: Path, algorithm: str) -> None:
    found = run(config(model, algorithm, TWO, DECOUPLED), tmp_path / "run", Here())
    versions = hashes(found)
    assert len(set(versions)) == 5, "every update changes the weights"
    episodes = list(TrajectoryReader(found.trajectories_path))
    size = len(episodes) // 4
    for update in range(4):
        own = {(t.policy_version, t.adapter_hash) for t in episodes[update * size : (update + 1) * size]}
        version = max(0, update - 2)
        assert own == {(version, versions[version])}
    for update, line in enumerate(found.metrics()):
        assert line[f"staleness/{min(update, 2)}"] > 0
        assert line["agreement/num_tokens"] > 0
        assert line["agreement/max_abs"] < 1e-4
        assert line["seconds"]["play"] > 0
        assert f"updates behind: {min(update, 2)} (" in ahead_text(line)
        assert line["episodes"] == size


def test_nothing_depends_on_time(model: Path, tmp_path: Path) -> None:
    """Two hosts that are late at different times, one of which loses a shard too; episodes are graded in threads."""
    graded = "rewards={functions: ['tests.grading.rewards:length'], threads: 2, world: 0.5}"
    made = config(model, TREE, TWO, DECOUPLED, graded, "rollout.shards=2", "eval.every=2", "eval.tasks=3")
    whole = run(made, tmp_path / "whole", Late(7))
    killed: list[int] = []

    def when(number: int, name: str, nth: int) -> Literal["during"] | None:
        if killed or (number, name) != (1, "go") or nth < 20:
            return None
        killed.append(nth)
        return "during"

    with pytest.warns(UserWarning, match="shard 1 was lost"):
        other = run(made, tmp_path / "other", Mortal(Late(3), when))
    for found in (whole, other):
        records = found.metrics()
        kept = [{k: v for k, v in record.items() if "shards/" not in k and k != "tokens"} for record in records]
        found.metrics_path.write_text("".join(json.dumps(record) + "\n" for record in kept))
    assert_same(whole, other)
    assert whole.metrics()[1]["eval_success"] == other.metrics()[1]["eval_success"]


@pytest.mark.parametrize("stop", [1, 3])
def test_a_run_that_was_stopped_goes_on_to_the_same_numbers(model: Path, tmp_path: Path, stop: int) -> None:
    """What was in flight is played again with the weights that the checkpoint holds for it."""
    made = config(model, "algorithm={type: dapo, max_tries: 2}", TWO, "num_updates=5")
    whole = run(made, tmp_path / "whole", Here(), 5)
    run(made, tmp_path / "broken", Here(), stop)
    assert len(RunDirectory.open(tmp_path / "broken").load("last").state["sides"][""]["past"]) == min(stop, 2)
    assert_same(run(made, tmp_path / "broken", Here(), 5), whole)
    assert all("mechanisms/DynamicSampling/tries" in line for line in whole.metrics())


def test_a_checkpoint_with_other_earlier_weights_is_refused(model: Path, tmp_path: Path) -> None:
    made = config(model, GRPO, TWO)
    found = run(made, tmp_path / "run", Here(), 2)
    checkpoint = found.load("last")
    name = next(name for name in checkpoint.tensors if name.startswith("past.1."))
    checkpoint.tensors[name] += 1
    found.checkpoints.drop_after(0)
    found.save(checkpoint)
    with pytest.raises(ValueError, match="does not restore the weights"):
        run(made, tmp_path / "run", Here(), 3)


def test_the_next_update_is_played_while_this_one_is_learned(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The learner waits for the shards to finish the next update: with ahead it comes, before the learner is done."""
    made = config(model, GRPO, "rollout.ahead=1")
    done, learn = [threading.Event() for _ in range(3)], Trainer.learn
    learned: list[int] = []

    class Watched(Here):
        def place(self, number: int, seconds: float) -> Place:
            place: Any = super().place(number, seconds)
            tell = place.tell

            def telling(name: str, *arguments: Any) -> None:
                tell(name, *arguments)
                if name == "begin":
                    done[arguments[0].key].set()

            place.tell = telling
            return place  # type: ignore[no-any-return]

    def waiting(trainer: Trainer, update: int) -> Any:
        assert update == 2 or done[update + 1].wait(30), "nothing was played ahead"
        assert not any(event.is_set() for event in done[update + 2 :]), "further ahead than was asked for"
        learned.append(update)
        return learn(trainer, update)

    monkeypatch.setattr(Trainer, "learn", waiting)
    made = made.model_copy(update={"num_updates": 3})
    run(made, tmp_path / "run", Watched(), 3)
    assert learned == [0, 1, 2]


def test_weights_that_are_not_the_learners_are_found(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other weights in the shards, by their hash; another policy than the one that played, by its log-probs."""
    made = config(model, GRPO, "rollout.ahead=1", "optimizer.lr=1e-1")
    save, calls = rollouts.save, list[int]()

    def swapped(tensors: dict[str, torch.Tensor]) -> bytes:
        calls.append(len(tensors))
        return save({name: tensor + (len(calls) == 2) for name, tensor in tensors.items()})

    with monkeypatch.context() as patch:
        patch.setattr(rollouts, "save", swapped)
        with pytest.raises(DisagreementError, match=r"plays with weights .*, the learner holds"):
            run(made, tmp_path / "hash", Here())
    with monkeypatch.context() as patch:
        patch.setattr(Policy, "as_of", lambda policy, version: nullcontext())
        with pytest.raises(DisagreementError, match="disagree on the log-probs of the same tokens"):
            run(made, tmp_path / "numbers", Here())


def test_two_policies_play_ahead_with_weights_of_their_own(model: Path, tmp_path: Path) -> None:
    nim = ("env.id=tests.worlds:tests/Nim-v0", "env.success_threshold=null", "game={policies: per_role}")
    found = run(config(model, GRPO, "rollout.ahead=1", *nim), tmp_path / "run", Here(), 3)
    pairs = [line["adapter_hash"].split(",") for line in found.metrics()]
    last = [t for t in TrajectoryReader(found.trajectories_path) if t.policy_version == 1]
    assert {t.adapter_hash for t in last} == set(pairs[0])
    assert len({(t.role, t.adapter_hash) for t in last}) == 2


def test_a_run_ends_in_the_middle_of_a_session_too(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a shard does not answer, it is ended: no thread is left that waits for it, and no new one is made."""
    monkeypatch.setattr(ahead, "_LEAVING_S", 2.0)
    made, hangs, waiting = config(model, GRPO, TWO, "rollout.num_tasks=2"), threading.Event(), threading.Event()
    placed: list[int] = []

    class Stuck(Here):
        def place(self, number: int, seconds: float) -> Place:
            place: Any = super().place(number, seconds)
            told, end, ended = place.told, place.end, threading.Event()
            placed.append(number)

            def stuck(seconds: float) -> Any:
                if hangs.is_set():
                    waiting.set()
                    ended.wait(60)
                return told(seconds)

            place.told, place.end = stuck, lambda: (end(), ended.set())
            return place  # type: ignore[no-any-return]

    found = RunDirectory.create(tmp_path / "run", made, {})
    with closing(Assembly(made, host=Stuck())) as assembly, closing(assembly.trainer(found)) as trainer:
        learn = trainer.learn

        def learning(update: int) -> Any:
            hangs.set()
            assert waiting.wait(30), "the next session has begun"
            return learn(update)

        monkeypatch.setattr(trainer, "learn", learning)
        trainer.step()
        trainer.close()
        assert not [thread for thread in threading.enumerate() if thread.name == "turnwise-ahead"]
    assert placed == [0], "nobody plays the session again"


def test_an_error_of_a_session_ends_the_update_that_it_is_of(model: Path, tmp_path: Path) -> None:
    host = Mortal(Here(), lambda number, name, at: "during" if name == "go" and at > 8 else None)
    with pytest.raises(RuntimeError, match="shard 0 was lost 1 times"):
        run(config(model, GRPO, TWO, "rollout.shard_losses=0"), tmp_path / "run", host)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (
            ["algorithm={type: aepo, forget: false, pace: lockstep, origin: own}"],
            r"rollout\.ahead=2: the planner of aepo \(TreePlanner\) keeps",
        ),
        (["algorithm=dppo", DECOUPLED], r"dppo compares with the policy that sampled .*stale\.correction=none"),
        (["algorithm=copo", DECOUPLED], r"one of copo's two losses only: set .*ratio_denominator=proximal"),
        (["algorithm={type: grpo, ratio_denominator: proximal}", DECOUPLED], "grpo corrects by itself"),
        (["rollout.env_order=free", "rollout.env_threads=2"], r"rollout\.ahead at 0"),
        (["device=cuda"], r"rollout\.ahead=2 plays in a process beside this one"),
        (
            ["rollout.backend=vllm", "rollout.vllm.url=http://127.0.0.1:1"],
            r"rollout\.ahead=2 was not tried with a vLLM",
        ),
        (["rollout.ahead=-1"], "greater than or equal to 0"),
        (["rollout.ahead=0", DECOUPLED], r"stale\.correction: for rollout\.ahead of 1 or more"),
        (["stale.cap=3"], "cap: for correction=decoupled"),
        ([DECOUPLED, "stale.cap=null", "stale.beyond=drop"], "beyond=drop is for tokens above cap"),
        (["stale.correction=decopled"], "decoupled"),
    ],
)
def test_what_cannot_be_played_ahead_is_refused(model: Path, settings: list[str], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        config(model, TWO, *settings)


@pytest.mark.parametrize(
    "settings", [["algorithm=dppo"], ["algorithm=copo", "rollout.group_size=4"], ["algorithm=dpo"]]
)
def test_those_that_are_refused_a_correction_play_ahead_without_it(model: Path, settings: list[str]) -> None:
    assert config(model, TWO, *settings).rollout.ahead == 2


@pytest.mark.slow
def test_child_processes_play_ahead_as_shards_of_this_process_do(model: Path, tmp_path: Path) -> None:
    made = config(model, TREE, TWO, "eval.every=1", "eval.tasks=3")
    here, there = (run(made, tmp_path / name, host) for name, host in (("here", Here()), ("there", None)))
    assert_same(here, there)


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_several_learners_prove_what_was_played_ahead(model: Path, tmp_path: Path, parallel: str) -> None:
    made = config(model, GRPO, TWO, DECOUPLED, "learner.ranks=2", f"learner.parallel={parallel}", "rollout.shards=2")
    whole = run(made, tmp_path / "whole", None)
    run(made, tmp_path / "broken", None, 2)
    assert_same(run(made, tmp_path / "broken", None), whole)
    assert all(line["agreement/max_abs"] < 1e-4 and line["agreement/num_tokens"] > 0 for line in whole.metrics())


class Turns:
    """Plays turns in the second update's session until it may end; counts one failure of a world for each session."""

    def __init__(self) -> None:
        self.clock, self.failures, self.counted, self.ends, self.second = Clock(), 0, 0, True, threading.Event()

    def rollouts(self, sampling: Sampling, key: int, weights: Any) -> Any:
        if key == 1 and not self.second.is_set():
            self.ends = False
        return self

    def events(self) -> Iterator[Any]:
        self.counted += 1
        self.failures += 1
        while not self.ends:
            self.second.set()
            time.sleep(0.01)
            yield None

    def numbers(self) -> dict[str, int]:
        found, self.counted = {"sessions": self.counted}, 0
        return found


class Counts:
    """Plans nothing, and counts for each session one act, and one request to the judge."""

    def __init__(self) -> None:
        self.acts, self.asked = 0, 0

    def plan(self, tasks: Any, rollouts: Any, spare: Any) -> list[Any]:
        self.acts, self.asked = self.acts + 1, self.asked + 1
        assert all(event is None for event in rollouts.events())
        return []

    def acted(self) -> dict[str, float]:
        found, self.acts = {"acts": self.acts}, 0
        return found

    def spent(self) -> dict[str, float]:
        found, self.asked = {"requests": self.asked}, 0
        return found


def test_what_a_session_counted_that_was_broken_off_is_of_no_update() -> None:
    """As where an update did not fit into memory, and is begun again."""
    turns, counts = Turns(), Counts()
    order = type("Order", (), {"tasks": lambda self, update: [], "spare": lambda self, update: []})()
    given: dict[str, Any] = {"collector": turns, "planner": counts, "order": order, "spent": counts.spent}
    made = ahead.Ahead(1, sampling=Sampling(), weights=lambda version: {}, last=1, **given)
    with closing(made):
        made.take(0)
        assert turns.second.wait(30)
        made.restart()
        turns.ends = True
        played = made.take(1)
    assert (played.numbers, played.failures) == ({"sessions": 1}, 1)
    assert (played.mechanisms, played.spent) == ({"Counts/acts": 1}, {"requests": 1})
