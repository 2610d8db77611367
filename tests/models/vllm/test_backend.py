"""Which engine a run samples with: by its configuration, or by a rule that looks at no clock; and that it is kept."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from turnwise.assembly import run, settling
from turnwise.assembly.run import Assembly
from turnwise.assembly.settling import backend_of, has_vllm
from turnwise.assembly.shards import _divided
from turnwise.config.files import load_config, parse_config
from turnwise.jobs import train
from turnwise.models.vllm import install
from turnwise.models.vllm.settings import LARGE, Facts, chosen_backend, room_for_rank
from turnwise.runs.translating import translated

LARGE_ON_GPU = Facts("cuda", half=True, parameters=LARGE, length=2048, positions=2048, rank=512, available=True)


@pytest.mark.parametrize(
    ("facts", "engine", "why"),
    [
        ({}, "vllm", "a GPU, half precision and 500,000,000 parameters"),
        ({"device": "cuda:0", "parameters": 2 * LARGE}, "vllm", "1,000,000,000"),
        ({"positions": None}, "vllm", "a GPU"),
        ({"parameters": LARGE - 1}, "own", "499,999,999 parameters, less than 500,000,000"),
        ({"half": False}, "own", "float32"),
        ({"available": False}, "own", "no vLLM that fits is installed"),
        ({"parameters": None}, "own", "an unknown number of parameters"),
        ({"device": "cpu", "parameters": 10 * LARGE}, "own", "device cpu is no GPU"),
        ({"device": "cuda:1"}, "own", "the first GPU that it sees, and the model is on cuda:1"),
        ({"sharded": True}, "own", "shards sample with our own engine"),
        ({"ranks": 2}, "own", "2 ranks learn"),
        ({"length": 2049}, "own", "contexts may have 2049 tokens, and vLLM keeps to the 2048"),
        ({"rank": 513}, "own", "adapters of rank 513 are too large"),
    ],
    ids=str,
)
def test_the_rule(facts: dict[str, Any], engine: str, why: str) -> None:
    chosen, told = chosen_backend(replace(LARGE_ON_GPU, **facts))
    assert chosen == engine
    assert why in told


@pytest.fixture
def on_gpu(model: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Settings of a run whose engine is open, and is vLLM."""
    monkeypatch.setattr(settling, "installed", lambda: "0.32.4")
    monkeypatch.setattr("turnwise.models.vllm.settings.LARGE", 1000)
    return [
        f"model={{path: {model}, dtype: bfloat16}}",
        "warmstart=null",
        "device=cuda",
        "agent.max_context_tokens=4096",
    ]


def test_a_model_is_looked_at_for_the_rule(on_gpu: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert backend_of(load_config("smoke", [*on_gpu, "device=cpu"]))[0] == "own"
    open_one = load_config("smoke", on_gpu)
    assert backend_of(open_one)[0] == "vllm"
    with monkeypatch.context() as patch:
        patch.setattr("turnwise.models.vllm.settings.LARGE", LARGE)
        chosen, why = backend_of(open_one)
        assert chosen == "own"
        assert "parameters, less than" in why
    monkeypatch.setattr(settling, "installed", lambda: "0.31.0")
    assert backend_of(open_one) == ("own", "no vLLM that fits is installed")
    asked = load_config("smoke", [*on_gpu, "rollout.backend=vllm"])
    assert backend_of(asked) == ("vllm", "rollout.backend=vllm")


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (["device=cuda:1"], "cuda:1"),
        (["learner.ranks=2"], "2 ranks learn"),
        (["learner={ranks: 2, parallel: fsdp2}"], "2 ranks learn"),
        (["ray={gpus_per_shard: 1}"], "shards"),
        (["rollout.shards=2", "ray={gpus_per_shard: 0.5}"], "shards"),
        (["agent.max_context_tokens=100000"], "contexts may have 100000 tokens"),
        (["lora.rank=513"], "rank 513"),
    ],
    ids=str,
)
def test_an_open_engine_is_never_one_that_the_run_cannot_have(
    settings: list[str], why: str, on_gpu: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: find("json" if name == "ray" else name, *more))
    config = load_config("smoke", [*on_gpu, *settings])
    chosen, told = backend_of(config)
    assert chosen == "own"
    assert why in told
    assert Assembly(config).settled().rollout.backend == "own"


def test_what_a_run_settles_for_is_checked_as_what_is_given(on_gpu: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config("smoke", [*on_gpu, "learner.ranks=2"])
    settled = Assembly(config).settled()
    assert settled == config.model_copy(update={"agent": settled.agent, "rollout": settled.rollout})
    monkeypatch.setattr(run, "backend_of", lambda config: ("vllm", "a mistake"))
    with pytest.raises(ValueError, match=r"learner\.ranks=2, and vLLM"):
        Assembly(config).settled()


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
        (
            ["rollout.backend=vllm", "rollout.vllm.url=http://127.0.0.1:1", "rollout.ahead=1"],
            r"rollout\.ahead=1 was not tried with a vLLM server",
        ),
        (
            ["rollout.backend=vllm", "rollout.vllm.url=http://127.0.0.1:1", "ray.address=auto"],
            r"ray\.address=auto: a vLLM server reads adapters from folders of its own machine",
        ),
    ],
)
def test_settings_of_one_engine_are_for_that_one(settings: list[str], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        load_config("smoke", settings)


@pytest.mark.parametrize("where", ["rollout.shards=2", "ray.address=local"])
def test_shards_sample_from_a_server(where: str) -> None:
    url = "rollout.vllm.url=http://127.0.0.1:1"
    assert load_config("smoke", ["rollout.backend=vllm", url, where]).rollout.vllm.url is not None


@pytest.mark.parametrize(
    "settings",
    [["rollout.shards=2"], ["ray.address=auto"], ["rollout.ahead=1"], ["rollout.shards=2", "learner.ranks=2"]],
)
def test_shards_have_a_vllm_each(settings: list[str]) -> None:
    """The main process has none, and a shard's own settings are those of a run that plays by itself."""
    made = load_config("smoke", ["rollout.backend=vllm", *settings])
    assert not has_vllm(made)
    for own in _divided(made.model_dump(mode="json")):
        assert has_vllm(parse_config(own))


def test_a_vllm_that_shards_of_this_machine_lack_is_told_of_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(install, "installed", lambda: None)
    with pytest.raises(ValueError, match=r"rollout\.backend=vllm needs vLLM 0\.32, which is not installed"):
        train(load_config("smoke", ["rollout.backend=vllm", "rollout.shards=2"]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_where_a_clusters_nodes_have_vllm_the_machine_of_the_command_needs_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it lacks for that is Ray, here."""
    monkeypatch.setattr(install, "installed", lambda: None)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *given: None if name == "ray" else find(name, *given))
    with pytest.raises(ValueError, match=r"ray\.address needs Ray"):
        train(load_config("smoke", ["rollout.backend=vllm", "ray.address=auto"]), tmp_path / "run")


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
