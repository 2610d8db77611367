"""The learning benchmark on tiny settings: fair by construction, resumable by cell, reported from the finished ones."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from tests.benchmarks.learning import learning_modules
from tests.training.tiny import StopAfter, StopError
from tests.view.runs import attempt, episode, make_run, task, turn
from turnwise.algorithms.registry import ALGORITHMS, resolve
from turnwise.assembly.run import Assembly
from turnwise.cli import app
from turnwise.config.files import load_config, parse_config
from turnwise.config.schema import RunConfig
from turnwise.evaluation.contenders import read_run
from turnwise.runs.directory import RunDirectory
from turnwise.training.observing import Callback
from turnwise.trajectory import Trajectory


@pytest.fixture(scope="module")
def modules() -> Iterator[Any]:
    """The benchmark's modules; its smallest setting made smaller."""
    with learning_modules() as (found, patch):
        smoke = replace(found.settings.SETTINGS["smoke"], budget=200, tokens_per_update=60, test_tasks=2)
        short = ("rollout.num_tasks=1", "rollout.group_size=2", "agent.max_reply_tokens=3", "eval.greedy=false")
        small = replace(smoke, num_seeds=1, settings=(*smoke.settings, *short))
        patch.setitem(found.settings.SETTINGS, "smoke", small)
        patch.setattr(found.design, "RATES", ("1e-3",))
        patch.setattr(found.design, "NUM_TRIALS", 2)
        patch.setattr(found.design, "TUNING_SEED", 0)  # one warm start for all
        yield found


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    patch.setenv("TURNWISE_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


@pytest.fixture(scope="module")
def finished(modules: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GRPO's and EPO's trials and one seed of each, by the command."""
    out = tmp_path_factory.mktemp("learning")
    assert modules.run.main(["--setting", "smoke", "--only", "grpo,epo", "--out", str(out)]) == 0
    return out


def trial(
    modules: Any, method: str, setting: str = "household", choice: int = 0, out: Path = Path("none")
) -> RunConfig:
    config = modules.design.configured(modules.design.Cell(setting, method, 1000, choice), out)
    assert isinstance(config, RunConfig)
    return config


def test_a_setting_without_trials_gives_every_method_the_same_rate(modules: Any) -> None:
    cells = list(modules.design.cells("alfworld", ["grpo", "spear"], range(3)))
    assert [cell.choice for cell in cells] == [None] * 6
    configs = [modules.design.configured(cell, Path("none")) for cell in cells]
    assert {config.optimizer.lr for config in configs} == {1e-3}
    assert {config.num_updates for config in configs} == {modules.settings.SETTINGS["alfworld"].num_updates}


@pytest.mark.parametrize("method", list(ALGORITHMS))
def test_every_algorithm_has_its_trials_and_starts_alike(
    modules: Any, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A method that joins the registry joins the benchmark."""
    monkeypatch.setattr(modules.design, "score", lambda trial, out: 0.5)
    assert (method in modules.settings.SETTINGS["household"].names()) == (method not in modules.settings.TAUGHT)
    configs = [trial(modules, method, choice=choice) for choice in range(modules.design.NUM_TRIALS)]
    assert len({config.model_dump_json() for config in configs}) == modules.design.NUM_TRIALS
    grpo = trial(modules, "grpo")
    for config in configs:
        assert config.algorithm.model_dump()["type"] == method
        assert Assembly(config).warmstart.cloning.key == Assembly(grpo).warmstart.cloning.key
        assert (config.env, config.rollout, config.eval, config.seed) == (
            *(grpo.env, grpo.rollout, grpo.eval, grpo.seed),
        )


def test_a_row_is_one_command(modules: Any) -> None:
    """Every method is trained as it is documented, by a line that can be typed."""
    design = modules.design
    cell = design.Cell("alfworld", "spear", 3)
    words = design.command(cell, Path("none"))
    assert words[:3] == ["learning/alfworld", "--algorithm", "spear"]
    config = design.configured(cell, Path("none"))
    ran = CliRunner().invoke(app, ["train", *words, "--print-config"])
    assert parse_config(yaml.safe_load(ran.stdout)) == config
    assert config.algorithm == resolve("spear").config()
    assert (config.rewards.scale, config.max_sampled_tokens) == (1.0, 200_000)


def test_trials_never_see_the_panel_of_the_results(modules: Any) -> None:
    for setting in modules.settings.SETTINGS.values():
        assert setting.panel != setting.tuning_panel
    assert trial(modules, "grpo").eval.test_split == "validation"


@pytest.mark.parametrize("choice", [1, None])
def test_seeds_and_the_last_trial_wait_for_the_others(modules: Any, choice: int | None, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no run at"):
        modules.design.configured(modules.design.Cell("household", "grpo", 0, choice), tmp_path)


def test_the_last_trial_has_the_better_rate(modules: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    design = modules.design
    monkeypatch.setattr(design, "RATES", ("1e-3", "2e-3"))
    for scores, rate in (((0.4, 0.5), 2e-3), ((0.5, 0.4), 1e-3), ((0.5, 0.5), 1e-3)):
        monkeypatch.setattr(design, "score", lambda trial, out, scores=scores: scores[trial.choice])
        config = trial(modules, "ppo", choice=2)
        assert (config.optimizer.lr, config.algorithm.model_dump()["level"]) == (rate, "turn")


def test_the_plan_counts_and_costs(modules: Any, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--setting", "smoke", "--plan", "--only", "grpo,rloo", "--out", str(finished)]
    assert modules.run.main(words) == 0
    shown = capsys.readouterr().out
    assert "| grpo | 2 of 2 | 1 of 1 | 600 | 0.0 |" in shown
    assert "| rloo | 0 of 2 | 0 of 1 |" in shown
    assert "200 sampled tokens a trial and a seed" in shown
    cells = list(modules.design.cells("household", ["grpo"], [0]))
    setting = modules.settings.SETTINGS["household"]
    measured = 2 * setting.test_tasks / 100 * setting.measure_cpu_s
    assert cells[-1].expected_cpu_s == pytest.approx(setting.budget / 1000 * setting.cpu_s_per_1000 + measured)


def test_unknown_algorithms_are_named(modules: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        modules.run.main(["--only", "gpo"])
    assert "Unknown algorithm 'gpo'" in capsys.readouterr().err


def test_every_cell_spends_its_budget_and_not_an_update_more(modules: Any, finished: Path) -> None:
    for method in ("grpo", "epo"):
        for cell in modules.design.cells("smoke", [method], [0]):
            sampled = [line["sampled_tokens"] for line in RunDirectory(finished / cell.folder).metrics()]
            assert sum(sampled) >= cell.budget > sum(sampled[:-1])


def test_the_best_trial_is_taken_and_spans_the_schedules(modules: Any, finished: Path, tmp_path: Path) -> None:
    choice, num_updates = modules.design.tuned("smoke", "epo", finished)
    runs = [read_run(finished / "smoke" / "epo" / f"trial-{i}") for i in range(2)]
    successes = [run.after["sampled"].success.value for run in runs if run.after["sampled"].success]
    best = successes.index(max(successes))
    assert choice == (("optimizer.lr=1e-3",), ("optimizer.lr=1e-3", "algorithm.entropy_coef=3e-3"))[best]
    assert num_updates == len(runs[best].metrics)
    config = RunDirectory(finished / "smoke" / "epo" / "seed-0").config()
    assert config.num_updates == num_updates
    assert config.eval.test_split == "test"


def test_an_interrupted_cell_goes_on_to_the_same_numbers(modules: Any, finished: Path, tmp_path: Path) -> None:
    whole = RunDirectory(finished / "smoke" / "grpo" / "seed-0")
    assert len(whole.metrics()) >= 2
    cell = next(each for each in modules.run.selected("smoke", "grpo", "0") if each.choice is None)
    config = modules.design.configured(cell, finished)
    assert config.rollout.backend is None, "a run keeps it settled"
    with pytest.raises(StopError):
        modules.driver.run_cell(config, tmp_path / "cell", StopAfter(2))
    assert not modules.design.is_finished(tmp_path / "cell")
    modules.driver.run_cell(config, tmp_path / "cell", Callback())
    again = RunDirectory(tmp_path / "cell")

    def timeless(run: RunDirectory) -> list[dict[str, Any]]:
        return [{k: v for k, v in line.items() if k != "seconds"} for line in run.metrics()]

    assert timeless(again) == timeless(whole)
    assert read_run(again.path).after == read_run(whole.path).after
    other = config.model_copy(update={"num_updates": 99})
    with pytest.raises(ValueError, match="run with other settings"):
        modules.driver.run_cell(other, tmp_path / "cell", Callback())


def test_finished_cells_are_skipped_and_a_failing_one_stops_no_other(
    modules: Any, finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--setting", "smoke", "--only", "grpo,rloo", "--out", str(finished)]

    def fail(*args: Any) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(modules.run, "run_cell", fail)
    assert modules.run.main(words) == 1
    shown = capsys.readouterr().out
    assert "grpo" not in shown
    assert shown.count("failed: no memory") == 1
    assert shown.count("failed: no run at") == 2  # the last trial and the seed, which need what failed
    assert shown.count("not finished") == 3


def test_the_report_is_made_of_what_is_finished(modules: Any, finished: Path, tmp_path: Path) -> None:
    page, picture = tmp_path / "docs" / "learning.md", tmp_path / "docs" / "images" / "learning.svg"
    words = ["--setting", "smoke", "--out", str(finished), "--to", str(page), "--svg", str(picture)]
    modules.report.main(words)
    text = page.read_text()
    assert "![learning curves](images/learning.svg)" in text
    assert "difference to grpo" in text
    assert "| epo | `optimizer.lr=1e-3`" in text
    assert "courses per leaf (AEPO: higher)" in text
    assert "- courses per 1000 tokens: the same for 1000 sampled tokens" in text
    assert picture.read_text().startswith("<svg")
    with pytest.raises(SystemExit):
        modules.report.main([*words[:3], str(tmp_path), *words[4:]])


def test_the_claims_are_measured_as_they_say(modules: Any, finished: Path) -> None:
    claims = modules.claims
    run = read_run(finished / "smoke" / "grpo" / "seed-0")

    def measured(values: list[float], base: list[float] | None = None) -> Any:
        def with_curve(heights: list[float]) -> Any:
            lines = [
                {"success": y, "entropy": y, "sampled_tokens": 10, "turns": 1, "episodes": 1, "seconds": {}}
                for y in heights
            ]
            return replace(run, metrics=lines)

        return claims.Measured(with_curve(values), with_curve(base or values), 10.0 * len(values))

    assert claims.entropy_swing(measured([0.5, 1.0, 0.0])) == pytest.approx(0.75 / 0.5)
    assert claims.largest_setback(measured([0.2, 0.8, 0.5])) == pytest.approx(30.0)
    assert claims.tokens_to_level(measured([0.2, 0.5, 0.9], [0.1, 0.1, 0.5])) == pytest.approx(11 / 30)
    assert claims.tokens_to_level(measured([0.2, 0.3, 0.3], [0.1, 0.1, 0.5])) == 1.0
    of = claims.Measured(run, run, 200.0)
    episodes = of.trajectories()
    courses = {(t.policy_version, t.task.key, tuple(turn.action for turn in t.turns)) for t in episodes}
    assert claims.courses_per_leaf(of) == pytest.approx(len(courses) / len(episodes))
    tokens = sum(t.num_action_tokens for t in episodes)
    assert claims.courses_per_token(of) == pytest.approx(1000 * len(courses) / tokens)


def measured(path: Path, claims: Any) -> Any:
    run = read_run(path)
    return claims.Measured(run, run, 100.0)


def one_of_each(entropies: Sequence[float], reward: float, sample: int, update: int = 0) -> Trajectory:
    """A turn for each entropy; the last one is rewarded."""
    turns = [turn(f"see {n}", f"go to drawer {n}", entropy=e, first=n == 0) for n, e in enumerate(entropies)]
    return episode(update, task(1), sample, [*turns[:-1], replace(turns[-1], reward=reward)])


def test_credit_of_the_sure_is_made_of_credit(modules: Any, tmp_path: Path) -> None:
    """GRPO: every token of an episode has one advantage, whoever is how sure: 1. EMPG gives the surer turns more."""
    claims, levels = modules.claims, [0.1, 0.9, 0.2, 0.8]
    group = [one_of_each(levels, 1.0, 0), one_of_each(levels[::-1], 0.0, 1), one_of_each([2.0, 0.1, 0.3], 0.0, 2)]
    found = {
        name: claims.credit_of_the_sure(measured(make_run(tmp_path / name, [group], *more, algorithm=name), claims))
        for name, more in {
            "grpo": ("rollout.group_size=3",),
            "empg": ("rollout.group_size=3", "algorithm.bonus_coef=0"),
            "ppo": ("rollout.group_size=3",),
        }.items()
    }
    assert found["grpo"] == pytest.approx(1.0)
    assert found["empg"] > 1.1
    assert math.isnan(found["ppo"])


def test_diversity_is_counted_among_leaves_and_paid_for_by_tokens(modules: Any, tmp_path: Path) -> None:
    """Two of three leaves did the same; the look's course is none of theirs, its tokens were spent."""
    leaves = [attempt(0, task(1), 0, False), attempt(0, task(1), 1, False), attempt(0, task(1), 2, True, "look")]
    look = attempt(0, task(1), -1, False, "go to cabinet 9")
    of = measured(make_run(tmp_path / "run", [[look, *leaves]], sampled_tokens=500), modules.claims)
    assert modules.claims.courses_per_leaf(of) == pytest.approx(2 / 3)
    assert modules.claims.courses_per_token(of) == pytest.approx(1000 * 2 / 500)


def test_a_setting_with_its_own_rate_changes_nothing(modules: Any) -> None:
    cell = modules.design.Cell("sweep", "gigpo", 2)
    config = modules.design.configured(cell, Path("none"))
    named = load_config("learning/sweep", ["seed=2"], algorithm="gigpo")
    assert config == named, "what the file records as its command"
    words = modules.design.command(cell, Path("none"))
    assert words == ["learning/sweep", "--algorithm", "gigpo", "seed=2"]


def test_cells_are_recorded_and_known_from_then_on(
    modules: Any, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A second machine adds its rows; those that are there stay, and are not run again."""
    file = tmp_path / "found.json"
    arguments = ["--setting", "smoke", "--out", str(finished), "--to", str(file)]
    modules.record.main(arguments)
    first = json.loads(file.read_text())
    assert [(row["algorithm"], row["seed"]) for row in first["runs"]] == [("grpo", 0), ("epo", 0)]
    after = read_run(finished / "smoke" / "epo" / "seed-0").after["sampled"]
    row = first["runs"][1]
    assert [float(each) for each in row["outcomes"]] == [won for (won,) in after.outcomes]
    assert after.success is not None
    assert row["after"]["value"] == first["to_grpo"]["epo"]["after"]["value"] == after.success.value
    assert "EntropyCorridor/outside_share" in row["mechanisms"]

    other = {**row, "algorithm": "spear", "outcomes": "11"}
    file.write_text(json.dumps({"setting": "smoke", "runs": [first["runs"][0], other]}))
    modules.record.main(arguments)
    second = json.loads(file.read_text())
    assert [row["algorithm"] for row in second["runs"]] == ["grpo", "epo", "spear"]
    base = float(np.mean([int(each) for each in first["runs"][0]["outcomes"]]))
    assert second["to_grpo"]["spear"]["difference"]["estimate"]["value"] == 1 - base
    assert second["to_grpo"]["grpo"]["difference"] is None

    capsys.readouterr()
    skipped = ["--setting", "smoke", "--only", "epo,spear,rloo", "--recorded", str(file), "--plan"]
    modules.run.main([*skipped, "--out", str(tmp_path / "none")])
    told = capsys.readouterr().out
    assert "| epo | 0 of 2 | 0 of 0 |" in told, "its trials are left, its seed is known"
    assert "| rloo | 0 of 2 | 0 of 1 |" in told


def test_rows_of_other_panels_are_refused(modules: Any) -> None:
    rows = [
        {"algorithm": name, "seed": 0, "panel_hash": name, "outcomes": "01", "commit": "a"} for name in ("grpo", "epo")
    ]
    with pytest.raises(ValueError, match="epo, seed 0, was measured on another panel than grpo"):
        modules.record.recorded(rows, modules.settings.SETTINGS["smoke"])


def test_a_file_of_another_setting_is_refused(modules: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "found.json"
    file.write_text(json.dumps({"setting": "sweep", "runs": []}))
    for command in (modules.record.main, modules.run.main):
        to = "--to" if command is modules.record.main else "--recorded"
        with pytest.raises(SystemExit):
            command(["--setting", "smoke", "--out", str(tmp_path), to, str(file)])
        assert "records the setting sweep, not smoke: name another file" in capsys.readouterr().err.replace("\n", " ")
