"""The predicted memory, part by part, against what real models and a real process take."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from typer.testing import CliRunner

from tests.models import tiny_model, tokenizer
from tests.models.test_packing import grown
from turnwise.assembly.settling import demand_of, fitted
from turnwise.cli import app
from turnwise.config.files import load_config, parse_config
from turnwise.config.schema import RunConfig
from turnwise.jobs import train
from turnwise.models.cache import SlotCache, room
from turnwise.models.packing import Sharing, pack
from turnwise.models.policy import Policy
from turnwise.models.reading import rows_at_once
from turnwise.models.settings import LoRAConfig, PretrainedModelConfig
from turnwise.models.vllm.settings import VllmConfig
from turnwise.training.plan import GIB, Demand, Plan, fit, plan
from turnwise.training.shape import Shape, read_config

torch.set_num_threads(1)

WIDE = {"hidden_size": 64, "intermediate_size": 160, "num_attention_heads": 4, "num_key_value_heads": 2}


def run_config(**sections: Any) -> RunConfig:
    return parse_config({"warmstart": {"split": "demonstrations"}, **sections})


def model_of(family: str, dtype: torch.dtype = torch.float32, layers: int = 3) -> Any:
    config = getattr(transformers, f"{family}Config")(
        vocab_size=len(tokenizer()), num_hidden_layers=layers, tie_word_embeddings=True, **WIDE, pad_token_id=0
    )
    return getattr(transformers, f"{family}ForCausalLM")(config).to(dtype)


def kept_bytes(policy: Policy, sharing: Sharing, rows: int) -> tuple[int, int]:
    """Bytes of everything that the layers keep for the way back, weights aside, and the tokens they see."""
    batch = grown((40, 0, 60), members=rows)
    packed = pack(batch.tokens, batch.lengths.tolist(), batch.action_mask, torch.device("cpu"), sharing)
    weights = {p.untyped_storage().data_ptr() for p in policy.model.parameters()}
    kept: dict[int, tuple[int, torch.Tensor]] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        assert policy._forward.states(packed.ids, packed.plan).requires_grad
    return sum(size for size, _ in kept.values()), len(packed.ids)


@pytest.mark.parametrize(
    ("family", "rank", "dtype"),
    [
        ("Qwen3", 1, torch.float32),  # thin products
        ("Qwen3", 16, torch.float32),  # folded adapters
        ("Qwen3", 16, torch.bfloat16),
        ("Qwen2", 16, torch.float32),
        ("Llama", None, torch.float32),  # all weights
    ],
)
def test_a_layer_keeps_what_is_predicted(family: str, rank: int | None, dtype: torch.dtype) -> None:
    """A layer that is not the last: of that one less is kept."""
    lora = None if rank is None else LoRAConfig(rank=rank)
    deep, flat = (Policy(model_of(family, dtype, layers), tokenizer(), lora=lora) for layers in (3, 2))
    shape = Shape.of(model_of(family), lora, dtype.itemsize)
    (all_three, tokens), (two, _) = (kept_bytes(policy, "never", 12) for policy in (deep, flat))
    each = shape.layer_bytes(in_blocks=dtype == torch.bfloat16)
    assert each * tokens == pytest.approx(all_three - two, rel=0.1)
    assert all_three < 1.1 * 3 * each * tokens
    (all_three, fewer), (two, _) = (kept_bytes(policy, "always", 12) for policy in (deep, flat))
    assert fewer < 0.75 * tokens
    shared = shape.gathered_bytes(fewer, tokens)
    assert all_three - two <= 1.1 * (each * fewer + shared)


@pytest.mark.parametrize("lora", [LoRAConfig(rank=4), LoRAConfig(rank=2, target_modules=("q_proj", "v_proj")), None])
def test_weights_and_adapters_are_counted_exactly(lora: LoRAConfig | None) -> None:
    policy, shape = Policy(tiny_model(), tokenizer(), lora=lora), Shape.of(tiny_model(), lora, 4)
    trained = sum(p.numel() for p in policy.parameters())
    assert shape.parameters == sum(p.numel() for p in tiny_model().parameters())
    assert (shape.lora or shape.parameters) == trained
    own = {p.data_ptr() for p in policy.model.parameters()}
    merged = sum(p.numel() for p in policy.sampler.parameters() if p.data_ptr() not in own)
    assert shape.adapted == merged
    parts = {part.name: part.bytes for part in plan(shape, demand_of(run_config())[1]).parts}
    assert parts["gradients"] == 4 * trained
    assert parts["optimizer"] == 8 * trained
    half = parts_of(plan(Shape.of(tiny_model(), lora, 2), demand_of(run_config())[1]))
    assert half.get("master weights", 0) == (0 if lora else 4 * trained)
    assert half["optimizer"] == 8 * trained


def test_in_half_precision_the_sampler_holds_weights_and_adapters() -> None:
    policy = Policy(tiny_model().bfloat16(), tokenizer(), lora=LoRAConfig(rank=4))
    own = {p.data_ptr() for p in policy.model.parameters()}
    held = sum(p.nbytes for p in policy.sampler.parameters() if p.data_ptr() not in own)
    parts = {
        part.name: part.bytes
        for part in plan(Shape.of(tiny_model(), LoRAConfig(rank=4), 2), demand_of(run_config())[1]).parts
    }
    assert parts["merged weights"] == held
    assert parts["rows for merge shares"] == sum(rows.nbytes for rows in policy._meter._before)


@pytest.mark.parametrize("lora", [LoRAConfig(rank=4), None])
def test_packed_weights_are_counted(lora: LoRAConfig | None) -> None:
    """Those under adapters take the place of the sampler's own; the others are a copy."""
    policy = Policy(tiny_model().bfloat16(), tokenizer(), lora=lora)
    shape = Shape.of(tiny_model(), lora, 2)
    plain = [module for module in policy.sampler.modules() if type(module) is torch.nn.Linear]
    found = parts_of(plan(shape, Demand(100, 1, 10, packed=True)))
    assert found["packed weights"] == sum(module.weight.nbytes for module in plain)
    assert "packed weights" not in parts_of(plan(shape, Demand(100, 1, 10)))


