"""What the view makes of a stored run: advantages, branchings, replays, tokens, intervals, and how they are packed."""

from __future__ import annotations

import base64
import gzip
import json
import math
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.algorithms.test_starts import RAW, credited, tree
from tests.models import tokenizer
from tests.view.runs import EVENT, attempt, episode, forked_group, make_run, task, turn
from turnwise.algorithms.aepo import AEPOConfig
from turnwise.algorithms.aepo import branch_rule as aepo_rule
from turnwise.algorithms.arpo import ARPOConfig
from turnwise.algorithms.arpo import branch_rule as arpo_rule
from turnwise.algorithms.counterfactual import CounterfactualConfig
from turnwise.algorithms.registry import build
from turnwise.learning.parts import Streams
from turnwise.learning.settings import RunInfo
from turnwise.replay.store import TrajectoryReader
from turnwise.runs.directory import RunDirectory
from turnwise.statistics import wilson
from turnwise.trajectory import Fork, Trajectory, group_by_task
from turnwise.view.credit import Credited, Recipes, _collect
from turnwise.view.episodes import Episodes, outcome, pack, read_episodes
from turnwise.view.runs import columns, comparison, describe, evaluation, events, validation
from turnwise.view.tokens import token_texts
from turnwise.view.tree import Tree, readiness, tree_planner


def read(folder: Path, limit: int = 10_000) -> Episodes:
    run = RunDirectory.open(folder)
    return read_episodes(run, run.metrics(), limit)


def unpacked(text: str) -> Any:
    return json.loads(gzip.decompress(base64.b64decode(text)))


def column(episodes: Episodes, name: str) -> list[Any]:
    found = episodes.index["columns"][name]
    return found if isinstance(found, list) else [found["words"][code] for code in found["codes"]]


def rows(episodes: Episodes) -> list[dict[str, Any]]:
    return [row for block in episodes.blocks for row in unpacked(block)]


# --- credit ---


def test_advantages_are_the_recipes(tmp_path: Path) -> None:
    """Without std: success 1, failure 0, mean 0.5, so +0.5 and -0.5; 8 tokens of each weigh the same."""
    group = [attempt(0, task(1), 0, True), attempt(0, task(1), 1, False)]
    lengths = [t.num_action_tokens for t in group]
    assert lengths[0] == lengths[1]
    settings = ("algorithm.normalize_std=false", "rewards.scale=1", "rollout.group_size=2")
    run = make_run(tmp_path / "run", [group], *settings, advantage_mean=0.0, advantage_std=0.5, num_rows=2)
    found = read(run)
    assert [[t["advantages"] for t in row["turns"]] for row in rows(found)] == [[0.5, 0.5], [-0.5, -0.5]]
    assert column(found, "stream") == ["fresh", "fresh"]
    assert column(found, "shaped") == [1.0, 0.0]
    assert found.notes == []


def test_what_the_run_logged_otherwise_is_said(tmp_path: Path) -> None:
    group = [attempt(0, task(1), 0, True), attempt(0, task(1), 1, False)]
    run = make_run(tmp_path / "run", [group], "rollout.group_size=2", advantage_mean=0.3, advantage_std=0.5, num_rows=2)
    (note,) = read(run).notes
    assert "recomputed advantages are not those that the run logged" in note


def test_a_group_without_information_is_left_out(tmp_path: Path) -> None:
    groups = [attempt(0, task(n), sample, n == 2 and sample == 0) for n in (1, 2) for sample in (0, 1)]
    run = make_run(tmp_path / "run", [groups], "algorithm.drop_uniform_groups=true", "rollout.group_size=2")
    found = read(run)
    assert column(found, "stream") == ["left out", "left out", "fresh", "fresh"]
    assert rows(found)[0]["turns"][0]["advantages"] is None


def test_an_estimator_that_needs_a_model_is_said(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [[attempt(0, task(1), n, n == 0) for n in (0, 1)]], algorithm="ppo")
    found = read(run)
    assert found.notes == [
        "Advantages are not available: ppo needs values of the model in training, which a run does not store."
    ]
    assert column(found, "stream") == ["unknown", "unknown"]


