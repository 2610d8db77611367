"""A trainer made anew from a checkpoint goes on as the one that was not broken off, for every algorithm."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.runs import assert_same, config, timeless, trainer
from turnwise.algorithms.registry import ALGORITHMS
from turnwise.config.schema import RunConfig
from turnwise.runs.directory import RunDirectory
from turnwise.training.trainer import Trainer

FORMS = {
    "epo, released": "{type: epo, form: released}",
    "spear, released": "{type: spear, replay: when_full, buffer_size: 4, unit: row, keep: at_least}",
    "aepo, released": "{type: aepo, forget: false, pace: lockstep, origin: own, form: released}",
    "spear on dapo": "{type: spear, base: {type: dapo}}",
    "all at once": "{type: aepo, base: {type: spear, base: {type: epo, base: {type: gigpo}}}}",
}
ALL = {name: name for name in ALGORITHMS} | {"distill": "{type: distill, teacher: MODEL}"} | FORMS
FAST = ("ppo", "all at once")


def broken_and_whole(
    made: RunConfig, path: Path, forget: Callable[[Trainer], object] = lambda trainer: None
) -> tuple[RunDirectory, RunDirectory]:
    """Three updates in one go, and two with a third by a new trainer, which may ``forget`` something before."""
    whole = trainer(made, path / "whole")
    whole.step()
    whole.step()
    shutil.copytree(path / "whole", path / "broken")
    whole.step()
    broken = trainer(made, path / "broken")
    forget(broken)
    broken.step()
    return broken.run, whole.run


@pytest.mark.parametrize(
    "algorithm",
    [*(pytest.param(text, id=name, marks=() if name in FAST else pytest.mark.slow) for name, text in ALL.items())],
)
def test_every_algorithm_resumes_to_the_bit(model: Path, tmp_path: Path, algorithm: str) -> None:
    broken, whole = broken_and_whole(config(model, f"algorithm={algorithm.replace('MODEL', str(model))}"), tmp_path)
    assert_same(broken, whole)
    state = whole.load("last").state["sides"][""]
    if algorithm == "spear":
        assert state["buffer"]["entries"], "nothing was kept: the test would show nothing"
    if algorithm == "drpo":
        kept = state["learner"]["parts"]["0.RememberedWins"]["own"]
        assert kept["episodes"], "nothing was kept: the test would show nothing"
        assert kept["depth"] > 1


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["rollout.shards=2", "rollout.env_threads=3", "optimizer.minibatch_unit=group"])
def test_ways_to_be_faster_resume_to_the_bit(model: Path, tmp_path: Path, setting: str) -> None:
    settings = ("algorithm=grpo", "rollout.num_tasks=3", "rollout.num_slots=5", setting)
    assert_same(*broken_and_whole(config(model, *settings), tmp_path))


HALF = ("algorithm={type: grpo, kl_coef: 0.1}", "model.dtype=bfloat16", "lora=null", "optimizer.lr=1e-6")


def test_all_weights_in_half_precision_resume_to_the_bit(model: Path, tmp_path: Path) -> None:
    made = config(model, *HALF)
    broken, whole = broken_and_whole(made, tmp_path)
    assert_same(broken, whole)
    hashes = [line["adapter_hash"] for line in whole.metrics()]
    assert len(set(hashes)) == len(hashes) == 3, "at 1e-6 the sampler's weights still change in every update"

    def forget(resumed: Trainer) -> None:
        for weight, master in resumed.sides[0].learner.optimizer.masters.values():
            master.data.copy_(weight)

    broken, whole = broken_and_whole(made, tmp_path / "forgetful", forget)
    assert timeless(broken.load("last").state) != timeless(whole.load("last").state), "masters matter"


FORGETFUL = {
    "optimizer": ("grpo", lambda t: t.sides[0].learner.optimizer.state.clear()),
    "replay buffer": ("spear", lambda t: t.sides[0].buffer.load_state_dict({"entries": []})),
    "entropy history": ("epo", lambda t: vars(t.sides[0].learner.parts[-1]).update(past_updates=0)),
    "critic": ("ppo", lambda t: [p.data.zero_() for p in t.sides[0].learner.optimizer.param_groups[1]["params"]]),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", FORGETFUL)
def test_what_is_forgotten_is_noticed(model: Path, tmp_path: Path, what: str) -> None:
    algorithm, forget = FORGETFUL[what]
    broken, whole = broken_and_whole(config(model, f"algorithm={algorithm}"), tmp_path, forget)
    assert timeless(broken.load("last").state) != timeless(whole.load("last").state)


def test_a_world_that_draws_from_global_generators_is_resumed_too(model: Path, tmp_path: Path) -> None:
    assert_same(*broken_and_whole(config(model, "env.id=tests.faults.worlds:tests/Careless-v0"), tmp_path))


def test_failures_of_worlds_are_counted_on(model: Path, tmp_path: Path) -> None:
    (tmp_path / "marks").mkdir()
    faulty = f"env={{id: 'tests.worlds:tests/Moody-v0', kwargs: {{way: raise, marks: {tmp_path}/marks, times: 1}}}}"
    broken, whole = broken_and_whole(config(model, faulty), tmp_path)
    assert [line["failures"] for line in whole.metrics()] == [1, 1, 1]
    assert_same(broken, whole)
