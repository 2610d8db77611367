"""The design of the learning benchmark: settings, methods, the trials that tune each, budgets. No training here.

Every method has the same warm start and tasks for a seed, the same budget of sampled tokens, and three tuning trials
of as many tokens, with a seed and a panel that the results never see: one at each of two learning rates, and at the
better rate one with another value of a setting of its own. The trial with the highest sampled success is taken.
A setting whose runs are too dear for that has no trials: every method takes its defaults and one rate there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from turnwise.algorithms.registry import ALGORITHMS, resolve
from turnwise.config import RunConfig
from turnwise.configfile import override, parse_config, read_config
from turnwise.evaluation.contenders import read_run
from turnwise.records.rundir import RunDirectory

BASELINE = "grpo"
TUNING_SEED = 1000
RATES = ("6e-4", "1.6e-3")
"""Around 1e-3, with which the shipped configuration learns."""

SHARED: Mapping[str, Any] = {
    "reward_scale": 1.0,
    "invalid_action_penalty": 0.03,
    "kl_coef": 0.0,
    "normalize_std": False,
}
"""What every method has alike, where it has the setting (its innermost base's): rewards in units of a success, no
reference, and no division by the group's deviation, which blows up the penalties of groups that fail (docs/log.md)."""

OWN: Mapping[str, Mapping[str, Any]] = {
    "spear": {"bonus_coef": 0.1},  # the paper's 1 is for a success worth 10
    # The published value is Qwen's; the vocabularies here have 1024 and 1536 entries.
    "arpo": {"log_vocabulary": 7.0},
    "aepo": {"log_vocabulary": 7.0},
}
"""Defaults that mean something else in the units of SHARED, or for a model as small as these."""

OTHERWISE: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("grpo", "drgrpo", "rloo", "opo"), ("algorithm.clip_high=0.28",)),
    "dapo": ("algorithm.max_tries=3",),
    "gspo": ("algorithm.clip_low=3e-3", "algorithm.clip_high=4e-3"),
    "reinforce_pp": ("algorithm.baseline=group",),
    "ppo": ("algorithm.level=turn",),
    "gigpo": ("algorithm.step_coef=0.5",),
    "epo": ("algorithm.entropy_coef=3e-3",),
    "empg": ("algorithm.bonus_coef=0.01",),
    "clip_cov": ("algorithm.share=2e-3",),
    "kl_cov": ("algorithm.penalty_coef=0.1",),
    "drbot": ("algorithm.group_share=1.0",),
    "spear": ("algorithm.fresh_clip.share=0.02", "algorithm.replay_clip.share=0.02"),
    "aepo": ("algorithm.entropy_advantage=0.05",),
}
"""What a method's last trial changes; for those that are not here, the number of optimizer steps."""

_ANY = ("optimizer.num_minibatches=2",)
NUM_TRIALS = len(RATES) + 1


@dataclass(frozen=True)
class Setting:
    """A world with its warm start, panels, and the budget of a run and of a trial, in sampled tokens.

    ``tokens_per_update`` and the CPU seconds (per 1000 tokens, of a warm start, of a measurement of 100 tasks) come
    from earlier runs of EPO; the first spans the schedules of trials, the others only the estimate.
    """

    config: str
    panel: str
    tuning_panel: str
    budget: int
    num_seeds: int
    tokens_per_update: int
    cpu_s_per_1000: float
    warmstart_cpu_s: float
    measure_cpu_s: float
    test_tasks: int
    methods: tuple[str, ...] | None = None
    shared: Mapping[str, Any] = field(default_factory=lambda: SHARED)
    settings: tuple[str, ...] = ()
    untuned: tuple[str, ...] | None = None
    """What every method runs with where there are no trials."""

    def names(self) -> list[str]:
        """The methods, the baseline first; None: every algorithm there is."""
        found = self.methods or tuple(ALGORITHMS)
        return sorted(found, key=lambda name: name != BASELINE)

    @property
    def num_updates(self) -> int:
        """Updates of a whole budget, as far as one can know before the first run."""
        return max(1, round(self.budget / self.tokens_per_update))


_TINY = (
    *("model.hidden_size=32", "model.head_dim=16", "model.ffn_size=48"),
    *("warmstart.max_tokens=20000", "warmstart.tokenizer_episodes=40", "agent.max_reply_tokens=8"),
    *("rollout.num_tasks=2", "rollout.group_size=3", "warmstart.stop_split=train"),
)

