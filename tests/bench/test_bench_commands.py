"""Where the time goes, and the commands and scripts that measure: counted right, shown right, every path run."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from tests.models import TINY as TINY_MODEL
from tests.models import tiny_model, tokenizer
from turnwise import cli
from turnwise.agents.seating import ModelAgent
from turnwise.bench import floor, gpu
from turnwise.bench.floor import Load, Machine
from turnwise.bench.own import own_bench
from turnwise.bench.rollout import Script, run_engine, run_generate, scripts
from turnwise.clock import Clock, time_line
from turnwise.commands import bench as cli_bench
from turnwise.config.files import load_config
from turnwise.models.engine import torch_threads
from turnwise.models.policy import Policy
from turnwise.models.settings import LoRAConfig
from turnwise.training.noise import Limits
from turnwise.trajectory import Task, Trajectory, Turn

ROOT = Path(__file__).parents[2]
SMALL = (
    "rollout={num_tasks: 1, group_size: 2, num_slots: 2}",
    "agent={max_context_tokens: 512, max_reply_tokens: 3, examples: 0}",
)
SETTINGS = ("threads=1", "optimizer.num_minibatches=1", "algorithm={type: grpo, drop_uniform_groups: false}", *SMALL)


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One thread; rates of the machine from a few products."""
    monkeypatch.setattr(floor, "_ENOUGH_S", 0.0)
    with torch_threads(1):
        yield


def test_a_clock_divides_the_time_of_joint_work_by_tokens() -> None:
    ticks = iter([0.0, 3.0])
    clock = Clock(lambda: next(ticks))
    with clock.stage("train", 7):
        pass
    clock.split(4.0, prefill=30, decode=10)
    clock.split(1.0, prefill=0, decode=5)
    work = clock.take()
    assert work.seconds == {"train": 3.0, "prefill": 3.0, "decode": 2.0}
    assert work.tokens == {"train": 7, "prefill": 30, "decode": 15}
    assert clock.take().seconds == {}


def test_the_time_line_shares_out_all_of_the_time() -> None:
    seconds = {"collect": 6.0, "update": 4.0, "evaluate": 9.0, "environment": 1.0, "decode": 4.0, "train": 3.0}
    record = {"seconds": seconds, "tokens": {"environment": 50, "decode": 400, "train": 900}}
    line = time_line([record, record])
    assert line == ("environment 10 % (50 steps/s)  decode 40 % (100 tokens/s)  train 30 % (300 tokens/s)  other 20 %")
    assert time_line([{"seconds": {"collect": 1.0, "update": 1.0}}]) == "", "runs of before"
    ahead = {**record, "seconds": {**seconds, "collect": 0.5, "play": 6.0}}  # the learner waited half a second
    assert time_line([ahead]) == line


def test_floors_are_the_arithmetic_of_the_model() -> None:
    # Two layers of width 32, 4 heads and 2 key heads of 8: q and o 32 * 32, k and v 32 * 16, SwiGLU 3 * 32 * 48.
    model = tiny_model()
    load = Load.of(model)
    assert load.body == 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48)
    assert load.head == model.config.vocab_size * 32
    assert (load.attention, load.kv_bytes, load.itemsize) == (4 * 2 * 4 * 8, 2 * 2 * 2 * 8 * 4, 4)
    sampler = Policy(tiny_model().bfloat16(), tokenizer(), lora=LoRAConfig(rank=4)).sampler
    assert (Load.of(sampler).body, Load.of(sampler).head) == (load.body, load.head), "adapters are beside its weights"
    plain = Load(body=100, head=10, lora=0, attention=2, kv_bytes=8, itemsize=4)
    slow_memory, slow_maths = Machine(1.0, 1e12), Machine(1e12, 1.0)
    assert plain.decode_s(slow_memory, rows=3, context=5) == 4 * 110 + 3 * 5 * 8
    assert plain.decode_s(slow_maths, rows=3, context=5) == 3 * (2 * 110 + 2 * 5)
    assert plain.score_s(slow_maths, 7, 2, 5) == 7 * (2 * 100 + 2 * 5) + 2 * 2 * 10
    assert plain.train_s(slow_maths, 7, 2, 5) == 7 * (6 * 100 + 3 * 2 * 5) + 2 * 6 * 10
    frozen = replace(plain, lora=20)
    assert frozen.train_s(slow_maths, 7, 2, 5) == 7 * (4 * 100 + 6 * 20 + 3 * 2 * 5) + 2 * 4 * 10


