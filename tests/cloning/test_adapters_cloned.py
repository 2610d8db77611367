"""Cloning with LoRA: what is trained, in microbatches of any size, and how RL goes on from the adapter."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from rich.console import Console

from tests.cloning.test_cloning import AGENT, SHOWN
from tests.models import scratch_folder, tiny_model, tokenizer
from tests.training.tiny import StopAfter, StopError, timeless
from turnwise import cli
from turnwise.agents.chat import ChatFormat
from turnwise.assembly.players import players
from turnwise.assembly.policies import load_policies
from turnwise.assembly.run import Assembly
from turnwise.cloning.losses import ByPolicy, CloningRow, Whole, cloning_loss
from turnwise.cloning.rows import rows_of
from turnwise.cloning.settings import WarmstartConfig
from turnwise.cloning.steps import Cloner
from turnwise.config.files import load_config, parse_config
from turnwise.config.schema import RunConfig
from turnwise.jobs import export, resume, train, warmstart
from turnwise.models.policy import Policy
from turnwise.models.settings import LoRAConfig, PretrainedModelConfig, ScratchModelConfig
from turnwise.runs.directory import RunDirectory
from turnwise.training.shape import shape_of

LORA = LoRAConfig(rank=4, alpha=8.0)


def rows(weight: float = 0.3) -> list[CloningRow]:
    chat = ChatFormat(tokenizer())
    longer = rows_of(SHOWN, chat, AGENT.model_copy(update={"context": "window"}), "Tidy up. ", weight)
    return rows_of(SHOWN, chat, AGENT, "", weight) + longer


def gradients(cloned: ByPolicy | Whole, of: list[CloningRow]) -> tuple[float, dict[str, torch.Tensor]]:
    loss = cloned.backward(of).loss
    return loss, {n: p.grad for n, p in cloned.model.named_parameters() if p.grad is not None}


def test_the_policy_s_loss_is_the_same_weighted_mean() -> None:
    model = tiny_model()
    whole = float(cloning_loss(model, rows())[0])
    loss, found = gradients(ByPolicy(Policy(tiny_model(), tokenizer(), lora=None)), rows())
    assert abs(loss - whole) < 1e-5
    _, expected = gradients(Whole(model), rows())
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("limit", [40, 90, 100_000])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_microbatches_change_nothing(limit: int, checkpointing: bool) -> None:
    def policy() -> Policy:
        made = Policy(tiny_model(), tokenizer(), lora=LORA, gradient_checkpointing=checkpointing)
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.add_(0.05)
        return made

    of = rows()
    of[1].weights[:] = 0.0  # a row without anything to learn
    loss, found = gradients(ByPolicy(policy(), limit), of)
    whole, expected = gradients(ByPolicy(policy()), of)
    assert abs(loss - whole) < 1e-5
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_adapters_learn_a_demonstration_and_the_base_stays(dtype: str) -> None:
    policy = Policy(tiny_model().to(getattr(torch, dtype)), tokenizer(), lora=LoRAConfig(rank=8))
    before = {n: p.clone() for n, p in policy.model.named_parameters() if not p.requires_grad}
    settings = WarmstartConfig(lora=LoRAConfig(), muon_lr=0, adamw_lr=1e-2, warmup_steps=5)
    cloner = Cloner(ByPolicy(policy, 256), settings)
    of = rows(0.0)[:1]
    first = cloner.step(of)
    for _ in range(80):
        last = cloner.step(of)
    assert last.loss < first.loss - 0.4, "as far as random embeddings allow"
    assert {p.dtype for p in policy.parameters()} == {torch.float32}
    for name, parameter in policy.model.named_parameters():
        assert name not in before or torch.equal(before[name], parameter)


def test_settings_follow_the_kind_of_model(tmp_path: Path) -> None:
    brought = load_config("cloned", [f"model.path={scratch_folder(tmp_path / 'model')}", "warmstart.noise=0.1"])
    assert brought.warmstart is not None
    assert brought.warmstart.lora == LoRAConfig()
    assert (brought.warmstart.adamw_lr, brought.warmstart.muon_lr, brought.warmstart.noise) == (1e-3, 0.0, 0.1)
    assert parse_config(brought.model_dump(mode="json")) == brought
    whole = load_config("cloned", [f"model.path={tmp_path / 'model'}", "warmstart.lora=null"]).warmstart
    assert whole is not None
    assert (whole.lora, whole.muon_lr, whole.microbatch_tokens) == (None, 0.02, 1024)
    small = load_config("cloned").warmstart
    assert small is not None
    assert (small.lora, small.muon_lr, small.adamw_lr, small.microbatch_tokens) == (None, 0.02, 4e-3, None)
    (tmp_path / "model" / "warmstart.json").write_text(json.dumps({"from_scratch": True}))
    ours = load_config("cloned", [f"model.path={tmp_path / 'model'}"]).warmstart
    assert ours is not None
    assert ours.lora is None
    given = RunConfig(model=brought.model, warmstart=WarmstartConfig(noise=0.3))  # type: ignore[call-arg]
    assert given.warmstart is not None
    assert given.warmstart.noise == 0.3
    with pytest.raises(ValueError, match="muon_lr is for whole weight matrices"):
        load_config("cloned", [f"model.path={tmp_path / 'none'}", "warmstart.muon_lr=0.02"])
    with pytest.raises(ValueError, match=r"all of which are cloned: warmstart\.lora=null"):
        load_config("cloned", ["warmstart.lora={}", "warmstart.muon_lr=0"])


def test_old_runs_were_cloned_with_all_weights(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", load_config("cloned", ["model.path=some/model", "warmstart={}"]), {})
    text = run.path.joinpath("config.yaml").read_text()
    start = text.index("  lora:\n    rank", text.index("warmstart:"))
    old = text[:start] + text[text.index("  batch_episodes", start) :].replace("muon_lr: 0.0", "muon_lr: 0.02")
    run.path.joinpath("config.yaml").write_text(old)
    config = RunDirectory.open(run.path).config()
    assert config.warmstart is not None
    assert config.warmstart.lora is None


# --- RL goes on from the adapter ---

TINY = [
    *("env.id=tests.levers:test/Levers-v0", "warmstart.split=train", "warmstart.max_tokens=4000"),
    *("warmstart.batch_episodes=4", "warmstart.adamw_lr=0.01", "agent.max_context_tokens=256"),
    *("rollout.num_tasks=2", "rollout.group_size=4", "rollout.num_slots=8", "eval.every=0", "eval.test_tasks=4"),
    *("num_updates=3", "checkpoint_every=1", "optimizer.lr=1e-2", "algorithm.base.drop_uniform_groups=false"),
    *("lora.rank=4", "lora.alpha=8", "warmstart.lora={rank: 4, alpha: 8}", "agent.show_admissible=false"),
    *("agent.action_format=plain", "agent.instructions=false", "agent.max_reply_tokens=8"),
]


@pytest.fixture(scope="module")
def brought(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Makes configurations of runs of a brought model, with a cache of their own."""
    patch = pytest.MonkeyPatch()
    patch.setenv("TURNWISE_CACHE", str(tmp_path_factory.mktemp("cache")))
    folder = scratch_folder(tmp_path_factory.mktemp("brought"))

    def make(*settings: str) -> RunConfig:
        return load_config("smoke", [f"model.path={folder}", *TINY, *settings])

    yield make
    patch.undo()


