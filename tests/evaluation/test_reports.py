"""Reports: what counts, what is left out, and that the display can show them."""

from __future__ import annotations

import io
import json
import math
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from turnwise.commands.display import LiveDisplay, gain_line, result_table, sparkline
from turnwise.evaluation.file import Evaluation, Measured
from turnwise.evaluation.pooling import pool, pooled_rate
from turnwise.evaluation.report import Report, summarize
from turnwise.evaluation.tables import evaluation_table, report_table
from turnwise.grading.agreement import Graded
from turnwise.jobs import Result
from turnwise.statistics import Estimate, paired_difference, wilson
from turnwise.trajectory import Task, Trajectory, Turn

TASKS = [Task("env", "test", i, f"key{i}", "clean" if i % 2 else "heat") for i in range(4)]


def played(task: Task, success: bool | None, end: Any = "terminated", sample: int = 0) -> Trajectory:
    ids, floats = np.array([1, 2], np.int32), np.array([0.5, 1.5], np.float32)
    turn = Turn("seen", ids, False, ids, floats, floats, "go", "go", True, float(bool(success)))
    return Trajectory(f"{task.index}-{sample}", task, 0, sample, (turn, turn), end, success, None)


def report(outcomes: list[bool | None], samples: int = 1, ends: dict[int, str] | None = None) -> Report:
    episodes = [
        played(TASKS[i // samples], success, (ends or {}).get(i, "terminated"), i % samples)
        for i, success in enumerate(outcomes)
    ]
    return summarize("agent", TASKS, episodes, samples=samples, temperature=1.0)


def test_one_sample_a_task_gives_a_wilson_interval() -> None:
    made = report([True, False, True, True])
    assert made.success == wilson(3, 4)
    assert made.per_type == {"clean": wilson(1, 2), "heat": wilson(2, 2)}
    assert (made.mean_turns, made.mean_action_tokens, made.entropy) == (2.0, 4.0, 1.0)


def test_failed_episodes_are_left_out_and_counted() -> None:
    made = report([True, None, False, True], ends={1: "error"})
    assert made.success == wilson(2, 3)
    assert made.errors == 1
    assert made.outcomes == ((1.0,), (), (0.0,), (1.0,))


def test_where_every_episode_failed_there_is_no_mean_of_0() -> None:
    found = report([None, None], ends={0: "error", 1: "error"})
    assert (found.num_episodes, found.errors, found.success) == (0, 2, None)
    assert all(math.isnan(value) for value in (found.mean_return, found.mean_turns, found.invalid_share))
    assert "2 of 2 episodes failed" in found.too_many_errors(1.0)
    again = Report.from_plain(json.loads(found.as_json()))
    assert math.isnan(again.mean_return)
    assert '"mean_return": null' in found.as_json()
    pooled = pool([found, found])
    assert math.isnan(pooled.mean_return.value)
    assert pooled.errors == 4


def test_too_many_failed_episodes_are_told_by_the_first_reason() -> None:
    found = report([True, None, None, True], ends={1: "error", 2: "error"})
    assert found.success is not None
    assert found.success.value == 1.0, "of those that count"
    assert found.too_many_errors(0.5) == ""
    assert found.too_many_errors(0.49).endswith(f"more than eval.max_error_share=0.49; the first: {found.first_error}")


def test_episodes_that_could_not_begin_are_no_failures() -> None:
    def played(*turns: int) -> Report:
        return replace(report([False] * len(turns)), context_share=1.0, mean_turns=float(np.mean(turns)))

    assert "no first prompt fits into the context: raise agent.max_context_tokens" in played(0, 0).too_many_errors(1.0)
    assert played(0, 1).too_many_errors(1.0) == "", "some could, and a full context ended them"
    assert replace(played(0, 0), context_share=0.0).too_many_errors(1.0) == ""


def test_several_samples_a_task_are_one_observation() -> None:
    made = report([True, False, True, True, False, False, True, False], samples=2)
    assert made.success is not None
    assert (made.success.value, made.success.num) == (0.5, 4)
    assert made.pass_at == {1: 0.5, 2: 0.75}


def test_equal_outcomes_still_have_an_interval() -> None:
    made = report([True] * 8, samples=2)
    assert made.success == wilson(4, 4)
    assert made.success.low < 1.0


def rows_of(table: Any, *names: str) -> dict[str, list[str]]:
    """The cells of some rows of a table, by the first one."""
    console = Console(record=True, width=140)
    console.print(table)
    cells = [[cell.strip() for cell in re.split("[│┃]", line)[1:-1]] for line in console.export_text().splitlines()]
    return {row[0]: row[1:] for row in cells if row and row[0] in names}


def test_the_episodes_of_a_type_are_counted_and_not_its_tasks(tmp_path: Any) -> None:
    """With several samples the interval is over tasks: their number is no number of episodes."""
    made = report([True, False, True, True, False, False, True, False], samples=2)
    assert (made.per_type["heat"].num, made.episodes_of("heat")) == (2, 4)
    assert {name: row[0] for name, row in rows_of(report_table(made), "all", "heat", "clean").items()} == {
        "all": "8",
        "heat": "4",
        "clean": "4",
    }
    shown = rows_of(result_table(Result(tmp_path, {}, {"sampled": made}, None, 1.0, 1.0)), "heat")
    assert shown["heat"][0] == "4"
    other = report([False, False, True, True] * 2, samples=2, ends={0: "error"})
    asked = {"targets": ["a", "b"]}
    both = tuple(Measured({"target": name}, {"sampled": found}) for name, found in (("a", made), ("b", other)))
    pooled = rows_of(evaluation_table(Evaluation(asked, {}, both, {"sampled": pool([made, other])})), "heat", "clean")
    assert (pooled["heat"][0], pooled["clean"][0]) == ("7", "8"), "one of them failed"


def test_reports_of_before_say_how_many_tasks_a_type_has() -> None:
    made = report([True, False, True, True])
    raw = json.loads(made.as_json())
    for later in ("types", "player_episodes"):
        del raw[later]
    assert Report.from_plain(raw).episodes_of("heat") == made.per_type["heat"].num


def game(outcomes: dict[str, list[list[bool]]], score: float | None = None, samples: int = 1) -> list[Trajectory]:
    """Games of ``player: [task][sample]`` outcomes."""
    return [
        replace(played(TASKS[place], won, sample=sample), player=player, score=score)
        for player, tasks in outcomes.items()
        for place, task in enumerate(tasks)
        for sample, won in enumerate(task)
    ]


def test_attempts_of_a_player_at_one_task_are_one_observation() -> None:
    wins = [[True] * 8, [True] * 8, [False] * 8, [False] * 8]
    found = summarize("agent", TASKS, game({"first": wins}, samples=8), samples=8, temperature=1.0)
    assert found.success == found.per_player["first"] != wilson(16, 32)
    assert (found.per_player["first"].num, found.episodes_of("first")) == (4, 32)
    assert rows_of(report_table(found), "first")["first"][0] == "32"
    once = summarize("agent", TASKS, game({"first": [[True], [], [False], []]}), samples=1, temperature=1.0)
    assert once.per_player == {"first": wilson(1, 2)}


def test_the_two_seats_of_an_attempt_are_no_two_attempts() -> None:
    """In self-play an attempt has an outcome for each seat, and one of them wins: pass@2 would be 1."""
    both = game({"first": [[True, False], [True]], "second": [[False, True], [False]]}, samples=2)
    failed = replace(both[0], task=TASKS[1], sample=1, end="error", player="", success=None)
    found = summarize("agent", TASKS[:2], [*both, failed], samples=2, temperature=1.0)
    assert (found.pass_at, found.num_episodes) == ({}, 6)
    alone = [each for each in both if each.player == "first"]
    assert summarize("agent", TASKS[:2], [*alone, failed], samples=2, temperature=1.0).pass_at == {1: 0.5, 2: 1.0}


def test_draws_of_games_without_scores_are_not_known() -> None:
    lost = {"first": [[False]] * 4}
    assert summarize("agent", TASKS, game(lost), samples=1, temperature=1.0).draw_share is None
    assert summarize("agent", TASKS, game(lost, 0.5), samples=1, temperature=1.0).draw_share == 1.0
    assert summarize("agent", TASKS, game(lost, 0.0), samples=1, temperature=1.0).draw_share == 0.0


def test_a_pooled_rate_of_1_is_over_the_tasks_that_were_played() -> None:
    found = report([True, None, True, None], ends={1: "error", 3: "error"})
    assert pool([found, found]).success == wilson(2, 2)
    assert pool([found, report([True] * 4)]).success == wilson(4, 4)


def test_a_full_context_is_shown() -> None:
    episodes = [replace(played(task, False), end="truncated", end_reason="context") for task in TASKS]
    assert summarize("agent", TASKS, episodes, samples=1, temperature=1.0).context_share == 1.0


def test_unknown_success_is_reported_as_return_alone() -> None:
    made = report([None, None, None, None])
    assert made.success is None
    assert made.per_type == {}
    assert made.outcomes == ((0.0,),) * 4


def test_reports_survive_json_and_panels_are_identified() -> None:
    made = report([True, False, True, True])
    assert Report.from_plain(json.loads(made.as_json())) == made
    assert report([False] * 4).panel_hash == made.panel_hash
    other = summarize("agent", TASKS[:3], [played(t, True) for t in TASKS[:3]], samples=1, temperature=1.0)
    assert other.panel_hash != made.panel_hash


def test_tables_show_the_numbers(tmp_path: Any) -> None:
    before, after = report([False, False, True, False]), report([True, False, True, True])
    gain = paired_difference(before.outcomes, after.outcomes)
    console = Console(record=True, width=120)
    console.print(result_table(Result(tmp_path, {"sampled": before}, {"sampled": after}, gain, 1.0, 1.0)))
    console.print(report_table(after))
    text = console.export_text()
    assert "25.0 %" in text
    assert "75.0 %" in text
    assert "heat" in text


def test_a_runs_table_shows_what_was_trained_for(tmp_path: Any) -> None:
    """Each grade before and after, beside the judge's agreement."""
    before, after = (
        replace(report([False] * 4), graded=Graded(4, {"judge:tidy": value}, 0.0, "m", value, wilson(3, 4)))
        for value in (0.125, 0.625)
    )
    console = Console(record=True, width=120)
    console.print(result_table(Result(tmp_path, {"sampled": before}, {"sampled": after}, None, 1.0, 1.0)))
    console.print(result_table(Result(tmp_path, {}, {"sampled": after}, None, 1.0, 1.0)))
    rows = [line.split("│")[1:-1] for line in console.export_text().splitlines() if "tidy" in line or "agrees" in line]
    assert [[cell.strip() for cell in row] for row in rows[::2]] == [
        ["judge:tidy", "4", "0.125", "0.625"],
        ["judge:tidy", "4", "", "0.625"],
    ]
    assert all("75.0 %" in row[3] for row in rows[1::2])


def test_tasks_that_are_won_equally_often_have_an_interval() -> None:
    found = report([True, False] * 4, samples=2)
    assert found.success == wilson(4, 8), "a bootstrap of four halves would say exactly a half"
    assert found.success != report([True, True, True, False] + [True, False] * 2, samples=2).success


def test_an_episode_that_was_cut_short_is_no_success_where_a_world_says_it_at_the_end() -> None:
    """Of four attempts one is won and one lost; two never came to the end, at which their world says it."""
    found = report([True, None, False, None], ends={1: "truncated", 3: "truncated"})
    assert found.success == wilson(1, 4)
    assert found.outcomes == ((1.0,), (0.0,), (0.0,), (0.0,))
    assert report([True, None, False, True]).success is None, "one that ended, and does not say it"
    assert report([None] * 4, ends=dict.fromkeys(range(4), "truncated")).success is None


def test_pooled_returns_vary_over_tasks_as_those_of_a_comparison_do() -> None:
    """Two seeds that played the same: over seeds alone the interval would be a point."""
    returns = replace(report([True, False, False, True]), success=None)
    found = pool([returns, returns])
    assert found.mean_return == pooled_rate([returns, returns])
    assert found.mean_return.low < found.mean_return.value < found.mean_return.high


def test_what_pass_at_k_is_over_is_counted_beside_it() -> None:
    found = report([True, None, True, False, False, False, True, True], samples=2, ends={1: "error"})
    assert (found.pass_at[2], found.num_episodes) == (2 / 3, 7)
    assert rows_of(report_table(found), "pass@2")["pass@2"] == ["6", "66.7 %"], "three tasks have both attempts"


def test_a_log_counts_tasks_and_not_attempts() -> None:
    out = io.StringIO()
    display = LiveDisplay(Console(file=out, width=140), 4, "title")
    one = [played(TASKS[0], won, sample=sample) for sample, won in enumerate([True, False, True])]
    display.report(summarize("agent", TASKS[:1], one, samples=3, temperature=1.0))
    display.report(report([True, None, False, True], ends={1: "error"}))
    assert [line.rpartition("], ")[2] for line in out.getvalue().splitlines()] == ["1 task", "3 tasks"]


def test_a_gain_that_nothing_varies_in_claims_no_interval() -> None:
    known = report([False] * 4)
    alike = gain_line(paired_difference(known.outcomes, known.outcomes), known)
    assert alike == "gain, paired by task: [bold]+0.0 points[/bold] on each of 4 tasks, which gives no interval"
    alone = gain_line(paired_difference([[0.0]], [[1.0]]), known)
    assert alone == "gain, paired by task: [bold]+100.0 points[/bold] on a single task, which gives no interval"


@pytest.mark.parametrize("terminal", [True, False])
def test_the_display_follows_a_run(terminal: bool) -> None:
    console = Console(record=True, width=120, force_terminal=terminal)
    record = {
        "update": 1,
        "success": 0.5,
        "reward": 0.5,
        "entropy": None,
        "invalid_share": 0.1,
        "turns": 3.0,
        "grad_norm": 0.1,
        "kl_behaviour": 0.001,
        "sampled_tokens": 1000,
        "eval_success": 0.25,
        "seconds": {"collect": 2.0, "update": 1.0, "evaluate": 0.0},
    }
    with LiveDisplay(console, 4, "title") as display:
        display.stage("train")
        display.episode(played(TASKS[0], True))
        display.update(record)
        console.print(display.render())
    text = console.export_text()
    assert "2/4" in text
    assert "500 sampled tokens/s" in text
    assert "validation 25.0 %" in text


@pytest.mark.parametrize(("terminal", "num", "shown"), [(False, 60, 20), (False, 3, 3), (False, 50, 25), (True, 60, 0)])
def test_a_log_hears_of_the_updates_between_measurements(terminal: bool, num: int, shown: int) -> None:
    """A terminal has a live panel; a file would say nothing until the end."""
    out = io.StringIO()
    display = LiveDisplay(Console(file=out, width=140, force_terminal=terminal, color_system=None), num, "title")
    line = {"success": 0.5, "reward": 0.5, "entropy": 0.25, "invalid_share": 0.0}
    for update in range(num):
        display.update({**line, "update": update})
    lines = out.getvalue().splitlines()
    assert len(lines) == shown
    if lines:
        assert re.match(rf"  update +{num}/{num}  success 50.0 %  entropy 0.250  invalid 0.0 %", lines[-1])


def test_an_unknown_success_is_told_as_such() -> None:
    out = io.StringIO()
    display = LiveDisplay(Console(file=out, width=140), 4, "title")
    display.report(replace(report([True, False]), success=None, mean_return=1.5))
    assert "mean return 1.500, 4 tasks. The world does not say what success is; env.success_threshold" in out.getvalue()


def test_what_is_no_success_is_not_called_one() -> None:
    """A world that does not say what success is: rewards and returns under their own names."""
    console = Console(record=True, width=140)
    record = {
        **{"update": 0, "success": None, "reward": 1.5, "entropy": None, "invalid_share": 0.1, "eval_success": 2.5},
        **{"turns": 3.0, "grad_norm": 0.1, "kl_behaviour": 0.0, "sampled_tokens": 10},
        "seconds": {"collect": 2.0, "update": 1.0, "evaluate": 0.0},
    }
    with LiveDisplay(console, 4, "title") as display:
        for reward in (-1.0, 1.5):
            display.update({**record, "reward": reward})
        console.print(display.render())
    known = report([True, False, True, True])
    gain = Estimate(2.0, 1.5, 2.5, 4)
    console.print(gain_line(gain, replace(known, success=None)))
    console.print(gain_line(Estimate(0.5, 0.25, 0.75, 4), known))
    text = console.export_text()
    assert "reward 1.50  validation 2.50  entropy –" in text
    assert "reward  ▁█" in text, "from the lowest to the highest"
    assert "success" not in text.replace("success –", "")
    assert "+2.000 of mean return [+1.500, +2.500] over 4 tasks" in text
    assert "+50.0 points [+25.0, +75.0] over 4 tasks" in text


def test_a_run_that_plays_nothing_shows_no_reward_of_0() -> None:
    console = Console(record=True, width=140)
    record = {
        **dict.fromkeys(("success", "reward", "turns", "invalid_share", "entropy")),
        **{"update": 3, "grad_norm": 0.1, "kl_behaviour": 0.0, "sampled_tokens": 0},
        "seconds": {"collect": 0.0, "update": 1.0, "evaluate": 0.0},
    }
    with LiveDisplay(console, 4, "title") as display:
        display.update(record)
        console.print(display.render())
    text = console.export_text()
    assert "reward –  entropy –  invalid –" in text
    assert "turns –" in text


def test_sparkline() -> None:
    assert sparkline([]) == ""
    assert sparkline([0.0, 0.5, 1.0]) == "▁▅█"
    assert len(sparkline([0.1] * 500, width=40)) == 40
