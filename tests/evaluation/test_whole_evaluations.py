"""Whole evaluations: files that survive interruption, seeds as one, panels proven unseen, endpoints, comparisons."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

import tests.worlds  # noqa: F401
from tests.chat_server import Response, completion, refusal, serving
from tests.models import scratch_folder
from turnwise import cli
from turnwise.agents.chat_client import EndpointConfig, EndpointError
from turnwise.agents.opening import Example
from turnwise.assembly import players
from turnwise.config.files import load_config
from turnwise.config.sections import RayConfig
from turnwise.envs.tasks import make_env, panel
from turnwise.evaluation.compare import compare
from turnwise.evaluation.comparison_view import curves_svg, markdown
from turnwise.evaluation.evaluate import evaluate, evaluate_all
from turnwise.evaluation.file import EvaluationFile, read_evaluation
from turnwise.evaluation.overlap import overlap_with
from turnwise.evaluation.report import Report
from turnwise.evaluation.subjects import Asked, Subject, check_seeds
from turnwise.evaluation.tables import evaluation_table
from turnwise.jobs import train
from turnwise.models.settings import PretrainedModelConfig
from turnwise.replay.store import TrajectoryReader
from turnwise.runs.directory import RunDirectory
from turnwise.training.plan import Demand, plan
from turnwise.training.shape import shape_of
from turnwise.trajectory import Trajectory

torch.set_num_threads(1)

CUE, NIM, HOUSEHOLD = "tests.worlds:tests/Cue-v0", "tests.worlds:tests/Nim-v0", "turnwise/Household-v0"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, model: Path) -> list[Path]:
    """Two seeds of a method that learns nothing: without updates, on Household's first six test tasks."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        settings = [
            *(f"model.path={model}", "warmstart=null", f"seed={seed}", "num_updates=0", "agent.max_reply_tokens=4"),
            *("eval.test_tasks=6", "eval.every=0", "eval.tasks=128", "agent.max_turns=3"),
        ]
        train(load_config("smoke", settings), folder / f"s{seed}")
    return [folder / "s0", folder / "s1"]


