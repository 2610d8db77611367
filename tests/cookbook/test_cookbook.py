"""The cookbook's pages do what they say: their files are written, their commands run."""

from __future__ import annotations

import importlib
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import gymnasium
import pytest
import torch
from rich.console import Console

from turnwise import cli
from turnwise.envs.tasks import expert_of, make_env
from turnwise.replay.store import TrajectoryReader
from turnwise.runs.directory import RunDirectory

BOOK = Path(__file__).parents[2] / "docs" / "cookbook"
PAGES = ("own_environment", "own_game", "own_algorithm", "own_reward_shaper", "own_context")
FILES = {
    name: text
    for page in PAGES
    for name, text in re.findall(r"```python (\S+)\n(.*?)```", (BOOK / f"{page}.md").read_text(), re.DOTALL)
}
QUICK = (
    "num_updates=1 rollout.group_size=2 eval.every=1 eval.tasks=2 eval.test_tasks=4 model.hidden_size=32 "
    "warmstart.max_tokens=10000 warmstart.tokenizer_episodes=40 warmstart.stop_tasks=2"
)
SMOKE = [
    *(*QUICK.removesuffix(" warmstart.stop_tasks=2").split(), "env.id=my_worlds:my/Lift-v0", "warmstart.split=train"),
    *("agent.max_turns=5", "agent.max_reply_tokens=8", "rollout.num_tasks=2", "eval.greedy=false"),
]


def commands(page: str = "own_environment") -> list[list[str]]:
    """The words of each command, those left out that fetch a model from a hub."""
    blocks = re.findall(r"```bash\n(.*?)```", (BOOK / f"{page}.md").read_text(), re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line)[1:] for line in lines if "model.path=Qwen" not in line]


@pytest.fixture(autouse=True)
def _beginner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder with the page's files in it, as a reader has it."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("TURNWISE_CACHE", str(tmp_path / "cache"))
    yield
    for name in FILES:
        sys.modules.pop(name.removesuffix(".py"), None)
    for env_id in [each for each in gymnasium.registry if each.startswith("my/")]:
        del gymnasium.registry[env_id]


def run(words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """What a command prints; it has to end well."""
    monkeypatch.setattr(sys, "argv", ["turnwise", *words])
    monkeypatch.setattr(cli, "console", Console(width=160))
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    assert ended.value.code in (0, None), out + err
    return out


def test_the_world_is_as_small_as_the_page_says() -> None:
    assert len([line for line in FILES["my_worlds.py"].splitlines() if line]) == 35


def test_the_commands_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """With a few words more, which make the training and the look at a world short."""
    quick = {"train": QUICK.split(), "check-env": ["--seconds", "2"]}
    shown = {" ".join(words[:2]): run([*words, *quick.get(words[0], [])], monkeypatch, capsys) for words in commands()}
    assert len(shown) == len(commands()) == 6
    assert " 0 failed" in shown["check-env my_worlds:my/Lift-v0"]
    assert " 0 failed" in shown["check-env my_panels:my/PanelLift-v0"]
    assert "success after" in shown["play my_worlds:my/Lift-v0"]
    assert "run: runs/lift" in shown["train smoke"]
    assert "100.0 %" in shown["evaluate expert"]
    assert Path("runs/lift/evaluation.json").exists()


def test_a_game_of_one_s_own(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pettingzoo")
    check, expert, train, measure = commands("own_game")
    assert " 0 failed" in run([*check, "--seconds", "2"], monkeypatch, capsys)
    assert "first" in run(expert, monkeypatch, capsys)
    quick = [*QUICK.removesuffix(" warmstart.stop_tasks=2").split(), "rollout.num_tasks=2", "eval.greedy=false"]
    assert "run: runs/nim" in run([*train, *quick, "agent.max_reply_tokens=8"], monkeypatch, capsys)
    assert "draws" in run([*measure, "--tasks", "4"], monkeypatch, capsys)
    assert {t.player for t in TrajectoryReader(Path("runs/nim/trajectories.jsonl.gz"))} == {"first", "second"}


@pytest.mark.long
def test_training_as_the_page_has_it_helps(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (words,) = [words for words in commands() if words[0] == "train"]
    shown = run(words, monkeypatch, capsys)
    (low,) = re.findall(r"gain, paired by task: \S+ points \[\+?(-?[\d.]+)", shown)
    assert float(low) > 0, "the interval of the gain excludes 0"


def test_an_algorithm_of_one_s_own(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    about, ranked, winners = commands("own_algorithm")
    assert "Clip range of the ratio, both ways" in run(about, monkeypatch, capsys)
    run([*ranked, *SMOKE], monkeypatch, capsys)
    assert RunDirectory.open("runs/ranked").config().algorithm.clip == 0.3  # type: ignore[attr-defined]
    run([*winners, *SMOKE], monkeypatch, capsys)
    assert "mechanisms/Winners/damped_share" in RunDirectory.open("runs/winners").metrics()[0]


def test_ranks_are_what_the_page_says() -> None:
    ranked = importlib.import_module("my_algorithm").ranked
    returns, group = torch.tensor([0.0, 1.0, 1.0, 100.0, 2.0, 2.0]), torch.tensor([0, 0, 0, 0, 1, 1])
    assert ranked(returns, group, group).tolist() == pytest.approx([-1, 0, 0, 1, 0, 0])


def test_rewards_of_one_s_own(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (words,) = commands("own_reward_shaper")
    run([*words, *SMOKE], monkeypatch, capsys)
    (line,) = RunDirectory.open("runs/curious").metrics()
    novelties = importlib.import_module("my_shaping").novelties
    stored = list(TrajectoryReader(RunDirectory.open("runs/curious").trajectories_path))
    assert sum(novelties(stored[0])) <= len({turn.observation for turn in stored[0].turns}) - 1
    bonus = sum(0.05 * sum(novelties(t)) + t.total_reward for t in stored) / len(stored)
    penalty = sum(not turn.valid for t in stored for turn in t.turns)
    assert line["return_mean"] <= bonus + 1e-9
    assert (line["return_mean"] == pytest.approx(bonus)) == (penalty == 0)


def test_a_context_of_one_s_own(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    train, evaluate = commands("own_context")
    run([*train, *SMOKE], monkeypatch, capsys)
    assert "episodes" in run(evaluate, monkeypatch, capsys)
    for trajectory in TrajectoryReader(RunDirectory.open("runs/notes").trajectories_path):
        assert not any(turn.continues for turn in trajectory.turns), "a fresh context every turn"


def test_a_world_without_an_expert_says_so() -> None:
    env = make_env("my_worlds:my/Lift-v0")
    del type(env.unwrapped).expert
    with pytest.raises(ValueError, match=r"my/Lift-v0 has no expert: .*expert\(kind, seed=\)"):
        expert_of(env, "searching", 0)
