"""Stored episodes: found, shown, exported, and played again."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from tests.models import tokenizer
from tests.stored import ECHO, HOUSE, NIM, forked, run_config, stored_run
from turnwise import cli
from turnwise.commands import runs as cli_runs
from turnwise.config.schema import RunConfig
from turnwise.replay.store import TrajectoryReader, TrajectoryWriter
from turnwise.runs.exporting import export_trajectories, trajectory_row
from turnwise.runs.reproducing import NotReproducibleError, reproduce, reproduce_many
from turnwise.runs.trajectories import Selection, find, parse_updates, select
from turnwise.runs.trajectory_tables import Listing
from turnwise.trajectory import Processing, Trajectory


def echo(**settings: Any) -> RunConfig:
    return run_config(ECHO, {"success_threshold": 1.0}, **settings)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stored_run(tmp_path_factory.mktemp("runs") / "house", run_config(HOUSE, {"kwargs": {"step_limit": 5}}))


@pytest.fixture(scope="module")
def won(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stored_run(tmp_path_factory.mktemp("runs") / "won", echo())


def names(target: Path, **asked: Any) -> list[str]:
    return [stored.trajectory.episode for stored in select(target, Selection(**asked))]


def rewritten(run: Path, to: Path, change: Any) -> Path:
    """A copy of a run with its trajectories changed by ``change``."""
    to.mkdir()
    (to / "config.yaml").write_text((run / "config.yaml").read_text())
    writer = TrajectoryWriter(to / "trajectories.jsonl.gz")
    for flush in TrajectoryReader(run / "trajectories.jsonl.gz").flushes():
        writer.append(flush.update, [change(t) for t in flush.trajectories])
    return to


def test_selecting(house: Path, won: Path) -> None:
    everything = list(TrajectoryReader(house / "trajectories.jsonl.gz"))
    assert names(house) == [t.episode for t in everything]
    assert len(everything) == 8
    assert names(house, updates=parse_updates("1")) == [t.episode for t in everything[4:]]
    assert names(house, updates=parse_updates("1:")) == names(house, updates=parse_updates("1:2"))
    assert names(house, updates=parse_updates(":1")) == [t.episode for t in everything[:4]]
    first = everything[0]
    pair = [t.episode for t in everything if t.task == first.task]
    assert names(house, task=first.task.key) == names(house, task=str(first.task.index)) == pair
    assert names(house, type=first.task.type) == [t.episode for t in everything if t.task.type == first.task.type]
    assert names(house, success="no") == names(house, returns=(None, 0.5)) == names(house, end="truncated")
    assert names(house, success="yes") == names(house, returns=(0.5, None)) == []
    assert names(won, success="yes", returns=(1.0, 1.0), split="train") == names(won)
    said = first.turns[0].reply
    assert first.episode in names(house, text=said.swapcase())
    assert names(house, text=first.turns[0].observation[-40:]) == pair
    assert names(house, episode=first.episode) == [first.episode]


def test_a_wrong_word_names_the_right_one(house: Path) -> None:
    for asked, message in [
        ({"split": "trian"}, "Did you mean 'train'"),
        ({"type": "pick_heat"}, "Unknown type 'pick_heat'"),
        ({"task": "31415"}, r"no episode of task '31415'. It has episodes of: \d+, \d+"),
        ({"end": "terminatd"}, "Did you mean 'terminated'"),
        ({"success": "true"}, "Expected one of: yes, no, unknown"),
        ({"updates": "5:3"}, "first:end"),
        ({"updates": "x"}, "first:end"),
        ({"updates": "2"}, "no episodes of updates 2: it has those of 0 to 1"),
        ({"updates": "5:"}, "no episodes of updates 5:: it has those of 0 to 1"),
        ({"updates": "5:9"}, "no episodes of updates 5:9: it has those of 0 to 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            names(house, **(asked if "updates" not in asked else {"updates": parse_updates(asked["updates"])}))
    with pytest.raises(ValueError, match=r"no episode 'nothing'.*such as train-"):
        find(house, "nothing")
    with pytest.raises(ValueError, match="no run at"):
        names(house / "nothing")


@pytest.mark.parametrize("settings", [{}, {"agent": {"context": "window", "window": 1}}])
def test_episodes_play_again(settings: dict[str, Any], tmp_path: Path) -> None:
    tally = reproduce_many(stored_run(tmp_path / "run", run_config(HOUSE, {"kwargs": {"step_limit": 4}}, **settings)))
    assert (tally.same, tally.num_turns, tally.different) == (8, 32, 0)


def test_what_the_collector_cut_plays_again(tmp_path: Path) -> None:
    run = stored_run(tmp_path / "run", run_config(HOUSE, agent={"max_turns": 2}))
    assert {t.end_reason for t in TrajectoryReader(run / "trajectories.jsonl.gz")} == {"max_turns"}
    assert reproduce_many(run).same == 8
    assert reproduce_many(run, num=3, seed=1).same == 3


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: replace(t, turns=(*t.turns[:1], replace(t.turns[1], observation="x"), *t.turns[2:])), "turn 1: obs"),
        (lambda t: replace(t, turns=(replace(t.turns[0], reward=0.5), *t.turns[1:])), "turn 0: reward was 0.5, is now"),
        (lambda t: replace(t, turns=(replace(t.turns[0], action="look"), *t.turns[1:])), "turn "),
        (lambda t: replace(t, success=True), "the episode: success was True, is now False"),
        (lambda t: replace(t, turnless_reward=1.0), "the episode: turnless_reward was 1.0, is now 0.0"),
        (
            lambda t: replace(t, end="terminated", end_reason=""),
            "the episode: end was 'terminated', is now 'truncated'",
        ),
        (lambda t: replace(t, turns=t.turns[:-1]), "the episode: end_reason was 'turns', is now 'it goes on'"),
        (lambda t: replace(t, turns=(*t.turns, t.turns[-1])), "turn 5: turn was"),
        (lambda t: replace(t, task=replace(t.task, index=t.task.index + 1)), "turn 0: observation"),
        (lambda t: replace(t, task=replace(t.task, split="nowhere")), "the episode: reset"),
    ],
)
def test_a_difference_is_found(house: Path, tmp_path: Path, change: Any, told: str) -> None:
    first = names(house)[0]
    changed = rewritten(house, tmp_path / "run", lambda t: change(t) if t.episode == first else t)
    tally = reproduce_many(changed)
    assert (tally.same, tally.different) == (7, 1)
    assert tally.differing[0].episode == first
    assert str(tally.differing[0].difference).startswith(told)


def test_a_world_that_does_not_repeat_itself_is_found_out(tmp_path: Path) -> None:
    run = stored_run(tmp_path / "run", run_config("tests.worlds:tests/Drifting-v0"))
    assert reproduce_many(run).different == 8


def test_forks_play_again(tmp_path: Path) -> None:
    config = run_config(HOUSE, {"kwargs": {"step_limit": 5}})
    run = stored_run(tmp_path / "run", config, updates=0)
    both = forked(config, key=3, at=2)
    assert [t.fork is None for t in both] == [True, False]
    TrajectoryWriter(run / "trajectories.jsonl.gz").append(3, both)
    assert reproduce_many(run).same == 2
    assert reproduce(run, both[1].episode).num_turns == 5


@pytest.mark.parametrize("opponent", ["self", "random", "expert"])
def test_games_play_again(opponent: str, tmp_path: Path) -> None:
    run = stored_run(tmp_path / "run", run_config(NIM, game={"opponent": opponent}), opponent=opponent)
    seats = 2 if opponent == "self" else 1
    found = list(select(run, Selection()))
    assert len(found) == 8 * seats
    assert len(names(run, player="first")) == (8 if opponent == "self" else 4)
    tally = reproduce_many(run)
    assert (tally.same, tally.different) == (8, 0)
    one = found[0].trajectory
    assert reproduce(run, one.episode).difference is None
    assert len(find(run, one.episode.removesuffix(f"-{one.player}"))) == seats
    last = replace(one.turns[-1], reward=one.turns[-1].reward + 1)
    wrong = replace(one, turns=(*one.turns[:-1], last))
    other = rewritten(run, tmp_path / "other", lambda t: wrong if t.episode == one.episode else t)
    assert f"of {one.player}: reward was" in str(reproduce(other, one.episode).difference)


def test_a_model_that_was_not_recorded_cannot_be_played_again(tmp_path: Path) -> None:
    run = stored_run(tmp_path / "run", run_config(NIM, game={"opponent": "/some/run"}), opponent="random")
    with pytest.raises(NotReproducibleError, match="what /some/run did as second is not stored"):
        reproduce(run, names(run, player="first")[0])
    with pytest.raises(NotReproducibleError, match="not stored"):
        reproduce_many(run)


def test_a_fault_of_the_world_is_compared_as_far_as_it_goes(tmp_path: Path, house: Path) -> None:
    def failed(t: Trajectory) -> Trajectory:
        return replace(t, turns=t.turns[:2], end="error", end_reason="RuntimeError: died", success=None, score=None)

    tally = reproduce_many(rewritten(house, tmp_path / "run", failed))
    assert (tally.same, tally.partial, tally.different) == (0, 8, 0)
    empty = rewritten(house, tmp_path / "empty", lambda t: replace(failed(t), turns=()))
    with pytest.raises(NotReproducibleError, match="failed before the first turn"):
        reproduce_many(empty)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_hold_everything(house: Path, tmp_path: Path) -> None:
    assert export_trajectories(house, Selection(), tmp_path / "all.jsonl") == 8
    for row, stored in zip(read(tmp_path / "all.jsonl"), select(house, Selection()), strict=True):
        trajectory = stored.trajectory
        assert (row["episode"], row["update"], row["task"]["key"]) == (
            trajectory.episode,
            stored.update,
            trajectory.task.key,
        )
        for got, turn in zip(row["turns"], trajectory.turns, strict=True):
            assert got["prompt_ids"] == turn.prompt_ids.tolist()
            assert np.asarray(got["logprobs"], np.float32).tobytes() == turn.logprobs.tobytes()
            assert np.asarray(got["entropies"], np.float32).tobytes() == turn.entropies.tobytes()
            assert (got["observation"], got["reply"], got["action"]) == (turn.observation, turn.reply, turn.action)


def test_rows_are_json_for_everyone(house: Path) -> None:
    (stored, *_) = select(house, Selection())
    first = stored.trajectory.turns[0]
    odd = replace(first, logprobs=np.array([np.nan, -np.inf], np.float32), observation="a\ud800b\x00", reward=np.inf)
    row = trajectory_row(replace(stored, trajectory=replace(stored.trajectory, turns=(odd,))))
    assert row["turns"][0]["logprobs"] == [None, None]
    assert row["turns"][0]["observation"] == "a\ufffdb\x00"
    assert row["total_reward"] is None
    json.dumps(row, allow_nan=False)


@pytest.mark.parametrize("context", ["full", "window"])
@pytest.mark.parametrize("system", [None, "You are careful."])
def test_messages_and_tokens_are_what_was_sampled(context: str, system: str | None, tmp_path: Path) -> None:
    agent = {"context": context, "system": system, "instructions": True, "action_format": "tags"}
    run = stored_run(tmp_path / "run", echo(agent=agent), updates=1)
    rows = 4 if context == "full" else 12
    assert export_trajectories(run, Selection(), tmp_path / "sft.jsonl", "sft") == rows
    assert export_trajectories(run, Selection(), tmp_path / "tokens.jsonl", "tokens") == rows
    turns = [turn for stored in select(run, Selection()) for turn in stored.trajectory.turns]
    sampled = [turn.action_ids.tolist() for turn in turns]
    end = tokenizer().eos_token
    for said, tokens in zip(read(tmp_path / "sft.jsonl"), read(tmp_path / "tokens.jsonl"), strict=True):
        roles = [message["role"] for message in said["messages"]]
        assert roles == [*(["system"] if system else []), *["user", "assistant"] * (3 if context == "full" else 1)]
        shown = tokenizer().decode(tokens["input_ids"]).removesuffix(end)
        assert tokenizer().apply_chat_template(said["messages"], tokenize=False).startswith(shown)
        masked = [i for i, on in zip(tokens["input_ids"], tokens["assistant_masks"], strict=True) if on]
        here = [sampled.pop(0) for _ in range(roles.count("assistant"))]
        assert masked == [i for ids in here for i in ids]
    assert not sampled


def test_only_won_episodes_unless_told_otherwise(house: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="sft takes won episodes unless --success says otherwise"):
        export_trajectories(house, Selection(), tmp_path / "x.jsonl", "sft")
    assert export_trajectories(house, Selection(success="no"), tmp_path / "x.jsonl", "sft") == 8


def test_export_writes_a_new_file_or_nothing(house: Path, tmp_path: Path) -> None:
    (tmp_path / "there.jsonl").write_text("mine")
    for out, form, message in [
        ("there.jsonl", "trajectories", "already there"),
        ("x.csv", "trajectories", r"\.jsonl or \.parquet"),
        ("x.jsonl", "stf", "Did you mean 'sft'"),
    ]:
        with pytest.raises(ValueError, match=message):
            export_trajectories(house, Selection(), tmp_path / out, form)
    damaged = rewritten(house, tmp_path / "run", lambda t: t)
    file = damaged / "trajectories.jsonl.gz"
    content = bytearray(file.read_bytes())
    content[-20] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        export_trajectories(damaged, Selection(), tmp_path / "x.jsonl")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "there.jsonl"]
    assert (tmp_path / "there.jsonl").read_text() == "mine"


def test_a_missing_package_is_one_sentence(house: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package, out in [("pyarrow", "x.parquet"), ("datasets", "x")]:
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ValueError, match=rf'needs {package}: pip install -e "\.\[export\]"'):
            export_trajectories(house, Selection(), tmp_path / out)
    assert not list(tmp_path.iterdir())


FORMS = ("trajectories", "sft", "tokens")


@pytest.mark.parametrize("form", FORMS)
def test_parquet_holds_the_same_rows(form: str, won: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason='needs pip install -e ".[export]"')
    for out in ("x.jsonl", "x.parquet"):
        assert export_trajectories(won, Selection(), tmp_path / out, form) == 8
    assert single(parquet.read_table(tmp_path / "x.parquet").to_pylist()) == single(read(tmp_path / "x.jsonl"))


@pytest.mark.parametrize("form", FORMS)
def test_a_datasets_folder_holds_the_same_rows(form: str, won: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason='needs pip install -e ".[export]"')
    for out in ("x.jsonl", "x"):
        assert export_trajectories(won, Selection(), tmp_path / out, form) == 8
    assert single(datasets.load_from_disk(str(tmp_path / "x")).to_list()) == single(read(tmp_path / "x.jsonl"))


def single(value: Any) -> Any:
    """Floats in single precision, as Arrow keeps the log-probs."""
    if isinstance(value, dict):
        return {key: single(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [single(inner) for inner in value]
    return float(np.float32(value)) if isinstance(value, float) else value


def ended(words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["turnwise", *words])
    monkeypatch.setattr(cli_runs, "console", Console(width=160))
    with pytest.raises(SystemExit) as over:
        cli.main()
    captured = capsys.readouterr()
    return int(over.value.code or 0), captured.out + captured.err


def test_the_commands(
    house: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*words: str) -> tuple[int, str]:
        return ended([str(word) for word in words], monkeypatch, capsys)

    first, second = names(house)[:2]
    code, shown = run("trajectories", str(house), "--limit", "1")
    assert code == 0
    assert first in shown
    assert second not in shown
    assert "8 trajectories" in shown
    code, shown = run("trajectories", str(house), "--json", "--updates", "1")
    assert [json.loads(line)["update"] for line in shown.splitlines()] == [1] * 4
    monkeypatch.setattr(Listing, "of", classmethod(lambda _, found, __: Listing(2, list(found)[:2], 8)))
    code, shown = run("trajectories", str(house), "--json")
    assert shown.splitlines()[2:] == ["the first 2 of 8 trajectories: --limit 0 prints all"]
    assert len(run("trajectories", str(house), "--json", "--limit", "2")[1].splitlines()) == 2, "as it was asked"
    code, shown = run("trajectories", str(house), "--show", first)
    assert "Your task is to" in shown
    assert "tokens, entropy" in shown
    assert run("trajectories", str(house), "--export", str(tmp_path / "x.jsonl"))[0] == 0
    assert len(read(tmp_path / "x.jsonl")) == 8
    code, shown = run("replay", str(house), first)
    assert (code, "1 the same" in shown) == (0, True)
    assert run("replay", str(house), "--all")[0] == 0
    assert run("replay", str(house), "--sample", "2")[0] == 0
    changed = rewritten(house, tmp_path / "run", lambda t: replace(t, success=True))
    code, shown = run("replay", str(changed), first)
    assert (code, "success was True, is now False" in shown) == (1, True)
    for words, told in {
        ("--show", first, "--export", tmp_path / "y.jsonl"): "leave the other options out",
        ("--show", first, "--success", "yes"): "leave the other options out",
        ("--export", tmp_path / "y.jsonl", "--limit", "1"): "--export writes every selected row",
        ("--format", "sft"): "add --export FILE",
        ("--min-return", "2", "--max-return", "1"): "--min-return is above --max-return",
    }.items():
        code, shown = run("trajectories", house, *words)
        assert (code, told in shown) == (2, True), shown
    assert not (tmp_path / "y.jsonl").exists()
    code, shown = run("replay", house, "--all", "--seed", "3")
    assert (code, "--seed draws the episodes of --sample N" in shown) == (2, True)
    assert run("replay", str(house))[0] == 2
    assert run("replay", str(house), first, "--all")[0] == 2


def test_terminals_are_not_given_control_characters(
    house: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = "\x1b[2J[bold]\ud800\u202e\x00"
    changed = rewritten(
        house, tmp_path / "run", lambda t: replace(t, turns=(replace(t.turns[0], observation=odd, action=odd),))
    )
    code, shown = ended(["trajectories", str(changed), "--show", names(house)[0]], monkeypatch, capsys)
    assert code == 0
    assert r"\x1b[2J[bold]\ud800\u202e\x00" in shown
    assert not set(odd) & set(shown) - set("[]2Jbold")
    code, shown = ended(["replay", str(changed), "--all"], monkeypatch, capsys)
    assert code == 1
    assert "\x1b" not in shown


@pytest.mark.parametrize("out", ["x.jsonl", "x.parquet"])
def test_exports_tell_how_tokens_were_drawn_and_learn_no_forced_ones(out: str, won: Path, tmp_path: Path) -> None:
    if out.endswith("parquet"):
        parquet = pytest.importorskip("pyarrow.parquet", reason='needs pip install -e ".[export]"')

    def forced(trajectory: Trajectory) -> Trajectory:
        turn = trajectory.turns[0]
        counts, flags = np.zeros(len(turn.action_ids), np.int32), np.zeros(len(turn.action_ids), np.bool_)
        counts[0], flags[0] = 1, True
        first = replace(turn, processing=Processing(counts, turn.action_ids[:1], flags))
        return replace(trajectory, turns=(first, *trajectory.turns[1:]))

    run = rewritten(won, tmp_path / "run", forced)
    (tmp_path / "run/model").symlink_to(won / "model")
    found = {}
    for form in ("trajectories", "tokens"):
        path = tmp_path / f"{form}-{out}"
        assert export_trajectories(run, Selection(), path, form) == 8
        found[form] = read(path) if out.endswith("jsonl") else parquet.read_table(path).to_pylist()
    first, second = found["trajectories"][0]["turns"][:2]
    assert first["processing"]["counts"] == [1, *[0] * (len(first["action_ids"]) - 1)]
    assert first["processing"]["ids"] == first["action_ids"][:1]
    assert first["processing"]["forced"][:2] == [True, False]
    assert second["processing"] is None
    masks = found["tokens"][0]["assistant_masks"]
    assert sum(masks) == sum(len(turn["action_ids"]) for turn in found["trajectories"][0]["turns"]) - 1
    assert masks[len(first["prompt_ids"])] == 0