def test_replays_have_their_age(tmp_path: Path) -> None:
    """SPEAR keeps the one success of update 0, and imitates it while it is above the median of the groups' means."""
    played = [[attempt(u, task(u), s, u == 0 and s == 0) for s in (0, 1)] for u in range(4)]
    settings = ("rollout.group_size=2", "algorithm.bonus_coef=0", "algorithm.tolerance=2")
    run = make_run(tmp_path / "run", played, *settings, algorithm="spear")
    found = read(run)
    assert list(found.index["replays"]) == ["0"]
    assert [use[:2] for use in found.index["replays"]["0"]] == [[1, 1], [2, 2]]
    assert found.index["replay"] == {
        **{"update": [0, 1, 2, 3], "num": [0, 1, 1, 0], "mean": [None, 1.0, 2.0, None]},
        **{"max": [None, 1, 2, None]},
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "algorithm", ["spear", "aepo", "gigpo", "reinforce_pp", "drbot", "d3s", "riskpo", "counterfactual", "drpo"]
)
def test_recomputed_credit_is_what_training_logged(algorithm: str, tmp_path: Path) -> None:
    """A real run: mean and std of advantages and the number of rows, in every update; replayed rows; branchings."""
    from turnwise.config.files import load_config
    from turnwise.jobs import train

    small = ("num_updates=4", "eval.tasks=4", "eval.test_tasks=4")
    config = load_config("smoke", [f"algorithm={algorithm}", *small])
    train(config, tmp_path / "run")
    run = RunDirectory.open(tmp_path / "run")
    logged = {line["update"]: line for line in run.metrics()}
    recipes, agreed = Recipes(run), []
    for flush in TrajectoryReader(run.trajectories_path).flushes():
        found = recipes.credit(flush.update, flush.trajectories, logged[flush.update])
        agreed.append(found.agrees)
        assert len(found.replayed) == logged[flush.update].get("stream_rows/replay", 0)
    assert agreed == [True] * 4
    assert read(run.path).notes == []


def test_an_episode_that_counts_twice_has_the_sum_of_its_advantages() -> None:
    """From the task 0.5 and from its turn 1 on -0.25 more; a copy answers for nothing before that turn."""
    group = tree()
    found = Credited()
    _collect(found, 0, group.trajectories, Streams((credited(CounterfactualConfig(base=RAW), group),)))
    seen = {
        name: [sorted(set(turn)) for turn in trained.advantages]
        for name, trained in ((t.episode, found.trained[t.episode, ""]) for t in group.trajectories)
        if trained.advantages is not None
    }
    parent, other, copy, _, best = (seen[t.episode] for t in group.trajectories)
    assert parent == [[0.5], [0.25], [0.25]]
    assert other == [[-0.5]] * 3
    assert copy == [[0.0], [-0.75], [-0.75]]
    assert best == [[0.0], [1.75], [1.75]]
    assert not found.replayed


# --- branchings ---

FINITE = {"allow_nan": False, "allow_infinity": False}


@given(st.floats(-3, 3, **FINITE), st.integers(0, 30), st.floats(0, 1, **FINITE), st.floats(0, 2, **FINITE))
def test_readiness_is_what_the_rules_compare(rise: float, streak: int, bias: float, weight: float) -> None:
    aepo = AEPOConfig(bias=bias, entropy_weight=weight)
    for config, rule_of, times in (
        (aepo, aepo_rule, streak),
        (ARPOConfig(bias=bias, entropy_weight=weight), arpo_rule, 0),
    ):
        ready = readiness(config, rise, times)
        assert ready is not None
        below, above = (config.model_copy(update={"threshold": ready + gap}) for gap in (-1e-9, 1e-9))
        assert rule_of(below)(rise, times, 0.0)
        assert not rule_of(above)(rise, times, 0.0)


