"""A run goes on with other settings: longer, elsewhere; what decides its numbers is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.faults.runs import assert_same, config, timeless
from turnwise.config.files import all_settings, parse_config
from turnwise.evaluation.contenders import read_run
from turnwise.jobs import resume, train
from turnwise.runs.directory import RunDirectory
from turnwise.training.changes import MAY_CHANGE, changed, check_goes_on
from turnwise.training.observing import Callback

FALLING = "optimizer={schedule: linear, min_lr_share: 0.2, lr: 1e-2}"


def test_a_finished_run_is_prolonged_to_what_the_longer_one_would_be(model: Path, tmp_path: Path) -> None:
    """Schedules stay those of two updates, so that both halves are one run."""
    train(config(model, FALLING, "num_updates=2"), tmp_path / "run")
    resume(tmp_path / "run", settings=["num_updates=4", "checkpoint_every=2"])
    train(config(model, FALLING, "num_updates=4", "schedule_updates=2"), tmp_path / "whole")
    ours, whole = RunDirectory.open(tmp_path / "run"), RunDirectory.open(tmp_path / "whole")
    assert len(ours.metrics()) == 4
    assert_same(ours, whole)
    told = ours.config()
    assert (told.num_updates, told.schedule_updates, told.checkpoint_every) == (4, 2, 2)
    (line,) = (tmp_path / "run" / "changes.jsonl").read_text().splitlines()
    assert json.loads(line)["after_update"] == 2
    assert json.loads(line)["changed"]["num_updates"] == [2, 4]
    train(config(model, FALLING, "num_updates=4"), tmp_path / "other")  # with schedules of four updates
    assert timeless(RunDirectory.open(tmp_path / "other").metrics()) != timeless(whole.metrics())


def test_what_was_measured_before_is_not_of_a_run_that_goes_on(model: Path, tmp_path: Path) -> None:
    """Between a resume and its end the run has more updates than the measurement, and is none to compare."""
    path = tmp_path / "run"
    train(config(model, "num_updates=1", "eval.test_split=test", "eval.test_tasks=2"), path)
    run, first = RunDirectory.open(path), json.loads((path / "evaluation.json").read_text())
    assert read_run(path).after

    class Stopping(Callback):
        def update(self, record: dict[str, Any]) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        resume(path, Stopping(), ["num_updates=2"])
    assert len(run.metrics()) == 2
    with pytest.raises(ValueError, match="has no measurement after training"):
        read_run(path)
    stored = json.loads((path / "evaluation.json").read_text())
    assert stored == {"before": first.pop("before"), "earlier": first}
    resume(path)
    assert set(json.loads((path / "evaluation.json").read_text())) == {"before", *first}


def test_a_budget_of_tokens_is_prolonged(model: Path, tmp_path: Path) -> None:
    train(config(model, "max_sampled_tokens=10"), tmp_path / "run")
    first = len(RunDirectory.open(tmp_path / "run").metrics())
    with pytest.raises(ValueError, match=r"ends by max_sampled_tokens=10\. Raise that"):
        resume(tmp_path / "run", settings=["num_updates=9"])
    with pytest.raises(ValueError, match="max_sampled_tokens=5 leaves nothing to do"):
        resume(tmp_path / "run", settings=["max_sampled_tokens=5"])
    spent = RunDirectory.open(tmp_path / "run").metrics()[-1]["total_sampled_tokens"]
    resume(tmp_path / "run", settings=[f"max_sampled_tokens={spent + 1}"])
    assert len(RunDirectory.open(tmp_path / "run").metrics()) == first + 1


REFUSED = [
    ("optimizer.lr=1e-5", r"optimizer\.lr cannot change at a resume: the run has trained with 0\.01"),
    ("algorithm=drgrpo", r"algorithm\.\S+ cannot change"),
    ("env.kwargs.size=3", r"env\.kwargs\.size cannot change"),
    ("seed=7", "seed cannot change"),
    ("lora.rank=8", r"lora\.rank cannot change"),
    ("schedule_updates=9", "schedule_updates cannot change"),
    ("num_updats=9", r"Unknown setting 'num_updats'.*num_updates"),
    ("num_updates=1", "the run has 2 updates: num_updates=1 leaves nothing to do"),
    ("household", "not of the form key.path=value"),
]


@pytest.fixture(scope="module")
def finished(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("finished") / "run"
    train(config(model, "num_updates=2"), path)
    return path


@pytest.mark.parametrize(("setting", "why"), REFUSED)
def test_what_decides_the_numbers_is_refused_and_nothing_is_written(finished: Path, setting: str, why: str) -> None:
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=why):
        resume(finished, settings=["checkpoint_every=3", setting])
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


def test_a_server_that_cannot_make_the_run_s_copies_is_refused_and_nothing_is_written(
    model: Path, tmp_path: Path
) -> None:
    train(config(model, "algorithm=cure", "num_updates=1"), tmp_path / "run")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="cure begins copies within replies"):
        resume(
            tmp_path / "run",
            settings=["num_updates=2", "rollout.backend=vllm", "rollout.vllm.url=http://127.0.0.1:1"],
        )
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_what_is_as_before_is_no_change(finished: Path) -> None:
    told = RunDirectory.open(finished).config()
    assert parse_config(changed(told.model_dump(mode="json"), ["optimizer.lr=1e-2", "seed=0"])) == told


def test_the_list_names_settings_that_there_are() -> None:
    known = {name for name, _ in all_settings()}
    assert set(MAY_CHANGE) <= known


def test_a_learning_rate_that_has_fallen_to_nothing_ends_a_run_for_good(model: Path) -> None:
    def goes_on(*settings: str) -> None:
        longer = parse_config(changed(config(model, *settings).model_dump(mode="json"), ["num_updates=8"]))
        check_goes_on(4, 100, num_updates=8, budget=None, span=longer.span, rate=longer.optimizer)

    with pytest.raises(ValueError, match=r"schedule=cosine the learning rate has fallen to 0 after 4 updates"):
        goes_on("optimizer.schedule=cosine")
    for sound in ("optimizer={schedule: cosine, min_lr_share: 0.1}", "optimizer.schedule=constant"):
        goes_on(sound)


def test_the_command_line_prolongs(model: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from turnwise import cli

    train(config(model, "num_updates=1"), tmp_path / "run")
    monkeypatch.setattr("sys.argv", ["turnwise", "train", "--resume", str(tmp_path / "run"), "num_updates=2"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    assert len(RunDirectory.open(tmp_path / "run").metrics()) == 2
    monkeypatch.setattr("sys.argv", ["turnwise", "train", "--resume", str(tmp_path / "run"), "optimizer.lr=1"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert "optimizer.lr cannot change at a resume" in capsys.readouterr().err


def test_what_is_not_used_any_more_beside_a_change_is_no_change_of_its_own(model: Path, tmp_path: Path) -> None:
    """``eval.tasks`` was set when the run began; without measurements along the way it says nothing."""
    train(config(model, "num_updates=1", "eval.every=1", "eval.tasks=5"), tmp_path / "run")
    resume(tmp_path / "run", settings=["num_updates=2", "eval.every=0"])
    ours = RunDirectory.open(tmp_path / "run")
    assert ours.config().eval.every == 0
    assert len(ours.metrics()) == 2
    before = config(model, "eval.every=1", "eval.tasks=5").model_dump(mode="json")
    with pytest.raises(ValueError, match=r"eval\.tasks is set, but eval\.every=0"):
        changed(before, ["eval.every=0", "eval.tasks=6"])
    with pytest.raises(ValueError, match=r"optimizer\.lr cannot change"):
        changed(
            config(model, "eval.every=1", "eval.tasks=5").model_dump(mode="json"), ["eval.every=0", "optimizer={lr: 1}"]
        )