def test_what_is_read_of_the_vocabulary_is_counted() -> None:
    """Ten tables of the logits of as many tokens as are read at once."""
    assert "vocabulary" not in parts_of(plan(*demand_of(run_config(algorithm="grpo"))))
    for name in ("lp_reg", "siren", "capo"):
        shape, demand = demand_of(run_config(algorithm=name))
        rows = min(demand.tokens, rows_at_once(shape.vocab, "cpu"))
        assert parts_of(plan(shape, demand))["vocabulary"] == 10 * 4 * rows * shape.vocab


def test_shards_of_this_machine_have_weights_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    shape, alone = demand_of(run_config())
    one = parts_of(plan(shape, alone))
    assert "shards" not in one
    own = sum(one.get(name, 0) for name in ("weights", "merged weights", "packed weights", "adapters"))
    for ray in (None, {"address": "local"}):
        two = demand_of(run_config(rollout={"shards": 2}, ray=ray))[1]
        assert parts_of(plan(shape, two)) == {**one, "shards": 2 * own}
    elsewhere = demand_of(run_config(rollout={"shards": 2}, ray={"address": "auto"}))[1]
    assert (elsewhere.shards, elsewhere.num_slots) == (0, 1)
    monkeypatch.setattr("turnwise.assembly.settling.is_packed", lambda *asked: True)  # as in half precision
    sampling = parts_of(plan(shape, demand_of(run_config(rollout={"shards": 2}))[1]))
    assert "packed weights" not in sampling, "this process does not play"
    assert sampling["shards"] == 2 * (own + (shape.linear - shape.adapted) * 4)
    theirs = demand_of(run_config(rollout={"shards": 2, "backend": "vllm"}))[1]
    assert parts_of(plan(shape, theirs))["shards"] == 2 * own, "nor does our engine"