def test_a_tree_has_the_numbers_that_made_it_branch() -> None:
    """e_t = tokens * entropy / ln V of the reply; the second branching follows the first at once: its streak is 1."""
    config = AEPOConfig(log_vocabulary=2.0, penalty=0.05)
    planner = tree_planner(build(config, RunInfo(1, 3)).planner)
    assert planner is not None
    group = forked_group()
    tree = Tree(planner, group)
    root, child, grandchild = (tree.branching(t) for t in group)
    tokens = len(group[0].turns[0].action_ids)
    assert root is None
    assert child is not None
    assert grandchild is not None
    assert (child.turn, child.streak, grandchild.turn, grandchild.streak) == (2, 0, 3, 1)
    assert (child.first, child.entropy) == pytest.approx((0.1 * tokens / 2, 1.0 * tokens / 2))
    assert child.rise == pytest.approx(0.9 * tokens / 2)
    assert child.readiness == pytest.approx(0.5 + 0.2 * 0.9 * tokens / 2)
    assert grandchild.readiness == pytest.approx((0.5 + 0.2 * 1.9 * tokens / 2) * 0.95)
    assert child.agrees
    assert grandchild.agrees


def test_released_branches_left_after_the_turn_that_made_them() -> None:
    planner = tree_planner(build(AEPOConfig(log_vocabulary=2.0, form="released"), RunInfo(1, 3)).planner)
    assert planner is not None
    _, child, grandchild = (Tree(planner, forked_group()).branching(t) for t in forked_group())
    assert child is not None
    assert grandchild is not None
    assert (child.turn, child.streak, grandchild.turn, grandchild.streak) == (1, 0, 2, 1)


def test_what_hung_on_more_than_the_group_is_not_invented() -> None:
    config = AEPOConfig(pace="lockstep", form="released")
    planner = tree_planner(build(config, RunInfo(1, 3)).planner)
    assert planner is not None
    found = Tree(planner, forked_group()).branching(forked_group()[1])
    assert found is not None
    assert (found.streak, found.readiness, found.agrees) == (None, None, None)


def test_a_tree_is_in_units_of_the_runs_own_vocabulary(tmp_path: Path) -> None:
    """ln of the model's vocabulary; where the model is not there any more, the page says that the unit is another."""
    path = make_run(tmp_path / "run", [forked_group()], "rollout.group_size=3", algorithm="aepo")
    found, unit = read(path), math.log(len(tokenizer()))
    assert found.index["tree"]["log_vocabulary"] == pytest.approx(unit, abs=1e-4)
    turn = forked_group()[0].turns[2]
    assert rows(found)[0]["segments"][2] == pytest.approx(float(turn.entropies.sum()) / unit, abs=1e-4)
    shutil.rmtree(RunDirectory.open(path).model_path)
    found = read(path)
    assert found.index["tree"]["log_vocabulary"] == 11.93
    assert any("not over ln of its own vocabulary" in note for note in found.notes)


# --- tokens ---


def test_tokens_make_up_the_reply() -> None:
    reply = "go to drawer 1 🙂 naïve\n\tend"
    ids = tokenizer().encode(reply)
    texts = token_texts(tokenizer(), ids)
    whole = [n for n in ids if texts[n] != tokenizer().convert_ids_to_tokens(n)]
    assert "".join(texts[n] for n in ids).startswith("go to drawer 1")
    assert all(texts[n] in reply for n in whole)
    assert all("\N{REPLACEMENT CHARACTER}" not in text for text in texts.values())  # half a character has a name
    assert token_texts(None, [7]) == {7: "#7 "}


# --- numbers ---


def test_intervals_are_over_tasks() -> None:
    """Eight attempts, but two tasks: an interval over attempts would be half as wide."""
    groups = group_by_task([attempt(0, task(n), s, n == 1) for n in (1, 2) for s in range(4)])
    found = outcome(groups)
    assert found is not None
    assert (found.value, found.low, found.high, found.num) == (0.5, 0.0, 1.0, 2)
    assert outcome(group_by_task([attempt(0, task(n), 0, n < 3) for n in range(4)])) == wilson(3, 4)


def test_metrics_by_column() -> None:
    lines = [{"update": 0, "a": 1.0, "seconds": {"collect": 2.0}, "events": []}, {"update": 1, "b": float("nan")}]
    assert columns(lines) == {"update": [0, 1], "a": [1.0, None], "seconds/collect": [2.0, None], "b": [None, None]}


