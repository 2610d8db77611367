"""The LoRA proof: each link between learner and sampler is broken for real, and the run stops and names it."""

from __future__ import annotations

import copy
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models import scratch_folder
from tests.training.tiny import MODEL
from turnwise.assembly.players import model_agent, players
from turnwise.assembly.run import Assembly
from turnwise.config.files import load_config
from turnwise.config.schema import RunConfig
from turnwise.jobs import warmstart
from turnwise.learning.metrics import Agreement
from turnwise.models.engine import SlotEngine
from turnwise.models.packed_weights import packed_weight, works
from turnwise.models.policy import Policy
from turnwise.replay.store import TrajectoryReader
from turnwise.runs.checkpoints import Checkpoint
from turnwise.runs.directory import RunDirectory
from turnwise.training.noise import Limits, floor_of, sampled_batch
from turnwise.training.proof import broken_link, probed, prove
from turnwise.training.side import DisagreementError, Side
from turnwise.training.trainer import Trainer

# A learning rate at which one update changes log-probs by less than the numbers could tell.
TINY = [
    *(*MODEL, "warmstart.max_tokens=8000", "warmstart.split=train"),
    *("rollout.num_tasks=2", "rollout.group_size=4", "rollout.num_slots=8", "optimizer.num_minibatches=2"),
    *(
        "eval.every=100",
        "eval.tasks=4",
        "eval.test_tasks=4",
        "num_updates=5",
        "algorithm.base.drop_uniform_groups=false",
        "algorithm.base.kl_coef=0",  # scoring the reference switches adapters off and on again
    ),
]
LEVERS = ["env.id=tests.levers:test/Levers-v0"]
TIMID = "optimizer.lr=1e-7"
BOLD = "optimizer.lr=1e-2"


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One warm start for the whole module, in a cache of its own."""
    patch = pytest.MonkeyPatch()
    patch.setenv("TURNWISE_CACHE", str(tmp_path_factory.mktemp("cache")))
    torch.set_num_threads(1)
    yield
    patch.undo()


def config(*settings: str) -> RunConfig:
    return load_config("smoke", [*TINY, *LEVERS, *settings])


def trainer(path: Path, *settings: str) -> Trainer:
    made = config(*settings)
    run = RunDirectory.create(path, made, {})
    shutil.copytree(warmstart(made), run.model_path)
    return Assembly(made).trainer(run)


def learned(path: Path, *settings: str) -> tuple[Trainer, Side]:
    """A run whose adapters have learned something: B is not 0 any more."""
    made = trainer(path, *settings)
    made.step()
    return made, made.sides[0]


def steps(made: Trainer, num: int) -> None:
    for _ in range(num):
        made.step()


def adapters(policy: Policy) -> list[tuple[str, Any]]:
    return [(n, m) for n, m in policy.model.named_modules() if hasattr(m, "lora_B") and len(m.lora_B)]


def skip_the_sync(side: Side, patch: pytest.MonkeyPatch) -> None:
    """The learner moves on (as an optimizer step would), and nobody tells the sampler."""
    with torch.no_grad():
        next(iter(adapters(side.policy)[0][1].lora_B.values())).weight.mul_(1 + 1e-6)


def sync_at_a_wrong_scale(side: Side, patch: pytest.MonkeyPatch) -> None:
    for _, layer in adapters(side.policy):
        layer.scaling["default"] *= 1.01
    side.sync(side.policy.version)
    for _, layer in adapters(side.policy):
        layer.scaling["default"] /= 1.01


def merge_some_layers_only(side: Side, patch: pytest.MonkeyPatch) -> None:
    kept = side.policy._copy.layers
    side.policy._copy.layers = dict(list(kept.items())[:-1])
    layer, target = list(kept.values())[-1]
    with torch.no_grad():
        target.weight.copy_(layer.base_layer.weight)
    side.sync(side.policy.version)
    side.policy._copy.layers = kept


def leave_the_agent_an_old_name(side: Side, patch: pytest.MonkeyPatch) -> None:
    side.agent.adapter_hash = "0123456789abcdef"


def give_the_engine_another_copy(side: Side, patch: pytest.MonkeyPatch) -> None:
    side.agent.engine.model = copy.deepcopy(side.policy.sampler)  # type: ignore[attr-defined]


def switch_the_adapters_off(side: Side, patch: pytest.MonkeyPatch) -> None:
    for _, layer in adapters(side.policy):
        layer._disable_adapters = True


def score_with_the_reference(side: Side, patch: pytest.MonkeyPatch) -> None:
    score = side.policy.score
    patch.setattr(side.policy, "score", lambda batch, **asked: score(batch, **{**asked, "reference": True}))


def zero_b(side: Side, patch: pytest.MonkeyPatch) -> None:
    with torch.no_grad():
        for _, layer in adapters(side.policy):
            layer.lora_B["default"].weight.zero_()


def cast_one_weight(side: Side, patch: pytest.MonkeyPatch) -> None:
    _, target = next(iter(side.policy._copy.layers.values()))
    target.weight.data = target.weight.data.bfloat16().float()


def cast_the_sampler(side: Side, patch: pytest.MonkeyPatch) -> None:
    side.policy.sampler.bfloat16()
    fresh = model_agent(side.policy, side.agent.config, num_slots=8)
    vars(side.agent.engine).update(vars(fresh.engine))  # a cache of that type


def copy_what_is_not_trained(side: Side, patch: pytest.MonkeyPatch) -> None:
    weight = side.policy.sampler.get_input_embeddings().weight
    weight.data = weight.data.clone()


Break = Callable[[Side, pytest.MonkeyPatch], None]
LINKS: list[tuple[Break, str]] = [
    (skip_the_sync, "sync: the learner holds weights"),
    (sync_at_a_wrong_scale, r"merge: .* is not the learner's W \+ scale \* B A"),
    (merge_some_layers_only, "merge: .*down_proj"),
    (give_the_engine_another_copy, "engine: it runs another model"),
    (switch_the_adapters_off, "adapters: those of .* are switched off"),
    (zero_b, "sync: the learner holds weights"),
    (cast_one_weight, "merge: "),
    (cast_the_sampler, "disagree on the log-probs .*: copy: .*embed_tokens"),
    (copy_what_is_not_trained, "copy: .*embed_tokens"),
]


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A run after one timid update, for every break to start from."""
    made, _ = learned(tmp_path_factory.mktemp("started") / "run", TIMID)
    made.save()
    return made.run.load("last")


