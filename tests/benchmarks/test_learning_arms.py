"""Settings that take one method apart: their arms, what is measured of them, and how they are recorded and shown."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.learning import learning_modules
from tests.view.runs import attempt, episode, make_run, task, turn
from turnwise.cloning.demonstrations import demonstrations
from turnwise.cloning.settings import WarmstartConfig
from turnwise.envs.tasks import maker
from turnwise.evaluation.contenders import read_run
from turnwise.learning.settings import Settings
from turnwise.trajectory import Fork, Trajectory

PAPERS = ("epo", "empg", "spear", "aepo")


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


def test_a_setting_that_came_later_is_named(
    modules: Any, played: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "found.json"
    record(modules, played, file)
    assert "came later" not in capsys.readouterr().out
    found = json.loads(file.read_text())
    del found["settings"]["warmstart.own_share"], found["runs"][0]["config"]
    file.write_text(json.dumps(found))
    runs_of_arms(modules, tmp_path / "later", {"grpo_bonus": [[attempt(n, task(0), 0, True)] for n in range(2)]})
    record(modules, tmp_path / "later", file)
    told = capsys.readouterr().out
    assert "came later than some of the runs, so that they were not compared: {'warmstart.own_share': 0.0}" in told
    assert "1 older rows do not say their settings, so that they were not compared: ['ppo 0']" in told
    assert json.loads(file.read_text())["settings_of"]["grpo_bonus"]["warmstart.own_share"] == 0.0


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
    assert effects.updates_to(of) == (12, 13)
    assert effects.updates_to(with_success(modules, at, [0.4] * 9)) == (5, 10)
    assert effects.spread_at_the_end(with_success(modules, at, [9.0] * 5 + [0.0, 0.5] * 15)) == pytest.approx(25.0)
    assert effects.entropies(of) == pytest.approx((0.0, 0.0, 1.0))
    assert effects.lost_groups(measured(modules, at))[:2] == (0.5, 1.0)
    late = effects.entropy_by_turn(measured(modules, at))
    assert late == pytest.approx(((0.1 + 0.1 + 0.5) / 3, (0.2 + 0.2 + 0.5) / 3, 0.3, 0.4))


def test_empgs_measures(modules: Any, tmp_path: Path) -> None:
    """The habit is counted at arrivals alone; credit is told by the entropy of the turn that has it."""

    def played(update: int, sample: int, habits: int, reward: float) -> Trajectory:
        actions = [word for n in range(2) for word in ("go to desk 1", "inventory" if n < habits else "look")]
        turns = [turn("see", word, entropy=0.1 * (n + 1), first=n == 0) for n, word in enumerate([*actions, "look"])]
        return episode(update, task(1), sample, [*turns[:-1], replace(turns[-1], reward=reward)])

    updates = [[played(n, i, 2 if n < 5 else 1 - i, float(i)) for i in range(2)] for n in range(10)]
    of = measured(modules, make_run(tmp_path / "run", updates, "rollout.group_size=2"))
    assert modules.effects.half_life(of) == 9, "four of five updates have a quarter of it: .4 on average"
    assert modules.effects.habit(of) == pytest.approx((1.0, (1.0 + 0.5) / 3, 0.25))
    assert modules.effects.credit_by_entropy(of) == pytest.approx((1.0,) * 10), "GRPO: all turns of an episode alike"
    sure = make_run(tmp_path / "empg", updates, "rollout.group_size=2", "algorithm.bonus_coef=0", algorithm="empg")
    shares = modules.effects.credit_by_entropy(measured(modules, sure))
    assert shares[0] > 1 > shares[-1]


def measured(modules: Any, path: Path) -> Any:
    run = read_run(path)
    return modules.claims.Measured(run, run, 100.0 * len(run.metrics))


def test_spears_measures(modules: Any, tmp_path: Path) -> None:
    effects = modules.effects
    groups = [[attempt(n, task(n), i, i == 0) for i in range(4)] for n in range(3)]
    plain = measured(modules, make_run(tmp_path / "plain", groups, "rollout.group_size=4", ratio_max=2.0))
    assert effects.pass_gap(plain) == pytest.approx((0.75, 0.75, 0.75))
    assert all(value != value for value in effects.replayed(plain)), "nothing is replayed"
    assert effects.ratios(plain) == (2.0, 2.0, 2.0)
    assert effects.gap_to_test(plain) == pytest.approx(100 * (0.25 - 0.75))
    spear = ("rollout.group_size=4", "algorithm.bonus_coef=0", "algorithm.base.group_share=1")
    again = effects.replayed(measured(modules, make_run(tmp_path / "spear", groups, *spear, algorithm="spear")))
    assert again == pytest.approx((4 / 3, 2.0, (0 + 0.25 + 0.5) / 3)), "one of four wins; then one, then two are kept"


def test_aepos_measures(modules: Any, tmp_path: Path) -> None:
    """Of four attempts three stand on one trunk; a copy of a copy counts for its root."""
    of = task(1)
    root, other, look = attempt(0, of, 0, True), attempt(0, of, 1, False), attempt(0, of, -1, False)
    copy = replace(attempt(0, of, 2, False), fork=Fork(root.episode, 1))
    second = replace(attempt(0, of, 3, False), fork=Fork(copy.episode, 1))
    alone = [attempt(0, task(2), i, False) for i in range(4)]
    run = measured(modules, make_run(tmp_path / "run", [[look, root, other, copy, second, *alone]]))
    effects = modules.effects
    assert effects.trunk_share(run)[0] == pytest.approx((0.75 + 0.25) / 2)
    assert effects.budget_variance(run) == 1.0, "2 and 4 attempts from the root"
    assert effects.branching_turns(run) == pytest.approx(2 / (2 + 2 + 1 + 1 + 8))


def test_the_trigger_is_a_quantile_of_the_turns_that_are_asked(
    modules: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not the first turn that a path played itself, nor what a copy shares with its parent."""
    turns = [turn("see", "go", entropy=h, first=n == 0) for n, h in enumerate((0.1, 0.2, 0.3, 0.5))]
    root, size = episode(0, task(1), 0, turns), len(turns[0].action_ids)
    copy = replace(episode(0, task(1), 1, turns), fork=Fork(root.episode, 2))
    given = ("rollout.group_size=2", "algorithm.log_vocabulary=2")
    at = make_run(tmp_path / "run", [[root, copy]], *given, algorithm="arpo")
    found = list(modules.trigger.readiness(modules.trigger.RunDirectory.open(at)))
    assert found == pytest.approx([0.5 + 0.2 * size * rise / 2 for rise in (0.1, 0.2, 0.4, 0.4)])
    modules.trigger.main([str(at), "--share", "1"])
    assert float(capsys.readouterr().out) == pytest.approx(found[0], abs=1e-4)
    with pytest.raises(ValueError, match="is no run of arpo or aepo"):
        list(modules.trigger.readiness(modules.trigger.RunDirectory.open(make_run(tmp_path / "grpo", [[root]]))))


