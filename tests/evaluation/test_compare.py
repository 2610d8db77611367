"""Comparisons of runs: the statistics against arithmetic and simulation, the pairing, and what is refused."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from rich.console import Console

from turnwise.config.files import load_config
from turnwise.evaluation.compare import compare, plain
from turnwise.evaluation.comparison_view import comparison_table, curves_svg, markdown
from turnwise.evaluation.contenders import Curve, read_run
from turnwise.evaluation.report import Report
from turnwise.runs.directory import RunDirectory
from turnwise.statistics import Estimate, bootstrap_mean, crossed_bootstrap, detectable, more_to_resolve, wilson
from turnwise.svg import Panel, small_multiples, ticks

# --- statistics ---


def test_one_seed_is_a_bootstrap_over_tasks() -> None:
    values = [0.0] * 30 + [1.0] * 70
    crossed, ordinary = crossed_bootstrap([values]), bootstrap_mean(values)
    assert (crossed.value, crossed.num) == (0.7, 100)
    assert (crossed.low, crossed.high) == pytest.approx((ordinary.low, ordinary.high), abs=0.015)


def test_seeds_that_repeat_each_other_tell_nothing_new_about_tasks() -> None:
    values = [0.0] * 30 + [1.0] * 70
    one, five = crossed_bootstrap([values]), crossed_bootstrap([values] * 5)
    assert five.high - five.low == pytest.approx(one.high - one.low, rel=0.1)


def test_seeds_alone_vary_where_there_is_one_task() -> None:
    found = crossed_bootstrap([[0.1], [0.2], [0.6]])
    assert found.value == pytest.approx(0.3)
    assert (found.low, found.high) == pytest.approx((0.1, 0.6))  # two of three are drawn, each maybe twice
    assert crossed_bootstrap([[0.4]]) == Estimate(0.4, 0.4, 0.4, 1)


def test_missing_cells_are_left_out() -> None:
    found = crossed_bootstrap([[1.0, math.nan, 0.0], [1.0, 1.0, math.nan]])
    assert (found.value, found.num) == (0.75, 4)
    assert 0 <= found.low < 0.75 < found.high <= 1
    with pytest.raises(ValueError, match="Nothing was observed"):
        crossed_bootstrap([[math.nan]])
    with pytest.raises(ValueError, match="rows of equal length"):
        crossed_bootstrap([[1.0], [1.0, 0.0]])


@pytest.mark.parametrize(("num_seeds", "seed_sd"), [(2, 0.03), (5, 0.0), (5, 0.06)])
def test_the_interval_covers_the_truth_at_least_nine_times_in_ten(num_seeds: int, seed_sd: float) -> None:
    rng, covered, num = np.random.default_rng(0), 0, 200
    for trial in range(num):
        rates = 0.5 + rng.normal(0, seed_sd, (num_seeds, 1)) + rng.normal(0, 0.15, (1, 40))
        found = crossed_bootstrap((rng.random(rates.shape) < rates).astype(float).tolist(), resamples=400, seed=trial)
        covered += found.low <= 0.5 <= found.high
    assert covered / num >= 0.9


def test_what_could_have_been_detected() -> None:
    half = 1.959964  # one standard error
    assert detectable(Estimate(0.0, -half, half, 9)) == pytest.approx(1.959964 + 0.841621, abs=1e-5)
    assert math.isnan(detectable(Estimate(0.5, 0.5, 0.5, 9)))


def test_how_many_more_episodes_would_resolve_a_difference() -> None:
    half = 1.959964
    assert more_to_resolve(Estimate(1.0, 1.0 - half, 1.0 + half, 0), 100) == math.ceil(100 * (2.801585**2 - 1))
    assert more_to_resolve(Estimate(3.0, 3.0 - half, 3.0 + half, 0), 100) == 0
    assert more_to_resolve(Estimate(0.0, -half, half, 0), 100) is None
    assert more_to_resolve(Estimate(0.5, 0.5, 0.5, 1), 100) is None, "a point knows no variance"


def test_resolving_keeps_its_promise() -> None:
    """With that many more episodes, a true difference of that size is found about eight times in ten."""
    rng, difference, sd, num = np.random.default_rng(0), 0.1, 1.0, 200
    half = 1.959964 * sd / math.sqrt(num)
    more = more_to_resolve(Estimate(difference, difference - half, difference + half, num), num)
    assert more is not None
    means = rng.normal(difference, sd / math.sqrt(num + more), 4000)
    assert np.mean(means - 1.959964 * sd / math.sqrt(num + more) > 0) == pytest.approx(0.8, abs=0.03)


def test_a_curve_is_constant_over_what_its_update_spent() -> None:
    curve = Curve((10.0, 40.0), (0.0, 1.0))
    assert curve.mean([0.0, 40.0]) == [0.75]  # (10 * 0 + 30 * 1) / 40
    assert curve.mean([0.0, 20.0, 40.0]) == [0.5, 1.0]


# --- runs ---

TASKS = 8
ROWS: dict[str, list[int]] = {
    "low": [1, 0, 0, 0, 1, 0, 0, 0],
    "half": [1, 1, 0, 0, 1, 1, 0, 0],
    "high": [1, 1, 1, 0, 1, 1, 1, 0],
}


def report(outcomes: list[int], panel: str = "aaaa", success: bool = True) -> dict[str, Any]:
    rate = wilson(sum(outcomes), len(outcomes))
    made = Report(
        *("agent", "turnwise/Household-v0", "test", panel, len(outcomes), 1, 1.0, rate if success else None),
        *({}, {}, float(np.mean(outcomes)), 5.0, 10.0, 0.1, 0.2, 0.0, 0, tuple((float(x),) for x in outcomes)),
    )
    return asdict(made)


def make_run(
    folder: Path,
    after: str,
    *settings: str,
    seed: int = 0,
    success: tuple[float, ...] = (0.25, 0.75),
    panel: str = "aaaa",
    start: bytes = b"weights",
    known: bool = True,
    **changes: Any,
) -> Path:
    config = load_config("smoke", ["algorithm=grpo", f"seed={seed}", *settings])
    run = RunDirectory.create(folder, config, {})
    run.model_path.mkdir()
    (run.model_path / "model.safetensors").write_bytes(start + bytes([seed]))
    for update, rate in enumerate(success):
        line = {
            **{"update": update, "success": rate if known else None, "reward": rate, "turns": 5.0, "episodes": 4},
            **{"sampled_tokens": 100, "entropy": 0.5 - 0.1 * update, "clip_share": 0.1 * update},
            **{"regularizers/EntropyCorridor": 0.0, "seconds": {"collect": 1.0, "update": 1.0, "evaluate": 9.0}},
            **changes,
        }
        run.log(line)
    measured = {
        when: {"sampled": report(ROWS[row], panel, known)} for when, row in (("before", "low"), ("after", after))
    }
    run.evaluation_path.write_text(json.dumps(measured))
    return folder


@pytest.fixture
def four(tmp_path: Path) -> list[Path]:
    """Two methods, two seeds."""
    return [
        make_run(tmp_path / "grpo-0", "low"),
        make_run(tmp_path / "grpo-1", "half", seed=1),
        make_run(tmp_path / "rloo-0", "half", "algorithm=rloo", success=(0.5, 0.75)),
        make_run(tmp_path / "rloo-1", "high", "algorithm=rloo", seed=1, success=(0.5, 0.75)),
    ]


def test_seeds_are_pooled_and_differences_paired(four: list[Path]) -> None:
    found = compare(four)
    base, other = found.methods
    assert (found.baseline, base.name, other.name, other.seeds) == ("grpo", "grpo", "rloo", (0, 1))
    assert (base.after["sampled"].value, other.after["sampled"].value) == (0.375, 0.625)
    assert (base.before["sampled"].value, base.differences) == (0.25, {})
    difference = other.differences["sampled"]
    assert difference.estimate.value == 0.25
    assert difference.estimate.low >= 0  # no task is lost: unpaired, this interval would hold 0
    assert difference.seeds == (0, 1)
    assert difference.detectable == detectable(difference.estimate)


def test_areas_end_where_the_shortest_run_does(tmp_path: Path) -> None:
    paths = [
        make_run(tmp_path / "a", "low", success=(0.2, 0.4)),
        make_run(tmp_path / "b", "low", "algorithm=rloo", success=(0.2, 0.6, 1.0)),
    ]
    found = compare(paths)
    assert found.horizon == {"turns": 40.0, "tokens": 200.0, "seconds": 4.0}
    assert [method.areas["tokens"].value for method in found.methods] == pytest.approx([0.3, 0.4])
    assert found.methods[1].area_gains["turns"].value == pytest.approx(0.1)
    assert found.methods[1].spent == {"updates": 3.0, "turns": 60.0, "tokens": 300.0, "seconds": 6.0}
    assert any("Budgets differ: the runs sampled between 200 and 300 tokens" in note for note in found.notes)
    assert any("One seed only (grpo, rloo)" in note for note in found.notes)


def test_an_update_without_a_known_success_has_spent_all_the_same(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a", "low", success=(0.25, 0.5, 0.75))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    lines[1]["success"] = None  # every episode failed
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    curve = read_run(folder).curve("tokens")
    assert (curve.spent, curve.values) == ((100, 300), (0.25, 0.75))
    assert compare([folder]).horizon["tokens"] == 300


def test_turns_are_those_that_were_played(tmp_path: Path) -> None:
    """Copies share their beginnings: the turns of all episodes together are more."""
    paths = [
        make_run(tmp_path / "a", "low", played_turns=12),
        make_run(tmp_path / "b", "low", "algorithm=rloo"),
        make_run(tmp_path / "c", "low", "algorithm=dapo", turns=None, episodes=0),
    ]
    spent = [method.spent["turns"] for method in compare(paths).methods]
    assert spent == [24.0, 40.0, 0.0], "a run of before tells only of episodes, one that plays nothing of none"


def test_entropy_over_time_and_how_often_mechanisms_acted(four: list[Path]) -> None:
    (method, _) = compare(four).methods
    assert method.entropy == pytest.approx((0.5, 0.5, 0.4))
    assert method.acted == {"clip_share": 0.5, "EntropyCorridor": 0.0}


def test_methods_of_one_algorithm_are_named_by_what_differs(tmp_path: Path) -> None:
    paths = [
        make_run(tmp_path / "a", "low", "algorithm.clip_high=0.2"),
        make_run(tmp_path / "b", "half", "algorithm.clip_high=0.3", "threads=2"),
        make_run(tmp_path / "c", "half", "algorithm=rloo"),
    ]
    found = compare(paths, baseline="rloo")
    assert [method.name for method in found.methods] == ["grpo clip_high=0.2", "grpo clip_high=0.3", "rloo"]
    assert [bool(method.differences) for method in found.methods] == [True, True, False]
    with pytest.raises(ValueError, match=r"Unknown baseline 'grpo'.*clip_high=0\.2"):
        compare(paths, baseline="grpo")


def test_only_common_seeds_are_paired(tmp_path: Path, four: list[Path]) -> None:
    third = make_run(tmp_path / "rloo-2", "half", "algorithm=rloo", seed=2)
    found = compare([*four, third])
    assert found.methods[1].seeds == (0, 1, 2)
    assert found.methods[1].differences["sampled"].seeds == (0, 1)
    assert any("without a partner: rloo [2]" in note for note in found.notes)
    with pytest.raises(ValueError, match="no seed in common"):
        compare([four[0], third])


def test_unfair_comparisons_are_refused(tmp_path: Path, four: list[Path]) -> None:
    panel = make_run(tmp_path / "panel", "low", "algorithm=rloo", panel="bbbb")
    with pytest.raises(ValueError, match=r"grpo-0 and .*panel cannot be compared: .*panels.*hash aaaa.*hash bbbb"):
        compare([four[0], panel])
    start = make_run(tmp_path / "start", "low", "algorithm=rloo", start=b"others")
    with pytest.raises(ValueError, match=r"grpo-0 and .*different starting models for seed 0"):
        compare([four[0], start])
    world = make_run(tmp_path / "world", "low", "algorithm=rloo", "env.kwargs.difficulty=medium")
    with pytest.raises(ValueError, match=r"different environments \(env\.kwargs\.difficulty=None against .*medium"):
        compare([four[0], world])
    unit = make_run(tmp_path / "unit", "low", "algorithm=rloo", known=False)
    with pytest.raises(ValueError, match="only one of them knows what success is"):
        compare([four[0], unit])
    with pytest.raises(ValueError, match="same method and seed"):
        compare([four[0], make_run(tmp_path / "twin", "half")])
    with pytest.raises(ValueError, match="nothing to compare"):
        compare([])


def test_unfinished_and_foreign_folders_are_named(tmp_path: Path, four: list[Path]) -> None:
    evaluation = four[0] / "evaluation.json"
    measured = json.loads(evaluation.read_text())
    evaluation.write_text(json.dumps({"before": measured["before"]}))
    with pytest.raises(ValueError, match=r"grpo-0 has no measurement after training: finish it with"):
        compare(four)
    evaluation.write_text(json.dumps({"after": {"sampled": {"name": "x", "success": None}}}))
    with pytest.raises(ValueError, match="is not of this version"):
        compare(four)
    with pytest.raises(ValueError, match="no run at"):
        read_run(tmp_path)


def test_worlds_without_success_are_compared_by_their_return(tmp_path: Path) -> None:
    paths = [
        make_run(tmp_path / "a", "low", known=False),
        make_run(tmp_path / "b", "half", "algorithm=rloo", known=False),
    ]
    found = compare(paths)
    assert found.unit == "return"
    assert found.methods[1].differences["sampled"].estimate.value == 0.25
    assert "mean return" in markdown(found)
    ElementTree.fromstring(curves_svg(found))


def test_equal_outcomes_still_have_an_interval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ROWS, "all", [1] * TASKS)
    (method,) = compare([make_run(tmp_path / f"{seed}", "all", seed=seed) for seed in (0, 1)]).methods
    assert method.after["sampled"] == wilson(TASKS, TASKS)


def test_a_difference_that_nothing_varies_in_claims_no_interval(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One seed, in which every task differs by the same: nothing to resample, so that nothing is resolved."""
    monkeypatch.setitem(ROWS, "all", [1] * TASKS)
    monkeypatch.setitem(ROWS, "none", [0] * TASKS)
    found = compare([make_run(tmp_path / "a", "none"), make_run(tmp_path / "b", "all", "algorithm=rloo")])
    assert found.methods[1].differences["sampled"].more_episodes is None
    (row,) = [line for line in markdown(found).splitlines() if line.startswith("| rloo | 0 |")]
    assert "| +100.0 | - | - |" in row


