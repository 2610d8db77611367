"""What is told about an algorithm: from its module, else from its function; its settings, those below them too."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from turnwise.algorithms.description import by_kind, describe
from turnwise.algorithms.registry import ALGORITHMS, resolve
from turnwise.learning.recipe import KINDS

SETTINGS = """
from typing import Literal
from pydantic import Field
from turnwise.algorithms.grpo import GRPOConfig
from turnwise.learning.recipe import Recipe
from turnwise.learning.settings import RunInfo, Settings
from turnwise.algorithms.registry import build

class Inner(Settings):
    depth: int = Field(default=2, description="How deep.")

class Own(Settings):
    inner: Inner = Field(default=Inner(), description="What is inside.")
    maybe: Inner | None = Field(default=None, description="Or nothing.")
    needed: float = Field(description="Has no default.")
    plain: str = "x"
"""


def outside(monkeypatch: pytest.MonkeyPatch, text: str, doc: str) -> str:
    """The name of an algorithm whose module is written here."""
    module = ModuleType(f"written_{abs(hash((text, doc)))}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    function = f"def recipe(config: Own, run: RunInfo) -> Recipe:\n    {doc!r}\n    return build(GRPOConfig(), run)\n"
    exec(text + SETTINGS + function, module.__dict__)
    module.__doc__ = text.strip().strip('"') or None
    return f"{module.__name__}:recipe"


@pytest.mark.parametrize(
    ("text", "doc", "summary", "equations"),
    [
        ('"""Of the module.\n\n    r = 1\n\nMore."""', "Of the function.", "Of the module.", "r = 1"),
        (
            "",
            "Of the function,\n    in two lines.\n\n        a = b\n          + c",
            "Of the function, in two lines.",
            "a = b\n  + c",
        ),
        ("", "", "", ""),
    ],
)
def test_the_modules_words_come_first(
    monkeypatch: pytest.MonkeyPatch, text: str, doc: str, summary: str, equations: str
) -> None:
    found = describe(outside(monkeypatch, text, doc))
    assert (found.summary, found.equations, found.about) == (summary, equations, None)


def test_settings_are_listed_with_those_below_them(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {s.name: s for s in describe(outside(monkeypatch, "", "Words.")).settings}
    assert list(found) == ["inner", "inner.depth", "maybe", "maybe.depth", "needed", "plain"]
    assert [found[name].default for name in ("inner.depth", "maybe", "needed", "plain")] == [2, None, None, "x"]
    assert [found[name].meaning for name in ("inner", "needed", "plain")] == ["What is inside.", "Has no default.", ""]
    assert [found[name].type for name in ("inner.depth", "needed", "maybe")] == ["int", "float", "Inner | None"]


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_built_in_algorithm_is_called_by_its_module_and_says_its_type(name: str) -> None:
    found = resolve(name)
    assert found.name == name == found.recipe.__module__.rpartition(".")[2]
    assert found.config.model_fields["type"].default == name
    shown = describe(name)
    assert shown.is_modifier is ("base" in found.config.model_fields)
    assert "type" not in [setting.name for setting in shown.settings]
    assert shown.equations
    assert not shown.equations.startswith(" ")


def test_every_algorithm_is_in_one_list() -> None:
    lists = by_kind()
    assert set(lists) <= set(KINDS)
    assert sorted(found.name for each in lists.values() for found in each) == sorted(ALGORITHMS)
    assert not any(found.is_modifier for found in lists["bases"])
    whole = {kind for kind, each in lists.items() if not all(found.is_modifier for found in each)}
    assert whole == {"bases", "credit", "replay"}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_sources_are_of_settings(name: str) -> None:
    found = describe(name)
    assert found.about is not None
    known = {setting.name for setting in found.settings}
    assert {setting for names in found.about.sources for setting in names.split(", ")} <= known


def test_a_default_says_where_it_comes_from_unless_another_algorithm_changed_it() -> None:
    sources = {setting.name: setting.source for setting in describe("drbot").settings}
    assert sources["group_share"] == "released"
    assert sources["base.aggregation"].startswith("the paper's formula"), "Dr.GRPO's own"
    assert sources["base.clip_high"] == "", "0.2 is verl-agent's, and Dr.BoT's is 0.28"


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("GRPO", "grpo"), ("gpro", "grpo"), ("gipgo", "gigpo"), ("sper", "spear"), ("klcov", "kl_cov"), ("Aepo", "aepo")],
)
def test_the_nearest_name_is_offered(typed: str, meant: str) -> None:
    with pytest.raises(ValueError, match=f"Did you mean '{meant}'"):
        resolve(typed)
