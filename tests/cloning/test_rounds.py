"""Rounds of takeovers in a warm start: played, kept, mixed, resumed; and the settings of steps and rates."""

from __future__ import annotations

import io
import json
from collections import Counter, deque
from contextlib import closing
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from tests.cloning.test_progress import PRETRAINED, SETTINGS, _StopError, rows, stop_after
from tests.levers import Levers, Puller
from tests.models import scratch_folder, tiny_model
from tests.training.tiny import MODEL
from turnwise.agents.episode import SuccessRule
from turnwise.agents.jobs import Job
from turnwise.assembly.run import Assembly
from turnwise.cloning import partial
from turnwise.cloning import warmstart as cloned
from turnwise.cloning.cloner import Progress, clone
from turnwise.cloning.demonstrations import cloned_tasks
from turnwise.cloning.losses import Whole
from turnwise.cloning.rounds import Ground, Rounds, RoundScore
from turnwise.cloning.settings import TakeoversConfig, WarmstartConfig
from turnwise.cloning.takeovers import is_won
from turnwise.commands.display import LiveDisplay
from turnwise.config.files import load_config
from turnwise.jobs import warmstart
from turnwise.replay.store import TrajectoryReader, TrajectoryWriter
from turnwise.runs.trajectories import Selection, select
from turnwise.runs.trajectory_tables import episode_page
from turnwise.trajectory import Trajectory

ROUNDS = ["warmstart.takeovers={rounds: 2, episodes: 5, tokens: 1500, demonstration_share: 0.3}"]
GIVEN = [*SETTINGS, "warmstart.batch_episodes=4", "warmstart.max_tokens=2000", *ROUNDS]


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "cloning.jsonl").read_text().splitlines()]


def episodes_of(folder: Path) -> list[list[Trajectory]]:
    return [list(flush.trajectories) for flush in TrajectoryReader(folder / "takeovers.jsonl.gz").flushes()]


def rounds_on(grounds: list[Ground], config: WarmstartConfig) -> Rounds:
    """Rounds that nobody plays."""
    return Rounds(grounds, None, config, 0, SuccessRule(), lambda *_: [], Path("nothing"))  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["scratch", "pretrained"])
def test_an_interrupted_round_goes_on_to_the_same_weights(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partial, "EVERY_S", 0.0)
    given = GIVEN
    if kind == "pretrained":
        given = [f"model.path={scratch_folder(tmp_path / 'model')}", *given[len(MODEL) :], *PRETRAINED]
    config = load_config("smoke", given)
    file = "model.safetensors" if kind == "scratch" else "adapter_model.safetensors"
    monkeypatch.setenv("TURNWISE_CACHE", str(tmp_path / "whole"))
    whole = warmstart(config)
    steps = lines_of(whole)
    in_round = [line.get("round", {}).get("number", 0) for line in steps]
    assert sorted(in_round) == in_round
    assert set(in_round) == {0, 1, 2}
    monkeypatch.setenv("TURNWISE_CACHE", str(tmp_path / "broken"))
    firsts = [in_round.index(1), in_round.index(2)]
    at, stops = 0, [1, firsts[0] + 1, firsts[0] + 2, firsts[1] + 1, firsts[1] + 3]
    for stop in stops:  # the last step before a stop is not saved, and is taken again
        with pytest.raises(_StopError):
            warmstart(config, stop_after(stop + 1 - at))
        at = stop
    broken = warmstart(config)
    assert [path.name for path in broken.parent.iterdir()] == [broken.name], "and nothing is left beside it"
    ours, theirs = load_file(whole / file), load_file(broken / file)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert [{**line, "cpu_s": 0} for line in steps] == [{**line, "cpu_s": 0} for line in lines_of(broken)]
    assert [[e.episode for e in each] for each in episodes_of(whole)] == [
        [e.episode for e in each] for each in episodes_of(broken)
    ]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TURNWISE_CACHE", str(tmp_path_factory.mktemp("cache")))
        return warmstart(load_config("smoke", GIVEN))