def test_successes_are_not_compared_with_returns(tmp_path: Path) -> None:
    """A world that says of some episodes only what success is: greedy outcomes are returns, sampled ones successes."""
    folders = [make_run(tmp_path / "a", "half"), make_run(tmp_path / "b", "high", "algorithm=rloo")]
    for folder in folders:
        path = RunDirectory(folder).evaluation_path
        measured = json.loads(path.read_text())
        measured["after"]["greedy"] = report(ROWS["half"], success=False)
        path.write_text(json.dumps(measured))
    with pytest.raises(ValueError, match=r"a cannot be compared: some episodes of its measurements \(greedy after\)"):
        compare(folders)


def test_tables_and_json_show_the_same_numbers(four: list[Path]) -> None:
    found = compare(four)
    console = Console(record=True, width=250)
    console.print(comparison_table(found))
    text, document, raw = console.export_text(), markdown(found), json.dumps(plain(found), allow_nan=False)
    estimate = found.methods[1].differences["sampled"].estimate
    shown = f"+25.0 [{100 * estimate.low:+.1f}, {100 * estimate.high:+.1f}]"
    assert shown in text
    assert shown in document
    assert json.loads(raw)["methods"][1]["differences"]["sampled"]["estimate"]["low"] == estimate.low
    assert "clip share 50 %, EntropyCorridor 0 %" in document
    lines = [line for line in document.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines if line.startswith("| rloo | 0, 1")}) == 1