def test_playing_ahead_holds_earlier_weights() -> None:
    """Those of the present version, of ``ahead`` before it, and one copy more; a GPU holds none of them."""
    shape, now = demand_of(run_config())
    demand = demand_of(run_config(rollout={"ahead": 2}))[1]
    assert demand.ahead == 2
    earlier = "earlier weights"
    assert earlier not in parts_of(plan(shape, now))
    assert parts_of(plan(shape, demand))[earlier] == 4 * shape.lora * 4
    whole = Shape.of(tiny_model(), None, 2)
    assert parts_of(plan(whole, demand))[earlier] == 4 * whole.parameters * 2
    assert earlier not in parts_of(plan(shape, replace(demand, device="cuda")))
    alone, two = (parts_of(plan(shape, replace(now, ranks=2, ahead=ahead))) for ahead in (0, 2))
    assert two["other ranks"] - alone["other ranks"] == two[earlier], "each rank has its own"


def test_slots_are_halved_to_one_in_each_shard_at_least(monkeypatch: pytest.MonkeyPatch) -> None:
    rollout = {"shards": 40, "num_slots": 64, "num_tasks": 8, "group_size": 8}
    config = run_config(rollout=rollout, optimizer={"microbatch_tokens": 64})
    shape, demand = demand_of(config)
    least = plan(shape, replace(demand, num_slots=40)).total
    assert plan(shape, replace(demand, num_slots=32)).total < least < plan(shape, demand).total
    monkeypatch.setattr("turnwise.training.plan.available_memory", lambda device: least)
    with pytest.warns(UserWarning, match="64 contexts at once could not .* going on with 40 slots"):
        assert fitted(config).rollout.num_slots == 40
    one = r"with a single context at a time in each of 40 shards, .*lower rollout\.shards$"
    with pytest.raises(ValueError, match=one):
        fit(shape, demand, least - 1)
    rollout |= {"num_tasks": 1, "group_size": 2}
    few = demand_of(run_config(rollout=rollout, eval={"every": 0, "test_split": None}))[1]
    assert (few.num_slots, few.least_slots) == (2, 2), "more shards than episodes"


def test_slots_of_a_game_are_halved_to_those_of_one_episode_in_each_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    """An episode of two players holds two contexts: 64 episodes as many as 128, and one in each of 40 shards 80."""
    rollout = {"shards": 40, "num_slots": 256, "num_tasks": 8, "group_size": 8}
    env = {"id": "tests.worlds:tests/Nim-v0"}
    few: dict[str, Any] = {"eval": {"every": 0, "test_split": None}, "optimizer": {"microbatch_tokens": 64}}
    config = run_config(env=env, rollout=rollout, warmstart=None, model={"path": "x"}, **few)
    shape = Shape.of(tiny_model(), LoRAConfig(rank=4), 4)
    monkeypatch.setattr("turnwise.assembly.settling.shape_of", lambda *given: shape)
    demand = demand_of(config)[1]
    assert (demand.players, demand.num_slots, demand.least_slots) == (2, 128, 80)
    least = plan(shape, replace(demand, num_slots=80)).total
    assert plan(shape, replace(demand, num_slots=64)).total < least < plan(shape, demand).total
    monkeypatch.setattr("turnwise.training.plan.available_memory", lambda device: least)
    with pytest.warns(UserWarning, match="128 contexts at once could not .* going on with 80 slots"):
        assert fitted(config).rollout.num_slots == 80
    with pytest.raises(ValueError, match=r"with a single game of 2 players at a time in each of 40 shards, "):
        fit(shape, demand, least - 1)
    unknown = config.model_copy(update={"env": config.env.model_copy(update={"id": "nowhere/Nothing-v0"})})
    assert demand_of(unknown)[1].players == 1, "whoever plays says that there is no such world"


