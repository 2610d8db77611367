"""Settings that take one method apart: their arms, what is measured of them, and how they are recorded and shown."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.learning import learning_modules
from tests.view.runs import attempt, episode, make_run, task, turn
from turnwise.evaluation.contenders import read_run
from turnwise.learning.settings import Settings
from turnwise.trajectory import Trajectory

PAPERS = ("epo",)


@pytest.fixture(scope="module")
def modules() -> Iterator[Any]:
    with learning_modules() as (found, _):
        yield found


def algorithm(modules: Any, setting: str, arm: str) -> Settings:
    found: Settings = modules.design.configured(modules.design.Cell(setting, arm, 0), Path("none")).algorithm
    return found


@pytest.mark.parametrize("setting", PAPERS)
def test_arms_differ_in_their_algorithm_alone(modules: Any, setting: str) -> None:
    found = modules.settings.SETTINGS[setting]
    configs = [modules.design.configured(cell, Path("none")) for cell in modules.design.cells(setting, found.arms, [0])]
    assert len({config.algorithm.model_dump_json() for config in configs}) == len(found.arms) > 1
    assert len({config.model_copy(update={"algorithm": None}).model_dump_json() for config in configs}) == 1
    first = configs[0]
    assert (first.num_updates, first.eval.test_split, first.eval.test_tasks) == (
        *(found.num_updates, found.panel, found.test_tasks),
    )
    assert first.rewards.invalid_action_penalty == 0
    bases = {arm.base for arm in found.arms.values()}
    assert bases <= {None, *found.arms}
    assert setting in modules.effects.EFFECTS


def test_epo_is_taken_apart_on_both_bases(modules: Any) -> None:
    for base in ("ppo", "grpo"):
        alone = algorithm(modules, "epo", base)
        for name, coef, corridor in (("bonus", 1e-3, 0.0), ("epo", 1e-3, 0.1), ("lambda_corridor", 1e-2, 1.0)):
            found = algorithm(modules, "epo", f"{base}_{name}").model_dump()
            assert (found["entropy_coef"], found["corridor_coef"]) == (coef, corridor)
            assert found["base"] == alone.model_dump()


def runs_of_arms(modules: Any, out: Path, groups: dict[str, list[list[Trajectory]]], **settings: str) -> None:
    """Finished seeds of arms, without training."""
    for arm, updates in groups.items():
        words = modules.settings.SETTINGS["epo"].arm(arm)
        given = [*words.settings, *([settings[arm]] if arm in settings else [])]
        make_run(out / "epo" / arm / "seed-0", updates, *given, algorithm=words.algorithm)


@pytest.fixture
def played(modules: Any, tmp_path: Path) -> Path:
    lost, won = ([attempt(n, task(n), i, i < wins) for i in range(4)] for n, wins in ((0, 0), (1, 2)))
    runs_of_arms(modules, tmp_path / "out", {"grpo": [lost, won], "grpo_epo": [won, won], "ppo": [lost, lost]})
    return tmp_path / "out"


def record(modules: Any, out: Path, file: Path) -> None:
    modules.record.main(["--setting", "epo", "--out", str(out), "--to", str(file)])


def test_arms_are_recorded_against_their_bases_and_shown(modules: Any, played: Path, tmp_path: Path) -> None:
    file, page = tmp_path / "found.json", tmp_path / "epo.md"
    record(modules, played, file)
    found = json.loads(file.read_text())
    assert [row["algorithm"] for row in found["runs"]] == ["ppo", "grpo", "grpo_epo"]
    assert found["to_base"]["grpo"]["difference"] is None
    assert found["to_base"]["grpo_epo"]["difference"]["to"] == "grpo"
    assert found["runs"][1]["measures"]["lost groups"] == [1.0, 0.0, None], "two updates: nothing in the last third"
    modules.report.main(["--setting", "epo", "--recorded", str(file), "--to", str(page)])
    text = page.read_text()
    assert "| grpo_epo | 0 | 25.0 | 75.0" in text
    assert "grpo: +0.0 [" in text
    assert "| 1 / 0 / - |" in text
    command = (
        "turnwise train learning/epo --algorithm epo algorithm.base.type=grpo algorithm.base.drop_uniform_groups=false"
    )
    assert f"| grpo_epo | `{command}` |" in text


def test_recorded_arms_are_not_run_again(
    modules: Any, played: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record(modules, played, tmp_path / "found.json")
    words = ["--setting", "epo", "--by-seed", "--recorded", str(tmp_path / "found.json"), "--plan", "--out", "none"]
    assert modules.run.main([*words, "--only", "grpo,grpo_bonus"]) == 0
    told = capsys.readouterr().out
    assert "| grpo | 0 of 0 | 0 of 2 |" in told
    assert "| grpo_bonus | 0 of 0 | 0 of 3 |" in told
    assert "100 updates, some 500,000 sampled tokens a seed" in told
    with pytest.raises(SystemExit):
        modules.run.main([*words, "--only", "grpo_bonsu"])
    assert "Unknown arm 'grpo_bonsu'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arm", "setting", "told"),
    [
        (
            "grpo_epo",
            "algorithm.gamma=2",
            "grpo_epo was trained with other settings here than grpo_epo in the file: algorithm.gamma (3.0, here 2.0)",
        ),
        ("grpo_bonus", "optimizer.lr=0.5", "optimizer.lr (0.001, here 0.5)"),
    ],
)
def test_runs_of_other_settings_are_not_put_together(
    modules: Any, played: Path, tmp_path: Path, arm: str, setting: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after a default was changed: of the arm itself, and of what all arms share."""
    file = tmp_path / "found.json"
    record(modules, played, file)
    before = file.read_text()
    runs_of_arms(
        modules, tmp_path / "later", {arm: [[attempt(n, task(0), 0, True)] for n in range(2)]}, **{arm: setting}
    )
    with pytest.raises(SystemExit):
        record(modules, tmp_path / "later", file)
    assert told in " ".join(capsys.readouterr().err.split())
    assert file.read_text() == before


