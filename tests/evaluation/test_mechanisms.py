"""How often each mechanism acted: counted by the parts, collected by the learner, shown by ``turnwise compare``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.evaluation.test_compare import make_run
from tests.training.test_lora_proof import TINY
from turnwise.algorithms.registry import build, resolve
from turnwise.config.files import load_config
from turnwise.evaluation.compare import compare
from turnwise.evaluation.comparison_view import markdown
from turnwise.jobs import resume, train
from turnwise.learning.metrics import Occurrences
from turnwise.learning.settings import RunInfo
from turnwise.runs.directory import RunDirectory


def test_occurrences_are_shares_since_last_asked() -> None:
    counter = Occurrences()
    assert counter.take() == {}
    counter.count("share", torch.tensor([True, False]), torch.tensor([True, True]))
    counter.count("share", 0.0, 2)
    counter.count("never", 0, 0)
    assert counter.take() == {"share": 0.25, "never": 0.0}
    assert counter.take() == {}


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    patch = pytest.MonkeyPatch()
    patch.setenv("TURNWISE_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


GRPO = "base: {type: grpo, kl_coef: 0.0, drop_uniform_groups: false}"
RUNS: dict[str, tuple[str, dict[str, tuple[float, float]]]] = {
    # the algorithm; bounds on what each mechanism may say in the last update
    "epo": (f"{{type: epo, {GRPO}, corridor: [0.9, 1.1]}}", {"EntropyCorridor/outside_share": (0.1, 1)}),
    "empg": (
        f"{{type: empg, {GRPO}}}",
        {"EntropyModulation/scaling_std": (0.01, 2), "EntropyModulation/bonus_share": (0.6, 0.7)},
    ),
    "clip_cov": (
        f"{{type: clip_cov, {GRPO}, share: 0.1, low: -9.0, high: 9.0}}",
        {"CovarianceFilter/left_out_share": (0.05, 0.1)},
    ),
    "kl_cov": (f"{{type: kl_cov, {GRPO}, share: 0.1}}", {"CovariancePenalty/penalised_share": (0.05, 0.11)}),
    "gigpo": ("{type: gigpo, kl_coef: 0.0}", {"StepAdvantage/compared_share": (0.9, 1)}),
    "hgpo": (
        "{type: hgpo, kl_coef: 0.0}",
        {"NestedCredit/compared_share": (0.1, 1), "NestedCredit/history_share": (0, 1)},
    ),
    "g2po": (
        "{type: g2po, kl_coef: 0.0}",
        # In this world every lever leads to the same next state.
        {"StateValues/compared_share": (0, 0), "StateValues/gain_share": (0.1, 1)},
    ),
    "graphgpo": (
        "{type: graphgpo, kl_coef: 0.0}",
        {"GoalDistance/compared_share": (0, 0), "GoalDistance/contradicted_share": (0, 0)},  # for the same reason
    ),
    "igpo": (
        "{type: igpo, kl_coef: 0.0}",
        {
            **{"GainCredit/mean_belief": (0.01, 0.99), "GainCredit/mean_gain": (-0.5, 0.5)},
            "GainCredit/positive_share": (0.01, 1),
        },
    ),
    "hapo": (
        "{type: hapo}",
        {
            **{"EntropyBounds/mean_widening": (0.05, 1), "EntropyWeight/mean_change": (0.05, 1)},
            **{"EntropyHeat/pivot": (-10, 3), "EntropyHeat/above": (1e-9, 20), "EntropyHeat/below": (0.01, 20)},
        },
    ),
    "echo": (
        f"{{type: echo, {GRPO}}}",
        {"ObservationLoss/observed_share": (0.1, 1), "ObservationLoss/mean_cross_entropy": (0.001, 10)},
    ),
    # Nobody thinks in this world.
    "pear": (
        f"{{type: pear, {GRPO}}}",
        {"ThoughtPenalty/penalised_share": (0, 0), "ThoughtPenalty/mean_penalty": (0, 0)},
    ),
    "funrl": (f"{{type: funrl, {GRPO}}}", {"ThoughtBonus/raised_share": (0, 0)}),
    "maxrl": (
        "{type: maxrl, kl_coef: 0.0}",
        {"SuccessRateCredit/relative_share": (0.1, 1), "SuccessRateCredit/mean_magnitude": (0.01, 3)},
    ),
    # With so few groups the fitted density is flat in most updates.
    "bnpo": ("{type: bnpo}", {"BetaCredit/weighed_share": (0, 1), "BetaCredit/capped_share": (0, 0.5)}),
    "canon": ("{type: canon, metric: entropy}", {"HalvesCredit/split_share": (1, 1)}),
    "riskpo": (
        "{type: riskpo, bundle: 2, kl_coef: 0.0}",
        {
            **{"BundleCredit/credited_share": (0.1, 1), "BundleCredit/uniform_credited_share": (0, 0)},
            "BundleCredit/flat_share": (0, 0.5),
        },
    ),
    "rae": (
        "{type: rae, kl_coef: 0.0}",
        {"SeatBaselines/seats": (1, 1), "SeatBaselines/baseline_magnitude": (0.01, 3)},
    ),
    "copo": (
        f"{{type: copo, {GRPO}}}",
        {
            **{"LocalShare/global_weight": (0.1, 0.9), "LocalShare/global_share": (0.1, 1)},
            "LocalShare/rescued_share": (0, 1),
        },
    ),
    "ares": (
        f"{{type: ares, {GRPO}, window: 2, quantile: 0.5}}",
        {
            **{f"EffortTargets/{kind}_share": (0, 1) for kind in ("easy", "medium", "hard")},
            **{"EffortTargets/windows": (0.5, 6), "EffortTargets/changed_share": (0, 1)},
            **{"EffortTargets/mean_change": (0, 0.5), "EffortKL/relaxed_share": (0.1, 1)},
        },
    ),
    "seed_grpo": (
        f"{{type: seed_grpo, {GRPO}}}",
        {"AgreementScale/mean_scale": (0.5, 0.99), "AgreementScale/damped_share": (0.1, 1)},
    ),
    "d3s": (
        f"{{type: d3s, {GRPO}, last_attempts: 0.5, last_tokens: 0.5}}",
        {"KeptAttempts/attempt_share": (0.4, 0.6), "KeptTokens/token_share": (0.1, 0.4)},
    ),
    "dpo": (
        "{type: dpo, margin: 0.1}",
        {
            **{"PairLoss/paired_groups_share": (0.1, 1), "PairLoss/paired_share": (0.1, 1)},
            "PairLoss/accuracy": (0, 1),
        },
    ),
    "counterfactual": (
        f"{{type: counterfactual, {GRPO}, credited: turn}}",
        {
            # Two states a task: in some updates the copies of all of them earn what their parents earned.
            **{"CounterfactualPlanner/states_per_task": (2, 2), "CounterfactualPlanner/differing_share": (0, 1)},
            **{"CounterfactualPlanner/other_action_share": (0.1, 1), "FirstTurnOnly/left_out_share": (0, 0.5)},
        },
    ),
    "cure": (
        f"{{type: cure, {GRPO}}}",
        {
            **{"WithinReplies/copies_per_task": (2, 3), "WithinReplies/first_turn_share": (0, 1)},
            **{"WithinReplies/shared_token_share": (0.1, 0.9), "WithinReplies/other_token_share": (0, 1)},
            "OwnParts/left_out_share": (0.05, 0.8),
        },
    ),
    "etmr": (
        f"{{type: etmr, {GRPO}}}",
        {
            **{"WithinReplies/copies_per_task": (2, 3), "WithinReplies/first_turn_share": (0, 1)},
            **{"WithinReplies/shared_token_share": (0.1, 0.9), "WithinReplies/other_token_share": (0, 1)},
            "OwnParts/left_out_share": (0.05, 0.8),
        },
    ),
    "drpo": (
        f"{{type: drpo, {GRPO}}}",
        {
            **{"StoredStarts/stored_share": (0.5, 0.5), "StoredStarts/won_share": (0.1, 1)},
            **{"StoredStarts/depth": (1, 3), "StoredStarts/kept_episodes": (1, 6)},
            "StoredStarts/lost_share": (0, 0),
        },
    ),
    "oreo": (
        "{type: oreo}",
        {
            **{"SoftBellman/mean_error": (0.01, 3), "SoftBellman/raised_share": (0, 1)},
        },
    ),
    "weighted_cloning": (
        "{type: weighted_cloning}",
        {"WeightedLikelihood/mean_weight": (0.5, 5), "WeightedLikelihood/capped_share": (0, 0.1)},
    ),
    "dapo": (
        "{type: dapo, max_tries: 2}",
        {"DynamicSampling/tries": (1, 2), "DynamicSampling/discarded_share": (0, 1)},
    ),
    "spear": (
        "{type: spear, warmup_updates: 1, replay_clip: null}",
        {
            **{"WidestGroups/dropped_share": (0.5, 0.5), "ReplyFilter/filtered_share": (0, 1)},
            **{"SelfImitation/replayed": (1, 8), "SelfImitation/coef": (1, 1), "SelfImitation/kept_share": (0.1, 0.9)},
            "CovarianceFilter/left_out_share": (0, 0.1),
        },
    ),
    "aepo": (
        f"{{type: aepo, {GRPO}, shared: hard, bias: 1.0}}",
        {
            **{"TreePlanner/branches_per_task": (1, 3), "TreePlanner/branch_share": (0.25, 0.75)},
            **{"TreePlanner/monitor_token_share": (0.1, 0.5), "BalancedClip/kept_gradient_share": (0, 1)},
            **{"EntropyAdvantage/flipped_share": (0, 1), "SharedTrunks/shared_share": (0.01, 0.9)},
        },
    ),
}


def run_of(name: str, path: Path, *settings: str) -> list[dict[str, Any]]:
    """Records of a tiny real run in the levers' world."""
    less = [s for s in TINY if not s.startswith("algorithm.")]
    more = [
        *less,
        "warmstart.max_tokens=60000",
        "num_updates=3",
        "eval.test_split=null",
        "checkpoint_every=1",
        *settings,
    ]
    train(load_config("smoke", [*more, f"algorithm={RUNS[name][0]}"], env="tests.levers:test/Levers-v0"), path)
    return RunDirectory.open(path).metrics()


