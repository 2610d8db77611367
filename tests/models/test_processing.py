"""A processor changes what tokens are drawn from, and sampler and learner agree about it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.models import tiny_model
from tests.models.families import family_policy
from tests.models.test_policy import made, moved
from tests.models.test_reading import entropy_read, logprob_read
from turnwise.models import allowed
from turnwise.models.allowed import Drawn
from turnwise.models.engine import Engine, Reply, Sampling, SlotEngine
from turnwise.models.policy import Policy
from turnwise.models.processing import Step, recorded
from turnwise.models.settings import LoRAConfig
from turnwise.replay.batch import TokenBatch, layout
from turnwise.trajectory import Group, Task, Trajectory, Turn

END = 3
CHOICES = [[7, 11, 40, 90], None, [9], [11], [12, 300], None, [5, 6, 7, 8]]
PROMPT = np.arange(10, 30, dtype=np.int32)
EIGHT = Sampling(max_tokens=8)


@dataclass
class Scripted:
    """Allows ``sets[n]`` before token n (None: all), at ``temperatures[n]``; the token ``forced[n]`` is forced."""

    sets: list[list[int] | None]
    temperatures: dict[int, float] = field(default_factory=dict)
    forced: dict[int, int] = field(default_factory=dict)
    needs_logits: bool = False
    told: list[tuple[int, float, float]] = field(default_factory=list)
    without: dict[int, list[int]] = field(default_factory=dict)  # excluded before token n

    def before(self, logits: Tensor | None) -> Step:
        assert (logits is not None) == self.needs_logits
        place = len(self.told)
        found = self.sets[place] if place < len(self.sets) else None
        allowed = None if found is None else np.array(found, np.int32)
        without = self.without.get(place)
        excluded = None if without is None else np.array(without, np.int32)
        return Step(allowed, self.forced.get(place), self.temperatures.get(place), excluded)

    def after(self, token: int, logprob: float, entropy: float) -> None:
        self.told.append((token, logprob, entropy))


def engine(model: Any, slots: int = 8) -> SlotEngine:
    return SlotEngine(model, num_slots=slots, max_length=256, end_ids=frozenset({END}))


def replies(
    player: Engine, processors: list[Any], sampling: Sampling = EIGHT, prompt: np.ndarray = PROMPT
) -> list[Reply]:
    """A reply to the same prompt for each processor, in order."""
    found: dict[int, Reply] = {}
    for start in range(0, len(processors), player.num_slots):
        numbers = {}
        for number in range(start, min(start + player.num_slots, len(processors))):
            slot = player.open()
            numbers[slot] = number
            player.submit(slot, prompt, fresh=True, key=number, sampling=sampling, processor=processors[number])
        while not numbers.keys() <= {slot for slot, n in numbers.items() if n in found}:
            found |= {numbers[reply.slot]: reply for reply in player.step()}
        for slot in numbers:
            player.close(slot)
    return [found[number] for number in range(len(processors))]


def rows(of: list[Reply], prompt: np.ndarray = PROMPT) -> TokenBatch:
    task = Task("env", "train", 0, "key")

    def turn(reply: Reply) -> Turn:
        arrays = (reply.ids, reply.logprobs, reply.entropies)
        return Turn("", prompt, False, *arrays, "", "", True, 0.0, processing=reply.processing)

    played = (Trajectory(str(n), task, 0, n, (turn(r),), "terminated", True, 1.0) for n, r in enumerate(of))
    return layout([Group(task, tuple(played))])


def explicit(model: Any, reply: Reply, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies [A] by a plain forward, with -inf outside each token's allowed set. Differentiable."""
    ids = torch.tensor([*PROMPT.tolist(), *reply.ids.tolist()])
    logits = model(ids[None]).logits[0, len(PROMPT) - 1 : -1].float()
    processing = reply.processing
    logprobs, entropies = [], []
    for place, row in enumerate(logits):
        own, heat = row, temperature
        target = int(reply.ids[place])
        if processing is not None:
            chosen, size = processing.sets()[place].tolist(), int(processing.counts[place])
            heat = float(processing.temperatures[place]) if len(processing.temperatures) else temperature
            if size < 0:
                chosen = sorted(set(range(len(row))) - set(chosen))
            if size:
                own, target = row[chosen], chosen.index(target)
        found = torch.log_softmax(own / heat, -1)
        logprobs.append(found[target])
        entropies.append(-(found.exp() * found).sum())
    return torch.stack(logprobs), torch.stack(entropies)