def test_a_round_plays_other_tasks_and_keeps_who_acted(made: Path) -> None:
    rounds = episodes_of(made)
    assert len(rounds) == 2
    played = [[e for e in each if e.fork is None] for each in rounds]
    assert [len(each) for each in played] == [5, 5]
    assert len({e.task.key for each in played for e in each}) == 10
    assert {e.task.split for each in played for e in each} == {"train"}
    for plays, each in zip(played, rounds, strict=True):
        parents = {e.episode: e for e in plays}
        taken = [e for e in each if e.fork is not None]
        assert len(taken) == 5
        assert all(is_won(e) and e.policy == "searching expert" for e in taken)
        for e in taken:
            assert e.fork is not None
            turns = parents[e.fork.parent].turns
            assert [t.action for t in turns[: e.fork.turn]] == [t.action for t in e.turns[: e.fork.turn]]
    scores = {line["round"]["number"]: line["round"] for line in lines_of(made) if "round" in line}
    assert [scores[n]["success"] for n in (1, 2)] == [np.mean([bool(e.success) for e in each]) for each in played]
    assert [(scores[n]["episodes"], scores[n]["won"], scores[n]["of"]) for n in (1, 2)] == [(5, 1.0, 2)] * 2
    console = Console(record=True, width=150, file=io.StringIO())
    taken = [e for e in rounds[0] if e.fork is not None]
    (found,) = select(made / "takeovers.jsonl.gz", Selection(episode=taken[0].episode))
    console.print(episode_page([found]))
    told = console.export_text()
    assert taken[0].fork is not None
    assert f"[{taken[0].fork.turn}] · searching expert" in told
    assert told.count("searching expert") == len(taken[0].turns) - taken[0].fork.turn


def test_in_a_world_without_a_split_for_experts_it_plays_on_train() -> None:
    """As they are watched there; all rounds go through the tasks before one is played again."""
    config = WarmstartConfig(takeovers=TakeoversConfig(episodes=6_000))
    world = Levers()
    rounds = rounds_on([Ground(world, lambda: world)], config)
    first, second = rounds._jobs(1, 0), rounds._jobs(2, 0)
    assert {job.task.split for job in (*first, *second)} == {"train"}
    assert len({job.task.index for job in (*first, *second[:4_000])}) == 10_000
    assert len({(job.task.index, job.key) for job in (*first, *second)}) == 12_000


def test_a_second_world_has_its_share_of_each_round() -> None:
    """Each goes through its own tasks, and draws its own order."""
    config = WarmstartConfig(takeovers=TakeoversConfig(episodes=10))
    household = gymnasium.make("turnwise/Household-v0")
    worlds = [Ground(Levers(), Levers, 0.7), Ground(household.unwrapped, Levers, 0.3)]  # type: ignore[arg-type]
    rounds = rounds_on(worlds, config)
    jobs = [[rounds._jobs(number, place) for place in (0, 1)] for number in (1, 2)]
    assert [[len(found) for found in each] for each in jobs] == [[7, 3]] * 2
    assert {job.task.env for each in jobs for job in each[1]} == {"turnwise/Household-v0"}
    assert len({job.task.index for each in jobs for job in each[1]}) == 6
    both = rounds_on([Ground(Levers(), Levers, 0.5), Ground(Levers(), Levers, 0.5)], config)
    assert both._jobs(1, 0) != both._jobs(1, 1)


BESIDE = [
    *("warmstart.env=turnwise/Household-v0", "warmstart.own_share=0.4", "env.id=turnwise/FrozenLake-v0"),
    *("warmstart.split=train", "warmstart.stop_success=null"),
]


