"""A second scorer in a run: it stays as it is, has the same tokens, and is counted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.faults.runs import config, trainer
from turnwise.assembly import frozen
from turnwise.assembly.settling import demand_of
from turnwise.assembly.teachers import teacher_bytes, teacher_of
from turnwise.learning.recipe import Recipe
from turnwise.models import precision
from turnwise.models.policy import Policy
from turnwise.runs.directory import RunDirectory
from turnwise.training.plan import plan
from turnwise.training.proof import DisagreementError
from turnwise.training.teacher import Teacher, check_tokens
from turnwise.training.trainer import Trainer


@pytest.fixture(scope="module")
def other(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model with other weights."""
    folder = tmp_path_factory.mktemp("other") / "model"
    shutil.copytree(model, folder)
    disturb(folder)
    return folder


def disturb(folder: Path, seed: int = 0) -> None:
    generator, file = torch.Generator().manual_seed(seed), folder / "model.safetensors"
    weights = {name: w + 0.3 * torch.randn(w.shape, generator=generator) for name, w in load_file(file).items()}
    save_file(weights, file, {"format": "pt"})


def taught(model: Path, teacher: Path, path: Path) -> Trainer:
    return trainer(config(model, f"algorithm={{type: distill, teacher: {teacher}}}"), path)


def named(name: str) -> Recipe:
    return SimpleNamespace(needs_teacher=True, teacher=name)  # type: ignore[return-value]


def test_a_run_goes_on_with_the_teacher_that_it_began_with_alone(model: Path, other: Path, tmp_path: Path) -> None:
    teacher = tmp_path / "teacher"
    shutil.copytree(other, teacher)
    made = taught(model, teacher, tmp_path / "run")
    for _ in range(3):
        made.step()
    distances = [line["mechanisms/ReverseKL/reverse_kl"] for line in made.run.metrics()]
    assert min(distances) > 0.05
    side = made.sides[0]
    side.teacher.policy.model.lm_head.weight.data[0, 0] += 1e-3  # type: ignore[union-attr]
    with pytest.raises(DisagreementError, match=r"a teacher stays as it is: teacher .*teacher: its weights were"):
        made.step()
    taught(model, teacher, tmp_path / "run")  # as it was
    disturb(teacher, 1)
    with pytest.raises(ValueError, match=r"learned from a teacher with weights .*put the earlier one back"):
        taught(model, teacher, tmp_path / "run")


def test_a_run_teaches_with_its_checkpoint(model: Path, tmp_path: Path) -> None:
    made = trainer(config(model, "keep_checkpoint=last"), tmp_path / "run")
    made.step()
    student = Policy.load(model, lora=None)
    student.temperature = 0.7
    teacher = teacher_of(named(str(tmp_path / "run")), student)
    assert teacher is not None
    assert teacher.policy.adapter_hash == made.sides[0].policy.adapter_hash
    assert teacher.policy.temperature == 0.7
    assert not list(teacher.parameters())
    assert not any(p.requires_grad for p in teacher.policy.model.parameters())
    held = sum(p.nbytes for p in teacher.policy.model.parameters())
    assert teacher_bytes(named(str(tmp_path / "run")), "cpu") == held
    assert teacher.changed() is None


def test_what_a_teacher_takes_is_planned(model: Path, other: Path) -> None:
    shape, demand = demand_of(config(model, f"algorithm={{type: distill, teacher: {other}}}"))
    found = {part.name: part.bytes for part in plan(shape, demand).parts}
    assert found["teacher's weights"] == sum(p.nbytes for p in Policy.load(other, lora=None).model.parameters())
    assert "teacher's weights" not in {part.name for part in plan(*demand_of(config(model))).parts}


def test_a_teachers_numbers_are_counted_as_the_device_has_them(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In half the bytes where the device multiplies what is stored in bfloat16."""
    half = tmp_path / "half"
    shutil.copytree(model, half)
    about = json.loads((half / "config.json").read_text())
    (half / "config.json").write_text(json.dumps({**about, "dtype": "bfloat16", "torch_dtype": "bfloat16"}))
    monkeypatch.setattr(precision, "multiplies_bfloat16", lambda: False)
    on_cpu, on_gpu = (teacher_bytes(named(str(half)), device) for device in ("cpu", "cuda"))
    assert on_cpu == 2 * on_gpu > 0
    RunDirectory.create(tmp_path / "run", config(half, "lora=null"), {})
    on_cpu, on_gpu = (teacher_bytes(named(str(tmp_path / "run")), device) for device in ("cpu", "cuda"))
    assert on_cpu == 2 * on_gpu > 0
    asked = config(model, f"algorithm={{type: distill, teacher: {half}}}").model_copy(update={"device": "cuda"})
    assert demand_of(asked)[1].teacher == on_gpu


def test_a_teacher_must_be_named_and_have_one_policy(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"learns from a teacher: name one with algorithm\.teacher"):
        demand_of(config(model, "algorithm=distill"))
    game = SimpleNamespace(config=lambda: SimpleNamespace(game=object()))
    monkeypatch.setattr(frozen, "open_run", lambda target: game)
    with pytest.raises(ValueError, match="teacher runs/duel is a run of a game"):
        teacher_bytes(named("runs/duel"), "cpu")


def test_other_tokens_are_refused_by_name() -> None:
    def tokenizer(**ids: int) -> SimpleNamespace:
        return SimpleNamespace(get_vocab=lambda: ids)

    check_tokens(tokenizer(a=0, b=1), tokenizer(b=1, a=0), "teacher big")
    with pytest.raises(
        ValueError, match=r"teacher big has another tokenizer .*2 tokens differ: 'b' \(1, here 2\), 'c'"
    ):
        check_tokens(tokenizer(a=0, b=1), tokenizer(a=0, b=2, c=1), "teacher big")


def test_a_teacher_s_hash_sees_one_weight() -> None:
    policy = SimpleNamespace(model=torch.nn.Linear(3, 2))
    teacher = Teacher("big", policy)  # type: ignore[arg-type]
    policy.model.bias.data[1] += 1e-6
    assert "teacher big" in (teacher.changed() or "")