def turn(prompt: int, reply: int, continues: bool) -> Turn:
    ids = np.arange(5, 5 + reply, dtype=np.int32)
    zeros = np.zeros(reply, np.float32)
    return Turn("", np.arange(5, 5 + prompt, dtype=np.int32), continues, ids, zeros, zeros, "", "", True, 0.0, "", 0.0)


def test_episodes_become_scripts_that_both_sides_repeat() -> None:
    turns = (turn(6, 2, False), turn(3, 4, True), turn(5, 1, False))
    script = Script.of(Trajectory("e", Task("w", "train", 0, "w:0"), 0, 0, turns, "terminated", None, None))
    assert (script.replies, script.fresh) == ((2, 4, 1), (True, False, True))
    model = tiny_model()
    played = run_engine(model, [script, script], num_slots=2)
    # A fresh prompt reuses what it shares with the cached context: here all of its 5 tokens but the last.
    assert played.counts.sampled_tokens == run_generate(model, [script, script], 2, pad=0) == 14
    assert played.counts.prefill_tokens + played.counts.reused_tokens >= 2 * (6 + 5)


def test_contexts_are_what_a_token_comes_after() -> None:
    played = run_engine(tiny_model(), [Script((np.arange(5, 9, dtype=np.int32),), (3,), (True,))], num_slots=1)
    assert played.contexts() == (1.5, 5.0)  # places 0 to 3, and 4 to 6


def test_the_figures_of_an_own_model_add_up(model: Path) -> None:
    found = own_bench(str(model), SETTINGS, env="turnwise/FrozenLake-v0", num_generate=1)
    stages = {stage.name: stage for stage in found.stages}
    assert list(stages) == ["environment", "prefill", "decode", "score", "train", "other"]
    assert sum(stage.share for stage in found.stages) == pytest.approx(1.0)
    # The reference's pass and the training pass see the same rows.
    assert stages["score"].tokens == stages["train"].tokens
    assert stages["environment"].tokens > 0
    assert found.generate_ratio is not None
    plain = found.plain()
    for name in ("prefill", "decode", "score", "train"):
        assert plain[f"{name}_floor_per_s"] > 0
        assert plain[f"{name}_per_s"] == stages[name].tokens / stages[name].seconds


