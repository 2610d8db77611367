"""The page about graders and the example do what they say."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import turnwise
from tests.chat_server import serving
from tests.grading.episodes import judging
from tests.test_docs import parse
from turnwise import cli
from turnwise.commands.ending import judged_line
from turnwise.config.sections import RewardsConfig
from turnwise.grading.settings import read_rubric
from turnwise.replay.store import TrajectoryReader
from turnwise.runs.directory import RunDirectory

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "judges.md").read_text()
COMMANDS = [
    shlex.split(line)
    for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    for line in block.splitlines()
    if line.startswith("turnwise ")
]
QUICK = (
    "num_updates=1 rollout.group_size=2 rollout.num_tasks=2 eval.every=0 eval.test_tasks=2 eval.greedy=false "
    "model.hidden_size=32 warmstart.max_tokens=5000 warmstart.tokenizer_episodes=40 agent.max_turns=3"
)


@pytest.fixture(autouse=True)
def _reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared_cache: None) -> Iterator[None]:
    """A folder with the page's files in it."""
    for name, text in re.findall(r"```(?:python|yaml) (\S+)\n(.*?)```", PAGE, re.DOTALL):
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JUDGE_API_KEY", "sk-of-the-judge")
    for folder in (tmp_path, ROOT / "examples"):
        monkeypatch.syspath_prepend(str(folder))
    yield
    for name in ("my_rewards", "own_reward"):
        sys.modules.pop(name, None)


def run(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as left:
        cli.app()
    assert not left.value.code


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_commands_parse(words: list[str]) -> None:
    assert parse(words[1:])


def test_the_settings_on_the_page_are_settings() -> None:
    sections = re.findall(r"```yaml\n(rewards:.*?)```", PAGE, re.DOTALL)
    judged, ranked = (RewardsConfig.model_validate(yaml.safe_load(section)["rewards"]) for section in sections)
    assert judged.judge is not None
    assert judged.judge.rubric == read_rubric("rubric.yaml")
    assert ranked.ranking is not None


def test_the_pages_run_is_paid_by_functions_and_a_judge_and_graded_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    by_functions, by_judge, _ = (words for words in COMMANDS if words[1] == "train")
    with serving(judging(lambda lines: {"purposeful": "no", "tidy": "partly"})) as server:
        address = server.url.removeprefix("http://")
        asked = [word.replace("127.0.0.1:8000/v1", address) for word in by_judge]
        graders = [word for word in by_functions if word.startswith("rewards.")]
        run([*asked, *graders, *QUICK.split()], monkeypatch)
        told = capsys.readouterr().out
        again = next(words for words in COMMANDS if "judge.weight=2" in words)
        run([word if word != "10:" else "0:" for word in again], monkeypatch)
    made = RunDirectory.open("runs/judged")
    episodes = list(TrajectoryReader(made.trajectories_path))
    short = importlib.import_module("my_rewards").short
    assert [t.total_reward for t in episodes] == [pytest.approx(short(t, {}) + 0.5 / 3) for t in episodes]
    assert judged_line(made) in told
    assert "more was used" not in told
    uncounted = {**json.loads((made.path / "verdicts.jsonl").read_text().splitlines()[0]), "usage": {"uncounted": 3}}
    with (made.path / "verdicts.jsonl").open("a") as file:
        file.write(json.dumps(uncounted) + "\n")
    assert judged_line(made).endswith("; 3 answers came without a count of tokens: more was used")
    assert "judge openai:MODEL@" in told
    assert f"{len(episodes)} episodes graded again, {len(episodes)} paid otherwise" in capsys.readouterr().out


def test_the_example_is_paid_by_functions_and_a_judge(tmp_path: Path) -> None:
    example = importlib.import_module("own_reward")

    def choices(lines: Any) -> dict[str, str]:
        return {"number": "yes" if lines[-1]["agent"].isdecimal() else "no"}

    quick = ["num_updates=1", "rollout.num_tasks=2", "eval.test_tasks=8", "warmstart.max_tokens=5000"]
    with serving(judging(choices)) as server:
        result = example.main(f"openai:m@{server.url}", str(tmp_path / "run"), quick, progress=False)
        asked = [request.body["messages"][1]["content"] for request in server.asked]
    (line,) = RunDirectory.open(result.path).metrics()
    assert set(line["grades"]) == {"own_reward:exact", "own_reward:near", "judge:number"}
    assert all(re.search(r"The right one is [1-5]\.", text) for text in asked)
    after = result.after["sampled"]
    assert after.success is not None  # rewards.success_threshold says it; the world does not
    assert after.graded is not None
    assert after.graded.agreement is None


def test_functions_that_no_other_process_could_find_are_refused() -> None:
    refused: Any
    for refused, told in (([lambda episode, task: 1.0], "at the top of a module"), (test_commands_parse, "a list of")):
        with pytest.raises(ValueError, match=told):
            turnwise.train("smoke", rewards=refused)
    with pytest.raises(ValueError, match=r"rewards is given as an object, and the setting 'rewards.functions"):
        turnwise.train("smoke", rewards=["my_rewards:short"], settings=["rewards.functions={my_rewards:short: 2}"])
    with pytest.raises(ValueError, match="the configuration is complete"):
        turnwise.train(turnwise.load_config("smoke"), rewards=["my_rewards:exact"])
