"""Where copies begin within a reply, against the released code of CURE."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.golden.vectors import cases
from turnwise.algorithms.within import Choice
from turnwise.trajectory import Task, Trajectory, Turn


def attempts(given: dict[str, Any]) -> list[Trajectory]:
    """An attempt of one turn for each row."""
    made, task = [], Task("golden", "train", 0, "0")
    for entropies, tokens in zip(given["entropy"], given["response_ids"], strict=True):
        ids, nats = np.array(tokens, np.int32), np.array(entropies, np.float32)
        turn = Turn("", np.array([1], np.int32), False, ids, nats, nats, "", "", True, 0.0)
        made.append(Trajectory(str(len(made)), task, 0, len(made), (turn,), "terminated", None, None))
    return made


def text_in(given: dict[str, Any]) -> Any:
    special = set(given["special_ids"])
    return lambda token: "" if token in special else given["vocab"][str(token)]


@pytest.mark.parametrize("case", cases("cure_selection"))
def test_cure_chooses_the_places_of_the_released_code(case: Any) -> None:
    given, official = case["inputs"], case["outputs"]
    made, text = attempts(given), text_in(given)
    for top, sets in official["candidate_set_topk"].items():
        found = [Choice(int(top), text=text)(attempt) for attempt in made]
        assert [sorted(token for _, token in places) for places in found] == sets
        assert {turn for places in found for turn, _ in places} == {0}
    first = [Choice(1, text=text)(attempt) for attempt in made]
    assert [places for places in first] == [[(0, n)] for n in official["argmax_critical_index_top1"]]