def test_the_curve_leaves_out_what_began_in_a_stored_state() -> None:
    """As the run's own success does: an attempt that starts at the end of a won episode is easily won."""
    lost = [attempt(0, task(n), 0, False) for n in range(4)]
    stored = [replace(attempt(0, task(9), n, True), fork=Fork("won before", 1, stored=True)) for n in (1, 2)]
    assert outcome(group_by_task([*lost, *stored])) == wilson(0, 4)
    assert outcome(group_by_task(stored)) == wilson(1, 1), "there are no others"


def test_events_keep_the_order_and_old_runs_have_none() -> None:
    assert events([{"update": 0}, {"update": 1, "events": [EVENT]}]) == [{"update": 1, **EVENT}]


def test_a_measurement_has_an_interval_where_it_is_a_share() -> None:
    found = validation([{"update": 3, "eval_success": 0.25}, {"update": 4, "eval_success": 0.3}, {"update": 5}], 8)
    rate = wilson(2, 8)
    assert found == [
        {"update": 3, "value": 0.25, "low": rate.low, "high": rate.high, "num": 8},
        {"update": 4, "value": 0.3, "low": None, "high": None, "num": 0},
    ]


def test_the_interval_of_a_measurement_is_that_of_the_tasks_that_were_played() -> None:
    """A panel may be shorter than eval.tasks, and a share of one a share of the other too."""
    rate = wilson(50, 100)
    logged = {"low": rate.low, "high": rate.high, "num": 100}
    found = validation([{"update": 3, "eval_success": 0.5, "eval_interval": logged}], 128)
    assert found == [{"update": 3, "value": 0.5, **logged}]


def test_an_evaluation_of_another_version_is_one_message(tmp_path: Path) -> None:
    run = RunDirectory.open(make_run(tmp_path / "run", []))
    assert evaluation(run)["after"]["sampled"]["per_type"]["fetch"]["value"] == 0.75  # type: ignore[index]
    run.evaluation_path.write_text('{"after": {"sampled": {"name": 1}}}')
    with pytest.raises(ValueError, match=r"evaluation\.json is not of this version"):
        evaluation(run)


def test_runs_that_cannot_be_compared_say_why(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a", [[attempt(0, task(1), n, n == 0) for n in (0, 1)]])
    b = make_run(tmp_path / "b", [[attempt(0, task(1), n, n == 0) for n in (0, 1)]], panel="bbbb", seed=1)
    assert comparison([a]) is None
    found = comparison([a, b])
    assert found is not None
    assert "different test panels" in found["why_not"]


# --- what the page opens on ---


def opens_on(folder: Path, *updates: list[Trajectory]) -> str:
    found = read(make_run(folder, updates))
    return str(column(found, "episode")[found.index["telling"]])


def test_it_opens_on_a_task_that_was_lost_at_first_and_won_later(tmp_path: Path) -> None:
    lost = [attempt(0, task(1), s, False) for s in (0, 1)]
    mixed = [attempt(0, task(2), s, s == 0) for s in (0, 1)]
    won = [attempt(1, task(1), s, s == 1) for s in (0, 1)]
    later = [attempt(2, task(3), s, s == 0) for s in (0, 1)]
    assert opens_on(tmp_path / "run", [*lost, *mixed], won, later) == "train-1-1-1"


def test_where_no_task_came_back_it_opens_on_the_latest_win_beside_a_loss(tmp_path: Path) -> None:
    mixed = [[attempt(u, task(u), s, s == 1) for s in (0, 1)] for u in range(2)]
    rare = [attempt(1, task(5), s, s == 2) for s in (0, 1, 2)]
    easy = [attempt(2, task(9), s, True) for s in (0, 1)]
    assert opens_on(tmp_path / "rare", mixed[0], [*mixed[1], *rare], easy) == "train-5-1-2"
    assert opens_on(tmp_path / "run", *mixed, easy) == "train-1-1-1"
    assert opens_on(tmp_path / "easy", easy) == "train-9-2-0"


def test_without_a_win_it_opens_on_the_first(tmp_path: Path) -> None:
    assert opens_on(tmp_path / "run", [attempt(0, task(n), 0, False) for n in range(3)]) == "train-0-0-0"
    assert read(make_run(tmp_path / "empty", [])).index["telling"] is None


# --- commands ---


@pytest.mark.parametrize(
    ("argv", "original", "typed"),
    [
        (["/opt/venv/bin/turnwise", "train", "a.b=c d"], [], "turnwise train 'a.b=c d'"),
        (["/src/turnwise/cli.py", "demo"], ["/usr/bin/python3", "-m", "turnwise.cli", "demo"], None),
        (["my/loop.py", "--seed", "1"], ["python", "-O", "my/loop.py", "--seed", "1"], None),
        ([""], ["python"], "python"),
    ],
)
def test_a_command_is_kept_as_it_was_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argv: list[str], original: list[str], typed: str | None
) -> None:
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(sys, "orig_argv", original)
    shown = describe(RunDirectory.open(make_run(tmp_path / "run", [])), "run")["command"]
    assert shown == (typed or " ".join([Path(original[0]).name, *original[1:]]))