def test_tokens_are_drawn_from_the_renormalised_distribution() -> None:
    model = tiny_model()
    drawn = replies(engine(model, 64), [Scripted([[7, 11, 40, 90]]) for _ in range(4000)], Sampling(1.3, max_tokens=1))
    with torch.no_grad():
        logits = model(torch.tensor(PROMPT[None].astype(np.int64))).logits[0, -1, [7, 11, 40, 90]]
    expected = torch.softmax(logits / 1.3, -1).numpy()
    seen = np.array([np.mean([int(reply.ids[0]) == token for reply in drawn]) for token in (7, 11, 40, 90)])
    assert seen.sum() == 1.0
    np.testing.assert_allclose(seen, expected, atol=4 * float(np.sqrt(expected * (1 - expected) / 4000).max()))


@pytest.mark.parametrize("needs_logits", [False, True])
@pytest.mark.parametrize("temperature", [0.7, 0.0])
def test_a_reply_is_recorded_as_it_was_drawn(temperature: float, needs_logits: bool) -> None:
    model = tiny_model()
    processors = [
        Scripted(CHOICES, {0: 2.0, 5: 0.5}, {3: 11}, needs_logits=needs_logits, without={5: list(range(5, 200))}),
        Scripted([], needs_logits=needs_logits),
    ]
    restricted, free = replies(engine(model), processors, Sampling(temperature, max_tokens=9))
    assert free.processing is None
    found = restricted.processing
    assert found is not None
    length = len(restricted.ids)
    assert length > 5, "the free token ended the reply: take another seed"
    assert found.counts.tolist()[:5] == [4, 0, 1, 1, 2]
    assert found.forced.tolist() == [place == 3 for place in range(length)]
    assert found.counts[5] == -195
    assert restricted.ids[5] not in range(5, 200)
    pairs = list(zip(restricted.ids, found.sets(), strict=True))[:5]
    assert all(token in ids or not len(ids) for token, ids in pairs)
    heats = [{0: 2.0, 5: 0.5}.get(place, temperature) for place in range(length)] if temperature else []
    np.testing.assert_allclose(found.temperatures, heats)
    with torch.no_grad():
        logprobs, entropies = explicit(model, restricted, temperature or 1.0)
    np.testing.assert_allclose(restricted.logprobs, logprobs, atol=1e-5)
    np.testing.assert_allclose(restricted.entropies, entropies, atol=1e-5)
    said = [
        (t, pytest.approx(p), pytest.approx(e))
        for t, p, e in zip(restricted.ids, restricted.logprobs, restricted.entropies, strict=True)
    ]
    assert processors[0].told == said


def test_tokens_without_a_choice_cost_no_step() -> None:
    """Nor does the last one, nor a whole reply; and the tokens after them are those of a context that holds them."""
    model = tiny_model()
    made_of = engine(model)
    (whole,) = replies(made_of, [Scripted([[5], [6], [END]])], Sampling(max_tokens=8))
    assert (whole.ids.tolist(), whole.ended, made_of.counts.steps) == ([5, 6, END], True, 0)
    assert not whole.logprobs.any()
    assert not whole.entropies.any()
    (cut,) = replies(made_of, [Scripted([[5], [6], [END]])], Sampling(max_tokens=2))
    assert (cut.ids.tolist(), cut.ended) == ([5, 6], False)
    (mixed,) = replies(made_of, [Scripted([[5], [6, 7], [8], [9], [6, 7], [END]])], Sampling(max_tokens=8))
    assert made_of.counts.steps == 2
    with torch.no_grad():
        np.testing.assert_allclose(mixed.logprobs, explicit(model, mixed, 1.0)[0], atol=1e-5)
    slot = made_of.open()
    made_of.submit(slot, PROMPT, fresh=True, key=1, sampling=Sampling(max_tokens=4), processor=Scripted([[5], [END]]))
    made_of.step()
    assert made_of.length(slot) == len(PROMPT) + 2
    made_of.submit(slot, PROMPT, fresh=False, key=2, sampling=Sampling(max_tokens=3))
    (after,) = [reply for _ in range(3) for reply in made_of.step()]
    long = np.concatenate([PROMPT, np.array([5, END], np.int32), PROMPT])
    (same,) = replies(engine(model), [None, None, None], Sampling(max_tokens=3), long)[2:]
    assert after.ids.tolist() == same.ids.tolist()