SETTINGS: Mapping[str, Setting] = {
    "household": Setting(
        config="household",
        panel="test",
        tuning_panel="validation",
        budget=200_000,
        num_seeds=5,
        tokens_per_update=7_400,
        cpu_s_per_1000=0.46,
        warmstart_cpu_s=170.0,
        measure_cpu_s=1.8,
        test_tasks=256,
        # Unseen by cloning, and neither panel's.
        settings=("warmstart.stop_split=train",),
    ),
    "alfworld": Setting(
        config="alfworld",
        panel="valid_unseen",
        tuning_panel="valid_train",
        budget=200_000,
        num_seeds=3,
        tokens_per_update=9_400,
        cpu_s_per_1000=1.7,
        warmstart_cpu_s=800.0,
        measure_cpu_s=10.0,
        test_tasks=134,
        methods=("grpo", "epo", "empg", "spear", "aepo"),
        shared={**SHARED, "invalid_action_penalty": 0.01},
        untuned=("optimizer.lr=1e-3",),
        # No measurement stops this warm start; the name only has to differ from both panels'.
        settings=("warmstart.stop_split=valid_seen",),
    ),
    "smoke": Setting(
        config="smoke",
        panel="test",
        tuning_panel="validation",
        budget=1_500,
        num_seeds=2,
        tokens_per_update=750,
        cpu_s_per_1000=1.0,
        warmstart_cpu_s=5.0,
        measure_cpu_s=3.0,
        test_tasks=8,
        settings=_TINY,
    ),
}
"""``smoke`` tries every part in minutes; nothing is learned there."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One run: a tuning trial (``choice`` numbers it), or, with ``choice`` None, a seed of the benchmark itself."""

    setting: str
    method: str
    seed: int
    choice: int | None = None

    @property
    def budget(self) -> int:
        """Sampled tokens."""
        return SETTINGS[self.setting].budget

    @property
    def num_tasks(self) -> int:
        """Tasks of the panel that it is measured on."""
        whole = SETTINGS[self.setting].test_tasks
        return whole if self.choice is None else min(whole, 256)

    @property
    def expected_cpu_s(self) -> float:
        """Of one core, without the warm start: training, and measuring before and after."""
        setting = SETTINGS[self.setting]
        return self.budget / 1000 * setting.cpu_s_per_1000 + 2 * self.num_tasks / 100 * setting.measure_cpu_s

    @property
    def folder(self) -> Path:
        """Below the benchmark's own folder."""
        return Path(self.setting, self.method, f"seed-{self.seed}" if self.choice is None else f"trial-{self.choice}")


def cells(setting: str, methods: Sequence[str], seeds: Sequence[int]) -> Iterator[Cell]:
    """A method's trials, if the setting has them, then its seeds; method by method."""
    num_trials = NUM_TRIALS if SETTINGS[setting].untuned is None else 0
    for method in methods:
        yield from (Cell(setting, method, TUNING_SEED, choice) for choice in range(num_trials))
        yield from (Cell(setting, method, seed) for seed in seeds)


def choice_of(cell: Cell, out: Path) -> tuple[str, ...]:
    """What a trial sets: a learning rate, and the last one more at the rate that did better (the first of equals).

    Raises ValueError for a last trial before the others are finished.
    """
    assert cell.choice is not None
    if cell.choice < len(RATES):
        return (f"optimizer.lr={RATES[cell.choice]}",)
    done = [score(replace(cell, choice=number), out) for number in range(len(RATES))]
    return (f"optimizer.lr={RATES[done.index(max(done))]}", *OTHERWISE.get(cell.method, _ANY))


def score(trial: Cell, out: Path) -> float:
    """The sampled success at a trial's end, or in a world without success its return."""
    report = read_run(out / trial.folder).after["sampled"]
    return report.success.value if report.success else report.mean_return


def algorithm(method: str, shared: Mapping[str, Any] = SHARED) -> dict[str, Any]:
    """A method's section: its defaults, with ``shared`` laid over its innermost base, and OWN."""
    made: dict[str, Any] = {"type": method, **resolve(method).config().model_dump(mode="json")}
    innermost = made
    while "base" in innermost:
        innermost = innermost["base"]
    innermost.update({name: value for name, value in shared.items() if name in innermost})
    return {**made, **OWN.get(method, {})}


def configured(cell: Cell, out: Path) -> RunConfig:
    """What to run. Raises ValueError for a seed whose method's trials are not all finished."""
    setting = SETTINGS[cell.setting]
    if cell.choice is None:
        panel, (choice, num_updates) = setting.panel, tuned(cell.setting, cell.method, out)
    else:
        panel, choice = setting.tuning_panel, choice_of(cell, out)
        num_updates = setting.num_updates
    raw = {**read_config(setting.config), "algorithm": algorithm(cell.method, setting.shared)}
    settings = [
        *("threads=1", "rollout.threads=1", "checkpoint_every=5", f"num_updates={num_updates}"),
        # Nothing is measured on the way, and only what is compared at the ends.
        *("eval.every=0", "eval.split=train", "eval.tasks=128", "eval.greedy=false"),
        *(f"eval.test_split={panel}", f"eval.test_tasks={cell.num_tasks}", f"seed={cell.seed}"),
        *setting.settings,
        *choice,
    ]
    return parse_config(override(raw, settings))


def tuned(setting: str, method: str, out: Path) -> tuple[tuple[str, ...], int]:
    """The best trial's settings (the first of equals), and how many updates a whole budget is at its pace.

    Raises ValueError where a trial is not finished.
    """
    found = SETTINGS[setting]
    if found.untuned is not None:
        return found.untuned, found.num_updates
    trials = [Cell(setting, method, TUNING_SEED, number) for number in range(NUM_TRIALS)]
    best = max(trials, key=lambda trial: score(trial, out))
    return choice_of(best, out), len(read_run(out / best.folder).metrics)


def is_finished(path: Path) -> bool:
    """Whether a cell has been measured after training."""
    evaluation = RunDirectory(path).evaluation_path
    return evaluation.exists() and "after" in json.loads(evaluation.read_text())