@pytest.mark.parametrize(("broken", "link"), LINKS, ids=[broken.__name__ for broken, _ in LINKS])
def test_a_broken_link_is_named_where_the_numbers_cannot_tell(
    broken: Break, link: str, started: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an update so small that all log-probs still agree; what was broken plays on for a whole update."""
    made = trainer(tmp_path / "run", TIMID)
    made.sides[0].load(started)
    made.finished = started.update
    broken(made.sides[0], monkeypatch)
    with pytest.raises(DisagreementError, match=link):
        made.step()
    assert not made.run.metrics(), "nothing of the update counts"


def test_a_name_that_is_not_the_weights_stops_before_training(started: Checkpoint, tmp_path: Path) -> None:
    made = trainer(tmp_path / "run", TIMID)
    made.sides[0].load(started)
    made.finished = started.update
    leave_the_agent_an_old_name(made.sides[0], pytest.MonkeyPatch())
    with pytest.raises(DisagreementError, match=r"sampled with weights 0123456789abcdef.*not synchronised"):
        made.step()


def test_one_stale_trajectory_among_many_is_enough(tmp_path: Path) -> None:
    made = trainer(tmp_path / "run")
    groups = made.collect(0)
    stale = replace(groups[-1].trajectories[-1], adapter_hash="0123456789abcdef")
    groups[-1] = replace(groups[-1], trajectories=(*groups[-1].trajectories[:-1], stale))
    with pytest.raises(DisagreementError, match=f"episode {stale.episode} was sampled with weights 0123456789abcdef"):
        made.store(groups, 0)


def sync_nothing(side: Side, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Policy, "sync", lambda self, version: None)


def another_temperature(side: Side, patch: pytest.MonkeyPatch) -> None:
    side.policy.temperature = 1.05


BOLD_BREAKS: list[tuple[Break, str]] = [
    (sync_nothing, "sync: the learner holds weights"),
    (another_temperature, "disagree on the log-probs .*: the weights are the same, the temperature"),
    (switch_the_adapters_off, "disagree on the log-probs .*: adapters: "),
    (score_with_the_reference, "disagree on the log-probs .*: the weights are the same"),
    (zero_b, "disagree on the log-probs .*: sync: "),
]


@pytest.mark.parametrize(("broken", "link"), BOLD_BREAKS, ids=[broken.__name__ for broken, _ in BOLD_BREAKS])
def test_the_numbers_tell_as_well_once_the_policy_has_moved(
    broken: Break, link: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, side = learned(tmp_path / "run", BOLD)
    broken(side, monkeypatch)
    with pytest.raises(DisagreementError, match=link):
        steps(made, 2)  # a sync left out shows one update later


def test_nothing_is_broken_over_several_updates_and_after_a_resume(tmp_path: Path) -> None:
    made, side = learned(tmp_path / "run", BOLD)
    made.step()
    made.save()
    assert broken_link(side.policy, side.agent) is None
    again = Assembly(made.run.config()).trainer(made.run)
    again.load("last")
    assert broken_link(again.sides[0].policy, again.sides[0].agent) is None
    assert again.step()["agreement/max_abs"] <= 1e-4


def test_all_weights_in_training_are_proved_too(tmp_path: Path) -> None:
    made, side = learned(tmp_path / "run", "lora=null", "algorithm.base.kl_coef=0", "optimizer.lr=1e-4")
    parameter = next(iter(side.policy.sampler.parameters()))
    parameter.data = parameter.data.clone()
    with pytest.raises(DisagreementError, match=r"copy: .* no longer the learner's own memory"):
        made.step()


def test_adapters_reach_every_engine_of_a_game(tmp_path: Path) -> None:
    """Two policies in self-play, and the engines that measure them: each plays its own adapters, under their name."""
    nim = ["env.id=tests.worlds:tests/Nim-v0", "warmstart.split=train", "warmstart.stop_split=validation"]
    made = trainer(tmp_path / "run", *nim, "game.policies=per_role", BOLD)
    made.step()
    by_role = {side.name: side for side in made.sides}
    assert set(by_role) == {"first", "second"}
    assert len({side.policy.adapter_hash for side in made.sides}) == 2
    for side in made.sides:
        assert broken_link(side.policy, side.agent) is None
        assert side.agent.engine in made.collector.engines
        assert side.agent.engine in made.measurer.engines
    for played in (t for group in made.collect(1) for t in group.trajectories):
        assert played.adapter_hash == by_role[played.role].policy.adapter_hash
    first, second = made.sides
    first.agent.engine, second.agent.engine = second.agent.engine, first.agent.engine
    with pytest.raises(DisagreementError, match="engine: it runs another model"):
        made.step()


@pytest.mark.parametrize("name", ["arpo", "cure"])
def test_forks_play_the_adapters_of_their_update(name: str, tmp_path: Path) -> None:
    base = "base: {type: grpo, kl_coef: 0.0, drop_uniform_groups: false}"
    made, _ = learned(tmp_path / "run", f"algorithm={{type: {name}, {base}}}", BOLD)
    made.step()
    played = list(TrajectoryReader(made.run.trajectories_path))
    forks = [t for t in played if t.fork is not None]
    assert forks
    assert any(t.fork.tokens for t in forks if t.fork) == (name == "cure")
    for update in (0, 1):
        assert len({t.adapter_hash for t in played if t.policy_version == update}) == 1


def test_evaluation_plays_the_checkpoint_s_adapters(tmp_path: Path) -> None:
    made, side = learned(tmp_path / "run", BOLD)
    made.save()
    agent: Any = players(tmp_path / "run", made.run.config().env.make(), num_slots=4, checkpoint="last")[""]
    assert agent.adapter_hash == side.policy.adapter_hash != ""
    ours, theirs = side.policy.sampler.state_dict(), agent.engine.model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours), "to the bit what training would sample with"


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Trainer]:
    """Makes runs of a random model in bfloat16."""
    model = scratch_folder(tmp_path_factory.mktemp("half") / "model")

    def make(path: Path, *settings: str) -> Trainer:
        brought = f"model={{path: {model}, dtype: bfloat16}}"
        given = ("warmstart=null", brought)
        made = config(*given, "agent.max_context_tokens=256", *settings)
        run = RunDirectory.create(path, made, {})
        return Assembly(made).trainer(run)

    return make


@pytest.mark.parametrize("rate", [TIMID, BOLD])
def test_half_precision_trains_and_its_rounding_is_measured(
    half: Callable[..., Trainer], rate: str, tmp_path: Path
) -> None:
    made = half(tmp_path / "run", rate)
    lines = [made.step() for _ in range(3)]
    assert broken_link(made.sides[0].policy, made.sides[0].agent) is None
    assert len({line["adapter_hash"] for line in lines}) == 3
    for line in lines:
        assert line["agreement/num_tokens"] > 0
        assert 0 < line["noise/mean_abs"] < line["noise/p99"] < 0.1
        assert (line["merge/update_share"] < 0.05) == (rate == TIMID), "a merge would lose the small update"
        assert (line["merge/adapter_share"] > 0.7) == (rate == BOLD)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rate", [TIMID, BOLD])
def test_one_copy_left_out_stops_the_next_update(
    half: Callable[..., Trainer], dtype: str, rate: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sampler keeps the weights of the update before, under the new name: as if the copy had not arrived."""
    made = half(tmp_path / "run", rate, f"model.dtype={dtype}")
    made.step()
    with monkeypatch.context() as patch:
        patch.setattr(made.sides[0].policy._copy, "follow", lambda **_: None)
        made.step()
    with pytest.raises(DisagreementError, match=r"merge: .* is not the learner's W \+ scale \* B A"):
        made.step()


@pytest.mark.parametrize(("packed", "digits"), [("auto", 1), ("auto", -1), ("false", 1)])
def test_the_last_digit_of_one_weight_is_seen(
    half: Callable[..., Trainer], packed: str, digits: int, tmp_path: Path
) -> None:
    made = half(tmp_path / "run", BOLD, f"rollout.packed_weights={packed}")
    made.step()
    _, target = next(iter(made.sides[0].policy._copy.layers.values()))
    copy = packed_weight(target)
    assert (copy is not None) == (packed == "auto" and works(torch.bfloat16))
    with torch.no_grad():
        weight = target.weight if copy is None else copy.plain()
        weight.view(torch.int16)[0, -1] += digits
    if copy is not None:
        copy.take(weight)
    assert broken_link(made.sides[0].policy, made.sides[0].agent) is not None


def compared(num: int, mean: float, p99: float) -> Agreement:
    return Agreement(p99, mean, p99, num)


def test_limits_of_half_precision_follow_the_model_s_own_rounding() -> None:
    """Three times the floor of .04 and .2, times 1 + 2 / sqrt(400) = 1.1: .132 and .66."""
    real = Limits(half=True, floor=compared(800, 0.04, 0.2))
    assert real.of(400) == pytest.approx((0.132, 0.66))
    assert real.allow(compared(400, 0.13, 0.65))
    assert not real.allow(compared(400, 0.134, 0.65))
    assert not real.allow(compared(400, 0.13, 0.67))
    small = Limits(half=True, floor=compared(800, 0.001, 0.01))
    assert small.of(400) == pytest.approx((0.022, 0.22)), "what half precision may always have"
    assert real.of(4)[0] == pytest.approx(2 * 0.12), "few tokens say little"


def test_in_float32_a_single_token_may_differ_by_more_than_the_others() -> None:
    exact = Limits(half=False)
    assert exact.allow(Agreement(max_abs=1.25e-4, mean_abs=3.9e-7, p99=3.8e-6, num_tokens=2365)), "as it was seen"
    assert not exact.allow(Agreement(max_abs=1.1e-3, mean_abs=3.9e-7, p99=3.8e-6, num_tokens=2365))
    assert not exact.allow(compared(400, 0.0, 1.1e-4))
    assert not exact.allow(Agreement(*[float("nan")] * 3, num_tokens=400))
    assert exact.told(400) == "99th percentile 1e-04, max 1e-03"


def test_a_fault_of_one_side_is_not_taken_for_rounding(
    half: Callable[..., Trainer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The floor is that of the side which is nearer to transformers' own forward pass."""
    made = half(tmp_path / "run", BOLD)
    side = made.sides[0]
    made.step()
    batch = sampled_batch(side.agent, 1.0)
    assert batch is not None
    sound = floor_of(side.policy, batch)
    assert int(batch.action_mask.sum()) == sound.num_tokens >= 512
    score_with_the_reference(side, monkeypatch)
    apart = (side.policy.score(batch).logprobs - batch.behaviour_logprobs)[batch.action_mask].abs()
    assert floor_of(side.policy, batch).mean_abs <= 2 * sound.mean_abs < 0.1 * float(apart.mean())


@pytest.mark.parametrize("limits", [Limits(half=False), Limits(half=True, floor=compared(800, 0.04, 0.2))])
@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_what_is_not_finite_stops_the_run(started: Checkpoint, limits: Limits, wrong: float, tmp_path: Path) -> None:
    side = trainer(tmp_path / "run", TIMID).sides[0]
    for deviations in ([0.0, wrong], [wrong] * 3, [0.0] * 500 + [wrong]):
        with pytest.raises(DisagreementError, match="not finite"):
            prove(side.policy, side.agent, Agreement.of(torch.tensor(deviations)), limits)


def test_a_proof_that_compared_nothing_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that say they are of older weights: there is an optimizer step, and nothing to hold against the sampler."""
    made = trainer(tmp_path / "run")
    groups = made.collect(0)
    made.store(groups, 0)
    monkeypatch.setattr("turnwise.learning.learner.deviations", lambda logprobs, batch: torch.empty(0))
    with pytest.raises(DisagreementError, match="not one token was there to compare"):
        made.learn(0)


def test_an_update_without_anything_to_learn_has_nothing_to_prove(tmp_path: Path) -> None:
    made = trainer(tmp_path / "run", "algorithm.base.drop_uniform_groups=true", "env.kwargs.pays=nothing")
    line = made.step()
    assert line["agreement/num_tokens"] == 0
    assert "agreement/max_abs" not in line, "0 would read as a proof"


class Elsewhere:
    """An engine with weights of its own, as one in another library has: it only says which they are."""

    def __init__(self, side: Side) -> None:
        limits: dict[str, Any] = {"num_slots": 8, "max_length": 256, "end_ids": side.agent.chat.end_ids}
        self._engine = SlotEngine(copy.deepcopy(side.policy.sampler), **limits)
        self.arrives, self.weights = True, side.policy.adapter_hash

    def hold(self, policy: Policy) -> None:
        self.weights = policy.adapter_hash
        if self.arrives:
            self._engine.model.load_state_dict(policy.sampler.state_dict())

    def __getattr__(self, name: str) -> Any:
        if name in ("model", "weights"):
            raise AttributeError(name)
        return getattr(self._engine, name)


def elsewhere(path: Path, rate: str) -> tuple[Trainer, Side, Elsewhere]:
    """A run after an update, with such an engine."""
    made, side = learned(path, rate)
    engine = side.agent.engine = Elsewhere(side)  # type: ignore[assignment]
    made.collector.engines = made.measurer.engines = [engine]
    return made, side, engine


def test_an_engine_with_weights_of_its_own_is_probed(tmp_path: Path) -> None:
    made, side, engine = elsewhere(tmp_path / "run", BOLD)
    made.step()
    assert probed(side.policy, side.agent, side.limits) is None
    engine.arrives = False
    made.step()
    assert broken_link(side.policy, side.agent) is None, "it says what it should"
    told = probed(side.policy, side.agent, side.limits)
    assert told is not None
    assert re.match(r"probe: the engine says that it plays [0-9a-f]{16}, and on \d+ tokens", told)
    with pytest.raises(DisagreementError, match="do not hold the same policy: probe: the engine says"):
        prove(side.policy, side.agent, Agreement.of(torch.zeros(50)), side.limits)
    with pytest.raises(DisagreementError, match=r"disagree on the log-probs .*: probe: "):
        made.step()


def test_an_engine_in_this_process_needs_no_probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, side = learned(tmp_path / "run", BOLD)
    monkeypatch.setattr("turnwise.training.proof.sampled_batch", None)
    made.step()
    assert probed(side.policy, side.agent, side.limits) is None


def test_an_engine_says_which_weights_it_plays(tmp_path: Path) -> None:
    made, side, engine = elsewhere(tmp_path / "run", TIMID)
    made.step()
    engine.weights = "0123456789abcdef"
    told = "engine: it plays weights 0123456789abcdef, the sampler holds"
    with pytest.raises(DisagreementError, match=told):
        prove(side.policy, side.agent, Agreement.of(torch.zeros(50)), side.limits)
    del engine.weights
    with pytest.raises(DisagreementError, match="engine: Elsewhere does not say which weights it plays"):
        prove(side.policy, side.agent, Agreement.of(torch.zeros(50)), side.limits)
