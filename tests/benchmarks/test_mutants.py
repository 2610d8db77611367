"""The mutation benchmark: what it changes, how mutants are called, and how it judges them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[2] / "benchmarks" / "mutants"

CODE = '''"""A module."""

from __future__ import annotations

LIMIT: int = 3


def total(values: list[float], least: float = 0.5) -> float:
    """Sum of what exceeds ``least``."""
    assert least >= 0.0
    found = 0.0
    for value in values[1:]:
        if value > least and not value == 7.0:
            found += value * 2.0
    if found > 100.0:
        raise ValueError(f"too much: {found + 1}")
    return max(found, 0.25)


def idle(number: int) -> int:
    """Counts down; nobody asks for it."""
    while number > 0:
        number -= 1
    return number


def unused(number: int) -> int:
    return number + 1
'''
TESTS = """
from turnwise.part import LIMIT, idle, total


def test_total():
    assert total([9.0, 1.0, 0.0]) == 2.0


def test_total_of_nothing():
    assert total([1.0]) == 0.25


def test_limit():
    assert 0 < LIMIT < 10


def test_idle():
    assert idle(2) <= 0
"""


def run(code: str, *words: str) -> Any:
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False, cwd=HERE)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


LISTED = """
import dataclasses, json, pathlib, sys
from operators import mutants, mutated
root = pathlib.Path(sys.argv[1])
path = root / "turnwise" / "part.py"
found = mutants(path, root)
for mutant in found:
    compile(mutated(path, root, mutant.key), "part", "exec")
print(json.dumps([{"key": mutant.key, **dataclasses.asdict(mutant)} for mutant in found]))
"""


def project(folder: Path, code: str = CODE) -> Path:
    for name, text in {"turnwise/__init__.py": "", "turnwise/part.py": code, "tests/test_part.py": TESTS}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_what_is_changed_and_what_is_left_alone(tmp_path: Path) -> None:
    found = run(LISTED, str(project(tmp_path)))
    changes = {(mutant["before"], mutant["after"]) for mutant in found}
    condition = "if value > least and (not value == 7.0):"
    for before, after in [
        ("LIMIT: int = 3", "LIMIT: int = 4"),
        ("for value in values[1:]:", "for value in values[2:]:"),
        ("for value in values[1:]:", "for value in values[:]:"),
        (condition, "if value >= least and (not value == 7.0):"),
        (condition, "if value > least or not value == 7.0:"),
        (condition, "if value > least:"),
        (condition, "if value > least and value == 7.0:"),
        ("found += value * 2.0", "found = value * 2.0"),
        ("found += value * 2.0", "found += value / 2.0"),
        ("found += value * 2.0", "found += value * 4.0"),
        ("return max(found, 0.25)", "return min(found, 0.25)"),
        ("return max(found, 0.25)", "return None"),
        ("number -= 1", "number += 1"),
    ]:
        assert (before, after) in changes
    for mutant in found:
        assert not mutant["before"].startswith(("assert", '"""'))
        assert "found - 1" not in mutant["after"]  # an error's message
    assert len({mutant["key"] for mutant in found}) == len(found)


def test_a_mutant_keeps_its_name_when_lines_are_added_above(tmp_path: Path) -> None:
    before = run(LISTED, str(project(tmp_path / "a")))
    longer = CODE.replace("LIMIT: int = 3", "FIRST = [2]\n\nLIMIT: int = 3")
    after = {mutant["key"]: mutant for mutant in run(LISTED, str(project(tmp_path / "b", longer)))}
    assert all(mutant["key"] in after for mutant in before)
    assert all(after[mutant["key"]]["line"] == mutant["line"] + 2 for mutant in before)


JUDGED = """
import json, pathlib, sys
import trials
from operators import mutants
trials.SLACK_S = 1.0
root = pathlib.Path(sys.argv[1])
tests = trials.measured(root, ["tests"], ["turnwise"], "not slow", 60.0)
found = {}
for mutant in mutants(root / "turnwise" / "part.py", root):
    if mutant.before in ("found += value * 2.0", "number -= 1", "LIMIT: int = 3", "return number + 1"):
        outcome = trials.tried(root, mutant, trials.reaching(mutant, tests), 30.0)
        found[mutant.after] = [outcome.verdict, outcome.by, outcome.reaching]
print(json.dumps(found))
"""


def test_verdicts(tmp_path: Path) -> None:
    found = run(JUDGED, str(project(tmp_path)))
    total, limit, idle = (f"tests/test_part.py::test_{name}" for name in ("total", "limit", "idle"))
    assert found["found += value / 2.0"] == ["killed", total, 2]
    assert found["found = value * 2.0"] == ["survived", "", 2]  # one value alone exceeds the least
    assert found["number += 1"] == ["killed", "no end", 1]
    assert found["number -= 2"] == ["survived", "", 1]
    assert found["LIMIT: int = 0"] == ["killed", limit, 4]  # made at import: every test may notice
    assert found["return number - 1"] == ["unreached", "", 0]
    assert idle not in str(found)


def test_equivalents_have_reasons() -> None:
    entries = json.loads((HERE / "equivalents.json").read_text())["mutants"]
    assert all(len(entry["key"]) == 12 and len(entry["reason"]) > 20 for entry in entries)
    assert len({entry["key"] for entry in entries}) == len(entries)
