"""Induction heads at initialisation: they copy untrained, in an ordinary model, and only where they were asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, Qwen3ForCausalLM

from tests.models import TINY, tokenizer
from turnwise.config.files import load_config
from turnwise.jobs import export, resume, train
from turnwise.models.attention import packed_plan
from turnwise.models.loading import save_model
from turnwise.models.paths import forward_of
from turnwise.models.policy import Policy
from turnwise.models.scratch import new_model
from turnwise.models.settings import INDUCTION_NEEDS, LoRAConfig, ScratchModelConfig
from turnwise.runs.directory import RunDirectory

SMALL = ScratchModelConfig(hidden_size=128, num_layers=2, num_heads=2, num_kv_heads=2, head_dim=64, ffn_size=64)


def with_heads(shape: ScratchModelConfig = SMALL, seed: int = 0) -> Any:
    return new_model(shape, tokenizer(), seed=seed)


def repeated(model: Any, length: int = 48, rows: int = 4) -> torch.Tensor:
    """Random strings of ``length`` tokens, each twice: [rows, 2 length]."""
    drawn = torch.Generator().manual_seed(1)
    once = torch.randint(model.config.vocab_size, (rows, length), generator=drawn)
    return torch.cat((once, once), 1)


@torch.no_grad()
def copied(model: Any, length: int = 48) -> float:
    """The mean probability of the true token in the second half, from its second token on."""
    ids = repeated(model, length)
    found = model(ids).logits[:, :-1].softmax(-1).gather(-1, ids[:, 1:, None])
    return float(found[:, length + 1 :].mean())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"rope_theta": 1e6},
        {"num_heads": 6, "num_layers": 3, "hidden_size": 192, "rope_theta": 1e6},
        {"hidden_size": 512, "num_heads": 8, "num_kv_heads": 4},
        {"head_dim": 128},
    ],
)
def test_random_strings_are_continued_untrained(changes: dict[str, Any]) -> None:
    assert copied(with_heads(SMALL.model_copy(update=changes))) > 0.95


def test_the_least_shape_carries_them() -> None:
    least = ScratchModelConfig(**{**SMALL.model_dump(), **{n: int(x) for n, x in INDUCTION_NEEDS.items()}})
    assert copied(with_heads(least)) > 0.9


def test_without_them_nothing_is_copied() -> None:
    assert copied(with_heads(SMALL.model_copy(update={"induction_heads": False}))) < 0.05


def test_without_them_a_model_is_as_transformers_draws_it() -> None:
    made = with_heads(SMALL.model_copy(update={"induction_heads": False}), seed=3)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        plain = Qwen3ForCausalLM(made.config)
    assert all(torch.equal(weight, made.state_dict()[name]) for name, weight in plain.state_dict().items())


def attention(model: Any, ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """[rows, heads, T, T] of each layer."""
    model.set_attn_implementation("eager")
    with torch.no_grad():
        found: tuple[torch.Tensor, ...] = model(ids, output_attentions=True).attentions
    return found


def test_the_heads_look_where_they_should() -> None:
    model, length = with_heads(SMALL.model_copy(update={"num_heads": 4})), 48
    looking, finding = attention(model, repeated(model, length))[:2]
    rows = torch.arange(2, 2 * length)
    assert looking[:, 0, rows, rows - 1].min() > 0.6, "one token back"
    assert looking[:, 2, rows, rows - 2].min() > 0.6, "two tokens back: the first head of the second group"
    rows = torch.arange(length + 2, 2 * length)
    assert finding[:, 0, rows, rows - length + 1].mean() > 0.8, "the token after the last two, where they stood before"


def test_it_is_an_ordinary_model(tmp_path: Path) -> None:
    model = with_heads(SMALL.model_copy(update={"rope_theta": 1e6}))
    save_model(model, tokenizer(), tmp_path)
    read = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert read.config.model_type == "qwen3"
    assert read.config.rope_parameters["rope_theta"] == 1e6
    ids = repeated(model, rows=1)
    with torch.no_grad():
        expected = model(ids).logits[0]
        assert torch.equal(read(ids).logits[0], expected)
        forward, places = forward_of(model), torch.arange(ids.shape[1]).numpy()
        ours = forward.logits(forward.states(ids[0], packed_plan([ids.shape[1]], places, model.device)))
    assert (ours - expected).abs().max() < 1e-4


def test_adapters_train_every_part_of_them() -> None:
    policy = Policy(with_heads(), tokenizer(), lora=LoRAConfig(rank=2))
    before = copied(policy.sampler)
    assert before > 0.95
    ids = repeated(policy.sampler)
    policy.model(ids, labels=ids).loss.backward()
    grads = {n: p.grad for n, p in policy.model.named_parameters() if p.requires_grad and "lora_B" in n}
    assert len(grads) == 14
    assert all(grad is not None and bool(grad.abs().max() > 0) for grad in grads.values())


def test_every_weight_has_a_gradient() -> None:
    """What begins at zero can still be learned: the empty parts of embeddings, the outputs of the other heads."""
    model = with_heads(SMALL.model_copy(update={"num_heads": 4}))
    ids = repeated(model)
    model(ids, labels=ids).loss.backward()
    first = model.model.layers[0].self_attn
    for grad in (model.model.embed_tokens.weight.grad, first.o_proj.weight.grad):
        assert bool((grad.abs().sum(0) > 0).all())


def test_seeds_draw_other_tokens_and_the_same_seed_the_same() -> None:
    one, again, other = (with_heads(seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(weight, again[name]) for name, weight in one.items())
    assert not torch.equal(one["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


def test_only_three_heads_and_the_embeddings_are_set() -> None:
    four = SMALL.model_copy(update={"num_heads": 4, "num_layers": 3})
    plain = with_heads(four.model_copy(update={"induction_heads": False})).state_dict()
    found = with_heads(four).state_dict()
    changed = {name for name, weight in found.items() if not torch.equal(weight, plain[name])}
    attention = {f"model.layers.{i}.self_attn.{x}" for i in (0, 1) for x in ("q_norm", "k_norm")}
    attention |= {f"model.layers.{i}.self_attn.{x}_proj" for i in (0, 1) for x in "qkvo"}
    others = {"model.embed_tokens", "lm_head", "model.norm"}
    assert changed == {f"{name}.weight" for name in attention | others}
    for layer, rows in ((0, slice(64, 128)), (0, slice(192, 256)), (1, slice(64, 256))):
        name = f"model.layers.{layer}.self_attn.q_proj.weight"
        assert torch.equal(found[name][rows], plain[name][rows])


def test_they_are_there_where_the_shape_carries_them() -> None:
    assert SMALL.induction_heads is True
    assert not any(shape.induction_heads for shape in (TINY, ScratchModelConfig()))
    assert ScratchModelConfig(head_dim=64, induction_heads=False).induction_heads is False
    for name in ("alfworld", "alfworld-homes", "webshop"):
        assert load_config(name).model.induction_heads  # type: ignore[union-attr]
    for name in ("household", "learning/alfworld"):
        assert not load_config(name).model.induction_heads  # type: ignore[union-attr]


@pytest.mark.parametrize("name", INDUCTION_NEEDS)
def test_a_shape_that_is_too_small_is_refused_with_its_numbers(name: str) -> None:
    less = {name: int(INDUCTION_NEEDS[name]) - 1}
    assert ScratchModelConfig(**{**SMALL.model_dump(exclude={"induction_heads"}), **less}).induction_heads is False
    with pytest.raises(ValidationError) as error:
        ScratchModelConfig(**{**SMALL.model_dump(), **less, "induction_heads": True})
    assert f"induction_heads=true needs {name} >= {INDUCTION_NEEDS[name]:g} (now {less[name]:g})" in str(error.value)


def test_a_configuration_that_asks_for_too_much_gets_one_line() -> None:
    with pytest.raises(ValueError, match="induction_heads") as error:
        load_config("household", ["model.induction_heads=true", "model.num_layers=1"])
    assert "num_layers >= 2 (now 1), head_dim >= 64 (now 32)" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:not one of the first")
def test_a_run_begins_with_them_goes_on_and_is_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURNWISE_CACHE", str(tmp_path / "cache"))
    shape = ("model.head_dim=64", "model.hidden_size=128", "model.num_kv_heads=2", "model.num_phrases=0")
    short = ("warmstart.max_tokens=1000", "warmstart.tokenizer_episodes=20", "warmstart.batch_episodes=2")
    little = ("num_updates=1", "rollout={num_tasks: 2, group_size: 2, num_slots: 4}", "eval={every: 0, test_tasks: 2}")
    train(load_config("smoke", [*shape, *short, *little]), tmp_path / "run")
    resume(tmp_path / "run", settings=["num_updates=2"])
    run = RunDirectory.open(tmp_path / "run")
    assert len(run.metrics()) == 2
    assert run.config().model.induction_heads is True  # type: ignore[union-attr]
    export(tmp_path / "run", tmp_path / "exported")
    assert copied(AutoModelForCausalLM.from_pretrained(tmp_path / "exported")) > 0.5, "it copies after cloning, too"
