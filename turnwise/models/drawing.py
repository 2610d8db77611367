"""How a token is sampled: the Gumbel-max rule, with noise that is a pure function of (key, position, token id).

    token     = argmax over v of  logit_v / T + G_v           tokens outside top-k and top-p have logit -inf
    G_v       = -ln E_v,  E_v ~ Exp(1), independent over tokens, positions and keys

Token v is then sampled with probability softmax(logit / T)_v. The noise is the same for every batch and device. Where
rounding changes the logits by up to d, the sampled token changes only where the two highest scores differ by less than
2 d.

The noise is made from hashed numbers:

    S(s, n)   = output number n (from 0, counted modulo 2^64) of the generator SplitMix64 with seed s, 64 bits
    s         = S(key, position)                              position: place of the token in its reply, from 0
    U(h)      = ((h >> 12) + 1/2) / 2^52                      exact in float64, within [2^-53, 1 - 2^-53]
    X(h)      = -ln(1 - U(h))                                 Exp(1), finest at its small end, which decides

Token ids are divided into blocks of 64: b = v div 64, h_b = S(s, -1 - b). For each block the smallest E and the token
that has it are drawn first. The exponential distribution has no memory, so the excess of every other E over the
smallest one is again Exp(1):

    E_v       = X(h_b) / 64  +  (0 where v mod 64 = h_b mod 64, else X(S(s, v)))

The result is distributed as independent draws are, and large vocabularies become cheap. The highest logit of a block
and its smallest E bound the scores of all its tokens, so that the noise of most blocks need not be computed. Sources:
Gumbel 1954; Maddison, Tarlow & Minka 2014 (A* sampling); Steele, Lea & Flood 2014 (SplitMix64). Reasons and numbers:
docs/adr/014-hashed-gumbel-noise.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from turnwise.heat import LEAST_TEMPERATURE, Heat

DRAW = 2
"""The version of the rule. Increase it when the same logits, key and position may give another token.

A run or an evaluation uses one version from beginning to end."""

_DRAWS = {1: "the inverse of the cumulative sum", 2: "hashed Gumbel noise"}

_BLOCK = 64
_NUM_DENSE = 16  # with at most so many blocks, computing all of them is cheaper than choosing
_NUM_FIRST = 8  # blocks of a row that are computed first; their scores rule out most of the others
_SLACK = 1e-9  # nats, more than the rounding error of a bound, so that no bound rules out the winner

_WORD = 2**64
_GAMMA, _FIRST, _SECOND = (n - _WORD for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))  # as int64


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are sampled.

    ``temperature`` T: 0 is greedy, others are at least 0.001. ``top_p`` in (0, 1]; 1 does not truncate. ``top_k`` >= 0
    tokens; 0 does not truncate. ``max_tokens`` is the limit of one reply. ``heat`` has the temperature of each token
    follow its entropy; an agent's processor applies it (``agents/rules.py``).
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 32
    heat: Heat | None = None

    def __post_init__(self) -> None:
        warm = self.temperature == 0 or LEAST_TEMPERATURE <= self.temperature < math.inf
        if not warm or not 0 < self.top_p <= 1 or self.top_k < 0:
            raise ValueError(
                f"temperature={self.temperature}, top_p={self.top_p}, top_k={self.top_k}: expected a temperature of 0 "
                f"(greedy) or at least {LEAST_TEMPERATURE}, top_p above 0 and at most 1, and top_k of at least 0 (0: "
                "off)"
            )


class LogitsError(ValueError):
    """The logits of ``slot`` are nan or infinite, so that no token can be sampled."""

    def __init__(self, slot: int, message: str) -> None:
        super().__init__(message)
        self.slot = slot


def other_draw(found: object) -> str | None:
    """A sentence for tokens that were sampled by version ``found`` of the rule; None where that is the present one."""
    if found == DRAW:
        return None
    before = next((name for number, name in _DRAWS.items() if number == found), f"version {found}")
    return f"its tokens were drawn by {before}, this version of turnwise draws them by {_DRAWS[DRAW]}"


def sample(logits: Tensor, settings: Sequence[Sampling], seeds: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Logits [R, V] float32 -> sampled ids, their log-probabilities and the entropies, [R] each.

    ``settings`` and ``seeds`` have one entry for each row; seeds come from ``position_seeds`` (and are not used where
    the temperature is 0). Log-probabilities are those of the distribution that is sampled from, entropies those of the
    whole distribution before truncation, both in nats and after temperature. Where a row holds nan or +inf, or only
    -inf, its entropy is nan and its token has no meaning.
    """
    if any(s.temperature not in (0, 1) for s in settings):
        logits = logits / torch.tensor([s.temperature or 1.0 for s in settings], device=logits.device)[:, None]
    logprobs = torch.log_softmax(logits, dim=-1)
    probabilities = logprobs.exp()
    entropies = -torch.linalg.vecdot(probabilities, logprobs)
    if bool(entropies.isnan().any()):  # 0 * -inf of single logits of -inf, which are allowed, is nan too
        entropies = -torch.where(logprobs.isneginf(), 0.0, probabilities * logprobs).sum(-1)
    if any(s.top_p < 1 or s.top_k for s in settings):
        logits = truncated(logits, settings)
        logprobs = torch.log_softmax(logits, dim=-1)
    ids = _chosen(logits, settings, seeds)
    return ids, logprobs.gather(-1, ids[:, None])[:, 0], entropies