@pytest.mark.slow
def test_two_worlds_are_cloned_on_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupted warm start in two worlds, against one that was not."""
    monkeypatch.setattr(partial, "EVERY_S", 0.0)
    config = load_config("smoke", [*GIVEN, *BESIDE])
    monkeypatch.setenv("TURNWISE_CACHE", str(tmp_path / "whole"))
    whole = warmstart(config)
    monkeypatch.setenv("TURNWISE_CACHE", str(tmp_path / "broken"))
    with pytest.raises(_StopError):
        warmstart(config, on_progress=stop_after(3))
    with pytest.raises(_StopError):
        warmstart(config, on_progress=stop_after(3))
    made = [load_file(folder / "model.safetensors") for folder in (whole, warmstart(config))]
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])


def test_each_world_has_its_share_of_the_demonstrations() -> None:
    worlds = [Ground(Levers(), Levers, 0.8), Ground(Levers(), Levers, 0.2)]
    mixed = cloned._mixed(worlds, [repeat(["first"]), repeat(["second"])], seed=0)  # type: ignore[list-item]
    drawn = Counter(next(mixed)[0] for _ in range(500))  # type: ignore[index]
    assert abs(drawn["second"] - 100) < 30
    starved = cloned._mixed(worlds, [repeat(["first"]), repeat([])], seed=0)  # type: ignore[list-item]
    with pytest.raises(ValueError, match="no demonstration of Levers fits into the context"):
        deque(starved, maxlen=0)


def test_a_share_that_is_no_episode_is_refused() -> None:
    config = WarmstartConfig(takeovers=TakeoversConfig(episodes=10))
    with pytest.raises(ValueError, match=r"a share of 0\.04 of 10 episodes is none of Levers"):
        rounds_on([Ground(Levers(), Levers, 0.96), Ground(Levers(), Levers, 0.04)], config)


def test_what_is_measured_of_the_own_world_is_not_cloned() -> None:
    """As without another world beside it."""
    with pytest.raises(ValueError, match=r"warmstart\.split is the test split 'test'"):
        load_config("smoke", [*BESIDE, "warmstart.split=test"])
    config = load_config("smoke", [*BESIDE, "eval.split=held", "eval.every=0"])
    with closing(Assembly(config)) as assembly:
        (own,) = cloned_tasks(config.warmstart, assembly.world, "turnwise/FrozenLake-v0")
        assert {task.env for task in own} == {"turnwise/FrozenLake-v0"}


def test_the_own_world_under_another_id_is_kept_off_what_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its tasks are the same by content, whatever its id; of other worlds the key of a task says nothing."""
    spec = replace(gymnasium.spec("turnwise/FrozenLake-v0"), id="turnwise/Lake-v0")
    monkeypatch.setitem(gymnasium.registry, "turnwise/Lake-v0", spec)
    other = ["env.id=turnwise/FrozenLake-v0", "warmstart.env=turnwise/Lake-v0", "warmstart.stop_success=null"]
    for split, refused in (("test", True), ("train", False), ("demonstrations", False)):
        with closing(Assembly(load_config("smoke", [*other, f"warmstart.split={split}"]))) as assembly:
            if refused:
                with pytest.raises(ValueError, match="is also a training task"):
                    assembly.panels  # noqa: B018
            else:
                assert assembly.panels.test
    with (
        closing(Assembly(load_config("smoke", [*other, "warmstart.own_share=0.5"]))) as assembly,
        pytest.raises(ValueError, match=r"turnwise/Lake-v0 has the tasks of the run's own world, turnwise/FrozenLake"),
    ):
        assembly.panels  # noqa: B018
    with pytest.raises(ValueError, match=r"warmstart\.env is the run's own world"):
        load_config("smoke", [*other[:1], "warmstart.env=turnwise:turnwise/FrozenLake-v0"])


def test_two_worlds_are_cloned_in_one_warm_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run's own world beside another, in demonstrations and rounds; the panels of the run are measured alone."""
    monkeypatch.setenv("TURNWISE_CACHE", str(tmp_path / "cache"))
    made = warmstart(load_config("smoke", [*GIVEN, *BESIDE]))
    scores = [line["round"] for line in lines_of(made) if "round" in line]
    assert {score["episodes"] for score in scores} == {2}, "the score is that of the run's own world"
    for each in episodes_of(made):
        played = Counter(e.task.env for e in each if e.fork is None)
        assert played == {"turnwise/Household-v0": 3, "turnwise/FrozenLake-v0": 2}
        taken = Counter(e.task.env for e in each if e.fork is not None)
        assert set(taken) == set(played), "the expert of each world takes over there"
    with pytest.raises(ValueError, match=r"own_share=0\.4 leaves the rest to warmstart\.env, which is not set"):
        load_config("smoke", ["warmstart.own_share=0.4"])
    with pytest.raises(ValueError, match="split and stop_split are both"):
        load_config("smoke", [*BESIDE, "warmstart.stop_split=train"])


@pytest.mark.parametrize(("share", "attempts"), [(0.0, [1, 1]), (0.4, [1, 1]), (0.5, [2, 1]), (0.95, [4, 4])])
def test_lost_episodes_are_taken_over_again_until_they_are_their_share(
    share: float, attempts: list[int], made: Path
) -> None:
    config = WarmstartConfig(takeovers=TakeoversConfig(lost_share=share))
    rounds = rounds_on([Ground(Levers(), Levers)], config)
    played = [replace(e, success=n > 1) for n, e in enumerate(e for e in episodes_of(made)[0] if e.fork is None)]
    jobs = [Job(e.task, key=0) for e in played]
    found = list(rounds._to_take_over(jobs, played))
    assert [(place, attempt) for place, _, _, attempt in found[:5]] == [(n, 1) for n in range(5)]
    lost = Counter(place for place, _, _, _ in found if place < 2)
    assert [lost[0], lost[1]] == attempts
    assert len({(place, attempt) for place, _, _, attempt in found}) == len(found)
    assert all(plays == [played[place]] and job is jobs[place] for place, job, plays, _ in found)


