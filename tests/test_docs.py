"""What the documents say can be typed, can be typed."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from turnwise.cli import app
from turnwise.config.files import load_config

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def commands() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
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


def test_the_layout_page_names_what_is_there() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    for module in (ROOT / "turnwise").glob("*.py"):
        assert module.name in page or module.name == "__init__.py", f"{module.name} is not on the architecture page"
