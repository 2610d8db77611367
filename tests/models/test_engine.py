"""The engine samples what a plain full forward would, whatever happens around a slot."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from tests.models import tiny_model, tokenizer
from turnwise.models.cache import SlotCache
from turnwise.models.drawing import LogitsError
from turnwise.models.engine import Sampling, SlotEngine
from turnwise.prefixes import common_prefix


def engine(model: Any, slots: int = 4, end_ids: frozenset[int] = frozenset(), max_length: int = 512) -> SlotEngine:
    return SlotEngine(model, num_slots=slots, max_length=max_length, end_ids=end_ids)


def prompt(rng: np.random.Generator, size: int) -> np.ndarray:
    return rng.integers(5, len(tokenizer()), size).astype(np.int32)


def full_logprobs(model: Any, stream: list[int]) -> np.ndarray:
    """Log-probs of each token (from the second) by transformers' own attention, no cache, no plan."""
    with torch.no_grad():
        logits = model(torch.tensor([stream])).logits[0].float()
    return torch.log_softmax(logits, -1)[:-1].gather(-1, torch.tensor(stream)[1:, None])[:, 0].numpy()


def full_entropies(model: Any, stream: list[int]) -> np.ndarray:
    with torch.no_grad():
        logprobs = torch.log_softmax(model(torch.tensor([stream])).logits[0].float(), -1)
    return -(logprobs.exp() * logprobs).sum(-1)[:-1].numpy()


def play(
    made: SlotEngine, seed: int, num: int, turns: int, forks: bool = False
) -> list[tuple[list[int], dict[int, tuple[float, float]]]]:
    """Ragged conversations on all slots: (token stream, position -> (log-prob, entropy) of sampled tokens)."""
    rng = np.random.default_rng(seed)
    live: dict[int, tuple[list[int], dict[int, tuple[float, float]], int]] = {}
    done, waiting = [], num

    def ask(slot: int, stream: list[int], fresh: bool) -> None:
        ids = prompt(rng, int(rng.integers(1, 30)))
        stream.extend(ids.tolist())
        made.submit(
            slot,
            ids,
            fresh=fresh,
            key=int(rng.integers(1 << 40)),
            sampling=Sampling(max_tokens=int(rng.integers(1, 9))),
        )

    while waiting or live:
        while waiting and made.num_free:
            waiting -= 1
            slot = made.open()
            live[slot] = ([], {}, 0)
            ask(slot, live[slot][0], True)
        for reply in made.step():
            stream, seen, turn = live.pop(reply.slot)
            for token, logprob, entropy in zip(reply.ids, reply.logprobs, reply.entropies, strict=True):
                seen[len(stream)] = (float(logprob), float(entropy))
                stream.append(int(token))
            if turn + 1 == turns:
                done.append((stream, seen))
                made.close(reply.slot)
                continue
            if forks and made.num_free and rng.random() < 0.4:
                copy = made.fork(reply.slot)
                live[copy] = (list(stream), dict(seen), turn + 1)
                ask(copy, live[copy][0], False)
            live[reply.slot] = (stream, seen, turn + 1)
            ask(reply.slot, stream, False)
    return done


@pytest.mark.parametrize("forks", [False, True])
@pytest.mark.parametrize("slots", [1, 3, 7])
def test_logprobs_and_entropies_equal_a_fresh_full_forward(slots: int, forks: bool) -> None:
    model = tiny_model()
    check(model, play(engine(model, slots), seed=slots, num=9, turns=4, forks=forks))


def check(model: Any, played: list[tuple[list[int], dict[int, tuple[float, float]]]]) -> None:
    assert len(played) >= 9
    for stream, seen in played:
        logprobs, entropies = full_logprobs(model, stream), full_entropies(model, stream)
        for position, (logprob, entropy) in seen.items():
            assert abs(logprobs[position - 1] - logprob) < 1e-4
            assert abs(entropies[position - 1] - entropy) < 1e-4