def test_what_a_command_gives_may_differ_between_methods(modules: Any) -> None:
    """Trials choose rates, and tuned methods differ in them; nothing else may."""
    resolved = modules.resolved.Resolved()
    same = resolved.add("grpo", {"optimizer.lr": 1e-3, "algorithm.type": "grpo"}, "turnwise train x optimizer.lr=1e-3")
    resolved.add("epo", {"optimizer.lr": 2e-3, "algorithm.type": "epo"}, "turnwise train x optimizer.lr=2e-3")
    assert resolved.add("grpo", {"optimizer.lr": 1e-3, "algorithm.type": "grpo"}, "") == same
    with pytest.raises(ValueError, match=r"optimizer.lr \(0.001, here 0.002\)"):
        resolved.add("grpo", {"optimizer.lr": 2e-3, "algorithm.type": "grpo"}, "turnwise train x optimizer.lr=2e-3")


def with_success(modules: Any, path: Path, heights: list[float]) -> Any:
    run = read_run(path)
    line = run.metrics[0]
    run = replace(run, metrics=[{**line, "update": n, "success": y, "entropy": y} for n, y in enumerate(heights)])
    return modules.claims.Measured(run, run, 100.0 * len(heights))


def test_epos_measures(modules: Any, tmp_path: Path) -> None:
    effects = modules.effects
    turns = [turn("see", "go", entropy=h, first=h == 0.1) for h in (0.1, 0.2, 0.3, 0.4)]
    longer = [episode(n, task(1), 0, turns) for n in (0, 1)]
    at = make_run(tmp_path / "run", [[longer[0], attempt(0, task(2), 0, True)], [longer[1]]])
    of = with_success(modules, at, [0.0] * 10 + [1.0] * 5)
    assert effects.updates_to_half(of) == 13
    assert effects.updates_to_half(with_success(modules, at, [0.4] * 9)) == 10
    assert effects.spread_at_the_end(with_success(modules, at, [9.0] * 5 + [0.0, 0.5] * 15)) == pytest.approx(25.0)
    assert effects.entropies(of) == pytest.approx((0.0, 0.0, 1.0))
    assert effects.lost_groups(modules.claims.Measured(read_run(at), read_run(at), 1.0))[:2] == (0.5, 1.0)
    late = effects.entropy_by_turn(modules.claims.Measured(read_run(at), read_run(at), 1.0))
    assert late == pytest.approx(((0.1 + 0.1 + 0.5) / 3, (0.2 + 0.2 + 0.5) / 3, 0.3, 0.4))
