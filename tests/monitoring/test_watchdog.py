"""The watchdog: every check fires on what it is for, once, and says the same after a resume; healthy runs are quiet."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from turnwise.commands.display import LiveDisplay
from turnwise.config.files import load_config
from turnwise.config.schema import RunConfig
from turnwise.jobs import resume, train
from turnwise.monitoring.checks import CHECKS
from turnwise.monitoring.settings import WatchdogConfig
from turnwise.monitoring.watchdog import UnhealthyRunError, Watchdog, signs
from turnwise.runs.directory import RunDirectory
from turnwise.trajectory import Group, Task, Trajectory, Turn

PAGE = (Path(__file__).parents[2] / "docs" / "watchdog.md").read_text()

HEALTHY: dict[str, Any] = {
    "success": 0.4,
    "reward": 0.4,
    "return_mean": 0.3,
    "turns": 12.0,
    "invalid_share": 0.4,
    "entropy": 0.5,
    "clip_share": 0.01,
    "kl_behaviour": 0.001,
    "kl_reference": 0.01,
    "grad_norm": 0.05,
    "optimizer_steps": 4,
    "skipped_steps": 0,
    "agreement/mean_abs": 2e-7,
    "reply_tokens": 6.0,
    "cut_share": 0.0,
    "repeated_share": 0.1,
    "context_share": 0.0,
    "uniform_share": 0.2,
}


def run(before: int, after: int, **changes: float | None) -> list[dict[str, Any]]:
    """A record of healthy updates, then of some in which something has changed."""
    rng = np.random.default_rng(0)
    found = [{**HEALTHY, "update": n, "return_mean": 0.3 + 0.01 * rng.standard_normal()} for n in range(before + after)]
    for line in found[before:]:
        line.update(changes)
    return found


def fired(records: list[dict[str, Any]], config: WatchdogConfig | None = None) -> list[tuple[int, str]]:
    """(update, name) of every event."""
    dog = Watchdog(config or WatchdogConfig())
    return [(line["update"], event["name"]) for line in records for event in dog.watch(line)]


BAD: dict[str, Mapping[str, float]] = {
    "entropy_collapse": {"entropy": 0.01},
    "entropy_explosion": {"entropy": 2.0},
    "entropy_noise": {"entropy": 6.0},
    "uniform_groups": {"uniform_share": 1.0},
    "repeated_actions": {"repeated_share": 0.8},
    "invalid_actions": {"invalid_share": 0.99},
    "invalid_rise": {"invalid_share": 0.7},
    "kl_behaviour": {"kl_behaviour": 0.5},
    "kl_reference": {"kl_reference": 3.0},
    "clip_share": {"clip_share": 0.7},
    "reply_drift": {"reply_tokens": 20.0},
    "turns_drift": {"turns": 3.0},
    "reward_hacking": {"return_mean": 0.9, "success": 0.3},
    "grad_spike": {"grad_norm": 5.0},
    "skipped_steps": {"skipped_steps": 1},
    "sampler_drift": {"agreement/mean_abs": 5e-5},
    "cut_replies": {"cut_share": 0.6},
    "full_contexts": {"context_share": 0.5},
}
ALSO = {"entropy_noise": {"entropy_explosion"}, "invalid_actions": {"invalid_rise"}}  # true of the same records


@pytest.mark.parametrize("name", CHECKS)
def test_a_check_fires_once_on_what_it_is_for(name: str) -> None:
    found = fired(run(15, 25, **BAD[name]))
    assert {event for _, event in found} == {name} | ALSO.get(name, set())
    assert len(found) == len({event for _, event in found}), "one line each, not one an update"
    assert all(update >= 15 for update, _ in found)
    assert not fired(run(15, 25, **BAD[name]), WatchdogConfig.model_validate(dict.fromkeys(CHECKS, None)))


def test_healthy_updates_raise_nothing() -> None:
    assert not fired(run(60, 0))
    better = run(10, 40, success=0.9, reward=0.9, return_mean=0.9, turns=5.0, reply_tokens=2.5, entropy=0.1)
    assert not fired(better), "shorter episodes and replies of an agent that succeeds more are what it has learned"
    unknown = [{**line, "success": None, "kl_reference": None, "entropy": None} for line in run(30, 0)]
    assert not fired(unknown)


def test_a_check_is_armed_again_when_the_value_has_gone_well_back() -> None:
    bad, just, good = ({"kl_behaviour": value} for value in (0.2, 0.09, 0.001))
    swings = run(5, 0) + [{**HEALTHY, **change} for change in (bad, just, bad, good, bad) for _ in range(6)]
    records = [{**line, "update": n} for n, line in enumerate(swings)]
    assert [name for _, name in fired(records)] == ["kl_behaviour"] * 2


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 39), st.sampled_from(sorted(CHECKS)))
def test_a_resumed_run_says_what_an_unbroken_one_does(cut: int, name: str) -> None:
    records = run(12, 14, **BAD[name]) + run(0, 14)
    records = [{**line, "update": n} for n, line in enumerate(records)]
    stored = [json.loads(json.dumps(line)) for line in records]
    resumed = Watchdog(WatchdogConfig(), stored[:cut])
    found = [(line["update"], event["name"]) for line in stored[cut:] for event in resumed.watch(line)]
    assert found == [event for event in fired(records) if event[0] >= cut]


def test_each_policy_of_a_game_is_watched_by_itself() -> None:
    records = run(15, 10)
    for n, line in enumerate(records):
        for side, entropy in (("first", 0.5), ("second", 0.5 if n < 15 else 0.01)):
            line.update({f"{side}/grad_norm": 0.05, f"{side}/entropy": entropy})
    assert [name for _, name in fired(records)] == ["second/entropy_collapse"]


def turn(observation: str, action: str, tokens: int = 3, reward: float = 0.0) -> Turn:
    ids, floats = np.zeros(tokens, np.int32), np.zeros(tokens, np.float32)
    return Turn(observation, ids, True, ids, floats, floats, action, action, True, reward)


def episode(*turns: Turn, end_reason: str = "", sample: int = 0) -> Trajectory:
    task = Task("world", "train", 0, "key")
    return Trajectory("e", task, 0, sample, turns, "truncated", None, None, end_reason)


def test_signs_count_turns_episodes_and_groups() -> None:
    stuck = episode(turn("a", "go"), turn("a", "go"), turn("b", "go"), turn("b", "look", tokens=9))
    full = episode(turn("a", "go", reward=1.0), end_reason="context")
    looked = episode(turn("a", "go", tokens=9), sample=-1)
    groups = [Group(stuck.task, (stuck, full, looked)), Group(stuck.task, (stuck, stuck)), Group(stuck.task, (full,))]
    found = signs(groups, max_reply_tokens=9)
    assert found["repeated_share"] == pytest.approx(3 / 14), "one of four turns; only looked at: not counted"
    assert found["cut_share"] == pytest.approx(3 / 14)
    assert found["reply_tokens"] == pytest.approx((3 * 18 + 2 * 3) / 14)
    assert found["context_share"] == pytest.approx(2 / 5)
    assert found["uniform_share"] == pytest.approx(1 / 2), "of a group of one nothing can be said"


def test_settings_that_make_no_sense_are_explained() -> None:
    with pytest.raises(ValueError, match=r"Unknown check 'entropy_colapse'.*Did you mean 'entropy_collapse'"):
        load_config("smoke", ["watchdog.actions.entropy_colapse=stop"])
    with pytest.raises(ValueError, match=r"watchdog\.entropy_collapse"):
        load_config("smoke", ["watchdog.entropy_collapse=2"])
    with pytest.raises(ValueError, match=r"watchdog\.action: .*'warn' or 'stop'"):
        load_config("smoke", ["watchdog.action=rollback"])


def test_the_page_lists_every_check_with_its_threshold() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| ([\d.]+) ", PAGE, re.MULTILINE))
    fields = WatchdogConfig.model_fields
    assert {name: float(value) for name, value in rows.items()} == {name: fields[name].default for name in CHECKS}
    assert list(rows) == list(CHECKS) == list(BAD)


def test_the_display_says_each_event_in_one_line_and_all_at_the_end() -> None:
    out = io.StringIO()
    dog = Watchdog(WatchdogConfig())
    with LiveDisplay(Console(file=out, width=400), 60, "a run") as display:
        for line in run(15, 25, **BAD["uniform_groups"]):
            events = dog.watch(line)
            display.update({**line, **({"events": events} if events else {})})
    lines = [line for line in out.getvalue().splitlines() if not line.startswith("  update ")]
    assert len(lines) == 2
    assert re.fullmatch(r"  uniform_groups  update 20: 100% of the groups .*\. Take harder tasks .*", lines[0])
    assert lines[1] == "watchdog, by update: uniform_groups (20)"


LEVERS = [
    *("model.hidden_size=32", "model.head_dim=16", "model.ffn_size=48"),
    *("warmstart.max_tokens=120000", "warmstart.tokenizer_episodes=40", "warmstart.split=train"),
    *("agent.max_reply_tokens=12", "rollout.num_tasks=4", "rollout.group_size=4"),
    *("eval.every=100", "eval.tasks=4", "eval.test_split=null", "watchdog.window=3"),
    *("algorithm.base.drop_uniform_groups=false", "rewards.invalid_action_penalty=0"),
]


def levers(pays: str, *changes: str) -> RunConfig:
    """A tiny real run in a world that pays for the wrong thing (tests/levers.py)."""
    return load_config("smoke", [*LEVERS, f"env.kwargs.pays={pays}", *changes], env="tests.levers:test/Levers-v0")


def names(path: Path) -> set[str]:
    return {event["name"] for line in RunDirectory.open(path).metrics() for event in line.get("events", ())}


UNHEALTHY = {
    "a learning rate far too high": (
        "red",
        ["optimizer.lr=0.3", "optimizer.epochs=2", "num_updates=6"],
        {"kl_behaviour", "invalid_actions"},
    ),
    "a huge entropy bonus": (
        "red",
        ["algorithm.entropy_coef=20", "optimizer.lr=1e-2", "num_updates=12"],
        {"entropy_explosion", "entropy_noise", "reply_drift", "cut_replies"},
    ),
    "a world that pays for nonsense": (
        "invalid",
        ["optimizer.lr=1e-2", "num_updates=36", "watchdog.entropy_collapse=0.5"],
        {"invalid_rise", "reward_hacking", "entropy_collapse", "uniform_groups"},
    ),
    "a world that pays for words": ("long", ["optimizer.lr=1e-2", "num_updates=30"], {"cut_replies", "reply_drift"}),
}


@pytest.fixture(scope="module")
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    patch = pytest.MonkeyPatch()
    patch.setenv("TURNWISE_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


@pytest.mark.slow
@pytest.mark.usefixtures("_cache")
@pytest.mark.parametrize("case", UNHEALTHY)
def test_a_run_that_goes_wrong_is_called_by_its_name(case: str, tmp_path: Path) -> None:
    pays, changes, expected = UNHEALTHY[case]
    train(levers(pays, "algorithm.entropy_coef=0", *changes), tmp_path)
    assert names(tmp_path) >= expected


@pytest.mark.slow
@pytest.mark.usefixtures("_cache")
def test_a_run_is_stopped_with_a_checkpoint_and_can_go_on(tmp_path: Path) -> None:
    bonus = ["algorithm.entropy_coef=20", "optimizer.lr=1e-2", "num_updates=14", "checkpoint_every=100"]
    train(levers("red", *bonus), tmp_path / "whole")
    with pytest.raises(
        UnhealthyRunError, match=r"after update (?:[789]|1[0-2]), with a checkpoint: entropy_explosion"
    ) as stop:
        train(levers("red", *bonus, "watchdog.actions.entropy_explosion=stop"), tmp_path / "stopped")
    assert stop.value.exit_code == 3
    assert f"after update {RunDirectory.open(tmp_path / 'stopped').load('last').update}," in str(stop.value)
    resume(tmp_path / "stopped")

    def told(name: str) -> list[Any]:
        lines = RunDirectory.open(tmp_path / name).metrics()
        return [(n["update"], n["adapter_hash"], [e["name"] for e in n.get("events", ())]) for n in lines]

    assert told("stopped") == told("whole"), "the same run, the same events"
