"""The table of who may import whom (docs/architecture.md). Change the table and this test together."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent
EVERYTHING = {"trajectory", "envs", "agents", "replay", "algorithms", "statistics", "torch", "transformers"}
FORBIDDEN: dict[str, set[str]] = {
    "trajectory": EVERYTHING - {"trajectory"},
    "statistics": EVERYTHING - {"statistics"},
    "envs": EVERYTHING - {"trajectory", "envs"},
    "agents": {"replay", "algorithms", "statistics"},
    "replay": {"envs", "agents", "algorithms", "statistics", "transformers"},
    "algorithms": {"envs", "agents", "statistics", "transformers"},
}
IO_MODULES = {"io", "os", "pathlib", "shutil", "subprocess", "socket", "tempfile", "safetensors", "yaml"}
IO_CALLS = {
    "open",
    "print",
    "input",
    "save",
    "load",
    "torch.save",
    "torch.load",
    "numpy.save",
    "np.save",
    "np.load",
}


def imports(source: str) -> set[str]:
    """What a module imports: our parts by their name inside turnwise, others by their top-level name."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide what the table is about"
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return {name.removeprefix("turnwise.").split(".")[0] for name in found}


def violations(part: str, source: str) -> set[str]:
    found = imports(source) & (FORBIDDEN.get(part, set()) | {"scripts"})
    if part == "algorithms":
        calls = {ast.unparse(n.func) for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Call)}
        found |= (imports(source) & IO_MODULES) | (calls & IO_CALLS)
    return found


def test_every_import_is_allowed_by_the_table() -> None:
    files = sorted((ROOT / "turnwise").rglob("*.py"))
    assert files
    bad = {}
    for file in files:
        part = file.relative_to(ROOT / "turnwise").parts[0].removesuffix(".py")
        if found := violations(part, file.read_text()):
            bad[str(file.relative_to(ROOT))] = found
    assert not bad


def test_a_planted_violation_is_caught() -> None:
    assert violations("algorithms", "from turnwise.models.policy import Policy") == {"agents"}
    assert violations("algorithms", "def f():\n    from turnwise import envs") == {"envs"}
    assert violations("algorithms", "import torch\ntorch.save(1, 'x')") == {"torch.save"}
    assert violations("agents", "import turnwise.replay.batch as b") == {"replay"}
    assert violations("envs", "import torch.nn") == {"torch"}
    assert violations("train", "from scripts import train") == {"scripts"}
    assert violations("train", "from turnwise.learning.learner import Learner") == set()
