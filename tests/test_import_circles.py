"""No module takes part in a circle of imports, neither at its top nor inside a function."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent

Sources = dict[str, str]  # source text by the module's dotted name


@cache
def sources() -> Sources:
    """Every module of turnwise."""
    return {named(file): file.read_text() for file in sorted((ROOT / "turnwise").rglob("*.py"))}


def named(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(source: str, modules: Sources) -> set[str]:
    """The modules that a source imports, wherever the statement stands, unless for type checkers alone.

    ``from a import b`` is an import of the module a.b where there is one, else of a.
    """
    found = set[str]()
    for node in statements(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            found.update(name if name in modules else node.module for name in inside)
    return found & modules.keys()


def statements(node: ast.AST) -> Iterator[ast.AST]:
    """Every node but those below ``if TYPE_CHECKING:``, which never run."""
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield child
            yield from statements(child)


def circles(modules: Sources) -> list[set[str]]:
    """The groups of two or more modules of which each reaches each other one by imports."""
    edges = {name: imports(source, modules) for name, source in modules.items()}
    reach = {name: reached(name, edges) for name in edges}
    groups = {frozenset({other for other in reach[name] if name in reach[other]}) for name in edges}
    return [set(group) for group in groups if group]


def reached(start: str, edges: Mapping[str, set[str]]) -> set[str]:
    """What a module imports, directly or through others: itself too where it is on a circle."""
    found, open_ends = set[str](), [start]
    while open_ends:
        for name in edges[open_ends.pop()] - found:
            found.add(name)
            open_ends.append(name)
    return found


def test_no_module_is_on_a_circle() -> None:
    assert not [sorted(circle) for circle in circles(sources())]


def test_planted_circles_are_found() -> None:
    leaf = {"turnwise.leaf": "import torch"}
    assert circles({**leaf, "turnwise.a": "from turnwise import leaf", "turnwise.b": "import turnwise.a"}) == []
    inside = "def late():\n    from turnwise.a import Thing"
    assert circles({**leaf, "turnwise.a": "from turnwise import b", "turnwise.b": inside}) == [
        {"turnwise.a", "turnwise.b"}
    ]
    typed = "if TYPE_CHECKING:\n    from turnwise.a import Thing"
    assert circles({**leaf, "turnwise.a": "from turnwise import b", "turnwise.b": typed}) == []
    three = {"turnwise.a": "import turnwise.b", "turnwise.b": "import turnwise.c", "turnwise.c": "import turnwise.a"}
    assert circles({**leaf, **three}) == [set(three)]