def test_a_run_without_updates_has_no_curve(tmp_path: Path) -> None:
    found = compare([make_run(tmp_path / "a", "half", success=())])
    assert (found.horizon, found.methods[0].curve) == ({}, None)
    assert any(note.startswith(f"No update was made in {tmp_path / 'a'}") for note in found.notes)
    assert "50.0" in markdown(found)
    assert json.dumps(plain(found), allow_nan=False)
    with pytest.raises(ValueError, match="has not made a single update"):
        curves_svg(found)


# --- plots ---


def test_the_plot_holds_a_panel_for_each_method_and_escapes_names(four: list[Path]) -> None:
    found = compare(four)
    root = ElementTree.fromstring(curves_svg(found))
    text = [element.text for element in root.iter() if element.tag.endswith("text")]
    lines = [element for element in root.iter() if element.tag.endswith("polyline")]
    assert "rloo" in text
    assert "grpo" not in text  # the baseline is behind the others
    assert [line.attrib["class"] for line in lines] == ["line muted", "line"]
    named = [Panel("<script>", []), Panel("a", [_flat_line()])]
    assert "<script>" not in small_multiples(named, labels=["&"], y_range=(0, 1))


def test_a_curve_is_drawn_where_its_values_are() -> None:
    root = ElementTree.fromstring(small_multiples([Panel("a", [_flat_line()])], labels=[], y_range=(0, 1)))
    (line,) = (element for element in root.iter() if element.tag.endswith("polyline"))
    heights = {float(point.split(",")[1]) for point in line.attrib["points"].split()}
    grid = [float(e.attrib["y1"]) for e in root.iter() if e.tag.endswith("}line")]
    assert heights == {(grid[0] + grid[-1]) / 2}


def _flat_line() -> Any:
    from turnwise.svg import Line

    return Line([1.0, 2.0], [0.5, 0.5], [0.4, 0.4], [0.6, 0.6])


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 100, [0, 20, 40, 60, 80, 100]), (0, 0.9, [0, 0.2, 0.4, 0.6, 0.8]), (-3, 4, [-2, 0, 2, 4])],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == expected
