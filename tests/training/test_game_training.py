"""Training in a game: self-play with a policy for each role, frozen opponents, an earlier run as the opponent."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
import torch

from tests.training.tiny import MODEL, StopAfter, StopError, timeless
from turnwise.assembly.run import Assembly
from turnwise.config.files import load_config
from turnwise.config.schema import RunConfig
from turnwise.evaluation.evaluate import evaluate
from turnwise.jobs import export, resume, train
from turnwise.replay.store import TrajectoryReader
from turnwise.runs.directory import RunDirectory
from turnwise.training.side import Side
from turnwise.trajectory import Group, Task, Trajectory

NIM = "tests.worlds:tests/Nim-v0"
TINY = [
    f"env.id={NIM}",
    *MODEL,
    "warmstart.split=train",
    "warmstart.stop_split=validation",
    "warmstart.max_tokens=8000",
    "rollout.num_tasks=2",
    "rollout.group_size=4",
    "rollout.num_slots=8",
    "eval.every=2",
    "eval.tasks=4",
    "eval.test_tasks=4",
    "eval.greedy=false",
    "num_updates=2",
    "checkpoint_every=1",
    "algorithm.base.drop_uniform_groups=false",
]


pytestmark = pytest.mark.usefixtures("shared_cache")


def config(*settings: str) -> RunConfig:
    return load_config("smoke", [*TINY, *settings])


@pytest.fixture(scope="module")
def roles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Self-play with a policy for each role."""
    path = tmp_path_factory.mktemp("runs") / "roles"
    train(config("game.policies=per_role"), path)
    return path


def test_each_role_has_its_own_policy_that_learns_from_its_own_games(roles: Path) -> None:
    saved = RunDirectory.open(roles).load("last")
    first, second = saved.policy_tensors("first"), saved.policy_tensors("second")
    assert first.keys() == second.keys()
    assert any(not torch.equal(first[name], second[name]) for name in first)
    played = list(TrajectoryReader(roles / "trajectories.jsonl.gz"))
    assert len(played) == 2 * 2 * 4 * 2, "updates, tasks, samples, players"
    for update in (0, 1):
        hashes = {t.role: t.adapter_hash for t in played if t.policy_version == update}
        assert set(hashes) == {"first", "second"}
        assert all(t.adapter_hash == hashes[t.role] for t in played if t.policy_version == update)
    line = timeless(roles)[-1]
    assert line["first/grad_norm"] > 0
    assert line["second/grad_norm"] > 0
    assert line["agreement/max_abs"] <= 1e-4


def test_a_side_learns_from_what_its_own_policy_played() -> None:
    """A player may have the name of another one's role: wolf_1 is a wolf, and has another policy than wolf."""
    task = Task("hunt", "train", 0, "k")
    played = {
        player: Trajectory(player, task, 0, 0, (), "terminated", None, None, player=player, role="wolf", policy=player)
        for player in ("wolf", "wolf_1")
    }
    for name, whose in {"wolf": ["wolf"], "wolf_1": ["wolf_1"], "": ["wolf", "wolf_1"]}.items():
        side = Side.__new__(Side)
        side.name = name
        own = [player for player, trajectory in played.items() if side.plays(Group(task, (trajectory,)))]
        assert own == whose


def test_a_game_resumes_to_the_bit(roles: Path, tmp_path: Path) -> None:
    with pytest.raises(StopError):
        train(config("game.policies=per_role"), tmp_path / "broken", StopAfter(1))
    resume(tmp_path / "broken")
    assert timeless(tmp_path / "broken") == timeless(roles)
    ours, theirs = (RunDirectory.open(path).load("last") for path in (tmp_path / "broken", roles))
    assert all(torch.equal(ours.tensors[name], theirs.tensors[name]) for name in theirs.tensors)


def test_opponents_in_folders_are_named_for_any_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a run resumes elsewhere, and shards of a cluster find them. Other names stay, whatever lies beside."""
    monkeypatch.chdir(tmp_path)
    for name in ("before", "expert", "self"):
        Path(name).mkdir()
    with closing(Assembly(config("game.opponent=before", "game.eval_opponent=expert"))) as assembly:
        game = assembly.settled().game
    assert game is not None
    assert (game.opponent, game.eval_opponent) == (str(tmp_path / "before"), "expert")
    with closing(Assembly(config("game.policies=per_role"))) as assembly:
        game = assembly.settled().game
    assert game is not None
    assert (game.opponent, game.eval_opponent) == ("self", "random")


def test_an_earlier_run_is_an_opponent(roles: Path, tmp_path: Path) -> None:
    result = train(config(f"game.opponent={roles}", "game.eval_opponent=expert"), tmp_path / "run")
    played = list(TrajectoryReader(tmp_path / "run" / "trajectories.jsonl.gz"))
    assert len(played) == 2 * 2 * 4
    assert {t.role for t in played} == {"first", "second"}
    assert set(result.after["sampled"].per_player) == {"first", "second"}
    report = evaluate(tmp_path / "run", opponent=str(roles), tasks=4, samples=2)
    assert report.success is not None
    assert report.draw_share == 0
    assert evaluate("expert", env=NIM, opponent=str(roles), tasks=4).errors == 0


def test_mistakes_about_games_are_said(roles: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a world of one player"):
        train(config("env.id=tests.worlds:tests/Cue-v0", "game.opponent=random"), tmp_path / "cue")
    with pytest.raises(ValueError, match=r"an opponent .* needs a game"):
        evaluate("expert", env="tests.worlds:tests/Cue-v0", opponent="random", tasks=1)
    with pytest.raises(ValueError, match="Expected one of: first, second"):
        export(roles, tmp_path / "out")
    assert (export(roles, tmp_path / "out", side="second") / "config.json").exists()