def test_no_more_slots_are_made_than_there_are_episodes(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, engine = [], players.SlotEngine

    def seen(*given: Any, num_slots: int, **more: Any) -> Any:
        made.append(num_slots)
        return engine(*given, num_slots=num_slots, **more)

    monkeypatch.setattr(players, "SlotEngine", seen)
    agent = {"max_reply_tokens": 2, "max_context_tokens": 256}
    for tasks, slots, expected in ((2, 64, 4), (2, 3, 3)):
        evaluate(str(model), env=CUE, tasks=tasks, samples=2, num_slots=slots, agent=agent)
        assert made.pop() == expected


def test_memory_is_checked_before_a_model_is_loaded(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def loaded(*given: Any, **more: Any) -> Any:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("turnwise.training.plan.available_memory", lambda device: 1000)
    monkeypatch.setattr(players.Policy, "load", loaded)
    with pytest.raises(ValueError, match=r"sampling needs .* with a single context at a time"):
        evaluate(str(model), env=CUE, tasks=2)


def test_fewer_slots_are_made_where_not_all_would_fit(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = {"max_reply_tokens": 2, "max_context_tokens": 256}
    shape = shape_of(PretrainedModelConfig(path=str(model)), None)
    need = plan(shape, Demand(256, 4, 64)).total
    monkeypatch.setattr("turnwise.training.plan.available_memory", lambda device: need - 1)
    with pytest.warns(UserWarning, match="4 contexts at once could not .* going on with 2 slots"):
        evaluate(str(model), env=CUE, tasks=4, agent=agent)


@pytest.mark.parametrize(("env", "num_players"), [(CUE, 1), (NIM, 2)])
def test_the_weights_of_shards_are_counted(
    env: str, num_players: int, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has a copy beside that of the main process, and as few slots as one episode needs."""
    agent: dict[str, Any] = {"max_reply_tokens": 2, "max_context_tokens": 32}
    given: dict[str, Any] = {"env": env, "tasks": 16, "agent": agent, "num_slots": 16, "shards": 4}
    shape = shape_of(PretrainedModelConfig(path=str(model)), None)
    least = plan(shape, Demand(32, 4 * num_players, 8, shards=4)).total
    assert plan(shape, Demand(32, 8 * num_players, 8)).total < least, "one process would have room for more"
    divided: list[Any] = []
    packed: list[Any] = []
    monkeypatch.setattr(players, "wanted", lambda asked, weight: bool(packed.append(asked)))

    class SeenError(Exception):
        pass

    def seen(host: Any, makes: Any, *rest: Any) -> None:
        divided.extend([make.seated.num_slots for make, _ in makes])
        raise SeenError

    monkeypatch.setattr("turnwise.evaluation.seated.Shards", seen)
    monkeypatch.setattr("turnwise.training.plan.available_memory", lambda device: least)
    with (
        pytest.warns(UserWarning, match=f"16 contexts at once could not .* going on with {4 * num_players} slots"),
        pytest.raises(SeenError),
    ):
        evaluate(str(model), **given)
    assert divided == [num_players] * 4
    assert set(packed) == {False}, "this process does not play"
    monkeypatch.setattr("turnwise.training.plan.available_memory", lambda device: least - 1)
    one = "a single game of 2 players" if num_players == 2 else "a single context"
    with pytest.raises(ValueError, match=rf"with {one} at a time in each of 4 shards.*lower rollout\.shards$"):
        evaluate(str(model), **given)
    monkeypatch.setattr("turnwise.evaluation.subjects.check_installed", lambda: None)
    monkeypatch.setattr("turnwise.evaluation.seated.host_of", lambda *given, **more: None)
    with pytest.raises(SeenError):  # no slot of them is on this machine
        evaluate(str(model), **given, ray=RayConfig(address="auto"))
    assert divided[4:] == [4] * 4


def test_two_cannot_write_one_file(tmp_path: Path) -> None:
    asked = Asked(env=CUE, tasks=2)
    refused = []

    def another(trajectory: Trajectory) -> None:
        with pytest.raises(ValueError, match="another process evaluates into"):
            evaluate_all(["random"], asked, out=tmp_path / "e.json")
        refused.append(trajectory)

    first = evaluate_all(["random"], asked, out=tmp_path / "e.json", on_episode=another)
    assert len(refused) == 2
    assert evaluate_all(["random"], asked, out=tmp_path / "e.json").targets == first.targets


class StopError(Exception):
    """Stands for a crash."""


def stop_after(episodes: int) -> Callable[[Trajectory], None]:
    left = [episodes]

    def hear(trajectory: Trajectory) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise StopError

    return hear


def timeless(path: Path) -> dict[str, Any]:
    def rounded(held: dict[str, Any]) -> dict[str, Any]:
        return {k: round(v, 5) if k == "entropy" else v for k, v in held.items()}

    return {k: v for k, v in json.loads(path.read_text(), object_hook=rounded).items() if k != "provenance"}


def steady(report: Report) -> Report:
    """What does not depend on which episodes shared a batch: their entropies have another last digit."""
    return replace(report, entropy=round(report.entropy, 5))


@pytest.mark.parametrize(
    ("target", "more"),
    [
        ("run", {"samples": 2, "agent": {"max_turns": 2}}),
        ("expert", {"env": CUE, "tasks": 5, "samples": 2}),
        ("random", {"env": NIM, "tasks": 4, "samples": 2, "opponent": "self"}),
        ("model", {"env": NIM, "tasks": 4, "opponent": "self", "agent": {"max_reply_tokens": 4}}),
    ],
)
def test_an_interrupted_evaluation_goes_on_to_the_same_report(
    target: str, more: dict[str, Any], tmp_path: Path, runs: list[Path], model: Path
) -> None:
    name = {"run": str(runs[0]), "model": str(model)}.get(target, target)
    whole = steady(evaluate(name, out=tmp_path / "whole.json", **more))
    broken = tmp_path / "broken.json"
    with pytest.raises(StopError):
        evaluate(name, out=broken, on_episode=stop_after(3), **more)
    with pytest.raises(ValueError, match="is not finished: the command that made it continues it"):
        read_evaluation(broken)
    episodes = tmp_path / "broken.trajectories.jsonl.gz"
    kept = len(list(TrajectoryReader(episodes)))
    assert 0 < kept <= 4
    with episodes.open("ab") as file:
        file.write(episodes.read_bytes()[:40])  # torn by the crash
    heard: list[Trajectory] = []
    assert steady(evaluate(name, out=broken, on_episode=heard.append, **more)) == whole
    assert len(heard) == len(list(TrajectoryReader(episodes))) - kept
    assert timeless(broken) == timeless(tmp_path / "whole.json")
    assert steady(evaluate(name, out=broken, on_episode=heard.clear, **more)) == whole, "nothing is played again"


def test_what_is_refused_before_it_begins_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown split 'tets'"):
        evaluate("expert", env=CUE, split="tets", tasks=2, out=tmp_path / "e.json")
    assert list(tmp_path.iterdir()) == []
    evaluate("expert", env=CUE, split="test", tasks=2, out=tmp_path / "e.json")  # another question, the same file


def test_what_a_judge_was_asked_before_an_interruption_counts(tmp_path: Path) -> None:
    for asked, total in ((2.0, 2.0), (3.0, 5.0)):
        file = EvaluationFile(tmp_path / "e.json", {"tasks": 2})
        file.describe(0, {"target": "expert"})
        file.pause({"requests": asked, "cost": asked / 8})
        assert file.judged() == {"requests": total, "cost": total / 8}
    file = EvaluationFile(tmp_path / "e.json", {"tasks": 2})
    file.pause({})
    assert file.judged() == {"requests": 5.0, "cost": 0.625}


def test_another_evaluation_is_refused_by_what_differs(tmp_path: Path, runs: list[Path], model: Path) -> None:
    out = tmp_path / "e.json"
    evaluate("expert", env=CUE, tasks=2, out=out)
    with pytest.raises(ValueError, match=r"holds another evaluation \(tasks: 2 there, 3 now\): choose another --out"):
        evaluate("expert", env=CUE, tasks=3, out=out)
    with pytest.raises(ValueError, match=r"targets: \['expert'\] there, \['random'\] now"):
        evaluate("random", env=CUE, tasks=2, out=out)
    copy = scratch_folder(tmp_path / "copy")
    settings = {"env": CUE, "tasks": 2, "agent": {"max_reply_tokens": 2}}
    evaluate(copy, out=tmp_path / "m.json", **settings)
    from safetensors.torch import load_file, save_file

    weights = load_file(copy / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] + 1
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"players.all.weights: \w+ there, \w+ now"):
        evaluate(copy, out=tmp_path / "m.json", **settings)
    (tmp_path / "foreign.json").write_text("{}")
    with pytest.raises(ValueError, match=r"foreign.json is no evaluation"):
        evaluate("expert", env=CUE, tasks=2, out=tmp_path / "foreign.json")
    out.unlink()
    with pytest.raises(ValueError, match=r"e\.trajectories\.jsonl\.gz is there without"):
        evaluate("expert", env=CUE, tasks=2, out=out)


@pytest.mark.parametrize("complete", [False, True])
def test_episodes_of_two_draws_are_not_mixed(tmp_path: Path, model: Path, complete: bool) -> None:
    """Files of before say nothing of the draw; whoever plays without a model is not concerned."""
    settings: dict[str, Any] = {"env": CUE, "tasks": 3, "agent": {"max_reply_tokens": 2}}
    for out, name, more in (("m", str(model), settings), ("r", "random", {"env": CUE, "tasks": 3})):
        path = tmp_path / f"{out}.json"
        if complete:
            evaluate(name, out=path, **more)
        else:
            with pytest.raises(StopError):
                evaluate(name, out=path, on_episode=stop_after(2), **more)
        held = json.loads(path.read_text())
        assert ("draw" in held["targets"][0]) == (name != "random")
        held["targets"][0].pop("draw", None)
        path.write_text(json.dumps(held))
        if name == "random":
            evaluate(name, out=path, **more)
            continue
        with pytest.raises(ValueError, match=r"drawn by the inverse of the cumulative sum.*hashed.*another --out"):
            evaluate(name, out=path, **more)
        if complete:
            assert read_evaluation(path).targets[0].target == name, "it can still be read and compared"


def test_a_result_says_where_it_comes_from(tmp_path: Path, runs: list[Path]) -> None:
    found = evaluate_all([str(runs[0])], Asked(greedy=True, tasks=4), out=tmp_path / "e.json")
    raw = json.loads((tmp_path / "e.json").read_text())
    assert set(raw["provenance"]) >= {"versions", "commit", "command", "date", "python"}
    (target,) = raw["targets"]
    assert (target["seed"], target["panel"]["num"], target["panel"]["hash"]) == (
        0,
        4,
        target["reports"]["greedy"]["panel_hash"],
    )
    assert len(target["players"]["all"]["weights"]) == 16
    assert list(target["reports"]) == ["sampled", "greedy"]
    assert read_evaluation(tmp_path / "e.json") == found
    assert evaluate(runs[0], tasks=4, temperature=0.0) == found.targets[0].reports["greedy"]
    named = evaluate(runs[0] / "checkpoints" / "update-00000", tasks=4, temperature=0.0)
    assert replace(named, name="") == replace(found.targets[0].reports["greedy"], name="")
    with pytest.raises(ValueError, match="leave --checkpoint last out"):
        evaluate(runs[0] / "checkpoints" / "update-00000", checkpoint="last")
    with pytest.raises(ValueError, match="has no checkpoint of update 7: there is one of 0"):
        evaluate(runs[0], checkpoint=7)


def test_seeds_of_one_method_are_pooled_and_nothing_else(tmp_path: Path, runs: list[Path]) -> None:
    found = evaluate_all([str(run) for run in runs], Asked(tasks=3, samples=2), out=tmp_path / "both.json")
    pooled = found.pooled["sampled"]
    assert (pooled.num_seeds, pooled.num_tasks, pooled.episodes) == (2, 3, 12)
    assert read_evaluation(tmp_path / "both.json") == found
    console = Console(record=True, width=120)
    console.print(evaluation_table(found))
    shown = console.export_text()
    assert "2 seeds on turnwise/Household-v0 test, sampled" in shown
    assert "pass@2" in shown
    with pytest.raises(ValueError, match=r"seeds \[0, 0\]: one seed counted twice"):
        evaluate_all([str(runs[0]), str(runs[0])], Asked())
    with pytest.raises(ValueError, match="expert is not a run: several targets are pooled"):
        evaluate_all([str(runs[0]), "expert"], Asked())


def test_seeds_are_pooled_at_one_checkpoint(runs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The beginning of one run and the end of another are no two seeds of one model."""
    begun, other = str(runs[0] / "checkpoints" / "update-00000"), str(runs[1])
    with pytest.raises(ValueError, match=r"different checkpoints \(.*s0: 0, .*s1: (last|best)\): choose one"):
        check_seeds([Subject.of(begun, Asked(tasks=1)), Subject.of(other, Asked(tasks=1))])
    subjects = [Subject.of(str(run), Asked(tasks=1)) for run in runs]
    subjects = [replace(subject, checkpoint="last") for subject in subjects]
    check_seeds(subjects)
    for subject, there in zip(subjects, ([60, 55], [20, 15]), strict=True):
        assert subject.run is not None
        monkeypatch.setattr(subject.run.checkpoints, "updates", lambda there=there: there)
    with pytest.warns(UserWarning, match=r"different numbers of updates \(.*s0: 60, .*s1: 20\)"):
        check_seeds(subjects)


def test_a_comparison_notes_seeds_that_were_not_finished(runs: list[Path], tmp_path: Path) -> None:
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    for run, file in zip(runs, files, strict=True):
        evaluate(run, tasks=1, out=file)
    assert not any("not finished" in note for note in compare(files).notes)
    raw = json.loads(files[0].read_text())
    raw["targets"][0]["players"]["all"]["update"] = 60
    files[0].write_text(json.dumps(raw))
    assert "epo is of seeds after 0, 60 updates: some were not finished." in " ".join(compare(files).notes)


def test_the_beginning_of_a_run_is_not_described_as_its_end(runs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "e.json"
    evaluate(runs[0], tasks=1, checkpoint=0, out=out)
    (target,) = json.loads(out.read_text())["targets"]
    assert target["settings"]["checkpoint"] == 0


def test_a_threshold_that_would_do_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"env\.success_threshold=0\.5 would have no effect: .*Cue-v0 says by itself"):
        evaluate("random", env=CUE, tasks=2, success_threshold=0.5)


def test_what_ended_the_cloning_is_counted_beside_what_chose_the_checkpoint(tmp_path: Path) -> None:
    apart = [
        "warmstart.split=train",
        "warmstart.stop_success=0.3",
        "warmstart.stop_split=demonstrations",
        "keep_checkpoint=best",
    ]
    run = RunDirectory.create(tmp_path / "apart", load_config("smoke", apart), {})
    assert overlap_with(run, panel(make_env(HOUSEHOLD), "demonstrations")[:2], "best") == {"selected on": 2}


def test_tasks_whose_solution_the_prompt_shows_are_counted(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is asked, and also where nothing else is known of it."""
    tasks = panel(make_env(CUE), "test")
    shown = tuple(Example(("cabinet 1",), (None,), ("go to drawer 1",), task.key) for task in tasks[1:4])
    monkeypatch.setattr(players, "examples_of", lambda *_, **__: shown)
    monkeypatch.setattr(players, "examples_for", lambda *_, **__: shown)
    agent = {"max_reply_tokens": 4, "max_context_tokens": 512}
    assert evaluate(model, env=CUE, tasks=3, agent=agent).overlap == {"shown as examples": 2}
    assert evaluate(model, env=CUE, tasks=1, agent=agent).overlap is None
    with serving(oracle) as server:
        assert evaluate("openai:m", **asked(server.url)).overlap == {"shown as examples": 3}


def test_tasks_that_a_run_has_met_are_counted_and_said(runs: list[Path], tmp_path: Path) -> None:
    assert evaluate(runs[0], tasks=3).overlap == {}, "proven by content"
    assert evaluate(runs[0], tasks=3, split="validation").overlap == {}
    assert evaluate("expert", tasks=3).overlap is None, "nobody can know"
    assert evaluate(runs[0], env=CUE, tasks=2).overlap is None, "another world"
    found = evaluate_all([str(runs[0])], Asked(tasks=3, split="train"))
    (report,) = found.targets[0].reports.values()
    assert report.overlap == {"trained on": 3}
    console = Console(record=True, width=160)
    console.print(evaluation_table(found))
    assert "WARNING" in console.export_text()
    config = load_config("smoke", ["warmstart.split=train", "warmstart.stop_success=0.3"])
    run = RunDirectory.create(tmp_path / "cloned", config, {})
    validation = panel(make_env(HOUSEHOLD), "validation")[:5]
    assert overlap_with(run, validation, "last") == {"selected on": 5}, "the cloning stopped by them"
    assert overlap_with(run, panel(make_env(HOUSEHOLD), "train")[:2], "best") == {"trained on": 2, "cloned on": 2}


LAKE, BESIDE = "turnwise/FrozenLake-v0", ["warmstart.split=train", "warmstart.stop_success=null"]


@pytest.mark.parametrize("share", [0.0, 0.4])
def test_demonstrations_of_another_world_are_counted_there(share: float, tmp_path: Path) -> None:
    """As those of the own world are, where they are cloned beside them; in a third world nobody can know."""
    cloned = [f"env.id={LAKE}", f"warmstart.env={HOUSEHOLD}", f"warmstart.own_share={share}", *BESIDE]
    run = RunDirectory.create(tmp_path / "run", load_config("smoke", cloned), {})
    there, own = ([panel(make_env(env), split)[:3] for split in ("train", "test")] for env in (HOUSEHOLD, LAKE))
    for env_id in (HOUSEHOLD, f"turnwise:{HOUSEHOLD}"):
        assert overlap_with(run, there[0], "last", env_id) == {"cloned on": 3}
        assert overlap_with(run, there[1], "last", env_id) == {}
    assert overlap_with(run, own[0], "last") == {"trained on": 3, **({"cloned on": 3} if share else {})}
    assert overlap_with(run, own[1], "last") == {}
    assert overlap_with(run, panel(make_env(CUE), "test")[:3], "last", CUE) is None
    asked = Asked(env=HOUSEHOLD, split="train", tasks=3)
    assert Subject.of(str(run.path), asked).overlap == {"cloned on": 3}


def test_the_own_world_under_another_id_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its demonstrations are of the same tasks; where it cannot be opened that is said of all of them."""
    spec = replace(gymnasium.spec(LAKE), id="turnwise/Lake-v0")
    monkeypatch.setitem(gymnasium.registry, "turnwise/Lake-v0", spec)
    beside = [f"env.id={LAKE}", "warmstart.env=turnwise/Lake-v0", *BESIDE]
    run = RunDirectory.create(tmp_path / "run", load_config("smoke", beside), {})
    tasks = [*panel(make_env(LAKE), "train")[:2], *panel(make_env(LAKE), "test")[:2]]
    for env_id in (LAKE, "turnwise/Lake-v0"):
        assert overlap_with(run, tasks, "last", env_id) == {"trained on": 2, "cloned on": 2}
    monkeypatch.delitem(gymnasium.registry, "turnwise/Lake-v0")
    told = {"trained on": 2, "in turnwise/Lake-v0, which cannot be opened here": 4}
    assert overlap_with(run, tasks, "last") == told


# --- endpoints ---


def oracle(body: dict[str, Any]) -> Response:
    """Right three times of four."""
    number = int(re.findall(r"cabinet (\d)", body["messages"][-1]["content"])[-1])
    return completion(f"<action>go to drawer {number if number != 4 else 1}</action>", 12, 4)


def asked(url: str, **more: Any) -> dict[str, Any]:
    settings = {"base_url": url, "retries": 0, "backoff_s": 0.001, "input_price": 1.0, "output_price": 2.0, **more}
    return {"env": CUE, "tasks": 6, "endpoint": EndpointConfig(**settings)}


@pytest.mark.parametrize("concurrency", [1, 3])
def test_an_endpoint_that_fails_midway_is_taken_up_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, concurrency: int
) -> None:
    monkeypatch.setenv("TURNWISE_API_KEY", "sk-secret")
    left = [10]

    def failing(body: dict[str, Any]) -> Response:
        left[0] -= 1
        return oracle(body) if left[0] >= 0 else refusal(500, "out of order, sk-secret")

    out = tmp_path / "e.json"
    with serving(oracle) as server:
        whole = evaluate("openai:m", **asked(server.url))
    with serving(failing) as server:
        server_url = server.url
        with pytest.raises(EndpointError, match="finished episodes are kept") as raised:
            evaluate("openai:m", out=out, **asked(server_url, concurrency=concurrency))
        kept = len(list(TrajectoryReader(tmp_path / "e.trajectories.jsonl.gz")))
        assert 0 < kept < 6
        left[0] = 1000
        again = evaluate("openai:m", out=out, **asked(server_url, concurrency=concurrency))
        assert replace(again, usage=None) == replace(whole, usage=None)
        assert again.usage is not None
        assert (again.usage.prompt_tokens, again.usage.completion_tokens) == (6 * 3 * 12, 6 * 3 * 4)
        assert again.mean_action_tokens == 12
        raw = json.loads(out.read_text())
        assert raw["spent"]["requests"] == len(server.asked), "unfinished episodes were asked and paid for, too"
        assert raw["cost"] == (raw["spent"]["prompt_tokens"] + 2 * raw["spent"]["completion_tokens"]) / 1e6
    assert again.success is not None
    assert 0 < again.success.value < 1
    assert "sk-secret" not in out.read_text()
    assert "sk-secret" not in str(raised.value)


def test_more_at_once_gives_the_same_report(runs: list[Path]) -> None:
    alone = evaluate(runs[0], samples=2)
    assert evaluate(runs[0], samples=2, shards=2, env_threads=2, num_slots=4) == alone
    with pytest.raises(ValueError, match=r"rollout\.shards=2 .* leave it at 1"):
        evaluate(runs[0], shards=2, device="cuda")


@pytest.mark.parametrize("words", [["--shards", "3"], ["rollout.shards=3"]], ids=str)
def test_the_command_line_says_where_shards_are(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    class AskedError(Exception):
        pass

    def evaluate_all(targets: list[str], asked: Asked, **given: Any) -> None:
        raise AskedError(targets, asked.shards, asked.ray)

    monkeypatch.setattr("turnwise.evaluation.evaluate.evaluate_all", evaluate_all)
    monkeypatch.setattr("turnwise.evaluation.subjects.check_installed", lambda: None)
    ran = CliRunner().invoke(cli.app, ["evaluate", "random", *words, "ray.address=auto"])
    assert ran.exception is not None
    assert ran.exception.args == (["random"], 3, RayConfig(address="auto"))


def test_actors_that_cannot_play_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray that is missing, sampling on other devices than asked for, and ranks where nothing learns."""
    monkeypatch.setattr("turnwise.shards.ray_actors.importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"ray\.address needs Ray: pip install"):
        Asked(ray=RayConfig())
    monkeypatch.setattr("turnwise.evaluation.subjects.check_installed", lambda: None)
    with pytest.raises(ValueError, match=r"shards would sample on CPUs: set ray\.gpus_per_shard=1"):
        Asked(ray=RayConfig(), device="cuda")
    with pytest.raises(ValueError, match=r"ray\.cpus_per_rank: an evaluation has no learner"):
        Asked(ray=RayConfig(cpus_per_rank=2))


def test_a_world_that_draws_from_global_generators_repeats_itself(model: Path) -> None:
    """As in training, and in shards."""
    careless = "tests.faults.worlds:tests/Careless-v0"
    given: dict[str, Any] = {"env": careless, "split": "train", "tasks": 2, "agent": {"max_reply_tokens": 4}}
    first, second = (evaluate(model, **given) for _ in range(2))
    assert first.mean_return > 0
    assert first == second
    assert first != evaluate(model, **given, seed=1)


def test_an_endpoint_is_not_asked_by_several_shards(model: Path) -> None:
    with pytest.raises(ValueError, match=r"rollout\.shards=2: openai:m would be asked by every shard.* leave .* at 1"):
        evaluate(model, env=NIM, tasks=2, opponent="openai:m@http://127.0.0.1:1/v1", shards=2)


def test_a_game_is_evaluated_in_as_many_shards_as_can_hold_it(model: Path) -> None:
    """Two slots for the one episode of two players, which is no shard of one slot each."""
    given: dict[str, Any] = {"env": NIM, "tasks": 1, "opponent": "self", "agent": {"max_reply_tokens": 4}}
    assert evaluate(model, **given, shards=2) == evaluate(model, **given)


def test_the_tokens_of_episodes_that_cannot_be_graded_are_in_no_mean() -> None:
    """They are left out of the episodes that the tokens are divided by."""
    rewards = {"functions": ["tests.grading.rewards:only_even"], "threads": 0}
    with serving(oracle) as server:
        found = evaluate("openai:m", rewards=rewards, max_error_share=0.5, **asked(server.url))
    assert (found.num_episodes, found.errors) == (3, 3)
    assert found.mean_action_tokens == 12, "three replies of 4 tokens each"
    assert found.usage is not None
    assert found.usage.completion_tokens == 3 * 3 * 4


def test_tokens_that_a_server_does_not_count_are_unknown() -> None:
    """They were reported as 0."""

    def uncounted(body: dict[str, Any]) -> Response:
        return Response(json.dumps({"choices": json.loads(oracle(body).content)["choices"]}).encode())

    with serving(uncounted) as server:
        found = evaluate("openai:m", **asked(server.url))
    assert found.usage is not None
    assert found.usage.uncounted == found.usage.requests == 18
    assert math.isnan(found.mean_action_tokens)


def test_a_refused_measurement_is_not_compared(tmp_path: Path) -> None:
    """It was compared as a success rate of 0."""
    out = tmp_path / "e.json"
    with serving(lambda body: refusal(400, "the maximum context length is 16")) as server:
        found = evaluate_all(["openai:m"], Asked(**asked(server.url)), out=out)
    assert [why.partition(": ")[2][:30] for why in found.refused] == ["no episode could begin, since "]
    with pytest.raises(ValueError, match=r"e\.json holds a measurement that was refused.*no episode could begin"):
        compare([out])


def test_settings_that_do_not_apply_are_refused(model: Path) -> None:
    with pytest.raises(ValueError, match="--greedy is about how a model replies"):
        evaluate_all(["expert"], Asked(env=CUE, greedy=True))
    for drawn in ("temperature", "top_p"):
        told = f"--{drawn.replace('_', '-')} is about how a model replies"
        with pytest.raises(ValueError, match=told):
            evaluate("random", env=CUE, tasks=1, **{drawn: 0.5})
    with pytest.raises(ValueError, match="--shards and ray say where a model of ours plays, and no player here is one"):
        evaluate("random", env=CUE, tasks=1, shards=2)
    for unread in ({"top_p": 0.5}, {"top_k": 3}):
        with pytest.raises(ValueError, match="--temperature 0 is greedy: leave --top-p and --top-k"):
            evaluate(model, env=CUE, tasks=1, temperature=0.0, **unread)
    asked = EndpointConfig(base_url="http://127.0.0.1:1/v1")
    for target in ("random", model):
        with pytest.raises(ValueError, match=r"--base-url and endpoint\.KEY are about openai:MODEL"):
            evaluate(target, env=CUE, tasks=1, endpoint=asked)
    with pytest.raises(ValueError, match=r"takes endpoint\.extra\.top_k=N"):
        evaluate("openai:m", env=CUE, tasks=1, top_k=5)
    with pytest.raises(ValueError, match="is an endpoint: there is no checkpoint"):
        evaluate("openai:m", env=CUE, tasks=1, checkpoint="best")
    with pytest.raises(ValueError, match="is not a run: there is no checkpoint"):
        evaluate(model, env=CUE, tasks=1, checkpoint="best")
    with pytest.raises(ValueError, match="needs a game of several players"):
        evaluate("expert", env=CUE, tasks=1, opponent="random")


def test_the_command_line_evaluates_an_endpoint_and_compares_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> str:
        monkeypatch.setattr("sys.argv", ["turnwise", *words])
        monkeypatch.setattr("turnwise.commands.measuring.console", Console(width=160))
        with pytest.raises(SystemExit) as ended:
            cli.main()
        told = capsys.readouterr()
        return told.out if ended.value.code in (0, None) else told.err

    with serving(oracle) as server:
        url = ["--base-url", server.url, "--env", CUE, "--tasks", "6"]
        prices = ["endpoint.input_price=1", "endpoint.output_price=2", "agent.max_reply_tokens=8"]
        shown = run("evaluate", "openai:m", *prices, *url, "--greedy", "--out", "m.json")
        assert "18 requests" not in shown, "two decodings"
        assert "36 requests, 432 prompt and 144 completion tokens, cost 0.0007" in shown
        assert "choose one of these actions" in server.asked[0].body["messages"][0]["content"].lower()
    run("evaluate", "random", "--env", CUE, "--tasks", "6", "--samples", "4", "--out", "random.json")
    shown = run("compare", "random.json", "m.json")
    assert "difference to random" in shown
    assert "openai:m" in shown
    run("evaluate", "random", "--env", CUE, "--tasks", "4", "--out", "four.json")
    refused = run("compare", "random.json", "four.json")
    assert "the shorter is the beginning of the other; measure both with --tasks 4" in refused
    assert "four.json" in refused


# --- comparing evaluations with runs ---


def test_failed_episodes_are_told_and_too_many_are_an_exit_code(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    leaving = "tests.worlds:tests/Leaving-v0"
    given = ["turnwise", "evaluate", str(scratch_folder(tmp_path / "model")), "--env", leaving, "--tasks", "2"]
    given += ["agent.max_reply_tokens=4"]
    for more in ([], ["eval.max_error_share=1"], ["--json"]):  # nothing that counts is never enough
        monkeypatch.setattr("sys.argv", [*given, *more])
        with pytest.raises(SystemExit) as ended:
            cli.app()
        said = capsys.readouterr()
        assert ended.value.code == 1
        assert "2 of 2 episodes failed" in said.err
        assert "the first: WorldExitError: tests/Leaving-v0 called sys.exit(3) in step" in said.err
        assert "0.000" not in said.out
        if more == ["--json"]:
            raw = json.loads(said.out)
            assert raw["targets"][0]["reports"]["sampled"]["mean_return"] is None
            assert raw["refused"]


def test_a_few_failed_episodes_are_counted_and_allowed(tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    moody = {"way": "raise", "marks": str(marks), "times": 2}
    env, agent = "tests.worlds:tests/Moody-v0", {"max_reply_tokens": 4}
    model = scratch_folder(tmp_path / "model")
    found = evaluate(model, env=env, env_kwargs=moody, tasks=4, agent=agent, num_slots=1)
    assert (found.errors, found.num_episodes, found.mean_return) == (1, 3, 1.0)
    assert re.fullmatch(r"RuntimeError \(worlds\.py, line \d+\): the simulator is unwell", found.first_error)
    for mark in marks.iterdir():
        mark.unlink()
    with pytest.raises(ValueError, match=r"1 of 4 episodes failed, .*max_error_share=0\.2; the first: RuntimeError"):
        evaluate(model, env=env, env_kwargs=moody, tasks=4, agent=agent, num_slots=1, max_error_share=0.2)


def test_types_that_a_world_tells_have_rows_of_their_own(tmp_path: Path) -> None:
    out = tmp_path / "typed.json"
    asked = Asked(env="tests.worlds:tests/Typed-v0", tasks=12, agent={"max_reply_tokens": 4})
    for _ in range(2):  # the second time from the file
        found = evaluate_all([str(scratch_folder(tmp_path / "model"))], asked, out=out)
        (report,) = found.targets[0].reports.values()
        assert {kind: rate.value for kind, rate in report.per_type.items()} == {"high": 1.0, "low": 0.0}
        assert sum(rate.num for rate in report.per_type.values()) == 12


def test_evaluations_stand_beside_runs(tmp_path: Path, runs: list[Path]) -> None:
    """The expert has no seed: it is paired with both. On the same panel as the runs' own measurements."""
    evaluate_all(["expert"], Asked(tasks=6), out=tmp_path / "expert.json")
    found = compare([*runs, tmp_path / "expert.json"])
    base, expert = found.methods
    assert (expert.name, expert.seeds, base.seeds) == ("expert", (), (0, 1))
    difference = expert.differences["sampled"]
    assert difference.seeds == (0, 1)
    assert difference.estimate.value == 1.0 - base.after["sampled"].value
    assert (expert.spent, expert.curve) == ({}, None)
    assert "expert" in markdown(found)
    turned = compare([tmp_path / "expert.json", *runs])
    assert turned.methods[1].differences["sampled"].estimate.value == -difference.estimate.value
    with pytest.raises(ValueError, match="no learning curve"):
        curves_svg(compare([tmp_path / "expert.json"]))
    evaluate_all([str(runs[0])], Asked(tasks=6, split="train"), out=tmp_path / "seen.json")
    with pytest.raises(ValueError, match="no task in common"):
        compare([runs[0], tmp_path / "seen.json"])
    assert any("WARNING" in note for note in compare([tmp_path / "seen.json"]).notes)
    evaluate_all([str(run) for run in runs], Asked(tasks=6, temperature=0.5), out=tmp_path / "cool.json")
    cool = compare([*runs, tmp_path / "cool.json"])
    assert [method.seeds for method in cool.methods] == [(0, 1), (0, 1)]
    assert "temperature=0.5" in cool.methods[1].name
    assert any("different temperatures: 0.5, 1" in note for note in cool.notes)


def test_reports_of_before_are_still_read() -> None:
    report = evaluate("expert", env=CUE, tasks=2)
    raw = json.loads(report.as_json())
    for name in ("keys", "types", "scores", "overlap", "usage"):
        del raw[name]
    assert Report.from_plain(raw).outcomes == report.outcomes


def test_a_world_that_hangs_is_measured_in_a_process_of_its_own(tmp_path: Path) -> None:
    """Its first episode hangs once, is given up after a second, and is played again."""
    (tmp_path / "marks").mkdir()
    world = ["--env", "tests.worlds:tests/Moody-v0", "env.kwargs.way=hang", f"env.kwargs.marks={tmp_path}/marks"]
    limits = ["env.kwargs.times=1", "env.process=true", "env.step_timeout_s=2", "env.success_threshold=0.5"]
    model = str(scratch_folder(tmp_path / "model"))
    limits += ["agent.max_reply_tokens=4", "agent.max_context_tokens=512"]
    words = ["evaluate", model, *world, *limits, "--tasks", "2", "--slots", "1", "--json"]
    ran = CliRunner().invoke(cli.app, words)
    assert ran.exit_code == 0, ran.output
    assert len(list((tmp_path / "marks").iterdir())) == 1
    report = json.loads(ran.stdout)
    assert "Moody" in json.dumps(report)
    refused = CliRunner().invoke(cli.app, ["evaluate", "random", *world, "env.kwargs.times=1", "env.step_timeout_s=2"])
    assert isinstance(refused.exception, ValueError)
    assert "can only be kept with env.process=true" in str(refused.exception)