def test_it_goes_on_from_a_clone_without_demonstrations(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TURNWISE_CACHE", str(tmp_path))
    going_on = ["model={}", f"model.path={made}", *GIVEN[len(MODEL) :], "warmstart.max_tokens=0"]
    folder = warmstart(load_config("smoke", going_on))
    assert {line["round"]["number"] for line in lines_of(folder)} == {1, 2}
    assert 3000 <= lines_of(folder)[-1]["tokens"] < 3600
    before = load_file(made / "model.safetensors")
    assert any(not torch.equal(before[k], v) for k, v in load_file(folder / "model.safetensors").items())


@pytest.mark.slow
def test_a_damaged_file_of_rounds_begins_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partial, "EVERY_S", 0.0)
    monkeypatch.setenv("TURNWISE_CACHE", str(tmp_path))
    config = load_config("smoke", GIVEN)
    seen: list[Progress] = []

    def watch(progress: Progress) -> None:
        seen.append(progress)
        if progress.round is not None:
            raise _StopError

    with pytest.raises(_StopError):
        warmstart(config, watch)
    (file,) = (tmp_path / "warmstart").glob("*.takeovers.jsonl.gz")
    file.write_bytes(file.read_bytes()[:100])
    again: list[Progress] = []
    with pytest.warns(UserWarning, match="is damaged: the warm start begins again"):
        warmstart(config, again.append)
    assert [p.tokens for p in again[: len(seen)]] == [p.tokens for p in seen]


class Hopeless(Levers):
    """Its expert does nothing that the world understands once others have acted."""

    def expert(self, kind: str = "searching", *, seed: int = 0) -> Puller:
        return Sulking(seed)


class Sulking(Puller):
    def begin(self, observation: str, info: dict[str, Any]) -> None:
        self.word = "wait"

    def overrule(self, action: str) -> None:
        self.word = "no"

    def act(self, observation: str, info: dict[str, Any]) -> str:
        return self.word


gymnasium.register("test/Hopeless-v0", Hopeless, disable_env_checker=True)


HOPELESS = [
    *GIVEN,
    "env.id=tests.cloning.test_rounds:test/Hopeless-v0",
    "warmstart.noise=0",
    "warmstart.max_tokens=100",
    "warmstart.takeovers.disagreement_share=0",  # never at the first turn, where nobody has acted
]
NONE_WON = r"searching expert of test/Hopeless-v0 won none of the 5 episodes that it took over in round "


def test_an_expert_that_wins_nothing_there_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once it has lost so many, in all rounds, that it is no chance."""
    monkeypatch.setenv("TURNWISE_CACHE", str(tmp_path))
    monkeypatch.setattr("turnwise.cloning.takeovers._TRIES", 1)
    monkeypatch.setattr("turnwise.cloning.rounds._ENOUGH", 10)
    said = r"searching expert of test/Hopeless-v0 won none of the 10 episodes .* up to round 2: .*takeovers=null"
    with pytest.warns(UserWarning, match=f"{NONE_WON}1"), pytest.raises(ValueError, match=said):
        warmstart(load_config("smoke", HOPELESS))


def test_a_few_episodes_that_it_lost_by_chance_do_not_end_the_warm_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Demonstrations alone are learned in such a round."""
    monkeypatch.setenv("TURNWISE_CACHE", str(tmp_path))
    monkeypatch.setattr("turnwise.cloning.takeovers._TRIES", 1)
    with pytest.warns(UserWarning, match=NONE_WON) as told:
        folder = warmstart(load_config("smoke", HOPELESS))
    assert len([each for each in told if "won none of the 5" in str(each.message)]) == 2
    rounds = {line["round"]["number"]: line["round"] for line in lines_of(folder) if "round" in line}
    assert {number: each["won"] for number, each in rounds.items()} == {1: 0.0, 2: 0.0}
    assert lines_of(folder)[-1]["tokens"] >= 3000


