"""Names of players, for shards that work in another directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from turnwise.agents.seating import ModelAgent, Scripted, Seating
from turnwise.config.sections import RayConfig
from turnwise.evaluation.seated import Seated, _described


def elsewhere(**names: Any) -> Seated:
    usual: dict[str, Any] = {**dict.fromkeys(Seated.__dataclass_fields__), "agent": {}}
    return Seated(**{**usual, "usual_opponent": "random", "target": "random", **names})._elsewhere(RayConfig())


def test_folders_get_their_whole_path_and_other_names_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = ("random", "expert", "expert:searching", "openai:small")
    for name in (*names, "self", "runs"):
        Path(name).mkdir()
    for name in names:
        made = elsewhere(target=name, opponent=name, usual_opponent=name)
        assert (made.target, made.opponent, made.usual_opponent) == (name,) * 3, "whatever lies beside"
    whole = str(tmp_path / "runs")
    made = elsewhere(target="runs", opponent="runs", usual_opponent="runs")
    assert (made.target, made.opponent, made.usual_opponent) == (whole,) * 3
    made = elsewhere(target="self", usual_opponent="self")
    assert (made.target, made.opponent, made.usual_opponent) == (str(tmp_path / "self"), None, "self")
    assert elsewhere(opponent="self").opponent == "self"
    assert elsewhere(target="Qwen/Qwen3-0.6B").target == "Qwen/Qwen3-0.6B"


def test_a_second_model_gets_its_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("other").mkdir()

    def named(model: str) -> dict[str, Any]:
        second = {"model": model, "window": 3}
        return {"context": "full", "decoding": {"floor": {"probability": 0.1}, "second": second}}

    assert elsewhere(agent=named("other")).agent == named(str(tmp_path / "other"))
    for kept in (named("Qwen/Qwen3-0.6B"), {}, {"decoding": None}, {"decoding": {"second": None}}):
        assert elsewhere(agent=kept).agent == kept


def test_a_shard_says_which_opponents_it_has() -> None:
    """Models by their weights: those of another machine may have the same name."""
    opponent = ModelAgent.__new__(ModelAgent)
    opponent.adapter_hash, opponent.second = "0123", None
    seating = Seating({"": opponent}, {"second": opponent, "third": Scripted("random", lambda env, seed: None)})
    found = _described(seating)
    assert (found.weights, found.opponents) == ({"": "0123"}, {"measure/second": "0123"})
