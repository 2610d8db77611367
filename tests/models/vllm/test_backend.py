"""Which engine a run samples with: by its configuration, or by a rule that looks at no clock; and that it is kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from turnwise.assembly import run as assembly_run
from turnwise.assembly.run import backend_of
from turnwise.config.files import load_config
from turnwise.jobs import train
from turnwise.models.vllm import install
from turnwise.models.vllm.settings import LARGE, chosen_backend, room_for_rank
from turnwise.runs.translating import translated


@pytest.mark.parametrize(
    ("device", "parameters", "half", "available", "engine", "why"),
    [
        ("cuda", LARGE, True, True, "vllm", "a GPU, half precision and 500,000,000 parameters"),
        ("cuda:0", 2 * LARGE, True, True, "vllm", "1,000,000,000"),
        ("cuda", LARGE - 1, True, True, "own", "499,999,999 parameters, less than 500,000,000"),
        ("cuda", LARGE, False, True, "own", "float32"),
        ("cuda", LARGE, True, False, "own", "no vLLM that fits is installed"),
        ("cuda", None, True, True, "own", "an unknown number of parameters"),
        ("cpu", 10 * LARGE, True, True, "own", "device cpu is no GPU"),
    ],
)
def test_the_rule(device: str, parameters: int | None, half: bool, available: bool, engine: str, why: str) -> None:
    chosen, told = chosen_backend(device, parameters, half, available)
    assert chosen == engine
    assert why in told


def test_a_model_is_looked_at_for_the_rule(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assembly_run, "installed", lambda: "0.32.4")
    given = [f"model={{path: {model}, dtype: bfloat16}}", "warmstart=null"]
    assert backend_of(load_config("smoke", given))[0] == "own"
    on_gpu = load_config("smoke", [*given, "device=cuda"])
    chosen, why = backend_of(on_gpu)
    assert chosen == "own"
    assert "parameters, less than" in why
    monkeypatch.setattr("turnwise.models.vllm.settings.LARGE", 1000)
    assert backend_of(on_gpu)[0] == "vllm"
    monkeypatch.setattr(assembly_run, "installed", lambda: "0.31.0")
    assert backend_of(on_gpu) == ("own", "no vLLM that fits is installed")
    asked = load_config("smoke", [*given, "rollout.backend=vllm"])
    assert backend_of(asked) == ("vllm", "rollout.backend=vllm")


def test_a_run_from_before_there_was_a_choice_keeps_the_own_engine() -> None:
    assert translated({"rollout": {"num_tasks": 2}})["rollout"] == {"backend": "own", "num_tasks": 2}
    assert translated({"rollout": {"backend": "vllm"}})["rollout"] == {"backend": "vllm"}


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["rollout.vllm.cache_gib=2"], r"rollout\.vllm\.cache_gib: set rollout\.backend=vllm, or leave it out"),
        (["rollout.backend=own", "rollout.vllm.compiled=true"], r"rollout\.vllm\.compiled: set rollout\.backend=vllm"),
        (["rollout.backend=vllm", "rollout.packed_weights=true"], r"rollout\.packed_weights is for our own engine"),
        (["rollout.backend=vlm"], "vllm"),
        (["rollout.backend=vllm", "learner.ranks=2"], r"learner\.ranks=2, and vLLM in the first rank's process"),
        (["rollout.backend=vllm", "learner={ranks: 2, parallel: fsdp2}"], r"learner\.ranks=2, and vLLM"),
        (["rollout.backend=vllm", "rollout.shards=2"], r"rollout\.backend=vllm samples in one process, and shards"),
        (["rollout.backend=vllm", "ray={}"], r"rollout\.backend=vllm samples in one process, and shards"),
    ],
)
def test_settings_of_one_engine_are_for_that_one(settings: list[str], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        load_config("smoke", settings)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_ranks_sample_from_a_server(parallel: str) -> None:
    url = "rollout.vllm.url=http://127.0.0.1:1"
    ranks = f"learner={{ranks: 2, parallel: {parallel}}}"
    assert load_config("smoke", ["rollout.backend=vllm", url, ranks]).learner.ranks == 2


def test_a_vllm_that_is_missing_is_told_of_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(install, "installed", lambda: None)
    with pytest.raises(
        ValueError, match=r"rollout\.backend=vllm needs vLLM 0\.32, which is not installed: `pip install"
    ):
        train(load_config("smoke", ["rollout.backend=vllm"]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_adapters_have_room() -> None:
    assert [room_for_rank(rank) for rank in (1, 8, 9, 64, 300)] == [8, 8, 16, 64, 320]
    with pytest.raises(ValueError, match="rank 513 are too large for vLLM, which takes 512"):
        room_for_rank(513)
