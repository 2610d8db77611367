"""What is written into vLLM's logits, and read from what it reports, is our own draw to the bit."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.models.test_processing import Scripted
from turnwise.models.drawing import Sampling, position_seeds, sample
from turnwise.models.processing import Course, processed
from turnwise.models.vllm.drawn import NUM_TOLD, Drawing, heard, tell

SETTINGS = [
    Sampling(),
    Sampling(temperature=0.7),
    Sampling(temperature=0.0),
    Sampling(top_p=0.8, top_k=20),
    Sampling(temperature=1.3, top_k=3),
]


def reported(logits: Tensor) -> list[tuple[int, Mapping[int, float]]]:
    """As vLLM does: the most probable token of each row, and the highest logits by id."""
    values, ids = logits.topk(NUM_TOLD)
    return [
        (int(row[0]), dict(zip(row.tolist(), of.tolist(), strict=True))) for row, of in zip(ids, values, strict=True)
    ]


def drawn(rows: int = 5, vocab: int = 333) -> Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(rows)) * 3


def test_tokens_log_probs_and_entropies_are_those_of_the_own_rule() -> None:
    logits, positions = drawn(), [0, 3, 1, 7, 31]
    drawings = [Drawing(2**64 - 1 - n, given) for n, given in enumerate(SETTINGS)]
    seeds = [position_seeds(2**64 - 1 - n, 32)[place] for n, place in enumerate(positions)]
    ids, logprobs, entropies = sample(logits.clone(), SETTINGS, seeds)
    tell(logits, range(5), drawings, positions)
    for row, (token, values) in enumerate(reported(logits)):
        assert token == ids[row]
        assert heard(token, values) == (float(logprobs[row]), float(entropies[row]))


def test_rows_of_other_requests_stay_as_they_are() -> None:
    logits = drawn()
    before = logits.clone()
    tell(logits, [3, 1], [Drawing(1, Sampling()), Drawing(2, Sampling())], [0, 0])
    assert torch.equal(logits[[0, 2, 4]], before[[0, 2, 4]])
    alone = before.clone()
    tell(alone, [1], [Drawing(2, Sampling())], [0])
    assert torch.equal(alone[1], logits[1]), "in whatever order they are given"


def test_a_token_without_a_choice_is_told_apart_from_what_describes_it() -> None:
    """Its log-probability and its entropy are 0 both."""
    logits = torch.full((1, 64), -torch.inf)
    logits[0, 63] = 5.0
    tell(logits, [0], [Drawing(1, Sampling())], [0])
    ((token, values),) = reported(logits)
    assert (token, heard(token, values)) == (63, (0.0, 0.0))


def test_a_processor_is_at_work_on_its_reply() -> None:
    """Sets, temperatures and forced tokens; the processor hears each token, and what it took is recorded."""
    script = [Scripted([[7, 11, 40], None, [9]], {1: 1.7}, {3: 12}) for _ in range(2)]
    theirs, ours = (Course(one) for one in script)
    given = Sampling(max_tokens=5)
    drawing, found = Drawing(5, given, ours), []
    for place in range(5):
        logits = drawn(1) + place
        narrowed, settings = processed(logits.clone(), [given], [theirs])
        ids, logprobs, entropies = sample(narrowed, settings, [position_seeds(5, 5)[place]])
        theirs.take(int(ids[0]), float(logprobs[0]), float(entropies[0]))
        tell(logits, [0], [drawing], [place])
        ((token, values),) = reported(logits)
        found.append(token)
        assert (token, heard(token, values)) == (ids[0], (float(logprobs[0]), float(entropies[0])))
    assert script[0].told == script[1].told
    assert found[2:4] == [9, 12]
    first, second = theirs.record(1.0), ours.record(1.0)
    assert first is not None
    assert second is not None
    np.testing.assert_array_equal(first.temperatures, second.temperatures)


def test_a_processor_that_is_asked_twice_for_a_token_is_an_error() -> None:
    drawing = Drawing(5, Sampling(), Course(Scripted([])))
    tell(drawn(1), [0], [drawing], [0])
    with pytest.raises(RuntimeError, match="has seen 1 tokens of a reply that has 0"):
        tell(drawn(1), [0], [drawing], [0])


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_logits_that_are_not_finite_are_told(wrong: float) -> None:
    logits = drawn(2)
    logits[1, 5] = wrong
    tell(logits, [0, 1], [Drawing(1, Sampling()), Drawing(2, Sampling())], [0, 0])
    (first, second) = reported(logits)
    assert heard(*first) is not None
    assert heard(*second) is None


def test_a_drawing_goes_to_another_process_in_words() -> None:
    sent = Drawing(-3, Sampling(0.7, 0.9, 5, 17))
    again = Drawing.of(json.loads(json.dumps(sent.plain())))
    assert again.sampling == sent.sampling
    assert [again.seed(n) for n in range(17)] == [sent.seed(n) for n in range(17)]
    assert Drawing.of(sent) is sent
    for wrong in ([1, 2], "seven", [1, "hot", 1, 1, 1], [1, -1.0, 1, 0, 5]):
        with pytest.raises(ValueError, match="turnwise="):
            Drawing.of(wrong)
