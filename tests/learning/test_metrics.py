"""What an update counts and reports."""

from __future__ import annotations

import math

import torch

from turnwise.learning.metrics import Agreement, Occurrences, Tally


def test_occurrences_add_up_until_they_are_taken() -> None:
    found = Occurrences()
    found.count("share", 1.0, 4.0)
    found.count("share", torch.tensor([True, True, False]), torch.tensor([True, True, True]))
    found.count("never", 0.0, 0.0)
    assert found.take() == {"share": 3.0 / 7.0, "never": 0.0}
    assert found.take() == {}


def test_agreement_of_few_tokens() -> None:
    assert Agreement.of(torch.zeros(0)) == Agreement(0.0, 0.0, 0.0, 0)
    assert Agreement.of(torch.tensor([0.5])) == Agreement(0.5, 0.5, 0.5, 1)
    hundred = torch.arange(1.0, 101.0)
    assert Agreement.of(hundred.flip(0)) == Agreement(100.0, 50.5, 99.0, 100)  # 99 of 100 do not exceed 99
    assert Agreement.of(torch.arange(1.0, 102.0)).p99 == 100.0
    assert Agreement.of(torch.arange(1.0, 51.0)).p99 == 50.0


def test_a_tally_means_over_steps_and_tokens() -> None:
    tally = Tally()
    assert (tally.per_token("ratio"), tally.per_step("loss")) == (None, 0.0)
    tally.add(ratio=6.0, tokens=4.0)
    tally.add(ratio=2.0, tokens=0.0, loss=3.0)
    assert (tally.per_token("ratio"), tally.per_step("loss")) == (2.0, 3.0)
    for norm in (1.0, math.inf, math.nan, 2.0):
        tally.count_step(norm)
    assert (tally.steps, tally.skipped) == (2, 2)
    assert tally.per_step("loss") == 0.75
    empty = Tally()
    empty.add(ratio=0.0, tokens=0.0)
    assert empty.per_token("ratio") == 0.0


def test_occurrences_begin_anew_and_divide_by_their_opportunities() -> None:
    counter = Occurrences()
    counter.count("share", 1.0)
    counter.count("share", torch.tensor([True, True, False]), 3)
    counter.count("none", 5.0, 0.0)
    assert counter.take() == {"share": 0.75, "none": 0.0}
    assert counter.take() == {}