def shown(words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.setattr(sys, "argv", ["turnwise", *words])
    monkeypatch.setattr(cli_bench, "console", Console(width=160))
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code in (0, None)
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "expected", "absent"),
    [
        ("rollout", ("decode", "prefill", "generate() every turn"), ("train",)),
        ("update", ("train", "score"), ("decode", "generate()")),
    ],
)
def test_bench_measures_a_model_of_ones_own(
    command: str,
    expected: tuple[str, ...],
    absent: tuple[str, ...],
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["bench", command, str(model), *SETTINGS, "--env", "turnwise/FrozenLake-v0"]
    text = shown(words, monkeypatch, capsys)
    assert all(word in text for word in (*expected, "GFLOP/s"))
    assert not any(f"\n  {word}" in text or f"│ {word}" in text for word in absent)


def test_bench_all_measures_a_run(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from turnwise.jobs import train

    own = ["model={}", f"model.path={model}", "warmstart=null"]
    short = ["num_updates=1", "eval={every: 0, test_split: null}"]
    config = load_config(None, [*own, *short, *SETTINGS], env="turnwise/FrozenLake-v0")
    train(config, tmp_path / "run")
    measured = json.loads(shown(["bench", "all", str(tmp_path / "run"), "--json"], monkeypatch, capsys))
    assert measured["env"] == "turnwise/FrozenLake-v0"
    assert measured["episodes"] == 2
    assert 0 < measured["train_share"] < 1
    with pytest.raises(ValueError, match="is a run and is measured as it is"):
        own_bench(str(tmp_path / "run"), ["threads=1"])


@pytest.mark.parametrize(
    ("target", "message"), [("houshold", "Did you mean 'household'?"), ("./nomodel", "no model at './nomodel'")]
)
def test_a_target_that_is_not_there_is_one_message(target: str, message: str) -> None:
    with pytest.raises(ValueError, match="no ") as raised:
        own_bench(target, SETTINGS)
    assert message in str(raised.value)


@pytest.mark.slow  # half precision on a CPU; the fast tests take its parts: bench, and the test below
def test_the_gpu_check_takes_every_path_on_a_cpu() -> None:
    found = gpu.gpu_check("cpu", gpu.TINY)
    assert not found.faults
    table = found.markdown()
    assert "generate()" in table
    assert "| update by a group of one rank, fsdp2 | equal, to the bit |" in table
    assert "| vllm | not installed |" in table or "replies of vLLM that are ours" in table
    for kind in ("adapters", "all weights"):
        for what in ("update of {}, tokens/s", "sampler against learner of {}", "peak memory of the run of {}"):
            assert what.format(kind) in table
        assert f"run of {kind}: train" in table


def test_a_disagreement_is_a_fault_of_the_gpu_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is judged by the model's own rounding, as a run is."""
    measured = gpu.limits_of

    def nearly_none(policy: Policy, agent: ModelAgent) -> Limits:
        assert measured(policy, agent).floor is not None
        return Limits(half=False)

    monkeypatch.setattr(gpu, "limits_of", nearly_none)
    monkeypatch.setattr(gpu, "_run", lambda *given: None)
    monkeypatch.setattr(gpu.Machine, "measure", lambda model: Machine(1e9, 1e9))
    assert "disagree" in gpu.gpu_check("cpu", gpu.TINY).markdown()


def test_without_a_gpu_the_script_says_so_and_does_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu_check"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "scripts" / "gpu_check"), run_name="__main__")
    assert ended.value.code == 0
    assert "no CUDA device" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import growth
    import peer_trl

    return type("Benchmarks", (), {"growth": growth, "peer_trl": peer_trl})


def test_growth_measures_and_draws(
    benchmarks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    growth = benchmarks.growth
    monkeypatch.setattr(growth, "BENCH_MODEL", TINY_MODEL)
    monkeypatch.setattr(growth, "TURNS", (1, 2))
    growth.main(["--sweeps", "turns", "--out", str(tmp_path), "--json"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])["turns"]
    assert [point["x"] for point in found["points"]] == [1, 2]
    assert all(point["cost_us"] > point["floor_us"] > 0 for point in found["points"])
    assert "polyline" in (tmp_path / "growth-turns.svg").read_text()
    assert len(scripts(1, (3, 3), 100, seed=0)[0].cut(1).prompts) == 1
    with pytest.raises(SystemExit):
        growth.main(["--sweeps", "turn"])


def test_our_side_of_the_peer_benchmark(
    benchmarks: Any, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = benchmarks.peer_trl
    monkeypatch.setattr(peer, "warmstart", lambda config: model)
    given = type("Given", (), {"config": "smoke", "updates": 2, "tasks": 1, "minibatches": 1, "seed": 0})
    config = peer.configured(given)
    assert (config.algorithm.type, config.rollout.group_size, config.lora.rank) == ("grpo", 8, 16)
    found = peer.compare(config, [], test_tasks=2)
    ours = found["sides"]["turnwise"]
    assert ours["total_ratio"] == ours["rollout_ratio"] == 1.0
    assert ours["sampled_tokens"] > 0
    assert len(ours["success"]) == 2
    assert ours["after"]["num"] == found["before"]["num"] == 2
    console = Console(width=200, record=True)
    peer.show(console, found)
    assert "| turnwise |" in console.export_text()


def test_the_bench_against_vllm_plays_as_many_episodes_as_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    class AskedError(Exception):
        pass

    def bench_vllm(model: str | None, **given: Any) -> None:
        raise AskedError(model, given["num_episodes"], given["at_once"], given["dtype"])

    monkeypatch.setattr("turnwise.bench.against_vllm.bench_vllm", bench_vllm)
    words = ["./some", "model.dtype=bfloat16"]
    with pytest.raises(AskedError) as raised:
        cli_bench.rollout(words, against="vllm", episodes=64)
    assert raised.value.args == ("./some", 64, 64, "bfloat16")