TINY = (
    *("model.hidden_size=32", "model.head_dim=16", "model.ffn_size=48", "model.qk_norm=1", "model.num_layers=2"),
    *("rollout.num_tasks=1", "rollout.group_size=2", "num_updates=2", "eval.test_tasks=2", "agent.max_reply_tokens=3"),
    *("warmstart.max_tokens=2000", "warmstart.tokenizer_episodes=10", "warmstart.stop_success=null"),
)


@pytest.mark.filterwarnings("ignore:not one of the first")
@pytest.mark.parametrize(
    ("setting", "arm"), [("epo", "ppo_epo"), ("empg", "grpo_empg"), ("spear", "spear"), ("aepo", "aepo")]
)
def test_an_arm_is_run_measured_and_shown(
    modules: Any, setting: str, arm: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TURNWISE_CACHE", str(tmp_path / "cache"))
    tiny = replace(modules.settings.SETTINGS[setting], settings=TINY)
    monkeypatch.setitem(modules.settings.SETTINGS, setting, tiny)
    out, file, page = tmp_path / "out", tmp_path / "found.json", tmp_path / "page.md"
    chosen = ["--setting", setting, "--out", str(out)]
    assert modules.run.main([*chosen, "--only", arm, "--seeds", "0"]) == 0
    modules.record.main([*chosen, "--to", str(file)])
    (row,) = json.loads(file.read_text())["runs"]
    assert (row["algorithm"], row["updates"]) == (arm, 2)
    assert list(row["measures"]) == [claim.title for claim in modules.effects.EFFECTS[setting]]
    modules.report.main(["--setting", setting, "--recorded", str(file), "--to", str(page)])
    assert f"| {arm} | 0 | " in page.read_text()


@pytest.mark.parametrize("name", ["Mistaken", "Thoughtful"])
def test_odd_experts_win_all_the_same(modules: Any, name: str) -> None:
    """The habit comes after nearly every arrival, noise or not; thoughts say what is done, and are not heard."""
    with closing(maker(f"households:bench/{name}Household-v0", step_limit=40)()) as env:
        clone = WarmstartConfig(stop_success=None, only_successes=False)
        shown = list(islice(demonstrations(env, clone, seed=0), 24))
    assert sum(each.success for each in shown) >= 23
    habits: list[bool] = []
    for each in shown:
        for was, now, learn in zip(each.actions, each.actions[1:], each.learn[1:], strict=False):
            if name == "Mistaken" and learn and was.startswith("go to "):
                habits.append(now == modules.households.HABIT)
            elif name == "Mistaken" and learn:
                assert now != modules.households.HABIT
            if name == "Thoughtful" and learn:
                told = was.rpartition("</think>")[2]
                thought, _, action = now.partition("</think>")
                assert f"i did {told}. now i {action}." in thought
    if name == "Mistaken":
        assert 0.9 < sum(habits) / len(habits) < 1
