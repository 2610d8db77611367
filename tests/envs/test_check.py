"""The checks of ``turnwise check-env``: a sound world passes them all, and each has a world in which it fails."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from rich.console import Console

from tests.envs import broken_worlds as worlds
from turnwise.commands.check_env import check_table, plain, summary
from turnwise.envs.check import CHECKS, Finding, check, contract
from turnwise.envs.check.probe import Probe

BROKEN: list[tuple[str, type[Any], str]] = [
    ("spaces_are_of_strings", worlds.WrongSpace, "action_space is Discrete(3)"),
    (
        "offers_fit",
        worlds.OwnTasks,
        "has a method tasks() -> list[str]; turnwise expects tasks(split: str) -> Panel there",
    ),
    ("gymnasium_accepts_it", worlds.Unseeded, "seed"),
    ("gymnasium_accepts_it", worlds.Narrow, "AnyText every string"),
    ("returns_the_right_types", worlds.ScoreInPercent, "info['score'] 50; expected a number in [0, 1]"),
    ("returns_the_right_types", worlds.SuccessInWords, "info['success'] 'no'; expected True or False"),
    ("returns_the_right_types", worlds.ActionsInOneString, "expected a list of strings"),
    ("returns_the_right_types", worlds.NoReward, "returned the reward nan; expected a finite number"),
    ("returns_the_right_types", worlds.RewardInWords, "returned the reward '0.0'; expected a finite number"),
    ("returns_the_right_types", worlds.NoSplits, "list the names of your own in `splits`"),
    ("odd_actions_are_ordinary", worlds.Strict, "half a surrogate pair raised UnicodeEncodeError"),
    ("odd_actions_are_ordinary", worlds.Slow, "of one million letters had no answer"),
    ("admissible_actions_are_valid", worlds.Overpromising, "'fly' was listed as admissible"),
    ("episodes_end", worlds.Endless, "no end after 1000 steps"),
    ("step_needs_a_game", worlds.Generous, "step after the end paid a reward of 1"),
    ("global_generators_are_untouched", worlds.GlobalRandom, "module random"),
    ("global_generators_are_untouched", worlds.GlobalNumpy, "numpy's global generator"),
    ("players_are_told", worlds.SilentToss, "info['successes'] is None"),
    ("players_are_told", worlds.ThirdManToss, "info['player'] is 'umpire'"),
    ("closing_is_harmless", worlds.Closing, "the door is stuck"),
    ("repeats_itself", worlds.Remembering, "after 0 actions the observation was"),
    ("repeats_in_a_fresh_instance", worlds.Numbered, "in another instance, after 0 actions"),
    ("repeats_in_a_fresh_process", worlds.Hashing, "in another process, after 0 actions"),
    ("instances_do_not_disturb_each_other", worlds.OneLift, "with another instance beside it"),
    ("snapshots_continue_exactly", worlds.LiveSnapshot, "restored after 25 actions"),
    ("panels_are_stable", worlds.Reshuffled, "another hash in another instance"),
    ("panels_are_stable", worlds.ListOfTasks, "tasks('train') is a list"),
    ("tasks_start_what_they_say", worlds.Mixed, "train task 0 began with"),
    ("tasks_start_what_they_say", worlds.Mistyped, "info['task_type'] says 'letter'"),
    ("evaluation_tasks_are_unique", worlds.Repeated, "tasks 0 and 1 of 'validation' have one key"),
    ("splits_share_no_task", worlds.Leaking, "validation task 0 is also in 'train'"),
    ("evaluation_starts_look_new", worlds.SecretlyLeaking, "validation 20 of 20"),
    ("evaluation_starts_look_new", worlds.FourTasks, "4 different training episodes"),
    ("evaluation_starts_look_new", worlds.FourDatabases, "4 different training episodes"),
    ("evaluation_starts_look_new", worlds.SecretlyLeakingDatabases, "validation 20 of 20"),
    ("evaluation_starts_look_new", worlds.LeakingDatabases, "validation 20 of 20"),
    ("expert_succeeds", worlds.NoClue, "nothing to clone"),
    ("expert_succeeds", worlds.Mute, "the expert answered 0; expected an action, which is a string"),
    ("expert_succeeds", worlds.Promised, "returned None for expert('searching'); expected an object with begin"),
]


def id_of(entry: type[Any]) -> str:
    return f"{worlds.__name__}:check/{entry.__name__}-v0"


def ask(name: str, entry: type[Any]) -> Finding:
    """One check alone."""
    probe = Probe(id_of(entry))
    (chosen,) = [each for each in CHECKS if each.__name__ == name]
    try:
        return chosen(probe)
    except Exception as error:  # as check() does
        return Finding("failed", str(error))


def test_every_check_has_a_world_in_which_it_fails() -> None:
    assert {name for name, _, _ in BROKEN} == {each.__name__ for each in CHECKS}


@pytest.mark.parametrize(
    ("name", "entry", "words"), BROKEN, ids=[f"{name}-{entry.__name__}" for name, entry, _ in BROKEN]
)
def test_a_broken_world_fails(name: str, entry: type[Any], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contract, "ODD_ACTION_S", 0.5)
    finding = ask(name, entry)
    assert finding.outcome == "failed", finding
    assert words in finding.text
    assert "\n" not in finding.text


@pytest.fixture(scope="module")
def sound() -> Any:
    return check(id_of(worlds.Lift), seconds=20)


def test_a_sound_world_passes_everything(sound: Any) -> None:
    outcomes = {finding.name: finding.outcome for finding in sound.findings}
    assert outcomes.pop("players are told") == "skipped"
    assert set(outcomes.values()) == {"passed"}, [f for f in sound.findings if f.outcome != "passed"]
    assert sound.ok
    assert sound.steps_per_s > 0
    (expert,) = [finding for finding in sound.findings if finding.name == "expert succeeds"]
    assert expert.rates == {"searching": (20, 20), "knowing": (20, 20)}


def test_a_world_of_gymnasium_alone_is_checked_as_far_as_it_goes() -> None:
    heard: list[Finding] = []
    report = check(id_of(worlds.Bare), seconds=10, on_finding=heard.append)
    assert report.ok
    assert report.findings == tuple(heard)
    skipped = {finding.name for finding in report.findings if finding.outcome == "skipped"}
    assert skipped == {
        "admissible actions are valid",
        "players are told",
        "snapshots continue exactly",
        "panels are stable",
        "evaluation tasks are unique",
        "splits share no task",
        "expert succeeds",
    }
    assert all(finding.text for finding in report.findings)


def test_a_game_of_two_is_followed_to_its_end() -> None:
    finding = ask("players_are_told", worlds.Toss)
    assert (finding.outcome, finding.text[:8]) == ("passed", "20 games")


@pytest.mark.parametrize(
    ("entry", "outcome", "words"),
    [
        (
            worlds.Database,
            "passed",
            "hidden state, which random actions do not show. By their content keys the tasks differ",
        ),
        (worlds.DatabaseOfSeeds, "skipped", "Add tasks(split) with content keys, or an expert, to make sure"),
        (worlds.DatabaseWithClerk, "passed", "one question is followed by different things"),
        (worlds.DatabaseOfChoices, "passed", "one question is followed by different things"),
    ],
)
def test_a_templated_question_over_hidden_state_is_no_leak(entry: type[Any], outcome: str, words: str) -> None:
    finding = ask("evaluation_starts_look_new", entry)
    assert (finding.outcome, words in finding.text) == (outcome, True), finding


def test_what_training_takes_the_checks_take() -> None:
    for name in ("returns_the_right_types", "odd_actions_are_ordinary", "expert_succeeds"):
        assert ask(name, worlds.Loose).outcome == "passed", ask(name, worlds.Loose)
    assert ask("admissible_actions_are_valid", worlds.Loose).text == "info has no 'valid'"


def test_an_expert_is_not_said_to_win_where_the_world_does_not_say_so() -> None:
    finding = ask("expert_succeeds", worlds.Quiet)
    assert (finding.outcome, finding.rates) == ("skipped", {})
    assert "task 0 of 'validation' ended without info['success']: set env.success_threshold" in finding.text


def test_names_that_are_the_worlds_own_are_told() -> None:
    finding = ask("offers_fit", worlds.OwnNames)
    assert finding.outcome == "passed"
    assert finding.text == "offers expert; its own and not taken: tasks, role, players"


def test_a_world_that_drifts_is_found_out() -> None:
    report = check("tests.worlds:tests/Drifting-v0", seconds=5)
    outcomes = {finding.name: finding.outcome for finding in report.findings}
    assert not report.ok
    assert outcomes["repeats itself"] == outcomes["repeats in a fresh instance"] == "failed"


def test_what_an_environment_raises_is_a_finding() -> None:
    report = check(id_of(worlds.Dying), seconds=10)
    assert len(report.findings) == len(CHECKS)
    failures = [finding for finding in report.findings if finding.outcome == "failed"]
    assert all(re.search(r"RuntimeError \(broken_worlds\.py, line \d+\): the simulator died", f.text) for f in failures)
    assert all("story" not in failure.text for failure in failures)
    passed = {finding.name for finding in report.findings if finding.outcome == "passed"}
    assert "tasks start what they say" in passed, "a fresh instance takes the place of the dead one"


def test_a_world_that_leaves_is_a_finding_too() -> None:
    report = check("tests.worlds:tests/Leaving-v0", seconds=4)
    failures = [finding.text for finding in report.findings if finding.outcome == "failed"]
    assert len(report.findings) == len(CHECKS)
    assert any(re.search(r"SystemExit \(worlds\.py, line \d+\): 3", text) for text in failures)


def test_making_it_is_watched_too() -> None:
    report = check(id_of(worlds.Unmade))
    (found,) = report.findings
    assert found.name == "can be made"
    assert re.fullmatch(r"making it raised RuntimeError \(broken_worlds\.py, line \d+\): no licence", found.text)
    assert not report.ok


def test_a_mistake_in_the_call_is_the_callers() -> None:
    with pytest.raises(ValueError, match="Did you mean 'turnwise/Household-v0'"):
        check("turnwise/Houshold-v0")
    with pytest.raises(ValueError, match="does not take these settings"):
        check(id_of(worlds.Picky), sizes=3)


def test_a_world_that_is_only_registered_here_is_not_made_elsewhere() -> None:
    outcomes = {f.name: (f.outcome, f.text) for f in check("check/Lift-v0", seconds=10).findings}
    outcome, text = outcomes["repeats in a fresh process"]
    assert outcome == "skipped"
    assert "name it module:ns/Id-v0" in text
    assert outcomes["odd actions are ordinary"][0] == "passed"


def test_the_wrong_spaces_stop_the_rest() -> None:
    report = check(id_of(worlds.WrongSpace))
    assert [finding.outcome for finding in report.findings] == ["failed"] + ["skipped"] * (len(CHECKS) - 1)


def test_the_time_is_kept() -> None:
    report = check(id_of(worlds.Lift), seconds=0.0)
    assert {finding.outcome for finding in report.findings} == {"skipped"}
    assert report.seconds < 1.0


def test_the_report_reads_well(sound: Any) -> None:
    console = Console(width=140, record=True)
    console.print(check_table(sound))
    page = console.export_text()
    assert summary(sound) == "21 passed, 0 failed, 1 skipped"
    assert summary(sound) in page
    assert "searching 100.0 % [83.9, 100.0]" in page, "Wilson's interval for 20 of 20"
    machine = json.loads(json.dumps(plain(sound)))
    assert machine["ok"] is True
    assert [f["rates"]["knowing"]["num"] for f in machine["findings"] if f["rates"]] == [20]
