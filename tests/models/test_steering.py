"""Steered states: what is fitted, what the model computes then, and that sampler and learner have the same."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from tests.models import tiny_model, tokenizer
from tests.models.families import family_policy
from tests.models.test_policy import made, moved
from tests.models.test_processing import PROMPT, engine, replies, rows
from turnwise.agents.decoding import DecodingConfig, SteeringConfig
from turnwise.agents.guiding import Guides
from turnwise.agents.prompts import AgentConfig
from turnwise.assembly.steering import fit, steer, write
from turnwise.models.drawing import Sampling
from turnwise.models.loading import load_model, save_model
from turnwise.models.policy import Policy
from turnwise.models.settings import LoRAConfig
from turnwise.models.steering import Shift, Steering, fitted, put, states_at
from turnwise.trajectory import Task, Trajectory, Turn

LONG = Sampling(max_tokens=16)


def shift(scale: float = 2.0, layer: int = 0) -> Shift:
    return Shift(layer, scale * torch.randn(32, generator=torch.Generator().manual_seed(3)))


def hooked(model: Any, of: Shift, ids: list[int]) -> Tensor:
    """Logits [T, V] of transformers' own forward pass, to which the vector is added from outside."""
    layer = model.model.layers[of.layer]
    hook = layer.register_forward_hook(lambda _, given, out: out + of.vector)
    try:
        with torch.no_grad():
            return model(torch.tensor([ids])).logits[0]  # type: ignore[no-any-return]
    finally:
        hook.remove()


def test_a_direction_is_the_states_weighted_by_entropy_less_their_mean(tmp_path: Path) -> None:
    """(1 * [0, 0] + 3 * [4, 8]) / 4 - [2, 4] = [1, 2]; the norms 0 and 80^.5 have the mean 20^.5."""
    found = fitted(torch.tensor([[0.0, 0.0], [4.0, 8.0]]), torch.tensor([1.0, 3.0]), layer=5)
    assert found.direction.tolist() == [1.0, 2.0]
    assert found.size == pytest.approx(20**0.5)
    assert found.shift(0.5).vector.tolist() == pytest.approx([1.0, 2.0])
    assert found.shift(-0.5).vector.tolist() == pytest.approx([-1.0, -2.0])
    write(found, tmp_path / "v.safetensors")
    again = Steering.read(tmp_path / "v.safetensors")
    assert (again.layer, again.size, again.contexts) == (5, found.size, 2)
    torch.testing.assert_close(again.direction, found.direction, atol=0, rtol=0)
    with pytest.raises(ValueError, match="exists"):
        write(found, tmp_path / "v.safetensors")


def test_actions_that_are_equally_unsure_give_no_direction() -> None:
    for entropies in ([], [0.0, 0.0], [2.0, 2.0]):
        with pytest.raises(ValueError, match="equally uncertain"):
            fitted(torch.zeros(len(entropies), 4), torch.tensor(entropies), 0)


@pytest.mark.parametrize("lora", [LoRAConfig(rank=4), None])
def test_sampler_and_learner_compute_the_steered_model(lora: LoRAConfig | None) -> None:
    """Both are held against transformers' own forward pass with a hook; in float64 up to 1e-6."""
    policy = Policy(tiny_model().double(), tokenizer(), lora=lora)
    moved(policy, 0.1 if lora else 0.0)
    plain = tiny_model().double()
    plain.load_state_dict(policy.merged().state_dict())
    policy.steer(Shift(0, shift().vector.double()))
    said = replies(engine(policy.sampler), [None, None], LONG)
    batch = rows(said)
    mask = batch.action_mask
    scores = policy.score(batch, entropy=True)
    assert scores.entropies is not None
    np.testing.assert_allclose(scores.logprobs[mask].detach(), batch.behaviour_logprobs[mask], atol=1e-6)
    np.testing.assert_allclose(scores.entropies[mask].detach(), batch.behaviour_entropies[mask], atol=2e-6)
    for reply in said:
        ids = [*PROMPT.tolist(), *reply.ids.tolist()]
        full = torch.log_softmax(hooked(plain, Shift(0, shift().vector.double()), ids), -1)
        own = full[len(PROMPT) - 1 : -1].gather(1, torch.tensor(reply.ids[:, None].astype(np.int64)))[:, 0]
        np.testing.assert_allclose(own, reply.logprobs, atol=1e-6)
    policy.steer(None)
    far = (policy.score(batch).logprobs - batch.behaviour_logprobs)[mask].abs().max()
    assert float(far) > 0.1, "the steering is what makes them so"