def test_the_cache_is_as_large_as_a_real_one() -> None:
    for length in (100, 128, 129, 512, 700):
        cache = SlotCache(3, 2, 2, 8, dtype=torch.float32, device=torch.device("cpu"))
        cache.widen(3)
        cache.reserve(length)
        assert cache.capacity == room(length, cache.device)
    config = run_config(rollout={"num_slots": 3}, agent={"max_context_tokens": 700})
    found = {part.name: part.bytes for part in plan(Shape.of(tiny_model(), None, 4), demand_of(config)[1]).parts}
    assert found["key/value cache"] == sum(b.numel() * 4 for b in (*cache.keys, *cache.values))


def parts_of(found: Plan) -> dict[str, int]:
    return {part.name: part.bytes for part in found.parts}


def test_an_update_is_no_larger_than_its_episodes() -> None:
    """A microbatch is filled by the episodes of a step, at most; contexts that are afresh each turn are many more."""
    few: dict[str, Any] = {"rollout": {"num_tasks": 2, "group_size": 3}, "optimizer": {"microbatch_tokens": 8192}}
    agent = {"max_context_tokens": 512}
    assert demand_of(run_config(agent=agent, **few))[1].tokens == 6 * 512
    few["optimizer"]["num_minibatches"] = 4
    assert demand_of(run_config(agent=agent, **few))[1].tokens == 2 * 512
    window = {**agent, "context": "window", "max_turns": 50}
    assert demand_of(run_config(agent=window, **few))[1].tokens == 8192
    assert demand_of(run_config(agent={"max_context_tokens": 9000}, **few))[1].tokens == 9000  # one row may be as long


def test_slots_are_no_more_than_episodes() -> None:
    rollout, eval_ = {"num_tasks": 2, "group_size": 3}, {"every": 0, "test_tasks": 16}
    assert demand_of(run_config(rollout=rollout, eval=eval_))[1].num_slots == 16
    assert demand_of(run_config(rollout=rollout, eval={"every": 0, "test_split": None}))[1].num_slots == 6
    assert demand_of(run_config(rollout={**rollout, "num_slots": 4}, eval=eval_))[1].num_slots == 4


def test_less_at_a_time_is_found_or_the_run_refused() -> None:
    config = run_config(optimizer={"microbatch_tokens": 16384}, agent={"max_context_tokens": 512})
    shape, demand = demand_of(config)
    whole = fit(shape, demand, 4 * GIB)
    assert whole.demand == demand
    assert whole.peak == "update"
    half = fit(shape, demand, whole.total - 1)
    assert half.demand.microbatch_tokens == 8192
    assert half.total < whole.total
    least = Demand(512, 1, 128, num_rows=64, microbatch_tokens=512)
    needed = plan(shape, least).total
    found = fit(shape, demand, needed)
    assert found.demand.tokens == 512
    assert found.total == needed
    with pytest.raises(ValueError, match=r"most of it is activations .*lower agent\.max_context_tokens"):
        fit(shape, demand, needed - 1)


def test_slots_are_fewer_where_the_cache_is_the_peak() -> None:
    shape, demand = Shape.of(tiny_model(), None, 4), Demand(4096, 64, 1024)
    whole = plan(shape, demand)
    assert "activations" not in parts_of(whole), "nothing is trained"
    assert whole.peak == "sampling"
    assert fit(shape, demand, whole.total - 1).demand.num_slots == 32
    with pytest.raises(ValueError, match="sampling needs"):
        fit(shape, demand, 1000)
    on_gpu = plan(shape, Demand(4096, 64, 1024, num_rows=8, microbatch_tokens=4096, device="cuda"))
    kept = next(part for part in on_gpu.parts if part.name == "key/value cache")
    assert kept.stage == "always", "it is not given back before an update"


