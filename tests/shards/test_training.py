"""Whole runs whose episodes are played in shards."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import gymnasium
import pytest

import turnwise
from tests.faults.runs import assert_same, config, timeless
from tests.shards.hosts import Here, Mortal
from tests.shards.plays import TREE
from tests.worlds import Echo
from turnwise.assembly.run import Assembly
from turnwise.config.schema import RunConfig
from turnwise.evaluation.report import Report
from turnwise.replay.store import TrajectoryReader
from turnwise.runs.directory import RunDirectory
from turnwise.shards.connection import Host

TWO = "rollout.shards=2"
NIM = ("env.id=tests.worlds:tests/Nim-v0", "env.success_threshold=null")
PANELS = ("eval.every=1", "eval.tasks=3", "eval.test_split=test", "eval.test_tasks=3")


def run(made: RunConfig, path: Path, host: Host | None = None, updates: int = 2) -> tuple[RunDirectory, Report | None]:
    """So many updates, saved, and a measurement of the test panel."""
    found = RunDirectory.create(path, made, {})
    with closing(Assembly(made, host=host)) as assembly, closing(assembly.trainer(found)) as trainer:
        for _ in range(updates):
            trainer.step()
        trainer.save()
        return found, trainer.final().get("sampled")


def lost_once(number: int, name: str, nth: int) -> Mortal:
    """A host in this process that loses one shard during a message."""
    return Mortal(Here(), lambda *at: "during" if at == (number, name, nth) else None)


def test_a_run_in_shards_is_measured_in_shards_and_survives_a_loss(model: Path, tmp_path: Path) -> None:
    """Same episodes, same weights, same measurements; nothing twice in the file."""
    made = config(model, TREE, TWO, *PANELS)
    whole, report = run(made, tmp_path / "whole", Here())
    host = lost_once(1, "go", 7)
    with pytest.warns(UserWarning, match="shard 1 was lost"):
        broken, again = run(made, tmp_path / "broken", host)
    assert host.killed == [(1, "go", 7)]
    assert again == report
    lines, others = whole.metrics(), broken.metrics()
    assert [line["shards/lost"] for line in lines] == [0, 0]
    assert [line["shards/lost"] for line in others][-1] == 1
    assert others[-1]["shards/messages_repeated"] > 1
    for line in (*lines, *others):
        del line["shards/lost"], line["shards/messages_repeated"]
        line.pop("tokens")
    assert timeless(lines) == timeless(others)
    assert all("eval_success" in line for line in lines)
    played = [(t.policy_version, t.episode) for t in TrajectoryReader(broken.trajectories_path)]
    assert played == [(t.policy_version, t.episode) for t in TrajectoryReader(whole.trajectories_path)]
    assert len(set(played)) == len(played) == 2 * 2 * 4


@pytest.mark.parametrize("game", ["game={policies: per_role}", "game={opponent: random}"])
def test_games_are_played_in_shards(model: Path, tmp_path: Path, game: str) -> None:
    """By two policies, which have weights of their own in every shard; and against others in measurements."""
    settings = ("algorithm=grpo", *NIM, game, *PANELS)
    (alone, report), (two, again) = (
        run(config(model, *settings, *more), tmp_path / str(len(more)), Here() if more else None)
        for more in ((), (TWO,))
    )
    first, other = (list(TrajectoryReader(found.trajectories_path)) for found in (alone, two))
    tokens = [[(t.episode, [turn.action_ids.tolist() for turn in t.turns]) for t in found] for found in (first, other)]
    assert tokens[0][:8] == tokens[1][:8], "the first update's weights are the same"
    assert {t.adapter_hash for t in first[:8]} == {t.adapter_hash for t in other[:8]}
    assert report is not None
    assert again is not None
    assert (again.num_tasks, again.name) == (report.num_tasks, report.name)


def test_tasks_are_replaced_in_shards_too(model: Path, tmp_path: Path) -> None:
    """Dynamic sampling plays spare tasks in further waves of one session."""
    settings = ("algorithm={type: dapo, max_tries: 3}", "env.id=tests.worlds:tests/Echo-v0")  # it always pays
    found, _ = run(config(model, *settings, TWO, *PANELS), tmp_path / "run", Here(), updates=1)
    (line,) = found.metrics()
    played = list(TrajectoryReader(found.trajectories_path))
    assert len(played) == line["episodes"] == 3 * 2 * 4
    assert len({t.episode for t in played}) == len(played)


def test_episodes_of_shards_are_graded_here(model: Path, tmp_path: Path) -> None:
    """By functions in threads, under a planner that reacts: same tokens and rewards as in one process."""
    settings = (
        "algorithm=grpo",
        "rewards={functions: ['tests.grading.rewards:length'], threads: 2, world: 0.5}",
        *PANELS,
    )
    (alone, report), (two, again) = (
        run(config(model, *settings, *more), tmp_path / str(len(more)), Here() if more else None, updates=1)
        for more in ((), (TWO,))
    )
    first, other = (list(TrajectoryReader(found.trajectories_path)) for found in (alone, two))
    assert [t.episode for t in first] == [t.episode for t in other]
    assert [t.rewards for t in first] == [t.rewards for t in other]
    assert all(t.grading is not None for t in other)
    assert report is not None
    assert again is not None
    assert again.mean_return == report.mean_return
    forks, _ = run(config(model, *settings[1:], TREE, TWO), tmp_path / "tree", Here(), updates=1)
    played = list(TrajectoryReader(forks.trajectories_path))
    assert any(t.fork is not None for t in played)
    assert all(t.grading is not None for t in played)
    assert len({t.episode for t in played}) == len(played) == 2 * 4


def test_a_world_given_as_an_object_is_not_known_elsewhere(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"rollout\.shards: another process does not know given/Echo-v0"):
        turnwise.train(
            "smoke",
            env=Echo,
            model=model,
            settings=["warmstart=null", TWO, "eval.every=0", "eval.test_split=null"],
            out=tmp_path / "run",
            progress=False,
        )
    assert "given/Echo-v0" in gymnasium.registry


def test_games_that_shards_cannot_play_are_refused(model: Path) -> None:
    """Before anything is made: where a shard has fewer slots than players, and where it would ask an endpoint."""
    told = r"a shard has 1: set rollout\.num_slots=4 or more, or lower rollout\.shards=2"
    with (
        closing(Assembly(config(model, "algorithm=grpo", *NIM, TWO, "rollout.num_slots=3"))) as made,
        pytest.raises(ValueError, match=f"a game of 2 players needs as many slots, and {told}"),
    ):
        _ = made.panels
    with closing(Assembly(config(model, "algorithm=grpo", *NIM, TWO, "rollout.num_slots=4"))) as made:
        assert made.panels.train
    for seat in ("opponent", "eval_opponent"):
        asked = config(model, "algorithm=grpo", *NIM, TWO, f"game={{{seat}: 'openai:m@http://127.0.0.1:1/v1'}}")
        with (
            closing(Assembly(asked)) as made,
            pytest.raises(ValueError, match=r"rollout\.shards=2: openai:m@http.* leave rollout\.shards at 1"),
        ):
            _ = made.panels


@pytest.mark.slow
def test_a_run_in_child_processes_is_one_in_this_process(model: Path, tmp_path: Path) -> None:
    made = config(model, TREE, TWO, *PANELS)
    (here, report), (there, again) = (
        run(made, tmp_path / name, host) for name, host in (("here", Here()), ("there", None))
    )
    assert report == again
    assert_same(here, there)


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_several_learners_and_several_shards(model: Path, tmp_path: Path, parallel: str) -> None:
    """The shards play with what the learners hold together; its frozen weights may be divided among them."""
    made = config(model, "algorithm=grpo", TWO, "learner.ranks=2", f"learner.parallel={parallel}")
    found, _ = run(made, tmp_path / "run")
    lines = found.metrics()
    assert lines[0]["adapter_hash"] != lines[1]["adapter_hash"]
    assert all(line["agreement/max_abs"] < 1e-4 and line["agreement/num_tokens"] > 0 for line in lines)
    played = list(TrajectoryReader(found.trajectories_path))
    assert [t.adapter_hash for t in played if t.policy_version == 1] == [lines[0]["adapter_hash"]] * 8


@pytest.mark.slow
def test_a_world_that_ends_its_process_does_not_end_the_run(model: Path, tmp_path: Path) -> None:
    """Its shard is lost twice. Then worlds are in processes of their own, and only its own episodes end as errors."""
    settings = ("algorithm=grpo", TWO, "rollout.max_error_share=1", "rollout.num_tasks=3")
    deadly = "env={{id: 'tests.shards.worlds:tests/Deadly-v0', kwargs: {{cabinet: {}}}}}"
    sound, _ = run(config(model, *settings, deadly.format(0)), tmp_path / "sound", updates=1)
    whole = list(TrajectoryReader(sound.trajectories_path))
    cabinets = {t.task.index: t.turns[0].observation for t in whole}
    chosen = whole[-1].task.index
    assert list(cabinets.values()).count(cabinets[chosen]) == 1, "another seed is needed"
    number = cabinets[chosen].removeprefix("You arrive at cabinet ").removesuffix(".")
    ill, _ = run(config(model, *settings, deadly.format(number)), tmp_path / "ill", updates=1)
    (line,) = ill.metrics()
    assert (line["shards/lost"], line["failures"]) == (2, 2 * 4)
    for before, after in zip(whole, TrajectoryReader(ill.trajectories_path), strict=True):
        assert before.episode == after.episode
        if before.task.index == chosen:
            assert (after.end, len(after.turns)) == ("error", 1)
            assert "the environment's process exited with code 3" in after.end_reason
        else:
            assert (after.end, [t.action_ids.tolist() for t in after.turns]) == (
                before.end,
                [t.action_ids.tolist() for t in before.turns],
            )
