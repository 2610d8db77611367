"""A precision that the settings leave open is settled by a rule: no bfloat16 on a processor that cannot multiply it."""

from __future__ import annotations

import platform
import warnings
from pathlib import Path

import pytest
import torch

from tests.models import scratch_folder, tokenizer
from turnwise.assembly.run import Assembly
from turnwise.assembly.settling import sampling_of
from turnwise.config.files import load_config
from turnwise.models import precision
from turnwise.models.loading import load_model, save_model
from turnwise.models.precision import chosen_dtype
from turnwise.models.settings import DType, PretrainedModelConfig
from turnwise.training.shape import settled_dtype, shape_of


@pytest.fixture(params=[True, False], ids=["bfloat16 here", "no bfloat16 here"])
def able(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(precision, "multiplies_bfloat16", lambda: request.param)
    return bool(request.param)


@pytest.fixture
def stored_half(tmp_path: Path) -> Path:
    """A model folder whose weights are in bfloat16."""
    model, _ = load_model(scratch_folder(tmp_path / "full"))
    save_model(model.to(torch.bfloat16), tokenizer(), tmp_path / "half")
    return tmp_path / "half"


@pytest.mark.parametrize("dtype", ["auto", "float32", "bfloat16"])
def test_only_an_open_precision_on_a_processor_without_bfloat16_is_settled(dtype: DType, able: bool) -> None:
    settled = "float32" if dtype == "auto" and not able else dtype
    assert chosen_dtype(dtype, "cpu") == settled
    assert chosen_dtype(dtype, "cuda") == dtype


def test_a_model_is_loaded_and_planned_by_the_rule(stored_half: Path, able: bool) -> None:
    expected = torch.bfloat16 if able else torch.float32
    assert load_model(stored_half)[0].dtype == expected
    config = PretrainedModelConfig(path=str(stored_half))
    assert shape_of(config, None).itemsize == expected.itemsize
    assert shape_of(config, None, "cuda").itemsize == 2


def test_bfloat16_that_is_asked_for_is_computed_with_a_warning_where_it_is_slow(stored_half: Path, able: bool) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert load_model(stored_half, dtype="bfloat16")[0].dtype == torch.bfloat16
    told = [str(each.message) for each in caught if "model.dtype=bfloat16" in str(each.message)]
    assert len(told) == (0 if able else 1)


def test_a_run_says_it_and_keeps_it(stored_half: Path, able: bool) -> None:
    config = load_config("smoke", [f"model={{path: {stored_half}}}", "warmstart=null"])
    assert ("no instructions for bfloat16" in sampling_of(config)[1]) == (not able)
    settled = Assembly(config).settled().model
    assert isinstance(settled, PretrainedModelConfig)
    assert settled.dtype == ("bfloat16" if able else "float32")


def test_a_clone_is_of_one_precision(stored_half: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = []
    for able in (True, False):
        monkeypatch.setattr(precision, "multiplies_bfloat16", lambda able=able: able)
        config = load_config("smoke", [f"model={{path: {stored_half}}}", "warmstart={}"])
        keys.append(Assembly(config).warmstart.cloning.key)
    assert keys[0] != keys[1]


def test_a_type_that_no_setting_names_stays_open(stored_half: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "multiplies_bfloat16", lambda: True)
    model, _ = load_model(stored_half)
    save_model(model.half(), tokenizer(), stored_half.parent / "float16")
    folders = {"float16": "auto", "half": "bfloat16", "nowhere": "auto"}
    for name, expected in folders.items():
        assert settled_dtype(PretrainedModelConfig(path=str(stored_half.parent / name)), "cpu") == expected


@pytest.mark.parametrize("machine", ["aarch64", "arm64", "x86_64"])
def test_every_processor_has_an_answer(machine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch without oneDNN lacks the operation that tells it."""
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.ops, "mkldnn", object())
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    precision.multiplies_bfloat16.cache_clear()
    try:
        assert precision.multiplies_bfloat16() == (machine == "x86_64")
    finally:
        precision.multiplies_bfloat16.cache_clear()