Make = Callable[..., RunConfig]


def test_the_cache_holds_an_adapter(brought: Make, tmp_path: Path) -> None:
    config = brought()
    folder = warmstart(config)
    assert (folder / "adapter_config.json").is_file()
    assert not (folder / "model.safetensors").exists()
    assert warmstart(brought("model.adapter=frozen")) == folder, "one clone for every way to go on"
    assert warmstart(brought("warmstart.microbatch_tokens=64")) == folder, "and for every size of memory"
    assert warmstart(brought("warmstart.noise=0.1")) != folder
    model = AutoPeftModelForCausalLM.from_pretrained(folder)
    policy = Policy.load(folder, lora=None)
    ids = torch.arange(5, 40)
    with torch.no_grad():
        ours, theirs = policy.sampler(ids[None]).logits, model(ids[None]).logits
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)
    copied = warmstart(config, to=tmp_path / "copy")
    agent: Any = players(copied, config.env.make(), num_slots=2)[""]
    assert agent.adapter_hash == Policy.load(folder, lora=None).adapter_hash


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("use", ["continue", "frozen", "merge"])
def test_a_run_goes_on_from_the_adapter(brought: Make, use: str, dtype: str, tmp_path: Path) -> None:
    """Proved at each update, resumed to the bit, with a reference policy that is the clone; then exported."""
    config = brought(f"model.adapter={use}", f"model.dtype={dtype}", "algorithm.base.kl_coef=0.05")
    train(config, tmp_path / "run")
    lines = timeless(tmp_path / "run")
    assert len(lines) == 3
    assert all(line["agreement/num_tokens"] for line in lines)
    with pytest.raises(StopError):
        train(config, tmp_path / "broken", StopAfter(2))
    resume(tmp_path / "broken")
    assert timeless(tmp_path / "broken") == lines
    run = RunDirectory.open(tmp_path / "run")
    policy = load_policies(run, [""], "last")[""]
    agent: Any = players(run.path, config.env.make(), num_slots=2)[""]
    assert agent.adapter_hash == policy.adapter_hash
    ids = torch.arange(5, 40)[None]
    played = policy.sampler(ids).logits.log_softmax(-1)
    tolerance = 2e-5 if dtype == "float32" else 0.05
    if use != "merge":
        export(run.path, tmp_path / "adapter", adapter=True)
        exported = Policy.load(tmp_path / "adapter", lora=None, dtype=dtype).sampler(ids).logits.log_softmax(-1)
        torch.testing.assert_close(exported, played, atol=tolerance, rtol=1e-3)
    export(run.path, tmp_path / "merged")
    merged = Policy.load(tmp_path / "merged", lora=None, dtype=dtype).sampler(ids).logits.log_softmax(-1)
    torch.testing.assert_close(merged, played, atol=tolerance, rtol=1e-3)


