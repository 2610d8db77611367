"""The table of who may import whom (docs/architecture.md). Whatever is not allowed here fails: change both together."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_import_circles import imports, sources

ROOT = Path(__file__).parent.parent

LEAVES = {
    *("cache", "childprocess", "clock", "errors", "heat", "jsonfile", "moved", "prefixes", "registration", "seeds"),
    *("statistics", "svg", "trajectory"),
}
"""They import nothing of ours."""

ALLOWED: dict[str, set[str]] = {
    "envs": {"cache", "childprocess", "errors", "heat", "registration", "seeds", "trajectory"},
    "models": {"cache", "childprocess", "clock", "errors", "heat", "prefixes", "seeds", "trajectory"},
    "agents": {"clock", "envs", "errors", "heat", "models", "seeds", "trajectory"},
    "grading": {"agents", "errors", "statistics", "trajectory"},
    "replay": {"prefixes", "trajectory"},
    "learning": {"clock", "errors", "heat", "replay", "trajectory"},
    "algorithms": {"errors", "heat", "learning", "replay", "seeds", "trajectory"},
    "monitoring": {"errors", "grading", "trajectory"},
    "cloning": {"agents", "cache", "envs", "errors", "models", "replay", "seeds", "trajectory"},
    "config": {
        *("agents", "algorithms", "cloning", "envs", "errors", "grading", "heat", "learning", "models"),
        *("monitoring", "moved"),
    },
    "runs": {
        *("turnwise", "agents", "config", "envs", "errors", "grading", "jsonfile", "models", "replay", "statistics"),
        "trajectory",
    },
    # What a measurement is, apart from whole evaluations: training measures too.
    "evaluation.report": {"agents", "envs", "grading", "jsonfile", "statistics", "trajectory"},
    "evaluation.playing": {"agents", "evaluation.report", "models", "trajectory"},
    "training": {
        *("agents", "clock", "cloning", "config", "envs", "errors", "evaluation.playing", "evaluation.report"),
        *("grading", "learning", "models", "monitoring", "replay", "runs", "seeds", "trajectory"),
    },
    "shards": {"turnwise", "agents", "childprocess", "clock", "errors", "models", "training", "trajectory"},
    "assembly": {
        *("turnwise", "agents", "algorithms", "cloning", "config", "envs", "evaluation.playing", "grading"),
        *("jsonfile", "learning", "models", "monitoring", "replay", "runs", "seeds", "shards", "training"),
        "trajectory",
    },
    "evaluation": {
        *("turnwise", "agents", "assembly", "cloning", "config", "envs", "errors", "evaluation.playing"),
        *("evaluation.report", "grading", "jsonfile", "models", "monitoring", "replay", "runs", "shards"),
        *("statistics", "svg", "trajectory"),
    },
    "jobs": {
        *("agents", "algorithms", "assembly", "cloning", "config", "errors", "evaluation.report", "jsonfile"),
        *("models", "monitoring", "runs", "statistics", "training"),
    },
    "view": {
        *("agents", "algorithms", "config", "evaluation", "evaluation.report", "jsonfile", "learning", "models"),
        *("replay", "runs", "statistics", "trajectory"),
    },
    "bench": {
        *("agents", "algorithms", "assembly", "clock", "config", "learning", "models", "replay", "runs", "training"),
        "trajectory",
    },
    "commands": {
        *("agents", "algorithms", "assembly", "bench", "clock", "cloning", "config", "envs", "errors", "evaluation"),
        *("evaluation.report", "grading", "jobs", "models", "runs", "statistics", "training", "trajectory", "view"),
    },
    "api": {
        *("agents", "algorithms", "assembly", "commands", "config", "envs", "evaluation", "evaluation.report", "jobs"),
        *("learning", "models", "runs", "training"),
    },
    "cli": {"turnwise", "commands", "config", "errors", "evaluation", "jobs", "models", "runs", "training"},
    "turnwise": {"moved", "registration"},
}
"""Part -> the parts of ours that it may import, besides itself. Lower parts come first."""

WITHOUT_TORCH = LEAVES | {"envs", "config"}
"""Parts that import neither torch nor transformers."""

IO_MODULES = {"io", "os", "pathlib", "shutil", "subprocess", "socket", "tempfile", "safetensors", "yaml"}
IO_CALLS = {
    *("open", "print", "input", "save", "load", "torch.save", "torch.load"),
    *("numpy.save", "np.save", "np.load"),
}
PURE = {"algorithms", "learning"}
"""Parts without input or output."""


def part_of(module: str) -> str:
    """``turnwise.agents.prompts`` -> ``agents``; a module that the table lists by itself is a part."""
    inside = module.removeprefix("turnwise").lstrip(".")
    return inside if inside in ALLOWED else inside.split(".")[0] or "turnwise"


def violations(module: str, source: str) -> set[str]:
    """What a module imports, or calls, and may not."""
    part, modules = part_of(module), {**sources(), module: source}
    allowed = ALLOWED.get(part, set()) | {part}
    found = {other for other in map(part_of, imports(source, modules)) if other not in allowed}
    outside = foreign(source)
    found |= outside & {"scripts", "tests", "benchmarks"}
    if part in WITHOUT_TORCH:
        found |= outside & {"torch", "transformers", "peft"}
    if part in PURE:
        calls = {ast.unparse(n.func) for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Call)}
        found |= (outside & IO_MODULES) | (calls & IO_CALLS)
    return found


def foreign(source: str) -> set[str]:
    """Top-level names of packages that are not ours."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide what the table is about"
            found.add(str(node.module).split(".")[0])
    return found - {"turnwise"}


