"""The design of the learning benchmark: settings, methods, the trials that tune each, budgets. No training here.

Every method has the same warm start and tasks for a seed, the same budget of sampled tokens, and the same number of
tuning trials: two learning rates by two values of one setting of its own, on a shorter budget, with a seed and a
panel that the results never see. The trial with the highest sampled success is taken.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from turnwise.algorithms.registry import ALGORITHMS, resolve
from turnwise.config import RunConfig, override, parse_config, read_config
from turnwise.contenders import read_run
from turnwise.rundir import RunDirectory

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
}
"""Defaults that mean something else in the units of SHARED."""

CHOICES: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "grpo": (("clip_high=0.2",), ("clip_high=0.28",)),
    "drgrpo": (("clip_high=0.2",), ("clip_high=0.28",)),
    "rloo": (("clip_high=0.2",), ("clip_high=0.28",)),
    "opo": (("clip_high=0.2",), ("clip_high=0.28",)),
    "dapo": (("max_tries=10",), ("max_tries=3",)),
    "gspo": (("clip_low=3e-4", "clip_high=4e-4"), ("clip_low=3e-3", "clip_high=4e-3")),
    "reinforce_pp": (("baseline=none",), ("baseline=group",)),
    "ppo": (("level=token",), ("level=turn",)),
    "gigpo": (("step_coef=1.0",), ("step_coef=0.5",)),
    "epo": (("entropy_coef=1e-3",), ("entropy_coef=3e-3",)),
    "empg": (("bonus_coef=0.05",), ("bonus_coef=0.01",)),
    "clip_cov": (("share=2e-4",), ("share=2e-3",)),
    "kl_cov": (("penalty_coef=1.0",), ("penalty_coef=0.1",)),
    "drbot": (("group_share=0.75",), ("group_share=1.0",)),
    "spear": (("replay_coef=1.0",), ("replay_coef=0.3",)),
    "aepo": (("entropy_advantage=0.2",), ("entropy_advantage=0.05",)),
}
"""The second axis of a method's trials, its default first; for others it is the number of optimizer steps."""

_ANY = (("optimizer.num_minibatches=4",), ("optimizer.num_minibatches=2",))


@dataclass(frozen=True)
class Setting:
    """A world with its warm start, panels and budgets (in sampled tokens, those of a run and of a tuning trial).

    ``tokens_per_update`` and the CPU seconds (per 1000 tokens, of a warm start, of a measurement of 100 tasks) come
    from earlier runs of EPO; the first spans the schedules of trials, the others only the estimate.
    """

    config: str
    panel: str
    tuning_panel: str
    budget: int
    trial_budget: int
    num_seeds: int
    tokens_per_update: int
    cpu_s_per_1000: float
    warmstart_cpu_s: float
    measure_cpu_s: float
    test_tasks: int
    methods: tuple[str, ...] | None = None
    shared: Mapping[str, Any] = field(default_factory=lambda: SHARED)
    settings: tuple[str, ...] = ()

    def names(self) -> list[str]:
        """The methods, the baseline first; None: every algorithm there is."""
        found = self.methods or tuple(ALGORITHMS)
        return sorted(found, key=lambda name: name != BASELINE)


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
        trial_budget=50_000,
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
        trial_budget=50_000,
        num_seeds=3,
        tokens_per_update=9_400,
        cpu_s_per_1000=1.7,
        warmstart_cpu_s=800.0,
        measure_cpu_s=10.0,
        test_tasks=134,
        methods=("grpo", "epo", "empg", "spear", "aepo"),
        shared={**SHARED, "invalid_action_penalty": 0.01},
        # No measurement stops this warm start; the name only has to differ from both panels'.
        settings=("warmstart.stop_split=valid_seen",),
    ),
    "smoke": Setting(
        config="smoke",
        panel="test",
        tuning_panel="validation",
        budget=1_500,
        trial_budget=500,
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
        return SETTINGS[self.setting].budget if self.choice is None else SETTINGS[self.setting].trial_budget

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
    """A method's trials, then its seeds; method by method."""
    for method in methods:
        yield from (Cell(setting, method, TUNING_SEED, choice) for choice in range(len(trials(method))))
        yield from (Cell(setting, method, seed) for seed in seeds)


def trials(method: str) -> list[tuple[str, ...]]:
    """The settings of each tuning trial: learning rates by the method's two choices."""
    own = [tuple(f"algorithm.{setting}" for setting in choice) for choice in CHOICES.get(method, ())] or _ANY
    return [(f"optimizer.lr={rate}", *choice) for rate, choice in product(RATES, own)]


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
        panel, choice = setting.tuning_panel, trials(cell.method)[cell.choice]
        num_updates = max(1, round(cell.budget / setting.tokens_per_update))
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
    found = []
    for number, choice in enumerate(trials(method)):
        run = read_run(out / Cell(setting, method, TUNING_SEED, number).folder)
        report = run.after["sampled"]
        value = report.success.value if report.success else report.mean_return
        tokens = sum(line["sampled_tokens"] for line in run.metrics)
        found.append((value, choice, max(1, round(SETTINGS[setting].budget * len(run.metrics) / tokens))))
    _, choice, num_updates = max(found, key=lambda each: each[0])
    return choice, num_updates


def is_finished(path: Path) -> bool:
    """Whether a cell has been measured after training."""
    evaluation = RunDirectory(path).evaluation_path
    return evaluation.exists() and "after" in json.loads(evaluation.read_text())