def _chosen(logits: Tensor, settings: Sequence[Sampling], seeds: Sequence[int]) -> Tensor:
    """Logits [R, V] -> ids [R]: sampled, or the most probable one where the temperature is 0."""
    greedy = [s.temperature == 0 for s in settings]
    if all(greedy):
        return logits.argmax(-1)
    ids = draw(logits, torch.tensor(seeds, dtype=torch.int64, device=logits.device))
    if any(greedy):
        ids = torch.where(torch.tensor(greedy, device=logits.device), logits.argmax(-1), ids)
    return ids


def truncated(logits: Tensor, settings: Sequence[Sampling]) -> Tensor:
    """Logits [R, V] with -inf outside top-k and top-p.

    Top-p is applied to the distribution that top-k leaves. Of equal logits the one with the lower id ranks higher.
    """
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(logits.shape[-1], device=logits.device)
    top_k = torch.tensor([s.top_k or logits.shape[-1] for s in settings], device=logits.device)
    top_p = torch.tensor([s.top_p for s in settings], device=logits.device)
    keep = rank < top_k[:, None]
    probabilities = torch.softmax(ordered.masked_fill(~keep, -torch.inf), dim=-1)
    before = probabilities.cumsum(-1) - probabilities
    keep &= (before < top_p[:, None]) | (rank == 0)
    kept = torch.zeros_like(keep).scatter_(-1, order, keep)
    return logits.masked_fill(~kept, -torch.inf)


def position_seeds(key: int, num: int) -> list[int]:
    """Seeds of a reply's first ``num`` positions, as int64. The lower 64 bits of ``key`` are used."""
    lower = key % _WORD
    start = torch.tensor(lower - _WORD if lower >= _WORD // 2 else lower)
    return numbers(start, torch.arange(num)).tolist()


def numbers(seeds: Tensor, places: Tensor) -> Tensor:
    """Outputs number ``places`` of the SplitMix64 generators with these ``seeds``. Both are int64 and broadcast.

    Arithmetic in int64 wraps around in the same way on every device.
    """
    bits = seeds + (places + 1) * _GAMMA
    spare = torch.empty_like(bits)  # in place: fresh memory for every operation costs more than the operation
    for shift, factor in ((30, _FIRST), (27, _SECOND), (31, 1)):
        torch.bitwise_right_shift(bits, shift, out=spare)
        bits ^= spare.bitwise_and_(2 ** (64 - shift) - 1)  # of a signed number the shift alone would not be logical
        if factor != 1:
            bits *= factor
    return bits


def exponentials(bits: Tensor) -> Tensor:
    """X(h) of the definition above: 64 random bits as int64 -> float64 in [1.1e-16, 36.8]."""
    uniform = (bits >> 12).bitwise_and_(2**52 - 1).double().add_(0.5).mul_(2.0**-52)
    return uniform.neg_().log1p_().neg_()


def draw(logits: Tensor, seeds: Tensor) -> Tensor:
    """Logits [R, V] float32 and seeds [R] int64 -> ids [R]: the token with the highest sum of logit and noise.

    Of equal sums the lowest id wins.
    """
    if logits.shape[1] % _BLOCK:
        logits = pad(logits, (0, -logits.shape[1] % _BLOCK), value=-torch.inf)
    logits = logits.view(len(logits), -1, _BLOCK)
    blocks = torch.arange(logits.shape[1], device=logits.device)
    marks = numbers(seeds[:, None], -1 - blocks)
    least = exponentials(marks).mul_(1 / _BLOCK)
    if len(blocks) <= _NUM_DENSE:
        return (logits - _log_noise(seeds[:, None], blocks, marks, least)).flatten(1).argmax(-1)
    bounds = logits.amax(-1) - least.log()
    best, places = torch.full_like(bounds, -torch.inf), torch.zeros_like(marks)

    def open_blocks(rows: Tensor, blocks: Tensor) -> None:
        noise = _log_noise(seeds[rows], blocks, marks[rows, blocks], least[rows, blocks])
        best[rows, blocks], places[rows, blocks] = (logits[rows, blocks] - noise).max(-1)

    first = torch.zeros_like(bounds, dtype=torch.bool).scatter_(1, bounds.topk(_NUM_FIRST).indices, True)
    open_blocks(*first.nonzero(as_tuple=True))
    rest = (bounds > best.amax(1, keepdim=True) - _SLACK) & ~first
    open_blocks(*rest.nonzero(as_tuple=True))
    block = best.argmax(1, keepdim=True)
    return (block * _BLOCK + places.gather(1, block))[:, 0]


def _log_noise(seeds: Tensor, blocks: Tensor, marks: Tensor, least: Tensor) -> Tensor:
    """ln E of every token of some blocks, [..., 64] float64.

    The arguments, [...] each, are the row's seed, the block's number, its hash h_b and its smallest E.
    """
    inside = torch.arange(_BLOCK, device=blocks.device)
    starts = seeds + blocks * _BLOCK * _GAMMA  # of their first tokens: the generator jumps ahead
    noise = exponentials(numbers(starts[..., None], inside))
    noise.scatter_(-1, (marks & (_BLOCK - 1))[..., None], 0.0)
    return noise.add_(least[..., None]).log_()
