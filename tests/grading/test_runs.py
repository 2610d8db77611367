"""Runs whose episodes are graded: what is learned from and stored, resuming, rejudging, evaluating, and the key."""

from __future__ import annotations

import base64
import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from tests.chat_server import Response, completion, refusal, serving
from tests.faults.runs import assert_same, config, trainer
from tests.grading.episodes import judging, shown, verdict
from turnwise.assembly.run import Assembly
from turnwise.cli import app
from turnwise.config.files import dump_config, load_config, parse_config
from turnwise.evaluation.contenders import settings_of
from turnwise.evaluation.evaluate import evaluate, evaluate_all
from turnwise.evaluation.file import read_evaluation
from turnwise.evaluation.subjects import Asked
from turnwise.evaluation.tables import evaluation_table
from turnwise.grading.settings import read_rubric
from turnwise.jobs import train
from turnwise.replay.codec import to_record
from turnwise.replay.store import TrajectoryReader
from turnwise.runs.directory import RunDirectory
from turnwise.runs.exporting import export_trajectories
from turnwise.runs.rejudging import rejudge
from turnwise.runs.reproducing import reproduce_many
from turnwise.runs.trajectories import Selection
from turnwise.training.changes import changed
from turnwise.training.observing import Callback
from turnwise.training.trainer import CollectionError
from turnwise.trajectory import Trajectory
from turnwise.view.episodes import read_episodes

KEY = "sk-nobody-may-read-this"
LENGTH = "tests.grading.rewards:length"


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_API_KEY", KEY)


def choices(lines: Any) -> dict[str, str]:
    """By the text of the last reply alone, so that equal episodes get equal verdicts."""
    size = len(lines[-1]["agent"])
    return {"brief": "yes" if size % 2 else "no", "kind": ("no", "partly", "yes")[size % 3]}


@pytest.fixture
def rubric(tmp_path: Path) -> Path:
    path = tmp_path / "rubric.yaml"
    path.write_text(
        "criteria: [{name: brief, text: It is brief}, {name: kind, text: It is kind, choices: [no, partly, yes]}]"
    )
    return path


def judged(url: str, rubric: Path, *more: str) -> list[str]:
    quick = f"{{key_variable: JUDGE_API_KEY, timeout_s: 5, backoff_s: 0.001, retries: 1, base_url: '{url}'}}"
    settings = [f"rewards.judge.rubric={rubric}", "rewards.judge.model=openai:m", f"rewards.judge.endpoint={quick}"]
    return ["algorithm=grpo", *settings, *more]


def stored(run: RunDirectory) -> list[Trajectory]:
    return list(TrajectoryReader(run.trajectories_path))