def mechanisms(line: dict[str, Any]) -> dict[str, float]:
    return {k.removeprefix("mechanisms/"): v for k, v in line.items() if k.startswith("mechanisms/")}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_mechanism_says_how_often_it_acted(name: str, tmp_path: Path) -> None:
    found = mechanisms(run_of(name, tmp_path / "run")[-1])
    expected = RUNS[name][1]
    assert set(found) == set(expected)
    for key, (low, high) in expected.items():
        assert low <= found[key] <= high, (key, found[key])


@pytest.mark.slow
def test_a_resumed_run_counts_what_an_unbroken_one_does(tmp_path: Path) -> None:
    whole = run_of("aepo", tmp_path / "run")
    run = RunDirectory.open(tmp_path / "run")
    run.cut(2)
    resume(tmp_path / "run")
    assert [mechanisms(line) for line in run.metrics()] == [mechanisms(line) for line in whole]


def test_every_stream_s_mechanisms_are_told_apart() -> None:
    recipe = build(resolve("spear").config(), RunInfo(10, 8))
    for stream in recipe.streams:
        for part in stream.parts():
            part.occurred.count("x", 1.0)
    names = set(recipe.acted())
    assert {"CovarianceFilter/x", "replay.CovarianceFilter/x"} <= names


def test_compare_shows_the_mean_and_in_how_many_updates(tmp_path: Path) -> None:
    key = "mechanisms/EntropyCorridor/outside_share"
    paths = [
        make_run(tmp_path / "a", "low", **{key: 0.25}),
        make_run(tmp_path / "b", "half", "algorithm=rloo", "watchdog.action=stop", **{key: 0.0}),
    ]
    first, second = compare(paths).methods
    assert first.mechanisms == {"EntropyCorridor/outside_share": (0.25, 1.0)}
    assert second.mechanisms == {"EntropyCorridor/outside_share": (0.0, 0.0)}
    assert "EntropyCorridor/outside share 0.25 (100 %)" in markdown(compare(paths))
    assert second.name == "rloo", "what the watchdog does makes no other method"
    assert math.isfinite(first.areas["tokens"].value)
