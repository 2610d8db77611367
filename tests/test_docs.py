"""What the documents say can be typed, can be typed."""

from __future__ import annotations

import ast
import importlib
import pydoc
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer

from tests.test_architecture import ALLOWED, LEAVES
from turnwise.algorithms.registry import ALGORITHMS
from turnwise.cli import app
from turnwise.config.files import dump_config, load_config

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
TEXTS = {".md", ".py", ".toml", ".txt", ".yaml", ".yml", ".html", ".js", ".sh", ""}


TUTORIAL = {page.stem: page.read_text() for page in sorted((ROOT / "docs" / "tutorial").glob("*.md"))}


AGENTS = ("tools.md", "cookbook/programs.md")


def commands(text: str = README) -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    lines = [line.split(" #")[0].strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line.startswith("turnwise ")]


def parse(words: list[str]) -> Any:
    """The click context of a command line; raises for unknown commands and options."""
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands"):
        context = command.make_context("turnwise", [words[0], "--help"], resilient_parsing=True)
        name, words = words[0], words[1:]
        command = command.get_command(context, name)
        assert command is not None, f"no command {name!r}"
    return command.make_context("turnwise", words)


def test_the_readme_has_its_commands() -> None:
    assert len(commands()) >= 12


@pytest.mark.parametrize("line", commands())
def test_readme_commands_parse(line: str) -> None:
    context = parse(shlex.split(line)[1:])
    if context.command.name == "train" and "..." not in line and context.params["resume"] is None:
        words = list(context.params["settings"] or [])
        name = words.pop(0) if words and "=" not in words[0] else None
        assert load_config(name, words, env=context.params["env"], algorithm=context.params["algorithm"])


@pytest.mark.parametrize("line", [line for text in TUTORIAL.values() for line in commands(text)])
def test_tutorial_commands_parse(line: str) -> None:
    assert parse(shlex.split(line)[1:])


def test_the_tutorial_shows_the_configuration_that_is_printed() -> None:
    page = TUTORIAL["5-model"]
    (line,) = [line for line in commands(page) if line.endswith("--print-config")]
    given = parse(shlex.split(line)[1:]).params
    printed = dump_config(load_config(None, given["settings"], env=given["env"], algorithm=given["algorithm"]))
    (shown,) = re.findall(r"```yaml\n\.\.\.\n(.*?)\.\.\.\n```", page, re.DOTALL)
    assert shown in printed


@pytest.mark.parametrize("line", [line for page in AGENTS for line in commands((ROOT / "docs" / page).read_text())])
def test_commands_of_tools_and_programs_parse(line: str) -> None:
    assert parse(shlex.split(line)[1:])


def test_readme_python_compiles_and_names_exist() -> None:
    import turnwise

    for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "turnwise":
                assert hasattr(turnwise, node.attr)


def test_links_lead_somewhere() -> None:
    for document in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
            if "://" not in target:
                assert (document.parent / target).exists(), f"{document.name}: {target}"


def tells_to_install(text: str) -> bool:
    """Whether a pip line asks the index for ``turnwise``, which is another project's there, or ``turnwise-rl``, which
    is nobody's yet (docs/adr/020)."""
    return bool(re.search(r"""pip3? install (?:-\S+ (?:[\w./]+ )?)*["']?turnwise(?:-rl)?(?![-\w/])""", text))


def test_no_file_tells_to_install_another_project() -> None:
    folders = ["turnwise", "docs", "tests", "scripts", "benchmarks", "configs", "examples", ".ci", ".github"]
    files = [*ROOT.glob("*"), *(file for folder in folders for file in (ROOT / folder).rglob("*"))]
    told = [str(f) for f in files if f.is_file() and f.suffix in TEXTS and tells_to_install(f.read_text())]
    assert not told


def test_a_line_that_installs_another_project_is_found() -> None:
    name = "turnwise"
    wrong = ["{}", '"{}[envs]"', "-U {}", "-c constraints.txt '{}[view]'", "{}-rl", '"{}-rl[view]"']
    right = ['-e ".[envs]"', "trl   (beside {})", "trl   (beside {}-rl)"]
    assert all(tells_to_install(f"pip install {line}".format(name)) for line in wrong)
    assert not any(tells_to_install(f"pip install {line}".format(name)) for line in right)


