"""Who plays with whom at the terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from tests.agents.test_collector import SAMPLING, collector, tasks
from turnwise.agents.acting import as_player
from turnwise.agents.jobs import Job
from turnwise.agents.scripted import play_episode
from turnwise.agents.seating import Seating
from turnwise.commands.play import play


def test_a_person_may_be_the_opponent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked in the seat that the agent leaves; a typed name is told otherwise."""
    console, asked = Console(file=io.StringIO(), width=100), list[str]()
    monkeypatch.setattr(console, "input", lambda prompt: asked.append(prompt) or "accept")
    play(console, "turnwise/Negotiation-v0", {}, "expert", "train", 0, 0, "human")
    assert asked
    with pytest.raises(ValueError, match="unknown agent 'humn'"):
        play(console, "turnwise/Negotiation-v0", {}, "expert", "train", 0, 0, "humn")


def test_a_model_has_as_many_turns_as_in_an_evaluation() -> None:
    made = collector(max_turns=2)
    (task,) = tasks(1)
    (model,) = made.seating.models
    played, *_ = play_episode(made.make_env(), Seating({"": as_player(model)}), Job(task))
    (evaluated,) = made.collect([Job(task)], SAMPLING)
    for episode in (played, evaluated):
        assert (len(episode.turns), episode.end, episode.end_reason) == (2, "truncated", "max_turns")