def test_one_win_in_an_earlier_round_is_enough(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It shows that the expert can go on; wins on another ground do not."""
    monkeypatch.setattr("turnwise.cloning.rounds._ENOUGH", 5)
    rounds = rounds_on([Ground(Levers(), Levers)], WarmstartConfig(takeovers=TakeoversConfig(episodes=5)))
    rounds.path = tmp_path / "takeovers.jsonl.gz"
    (first, _) = episodes_of(made)
    taken = [e for e in first if e.fork is not None]
    lost = [replace(e, success=False) for e in taken]
    TrajectoryWriter(rounds.path).append(1, [e for e in first if e.fork is None] + [*lost[1:], taken[0]])
    with pytest.warns(UserWarning, match="won none of the 5 episodes that it took over in round 2"):
        rounds._check_won(2, 0, lost)
    monkeypatch.setattr(rounds, "_place_of", lambda _: 1)
    with pytest.raises(ValueError, match="won none of the 5 episodes that it took over up to round 2"):
        rounds._check_won(2, 0, lost)
    with pytest.raises(ValueError, match="could take over no episode of round 1: each of the 5 failed"):
        rounds._check_won(1, 0, [])


def test_own_episodes_that_were_cut_short_are_none_of_the_won(made: Path, tmp_path: Path) -> None:
    """In a world that says only at the end whether an episode is a success."""
    rounds = rounds_on([Ground(Levers(), Levers)], WarmstartConfig(takeovers=TakeoversConfig(episodes=5)))
    rounds.path = tmp_path / "takeovers.jsonl.gz"
    (first, _) = episodes_of(made)
    won, *others = [e for e in first if e.fork is None]
    assert others
    cut = [replace(e, success=None, end="truncated") for e in others]
    taken = [replace(e, success=False) for e in first if e.fork is not None]
    TrajectoryWriter(rounds.path).append(1, [replace(won, success=True), *cut, *taken])
    assert rounds.round(1, iter(())).score.success == 1 / len([*cut, won])


def test_what_an_expert_wins_is_told_of_the_world_that_the_learner_s_success_is_of(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grounds = [Ground(Levers(), Levers, 0.5), Ground(Levers(), Levers, 0.5)]
    rounds = rounds_on(grounds, WarmstartConfig(takeovers=TakeoversConfig(episodes=6)))
    rounds.path = tmp_path / "takeovers.jsonl.gz"
    (first, _) = episodes_of(made)
    played = [e for e in first if e.fork is None]
    other, *own = [replace(e, success=False) for e in first if e.fork is not None]
    monkeypatch.setattr(rounds, "_place_of", lambda episode: int(episode.task != other.task))
    monkeypatch.setattr(rounds, "_rows", lambda *_: [])
    TrajectoryWriter(rounds.path).append(1, [*played, replace(other, success=True), *own])
    assert rounds.round(1, iter(())).score.won == 0, "the one that was won is of the other world"


# --- steps and rates ---


def course(num: int = 200, **settings: Any) -> tuple[list[int], list[float]]:
    """Tokens after each step, and AdamW's rate in it, of cloning the same row again and again."""
    tokens, rates = list[int](), list[float]()
    made = rows()
    config = WarmstartConfig(max_tokens=num * len(made[0].ids), warmup_steps=0, **settings)
    step = torch.optim.AdamW.step

    def noted(self: Any, *args: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", noted)
        clone(
            Whole(tiny_model()), None, iter(lambda: made, None), config, on_progress=lambda p: tokens.append(p.tokens)
        )
    return tokens, rates


def test_a_number_of_steps_divides_the_tokens() -> None:
    one = len(rows()[0].ids)
    tokens, _ = course(num=40, num_steps=10)
    assert tokens == [4 * one * n for n in range(1, 11)]
    tokens, _ = course(num=40, num_steps=16)  # a step is two and a half: two and three in turn
    assert len(tokens) == 16
    assert tokens[-1] == 40 * one
    assert len(course(num=32)[0]) == 2, "16 in a step are the usual"


def test_small_batches_cool_down_unless_told_otherwise() -> None:
    assert [WarmstartConfig(**given).cooldown for given in ({}, {"batch_episodes": 9}, {"batch_episodes": 8})] == [
        0,
        0,
        0.5,
    ]
    assert WarmstartConfig(num_steps=100).cooldown == 0.5
    assert WarmstartConfig(batch_episodes=4, cooldown_share=0.0).cooldown == 0.0
    assert WarmstartConfig(cooldown_share=0.3).cooldown == 0.3
    _, rates = course(num=40, batch_episodes=4)
    assert np.allclose(rates, 4e-3 * np.array([*[1] * 6, *(0.8, 0.6, 0.4, 0.2)]))
    _, rates = course(num=80)
    assert np.allclose(rates, 4e-3)


def test_over_the_rounds_the_rates_fall_to_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURNWISE_CACHE", str(tmp_path))
    rates: list[float] = []
    step = torch.optim.AdamW.step

    def noted(self: Any, *args: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", noted)
    lines = lines_of(warmstart(load_config("smoke", [*GIVEN, "warmstart.warmup_steps=0"])))
    before = next(n for n, line in enumerate(lines) if "round" in line)
    start = lines[before - 1]["tokens"]
    second = next(n for n, line in enumerate(lines) if line.get("round", {}).get("number") == 2)
    for n in range(before, len(lines)):
        number = 1 if n < second else 2
        begun = start if number == 1 else lines[second - 1]["tokens"]
        left = 1 - (lines[n - 1]["tokens"] - begun) / 1500
        assert np.isclose(rates[n], 4e-3 * 0.5 * (2 - number + left) / 2)


# --- settings ---


def test_the_key_of_earlier_models_is_left_alone() -> None:
    def key(*settings: str) -> str:
        return Assembly(load_config("cloned", settings)).warmstart.cloning.key

    assert key() == key("warmstart.takeovers=null", "warmstart.num_steps=null") == key("warmstart.cooldown_share=0")
    small = "warmstart.batch_episodes=4"
    assert key(small) == key(small, "warmstart.cooldown_share=0.5") != key(small, "warmstart.cooldown_share=0")
    others = ("warmstart.takeovers={}", "warmstart.takeovers.tokens=5", "warmstart.takeovers.rounds=3")
    assert len({key(), *map(key, others), key("warmstart.num_steps=900")}) == 5


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["warmstart.takeover.rounds=2"], "Did you mean 'warmstart.takeovers'"),
        (["warmstart.takeovers.cuts=2"], "cuts"),
        (["warmstart.max_tokens=0"], "max_tokens=0 leaves nothing to learn"),
        (["warmstart.max_tokens=0", "warmstart.takeovers={}"], r"starts from random weights: warmstart\.max_tokens=0"),
        (["warmstart.num_steps=100", "warmstart.batch_episodes=4"], "both say how large a step is"),
        (["warmstart.max_tokens=0", "warmstart.takeovers={}", "warmstart.num_steps=9"], "num_steps divides max_tokens"),
    ],
)
def test_settings_that_cannot_be(given: list[str], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        load_config("cloned", given)


def test_takeovers_are_an_expert_s(tmp_path: Path) -> None:
    path = scratch_folder(tmp_path / "model")
    with pytest.raises(ValueError, match=r"warmstart\.takeovers: for an expert's demonstrations"):
        load_config("household", [f"model.path={path}", "warmstart.from=x.jsonl", "warmstart.takeovers={}"])
    brought = load_config("household", [f"model.path={path}", "warmstart.takeovers.rounds=3"]).warmstart
    assert brought is not None
    assert brought.takeovers == TakeoversConfig(rounds=3, episodes=64, tokens=20_000)
    steps = load_config("household", [f"model.path={path}", "warmstart.num_steps=50"]).warmstart
    assert steps is not None
    assert (steps.num_steps, steps.batch_episodes) == (50, 16)


def test_the_display_tells_each_round_once() -> None:
    console = Console(record=True, width=200, file=io.StringIO())
    display = LiveDisplay(console, 0, "title")
    for tokens, number in ((10, 0), (50, 1), (51, 1), (52, 2)):
        score = RoundScore(number, 2, 8, 0.25 * number, 0.1, 1.0) if number else None
        display.cloning(Progress(tokens, 1000, 0.25, None, 1.0, {}, score))
    told = console.export_text().splitlines()
    assert [line.partition(" of 8 episodes")[0] for line in told] == [
        "  takeovers, round 1 of 2: the learner wins 25.0 %",
        "  takeovers, round 2 of 2: the learner wins 50.0 %",
    ]
    assert told[0].endswith("the expert wins 100.0 % of those that it takes over")
