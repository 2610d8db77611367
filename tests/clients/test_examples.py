"""The example programs do what they say, with each library."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.dictation import played
from turnwise.envs.said import Call, Said

pytestmark = pytest.mark.slow
EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(autouse=True)
def _found(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    pytest.importorskip("openai")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield
    for name in ("my_agent", "shop"):
        sys.modules.pop(name, None)


def buys(context: str) -> Said:
    """What a good buyer says: it looks for the thing and puts it into the cart; and first makes a mistake."""
    if "in the cart" in context:
        return Said("Done.")
    if "Aro red mug" in context:
        return Said("", (Call("add", {"name": "Aro red mug"}),))
    return Said("", (Call("find", {"query": "red mug"}), Call("add", {"name": "no such thing"})))


@pytest.mark.parametrize(("program", "library"), [("agent", "openai"), ("graph", "langgraph"), ("sdk", "agents")])
def test_a_program_of_the_examples(program: str, library: str) -> None:
    pytest.importorskip(library)
    rows = [json.loads(line) for line in (EXAMPLES / "shop.jsonl").read_text().splitlines()]
    mug = next(row for row in rows if row["want"] == ["Aro red mug"])
    found, largest = played(f"my_agent:{program}", buys, rows=[{**mug, "id": n, "type": str(n)} for n in range(30)])
    assert largest < 1e-4
    for each in found:
        assert (each.end, each.total_reward) == ("terminated", 1.0)
        assert [turn.continues for turn in each.turns] == [False, True, True]


def test_the_example_as_a_command() -> None:
    def buys_at_once(context: str) -> Said:
        return Said("", (Call("add", {"name": "Aro red mug"}),))

    rows = [{"question": "a red mug", "want": ["Aro red mug"], "n": n} for n in range(30)]
    command = f"{sys.executable} {EXAMPLES / 'my_agent.py'}"
    found, largest = played(command, buys_at_once, rows=rows, env=["PYTHONPATH"])
    assert largest < 1e-4
    assert [each.total_reward for each in found] == [1.0, 1.0]