def test_checkpointing_and_half_precision_take_less(tmp_path: Path) -> None:
    model_of("Qwen3").config.save_pretrained(tmp_path)
    totals = []
    for more in ({}, {"gradient_checkpointing": True}, {"dtype": "bfloat16"}):
        config = run_config(model={"path": str(tmp_path), **more}, warmstart=None, eval={"every": 0})
        totals.append({part.name: part.bytes for part in plan(*demand_of(config)).parts})
    plain, checkpointed, half = totals
    assert checkpointed["activations"] < 0.75 * plain["activations"]
    assert half["weights"] * 2 == plain["weights"]
    assert half["adapters"] == plain["adapters"]


def test_the_command_prints_the_parts() -> None:
    done = CliRunner().invoke(app, ["plan", "smoke", "--json", "--memory", "4"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    stages = found["stages"]
    assert sum(stages.values()) == sum(found["parts"].values())
    assert found["total"] == stages["always"] + max(stages["sampling"], stages["update"])
    assert found["total"] < found["available"] == 4 * GIB
    small = CliRunner().invoke(app, ["plan", "smoke", "--memory", str(0.9 * found["total"] / GIB)])
    assert "It fits with optimizer.microbatch_tokens=" in small.stdout
    elsewhere = ["plan", "smoke", "device=cuda", "--json"]
    assert CliRunner().invoke(app, [*elsewhere, "--memory", "4"]).exit_code == 0, "planned for another machine"
    if not torch.cuda.is_available():
        assert "no CUDA device" in str(CliRunner().invoke(app, elsewhere).exception)
    none = CliRunner().invoke(app, ["plan", "smoke", "--memory", "0.001"])
    assert isinstance(none.exception, ValueError)


def test_what_several_ranks_hold_is_planned() -> None:
    """On one machine's CPU all of them count; GPUs hold one rank each."""
    shape = Shape.of(tiny_model(), LoRAConfig(rank=4), 4)
    demand = Demand(128, 4, 32, num_rows=16, microbatch_tokens=256)
    layers = sum(p.numel() for name, p in tiny_model().named_parameters() if ".layers." in name)
    assert shape.layered == layers
    one, ddp, fsdp2, gpus = (
        parts_of(plan(shape, replace(demand, **more)))
        for more in ({}, {"ranks": 3}, {"ranks": 3, "divided": True}, {"ranks": 3, "divided": True, "device": "cuda"})
    )
    learning = ("weights", "adapters", "optimizer")
    assert ddp["other ranks"] == 2 * sum(one[name] for name in learning)
    assert ddp["other ranks' updates"] == 2 * (
        sum(ddp[name] for name in ("gradients", "sums over ranks", "activations", "shared beginnings", "head"))
    )
    assert {name: ddp[name] for name in one} == one
    assert one["weights"] - fsdp2["weights"] == pytest.approx(4 * layers * 2 / 3, abs=4)
    assert fsdp2["gathered layers"] == 2 * 4 * layers // 2
    assert fsdp2["sampler's weights"] == 4 * (layers - shape.adapted)
    assert gpus["weights"] == fsdp2["weights"]
    assert not {"other ranks", "other ranks' updates"} & gpus.keys()
    assert "other ranks" not in parts_of(plan(shape, replace(demand, ranks=3, ranks_elsewhere=True)))
    ray = [demand_of(run_config(learner={"ranks": 2}, ray={"address": place}))[1] for place in ("local", "auto")]
    assert [demand.ranks_elsewhere for demand in ray] == [False, True]
    teacher = {"ranks": 3, "teacher": 1000}
    sampled = {"shards": 4, "vllm": VllmConfig(), "second": 500}  # the first rank's alone
    plain, sampling = (parts_of(plan(shape, replace(demand, **teacher, **more))) for more in ({}, sampled))
    assert sampling.keys() - plain.keys() == {"shards", "vLLM's weights", "second model's weights"}
    assert sampling["other ranks"] == plain["other ranks"] == ddp["other ranks"] + 2 * 1000
    with pytest.raises(ValueError, match=r"learner\.ranks"):
        fit(shape, replace(demand, ranks=50, num_rows=1), plan(shape, demand).total)


def test_a_model_that_cannot_be_divided_is_not_planned(tmp_path: Path) -> None:
    from tests.models.families import family_model

    family_model("olmo2").config.save_pretrained(tmp_path)
    words = ["plan", "smoke", "--memory", "4", "warmstart=null", f"model.path={tmp_path}", "learner.ranks=2"]
    assert CliRunner().invoke(app, words).exit_code == 0
    done = CliRunner().invoke(app, [*words, "learner.parallel=fsdp2"])
    assert "use learner.parallel=ddp" in str(done.exception)


def test_training_starts_with_microbatches_that_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config("smoke", ["num_updates=1"])
    shape, demand = demand_of(config)
    whole, asked = fit(shape, demand, 1 << 50), (config.optimizer.microbatch_tokens, config.rollout.num_slots)
    for free, expected in ((whole.total, asked), (whole.total - 1, (demand.tokens // 2, asked[1]))):
        monkeypatch.setattr("turnwise.training.plan.available_memory", lambda device, free=free: free)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            found = fitted(config)
        assert (found.optimizer.microbatch_tokens, found.rollout.num_slots) == expected
        told = [str(w.message) for w in said]
        assert any(f"optimizer.microbatch_tokens={expected[0]}" in each for each in told) == (expected != asked)
    monkeypatch.setattr("turnwise.training.plan.available_memory", lambda device: 1000)
    with pytest.raises(ValueError, match="this run needs"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    unknown = run_config(model={"path": str(tmp_path / "nothing")}, warmstart=None)
    assert fitted(unknown) is unknown


MEASURED = """
import json, resource, sys
from types import SimpleNamespace
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from turnwise.models.policy import Policy
from turnwise.models.settings import LoRAConfig, PretrainedModelConfig
from turnwise.models.vllm.settings import VllmConfig

torch.set_num_threads(1)
folder, dtype, checkpointing, rows, length = json.loads(sys.argv[1])

def update(config, rows, length):
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    policy = Policy(model, None, lora=LoRAConfig(), gradient_checkpointing=checkpointing)
    optimizer = torch.optim.AdamW(policy.parameters())
    for rows in (rows // 2, rows, rows // 2 + 1):
        batch = SimpleNamespace(tokens=torch.randint(0, 300, (rows, length)), lengths=torch.full((rows,), length),
                                action_mask=(torch.arange(length) % 3 == 1).expand(rows, length),
                                allowed=None, temperatures=None)
        scores = policy.score(batch, entropy=True)
        (scores.logprobs.sum() + scores.entropies.sum()).backward()
        del scores
        optimizer.step()

config = AutoConfig.from_pretrained(folder)
small = AutoConfig.from_pretrained(folder, hidden_size=32, intermediate_size=32, num_hidden_layers=2, vocab_size=400)
update(small, 2, 20)  # libraries are loaded now
resident = int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1])
update(config, rows, length)
print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident))
"""


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_process_takes_what_is_predicted(checkpointing: bool, dtype: str, tmp_path: Path) -> None:
    """Within 20 %: peak resident memory of three updates of different sizes, beyond that of small ones.

    What the system rounds up to its large pages changes from run to run, upwards and seldom: of three processes the one
    that took least counts. ``benchmarks/memory.py`` measures whole runs of a real model.
    """
    transformers.Qwen3Config(
        hidden_size=320,
        intermediate_size=1280,
        num_hidden_layers=8,
        num_attention_heads=5,
        num_key_value_heads=1,
        head_dim=64,
        vocab_size=16000,
        tie_word_embeddings=True,
    ).save_pretrained(tmp_path)
    rows, length = 8, 512
    given = json.dumps([str(tmp_path), dtype, checkpointing, rows, length])
    config = run_config(
        model={"path": str(tmp_path), "dtype": dtype, "gradient_checkpointing": checkpointing},
        warmstart=None,
        rollout={"num_tasks": 1, "group_size": rows},
        agent={"max_context_tokens": length},
    )
    predicted, least = plan(*demand_of(config)).total, math.inf
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", MEASURED, given], capture_output=True, text=True, check=True)
        least = min(least, int(done.stdout))
        if predicted == pytest.approx(least, rel=0.2):
            break
    assert predicted == pytest.approx(least, rel=0.2)


def test_vllm_holds_weights_and_a_cache_of_its_own_and_a_server_does_so_elsewhere() -> None:
    def parts(**rollout: Any) -> dict[str, int]:
        shape, demand = demand_of(run_config(rollout={"num_slots": 4, **rollout}, agent={"max_context_tokens": 512}))
        return {part.name: part.bytes for part in plan(shape, demand).parts}

    ours, theirs = parts(), parts(backend="vllm", vllm={"cache_gib": 0.5})
    assert theirs["vLLM's weights"] == ours["weights"] + ours["adapters"]
    assert theirs["key/value cache"] == GIB // 2
    served = parts(backend="vllm", vllm={"url": "http://127.0.0.1:1"})
    assert ours.keys() - served.keys() == {"key/value cache", "prompts"}
    # 3 layers, keys and values of 2 heads of 32 in float32: 1536 bytes a token; 17 blocks of 32 for each of 4 slots
    assert parts(backend="vllm")["key/value cache"] == 1536 * 17 * 32 * 4 * 5 // 4
    sharded = parts(backend="vllm", shards=2)
    assert sharded["vLLM's weights"] == 2 * theirs["vLLM's weights"]
    assert sharded["key/value cache"] == parts(backend="vllm")["key/value cache"], "two slots each"


def test_slots_of_vllm_are_fewer_on_a_cpu_too_or_its_cache_is_named() -> None:
    """Its cache is held in an update as well. Where its size is configured, fewer slots would change nothing."""
    shape = Shape.of(tiny_model(), LoRAConfig(rank=4), 4)
    demand = Demand(4096, 256, 1024, num_rows=4, microbatch_tokens=4096, shards=4, vllm=VllmConfig())
    whole, least = plan(shape, demand), plan(shape, replace(demand, num_slots=4)).total
    assert whole.peak == "update"
    found = fit(shape, demand, whole.total - 1)
    assert (found.demand.num_slots, found.demand.tokens) == (128, 4096)
    assert fit(shape, demand, least).demand.num_slots == 4
    with pytest.raises(ValueError, match=r"single context at a time in each of 4 shards"):
        fit(shape, demand, least - 1)
    with pytest.raises(ValueError, match=r"key/value cache .*lower agent\.max_context_tokens, or rollout\.shards$"):
        fit(shape, Demand(65536, 256, 1024, shards=4), GIB // 100)
    fixed = replace(demand, vllm=VllmConfig(cache_gib=4))
    with pytest.raises(
        ValueError, match=r"key/value cache \(16\.00 GiB, .*lower rollout\.vllm\.cache_gib, or rollout\.shards$"
    ):
        fit(shape, fixed, 8 * GIB)
    ours = replace(demand, vllm=None, shards=0)
    with pytest.raises(ValueError, match=r"this run needs"):
        fit(shape, ours, 1000)
    least = plan(shape, replace(ours, num_slots=1)).total
    assert plan(shape, replace(ours, num_slots=2)).total == least, "the peak is the update, where our cache is not"
    assert fit(shape, ours, least).demand.num_slots > 1


def test_a_folder_that_is_not_there_is_asked_of_no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``./name`` was, as the name of a model on the hub."""

    def asked(*given: object, **more: object) -> None:
        raise AssertionError(f"asked for {given}")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", asked)
    for name in ("./nothere", "../nothere", str(tmp_path / "nothere")):
        with pytest.raises(ValueError, match=f"no model configuration at {name!r}: expected a folder with config.json"):
            read_config(PretrainedModelConfig(path=name), "cpu")