def test_a_cache_and_a_fork_are_of_the_steered_model() -> None:
    policy = made()
    policy.steer(shift())
    player = engine(policy.sampler)
    slot = player.open()
    player.submit(slot, PROMPT, fresh=True, key=1, sampling=LONG)
    while not (first := player.step()):
        pass
    other = player.fork(slot)
    more = np.array([40, 41, 42], np.int32)
    ids = [*PROMPT.tolist(), *first[0].ids.tolist(), *more.tolist()]
    for handle in (slot, other):
        player.submit(handle, more, fresh=False, key=2, sampling=replace(LONG, temperature=0.0))
    said = list[Any]()
    while len(said) < 2:
        said += player.step()
    full = hooked(tiny_model(), shift(), [*ids, *said[0].ids.tolist()])
    assert said[0].ids.tolist() == said[1].ids.tolist() == full[len(ids) - 1 : -1].argmax(-1).tolist()


def test_steering_has_a_name_and_leaves_no_trace() -> None:
    policy = moved(made())
    plain, version = policy.adapter_hash, policy.version
    batch = rows(replies(engine(policy.sampler), [None], LONG))
    before = policy.score(batch).logprobs
    policy.steer(shift())
    steered = policy.adapter_hash
    assert plain != steered == policy.sampler.weights_hash
    policy.steer(shift())
    assert (policy.adapter_hash, policy.version) == (steered, version)
    policy.steer(shift(2.5))
    assert policy.adapter_hash not in (plain, steered)
    policy.steer(shift(layer=0))
    policy.sync(7)
    assert policy.adapter_hash == steered, "a sync does not lose it"
    policy.steer(None)
    assert policy.adapter_hash == plain
    assert torch.equal(policy.score(batch).logprobs, before)


def test_a_reference_is_steered_as_the_policy_is() -> None:
    for lora, first in ((LoRAConfig(rank=4), False), (None, False), (None, True)):
        policy = made(lora)
        if first:
            policy.steer(shift())
        policy.keep_reference()
        policy.steer(shift())
        batch = rows(replies(engine(policy.sampler), [None], LONG))
        torch.testing.assert_close(policy.score(batch, reference=True).logprobs, policy.score(batch).logprobs)


def test_a_saved_model_is_not_steered(tmp_path: Path) -> None:
    policy = made()
    expected = {name: tensor.clone() for name, tensor in policy.merged().state_dict().items()}
    policy.steer(shift())
    policy.save_merged(tmp_path / "m")
    again = load_model(tmp_path / "m")[0].state_dict()
    assert again.keys() == expected.keys()
    assert all(torch.equal(again[name], expected[name]) for name in expected)


def test_half_precision_agrees_too() -> None:
    policy = Policy(tiny_model().bfloat16(), tokenizer(), lora=LoRAConfig(rank=4))
    policy.steer(shift())
    batch = rows(replies(engine(policy.sampler), [None, None], LONG))
    difference = (policy.score(batch).logprobs - batch.behaviour_logprobs)[batch.action_mask].abs()
    assert float(difference.mean()) < 0.05


def test_what_does_not_fit_is_refused_by_name() -> None:
    policy = made()
    before = policy.adapter_hash
    for wrong, match in (
        (Shift(0, torch.zeros(31)), r"31 wide, and the model's states are 32"),
        (Shift(1, torch.zeros(32)), r"layer 1 cannot be steered: .*from 0 to 1"),
        (Shift(-1, torch.zeros(32)), r"layer -1 cannot be steered"),
    ):
        with pytest.raises(ValueError, match=match):
            policy.steer(wrong)
        assert policy.shift is None
        assert policy.adapter_hash == before
    with pytest.raises(ValueError, match=r"qwen2, qwen3, llama.* and this one is a gpt2"):
        family_policy("gpt2").steer(Shift(0, torch.zeros(32)))


def test_a_file_that_is_no_vector_is_refused(tmp_path: Path) -> None:
    save_model(tiny_model(), tokenizer(), tmp_path / "m")
    (tmp_path / "text").write_text("no")
    for name in ("gone", "text", "m/model.safetensors"):
        with pytest.raises(ValueError, match=r"is no steering vector .*turnwise steering RUN --to FILE"):
            Steering.read(tmp_path / name)


@pytest.mark.parametrize(
    ("direction", "size", "match"),
    [
        (torch.zeros(4), 1.0, "finite, and not 0"),
        (torch.tensor([1.0, math.nan]), 1.0, "finite, and not 0"),
        (torch.tensor([1.0, math.inf]), 1.0, "finite, and not 0"),
        (torch.ones(4), math.nan, "finite, and not 0"),
        (torch.ones(4), 0.0, "finite, and not 0"),
        (torch.ones(4, dtype=torch.int64), 1.0, r"torch\.int64 of shape \[4\], not floats"),
        (torch.ones(2, 4), 1.0, r"torch\.float32 of shape \[2, 4\], not floats"),
    ],
)
def test_a_vector_without_a_direction_is_refused(direction: Tensor, size: float, match: str, tmp_path: Path) -> None:
    Steering(0, direction, size, 9).save(tmp_path / "v")
    with pytest.raises(ValueError, match=rf"is no steering vector .*{match}"):
        Steering.read(tmp_path / "v")


