"""Behaviour cloning: what is learned, what is left out, and that it learns."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.models import TINY, tokenizer
from turnwise.agents.chat import ChatFormat
from turnwise.agents.prompts import AgentConfig
from turnwise.assembly.run import Assembly
from turnwise.cloning.demonstrations import Demonstration, demonstrations
from turnwise.cloning.losses import Whole, cloning_loss
from turnwise.cloning.rows import rows_of
from turnwise.cloning.settings import WarmstartConfig
from turnwise.cloning.steps import Cloner, cooled
from turnwise.cloning.warmstart import Cloning
from turnwise.config.files import load_config
from turnwise.envs.settings import EnvConfig
from turnwise.envs.tasks import make_env
from turnwise.models.scratch import new_model, set_phrases, train_tokenizer
from turnwise.models.settings import PretrainedModelConfig, ScratchModelConfig

AGENT = AgentConfig()
SHOWN = Demonstration(
    observations=("You arrive at cabinet 1.", "On the cabinet 1, you see a mug 2.", "ok"),
    infos=({}, {}, {}),
    actions=("go to drawer 1", "look", "go to drawer 2"),
    learn=(True, False, True),
    success=True,
)


def test_only_the_expert_s_actions_are_learned() -> None:
    chat = ChatFormat(tokenizer())
    (row,) = rows_of(SHOWN, chat, AGENT, "", observation_weight=0.0)
    learned = tokenizer().decode(row.ids[row.weights == 1.0])
    assert learned == "go to drawer 1<|end|>go to drawer 2<|end|>"
    (row,) = rows_of(SHOWN, chat, AGENT, "", observation_weight=0.25)
    noise = tokenizer().decode(row.ids[row.weights == 0.0])
    assert noise == "look<|end|>", "noise stays in the context, unlearned"
    assert set(row.weights) == {0.0, 0.25, 1.0}


def test_windowed_agents_clone_one_row_a_turn() -> None:
    chat = ChatFormat(tokenizer())
    rows = rows_of(SHOWN, chat, AgentConfig(context="window"), "", 0.0)
    assert [tokenizer().decode(row.ids[row.weights == 1.0]) for row in rows] == [
        "go to drawer 1<|end|>",
        "",
        "go to drawer 2<|end|>",
    ]


def test_the_loss_is_the_weighted_cross_entropy() -> None:
    chat = ChatFormat(tokenizer())
    rows = rows_of(SHOWN, chat, AGENT, "", 0.3) * 2
    model = new_model(TINY, tokenizer(), seed=0)
    total, weight = 0.0, 0.0
    with torch.no_grad():
        for row in rows:
            ids = torch.from_numpy(row.ids.astype(np.int64))
            full = torch.log_softmax(model(ids[None]).logits[0], -1)[:-1].gather(-1, ids[1:, None])[:, 0]
            total -= float((full * torch.from_numpy(row.weights[1:])).sum())
            weight += float(row.weights[1:].sum())
        assert abs(float(cloning_loss(model, rows)[0]) - total / weight) < 1e-5


@pytest.mark.parametrize("muon_lr", [0.02, 0.0])
def test_cloning_learns_a_demonstration_by_heart(muon_lr: float) -> None:
    chat = ChatFormat(tokenizer())
    model = new_model(TINY, tokenizer(), seed=0)
    rows = rows_of(SHOWN, chat, AGENT, "", 0.0)
    cloner = Cloner(Whole(model), WarmstartConfig(muon_lr=muon_lr, warmup_steps=5))
    first = cloner.step(rows)
    for _ in range(100):
        last = cloner.step(rows)
    assert last.loss < 0.05 < first.loss


def test_the_rates_fall_over_the_last_tokens() -> None:
    rows = rows_of(SHOWN, ChatFormat(tokenizer()), AGENT, "", 0.0)
    cloner = Cloner(Whole(new_model(TINY, tokenizer(), seed=0)), WarmstartConfig(warmup_steps=0))
    found = []
    for left in (1.0, 0.5, 0.25, 0.1):
        cloner.step(rows, cooled(left, 0.5))
        found.append([optimizer.param_groups[0]["lr"] for optimizer in cloner.optimizers])
    assert np.allclose(found, np.outer([1, 1, 0.5, 0.2], [4e-3, 0.02]))


def test_demonstrations_may_come_from_another_world(monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = ("warmstart.env=turnwise/Household-v0", "warmstart.env_kwargs={difficulty: hard}")
    config = load_config("frozenlake", [*elsewhere, "eval.test_tasks=4", "eval.tasks=4"])
    seen = []
    monkeypatch.setattr(
        "turnwise.assembly.warmstart.warmstart",
        lambda cloning, worlds, *_, **__: seen.extend((each.world.unwrapped, each.share) for each in worlds),
    )
    with closing(Assembly(config)) as assembly:
        assembly.warmstart.make(fresh=True)
        assert [(world.difficulty, share) for world, share in seen] == [("hard", 1)]
        assert assembly.panels.test  # whose tasks are none of the demonstrated ones
        easy = Assembly(load_config("frozenlake", [elsewhere[0]]))
        assert assembly.warmstart.cloning.key != easy.warmstart.cloning.key
    both = load_config("frozenlake", [*elsewhere, "eval.test_tasks=4", "eval.tasks=4", "warmstart.own_share=0.25"])
    with closing(Assembly(both)) as assembly:
        assembly.warmstart.make(fresh=True)
        assert [share for _, share in seen[1:]] == [0.75, 0.25]
        assert seen[2][0] is assembly.world.unwrapped
        assert assembly.warmstart.cloning.key != Assembly(config).warmstart.cloning.key
    with pytest.raises(ValueError, match="Did you mean 'turnwise/Household-v0'"):
        _ = Assembly(load_config("frozenlake", ["warmstart.env=turnwise/Hausehold-v0"])).panels
    with pytest.raises(ValueError, match="own world: leave it out"):
        load_config("household", [elsewhere[0]])
    with pytest.raises(ValueError, match=r"env_kwargs are of warmstart\.env"):
        load_config("frozenlake", [elsewhere[1]])


def test_sharper_norms_let_a_small_head_look_at_one_token() -> None:
    plain, sharp = (new_model(TINY.model_copy(update={"qk_norm": x}), tokenizer(), seed=0) for x in (1.0, 1.7))
    for name, weight in plain.state_dict().items():
        expected = 1.7 * weight if "q_norm" in name or "k_norm" in name else weight
        assert torch.allclose(sharp.state_dict()[name], expected), name


def test_set_phrases_leave_names_alone() -> None:
    env = make_env("turnwise/Household-v0")
    source = demonstrations(env, WarmstartConfig(), seed=0)
    texts: list[str] = []
    for _ in range(60):
        shown = next(source)
        texts += [*shown.observations, *shown.actions]
    phrases = set_phrases(texts, 30, min_count=20)
    assert "You arrive at" in phrases
    assert not any(any(c.isdigit() for c in phrase) for phrase in phrases)
    plain, short = train_tokenizer(texts, 700), train_tokenizer(texts, 700, 30)
    lengths = [sum(len(t.encode(text)) for text in texts) for t in (plain, short)]
    assert lengths[1] < 0.8 * lengths[0]
    for text in texts[:50]:
        assert short.decode(short.encode(text)) == text


def test_the_cache_key_follows_what_matters() -> None:
    def key(*settings: str) -> str:
        return Assembly(load_config("household", settings)).warmstart.cloning.key

    assert key() == key("num_updates=3", "optimizer.lr=1e-5", "algorithm=grpo")
    others = (
        "seed=1",
        "warmstart.noise=0.3",
        "model.num_layers=2",
        "agent.max_reply_tokens=9",
        "agent.constrained=true",
    )
    assert len({key(), *map(key, others)}) == 6


@pytest.mark.parametrize("changed", ["my_world.py", "tasks.jsonl", "model/model.safetensors", "model/tokenizer.json"])
def test_the_cache_key_follows_the_files_that_settings_name(
    changed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An expert, tasks or a model that was edited under its old name is another one."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "model").mkdir()
    for name in ("my_world.py", "tasks.jsonl", "model/model.safetensors", "model/tokenizer.json", "model/README.md"):
        (tmp_path / name).write_text("before")
    env = EnvConfig(id="my_world:my/World-v0", kwargs={"tasks": {"train": str(tmp_path / "tasks.jsonl")}})
    model = PretrainedModelConfig(path=str(tmp_path / "model"), dtype="float32")
    settings = WarmstartConfig(split="train")
    cloning = Cloning(settings, model, AgentConfig(), env, 0, "cpu", {})
    before = cloning.key
    assert cloning.key == before
    (tmp_path / "model/README.md").write_text("another one")
    assert cloning.key == before
    (tmp_path / changed).write_text("another")
    assert cloning.key != before
    elsewhere = replace(cloning, env=EnvConfig(id="turnwise/Household-v0"), settings=WarmstartConfig(env=env.id))
    told = elsewhere.key
    (tmp_path / "my_world.py").write_text("and again")
    assert elsewhere.key != told


def test_models_without_induction_heads_have_the_keys_of_before() -> None:
    """The clones that caches hold were made when there were neither these heads nor a setting for the rotary base."""
    cloning = Assembly(load_config("cloned")).warmstart.cloning
    large = {**cloning.model.model_dump(exclude={"induction_heads"}), "head_dim": 64}

    def key(**settings: object) -> str:
        return replace(cloning, model=ScratchModelConfig(**(large | settings))).key

    assert key(head_dim=32) == "53bc204499c36be5", "written by a version without them"
    assert key(induction_heads=False) == "ab9de8a0809a3249"
    assert key() == key(induction_heads=True)
    assert len({key(), key(induction_heads=False), key(rope_theta=1e6), key(head_dim=32, rope_theta=1e6)}) == 4


def test_split_digits_make_numbers_copyable() -> None:
    texts = [f"b{n}: curtains; click[b{n}]" for n in range(1000, 1400)]
    made = train_tokenizer(texts, 700, split_digits=True)
    pieces = [made.decode([token]) for token in made("click[b1234]")["input_ids"]]
    assert [piece for piece in pieces if piece.strip().isdigit()] == ["1", "2", "3", "4"]
    assert made.decode(made("b1234: curtains")["input_ids"]) == "b1234: curtains"
