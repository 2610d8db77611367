"""The benchmark of playing ahead: which runs it makes, and that a file is of one world."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks.ahead import ARMS, WORLDS, learning_config, main


@pytest.mark.parametrize("world", WORLDS)
def test_every_arm_is_a_run_of_the_learning_benchmark(world: str) -> None:
    made = {arm: learning_config(world, 1, arm, 5) for arm in ARMS}
    assert {config.env.id.removeprefix("turnwise/").lower() for config in made.values()} == {f"{world}-v0"}
    assert [config.rollout.ahead for config in made.values()] == [0, 1, 4, 1, 4]
    assert {(config.num_updates, config.max_sampled_tokens, config.seed) for config in made.values()} == {(5, None, 1)}
    alike = [config.model_dump(exclude={"rollout", "stale"}) for config in made.values()]
    assert all(each == alike[0] for each in alike)


def test_a_file_is_of_one_world(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "ahead.json"
    out.write_text(json.dumps({"world": "household", "learning": [], "overlap": []}))
    words = ["ahead.py", "learning", "--world", "alfworld", "--runs", str(tmp_path), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit):
        main()
    assert "is of household: give alfworld a file of its own" in capsys.readouterr().err