def sample_alone(model: Any, ids: np.ndarray, key: int, slots: int, company: int) -> list[int]:
    """One reply, with ``company`` other slots talking at the same time."""
    made, rng = engine(model, slots), np.random.default_rng(company)
    for number in range(company):
        made.submit(made.open(), prompt(rng, 5 + 7 * number), fresh=True, key=number, sampling=Sampling(max_tokens=20))
    slot = made.open()
    made.submit(slot, ids, fresh=True, key=key, sampling=Sampling(max_tokens=12))
    while True:
        for reply in made.step():
            if reply.slot == slot:
                return reply.ids.tolist()


def test_a_reply_depends_on_its_key_and_not_on_its_neighbours() -> None:
    model, ids = tiny_model(), prompt(np.random.default_rng(0), 11)
    alone = sample_alone(model, ids, 7, slots=1, company=0)
    assert sample_alone(model, ids, 7, slots=6, company=4) == alone
    assert sample_alone(model, ids, 8, slots=1, company=0) != alone


def test_slots_take_memory_once_they_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many rows as episodes at once, however many slots there may be; what they sample is the same to the bit."""
    rows, resize = [], SlotCache._resize

    def seen(cache: SlotCache, num: int, capacity: int) -> None:
        rows.append(num)
        resize(cache, num, capacity)

    monkeypatch.setattr(SlotCache, "_resize", seen)
    model = tiny_model()
    assert play(engine(model, 3), 5, num=3, turns=3) == play(engine(model, 64), 5, num=3, turns=3)
    assert set(rows) == {0, 3}
    rows.clear()
    play(engine(model, 64), 6, num=9, turns=2, forks=True)
    assert 9 < max(rows) < 64
    assert sum(more > less for less, more in pairwise(rows)) < 9, "a copy of everything for every fork"


def test_a_fork_continues_as_the_original_would() -> None:
    model = tiny_model()
    made, rng = engine(model), np.random.default_rng(3)
    slot = made.open()
    made.submit(slot, prompt(rng, 9), fresh=True, key=1, sampling=Sampling(max_tokens=5))
    while not made.step():
        pass
    copy, ids = made.fork(slot), prompt(rng, 4)
    for handle in (slot, copy):
        made.submit(handle, ids, fresh=False, key=2, sampling=Sampling(max_tokens=6))
    replies = {}
    while len(replies) < 2:
        replies |= {reply.slot: reply for reply in made.step()}
    assert replies[slot].ids.tolist() == replies[copy].ids.tolist()
    np.testing.assert_allclose(replies[slot].logprobs, replies[copy].logprobs, atol=1e-5)


def test_a_fresh_context_reuses_the_prefix_it_shares() -> None:
    model = tiny_model()
    made, rng = engine(model), np.random.default_rng(4)
    shared, slot = prompt(rng, 30), made.open()
    made.submit(
        slot, np.concatenate([shared, np.full(5, 9, np.int32)]), fresh=True, key=1, sampling=Sampling(max_tokens=3)
    )
    while not made.step():
        pass
    before = made.counts.prefill_tokens
    second = np.concatenate([shared, np.full(6, 10, np.int32)])
    made.submit(slot, second, fresh=True, key=2, sampling=Sampling(max_tokens=3))
    replies = []
    while not replies:
        replies = made.step()
    assert made.counts.prefill_tokens - before == 6
    stream = [*second.tolist(), *replies[0].ids.tolist()]
    np.testing.assert_allclose(replies[0].logprobs, full_logprobs(model, stream)[len(second) - 1 :], atol=1e-4)


def test_an_end_token_ends_the_reply() -> None:
    model = tiny_model()
    every_token = frozenset(range(len(tokenizer())))
    made = engine(model, end_ids=every_token)
    made.submit(made.open(), np.array([6, 7], np.int32), fresh=True, key=0, sampling=Sampling(max_tokens=9))
    (reply,) = made.step()
    assert len(reply.ids) == 1
    assert reply.ended


def test_greedy_is_the_most_probable_token() -> None:
    model = tiny_model()
    made, ids = engine(model), prompt(np.random.default_rng(5), 8)
    made.submit(made.open(), ids, fresh=True, key=0, sampling=Sampling(temperature=0.0, max_tokens=1))
    (reply,) = made.step()
    with torch.no_grad():
        best = model(torch.from_numpy(ids.astype(np.int64))[None]).logits[0, -1].argmax()
    assert reply.ids[0] == int(best)


def test_temperature_shapes_draws_logprobs_and_entropies() -> None:
    model, ids = tiny_model(), prompt(np.random.default_rng(6), 8)
    made = engine(model)
    made.submit(made.open(), ids, fresh=True, key=0, sampling=Sampling(temperature=0.5, max_tokens=1))
    (reply,) = made.step()
    with torch.no_grad():
        sharper = torch.log_softmax(model(torch.from_numpy(ids.astype(np.int64))[None]).logits[0, -1] / 0.5, -1)
    assert abs(float(sharper[reply.ids[0]]) - float(reply.logprobs[0])) < 1e-4
    assert abs(float(-(sharper.exp() * sharper).sum()) - float(reply.entropies[0])) < 1e-4


def test_limits_are_errors_that_explain_themselves() -> None:
    made = engine(tiny_model(), slots=1, max_length=16)
    slot = made.open()
    with pytest.raises(RuntimeError, match="all 1 slots"):
        made.open()
    with pytest.raises(ValueError, match="exceeds the engine's max_length 16"):
        made.submit(slot, np.arange(10, dtype=np.int32), fresh=True, key=0, sampling=Sampling(max_tokens=10))


def test_common_prefix() -> None:
    assert common_prefix(np.array([1, 2, 3]), np.array([1, 2, 4, 5])) == 2
    assert common_prefix(np.array([], int), np.array([1])) == 0
    assert common_prefix(np.array([1, 2]), np.array([1, 2])) == 2


def test_contexts_that_begin_alike_are_computed_once() -> None:
    """Together, and later from one that is still there; exact, and one token of each is always fed."""
    model, rng = tiny_model(), np.random.default_rng(0)
    made, common = engine(model, 6), prompt(rng, 40)
    prompts = [np.concatenate([common, prompt(rng, 25)]) for _ in range(4)]
    prompts[1], prompts[3] = prompts[0], prompts[2]
    replies, asked = {}, {}

    def ask(ids: np.ndarray) -> None:
        slot = made.open()
        asked[slot] = ids
        made.submit(slot, ids, fresh=True, key=slot, sampling=Sampling(max_tokens=4))

    def finish() -> None:
        while len(replies) < len(asked):
            for reply in made.step():
                replies[reply.slot] = reply

    for ids in prompts:
        ask(ids)
    finish()
    assert made.counts.prefill_tokens == 65 + 25
    assert made.counts.reused_tokens == 40 + 2 * 64
    made.close(0)
    ask(np.concatenate([common, prompt(rng, 30)]))
    ask(prompt(rng, 30))
    finish()
    assert made.counts.prefill_tokens == 65 + 25 + 30 + 30
    for slot, ids in asked.items():
        stream = [*ids.tolist(), *replies[slot].ids.tolist()]
        np.testing.assert_allclose(full_logprobs(model, stream)[len(ids) - 1 :], replies[slot].logprobs, atol=1e-4)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_an_error_that_names_the_slot(temperature: float) -> None:
    """In the very turn in which they come up; other slots of the step do not hide it."""
    model, rng = tiny_model(), np.random.default_rng(0)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())  # no longer the embeddings
    made = engine(model)
    sound, broken = made.open(), made.open()
    sampling = Sampling(temperature=temperature, max_tokens=3)
    made.submit(sound, np.full(4, 7, np.int32), fresh=True, key=0, sampling=sampling)
    with torch.no_grad():
        model.get_input_embeddings().weight[9] = torch.nan
    made.submit(broken, np.array([8, 9, 8], np.int32), fresh=True, key=1, sampling=sampling)
    with pytest.raises(
        LogitsError, match=r"nan or infinite at token 1 of a reply .*float32.*Check the dtype"
    ) as raised:
        made.step()
    assert raised.value.slot == broken
    made.close(broken)
    with torch.no_grad():
        model.get_input_embeddings().weight[9] = 0.0
        model.lm_head.weight[3] = torch.inf
    made.submit(made.open(), prompt(rng, 5), fresh=True, key=1, sampling=sampling)
    with pytest.raises(LogitsError, match="nan or infinite"):
        made.step()