def test_states_that_do_not_go_with_entropy_give_no_direction() -> None:
    with pytest.raises(ValueError, match="no direction in them"):
        fitted(torch.ones(3, 4), torch.tensor([0.0, 1.0, 2.0]), 0)


def test_a_vector_is_found_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    Steering(0, torch.ones(4), 1.0, 9).save(tmp_path / "v")
    assert Steering.read("~/v").contexts == 9


@pytest.mark.parametrize("strength", [0.0, math.nan, math.inf])
def test_a_strength_that_adds_nothing_or_no_number_is_refused(strength: float) -> None:
    with pytest.raises(ValidationError, match="leave agent.decoding.steering out" if strength == 0 else "finite"):
        SteeringConfig(file="v", strength=strength)


def episode(*turns: tuple[bool, list[int], list[int], list[float], int]) -> Trajectory:
    """Of turns (continues, prompt, reply, entropies, tokens of the thought)."""
    made = [
        Turn(
            "",
            np.array(prompt, np.int32),
            continues,
            np.array(reply, np.int32),
            np.zeros(len(reply), np.float32),
            np.array(entropies, np.float32),
            *("", "", True, 0.0),
            thought_tokens=thought,
        )
        for continues, prompt, reply, entropies, thought in turns
    ]
    return Trajectory("e", Task("w", "train", 0, "k"), 0, 0, tuple(made), "terminated", True, 1.0)


def test_a_vector_is_fitted_to_the_contexts_of_stored_replies() -> None:
    """Contexts [9 8], [9 8 7 7 6] and [5]; the first one came twice, with actions of .5 and 1.5 nats: 1 in the mean."""
    model = tiny_model()
    episodes = [
        episode((False, [9, 8], [7, 7], [9.0, 0.5], 1), (True, [6], [4, 4], [1.0, 1.0], 0)),
        episode((False, [9, 8], [4], [1.5], 0), (False, [5], [4], [0.25], 0)),
    ]
    found = fit(model, episodes, layer=0)
    with torch.no_grad():
        hidden = [
            model(torch.tensor([ids]), output_hidden_states=True).hidden_states[1][0, -1]
            for ids in ([9, 8], [9, 8, 7, 7, 6], [5])
        ]
    expected = fitted(torch.stack(hidden), torch.tensor([1.0, 2.0, 0.25]), 0)
    assert found.contexts == 3
    torch.testing.assert_close(found.direction, expected.direction, atol=1e-6, rtol=1e-5)
    assert fit(model, episodes, layer=0, most=2).contexts == 2
    assert fit(model, episodes).layer == 0, "the middle one, of the two that there are"
    with pytest.raises(ValueError, match="no reply"):
        fit(model, [])
    with pytest.raises(ValueError, match="cannot be steered"):
        fit(model, episodes, layer=1)


def test_a_vector_is_fitted_to_the_model_that_is_not_steered() -> None:
    """The states are those of transformers' forward pass, which knows nothing of a shift."""
    model = tiny_model()
    before = states_at(model, torch.tensor([9, 8]), [1], 0)
    put(model, shift())
    assert torch.equal(states_at(model, torch.tensor([9, 8]), [1], 0), before)


def test_settings_steer_a_policy_and_its_tokens_are_counted(tmp_path: Path) -> None:
    fitted(torch.eye(32), torch.arange(32.0), 0).save(tmp_path / "v")
    config = DecodingConfig(steering=SteeringConfig(file=str(tmp_path / "v"), strength=0.5))
    policy = made()
    steer(policy, config)
    assert policy.shift is not None
    assert float(policy.shift.vector.norm()) == pytest.approx(0.5)
    steer(policy, DecodingConfig())
    assert policy.shift is None
    guides = Guides(_chat(), AgentConfig(decoding=config))
    processor = guides.decoded(None, Sampling(), None)
    assert processor is not None
    assert not processor.needs_logits
    (reply,) = replies(engine(policy.sampler), [processor], LONG)
    assert reply.processing is None
    counted = guides.acted.take()
    assert counted == {"tokens": len(reply.ids), "steering_share": len(reply.ids)}


def _chat() -> Any:
    from tests.agents.test_guiding import chat

    return chat()
