"""HAPO's temperature against the released sampler's."""

from __future__ import annotations

from typing import Any

import pytest

from tests.golden.vectors import cases, close, tensor
from turnwise.agents.rules import Acted, HeatRule
from turnwise.heat import Heat, Spread


@pytest.mark.parametrize("case", cases("hapo_temperature"))
def test_hapo_temperature(case: dict[str, Any]) -> None:
    """Its last two numbers are the reciprocals of the largest and the smallest z = (e - median) / std."""
    given = case["inputs"]
    median, std, above, below = given["stats"]
    spread = Spread(median, std / above, std / -below)
    rule = HeatRule(Heat(spread, given["tau"], "released"), Acted())
    made = [rule.temperature(row, given["temperature"]) for row in tensor(given["logits"])]
    close(tensor(made), case["outputs"]["dynamic_temperature"])
    meant = HeatRule(Heat(spread, given["tau"]), Acted())
    unsure = tensor([meant.temperature(row, given["temperature"]) for row in tensor(given["logits"])])
    assert ((unsure < 1) | (unsure == tensor(made))).all(), "as meant, sure tokens are drawn cooler, and no others"
    assert (unsure < 1).any()
