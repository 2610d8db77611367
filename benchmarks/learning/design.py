"""The design of the learning benchmark: settings, methods, the trials that tune each, budgets. No training here.

Every method has the same warm start and tasks for a seed, the same budget of sampled tokens, and three tuning trials
of as many tokens, with a seed and a panel that the results never see: one at each of two learning rates, and at the
better rate one with another value of a setting of its own. The trial with the highest sampled success is taken.
A setting whose runs are too dear for that has no trials: every method takes its defaults and one rate there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from turnwise.algorithms.registry import ALGORITHMS
from turnwise.config.files import load_config
from turnwise.config.schema import RunConfig
from turnwise.evaluation.contenders import read_run
from turnwise.runs.directory import RunDirectory

BASELINE = "grpo"
TUNING_SEED = 1000
RATES = ("6e-4", "1.6e-3")
"""Around 1e-3, with which the shipped configuration learns."""

OTHERWISE: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("grpo", "drgrpo", "rloo", "opo"), ("algorithm.clip_high=0.28",)),
    "dapo": ("algorithm.max_tries=3",),
    "gspo": ("algorithm.clip_low=3e-3", "algorithm.clip_high=4e-3"),
    "reinforce_pp": ("algorithm.baseline=group",),
    "ppo": ("algorithm.level=turn",),
    **dict.fromkeys(("gigpo", "g2po", "graphgpo"), ("algorithm.step_coef=0.5",)),
    "hapo": ("algorithm.average=attempts",),
    "pear": ("algorithm.alpha=0.5",),
    "funrl": ("algorithm.alpha=0.1",),
    "echo": ("algorithm.coef=0.01",),
    "hgpo": ("algorithm.length_weight=0",),
    "maxrl": ("algorithm.clip_high=0.28",),
    "bnpo": ("algorithm.weight_cap=3",),
    "canon": ("algorithm.mu=0.75",),
    "riskpo": ("algorithm.credit=uniform",),
    "rae": ("algorithm.decay=0.99",),
    "copo": ("algorithm.answer=actions",),
    "ares": ("algorithm.window=2",),
    "seed_grpo": ("algorithm.answer=actions",),
    "d3s": ("algorithm.first_attempts=0.5", "algorithm.first_tokens=0.5"),
    "dpo": ("algorithm.beta=0.03",),
    "cpl": ("algorithm.bias=0.75",),
    "epo": ("algorithm.entropy_coef=3e-3",),
    "empg": ("algorithm.bonus_coef=0.01",),
    "clip_cov": ("algorithm.share=2e-3",),
    "kl_cov": ("algorithm.penalty_coef=0.1",),
    "cispo": ("algorithm.clip_high=1.0",),
    "dppo": ("algorithm.divergence=kl",),
    "bapo": ("algorithm.target=0.5",),
    "forking": ("algorithm.within=turn",),
    "steer": ("algorithm.weight_min=0.5",),
    "capo": ("algorithm.fisher=1e-3", "algorithm.hessian=0.1"),
    "lp_reg": ("algorithm.share=0.1",),
    "siren": ("algorithm.within=turn",),
    "entropy_advantage": ("algorithm.alpha=0.1",),
    "ear": ("algorithm.form=clip",),
    "sac": ("algorithm.target_share=1.0",),
    "tea": ("algorithm.entropy_coef=1e-3",),
    "drbot": ("algorithm.group_share=1.0",),
    "spear": ("algorithm.bonus_coef=0.03",),
    "aepo": ("algorithm.entropy_advantage=0.05",),
    "aepo_arbitrary": ("algorithm.mix=append",),
}
"""What a method's last trial changes; for those that are not here, the number of optimizer steps."""

TAUGHT = ("distill", "igpo", "empo")
"""Methods that learn from something other than rewards: a teacher, the right answer, votes. No budget makes them
comparable."""

_ANY = ("optimizer.num_minibatches=2",)
NUM_TRIALS = len(RATES) + 1


@dataclass(frozen=True)
class Setting:
    """A shipped configuration with its panels, and the budget of a run and of a trial, in sampled tokens.

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
    settings: tuple[str, ...] = ()
    untuned: tuple[str, ...] | None = None
    """What every method runs with where there are no trials; (): with the configuration's own rate."""

    def names(self) -> list[str]:
        """The methods, the baseline first; None: every algorithm there is that learns from reward."""
        found = self.methods or tuple(name for name in ALGORITHMS if name not in TAUGHT)
        return sorted(found, key=lambda name: name != BASELINE)

    @property
    def num_updates(self) -> int:
        """Updates of a whole budget, as far as one can know before the first run."""
        return max(1, round(self.budget / self.tokens_per_update))


SETTINGS: Mapping[str, Setting] = {
    "household": Setting(
        config="learning/household",
        panel="test",
        tuning_panel="validation",
        budget=200_000,
        num_seeds=5,
        tokens_per_update=7_400,
        cpu_s_per_1000=0.46,
        warmstart_cpu_s=170.0,
        measure_cpu_s=1.8,
        test_tasks=256,
    ),
    "sweep": Setting(
        config="learning/sweep",
        panel="test",
        tuning_panel="validation",
        budget=40_000,
        num_seeds=3,
        tokens_per_update=4_000,
        cpu_s_per_1000=0.9,
        warmstart_cpu_s=65.0,
        measure_cpu_s=2.0,
        test_tasks=192,
        untuned=(),
    ),
    "alfworld": Setting(
        config="learning/alfworld",
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
        untuned=("optimizer.lr=1e-3",),
    ),
    "smoke": Setting(
        config="learning/smoke",
        panel="test",
        tuning_panel="validation",
        budget=1_500,
        num_seeds=2,
        tokens_per_update=750,
        cpu_s_per_1000=1.0,
        warmstart_cpu_s=5.0,
        measure_cpu_s=3.0,
        test_tasks=8,
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


def command(cell: Cell, out: Path) -> list[str]:
    """What trains the cell, after ``turnwise train``; its choices are settings of the command line, and nothing else.

    Raises ValueError for a seed whose method's trials are not all finished.
    """
    setting = SETTINGS[cell.setting]
    if cell.choice is None:
        panel, (choice, num_updates) = setting.panel, tuned(cell.setting, cell.method, out)
    else:
        panel, choice = setting.tuning_panel, choice_of(cell, out)
        num_updates = setting.num_updates
    return [
        *(setting.config, "--algorithm", cell.method, f"seed={cell.seed}", f"num_updates={num_updates}"),
        *(f"max_sampled_tokens={cell.budget}", f"eval.test_split={panel}", f"eval.test_tasks={cell.num_tasks}"),
        *setting.settings,
        *choice,
    ]


def configured(cell: Cell, out: Path) -> RunConfig:
    """The configuration of ``command``; errors as there."""
    config, _, method, *settings = command(cell, out)
    return load_config(config, settings, algorithm=method)


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