def test_a_processor_changes_no_other_slot() -> None:
    model = tiny_model()
    alone = replies(engine(model), [None] * 4, Sampling(max_tokens=6))
    beside = replies(engine(model), [None, Scripted(CHOICES), None, Scripted(CHOICES)], Sampling(max_tokens=6))
    for one, other in zip(alone[::2], beside[::2], strict=True):
        assert one.ids.tolist() == other.ids.tolist()
        assert other.processing is None
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-6)


@pytest.mark.parametrize("lora", [None, LoRAConfig(rank=4), LoRAConfig(rank=4, target_modules=("q_proj", "lm_head"))])
@pytest.mark.parametrize("most", [4096, 3])
def test_the_learner_scores_what_the_sampler_drew(
    lora: LoRAConfig | None, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(allowed, "MAX_ROWS", most)
    policy = moved(made(lora), 0.1 if lora else 0.02)
    policy.temperature = 0.9
    said = replies(engine(policy.sampler), processors(9), Sampling(0.9, max_tokens=8))
    batch = rows(said)
    assert batch.allowed is not None
    assert batch.temperatures is not None
    scores = policy.score(batch, entropy=True)
    assert scores.entropies is not None
    mask = batch.action_mask
    np.testing.assert_allclose(scores.logprobs[mask].detach(), batch.behaviour_logprobs[mask], atol=1e-5)
    np.testing.assert_allclose(scores.entropies[mask].detach(), batch.behaviour_entropies[mask], atol=1e-5)
    picked = batch.select(torch.tensor([4, 1]))  # rows and sets stay together
    np.testing.assert_allclose(
        policy.score(picked).logprobs.detach(), scores.logprobs[[4, 1], : picked.tokens.shape[1]].detach(), atol=1e-6
    )


@pytest.mark.parametrize("family", ["gemma2", "phi", "lfm2"])  # capped logits; a head with a bias; no plain cache
def test_other_architectures_score_what_they_drew(family: str) -> None:
    policy = family_policy(family)
    said = replies(SlotEngine(policy.sampler, num_slots=4, max_length=128, end_ids=frozenset({END})), processors(5))
    batch = rows(said)
    scores = policy.score(batch, entropy=True, readings=[logprob_read, entropy_read])
    assert scores.entropies is not None
    for ours, read in zip((scores.logprobs, scores.entropies), scores.readings, strict=True):
        torch.testing.assert_close(read, ours, atol=1e-5, rtol=1e-4)
    mask = batch.action_mask
    np.testing.assert_allclose(scores.logprobs[mask].detach(), batch.behaviour_logprobs[mask], atol=2e-5)
    np.testing.assert_allclose(scores.entropies[mask].detach(), batch.behaviour_entropies[mask], atol=2e-5)
    with torch.no_grad():
        for number, reply in enumerate(said):
            logprobs, _ = explicit(policy.model, reply, 1.0)
            here = slice(len(PROMPT), len(PROMPT) + len(reply.ids))
            own = batch.action_mask[number, here]
            np.testing.assert_allclose(logprobs[own], batch.behaviour_logprobs[number, here][own], atol=2e-5)


def processors(num: int) -> list[Any]:
    """Replies that share tokens, drawn from the same sets, from others, from all tokens, and at other temperatures."""
    kinds = [
        lambda: Scripted(CHOICES, {0: 2.0, 5: 0.5}, {3: 11}),
        lambda: Scripted([[7, 11], [20, 21]]),
        lambda: Scripted([[7, 11, 40], [20]]),
        lambda: Scripted([], {0: 1.7}, without={0: [END, 7], 1: [END, 7], 3: [20]}),
        lambda: None,
    ]
    return [kinds[number % len(kinds)]() for number in range(num)]


@pytest.mark.parametrize("most", [4096, 3])
@pytest.mark.parametrize("sharing", ["always", "never"])
def test_gradients_are_those_of_an_explicit_masked_softmax(
    sharing: Any, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(allowed, "MAX_ROWS", most)
    policy = moved(made(LoRAConfig(rank=4, target_modules=("q_proj", "down_proj", "lm_head"))))
    policy.sharing = sharing
    said = replies(engine(policy.sampler), processors(9), Sampling(max_tokens=8))
    batch = rows(said)
    weights = torch.randn(batch.tokens.shape, generator=torch.Generator().manual_seed(0))

    def gradients(loss: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(loss, list(policy.parameters())))

    logprobs_read, entropies_read = policy.score(batch, readings=[logprob_read, entropy_read]).readings
    read = gradients((logprobs_read * weights + entropies_read * weights.flip(1)).sum())
    scores = policy.score(batch, entropy=True)
    assert scores.entropies is not None
    ours = gradients((scores.logprobs * weights + scores.entropies * weights.flip(1)).sum())
    loss = torch.zeros(())
    for row, reply in enumerate(said):
        logprobs, entropies = explicit(policy.model, reply, 1.0)
        here = slice(len(PROMPT), len(PROMPT) + len(reply.ids))
        mask = batch.action_mask[row, here]
        loss = loss + (logprobs * weights[row, here] + entropies * weights.flip(1)[row, here])[mask].sum()
    for own, seen, theirs in zip(ours, read, gradients(loss), strict=True):
        torch.testing.assert_close(own, theirs, atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(seen, theirs, atol=2e-5, rtol=1e-4)


def test_equal_tokens_of_several_rows_keep_their_own_distributions() -> None:
    """They share their states, and are drawn from one set, another one, all tokens, and all at another temperature."""
    policy = moved(made())
    policy.sharing = "always"
    steps = [
        Step(np.array([7, 11])),
        Step(np.array([7, 11, 40])),
        Step(),
        Step(temperature=2.0),
        Step(np.array([7, 11])),
    ]
    steps += [Step(excluded=np.array([3, 11])), Step(excluded=np.array([11]))]
    zeros = np.zeros(2, np.float32)
    said = [Reply(0, np.array([7, 20], np.int32), zeros, zeros, False, recorded([step, Step()], 1.0)) for step in steps]
    batch = rows(said)
    with torch.no_grad():
        found = policy.score(batch, entropy=True)
        expected = [explicit(policy.model, reply, 1.0) for reply in said]
    assert found.entropies is not None
    for row, (logprobs, entropies) in enumerate(expected):
        torch.testing.assert_close(found.logprobs[row, len(PROMPT) :], logprobs, atol=1e-5, rtol=0)
        torch.testing.assert_close(found.entropies[row, len(PROMPT) :], entropies, atol=1e-5, rtol=0)
    assert len({round(float(value), 4) for value in found.logprobs[:, len(PROMPT)]}) == 6


def test_forced_tokens_are_outside_the_mask_and_get_no_gradient() -> None:
    policy = moved(made())
    said = replies(engine(policy.sampler), [Scripted([[7, 11], [9], None], {}, {1: 9})], Sampling(max_tokens=3))
    batch = rows(said)
    assert batch.action_mask[0, len(PROMPT) :].tolist() == [True, False, True][: len(said[0].ids)]
    assert batch.turn_index[0, len(PROMPT) + 1] == -1
    (alone,) = replies(engine(policy.sampler), [Scripted([[7], [9]])], Sampling(max_tokens=2))
    only = rows([alone])
    assert only.action_mask[0, len(PROMPT) :].tolist() == [False, True], "a reply has a token for its credit"
    scores = policy.score(only, entropy=True)
    assert not scores.logprobs.any()
    gradients = torch.autograd.grad(scores.logprobs.sum(), list(policy.parameters()), allow_unused=True)
    assert all(gradient is None or not gradient.any() for gradient in gradients)


def test_the_reference_is_restricted_too() -> None:
    policy = moved(made())
    said = replies(engine(policy.sampler), [Scripted(CHOICES)], Sampling(max_tokens=7))
    with torch.no_grad(), policy.model.disable_adapter():
        expected, _ = explicit(policy.model, said[0], 1.0)
    batch = rows(said)
    with torch.no_grad():
        found = policy.score(batch, reference=True).logprobs
    mask = batch.action_mask[0, len(PROMPT) :]
    torch.testing.assert_close(found[0, len(PROMPT) :][mask], expected[mask], atol=1e-5, rtol=0)


def test_without_processors_a_batch_has_no_more_columns() -> None:
    policy: Policy = moved(made())
    batch = rows(replies(engine(policy.sampler), [None, Scripted([])], Sampling(max_tokens=4)))
    assert (batch.allowed, batch.sets, batch.temperatures) == (None, None, None)


def test_what_a_processor_may_not_say() -> None:
    for sets, heats, message in (([[]], {}, "allowed no token"), ([None], {0: 0.0}, "temperature 0.0")):
        with pytest.raises(ValueError, match=message):
            replies(engine(tiny_model()), [Scripted(sets, heats)], Sampling(max_tokens=2))
    (reply,) = replies(engine(tiny_model()), [Scripted([[7, 11]])], Sampling(max_tokens=1))
    other = 40 if reply.ids[0] != 40 else 41
    with pytest.raises(ValueError, match="contradicts the 2 tokens that were allowed"):
        rows([replace(reply, ids=np.array([other], np.int32))])


@pytest.mark.parametrize("size", [2**24, 3 * 50])
def test_many_sets_of_excluded_tokens_are_scored_as_each_is_alone(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Values and gradients, of some rows at once or part by part, beside rows that are free or have allowed sets."""
    draws = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(shape, generator=draws) for shape in ((12, 6), (50, 6)))
    bias, targets = torch.randn(50, generator=draws), torch.arange(12) + 30
    sets = [list(range(number, 2 * number + 3)) for number in range(9)] + [[33, 39, 40, 41]]
    which = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, -1, 2])
    offsets = torch.tensor(np.cumsum([0, *map(len, sets)]))
    ids = torch.tensor([token for each in sets for token in each])
    drawn = Drawn(which, offsets, ids, torch.tensor([True] * 9 + [False]), torch.linspace(0.5, 2.0, 12))

    def found(few: int) -> list[Tensor]:
        monkeypatch.setattr(allowed, "FEW_SETS", few)
        monkeypatch.setattr(allowed, "MAX_LOGITS", size)
        leaves = [each.clone().requires_grad_() for each in (hidden, weight, bias)]
        logprobs, entropies = allowed.scored(*leaves, targets, drawn, temperature=1.0, entropy=True)
        assert entropies is not None
        return [logprobs, entropies, *torch.autograd.grad((logprobs + 0.3 * entropies).sum(), leaves)]

    for one, other in zip(found(few=4), found(few=100), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_large_sets_are_scored_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more logits at once than ``MAX_LOGITS``, whether one set is large or many hold other ids; the same values."""
    draws = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(shape, generator=draws) for shape in ((12, 6), (50, 6)))
    sets = [list(range(40)), [0, 1], [2, 45]]
    drawn = Drawn(
        torch.tensor([0, 1, 2, 0, 1, 2, 1, 1, 1, 1, -1, 2]),
        torch.tensor(np.cumsum([0, *map(len, sets)])),
        torch.tensor([token for each in sets for token in each]),
        torch.zeros(3, dtype=torch.bool),
        torch.ones(12),
    )
    targets = torch.tensor([5, 0, 45, 39, 1, 2, 0, 1, 0, 1, 49, 2])
    rows, among = list[int](), allowed._among

    def seen(*given: Any) -> Any:
        rows.append(len(given[0]))
        return among(*given)

    monkeypatch.setattr(allowed, "_among", seen)

    def found(size: int) -> list[Tensor]:
        monkeypatch.setattr(allowed, "MAX_LOGITS", size)
        leaves = [each.clone().requires_grad_() for each in (hidden, weight)]
        made = allowed.scored(leaves[0], leaves[1], None, targets, drawn, temperature=1.0, entropy=True)
        assert made[1] is not None
        return [made[0], made[1], *torch.autograd.grad((made[0] + 0.3 * made[1]).sum(), leaves)]

    whole = found(2**24)
    assert rows == [11]
    rows.clear()
    for one, other in zip(whole, found(3 * 41), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)
    assert max(rows) == 3, "41 ids are in some set"