def test_the_first_update_has_no_kl_to_the_clone(brought: Make, tmp_path: Path) -> None:
    """The reference of a policy that goes on from a clone is the clone, not the base below it."""
    for use in ("continue", "frozen", "merge"):
        config = brought(f"model.adapter={use}", "algorithm.base.kl_coef=0.05")
        run = RunDirectory.create(tmp_path / use, config, {})
        with closing(Assembly(config)) as assembly:
            assembly.make_model(run)
            with closing(assembly.trainer(run)) as trainer:
                first, second = trainer.step(), trainer.step()
        assert abs(first["kl_reference"]) < 1e-6 < second["kl_reference"], use


@pytest.mark.slow
def test_the_command_clones_into_a_model_of_yours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Then the adapter plays, trains and is cloned on, by its folder."""
    monkeypatch.setenv("TURNWISE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("turnwise.cli.console", Console(width=200, file=(told := io.StringIO())))
    model = scratch_folder(tmp_path / "model")
    given = [word for word in TINY if word.split(".")[0] in ("env", "agent", "warmstart", "lora")]

    def call(*words: str) -> None:
        with pytest.raises(SystemExit) as ended:
            cli.app(words)
        assert ended.value.code == 0, told.getvalue()

    call("warmstart", "smoke", "--model", str(model), *given, "--to", str(tmp_path / "adapter"))
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == str(
        model
    )
    where = ("--env", "tests.levers:test/Levers-v0", "--tasks", "2")
    call("evaluate", str(tmp_path / "adapter"), *where)
    call("play", "--agent", str(tmp_path / "adapter"), "tests.levers:test/Levers-v0")
    more = [word for word in TINY if not word.startswith("warmstart")]
    call("train", "smoke", f"model.path={tmp_path / 'adapter'}", *more, "--out", str(tmp_path / "run"))
    assert len(timeless(tmp_path / "run")) == 3
    assert shape_of(PretrainedModelConfig(path=str(tmp_path / "adapter")), LORA).parameters > 0


def test_another_rank_needs_a_frozen_clone(brought: Make, tmp_path: Path) -> None:
    """Told before anything is cloned; of an adapter from elsewhere, when it is read."""
    with pytest.raises(ValueError, match=r"of rank 4 and alpha 8, .* lora\.rank=2 and .*model\.adapter=frozen"):
        brought("lora.rank=2")
    assert brought("lora.rank=2", "model.adapter=frozen").lora != brought().lora
    without = ("lora=null", "algorithm.base.kl_coef=0")
    with pytest.raises(ValueError, match=r"lora=null trains all weights: set model\.adapter=merge"):
        brought(*without)
    given = warmstart(brought(), to=tmp_path / "given")
    with pytest.raises(ValueError, match=r"has rank 4 and alpha 8 .*model\.adapter=frozen"):
        train(brought("warmstart=null", f"model.path={given}", "lora.rank=2"), tmp_path / "run")
    with pytest.raises(ValueError, match=r"lora=null trains all weights: set model\.adapter=merge"):
        train(brought("warmstart=null", f"model.path={given}", *without), tmp_path / "whole")
    with pytest.raises(ValueError, match=r"model\.adapter=frozen is for an adapter, and .* is a whole model"):
        train(brought("warmstart=null", "model.adapter=frozen"), tmp_path / "plain")


def test_the_clone_has_the_rank_that_rl_goes_on_with(tmp_path: Path) -> None:
    config = load_config("cloned", [f"model.path={tmp_path}", "warmstart={}", "lora={rank: 8, alpha: 4}"])
    assert config.warmstart is not None
    assert config.warmstart.lora == config.lora == LoRAConfig(rank=8, alpha=4)


def test_an_adapter_can_be_cloned_on(brought: Make, tmp_path: Path) -> None:
    first = warmstart(brought(), to=tmp_path / "first")
    for use, rank in (("continue", 4), ("frozen", 8)):
        again = warmstart(brought(f"model.path={first}", f"model.adapter={use}"))
        assert json.loads((again / "adapter_config.json").read_text())["r"] == rank
    with pytest.raises(ValueError, match="Merged, it would be in no folder"):
        warmstart(brought(f"model.path={first}", "model.adapter=merge"))


def test_a_scratch_model_is_cloned_as_ever() -> None:
    """The key of the cache and the loss of the first steps are those of the models that caches hold."""
    config = load_config("cloned")
    assert isinstance(config.model, ScratchModelConfig)
    assert Assembly(config).warmstart.cloning.key == "53bc204499c36be5"