def test_what_start_installs_is_declared() -> None:
    """``view`` and the board games are on README's first page, so ``start.py run`` brings what they need."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = runpy.run_path(str(ROOT / "scripts" / "start.py"))["EXTRAS"]
    assert set(re.findall(r"\w+", " ".join(extras.values()))) <= set(declared["optional-dependencies"])
    assert {"games", "view"} <= set(re.findall(r"\w+", extras["run"]))


def test_the_index_of_algorithms_is_that_of_the_code() -> None:
    pages = runpy.run_path(str(ROOT / "scripts" / "algorithm_pages.py"))
    found = (ROOT / "docs" / "algorithms" / "index.md").read_text()
    assert found == pages["index"](), "python scripts/algorithm_pages.py writes it"


def test_the_table_of_methods_is_that_of_code_tests_and_results() -> None:
    """In a process of its own: the script reads the tests of vectors before anything else does."""
    code = "import runpy; print(end=runpy.run_path('scripts/method_table.py')['page']())"
    made = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT, timeout=300
    )
    assert (ROOT / "docs" / "methods.md").read_text() == made.stdout, "python scripts/method_table.py writes it"


def test_the_table_of_methods_shows_who_heats_the_sampler_and_keeps_state() -> None:
    rows = (ROOT / "docs" / "methods.md").read_text().splitlines()
    (hapo,) = (row.split("|") for row in rows if "(algorithms/hapo.md)" in row)
    assert {"S", "K"} <= set(hapo[4].split())


def test_the_layout_page_names_what_is_there() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    for module in (ROOT / "turnwise").glob("*.py"):
        assert module.name in page or module.name == "__init__.py", f"{module.name} is not on the architecture page"
    recipes = {ROOT / "turnwise" / "algorithms" / f"{name}.py" for name in ALGORITHMS}
    packages = {path.parent for path in (ROOT / "turnwise").glob("*/__init__.py")} - {ROOT / "turnwise" / "commands"}
    for module in {module for package in packages for module in package.glob("[!_]*.py")} - recipes:
        assert f"`{module.stem}`" in page, f"{module.relative_to(ROOT)} is not on the architecture page"


def test_the_table_of_imports_is_the_one_that_is_held() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    table = page.split("| part | may import, of ours |\n", 1)[1].split("\n\n", 1)[0]
    rows = [
        [set(re.findall(r"[\w.]+", cell)) for cell in line.strip("| ").split(" | ")] for line in table.splitlines()[1:]
    ]
    leaves, found = rows[0][0], {part: allowed for (part,), allowed in rows[1:]}
    assert leaves == LEAVES
    assert found == ALLOWED


def test_the_index_of_decisions_lists_each_with_what_became_of_it() -> None:
    """A decision that another one took the place of says so below its title, and in the index."""
    folder = ROOT / "docs" / "adr"
    rows = []
    for page in sorted(folder.glob("[0-9]*.md")):
        title, _, below, *_ = page.read_text().split("\n")
        number, name = re.fullmatch(r"# ADR (\d+): (.+)", title).groups()  # type: ignore[union-attr]
        became = re.match(r"\*(Superseded|Amended) by \[ADR (\d+)\]\(([\w.-]+)\)", below)
        since = f"{became[1].lower()} by [{became[2]}]({became[3]}) " if became else ""
        assert became is None or became[3].startswith(f"{int(became[2]):03}-")
        rows.append(f"| [{number}]({page.name}) | {name} | {since}|")
    index = (folder / "index.md").read_text()
    assert [line for line in index.splitlines() if line.startswith("| [")] == rows


def test_the_migration_page_names_what_is_there() -> None:
    """The right column of its tables of names, from 0.2; and old modules are told by the page's names."""
    part = (ROOT / "docs" / "migration.md").read_text().partition("### Code of your own")[2].partition("\n### ")[0]
    new = re.findall(r"`(turnwise\.[\w.]+)`", " ".join(row.split("|")[2] for row in part.splitlines() if "|" in row))
    assert len(new) > 8
    for name in new:
        assert pydoc.locate(name) is not None, name
    with pytest.raises(ImportError, match=r"turnwise\.runs\.replaying has moved.*turnwise\.runs\.reproducing"):
        importlib.import_module("turnwise.runs.replaying")
