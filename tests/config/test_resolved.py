"""A name trains what it says: what a command resolves to is what the algorithm's page and description say."""

from __future__ import annotations

import re
import runpy
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from tests.test_docs import parse
from turnwise.algorithms.description import describe
from turnwise.algorithms.registry import ALGORITHMS, base_chain, resolve
from turnwise.cli import app
from turnwise.commands.lists import settings_table
from turnwise.config.files import load_config, parse_config, read_config, shipped_configs

PAGES = Path(__file__).parents[2] / "docs" / "algorithms"
SCRIPT = runpy.run_path(str(PAGES.parent.parent / "scripts" / "algorithm_pages.py"))
SECTIONS = (
    "The paper",
    "Equations",
    "How to run it",
    "Every setting, as it is by default",
    "Where the defaults come from",
    "What differs from the paper and from the released code",
    "What was measured",
)
FOR_ONE_ALGORITHM = {
    "alfworld-gigpo": "gigpo",
    "alfworld-rl": "gigpo",
    "alfworld-smollm2": "gigpo",
    "papers/alfworld-spear": "spear",
    "papers/webshop-gigpo": "gigpo",
    "papers/webshop-spear": "spear",
}
"""Shipped files with settings of an algorithm: they exist for that one."""


def flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Each setting by its dotted name; a section under its own name is its type, or ``set``."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield prefix + name, value.get("type", "set")
            yield from flat({k: v for k, v in value.items() if k != "type"}, f"{prefix}{name}.")
        else:
            yield prefix + name, list(value) if isinstance(value, tuple) else value


def described(name: str) -> dict[str, Any]:
    found = {s.name: list(s.default) if isinstance(s.default, tuple) else s.default for s in describe(name).settings}
    off = {place for place, value in found.items() if value is None}
    return {place: value for place, value in found.items() if place.rpartition(".")[0] not in off}


def page(name: str) -> str:
    return (PAGES / f"{name}.md").read_text()


def on_the_page(name: str) -> dict[str, Any]:
    """The table of the page, its defaults read as YAML."""
    section = page(name).partition("## Every setting, as it is by default\n")[2].partition("\n## ")[0]
    rows = section.splitlines()
    cells = [row.split(" | ") for row in rows if row.startswith("| `")]
    return {cell[0].strip("| `"): yaml.safe_load(cell[1]) for cell in cells}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_page_says_what_the_description_says(name: str) -> None:
    shown = on_the_page(name)
    assert list(shown) == [setting.name for setting in describe(name).settings], "run scripts/algorithm_pages.py"
    for place, value in described(name).items():
        assert shown[place] == pytest.approx(value) if isinstance(value, float) else shown[place] == value, place


@pytest.mark.parametrize("name", ALGORITHMS)
def test_writing_the_table_keeps_the_rest_of_a_page(name: str) -> None:
    assert SCRIPT["with_table"](page(name), SCRIPT["table"](name)) == page(name), "run scripts/algorithm_pages.py"


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_page_reads_in_one_order(name: str) -> None:
    found = re.findall(r"^## (.*)$", page(name), re.MULTILINE)
    assert found == [heading for heading in SECTIONS if heading in found or heading != "Where the defaults come from"]
    assert "](../benchmarks/" in page(name).partition("## What was measured")[2]


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_command_on_a_page_trains_what_the_page_describes(name: str) -> None:
    blocks = re.findall(r"^```bash\n(.*?)```", page(name), re.DOTALL | re.MULTILINE)
    made = []
    for line in "".join(blocks).splitlines():
        given = parse(shlex.split(line)[1:]).params
        config, *settings = given["settings"]
        made.append(load_config(config, settings, env=given["env"], algorithm=given["algorithm"]).algorithm)
    assert made[0] == resolve(name).config()


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("config", shipped_configs())
def test_an_algorithm_on_a_shipped_configuration_is_the_documented_one(config: str, name: str) -> None:
    if FOR_ONE_ALGORITHM.get(config) == name:
        assert read_config(config)["algorithm"]["type"] == name
        return
    for asked in ({"algorithm": name}, {"settings": [f"algorithm={name}"]}, {"settings": [f"algorithm.type={name}"]}):
        made = load_config(config, **asked).algorithm  # type: ignore[arg-type]
        assert made == resolve(name).config()
        assert dict(flat(made.model_dump(exclude={"type"}))) == described(name)


def test_only_files_for_one_algorithm_have_settings_of_one() -> None:
    found = {name: read_config(name).get("algorithm", {}) for name in shipped_configs()}
    assert {name: section["type"] for name, section in found.items() if set(section) - {"type"}} == FOR_ONE_ALGORITHM


def test_a_base_is_named_with_what_builds_on_it() -> None:
    assert base_chain(load_config("household", algorithm="spear").algorithm) == "spear on drbot on drgrpo"
    assert base_chain(load_config("cloned").algorithm) == "epo on grpo"
    assert base_chain(load_config("household", algorithm="ppo").algorithm) == "ppo"


def test_settings_of_the_default_algorithm_are_its_own() -> None:
    """One row a setting, with the default that a run would have; not that of whichever algorithm has the name too."""
    rows = settings_table("algorithm.").columns
    shown = dict(zip(map(str, rows[0].cells), map(str, rows[1].cells), strict=True))
    assert shown == {f"algorithm.{s.name}": str(s.default) for s in describe("epo").settings}
    assert shown["algorithm.base.drop_uniform_groups"] == "False"


def test_the_resolved_configuration_can_be_printed() -> None:
    """YAML on standard output and nothing else; no folder is made."""
    ran = CliRunner().invoke(app, ["train", "household", "--algorithm", "spear", "--print-config", "rewards.scale=10"])
    assert ran.exit_code == 0, ran.output
    expected = load_config("household", ["rewards.scale=10"], algorithm="spear")
    assert parse_config(yaml.safe_load(ran.stdout)) == expected