def test_a_run_of_an_older_version_shows_what_it_has(tmp_path: Path) -> None:
    run = RunDirectory.open(make_run(tmp_path / "run", []))
    (run.path / "run.json").write_text('{"command": "cli.py demo", "versions": {}, "panels": {}}')
    assert describe(run, "run")["command"] == "cli.py demo"
    (run.path / "run.json").unlink()
    assert describe(run, "run")["command"] == ""


# --- packing ---


def test_every_trajectory_comes_back(tmp_path: Path) -> None:
    long = "You see a mug 1. " * 4000
    said = [replace(turn("x", f"go to drawer {s}", first=True, reward=float(s)), observation=long) for s in range(12)]
    played = [[episode(u, task(u), s, [own]) for s, own in enumerate(said)] for u in range(3)]
    found = read(make_run(tmp_path / "run", played))
    starts, blocks = found.index["starts"], [unpacked(block) for block in found.blocks]
    assert len(blocks) > 3  # an update is cut into several
    assert starts == np.cumsum([0, *map(len, blocks)])[:-1].tolist()
    flat = [t for update in played for t in update]
    assert [row["turns"][0]["observation"] for block in blocks for row in block] == [long] * 36
    assert column(found, "episode") == [t.episode for t in flat]
    assert column(found, "reward") == [t.total_reward for t in flat]
    for row, trajectory in zip(rows(found), flat, strict=True):
        own = trajectory.turns[0]
        assert row["turns"][0]["tokens"] == own.action_ids.tolist()
        assert row["turns"][0]["logprobs"] == pytest.approx(own.logprobs.tolist(), abs=5e-5)
        assert "".join(found.index["texts"][str(i)] for i in own.action_ids) == own.reply


def test_too_many_trajectories_are_thinned_by_update_and_said(tmp_path: Path) -> None:
    played = [[attempt(u, task(u), s, s == 0) for s in range(4)] for u in range(10)]
    found = read(make_run(tmp_path / "run", played), limit=20)
    assert sorted(set(column(found, "update"))) == [0, 2, 4, 7, 9]
    assert found.index["num"] == 20
    assert found.notes == ["Shown are 20 of 40 trajectories, those of 5 of 10 updates; --trajectories N shows more."]
    assert len(found.outcomes) == 10  # curves are of all


def test_numbers_that_json_does_not_know(tmp_path: Path) -> None:
    bad = turn("You see", "go", first=True)
    bad.logprobs[0], bad.entropies[0] = -np.inf, np.nan
    found = read(make_run(tmp_path / "run", [[episode(0, task(1), 0, [bad]), attempt(0, task(1), 1, True)]]))
    assert rows(found)[0]["turns"][0]["logprobs"][0] is None
    assert rows(found)[0]["turns"][0]["entropies"][0] is None


def test_a_run_that_has_only_begun(tmp_path: Path) -> None:
    run = RunDirectory.open(make_run(tmp_path / "run", []))
    run.evaluation_path.unlink()
    assert read(run.path).index["num"] == 0
    assert evaluation(run) is None
    run.trajectories_path.unlink(missing_ok=True)
    assert read(run.path).notes == ["This run has no trajectories yet."]


def test_packing_is_gzip_in_base64() -> None:
    assert unpacked(pack('{"a": "ä"}')) == {"a": "ä"}
