"""The draw: the softmax's probabilities, the same token wherever and in whatever company, one definition for good."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from turnwise.models.drawing import (
    Sampling,
    draw,
    exponentials,
    numbers,
    other_draw,
    position_seeds,
    sample,
    truncated,
)

WORD = 2**64


def splitmix(seed: int, place: int) -> int:
    """S of the definition, by Python's whole numbers."""
    z = (seed + (place + 1) * 0x9E3779B97F4A7C15) % WORD
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % WORD
    return z ^ (z >> 31)


def exponential(bits: int) -> float:
    return -math.log1p(-((bits >> 12) + 0.5) / 2**52)


def noise(key: int, position: int, token: int) -> float:
    """E of the definition, one token at a time."""
    seed = splitmix(key, position)
    block = splitmix(seed, -1 - token // 64)
    more = 0.0 if token % 64 == block % 64 else exponential(splitmix(seed, token))
    return exponential(block) / 64 + more


def keyed(keys: Sequence[int], positions: Sequence[int]) -> Tensor:
    return torch.tensor([position_seeds(k, p + 1)[p] for k, p in zip(keys, positions, strict=True)])


def all_noise(seeds: Tensor, size: int) -> np.ndarray:
    """E of tokens [0, size) for each seed [R]: the definition again, many tokens at a time."""
    state = seeds.numpy().astype(np.uint64)

    def out(places: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):
            z = state[:, None] + (places.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
            z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))

    def exponential(bits: np.ndarray) -> np.ndarray:
        return -np.log1p(-((bits >> np.uint64(12)).astype(np.float64) + 0.5) / 2**52)

    tokens = np.arange(size)
    block = out(-1 - tokens // 64)
    more = np.where((block % np.uint64(64)).astype(int) == tokens % 64, 0.0, exponential(out(tokens)))
    return exponential(block) / 64 + more


def agrees(seen: np.ndarray, expected: np.ndarray, degrees: int) -> bool:
    """Chi-square at the level of .1 % (by Wilson and Hilferty's cube root)."""
    statistic = float(((seen - expected) ** 2 / expected).sum())
    spread = 2 / (9 * degrees)
    return ((statistic / degrees) ** (1 / 3) - (1 - spread)) / math.sqrt(spread) < 3.09


def is_exponential(values: np.ndarray) -> bool:
    """Kolmogorov and Smirnov, at the level of .1 %."""
    reached, num = 1 - np.exp(-np.sort(values.ravel())), values.size
    gap = np.maximum(np.arange(1, num + 1) / num - reached, reached - np.arange(num) / num).max()
    return float(gap) * math.sqrt(num) < 1.95


def test_the_generator_is_splitmix64() -> None:
    """Its published outputs for seed 1234567 (rosettacode.org/wiki/Pseudo-random_numbers/Splitmix64)."""
    known = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    assert [x % WORD for x in position_seeds(1234567, 5)] == known
    assert [x % WORD for x in position_seeds(1234567 + 2**64, 5)] == known, "the lower 64 bits of a key count"
    top = numbers(torch.tensor([-1, 0, 2**63 - 1]), torch.tensor([-2, 7, 2**40]))
    assert [x % WORD for x in top.tolist()] == [splitmix(-1, -2), splitmix(0, 7), splitmix(2**63 - 1, 2**40)]


def test_the_uniform_is_never_0_or_1_and_fine_where_it_decides() -> None:
    ends = exponentials(torch.tensor([0, 1 << 12, -1]))
    assert ends.tolist() == pytest.approx([2.0**-53, 3 * 2.0**-53, 53 * math.log(2)], rel=1e-12)


# Written down once. Whoever changes these has changed the draw: raise DRAW, and say so.
KNOWN_TOKENS = {
    580: [358, 20, 277, 277, 521, 179],
    49_152: [14601, 44429, 37742, 25186, 42134, 17951],
    151_936: [14601, 44429, 131302, 125578, 93969, 86530],
}


@pytest.mark.parametrize("size", KNOWN_TOKENS)
def test_tokens_are_those_of_the_definition(size: int) -> None:
    keys, positions = [0, 1, 2**63 + 5, 2**64 - 1, 7, 7], [0, 3, 1, 31, 0, 1]
    logits = (torch.arange(size) * 7919 % 1009 / 64.0).expand(len(keys), -1)  # in [0, 16), exact
    drawn = draw(logits, keyed(keys, positions)).tolist()
    scores = [
        max((float(logits[0, v]) - math.log(noise(key, position, v)), -v) for v in range(size))
        for key, position in zip(keys[:2], positions[:2], strict=True)
    ]
    assert drawn[:2] == [-negative for _, negative in scores]
    assert drawn == KNOWN_TOKENS[size]


@pytest.mark.parametrize("size", [1, 5, 64, 65, 580, 1024, 1025, 3000, 20_000])
@pytest.mark.parametrize("spread", [0.0, 1.0, 8.0])
def test_closed_blocks_hold_no_winner(size: int, spread: float) -> None:
    """Opening the blocks that can win gives what opening all gives, whatever the distribution."""
    generator = torch.Generator().manual_seed(size)
    logits = spread * torch.randn(40, size, generator=generator)
    logits[::2, : size // 3] = -torch.inf
    logits[::3] = logits[::3].sort(descending=True)[0]
    seeds = torch.randint(-(2**62), 2**62, (40,), generator=generator)
    expected = (logits.double().numpy() - np.log(all_noise(seeds, size))).argmax(1)
    assert draw(logits, seeds).tolist() == expected.tolist()


def test_the_noise_is_exponential_and_independent() -> None:
    """Over tokens of one block and of several, positions and keys."""
    seeds = torch.tensor([s for key in range(200) for s in position_seeds(key * 7919, 50)])
    found = all_noise(seeds, 200)  # [10000, 200]
    assert is_exponential(found[:, :20])
    for token in (0, 63, 64, 199):
        assert is_exponential(found[:, token])
    least = found[:, :64].min(1)
    assert is_exponential(64 * least)
    uniform = 1 - np.exp(-found)
    bound = 5 / math.sqrt(len(seeds))  # five standard errors of a correlation of none
    tokens = np.corrcoef(uniform[:, ::5].T)
    assert np.abs(tokens - np.eye(len(tokens))).max() < bound
    by_place = uniform.reshape(200, 50, 200)
    for ahead in (1, 2, 7):
        assert abs(np.corrcoef(by_place[:, ahead:, 3].ravel(), by_place[:, :-ahead, 3].ravel())[0, 1]) < bound
        assert abs(np.corrcoef(by_place[ahead:, :, 3].ravel(), by_place[:-ahead, :, 3].ravel())[0, 1]) < bound
        assert abs(np.corrcoef(by_place[:, ahead:, 3 + ahead].ravel(), by_place[:, :-ahead, 3].ravel())[0, 1]) < bound


NUM = 20_000
SETTINGS = {
    "hot": Sampling(temperature=1.7),
    "plain": Sampling(),
    "cool": Sampling(temperature=0.4),
    "top_k": Sampling(top_k=5),
    "top_p": Sampling(temperature=1.3, top_p=0.7),
    "both": Sampling(temperature=0.8, top_k=20, top_p=0.9),
}


def exact(logits: np.ndarray, sampling: Sampling) -> np.ndarray:
    """Probabilities in float64: temperature, then top-k, then top-p of what that leaves."""
    probabilities = np.exp(logits / sampling.temperature - np.max(logits / sampling.temperature))
    order = np.argsort(-probabilities, kind="stable")
    kept = order[: sampling.top_k or None]
    share = np.cumsum(probabilities[kept]) / probabilities[kept].sum()
    kept = kept[np.concatenate([[True], share[:-1] < sampling.top_p])]
    result = np.zeros_like(probabilities)
    result[kept] = probabilities[kept] / probabilities[kept].sum()
    return result


@pytest.mark.parametrize("size", [50, 1500])
@pytest.mark.parametrize("name", SETTINGS)
def test_tokens_have_their_probabilities(name: str, size: int) -> None:
    """Chi-square, over as many keys as positions; 1500 tokens go the way of large vocabularies."""
    sampling = SETTINGS[name]
    row = 2.5 * torch.randn(size, generator=torch.Generator().manual_seed(1))
    seeds = [seed for key in range(NUM // 200) for seed in position_seeds(key, 200)]
    counts = np.zeros(size)
    for start in range(0, NUM, 1000):
        part = seeds[start : start + 1000]
        ids, _, _ = sample(row.expand(len(part), -1), [sampling] * len(part), part)
        counts += np.bincount(ids.numpy(), minlength=size)
    probabilities = exact(row.double().numpy(), sampling)
    assert counts[probabilities == 0].sum() == 0
    rare = NUM * probabilities < 5
    expected = np.append(NUM * probabilities[~rare], NUM * probabilities[rare].sum())
    seen = np.append(counts[~rare], counts[rare].sum())
    expected, seen = expected[expected > 0], seen[expected > 0]
    assert agrees(seen, expected, len(expected) - 1)


def test_what_was_drawn_says_nothing_of_what_comes_next() -> None:
    """Chi-square of pairs: neighbouring positions, neighbouring keys."""
    row = torch.tensor([0.1, 0.2, 0.3, 0.4]).log()
    seeds = torch.tensor([seed for key in range(200) for seed in position_seeds(key, 200)])
    drawn = draw(row.expand(len(seeds), -1), seeds).numpy().reshape(200, 200)
    for one, other in ((drawn[:, :-1], drawn[:, 1:]), (drawn[:-1], drawn[1:])):
        pairs = np.bincount((4 * one + other).ravel(), minlength=16).reshape(4, 4)
        expected = np.outer(pairs.sum(1), pairs.sum(0)) / pairs.sum()
        assert agrees(pairs, expected, 9)


@pytest.mark.parametrize("size", [580, 5000])
def test_a_token_does_not_depend_on_the_batch_or_on_padding(size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(12, size, generator=generator)
    seeds = torch.randint(-(2**62), 2**62, (12,), generator=generator)
    together = draw(logits, seeds)
    assert together.tolist() == [int(draw(logits[[i]], seeds[[i]])) for i in range(12)]
    assert together.flip(0).tolist() == draw(logits.flip(0), seeds.flip(0)).tolist()
    longer = torch.cat([logits, torch.full((12, 777), -torch.inf)], 1)
    assert together.tolist() == draw(longer, seeds).tolist()


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.5}, {"top_p": 0.9}, {"top_k": 50}])
def test_rounding_moves_few_tokens(settings: dict[str, float]) -> None:
    """Logits rounded to bfloat16: of inverse draws by one number a tenth to a quarter become other tokens."""
    sampling = Sampling(**settings)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(400, 10_000, generator=generator)
    seeds = torch.randint(-(2**62), 2**62, (len(logits),), generator=generator).tolist()
    rounded = logits.bfloat16().float()
    first, second = (sample(given, [sampling] * len(given), seeds)[0] for given in (logits, rounded))
    flipped = float((first != second).double().mean())

    uniforms = torch.rand(len(logits), 1, generator=generator, dtype=torch.float64)

    def inverse(given: Tensor) -> Tensor:
        kept = truncated(given / sampling.temperature, [sampling] * len(given))
        sums = torch.softmax(kept.double(), -1).cumsum(-1)
        return torch.searchsorted(sums, uniforms * sums[:, -1:], right=True)[:, 0]

    before = float((inverse(logits) != inverse(rounded)).double().mean())
    assert flipped < 0.03
    assert before > 3 * flipped
    tiny = logits + 1e-6 * torch.randn(logits.shape, generator=generator)
    assert float((sample(tiny, [sampling] * len(tiny), seeds)[0] != first).double().mean()) < 0.004


def test_logprobs_are_of_what_is_drawn_from_and_entropies_of_everything() -> None:
    row = 2 * torch.randn(30, generator=torch.Generator().manual_seed(3))
    settings = [Sampling(), Sampling(temperature=0.5), Sampling(top_k=3), Sampling(0.7, 0.6), Sampling(0.0)]
    ids, logprobs, entropies = sample(row.expand(5, -1), settings, position_seeds(1, 5))
    for i, sampling in enumerate(settings):
        usual = Sampling(sampling.temperature or 1.0)
        own = exact(row.double().numpy(), usual if sampling.temperature == 0 else sampling)
        whole = exact(row.double().numpy(), usual)
        assert float(logprobs[i]) == pytest.approx(math.log(own[ids[i]]), abs=1e-5)
        assert float(entropies[i]) == pytest.approx(-float((whole * np.log(whole)).sum()), abs=1e-5)
    assert int(ids[4]) == int(row.argmax())


def test_truncation_by_rank_and_by_mass() -> None:
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    by_rank = torch.softmax(truncated(logits, [Sampling(top_k=2)]), -1)
    torch.testing.assert_close(by_rank, torch.tensor([[4 / 7, 3 / 7, 0.0, 0.0]]))
    by_mass = torch.softmax(truncated(logits, [Sampling(top_p=0.65)]), -1)
    torch.testing.assert_close(by_mass, torch.tensor([[4 / 7, 3 / 7, 0.0, 0.0]]))
    equal = truncated(torch.zeros(1, 500), [Sampling(top_k=3)])
    assert equal.isfinite().nonzero()[:, 1].tolist() == [0, 1, 2], "of equal ones the first"


def test_equal_scores_give_the_lowest_id() -> None:
    twice = torch.full((1, 4000), -5.0)
    twice[0, [700, 2900]] = 3.0
    ids, _, _ = sample(twice, [Sampling(temperature=0.0)], [0])
    assert ids.tolist() == [700]


def test_single_logits_of_minus_infinity_are_in_order_and_others_are_not() -> None:
    rows = torch.zeros(5, 70)
    rows[0, :69] = -torch.inf
    rows[1, 3], rows[2, 4], rows[3] = torch.nan, torch.inf, -torch.inf
    ids, logprobs, entropies = sample(rows, [Sampling()] * 5, position_seeds(0, 5))
    assert (int(ids[0]), float(logprobs[0]), float(entropies[0])) == (69, 0.0, 0.0)
    assert entropies.isnan().tolist() == [False, True, True, True, False]
    assert float(entropies[4]) == pytest.approx(math.log(70), abs=1e-5)


def test_other_draws_are_said_by_name() -> None:
    assert other_draw(2) is None
    assert str(other_draw(1)).startswith("its tokens were drawn by the inverse of the cumulative sum")
    assert "version 9" in str(other_draw(9))
