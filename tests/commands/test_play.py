"""Who plays with whom at the terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from turnwise.commands.play import play


def test_a_person_may_be_the_opponent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked in the seat that the agent leaves; a typed name is told otherwise."""
    console, asked = Console(file=io.StringIO(), width=100), list[str]()
    monkeypatch.setattr(console, "input", lambda prompt: asked.append(prompt) or "accept")
    play(console, "turnwise/Negotiation-v0", {}, "expert", "train", 0, 0, "human")
    assert asked
    with pytest.raises(ValueError, match="unknown agent 'humn'"):
        play(console, "turnwise/Negotiation-v0", {}, "expert", "train", 0, 0, "humn")