def everything(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def test_a_judge_without_its_key_is_told_of_before_anything_is_cloned(
    rubric: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JUDGE_API_KEY")
    stages = list[str]()

    class Told(Callback):
        def stage(self, name: str) -> None:
            stages.append(name)

    asked = load_config("smoke", judged("http://127.0.0.1:9/v1", rubric))
    assert asked.warmstart is not None
    with pytest.raises(ValueError, match="JUDGE_API_KEY: that environment variable is not set: export it"):
        train(asked, tmp_path / "run", Told())
    assert stages == []
    assert not (tmp_path / "run").exists()


def test_functions_pay_and_the_update_learns_from_that(model: Path, tmp_path: Path) -> None:
    made = trainer(
        config(model, "algorithm=grpo", f"rewards.functions=[{LENGTH}]", "rewards.world=0"), tmp_path / "run"
    )
    record = made.step()
    made.close()
    episodes = stored(made.run)
    returns = [float(sum(len(turn.reply) % 7 for turn in t.turns)) for t in episodes]
    assert [t.total_reward for t in episodes] == returns
    assert record["reward"] == pytest.approx(sum(returns) / len(returns))
    assert record["world_reward"] == pytest.approx(sum(t.world_reward for t in episodes) / len(episodes))
    assert record["grades"] == {LENGTH: pytest.approx(record["reward"])}
    assert record["return_mean"] == pytest.approx(record["reward"] - 0.01 * 3 * record["invalid_share"], abs=1e-6)
    assert "judge" not in record
    assert record["seconds"]["grade"] >= 0


def test_a_judged_run_resumes_to_the_bit_and_asks_nothing_twice(model: Path, tmp_path: Path, rubric: Path) -> None:
    with serving(judging(choices)) as server:
        priced = ("rewards.judge.endpoint.input_price=2", "rewards.judge.endpoint.output_price=8")
        made = config(model, *judged(server.url, rubric, *priced))
        whole = trainer(made, tmp_path / "whole")
        whole.step()
        shutil.copytree(tmp_path / "whole", tmp_path / "broken")
        record = whole.step()
        asked = len(server.asked)
        shutil.copy(tmp_path / "whole" / "verdicts.jsonl", tmp_path / "broken" / "verdicts.jsonl")
        rubric.write_text("criteria: [{name: other, text: changed meanwhile}]")  # the run keeps its own
        broken = trainer(RunDirectory.open(tmp_path / "broken").config(), tmp_path / "broken")
        again = broken.step()
        assert len(server.asked) == asked, "the update that is repeated asks for no verdict"
        whole.close()
        broken.close()
    took = record["judge"]
    assert took["given"] + took["found"] == record["episodes"] == 8
    assert took["given"] == took["requests"] > 1
    assert took["cost"] == pytest.approx(took["given"] * (100 * 2 + 20 * 8) / 1e6)
    assert again["judge"] == {
        "given": 0,
        "found": 8,
        "requests": 0,
        "prompt_tokens": 0,
        "completion_tokens": 0,
        "cost": 0,
    }
    for run in (whole.run, broken.run):  # what was asked is no number of the run
        lines = [{k: v for k, v in line.items() if k != "judge"} for line in run.metrics()]
        run.metrics_path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert_same(broken.run, whole.run)
    assert all(t.grading is not None and t.grading.judge.startswith("m, rubric ") for t in stored(whole.run))
    assert record["judge_agreement"] is not None
    for text in (KEY, KEY[3:]):
        assert text.encode() not in everything(tmp_path)


def test_a_judge_that_fails_stops_the_run_and_is_no_reward(model: Path, tmp_path: Path, rubric: Path) -> None:
    def half(body: dict[str, Any]) -> Response:
        return completion("no idea") if choices([json.loads(shown(body).splitlines()[-1])])["brief"] == "no" else yes

    yes = completion(verdict(brief="yes", kind="yes"))
    with serving(half) as server:
        made = trainer(config(model, *judged(server.url, rubric, "rollout.max_error_share=0.9")), tmp_path / "run")
        record = made.step()
        made.close()
    episodes = stored(made.run)
    failed = [t for t in episodes if t.end == "error"]
    assert 0 < len(failed) < len(episodes)
    assert record["errors"] == len(failed)
    assert record["verdict"] == 1.0
    assert all("JudgeError: m gave no verdict" in t.end_reason for t in failed)
    with serving(lambda body: completion("no idea")) as server:
        made = trainer(config(model, *judged(server.url, rubric)), tmp_path / "stopped")
        with pytest.raises(CollectionError, match=r"8 of 8 .* or in their grading .*JudgeError: m gave no verdict"):
            made.step()
        made.close()
    with serving(lambda body: refusal(401, f"not {KEY}")) as server:
        made = trainer(config(model, *judged(server.url, rubric)), tmp_path / "refused")
        with pytest.raises(ValueError, match=r"refuses the key .*Set JUDGE_API_KEY") as raised:
            made.step()
        made.close()
    assert KEY not in str(raised.value)


def test_the_rubric_is_held_against_the_world_before_anything_begins(model: Path, tmp_path: Path) -> None:
    named = "rewards.judge={model: 'openai:m', rubric: {criteria: [{name: right, text: 'It says {colour}'}]}}"
    asked = config(model, "algorithm=grpo", named)
    with pytest.raises(ValueError, match=r"the rubric names \{colour\}, and the world tells only answer"):
        Assembly(asked).trainer(RunDirectory.create(tmp_path / "run", asked, {}))
    asked = config(model, "algorithm=grpo", "rewards.functions=[nowhere:f]")
    with pytest.raises(ValueError, match=r"'nowhere:f' cannot be imported"):
        Assembly(asked).trainer(RunDirectory.create(tmp_path / "other", asked, {}))


def test_stored_episodes_are_graded_again(model: Path, tmp_path: Path, rubric: Path) -> None:
    run = tmp_path / "run"
    with serving(judging(choices)) as server:
        made = trainer(config(model, *judged(server.url, rubric, "rewards.judge.weight=2")), run)
        made.step()
        made.step()
        made.close()
        asked, before = len(server.asked), everything(run)
        same = rejudge(run, {}, out=tmp_path / "same.jsonl.gz")
        assert (same.num, same.changed, same.failed) == (16, 0, 0)
        assert same.returns[0] == same.returns[1]
        assert len(server.asked) == asked
        halved = rejudge(run, {"judge": {"weight": 1}})
        assert len(server.asked) == asked, "what a verdict pays is not asked"
        assert 0 < halved.changed <= 16
        assert everything(run) == before
        other = tmp_path / "other.yaml"
        other.write_text("criteria: [{name: brief, text: Still brief}]")
        words = ["--rubric", str(other), "--functions", LENGTH, "world=0", "--updates", "1"]
        ran = CliRunner().invoke(app, ["rejudge", str(run), *words, "--out", str(tmp_path / "o.jsonl.gz"), "--json"])
        assert ran.exit_code == 0, ran.output
        assert len(server.asked) > asked
        shown_table = CliRunner().invoke(app, ["rejudge", str(run), "--functions", LENGTH])
        assert "episodes graded again" in shown_table.output
    assert [*map(to_record, TrajectoryReader(tmp_path / "same.jsonl.gz"))] == [*map(to_record, stored(made.run))]
    found, again = json.loads(ran.output), list(TrajectoryReader(tmp_path / "o.jsonl.gz"))
    assert found["num"] == len(again) == 8
    assert set(found["after"]["means"]) == {LENGTH, "judge:brief"}
    assert found["returns"][1] == pytest.approx(sum(t.total_reward for t in again) / 8)
    old = [t for t in stored(made.run) if t.policy_version == 1]
    assert [to_record(t.ungraded()) for t in again] == [to_record(t.ungraded()) for t in old]
    for name, given in {"there": {"out": tmp_path / "same.jsonl.gz"}}.items():
        with pytest.raises(ValueError, match=name):
            rejudge(run, {}, **given)
    with pytest.raises(ValueError, match="say who grades"):
        rejudge(run, {"judge": None})
    with pytest.raises(ValueError, match="no file can be made at"):
        rejudge(run, {"judge": None, "functions": [LENGTH]}, out=other / "o.jsonl.gz")
    with pytest.raises(ValueError, match=r"Unknown setting 'rewards.jugde'"):
        rejudge(run, {"jugde": None})


def test_a_grading_that_is_broken_off_leaves_no_file(model: Path, tmp_path: Path) -> None:
    """One with the episodes of the first update would look like all of them."""
    made = trainer(config(model, "algorithm=grpo"), tmp_path / "run")
    made.step()
    made.step()
    made.close()
    num, seen = len(stored(made.run)), list[Trajectory]()

    def stop(episode: Trajectory) -> None:
        seen.append(episode)
        if len(seen) == num:
            raise KeyboardInterrupt

    out = tmp_path / "new" / "o.jsonl.gz"
    with pytest.raises(KeyboardInterrupt):
        rejudge(made.run.path, {"functions": [LENGTH]}, out=out, on_episode=stop)
    assert list(out.parent.iterdir()) == []
    rejudge(made.run.path, {"functions": [LENGTH]}, out=out)
    assert len(list(TrajectoryReader(out))) == num
    assert [file.name for file in out.parent.iterdir()] == [out.name]


def test_an_ungraded_run_is_graded_afterwards_and_played_again(model: Path, tmp_path: Path) -> None:
    made = trainer(config(model, "algorithm=grpo"), tmp_path / "run")
    made.step()
    made.close()
    found = rejudge(made.run.path, {"functions": [LENGTH]})
    assert found.before is None
    assert found.after is not None
    assert found.returns[1] == pytest.approx(found.returns[0] + found.after.means[LENGTH])
    graded = trainer(config(model, "algorithm=grpo", f"rewards.functions=[{LENGTH}]"), tmp_path / "graded")
    graded.step()
    graded.close()
    assert reproduce_many(graded.run.path).different == 0
    shown_episode = CliRunner().invoke(
        app, ["trajectories", str(graded.run.path), "--show", stored(graded.run)[0].episode]
    )
    assert f"{LENGTH} gave" in " ".join(shown_episode.output.split())


def test_an_evaluation_says_which_judge_and_how_far_it_agrees(tmp_path: Path, rubric: Path) -> None:
    with serving(judging(choices)) as server:
        endpoint = {"base_url": server.url, "key_variable": "JUDGE_API_KEY", "input_price": 1.0, "output_price": 1.0}
        graders = {"judge": {"model": "openai:m", "rubric": str(rubric), "endpoint": endpoint}, "functions": [LENGTH]}
        given: dict[str, Any] = {"env": "tests.worlds:tests/Cue-v0", "tasks": 6, "rewards": graders}
        report = evaluate("random", **given)
        out = tmp_path / "found.json"
        found = evaluate_all(["random"], Asked(**given), out=out)
        asked = len(server.asked)
        with pytest.raises(ValueError, match=r"holds another evaluation .rewards.world"):
            evaluate_all(["random"], Asked(**{**given, "rewards": {**graders, "world": 0.0}}), out=out)
        assert len(server.asked) == asked
    assert report.success is not None
    assert report.graded is not None
    assert report.graded.agreement is not None
    assert report.graded.agreement.num == 6
    assert report.graded.judge.startswith("m, rubric ")
    assert set(report.graded.means) == {LENGTH, "judge:brief", "judge:kind"}
    assert report.mean_return == pytest.approx(
        report.graded.world_return + report.graded.means[LENGTH] + (report.graded.verdict or 0)
    )
    assert found.judged is not None
    assert found.judged["given"] + found.judged["found"] == 6
    assert found.judged["cost"] > 0
    assert read_evaluation(out).targets[0].reports["sampled"] == found.targets[0].reports["sampled"]
    assert KEY.encode() not in everything(tmp_path)
    from rich.console import Console

    console = Console(record=True, width=160)
    console.print(evaluation_table(found))
    text = console.export_text()
    assert "judged by m, rubric" in text
    assert "agrees with success" in text
    assert "the judge: 6 verdicts" in text


def test_what_may_change_of_graders_at_a_resume(rubric: Path) -> None:
    before = config(rubric, *judged("http://127.0.0.1:1/v1", rubric)).model_dump(mode="json")
    moved = changed(before, ["rewards.judge.endpoint.base_url=http://127.0.0.1:2/v1", "rewards.threads=2"])
    assert moved["rewards"]["judge"]["endpoint"]["base_url"].endswith(":2/v1")
    assert parse_config(moved).rewards.judge.rubric == read_rubric(rubric)  # type: ignore[union-attr]
    assert parse_config(yaml.safe_load(dump_config(parse_config(moved)))) == parse_config(moved)
    for word in ("judge.weight=2", "world=0", "functions=[a:b]", "judge.endpoint.extra={top_p: 0.5}", "judge=null"):
        with pytest.raises(ValueError, match="cannot change at a resume"):
            changed(before, [f"rewards.{word}"])
    assert settings_of(before) == settings_of(moved), "how a judge is reached makes no other method"


def test_a_graded_run_is_exported_and_shown(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    graded = trainer(config(model, "algorithm=grpo", f"rewards.functions=[{LENGTH}]"), tmp_path / "run")
    graded.step()
    graded.close()
    for name in ("all.jsonl", "all.parquet"):
        assert export_trajectories(graded.run.path, Selection(), tmp_path / name) == 8
    (first, *_) = map(json.loads, (tmp_path / "all.jsonl").read_text().splitlines())
    from pyarrow.parquet import read_table

    (row, *_) = read_table(tmp_path / "all.parquet").to_pylist()
    assert row["grading"] == first["grading"]
    assert row["grading"]["grades"][0]["name"] == LENGTH
    assert row["total_reward"] == first["total_reward"]
    episodes = read_episodes(graded.run, graded.run.metrics(), 100)
    (block, *_) = episodes.blocks
    shown_details = json.loads(gzip.decompress(base64.b64decode(block)))
    assert shown_details[0]["grades"][1].startswith(f"{LENGTH} gave ")


@pytest.mark.parametrize("form", ["", ", forget: false, pace: lockstep, origin: own, form: released"])
def test_trees_branch_alike_whether_their_episodes_are_graded_or_not(model: Path, tmp_path: Path, form: str) -> None:
    """A planner learns at once that an episode has ended, and later what it is paid."""
    shapes = []
    short = "env.id=tests.grading.worlds:tests/Short-v0"
    for name, more in {"plain": [], "at once": ["rewards.threads=0"], "beside": ["rewards.threads=3"]}.items():
        graders = [] if name == "plain" else ["rewards.functions={'tests.grading.rewards:length': 0}"]
        made = trainer(
            config(model, f"algorithm={{type: aepo, threshold: 0.0{form}}}", short, *graders, *more), tmp_path / name
        )
        made.step()
        made.close()
        shapes.append([(t.episode, t.fork, [turn.reply for turn in t.turns]) for t in stored(made.run)])
    assert any(fork is not None for _, fork, _ in shapes[0]), "nothing branched: the test would show nothing"
    assert shapes[0] == shapes[1] == shapes[2]


def test_what_a_world_tells_of_a_task_reaches_functions_and_rubrics_and_is_stored(model: Path, tmp_path: Path) -> None:
    named = "{criteria: [{name: brief, text: 'It says {word}'}]}"
    with serving(judging(choices)) as server:
        settings = judged(server.url, tmp_path)
        settings = [word for word in settings if "rubric" not in word] + [f"rewards.judge.rubric={named}"]
        told = ["env.id=tests.grading.worlds:tests/Telling-v0", "rewards.functions=[tests.grading.rewards:word]"]
        made = trainer(config(model, *settings, *told), tmp_path / "run")
        made.step()
        made.close()
        texts = [request.body["messages"][1]["content"] for request in server.asked]
    episodes = stored(made.run)
    assert all(t.grading is not None and t.grading.grades[0].value == t.told()["word"] for t in episodes)
    assert {f"It says {t.told()['word']}" for t in episodes} == {
        line.split(": ")[1].split(" Choices")[0] for text in texts for line in text.splitlines() if "It says" in line
    }
    assert all(str(t.told()["word"]) in t.turns[0].observation for t in episodes)


def test_dynamic_sampling_sees_what_graders_pay(model: Path, tmp_path: Path) -> None:
    """Echo pays every episode 1: every group is uniform, until a function tells them apart."""
    played = []
    for name, graders in {"plain": [], "graded": [f"rewards.functions=[{LENGTH}]"]}.items():
        settings = ["algorithm=dapo", "env.id=tests.worlds:tests/Echo-v0", "env.success_threshold=null", *graders]
        made = trainer(config(model, *settings), tmp_path / name)
        record = made.step()
        made.close()
        played.append((len(stored(made.run)), record["uniform_share"]))
    assert played[0][1] == 1.0
    assert played[1][1] < 1.0
    assert played[1][0] < played[0][0], "nothing is played again where groups are not uniform"
