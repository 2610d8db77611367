"""Algorithms are found by name, and only what is asked for is imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import turnwise.algorithms
from turnwise.algorithms.registry import ALGORITHMS
from turnwise.config.files import load_config

MODULES = Path(turnwise.algorithms.__file__).parent


def imported_by(statement: str) -> set[str]:
    """The modules of turnwise.algorithms, and torch, that a fresh interpreter has after a statement."""
    code = f"import sys\n{statement}\nprint(*sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120)
    return {
        name.removeprefix("turnwise.algorithms.")
        for name in ended.stdout.split()
        if name.startswith("turnwise.algorithms.") or name == "torch"
    }


def test_every_module_with_a_recipe_has_its_name_in_the_list() -> None:
    with_recipe = [file.stem for file in MODULES.glob("*.py") if "\ndef recipe(" in file.read_text()]
    assert sorted(ALGORITHMS) == sorted(with_recipe)


def test_the_names_are_known_without_torch() -> None:
    assert imported_by("import turnwise.algorithms.registry") == {"registry"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gspo", {"gspo"}),
        ("arpo", {"arpo", "grpo"}),
        (
            "spear",
            {"spear", "drbot", "drgrpo", "clip_cov", "grpo"},
        ),  # on drbot on drgrpo; with Clip-Cov's part
    ],
)
def test_an_algorithm_is_imported_with_what_it_builds_on_and_no_other(name: str, expected: set[str]) -> None:
    found = imported_by(f"from turnwise.algorithms.registry import resolve\nresolve({name!r})")
    assert found & set(ALGORITHMS) == expected


def test_an_algorithm_that_makes_no_recipe_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "forgetful.py").write_text(
        "from turnwise.algorithms.grpo import GRPOConfig\ndef recipe(config: GRPOConfig, run):\n    pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ValueError, match=r"'forgetful:recipe': recipe\(\) returned None; expected a .*Recipe"):
        load_config("smoke", algorithm="forgetful:recipe")
