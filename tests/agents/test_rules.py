"""Methods of decoding: what they do to a distribution, and that sampler and learner agree about it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.agents.test_guiding import chat
from tests.models import tiny_model
from tests.models.test_policy import made, moved
from tests.models.test_processing import END, PROMPT, Scripted, engine, replies, rows
from turnwise.agents.decoding import DecodingConfig, MirostatConfig, SecondConfig
from turnwise.agents.guiding import Guides, Menu
from turnwise.agents.prompts import AgentConfig
from turnwise.agents.rules import Acted, ActionFloor, ActionPart, Decoded, HeatRule, Mirostat, Rule, Switch
from turnwise.heat import Heat, Spread
from turnwise.models.drawing import Sampling, sample
from turnwise.models.engine import Reply
from turnwise.models.processing import Continuing, Course, Processor, Step, inside
from turnwise.models.second import SecondModel
from turnwise.models.settings import LoRAConfig
from turnwise.models.vllm.drawn import Drawing, heard, tell

HEAT = Heat(Spread(math.log(4.0), 0.5, 2.0), 0.4)
LONG = Sampling(max_tokens=24)


def rules(acted: Acted, *names: str) -> list[Rule]:
    kinds: dict[str, Callable[[], Rule]] = {
        "heat": lambda: HeatRule(HEAT, acted),
        "floor": lambda: ActionFloor(ActionPart(None), 1.1, 0.004, acted),
        "mirostat": lambda: Mirostat(MirostatConfig(target=2.0, rate=0.3), acted),
    }
    return [kinds[name]() for name in names]


def decoded(*names: str, acted: Acted | None = None, held: Processor | None = None) -> Decoded:
    acted = acted or Acted()
    return Decoded(held, rules(acted, *names), None, 1.0, acted)


@pytest.mark.parametrize(
    ("entropy", "sign", "expected"),
    [
        (4.0, "intended", 1.0),
        (4.0 * math.exp(0.25), "intended", 1.2),
        (9.0, "intended", 1.4),
        (4.0 * math.exp(-1.0), "intended", 0.8),
        (4.0 * math.exp(-1.0), "released", 1.2),
        (0.0, "intended", 0.6),
    ],
)
def test_unsure_tokens_are_hotter_and_sure_ones_cooler(entropy: float, sign: Any, expected: float) -> None:
    heat = Heat(HEAT.spread, HEAT.strength, sign)
    assert heat.factor(entropy) == pytest.approx(expected)
    flat = Heat(Spread(0.0, 0.0, 0.0), 0.4)
    assert [flat.factor(e) for e in (2.0, 1.0, 0.5)] == [1.4, 1.0, 0.6], "an update whose tokens were all equal"


def test_mirostat_holds_the_mean_surprise_at_its_target() -> None:
    """Of texts whose distributions (Zipf's) change all the time; without it the surprise is what these have."""
    generator = torch.Generator().manual_seed(0)
    for target in (1.3, 1.6, 2.0):
        acted = Acted()
        rule = Mirostat(MirostatConfig(target=target, rate=0.1), acted)
        free = 0.0
        for place in range(1500):
            logits = (
                -(1.2 + 0.3 * (place % 3)) * torch.arange(1.0, 401.0).log()[torch.randperm(400, generator=generator)]
            )
            logprobs = torch.log_softmax(logits, -1)
            dropped = rule.dropped(logprobs)
            assert dropped is not None
            assert not dropped[logprobs.argmax()]
            left = logits.masked_fill(dropped, -torch.inf)
            ids, _, _ = sample(left[None], [Sampling()], [place])
            rule.after(int(ids), chosen=True)
            free -= float(logprobs[sample(logits[None], [Sampling()], [place])[0]])
        found = acted.take()
        assert found["mirostat_surprise"] / 1500 == pytest.approx(target, abs=0.1)
        assert abs(free / 1500 - target) > 0.3
        assert 0 < found["mirostat_share"] <= 1500
        assert 0 < found["mirostat_mass"] < 1500
    rule.after(0, chosen=False)
    assert not acted.take(), "what was no choice moves nothing"


def test_the_bound_stops_at_its_ceiling() -> None:
    rule = Mirostat(MirostatConfig(target=1.0, rate=1.0, ceiling=2.5), Acted())
    sure = torch.log_softmax(torch.tensor([9.0, 0.0, 0.0]), -1)
    for _ in range(20):
        rule.dropped(sure)
        rule.after(0, chosen=True)
    dropped = rule.dropped(torch.tensor([-0.01, -2.4, -2.6]))
    assert dropped is not None
    assert dropped.tolist() == [False, False, True]


@pytest.mark.parametrize(
    ("settings", "template", "said", "expected"),
    [
        ({}, "chatml", "go <think>\nlook</think>take", "go <think>|take"),
        ({}, "opened", "look</think>take", "|take"),
        ({"action_format": "tags"}, "chatml", "so <action>go</action> done", "|go</action>|"),
        ({"action_format": "tags"}, "chatml", "<think><action></think><action>go", "|go"),
        ({"action_format": "whole"}, "opened", "look</think>go", "look</think>go"),
    ],
)
def test_an_action_begins_after_its_thought(settings: Any, template: str, said: str, expected: str) -> None:
    """``expected`` has the tokens that may be of an action, and a bar in the place of others."""
    own = chat("bytes", template)
    part = Guides(own, AgentConfig(**settings))._action_part()
    seen = ""
    for token in own.within(said):
        seen += own.text(token) if part.begun else "|"
        part.read(token)
    assert re.sub(r"\|+", "|", seen) == expected


def test_no_logits_are_asked_for_a_forced_beginning() -> None:
    """It costs no forward pass of its own, and counts as no choice."""
    acted = Acted()
    course = Course(decoded("heat", "floor", acted=acted, held=Continuing(np.array([3, 2], np.int32))))
    for token in (3, 2):
        assert course.only() == token
        course.take(token, 0.0, 0.0)
    assert course.only() is None
    assert not acted.take()
    course.step(torch.zeros(8))
    assert acted.take()["tokens"] == 1


def test_a_floor_is_for_actions_alone() -> None:
    acted, part = Acted(), ActionPart(lambda token: ("/think", "") if token == 7 else None, is_open=True)
    floor = ActionFloor(part, 0.9, 0.2, acted)
    logits = torch.tensor([3.0, 2.0, 0.0, 0.0])
    logprobs = torch.log_softmax(logits, -1)
    assert floor.temperature(logits, 0.5) == 0.5
    assert floor.dropped(logprobs) is None
    floor.after(7, chosen=True)
    assert floor.temperature(logits, 0.5) == 0.9
    assert floor.temperature(logits, 1.5) == 1.5, "it is no ceiling"
    dropped = floor.dropped(logprobs)
    assert dropped is not None
    assert dropped.tolist() == [False, False, True, True]
    even = floor.dropped(torch.full((9,), -math.log(9.0)))
    assert even is not None
    assert even.tolist() == [False] + [True] * 8, "one token is always left"
    found = acted.take()
    assert found["action_share"] == 2
    assert found["floor_share"] == 1
    assert found["floor_change"] == pytest.approx(0.8)
    assert found["floor_cut_share"] == 2


@pytest.mark.parametrize("names", [("heat",), ("mirostat",), ("floor",), ("heat", "floor", "mirostat")])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_learner_scores_what_was_drawn(names: tuple[str, ...], temperature: float) -> None:
    policy = moved(made(LoRAConfig(rank=4)), 0.1)
    policy.temperature = temperature
    acted = Acted()
    processors = [Decoded(held, rules(acted, *names), None, temperature, acted) for held in holding()]
    said = replies(engine(policy.sampler), processors, Sampling(temperature, max_tokens=24))
    assert all(reply.processing is not None for reply in said)
    hot = [reply.processing.temperatures for reply in said if reply.processing is not None]
    if names == ("heat",):
        assert len(set(np.concatenate(hot).tolist())) > 10, "a temperature for each token"
    batch = rows(said)
    scores = policy.score(batch, entropy=True)
    assert scores.entropies is not None
    mask = batch.action_mask
    np.testing.assert_allclose(scores.logprobs[mask].detach(), batch.behaviour_logprobs[mask], atol=1e-5)
    np.testing.assert_allclose(scores.entropies[mask].detach(), batch.behaviour_entropies[mask], atol=1e-5)
    counted = acted.take()
    assert counted["tokens"] >= int(mask.sum())
    for name in names:
        assert counted[f"{name}_share"] > 0


def holding() -> list[Processor | None]:
    """What may restrict a reply beside the rules."""
    sets = [[7, 11, 40, 90], None, [9], [11], [12, 300], None, [5, 6, 7, 8]]
    return [None, Scripted(sets), Scripted(sets, {}, {3: 11}), Scripted([], without={0: [END, 7], 1: [3, 9]}), None]


def test_what_is_no_choice_costs_no_step_and_is_not_counted() -> None:
    acted, player = Acted(), engine(tiny_model())
    menu = Menu([(5, 6, 7, END), (5, 6, 9, END)])
    (reply,) = replies(player, [decoded("heat", "mirostat", acted=acted, held=menu)], LONG)
    assert reply.ids.tolist() in ([5, 6, 7, END], [5, 6, 9, END])
    assert player.counts.steps == 1
    assert acted.take()["tokens"] == 1
    assert reply.processing is not None
    assert reply.processing.counts.tolist() == [1, 1, 2, 1]


def test_a_rule_that_changes_nothing_leaves_nothing_behind() -> None:
    model = tiny_model()
    cold = HeatRule(Heat(HEAT.spread, 0.0), Acted())
    far = Mirostat(MirostatConfig(target=50.0), Acted())
    idle = Decoded(None, [cold, far], None, 1.0, Acted())
    plain, same = (replies(engine(model), [None, of], LONG)[1] for of in (None, idle))
    assert same.processing is None
    assert same.ids.tolist() == plain.ids.tolist()


def test_greedy_replies_have_no_rules() -> None:
    own = chat()
    config = AgentConfig(decoding=DecodingConfig(mirostat=MirostatConfig()))
    assert Guides(own, config).decoded(None, Sampling(0.0), None) is None
    assert Guides(own, config).decoded(None, Sampling(), None) is not None
    assert Guides(own, AgentConfig()).decoded(None, Sampling(), None) is None
    assert Guides(own, AgentConfig()).decoded(None, Sampling(heat=HEAT), None) is not None


def test_vllm_draws_by_the_same_rules() -> None:
    """What it reports of its logits is what our own engine makes of them, token by token."""
    logits = torch.randn(12, 300, generator=torch.Generator().manual_seed(1)) * 2
    held = (Scripted([None, [4, 5, 6, 90]]) for _ in range(2))
    ours, theirs = (Course(decoded("heat", "floor", "mirostat", held=own)) for own in held)
    drawing = Drawing(3, LONG, theirs)
    for place, row in enumerate(logits):
        step = ours.step(row if ours.processor.needs_logits else None)
        heat = Sampling(step.temperature or 1.0)
        ids, logprobs, entropies = sample(inside(row, step)[None], [heat], [drawing.seed(place)])
        ours.take(int(ids), float(logprobs), float(entropies))
        told = row[None].clone()
        tell(told, [0], [drawing], [place])
        token = int(told.argmax())
        assert token == int(ids)
        found = heard(token, {number: float(value) for number, value in enumerate(told[0]) if value > -math.inf})
        assert found == (pytest.approx(float(logprobs)), pytest.approx(float(entropies)))
    assert ours.record(1.0) is not None
    np.testing.assert_array_equal(ours.record(1.0).temperatures, theirs.record(1.0).temperatures)  # type: ignore[union-attr]


def second(model: Any, slots: int = 8) -> SecondModel:
    return SecondModel("the other", engine(model, slots))


def drawn_by(other: SecondModel, config: SecondConfig, acted: Acted, sampling: Sampling, owner: int) -> Decoded:
    switch = Switch(config, other.of_reply(owner, PROMPT, owner, sampling), acted)
    return Decoded(None, [], switch, sampling.temperature, acted)


def test_the_second_model_draws_where_the_first_was_unsure() -> None:
    """Each token, greedy, is that of the model that had to draw it, after all tokens before."""
    first, other = tiny_model(), tiny_model(seed=5)
    config = SecondConfig(model="other", threshold=5.0, window=2, least=3)
    acted, greedy = Acted(), Sampling(0.0, max_tokens=24)
    (reply,) = replies(engine(first), [drawn_by(second(other), config, acted, greedy, 0)], greedy)
    counted = acted.take()
    assert reply.processing is not None
    by_other = reply.processing.forced
    assert 0 < by_other.sum() == counted["second_share"] < len(reply.ids) == counted["tokens"]
    ids, entropies, is_on, since = [*PROMPT.tolist()], list[float](), False, 0
    switches = 0
    for place, token in enumerate(reply.ids.tolist()):
        with torch.no_grad():
            logits = (other if is_on else first)(torch.tensor([ids])).logits[0, -1].float()
        assert by_other[place] == is_on
        assert token == int(logits.argmax())
        ids.append(token)
        entropies.append(float(torch.special.entr(torch.softmax(logits, -1)).sum()))
        since += 1
        wanted = float(np.mean(entropies[-2:])) > 5.0
        if len(entropies) >= 2 and wanted != is_on and since >= 3:
            is_on, since, switches = wanted, 0, switches + 1
    assert counted["second_switches"] == switches
    batch = rows([reply])
    assert batch.action_mask[0, len(PROMPT) :].tolist() == (~by_other).tolist(), "nobody learns what the other one said"
    assert not reply.logprobs[by_other].any()


def test_the_second_model_keeps_to_what_is_allowed_and_computes_nothing_twice() -> None:
    other = second(tiny_model(seed=5), slots=2)
    draw = other.of_reply(1, PROMPT, 9, LONG)
    assert {draw([7] * n, Step(allowed=np.array([20, 30], np.int32)))[0] for n in range(12)} == {20, 30}
    computed = other.engine.counts.prefill_tokens
    assert computed < 2 * len(PROMPT), "its context is kept"
    assert draw([7], Step())[0] == draw([7], Step())[0], "a draw depends on its place alone"
    for owner in (2, 3):
        other.of_reply(owner, PROMPT, 9, LONG)([], Step())
    assert other.engine.num_free == 0
    assert list(other._slots) == [2, 3], "the context that was not used for the longest time went"


def test_replies_do_not_depend_on_who_else_asks_the_second_model() -> None:
    first, other = tiny_model(), tiny_model(seed=5)
    config = SecondConfig(model="other", threshold=0.0, window=1, least=1)

    def said(slots: int) -> list[Reply]:
        shared = second(other, slots)
        return replies(engine(first), [drawn_by(shared, config, Acted(), LONG, owner) for owner in range(4)], LONG)

    for one, many in zip(said(1), said(8), strict=True):
        assert one.ids.tolist() == many.ids.tolist()


def mask_of(step: Step, size: int) -> Tensor:
    return ~torch.isneginf(inside(torch.zeros(size), step))


@pytest.mark.parametrize("kept", [[1, 5], [0, 1, 2, 3, 4, 6, 7], list(range(8))])
def test_a_step_of_a_mask_holds_the_smaller_side(kept: list[int]) -> None:
    allowed = torch.zeros(8, dtype=torch.bool)
    allowed[kept] = True
    step = Step.of(allowed, 0.5)
    assert mask_of(step, 8).tolist() == allowed.tolist()
    assert len(step.ids) <= 4
    assert step.temperature == 0.5