def test_every_import_is_allowed_by_the_table() -> None:
    bad = {module: found for module, source in sources().items() if (found := violations(module, source))}
    assert not bad


def test_every_part_is_in_the_table() -> None:
    parts = {part_of(module) for module in sources()}
    assert parts == LEAVES | ALLOWED.keys()


def test_the_table_has_an_order() -> None:
    """No part may import one that comes after it."""
    seen = set(LEAVES) | {"turnwise"}
    for part, allowed in ALLOWED.items():
        assert allowed <= seen, part
        seen.add(part)


PLANTED = [
    ("turnwise.envs.tasks", "from turnwise.training.trainer import Trainer", "training"),
    ("turnwise.algorithms.grpo", "from turnwise.evaluation.report import Report", "evaluation.report"),
    ("turnwise.agents.episode", "def f():\n    from turnwise.commands import play", "commands"),
    ("turnwise.trajectory", "import turnwise.config.schema", "config"),
    ("turnwise.replay.store", "from turnwise.training import trainer", "training"),
    ("turnwise.algorithms.epo", "from turnwise.models.policy import Policy", "models"),
    ("turnwise.learning.parts", "from turnwise.algorithms.common import PPOClip", "algorithms"),
    ("turnwise.models.engine", "from turnwise.agents.episode import Episode", "agents"),
    ("turnwise.config.schema", "from turnwise.assembly.run import Assembly", "assembly"),
    ("turnwise.runs.directory", "import turnwise.jobs as j", "jobs"),
    ("turnwise.monitoring.watchdog", "from turnwise.training.faults import storage", "training"),
    ("turnwise.training.trainer", "from turnwise.assembly import run", "assembly"),
    ("turnwise.evaluation.report", "from turnwise.evaluation.compare import compare", "evaluation"),
    ("turnwise.assembly.run", "from turnwise.jobs import train", "jobs"),
    ("turnwise.seeds", "from turnwise.trajectory import Task", "trajectory"),
    ("turnwise.envs.interface", "import torch.nn", "torch"),
    ("turnwise.config.files", "from transformers import AutoConfig", "transformers"),
    ("turnwise.learning.learner", "import torch\ntorch.save(1, 'x')", "torch.save"),
    ("turnwise.training.side", "from scripts import train", "scripts"),
    ("turnwise.newpart.thing", "import turnwise.trajectory", "trajectory"),
]


@pytest.mark.parametrize(("module", "source", "found"), PLANTED)
def test_a_planted_import_is_caught(module: str, source: str, found: str) -> None:
    assert violations(module, source) == {found}


def test_what_is_allowed_passes() -> None:
    assert violations("turnwise.training.side", "from turnwise.learning.learner import Learner\nimport torch") == set()


@pytest.mark.parametrize(
    "modules",
    [
        "turnwise.config.schema, turnwise.config.files, turnwise.config.names",
        "turnwise, turnwise.envs, turnwise.envs.tasks, turnwise.envs.settings",
        "turnwise.cli, turnwise.commands.worlds, turnwise.commands.runs, turnwise.commands.plan",
        "turnwise.algorithms.registry, turnwise.learning.settings",
    ],
)
def test_reading_settings_and_asking_for_help_load_no_torch(modules: str) -> None:
    """A process that loads torch takes two CPU seconds before it says anything."""
    script = f"import sys, {modules}\nprint([m for m in ('torch', 'transformers', 'peft') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_the_run_configuration_is_named_by_few() -> None:
    """Everything else takes objects and single sections of it."""
    naming = {module for module, source in sources().items() if "RunConfig" in source}
    assert naming == {
        *("turnwise.config.schema", "turnwise.config.files", "turnwise.runs.directory", "turnwise.assembly.run"),
        *("turnwise.assembly.settling", "turnwise.jobs", "turnwise.api"),
    }


@pytest.mark.parametrize(
    "words", ["--help", "--version", "train --help", "evaluate --help", "configs", "settings rewards"]
)
def test_commands_that_train_nothing_load_no_torch(words: str) -> None:
    script = (
        "import sys\nfrom turnwise.cli import app\n"
        f"try: app({words.split()!r})\nexcept SystemExit as left: assert not left.code, left.code\n"
        "print([m for m in ('torch', 'transformers', 'peft') if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stderr.strip() == "[]", done.stderr
