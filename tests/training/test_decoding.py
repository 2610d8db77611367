"""Runs with methods of decoding: what they record, that sampler and learner agree, and what is refused by name."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.faults.runs import assert_same, config, trainer
from tests.shards.hosts import Here
from tests.training.test_teacher import disturb
from turnwise.agents.decoding import DecodingConfig
from turnwise.assembly import players
from turnwise.assembly.agent_files import with_decoding_from_anywhere
from turnwise.assembly.players import model_agent
from turnwise.assembly.run import Assembly
from turnwise.assembly.settling import demand_of, fitted, sampling_of
from turnwise.assembly.shards import shards_of
from turnwise.config.files import load_config
from turnwise.evaluation.evaluate import evaluate
from turnwise.heat import Heat
from turnwise.models.policy import Policy
from turnwise.monitoring.record import per_token
from turnwise.replay.store import TrajectoryReader
from turnwise.runs.directory import RunDirectory
from turnwise.runs.translating import translated
from turnwise.shards.connection import ShardError
from turnwise.training.plan import Demand, plan
from turnwise.trajectory import Turn

METHODS = [  # for a random model, which is unsure of some 400 tokens: entropies of 6 nats
    "agent.decoding.heat={strength: 0.3, pivot: 1.7, above: 0.2, below: 0.5}",
    "agent.decoding.mirostat={target: 2.95, rate: 0.02}",
    "agent.decoding.floor={temperature: 0.95, probability: 0.0015}",
]

SECOND = "agent.decoding.second={{model: {}, threshold: 5.0, window: 1, least: 1}}"


def turns(run: RunDirectory, update: int) -> list[Turn]:
    """Those that were played for an update."""
    return [turn for t in TrajectoryReader(run.trajectories_path) if t.policy_version == update for turn in t.turns]


def another(model: Path, folder: Path) -> Path:
    """A copy of the model with other weights."""
    shutil.copytree(model, folder / "other")
    disturb(folder / "other")
    return folder / "other"


def test_a_run_records_what_decoding_did_and_resumes_to_the_bit(model: Path, tmp_path: Path) -> None:
    """``step`` proves sampler and learner."""
    second = SECOND.format(another(model, tmp_path))
    asked = config(model, *METHODS, second, "num_updates=3", "agent.action_format=plain")
    whole = trainer(asked, tmp_path / "whole")
    for _ in range(3):
        whole.step()
    for line in whole.run.metrics():
        found = {name.removeprefix("decoding/"): value for name, value in line.items() if name.startswith("decoding/")}
        shares = [name for name in found if name.endswith("share")]
        assert sorted(shares) == [
            *("action_share", "floor_cut_share", "floor_share", "heat_share", "mirostat_share", "second_share")
        ]
        assert all(0 <= found[name] <= 1 for name in shares)
        assert found["tokens"] <= line["sampled_tokens"]
        assert 0 < found["second_share"] < 1
        assert 0 < found["heat_change"] <= 0.3
        assert line["agreement/max_abs"] < 1e-4
    played = turns(whole.run, 1)
    assert any(turn.processing is not None and turn.processing.forced.any() for turn in played)
    heats = np.concatenate([t.processing.temperatures for t in played if t.processing is not None])
    assert heats.min() >= np.float32(0.95)
    assert len(set(heats.tolist())) > 5
    assert all(turn.entropies[turn.action_mask].min() > 0.1 for turn in played if turn.action_mask[:-1].any())
    broken = trainer(asked, tmp_path / "broken")
    broken.step()
    again = trainer(asked, tmp_path / "broken")
    for _ in range(2):
        again.step()
    assert_same(again.run, whole.run)


def test_hapo_takes_its_temperatures_from_the_update_before(model: Path, tmp_path: Path) -> None:
    asked = config(model, "algorithm={type: hapo, heat: 0.4}", "num_updates=3", "eval.every=1", "eval.tasks=8")
    whole = trainer(asked, tmp_path / "whole")
    heating = whole.sides[0].learner.recipe.heating
    assert heating is not None
    assert heating.heat() is None
    first = whole.step()
    assert not any(turn.processing is not None for turn in turns(whole.run, 0))
    heat = heating.heat()
    assert heat is not None
    assert first["mechanisms/EntropyHeat/pivot"] == pytest.approx(heat.spread.pivot)
    known = np.concatenate([t.entropies[t.action_mask] for t in turns(whole.run, 0)])
    assert np.log(known).max() == pytest.approx(heat.spread.pivot + heat.spread.above, abs=1e-5)
    assert "decoding/tokens" not in first
    second = whole.step()
    assert 0 < second["decoding/heat_change"] <= 0.4
    assert second["decoding/tokens"] == second["sampled_tokens"], "measurements are not heated, and not counted"
    heats = np.concatenate([t.processing.temperatures for t in turns(whole.run, 1) if t.processing is not None])
    assert heats.min() < 1 < heats.max()
    whole.step()
    broken = trainer(asked, tmp_path / "broken")
    broken.step()
    again = trainer(asked, tmp_path / "broken")
    for _ in range(2):
        again.step()
    assert_same(again.run, whole.run)


@pytest.mark.slow
def test_shards_are_told_the_heat(model: Path, tmp_path: Path) -> None:
    asked = ["algorithm={type: hapo, heat: 0.4}", "num_updates=2", *METHODS[1:]]
    alone = trainer(config(model, *asked), tmp_path / "alone")
    sharded = trainer(config(model, *asked, "rollout.shards=2"), tmp_path / "sharded")
    try:
        for _ in range(2):
            ours, theirs = alone.step(), sharded.step()
        names = [name for name in ours if name.startswith("decoding/")]
        assert len(names) > 5
        for name in names:
            assert theirs[name] == pytest.approx(ours[name], rel=0.02)
        assert theirs["decoding/heat_share"] > 0.5
    finally:
        sharded.close()


def test_an_evaluation_takes_the_same_settings(model: Path, tmp_path: Path) -> None:
    made = trainer(config(model, "num_updates=1"), tmp_path / "run")
    made.step()
    asked: dict[str, Any] = {"tasks": 2, "split": "train", "out": tmp_path / "e.json"}
    evaluate(made.run.path, agent={"decoding": {"mirostat": {"target": 1.5}, "floor": {"temperature": 1.5}}}, **asked)
    (seen,) = [t for t in TrajectoryReader(tmp_path / "e.trajectories.jsonl.gz")][:1]
    assert all(turn.processing is not None and (turn.processing.temperatures == 1.5).all() for turn in seen.turns)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        (["agent.decoding.floor={}"], r"agent\.decoding\.floor has no floor: give temperature or probability"),
        (["agent.decoding.mirostat.target=0"], r"agent\.decoding\.mirostat\.target: .*greater than 0"),
        (["agent.decoding.mirostad={}"], r"Unknown setting 'agent\.decoding\.mirostad'"),
        (["agent.decoding.heat={}"], r"agent\.decoding\.heat\.pivot"),
        (
            ["rollout.backend=vllm", "agent.decoding.second.model=x"],
            r"agent\.decoding\.second asks another model .*rollout\.backend=own",
        ),
        (
            ["rollout.backend=vllm", "rollout.vllm.url=http://x", METHODS[1]],
            r"agent\.decoding\.mirostat works on each token of a reply, which a vLLM server cannot",
        ),
        (
            ["rollout.backend=vllm", "rollout.vllm.url=http://x", "algorithm=hapo"],
            r"hapo decides temperatures .*token by token, which a vLLM server cannot: set algorithm\.heat=0",
        ),
        (["rollout.ahead=1", "algorithm=hapo"], r"rollout\.ahead=1: hapo takes its temperatures .*algorithm\.heat=0"),
        (
            ["rollout.ahead=1", "algorithm=ear", "algorithm.base.type=hapo"],
            r"rollout\.ahead=1: ear takes its temperatures .*algorithm\.base\.heat=0",
        ),
        (
            [METHODS[0], "algorithm=ear", "algorithm.base={type: spear, base: hapo}"],
            r"ear decides temperatures .*, and so would agent\.decoding\.heat: set algorithm\.base\.base\.heat=0",
        ),
        (
            [METHODS[1], "algorithm=ear", "algorithm.base=cure"],
            r"ear begins copies within replies, .*agent\.decoding\.mirostat would go by",
        ),
        (
            ["agent.decoding.second.model=x", "algorithm=etmr"],
            r"etmr begins copies within replies, .*agent\.decoding\.second would go by",
        ),
        ([METHODS[0], "algorithm=hapo"], r"hapo decides temperatures .*, and so would agent\.decoding\.heat"),
        (
            ["game={policies: per_role}", "algorithm=hapo"],
            r"hapo decides temperatures .*game\.policies=per_role trains several: set algorithm\.heat=0",
        ),
        (
            ["game={policies: per_player}", "algorithm=aepo_arbitrary"],
            r"aepo_arbitrary decides what is played \(HeatedAttempts\) .*game\.policies=per_player trains several",
        ),
    ],
)
def test_what_cannot_work_is_refused_by_name(model: Path, settings: list[str], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        config(model, *settings)


def test_the_second_model_has_the_same_tokens_and_a_place_in_the_plan(model: Path, tmp_path: Path) -> None:
    asked = config(model, f"agent.decoding.second.model={model}")
    _, demand = demand_of(asked)
    assert demand.second > 0
    assert sampling_of(asked)[0] == "own"
    fitted(asked)
    gone = config(model, f"agent.decoding.second.model={tmp_path / 'nobody'}")
    with pytest.raises(ValueError, match="nobody"):
        trainer(gone, tmp_path / "run")
    policy = Policy.load(model, lora=None)
    with pytest.raises(ValueError, match=r"agent\.decoding\.second asks another model"):
        model_agent(policy, asked.agent, num_slots=1, backend="vllm")
    assert with_decoding_from_anywhere(load_config("smoke").agent).decoding == DecodingConfig()


def test_a_run_goes_on_with_the_second_model_that_it_began_with_alone(model: Path, tmp_path: Path) -> None:
    """Also in shards, which have one each; the process that learns only knows its hash."""
    other = another(model, tmp_path)
    asked = config(model, f"agent.decoding.second.model={other}", "rollout.shards=2")
    run = RunDirectory.create(tmp_path / "run", asked, {})
    made = Assembly(asked, host=Here()).trainer(run)
    (side,) = made.sides
    assert side.agent.second is None
    made.save()
    alone = trainer(asked.model_copy(update={"rollout": config(model).rollout}), tmp_path / "run")  # as it was
    assert alone.sides[0].agent.second is not None
    assert alone.sides[0].second == side.second is not None
    settings = asked.model_dump(mode="json")
    with pytest.raises(ShardError, match=r"shard 0 has loaded another second model .*here {'': '0000'}"):
        shards_of(settings, str(model), (), {"": side.policy}, Here(), {"": "0000"})
    disturb(other, 1)
    with pytest.raises(ValueError, match=r"drew tokens with a second model .*put the earlier one back"):
        Assembly(asked, host=Here()).trainer(run).rewind()
    with pytest.raises(ShardError, match=r"shard 0 has loaded another second model"):
        shards_of(settings, str(model), (), {"": side.policy}, Here(), {"": str(side.second)})


@pytest.mark.parametrize("host", [Here, pytest.param(lambda: None, marks=pytest.mark.slow)])
def test_shards_play_a_second_model_through_updates(model: Path, tmp_path: Path, host: Callable[[], Any]) -> None:
    """In this process, and in children: episodes, metrics and a measurement are those of a run without shards."""
    second = SECOND.format(another(model, tmp_path))
    asked = [second, "agent.action_format=plain", "num_updates=2", "eval.test_split=test", "eval.test_tasks=3"]
    alone = trainer(config(model, *asked), tmp_path / "alone")
    sharded = config(model, *asked, "rollout.shards=2")
    run = RunDirectory.create(tmp_path / "sharded", sharded, {})
    with closing(Assembly(sharded, host=host())) as assembly, closing(assembly.trainer(run)) as made:
        made.save()
        for _ in range(2):
            ours, theirs = alone.step(), made.step()
            assert theirs["shards/lost"] == 0
            assert theirs["agreement/max_abs"] < 1e-4
            assert 0 < theirs["decoding/second_share"] < 1
            for name in (name for name in ours if name.startswith("decoding/")):
                assert theirs[name] == pytest.approx(ours[name], rel=1e-5)
        assert made.final()["sampled"].mean_action_tokens == alone.final()["sampled"].mean_action_tokens
    for update in range(2):
        pairs = list(zip(turns(run, update), turns(alone.run, update), strict=True))
        assert all(np.array_equal(a.action_mask, b.action_mask) for a, b in pairs), "whose tokens they are"
        assert all(np.array_equal(a.action_ids, b.action_ids) for a, b in pairs)


def test_a_second_model_plays_ahead(model: Path, tmp_path: Path) -> None:
    """Update 1 is played by the weights before update 0, and scored with these."""
    second = SECOND.format(another(model, tmp_path))
    asked = config(model, second, "agent.action_format=plain", "num_updates=2", "rollout.ahead=1")
    run = RunDirectory.create(tmp_path / "run", asked, {})
    with closing(Assembly(asked, host=Here())) as assembly, closing(assembly.trainer(run)) as made:
        for line in (made.step() for _ in range(2)):
            assert line["agreement/max_abs"] < 1e-4
            assert 0 < line["decoding/second_share"] < 1
    assert len(turns(run, 0)) > 0 == len(turns(run, 1))


def test_every_second_model_is_planned(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    second = f"agent.decoding.second.model={model}"
    one, two = (demand_of(config(model, second, *more)) for more in ([], ["rollout.shards=2"]))
    found = [{part.name: part.bytes for part in plan(*each).parts}["second model's weights"] for each in (one, two)]
    assert found == [one[1].second, 2 * one[1].second]
    elsewhere = demand_of(config(model, second, "ray.address=auto"))[1]
    assert elsewhere.second == 0, "the shards are on other machines"
    seen: list[Demand] = []
    monkeypatch.setattr(players, "fitting", lambda shape, demand: seen.append(demand) or demand)
    world = config(model).env.make()
    players.players(str(model), world, num_slots=2, agent={"decoding": {"second": {"model": str(model)}}})
    assert seen[0].second == one[1].second


def test_numbers_are_means_over_the_tokens() -> None:
    told = {"gateway/ignored_sampling": 3, "decoding/tokens": 8, "decoding/heat_share": 2.0, "shards/lost": 1}
    assert per_token(told) == {**told, "decoding/heat_share": 0.25}


def test_an_earlier_run_of_hapo_has_no_temperature() -> None:
    found = translated({"algorithm": {"type": "epo", "base": {"type": "hapo", "alpha": 0.5}}, "rewards": {}})
    assert found["algorithm"]["base"] == {"heat": 0.0, "type": "hapo", "alpha": 0.5}
    kept = translated({"algorithm": {"type": "hapo", "heat": 0.1}, "rewards": {}})
    assert kept["algorithm"]["heat"] == 0.1


def test_a_heat_is_plain_data() -> None:
    from pickle import dumps, loads

    from turnwise.heat import Spread
    from turnwise.models.drawing import Sampling

    given = Sampling(heat=Heat(Spread(0.1, 0.2, 0.3), 0.05))
    assert loads(dumps(given)) == given
